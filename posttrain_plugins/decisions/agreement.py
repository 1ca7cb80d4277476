"""How far annotators agree: Krippendorff's alpha, the raw share, and each one with themselves.

Paper: Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011),
https://repository.upenn.edu/handle/20.500.14332/2089, computed by `nltk.metrics.agreement`.

1. Values are compared as equal or not (the nominal distance), also numbers of steps.
2. An order is compared pair by pair: each two completions of an item are a unit, with the values above, below, equal.
3. Texts are not compared: of demonstrations no agreement is known.
4. Alpha is low where nearly all say the same, so the raw share stands beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from posttrain_plugins.decisions.item import Decision
from posttrain_plugins.errors import importing_extra

__all__ = ["Agreement", "agreement", "alpha_of"]

NOT_KNOWN = "not known"


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree; None where nobody can tell.

    Args:
        alpha: 1 is agreement, 0 what chance would give, below that is contradiction.
        is_one_value: everybody said the same of everything, so that alpha says nothing.
        raw: the share of pairs of annotators who said the same of one unit.
        with_themselves: the share of equal decisions among those that one annotator made on one item again.
        items: with decisions of two annotators or more.
    """

    alpha: float | None
    is_one_value: bool
    raw: float | None
    with_themselves: float | None
    items: int

    def __str__(self) -> str:
        alpha = NOT_KNOWN if self.alpha is None else f"{self.alpha:.3f}"
        return f"{self.alpha:.1f}, one value only" if self.is_one_value else alpha


def agreement(decisions: Iterable[Decision], needs_alpha: bool = True) -> Agreement:
    """Measure the agreement of a ledger's decisions.

    Args:
        decisions: those that stand.
        needs_alpha: False leaves alpha out: it needs nltk, whose import takes seconds.

    Raises:
        InputError: alpha is needed and nltk is not installed.
    """
    first: dict[str, dict[str, Decision]] = defaultdict(dict)
    again: list[bool] = []
    for decision in decisions:
        before = first[decision.item].setdefault(decision.annotator, decision)
        if before is not decision and decision.mode != "demonstration":
            again.append(_values(before) == _values(decision))
    shared = [list(by_annotator.items()) for by_annotator in first.values() if len(by_annotator) > 1]
    units = [
        (annotator, f"{number}:{part}", value)
        for number, of_item in enumerate(shared)
        for annotator, decision in of_item
        for part, value in _values(decision).items()
    ]
    by_unit: dict[str, list[str]] = defaultdict(list)
    for _, unit, value in units:
        by_unit[unit].append(value)
    equal = [a == b for values in by_unit.values() for a, b in combinations(values, 2)]
    return Agreement(
        alpha_of(units) if needs_alpha else None,
        needs_alpha and bool(equal) and len({value for _, _, value in units}) == 1,
        sum(equal) / len(equal) if equal else None,
        sum(again) / len(again) if again else None,
        len(shared),
    )


def alpha_of(data: Sequence[tuple[str, str, str]]) -> float | None:
    """Return Krippendorff's alpha with the nominal distance; None where no unit has two values.

    Args:
        data: (annotator, unit, value); what an annotator did not judge is not in it.

    Raises:
        InputError: nltk is not installed.
    """
    count: dict[str, int] = defaultdict(int)
    for _, unit, _ in data:
        count[unit] += 1
    # A unit of one annotator cannot be paired, and counts neither for what is observed nor for what chance would give.
    paired = [row for row in data if count[row[1]] > 1]
    if not paired:
        return None
    with importing_extra("agreement", "nltk", "annotate"):
        from nltk.metrics.agreement import AnnotationTask
    return float(AnnotationTask(data=paired).alpha())


def _values(decision: Decision) -> dict[str, str]:
    """Return part of the item -> what was said of it, nothing for a text."""
    if decision.flag:
        return {"": "flag"}
    if decision.order is not None:
        at = {place: rank for rank, group in enumerate(decision.order) for place in group}
        return {f"{a}/{b}": str((at[a] > at[b]) - (at[a] < at[b])) for a, b in combinations(sorted(at), 2)}
    if decision.none_good:
        return {"": "none is good"}
    said = next((v for v in (decision.choice, decision.verdict, decision.first_wrong) if v is not None), None)
    return {} if said is None else {"": str(said)}
