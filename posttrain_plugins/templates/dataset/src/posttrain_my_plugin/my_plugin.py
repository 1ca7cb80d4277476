"""`my_plugin`: say here where the data comes from."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass
class MyPlugin:
    """Makes sums of two digits, as prompt and completion.

    Args:
        split: `train` or `test`; no problem is in both.
        size: how many rows.
        seed: chooses the rows and their order.
    """

    split: Literal["train", "test"] = "train"
    size: int = 64
    seed: int = 0

    columns: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    example_params: ClassVar[dict[str, Any]] = {"size": 8}

    def __call__(self) -> Any:
        """Return a `datasets.Dataset` in one of TRL's formats."""
        import datasets  # inside the call: `posttrain validate` imports this module

        held_out = self.split == "test"
        pairs = [(a, b) for a in range(10) for b in range(10) if ((3 * a + b) % 5 == 0) == held_out]
        drawn = random.Random(self.seed).choices(pairs, k=self.size)
        return datasets.Dataset.from_list([{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a, b in drawn])
