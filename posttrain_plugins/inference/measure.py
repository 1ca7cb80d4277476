"""A data set's problems, and one model measured on them: sampled, by majority, and by each strategy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from typing import Any

from posttrain_plugins.answers import extract, majority
from posttrain_plugins.inference.backends import Backend
from posttrain_plugins.inference.engine import Progress, sample, solve
from posttrain_plugins.inference.figures import Interval, mean_interval, pass_at_k, sampled_accuracy
from posttrain_plugins.inference.log import RequestLog
from posttrain_plugins.inference.scoring import Scored, score
from posttrain_plugins.types import (
    Problem,
    ResolvedReward,
    ResolvedStrategy,
    Result,
    SamplingParams,
    Usage,
)

__all__ = ["Bench", "Measure", "problems_of", "score_texts"]

NOT_REFERENCE = {"prompt", "completion", "completion_ids"}  # what TRL does not pass on to rewards either
RIGHT = 0.5  # a completion with this score or more passes, for pass@k


def problems_of(
    rows: Sequence[Mapping[str, Any]], params: SamplingParams
) -> tuple[list[Problem], dict[str, list[Any]]]:
    """The rows of a data set as problems, and the other columns, which only rewards are given."""
    problems = [Problem(row["prompt"], params, id=str(i)) for i, row in enumerate(rows)]
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_REFERENCE)
    return problems, {name: [row.get(name) for row in rows] for name in names}


def score_texts(
    reward: ResolvedReward,
    problems: Sequence[Problem],
    columns: Mapping[str, Sequence[Any]],
    texts: Sequence[Sequence[str]],
    log: RequestLog,
) -> list[list[float | None]]:
    """Every text of every problem, scored in one call: P lists, as long as those of `texts`."""
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(problems))]
    items = [
        Scored(problem.id, problem.prompt, text, row)
        for problem, row, of_problem in zip(problems, rows, texts, strict=True)
        for text in of_problem
    ]
    scores = iter(score(reward, items, log))
    return [[next(scores) for _ in of_problem] for of_problem in texts]


@dataclass
class Measure:
    """One way of answering, measured.

    Args:
        name: `sampled`, `majority`, or a strategy's label; ` (oracle)` behind it where a scorer knows the answer.
        scores: reward -> its mean for each of P problems, NaN where it cannot judge.
        usage: what it takes, by role; what came from the log counts as `cached_tokens`.
        seconds: wall time of drawing; what came from the log takes none.
        pass_at: k -> the unbiased estimate over problems.
        samples: one JSON object per completion.
        errors: problems where the strategy raised.
    """

    name: str
    scores: dict[str, list[float]]
    usage: dict[str, Usage] = field(default_factory=dict)
    seconds: float = 0.0
    pass_at: dict[int, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        """The metric, which is the first reward, for each problem."""
        return next(iter(self.scores.values()))

    def summary(self) -> dict[str, Any]:
        """JSON values: intervals, costs, errors."""
        spent = sum(self.usage.values(), Usage())
        intervals = {name: mean_interval(values) for name, values in self.scores.items()}
        return {
            "rewards": {name: asdict(found) for name, found in intervals.items() if not isnan(found.mean)},
            "tokens": spent.total_tokens + spent.cached_tokens,
            "calls": spent.calls,
            "seconds": round(self.seconds, 3),
            "usage": {role: asdict(usage) for role, usage in self.usage.items()},
            "pass_at": {str(k): value for k, value in self.pass_at.items()},
            "errors": self.errors,
        }

    @property
    def interval(self) -> Interval:
        return mean_interval(self.values)


@dataclass(frozen=True)
class Bench:
    """A model before a data set. The first reward is the metric."""

    problems: Sequence[Problem]
    columns: Mapping[str, Sequence[Any]]
    rewards: Sequence[ResolvedReward]
    backend: Backend
    log: RequestLog
    seed: int = 0
    should_stop: Callable[[], bool] | None = None

    def measure_draws(self, n: int, progress: Progress | None = None) -> list[Measure]:
        """`sampled`: the mean over `n` completions, with pass@k; and `majority`: the vote of the same completions."""
        started = time.monotonic()
        results = sample(self.problems, n, **self._options(progress))
        seconds = time.monotonic() - started
        drawn = [[candidate.text for candidate in result.candidates] for result in results]
        texts = [row + [""] * (n - len(row)) for row in drawn]  # a failed sample is a wrong one
        scores = {reward.name: self._score(reward, texts) for reward in self.rewards}
        metric = scores[self.rewards[0].name]
        voted = [majority([extract(text) for text in row]) or 0 for row in texts]
        usage = _total_usage(results)
        return [
            Measure(
                name="sampled",
                scores={name: sampled_accuracy(rows) for name, rows in scores.items()},
                usage=usage,
                seconds=seconds,
                pass_at=_pass_at(metric, n),
                samples=self._samples("sampled", texts, scores),
            ),
            Measure(
                name="majority",
                scores={
                    name: sampled_accuracy([[row[i]] for row, i in zip(rows, voted, strict=True)])
                    for name, rows in scores.items()
                },
                usage=usage,
                seconds=seconds,
            ),
        ]

    def measure_strategy(self, resolved: ResolvedStrategy, progress: Progress | None = None) -> Measure:
        """A strategy's own answer to each problem."""
        started = time.monotonic()
        results = solve(
            resolved.strategy,
            self.problems,
            scorers=resolved.scorers,
            columns=self.columns,
            **self._options(progress),
        )
        seconds = time.monotonic() - started
        texts = [[result.text] for result in results]
        scores = {reward.name: self._score(reward, texts) for reward in self.rewards}
        is_oracle = any(scorer.is_oracle for scorer in resolved.scorers.values())
        name = resolved.label + (" (oracle)" if is_oracle else "")
        return Measure(
            name=name,
            scores={reward: sampled_accuracy(rows) for reward, rows in scores.items()},
            usage=_total_usage(results),
            seconds=seconds,
            samples=self._samples(name, texts, scores),
            errors=[f"problem {p.id}: {r.error}" for p, r in zip(self.problems, results, strict=True) if r.error],
        )

    def _options(self, progress: Progress | None) -> dict[str, Any]:
        return {
            "backend": self.backend,
            "log": self.log,
            "seed": self.seed,
            "progress": progress,
            "should_stop": self.should_stop,
        }

    def _score(self, reward: ResolvedReward, texts: Sequence[Sequence[str]]) -> list[list[float | None]]:
        return score_texts(reward, self.problems, self.columns, texts, self.log)

    def _samples(
        self, name: str, texts: Sequence[Sequence[str]], scores: Mapping[str, Sequence[Sequence[float | None]]]
    ) -> list[dict[str, Any]]:
        return [
            {
                "measure": name,
                "problem": problem.id,
                "prompt": problem.prompt,
                "completion": text,
                "answer": extract(text),
                "rewards": {reward: rows[i][j] for reward, rows in scores.items()},
            }
            for i, problem in enumerate(self.problems)
            for j, text in enumerate(texts[i])
        ]


def _total_usage(results: Sequence[Result]) -> dict[str, Usage]:
    total: dict[str, Usage] = {}
    for result in results:
        for role, usage in result.usage.items():
            total[role] = total.get(role, Usage()) + usage
    return total


def _pass_at(scores: Sequence[Sequence[float | None]], n: int) -> dict[int, float]:
    """For k = 1, 2, 4 ... n; a completion that cannot be judged does not pass."""
    correct = [sum(value is not None and value >= RIGHT for value in row) for row in scores]
    ks = [k for k in (2**i for i in range(n.bit_length())) if k <= n]
    return {k: sum(pass_at_k(n, c, k) for c in correct) / len(correct) for k in ks if correct}
