"""Completions that were asked for and never came: counted, told, and too many of them end the stage.

An endpoint that is overloaded, a prompt that leaves no room, a strategy that raises: none of these is a wrong answer. A
figure is over what was answered; its interval is as wide as if all that is missing were wrong, and then right.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from posttrain_plugins.errors import InputError, StageFailed

__all__ = ["Missing", "check_max_missing"]


@dataclass(frozen=True)
class Missing:
    """What is missing of what was asked for.

    Args:
        asked: completions, or answers of a strategy, or ratings of a judge.
        reasons: one for each that is missing.
    """

    asked: int
    reasons: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many are missing."""
        return len(self.reasons)

    def __str__(self) -> str:
        share = 100 * self.count / max(self.asked, 1)
        reason, times = Counter(self.reasons).most_common(1)[0]
        others = f", and {self.count - times} for other reasons" if times < self.count else ""
        return f"{self.count} of {self.asked} are missing ({share:.3g} %): {reason}{others}"

    def check(self, what: str, max_missing: float) -> None:
        """See that no more than a share is missing.

        Raises:
            StageFailed: it is.
        """
        if self.count > max_missing * self.asked:
            message = f"too many answers are missing: {what}: {self}, expected {100 * max_missing:.3g} % at most"
            hint = "mend that and run again: what was answered is in the log; or raise max_missing, for wider intervals"
            raise StageFailed(message, hint=hint)


def check_max_missing(share: float) -> None:
    """See that a stage's `max_missing` is a share.

    Raises:
        InputError: it is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise InputError(f"max_missing is {share}, expected a share from 0 to 1", hint="0.01 is one in a hundred")
