"""What a ledger comes to: who decided how much, how far they agree, and what their decisions are worth. No paper.

Names of people are told to whoever holds the ledger; what goes further (manifests, cards) is the stage's to say.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from posttrain_plugins.decisions.agreement import agreement
from posttrain_plugins.decisions.bias import position_preference, preferences
from posttrain_plugins.decisions.counted import counted
from posttrain_plugins.decisions.gold import gold_accuracy
from posttrain_plugins.decisions.item import Decision
from posttrain_plugins.decisions.questions import Questions

__all__ = ["summary", "summary_lines"]


def summary(questions: Questions, decisions: Sequence[Decision]) -> dict[str, Any]:
    """Return figures by name.

    Args:
        questions: what was asked.
        decisions: those of the ledger that stand; those on other items are left out.
    """
    items = {item.id: item for item in questions.items}
    ours = [decision for decision in decisions if decision.item in items]
    used = counted(list(items), ours, questions.annotators_per_item, questions.needed)
    agreed = agreement(ours, needs_alpha=importlib.util.find_spec("nltk") is not None)
    overall = position_preference(ours)
    gold = gold_accuracy(items, questions.gold, ours)
    biased = preferences(ours)
    people = {}
    for name in dict.fromkeys(decision.annotator for decision in ours):
        own = [decision for decision in ours if decision.annotator == name]
        seconds = [decision.seconds for decision in own if decision.seconds is not None]
        people[name] = {
            "decisions": len(own),
            "seconds_median": median(seconds) if seconds else None,
            "flags": sum(decision.flag for decision in own),
            "none_good": sum(decision.none_good for decision in own),
            "first_shown_preferred": _interval(biased.get(name)),
            "gold_right": list(gold[name]) if name in gold else None,
        }
    return {
        "mode": questions.mode,
        "items": len(items),
        "decided": used.done,
        "needed": used.needed,
        "decisions": len(ours),
        "guidelines": len({decision.guideline_sha for decision in ours}),
        "alpha": agreed.alpha,
        "is_one_value": agreed.is_one_value,
        "agreement": agreed.raw,
        "agreement_with_themselves": agreed.with_themselves,
        "shared_items": agreed.items,
        "first_shown_preferred": _interval(overall),
        "annotators": people,
    }


def summary_lines(figures: dict[str, Any]) -> Iterator[str]:
    """Yield the figures as lines for a person."""
    decided = f"{figures['decided']} of {figures['needed']} items decided"
    yield f"{decided}, {figures['decisions']} decisions in mode {figures['mode']}"
    for name, own in figures["annotators"].items():
        parts = [f"{own['decisions']} decisions"]
        if own["seconds_median"] is not None:
            parts.append(f"median {own['seconds_median']:.1f} s")
        parts += [
            f"{own[what]} {word}" for what, word in (("flags", "flagged"), ("none_good", "none good")) if own[what]
        ]
        if own["gold_right"]:
            parts.append(f"{own['gold_right'][0]} of {own['gold_right'][1]} gold questions right")
        yield f"  {name}: {', '.join(parts)}"
        yield from (f"    {line}" for line in _bias(own["first_shown_preferred"]))
    if figures["shared_items"]:
        alpha = "not known (pip install nltk)" if figures["alpha"] is None else f"{figures['alpha']:.3f}"
        alpha = "1.0, one value only" if figures["is_one_value"] else alpha
        raw = figures["agreement"]
        share = "not known" if raw is None else f"{100 * raw:.0f} %"
        yield f"agreement on {figures['shared_items']} shared items: {share} say the same, Krippendorff's alpha {alpha}"
    else:
        yield "agreement: not known, no item was decided by two annotators"
    if figures["agreement_with_themselves"] is not None:
        yield f"asked again, annotators say the same in {100 * figures['agreement_with_themselves']:.0f} %"
    if figures["guidelines"] > 1:
        yield f"the decisions were made under {figures['guidelines']} different guidelines"


def _interval(found: Any) -> list[float] | None:
    return None if found is None else [found.mean, found.low, found.high]


def _bias(found: list[float] | None) -> Iterator[str]:
    if found is not None:
        mean, low, high = found
        is_biased = not low <= 0.5 <= high
        side = f", prefers what is shown {'first' if mean > 0.5 else 'last'}" if is_biased else ""
        yield f"first shown preferred {mean:.2f} [{low:.2f}, {high:.2f}]{side}"
