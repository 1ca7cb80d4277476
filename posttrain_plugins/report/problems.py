"""Before and after on the same problems: which were fixed, which were broken, and what was written. No paper.

Completions are paired by the problem's id, and only where both sides have the same prompt under it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import Any

from posttrain_plugins.evaluation.figures import Interval, difference_interval
from posttrain_plugins.record.lines import read_lines

__all__ = ["KINDS", "Answers", "Pair", "Pairing", "paired", "read_answers"]

KINDS = ("broken", "worse", "same", "better", "fixed")
HALF = 0.5
NOT_COLUMNS = {"model", "measure", "problem", "prompt", "completion", "answer", "rewards", "tokens", "stopped_by"}


@dataclass
class Answers:
    """What one model answered to one problem, by one way of answering.

    Args:
        prompt: as the data set has it.
        columns: further columns, such as the solution.
        texts: the completions.
        scores: of each, by the metric; None where nobody could judge.
    """

    prompt: Any
    columns: Mapping[str, Any]
    texts: list[Any] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The mean of what could be judged, NaN where nothing could."""
        known = [score for score in self.scores if score is not None]
        return sum(known) / len(known) if known else float("nan")

    @property
    def example(self) -> int:
        """The place of the completion that scores most like all of them together."""
        mean = self.score
        return min(range(len(self.scores)), key=lambda i: abs((self.scores[i] or 0.0) - mean)) if mean == mean else 0


@dataclass(frozen=True)
class Pair:
    """One problem before and after.

    Args:
        problem: its id.
        before: answers.
        after: answers.
        kind: one of `KINDS`; broken and fixed are those that crossed one half.
    """

    problem: str
    before: Answers
    after: Answers
    kind: str

    @property
    def change(self) -> float:
        return self.after.score - self.before.score


@dataclass(frozen=True)
class Pairing:
    """Two models on the same problems.

    Args:
        pairs: in the order of the data set.
    """

    pairs: Sequence[Pair]

    @cached_property
    def gain(self) -> Interval:
        """The mean change with its 95 % interval, bootstrapped over problems."""
        return difference_interval(
            [pair.after.score for pair in self.pairs], [pair.before.score for pair in self.pairs]
        )

    @property
    def is_changed(self) -> bool:
        """Did any problem go otherwise?"""
        return any(pair.change for pair in self.pairs)

    def of_kind(self, kind: str) -> list[Pair]:
        """Return the problems of a kind, those that changed most first."""
        return sorted((pair for pair in self.pairs if pair.kind == kind), key=lambda pair: -abs(pair.change))

    def count(self, kind: str) -> int:
        """Return how many problems are of a kind."""
        return sum(pair.kind == kind for pair in self.pairs)


def read_answers(samples: Path, metric: str) -> dict[tuple[str, str], dict[str, Answers]]:
    """Read an evaluation's `samples.jsonl`: (model, way of answering) -> problem id -> answers."""
    found: dict[tuple[str, str], dict[str, Answers]] = {}
    for row in read_lines(samples):
        if not {"model", "measure", "problem", "prompt", "completion", "rewards"} <= row.keys():
            continue
        of_model = found.setdefault((str(row["model"]), str(row["measure"])), {})
        columns = {name: value for name, value in row.items() if name not in NOT_COLUMNS}
        answers = of_model.setdefault(str(row["problem"]), Answers(row["prompt"], columns))
        answers.texts.append(row["completion"])
        answers.scores.append(row["rewards"].get(metric))
    return found


def paired(before: Mapping[str, Answers], after: Mapping[str, Answers]) -> Pairing:
    """Pair the answers of two models by problem; one that a side has not, or that is another there, is left out."""
    both = [id for id in before if id in after and _key(before[id].prompt) == _key(after[id].prompt)]
    known = [id for id in both if not (isnan(before[id].score) or isnan(after[id].score))]
    pairs = [Pair(id, before[id], after[id], _kind(before[id].score, after[id].score)) for id in known]
    # in the order of the data set, so that the same figures give the same interval as the evaluation's own
    return Pairing(pairs)


def same_problems(before: Mapping[str, Answers], after: Mapping[str, Answers]) -> Iterator[str]:
    """Yield what keeps two sets of problems from being the same one; nothing where they are."""
    if before.keys() != after.keys():
        yield f"{len(before)} problems and {len(after)}"
    others = sum(_key(before[id].prompt) != _key(after[id].prompt) for id in before.keys() & after.keys())
    if others:
        yield f"{others} of {len(before.keys() & after.keys())} problems have another prompt"


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True)


def _kind(before: float, after: float) -> str:
    if before == after:
        return "same"
    if min(before, after) >= 0 and max(before, after) <= 1 and (before >= HALF) != (after >= HALF):
        return "fixed" if after > before else "broken"
    return "better" if after > before else "worse"
