"""Which steps of a completion are right: told by a rule, or by where the model gets from there.

Papers: Lightman et al., 2023 (https://huggingface.co/papers/2305.20050), for labels of steps; Math-Shepherd, Wang et
al., 2023 (https://huggingface.co/papers/2312.08935), section 3.2, for rollouts: a step is as good as the completions
that go on from it. TRL's stepwise format holds them: `prompt`, `completions` (the steps), `labels`.

1. The last step has nothing to go on to: its label is the completion's own.
2. A step keeps its separator, so that the steps joined are the completion again.
3. Equal prefixes of one problem are gone on from once.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, TypeAlias

from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.scoring import Scored, score, score_steps
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.text import prefill
from posttrain_plugins.text.steps import SEPARATOR, split_steps
from posttrain_plugins.training_data.selection import Judged
from posttrain_plugins.types import Generate, Problem, Request, ResolvedReward, Result

__all__ = ["Estimate", "StepLabels"]

Estimate: TypeAlias = Literal["hard", "soft", "share"]
Labels: TypeAlias = list[bool] | list[float] | None
"""Of one completion, a label for each step; None where they cannot be told."""


@dataclass(frozen=True)
class StepLabels:
    """Labels steps.

    Args:
        reward: says what is right; `rules` needs its `step_scores`.
        separator: ends a step.
        threshold: right is a step, or a completion, with this score or more.
        num_rollouts: completions from each prefix.
        estimate: a step is right where any rollout is (`hard`), or a share of them (`soft`); `share` is no bool but
            that share itself, which a process reward model can learn too.
        share_threshold: the share.
        stop_at_first_error: leave out what follows the first wrong step.
    """

    reward: ResolvedReward
    separator: str = SEPARATOR
    threshold: float = 0.5
    num_rollouts: int = 8
    estimate: Estimate = "hard"
    share_threshold: float = 0.5
    stop_at_first_error: bool = False

    def by_rules(
        self,
        problems: Sequence[Problem],
        columns: Mapping[str, Sequence[Any]],
        judged: Sequence[Sequence[Judged]],
        log: RequestLog,
    ) -> list[list[Labels]]:
        """By the reward's own score of each step; none where it sees other steps in a completion.

        Returns:
            For each problem and completion, the labels.
        """
        steps = [[tuple(self._steps(item)) for item in of_problem] for of_problem in judged]
        items = [
            Scored(problem.id, problem.prompt, "".join(of_one), _row(columns, i), of_one)
            for i, problem in enumerate(problems)
            for of_one in steps[i]
            if of_one
        ]
        scores = iter(score_steps(self.reward, items, log) if items else ())
        return [[self._ruled(of_one, next(scores) if of_one else []) for of_one in of_problem] for of_problem in steps]

    def by_rollouts(
        self,
        problems: Sequence[Problem],
        columns: Mapping[str, Sequence[Any]],
        judged: Sequence[Sequence[Judged]],
        log: RequestLog,
        **options: Any,
    ) -> list[list[Labels]]:
        """By the share of right completions that go on from each step; `options` are those of `engine.solve`.

        Returns:
            For each problem and completion, the labels.
        """
        prefixes = {p.id: self._prefixes(of_problem) for p, of_problem in zip(problems, judged, strict=True)}
        results = solve(_Rollouts(prefixes, self.num_rollouts), problems, log=log, **options)
        drawn = [dict(zip(prefixes[p.id], r.answer, strict=True)) for p, r in zip(problems, results, strict=True)]
        items = [
            Scored(problem.id, problem.prompt, prefix + text, _row(columns, i))
            for i, problem in enumerate(problems)
            for prefix, texts in drawn[i].items()
            for text in texts
        ]
        verdicts = iter(score(self.reward, items, log) if items else ())
        shares = [
            {prefix: self._share([next(verdicts) for _ in texts]) for prefix, texts in of_problem.items()}
            for of_problem in drawn
        ]
        return [[self._labels(item, shares[i]) for item in of_problem] for i, of_problem in enumerate(judged)]

    def row(self, item: Judged, labels: Sequence[bool | float]) -> dict[str, Any]:
        """The new columns of one completion."""
        wrong = [i for i, label in enumerate(labels) if label < self.share_threshold]
        count = wrong[0] + 1 if self.stop_at_first_error and wrong else len(labels)
        return {"completions": self._steps(item)[:count], "labels": list(labels)[:count]}

    def _ruled(self, steps: Sequence[str], scores: Sequence[float]) -> Labels:
        is_told = bool(steps) and len(scores) == len(steps)
        return [value >= self.threshold for value in scores] if is_told else None

    def _steps(self, item: Judged) -> list[str]:
        return split_steps(item.text, self.separator)

    def _prefixes(self, judged: Sequence[Judged]) -> list[str]:
        """Every distinct beginning that ends with a step and is not the whole."""
        begun = (prefix for item in judged for prefix in list(accumulate(self._steps(item)))[:-1])
        return list(dict.fromkeys(begun))

    def _share(self, verdicts: Sequence[float | None]) -> float | None:
        """None where every rollout failed; one that cannot be judged is not right."""
        right = sum(verdict is not None and verdict >= self.threshold for verdict in verdicts)
        return right / len(verdicts) if verdicts else None

    def _labels(self, item: Judged, shares: Mapping[str, float | None]) -> Labels:
        if item.verdict is None or not item.text:
            return None
        told = [shares[prefix] for prefix in list(accumulate(self._steps(item)))[:-1]]
        known = [share for share in told if share is not None]
        if len(known) < len(told):
            return None
        known.append(float(item.verdict >= self.threshold))
        if self.estimate == "share":
            return known
        return [share > 0 if self.estimate == "hard" else share >= self.share_threshold for share in known]


@dataclass(frozen=True)
class _Rollouts:
    """A strategy that goes on from given beginnings; the result's `answer` has a list of texts for each."""

    prefixes: Mapping[str, Sequence[str]]
    n: int

    def __call__(self, problem: Problem) -> Generator[Request | list[Request], Any, Result]:
        requests: list[Request] = [
            Generate(prefill(problem.prompt, prefix), n=self.n, params=problem.params, purpose="rollout")
            for prefix in self.prefixes[problem.id]
        ]
        answers = (yield requests) if requests else []
        texts = [[c.text for c in completions if c.finish_reason != "error"] for completions in answers]
        return Result(answer=texts, text="")


def _row(columns: Mapping[str, Sequence[Any]], i: int) -> dict[str, Any]:
    return {name: values[i] for name, values in columns.items()}
