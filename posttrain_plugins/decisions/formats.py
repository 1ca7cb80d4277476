"""Decisions as the rows that TRL's trainers read. No paper, but of what is made of a first wrong step.

| mode            | forms, the first by default                        |
|-----------------|----------------------------------------------------|
| `demonstration` | `demonstrations`, `pairs` (over the draft)         |
| `pick`          | `pairs`, `ranked`, `labelled`, `demonstrations`    |
| `rank`          | `ranked`, `pairs`, `labelled`, `demonstrations`    |
| `accept`        | `labelled`, `demonstrations`                       |
| `first_wrong`   | `steps`                                            |

| form             | columns beside the prompt            | for                                  |
|------------------|--------------------------------------|--------------------------------------|
| `demonstrations` | `completion`                         | SFT                                  |
| `pairs`          | `chosen`, `rejected`                 | DPO, reward models                   |
| `ranked`         | `completions` (best first), `scores` | listwise reward models, listwise DPO |
| `labelled`       | `completion`, `label` (a bool)       | KTO                                  |
| `steps`          | `completions` (steps), `labels`      | process reward models                |

1. A choice is an order with two groups, the chosen one and the others. Equals make no pair; their `scores`, how many
   others each one beats, are equal.
2. Where no completion is good, all are labelled false, and there is no pair and no order: the least bad is no example.
3. One flag takes an item out.
4. Labels end with the first wrong step: whether a right step after a wrong one is right, nobody can say (Lightman et
   al., 2023, https://huggingface.co/papers/2305.20050, section 2.4).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Literal, TypeAlias, TypeVar

from posttrain_plugins.decisions.item import Decision, Item, Mode
from posttrain_plugins.errors import InputError
from posttrain_plugins.text import in_format_of, to_text

__all__ = ["COLUMNS", "FORMS", "Form", "Resolve", "Rows", "rows_of"]

Form: TypeAlias = Literal["demonstrations", "pairs", "ranked", "labelled", "steps"]
Resolve: TypeAlias = Literal["majority", "unanimous", "all"]

FORMS: dict[Mode, tuple[Form, ...]] = {
    "demonstration": ("demonstrations", "pairs"),
    "pick": ("pairs", "ranked", "labelled", "demonstrations"),
    "rank": ("ranked", "pairs", "labelled", "demonstrations"),
    "accept": ("labelled", "demonstrations"),
    "first_wrong": ("steps",),
}
COLUMNS: dict[Form, tuple[str, ...]] = {
    "demonstrations": ("prompt", "completion"),
    "pairs": ("prompt", "chosen", "rejected"),
    "ranked": ("prompt", "completions", "scores"),
    "labelled": ("prompt", "completion", "label"),
    "steps": ("prompt", "completions", "labels"),
}
T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Rows:
    """Training data of decisions.

    Args:
        rows: in the order of the items.
        flagged: items that somebody flagged.
        none_good: items of which nothing is good, as resolved.
        undecided: items that gave no row for another reason: equals only, or annotators who disagree.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    flagged: int = 0
    none_good: int = 0
    undecided: int = 0


def rows_of(
    items: Iterable[Item],
    answers: Mapping[str, Sequence[Decision]],
    form: Form | None = None,
    resolve: Resolve = "majority",
) -> Rows:
    """Make training data of the items that are decided.

    Args:
        items: of one mode or several.
        answers: item -> its decisions, of distinct annotators; items without one are passed over.
        form: None takes the mode's own.
        resolve: of several annotators, what more than half of them say (`majority`), what they all say (`unanimous`),
            or each one's decision by itself (`all`). Texts that were written stand each by itself.

    Raises:
        InputError: the mode does not make that form.
    """
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    for item in items:
        decisions = answers.get(item.id, ())
        chosen = form or FORMS[item.mode][0]
        if chosen not in FORMS[item.mode]:
            known = ", ".join(FORMS[item.mode])
            raise InputError(f"mode '{item.mode}' makes no {chosen}", hint=f"form: one of {known}")
        if any(decision.flag for decision in decisions):
            counts["flagged"] += 1
        elif decisions:
            # one at a time, where each annotator's word stands by itself
            is_apart = resolve == "all" or item.mode == "demonstration"
            voices = [[decision] for decision in decisions] if is_apart else [list(decisions)]
            made = [row for voice in voices for row in _WRITERS[chosen](item, voice, resolve)]
            rows += [{"prompt": item.prompt, **item.row, **row} for row in made]
            is_bad = _vote([decision.none_good for decision in decisions], resolve) is True
            counts["none_good"] += is_bad
            counts["undecided"] += not made and not is_bad
    return Rows(rows, counts["flagged"], counts["none_good"], counts["undecided"])


def _groups(item: Item, decision: Decision) -> tuple[tuple[int, ...], ...]:
    """Return the groups of equals, the best first; none where nothing is good."""
    if decision.none_good:
        return ()
    if decision.order is not None:
        return decision.order
    assert decision.choice is not None
    return ((decision.choice,), tuple(i for i in range(len(item.completions)) if i != decision.choice))


def _beats(item: Item, decisions: Sequence[Decision], resolve: Resolve) -> set[tuple[int, int]]:
    """Return the pairs (better, worse) that the annotators agree on."""
    votes: Counter[tuple[int, int]] = Counter()
    for decision in decisions:
        groups = _groups(item, decision)
        votes.update((a, b) for i, high in enumerate(groups) for a in high for low in groups[i + 1 :] for b in low)
    is_agreed = {pair: _is_agreed(count, len(decisions), resolve) for pair, count in votes.items()}
    return {pair for pair in permutations(range(len(item.completions)), 2) if is_agreed.get(pair)}


def _is_agreed(count: int, of: int, resolve: Resolve) -> bool:
    return count == of if resolve == "unanimous" else 2 * count > of


def _vote(values: Sequence[T], resolve: Resolve) -> T | None:
    """Return the value that more than half gave, or all; None where there is none."""
    value, count = Counter(values).most_common(1)[0]
    return value if _is_agreed(count, len(values), resolve) else None


def _is_good(item: Item, decisions: Sequence[Decision], resolve: Resolve) -> list[bool | None]:
    """Tell of each completion whether it is good, None where the annotators do not agree."""
    if item.mode == "accept":
        return [_vote([decision.verdict for decision in decisions], resolve)]
    best = [set(next(iter(_groups(item, decision)), ())) for decision in decisions]
    return [_vote([place in of_one for of_one in best], resolve) for place in range(len(item.completions))]


def _demonstrations(item: Item, decisions: Sequence[Decision], resolve: Resolve) -> Iterator[dict[str, Any]]:
    if item.mode == "demonstration":
        texts: list[Any] = [decision.text for decision in decisions if decision.text is not None]
    else:
        good = _is_good(item, decisions, resolve)
        texts = [text for text, is_good in zip(item.completions, good, strict=True) if is_good]
    yield from ({"completion": in_format_of(item.prompt, text)} for text in texts)


def _pairs(item: Item, decisions: Sequence[Decision], resolve: Resolve) -> Iterator[dict[str, Any]]:
    if item.mode == "demonstration":  # what a person made of a draft is better than the draft
        texts = [
            (decision.text, draft)
            for decision in decisions
            for draft in item.completions
            if decision.text is not None and to_text(draft).strip() != decision.text.strip()
        ]
    else:
        beats = sorted(_beats(item, decisions, resolve))
        texts = [(item.completions[a], item.completions[b]) for a, b in beats]
    for chosen, rejected in texts:
        yield {"chosen": in_format_of(item.prompt, chosen), "rejected": in_format_of(item.prompt, rejected)}


def _ranked(item: Item, decisions: Sequence[Decision], resolve: Resolve) -> Iterator[dict[str, Any]]:
    beats = _beats(item, decisions, resolve)
    scores = [float(sum(a == place for a, _ in beats)) for place in range(len(item.completions))]
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    if len(set(scores)) > 1:  # all equal, or a circle: nothing to learn
        completions = [in_format_of(item.prompt, item.completions[place]) for place in order]
        yield {"completions": completions, "scores": [scores[place] for place in order]}


def _labelled(item: Item, decisions: Sequence[Decision], resolve: Resolve) -> Iterator[dict[str, Any]]:
    for completion, is_good in zip(item.completions, _is_good(item, decisions, resolve), strict=True):
        if is_good is not None:
            yield {"completion": in_format_of(item.prompt, completion), "label": is_good}


def _steps(item: Item, decisions: Sequence[Decision], resolve: Resolve) -> Iterator[dict[str, Any]]:
    right = _vote([decision.first_wrong for decision in decisions], resolve)
    if right is not None:
        labels = [*[True] * right, False][: len(item.steps)]
        yield {"completions": list(item.steps[: len(labels)]), "labels": labels}


_WRITERS = {
    "demonstrations": _demonstrations,
    "pairs": _pairs,
    "ranked": _ranked,
    "labelled": _labelled,
    "steps": _steps,
}
