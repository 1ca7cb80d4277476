"""Questions whose answer is known, to measure annotators by. No paper; PRM800K has such questions too
(https://huggingface.co/papers/2305.20050, appendix on labels).

1. They are some of the items themselves, so nobody can tell them from the others, and chosen by a hash of the content:
   which are does not depend on order, number or seed.
2. An item on which nobody can be wrong is no such question.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from posttrain_plugins.decisions.item import Decision, Item

__all__ = ["can_be_gold", "gold_accuracy", "is_chosen", "is_right"]


def is_chosen(item: str, share: float) -> bool:
    """Tell whether an item is among the share that is to measure annotators.

    Args:
        item: its id.
        share: in [0, 1].
    """
    return int(item[:8], 16) < share * 2**32


def can_be_gold(item: Item, truths: Sequence[bool | None]) -> bool:
    """Tell whether the answer is known, and another one would be wrong.

    Args:
        item: the question.
        truths: of each completion, or of each step of `first_wrong`, whether it is right; None where nobody knows.
    """
    is_known = bool(truths) and None not in truths
    return is_known and item.mode != "demonstration" and (item.mode not in ("pick", "rank") or not all(truths))


def is_right(decision: Decision, item: Item, truths: Sequence[bool]) -> bool:
    """Tell whether a decision is what is known.

    A choice must be right, or "none is good" where nothing is. An order's best group must hold right ones alone, and no
    wrong completion may stand above a right one.
    """
    if item.mode == "accept":
        return decision.verdict == truths[0]
    if item.mode == "first_wrong":
        return decision.first_wrong == next((i for i, is_true in enumerate(truths) if not is_true), len(truths))
    if decision.none_good or not any(truths):
        return decision.none_good and not any(truths)
    groups = decision.order if decision.order is not None else ((decision.choice or 0,),)
    is_sorted = [all(truths[place] for place in group) for group in groups]
    first_mixed = is_sorted.index(False) if False in is_sorted else len(groups)
    below = [place for group in groups[first_mixed + 1 :] for place in group]
    return first_mixed > 0 and not any(truths[place] for place in below)


def gold_accuracy(
    items: Mapping[str, Item], truths: Mapping[str, Sequence[bool]], decisions: Iterable[Decision]
) -> dict[str, tuple[int, int]]:
    """Count each annotator's decisions on questions whose answer is known: how many are right, of how many.

    Args:
        items: by id.
        truths: by item, for those that are such questions.
        decisions: those that stand; flagged ones say nothing.
    """
    found: dict[str, list[bool]] = defaultdict(list)
    for decision in decisions:
        if decision.item in truths and not decision.flag:
            found[decision.annotator].append(is_right(decision, items[decision.item], truths[decision.item]))
    return {annotator: (sum(right), len(right)) for annotator, right in found.items()}
