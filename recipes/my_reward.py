"""A reward of your own, beside the recipe that uses it: `use: ./my_reward.py:Brevity`."""

from dataclasses import dataclass

from posttrain_plugins.text import to_text


@dataclass
class Brevity:
    """1.0 up to `max_chars` characters, falling linearly to 0.0 at twice that."""

    max_chars: int = 64

    def __call__(self, completions, **columns) -> list[float]:
        lengths = [len(to_text(completion)) for completion in completions]
        return [min(1.0, max(0.0, 2.0 - length / self.max_chars)) for length in lengths]
