"""`mix`: several data sets in one, each by its share; what a model must not forget is shown to it again (replay).

Replay (rehearsal) is the oldest remedy for catastrophic forgetting: Robins, 1995, "Catastrophic forgetting, rehearsal
and pseudorehearsal"; for language models, Scialom et al., 2022 (https://huggingface.co/papers/2205.12393) keep 1 % of
old tasks, and Ouyang et al., 2022 (https://huggingface.co/papers/2203.02155, section 3.5) mix pretraining gradients
into PPO.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.types import DataRef

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Mix"]


@dataclass
class Mix:
    """Mix data sets by share, in an order drawn once.

    The first gives each of its rows once, unless `size` says how many there are; of the others as many are drawn as
    their shares ask for, none twice before all were drawn once.

    Args:
        datasets: two or more with the same columns of TRL's formats; columns that not all have are left out.
        shares: of the rows, one for each data set; `[0.9, 0.1]` and `[9, 1]` say the same. Equal by default.
        size: rows in all; by default what the first one's rows are the share of.
        seed: which rows of the others are drawn, and the order.

    Raises:
        InputError: another number of shares than of data sets, a share that is not above 0, columns that no trainer
            could take together.

    Returns:
        A data set with the columns that all have.
    """

    datasets: list[DataRef]
    shares: list[float] | None = None
    size: int | None = None
    seed: int = 42

    example_params: ClassVar[dict[str, Any]] = {
        "datasets": ["digit_chain(split=train, size=8)", "digit_chain(split=test, size=8)"],
        "shares": [0.75, 0.25],
    }

    def __post_init__(self) -> None:
        if len(self.datasets) < 2:
            raise InputError(
                f"mix has {len(self.datasets)} data set, expected two or more", hint="datasets: [own, general]"
            )
        shares = self.shares
        if shares is not None and len(shares) != len(self.datasets):
            message = f"mix has {len(shares)} shares, expected {len(self.datasets)}, one for each data set"
            raise InputError(message, hint=f"shares: {[1.0] * len(self.datasets)}")
        if shares is not None and not all(0 < share < float("inf") for share in shares):
            raise InputError(f"mix cannot use shares: {shares}, expected each above 0", hint="leave that data set out")
        if self.size is not None and self.size < len(self.datasets):
            raise InputError(f"mix cannot use size: {self.size}, expected a row or more of each data set")

    def __call__(self) -> Dataset:
        import numpy as np
        from datasets import concatenate_datasets

        parts = self._alike()
        counts = self._counts(len(parts[0]))
        drawn = np.random.default_rng(self.seed)
        # the first as it stands where all of it is taken: the order is drawn below
        taken = [part.select(_rows(len(part), count, drawn)) for part, count in zip(parts, counts, strict=True)]
        try:
            mixed = concatenate_datasets(taken)
        except ValueError as cause:  # datasets: features that cannot be aligned
            kinds = "; ".join(", ".join(f"{k}: {v}" for k, v in part.features.items()) for part in parts)
            message = f"mix cannot put these data sets together, their columns differ in type: {kinds}"
            raise InputError(
                message, hint="all prompts as text, or all as messages (system_prompt: turns one into the other)"
            ) from cause
        return mixed.select(drawn.permutation(len(mixed)))

    def _alike(self) -> Sequence[Dataset]:
        """Return the data sets with the columns that all of them have, in the order of the first."""
        given: Sequence[Any] = self.datasets  # resolved by now: the recipe's names stand for these
        shared = [name for name in given[0].column_names if all(name in one.column_names for one in given)]
        if not shared:
            found = "; ".join(", ".join(one.column_names) for one in given)
            raise InputError(f"mix has data sets without a column in common: {found}", hint="rename: {old: new}")
        return [one.select_columns(shared) for one in given]

    def _counts(self, first: int) -> list[int]:
        """Return how many rows each gives, from the number of rows that the first has."""
        shares = self.shares or [1.0] * len(self.datasets)
        total = first * sum(shares) / shares[0] if self.size is None else float(self.size)
        wanted = [total * share / sum(shares) for share in shares]
        # rounded so that they add up to all: what is left over goes to those that lost most by rounding down
        counts = [max(1, int(count)) for count in wanted]
        left = round(total) - sum(counts)
        order = sorted(range(len(counts)), key=lambda i: int(wanted[i]) - wanted[i])
        for i in order[: max(0, left)]:
            counts[i] += 1
        return counts


def _rows(available: int, wanted: int, drawn: Any) -> list[int]:
    """Draw row numbers without repeating one before all were taken."""
    if wanted == available:
        return list(range(available))
    rounds = -(-wanted // available)
    return [int(row) for _ in range(rounds) for row in drawn.permutation(available)][:wanted]
