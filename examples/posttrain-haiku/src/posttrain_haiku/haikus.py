"""`haikus`: poems from a list of words, each line with its number of syllables. No paper."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from posttrain_haiku.form import FORM, syllables
from posttrain_plugins.errors import InputError

TRAIN = ("pond", "moon", "snow", "frog", "rain")
TEST = ("crow", "mist")
WORDS = ("old", "cold", "soft", "wind", "silent", "morning", "river", "winter", "yellow", "on", "in", "fallen", "deep")


@dataclass
class Haikus:
    """A topic as prompt, and a haiku that begins with it as completion.

    Args:
        split: topics of `train` or of `test`; they share none.
        size: rows.
        seed: which of them.
    """

    split: Literal["train", "test"] = "train"
    size: int = 64
    seed: int = 0

    columns: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    example_params: ClassVar[dict[str, Any]] = {"size": 8}

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"haikus cannot have {self.size} rows", hint="set size to 1 or more")

    def __call__(self) -> Any:
        """A `datasets.Dataset`, conversational."""
        import datasets

        rng = random.Random(f"haikus/{self.split}/{self.seed}")
        topics = TRAIN if self.split == "train" else TEST
        return datasets.Dataset.from_list([_row(rng.choice(topics), rng) for _ in range(self.size)])


def _row(topic: str, rng: random.Random) -> dict[str, Any]:
    lines = [_line(topic if at == 0 else "", wanted, rng) for at, wanted in enumerate(FORM)]
    return {
        "prompt": [{"role": "user", "content": f"haiku: {topic}"}],
        "completion": [{"role": "assistant", "content": "\n".join(lines)}],
    }


def _line(begun: str, wanted: int, rng: random.Random) -> str:
    while syllables(begun) < wanted:
        fitting = [word for word in WORDS if syllables(word) <= wanted - syllables(begun)]
        begun = f"{begun} {rng.choice(fitting)}".strip()
    return begun
