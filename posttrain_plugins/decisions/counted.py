"""Which decisions of a ledger count for a set of items, and whether there are enough. No paper.

1. Of each annotator the first decision on an item counts; one that is given again measures the annotator
   (`agreement.py`). To correct one, it is taken back.
2. An item is decided with the decisions of as many annotators as are asked for; later ones are not used.
3. Where fewer items are asked for than there are, those count that were decided first. So a new decision changes what
   is trained on only where it is missing, or takes one back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from posttrain_plugins.decisions.item import Decision

__all__ = ["Counted", "counted"]

ANSWER = ("choice", "order", "text", "verdict", "first_wrong", "none_good", "flag")


@dataclass(frozen=True)
class Counted:
    """The decisions that are used.

    Args:
        answers: item -> its decisions, in the order of the items.
        done: items that are decided, at most `needed`.
        needed: items that must be decided.
        unused: decided items that are not needed.
    """

    answers: Mapping[str, tuple[Decision, ...]]
    done: int
    needed: int
    unused: int

    @property
    def is_enough(self) -> bool:
        """Are as many items decided as are needed?"""
        return self.done >= self.needed

    def __str__(self) -> str:
        return f"{self.done} of {self.needed}"

    def sha256(self) -> str:
        """Return a hash of what was answered by whom, without when and under which id."""
        content = [
            [id, [[one.annotator, *(getattr(one, name) for name in ANSWER)] for one in answers]]
            for id, answers in self.answers.items()
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def counted(
    ids: Sequence[str], decisions: Iterable[Decision], annotators_per_item: int = 1, needed: int | None = None
) -> Counted:
    """Choose the decisions that count.

    Args:
        ids: of the items, in their order.
        decisions: those of a ledger that stand, in the order in which they were made; those on other items are left
            out.
        annotators_per_item: how many annotators decide each item.
        needed: how many items must be decided; None for all.
    """
    asked = dict.fromkeys(ids)
    found: dict[str, dict[str, Decision]] = {}
    complete: list[str] = []
    for decision in decisions:
        of_item = found.setdefault(decision.item, {}) if decision.item in asked else None
        if of_item is None or decision.annotator in of_item or len(of_item) == annotators_per_item:
            continue
        of_item[decision.annotator] = decision
        if len(of_item) == annotators_per_item:
            complete.append(decision.item)
    wanted = len(asked) if needed is None else needed
    used = set(complete[:wanted])
    answers = {id: tuple(found[id].values()) for id in asked if id in used}
    return Counted(answers, len(used), wanted, len(complete) - len(used))
