"""Which steps of a completion are right, by a rule's own scores or by where the model gets from there.

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
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from posttrain_plugins.text import prefill
from posttrain_plugins.text.steps import SEPARATOR, split_steps
from posttrain_plugins.training_data.selection import Judged, writer
from posttrain_plugins.types import Generate, Problem, Request, ResolvedReward, Result

if TYPE_CHECKING:
    from posttrain_plugins.engine.log import RequestLog

__all__ = ["Estimate", "StepLabels"]

Estimate: TypeAlias = Literal["hard", "soft", "share"]
Labels: TypeAlias = list[bool] | list[float] | None
"""The labels of one completion, one for each step; None where nobody can judge them."""


@dataclass(frozen=True)
class StepLabels:
    """Labels the steps of completions, by a rule or by rollouts.

    Args:
        reward: says what is right; `by_rules` needs its `step_scores`.
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
        """Label by the reward's own score of each step; None where it sees other steps in a completion.

        Returns:
            For each problem and completion, the labels.
        """
        from posttrain_plugins.engine.scoring import Scored, score_steps

        steps = [[tuple(split_steps(item.text, self.separator)) for item in of_problem] for of_problem in judged]
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(problems))]
        items = [
            Scored(problem.id, problem.prompt, "".join(of_one), row, of_one)
            for problem, row, of_problem in zip(problems, rows, steps, strict=True)
            for of_one in of_problem
            if of_one
        ]
        # a completion without text has no step to ask about, and takes no score from the iterator below
        scores = iter(score_steps(self.reward, items, log) if items else ())

        def label(of_one: tuple[str, ...]) -> Labels:
            values = next(scores) if of_one else []
            # A reward that counts other steps than we do says nothing of ours: to cut or to fill up would put a verdict
            # on the wrong step.
            is_judged = bool(of_one) and len(values) == len(of_one)
            return [value >= self.threshold for value in values] if is_judged else None

        return [[label(of_one) for of_one in of_problem] for of_problem in steps]

    def by_rollouts(
        self,
        problems: Sequence[Problem],
        columns: Mapping[str, Sequence[Any]],
        judged: Sequence[Sequence[Judged]],
        log: RequestLog,
        **options: Any,
    ) -> list[list[Labels]]:
        """Label by the share of right completions that go on from each step; `options` are those of `engine.solve`.

        Returns:
            For each problem and completion, the labels.
        """
        # completions of one problem often begin alike, and rollouts are what costs: each beginning is asked once
        from posttrain_plugins.engine.scoring import Scored, score
        from posttrain_plugins.engine.solve import solve

        prefixes = {
            problem.id: list(dict.fromkeys(prefix for item in of_problem for prefix in self._prefixes(item)))
            for problem, of_problem in zip(problems, judged, strict=True)
        }
        results = solve(_Rollouts(prefixes, self.num_rollouts), problems, log=log, **options)
        drawn = [dict(zip(prefixes[p.id], r.answer, strict=True)) for p, r in zip(problems, results, strict=True)]
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(problems))]
        items = [
            # a rollout is judged as the whole completion that it would have been: a rule may look at any part of it
            Scored(problem.id, problem.prompt, prefix + text, row)
            for problem, row, of_problem in zip(problems, rows, drawn, strict=True)
            for prefix, texts in of_problem.items()
            for text in texts
        ]
        verdicts = iter(score(self.reward, items, log) if items else ())
        shares: list[dict[str, float | None]] = []
        for of_problem in drawn:
            of_prefix: dict[str, float | None] = {}
            for prefix, texts in of_problem.items():
                judged_texts = [v for v in [next(verdicts) for _ in texts] if v is not None]
                # over those that can be judged; None where every rollout failed or none can be
                right = sum(verdict >= self.threshold for verdict in judged_texts)
                of_prefix[prefix] = right / len(judged_texts) if judged_texts else None
            shares.append(of_prefix)
        return [[self._labels(item, shares[i]) for item in of_problem] for i, of_problem in enumerate(judged)]

    def row(self, item: Judged, labels: Sequence[bool | float]) -> dict[str, Any]:
        """Return the new columns of one completion."""
        # What follows the first error is left out because nobody can say whether a right step after a wrong one is
        # right (Lightman et al. stop there too); the wrong step itself is kept, since it is what the model learns from.
        wrong = [i for i, label in enumerate(labels) if label < self.share_threshold]
        count = wrong[0] + 1 if self.stop_at_first_error and wrong else len(labels)
        steps = split_steps(item.text, self.separator)[:count]
        return {"completions": steps, "labels": list(labels)[:count], **writer(item)}

    def _prefixes(self, item: Judged) -> list[str]:
        """Return every beginning that ends with a step and is not the whole."""
        return list(accumulate(split_steps(item.text, self.separator)))[:-1]

    def _labels(self, item: Judged, shares: Mapping[str, float | None]) -> Labels:
        if item.verdict is None or not item.text:
            return None
        found = [shares[prefix] for prefix in self._prefixes(item)]
        known = [share for share in found if share is not None]
        if len(known) < len(found):
            return None  # a hole in the middle cannot be written in TRL's format, and 0.0 would be a verdict
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
        # one round for all beginnings of a problem: the engine fills its batches with them
        requests: list[Request] = [
            Generate(prefill(problem.prompt, prefix), n=self.n, params=problem.params, purpose="rollout")
            for prefix in self.prefixes[problem.id]
        ]
        answers = (yield requests) if requests else []
        # a rollout that a server dropped says nothing of the step
        texts = [[c.text for c in completions if c.finish_reason != "error"] for completions in answers]
        return Result(answer=texts, text="")
