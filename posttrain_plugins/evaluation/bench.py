"""A data set's problems, and one model measured on them: sampled, by majority, and by each strategy at each budget."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from posttrain_plugins.backends.protocol import AnyBackend
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.scoring import Scored, score, score_keys
from posttrain_plugins.engine.solve import Progress, sample, solve
from posttrain_plugins.evaluation.curves import Draws, curves, powers
from posttrain_plugins.evaluation.figures import sampled_accuracy
from posttrain_plugins.evaluation.measure import Curve, Measure
from posttrain_plugins.text.answers import extract, majority
from posttrain_plugins.types import Budget, Problem, ResolvedReward, ResolvedStrategy, Result, SamplingParams, Usage

__all__ = ["Bench", "problems_of", "score_texts", "scored_items"]

NOT_REFERENCE = {"prompt", "completion", "completion_ids"}  # what TRL does not pass on to rewards either
ORACLE = " (oracle)"


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
    items = scored_items(problems, columns, texts)
    scores = iter(score(reward, [item for of_problem in items for item in of_problem], log))
    return [[next(scores) for _ in of_problem] for of_problem in texts]


def scored_items(
    problems: Sequence[Problem], columns: Mapping[str, Sequence[Any]], texts: Sequence[Sequence[str]]
) -> list[list[Scored]]:
    """The texts of each problem with the problem's other columns, as a reward is asked about them."""
    rows = [{name: values[i] for name, values in columns.items()} for i in range(len(problems))]
    return [
        [Scored(problem.id, problem.prompt, text, row) for text in of_problem]
        for problem, row, of_problem in zip(problems, rows, texts, strict=True)
    ]


@dataclass(frozen=True)
class Bench:
    """A model before a data set.

    Args:
        problems: P problems.
        columns: further columns, P values each.
        rewards: the first is the metric.
        backends: for `policy`, and for each other model that a strategy names.
        log: of all requests.
        seed: of the draws.
        should_stop: asked after every completion.
        verifiers: rewards that choose among the draws.
    """

    problems: Sequence[Problem]
    columns: Mapping[str, Sequence[Any]]
    rewards: Sequence[ResolvedReward]
    backends: Mapping[str, AnyBackend]
    log: RequestLog
    seed: int = 0
    should_stop: Callable[[], bool] | None = None
    verifiers: Sequence[ResolvedReward] = ()

    def measure_draws(self, n: int, progress: Progress | None = None) -> list[Measure]:
        """`sampled`: the mean over `n` completions, with what 1, 2 ... n of them give; and `majority`: their vote."""
        started = time.monotonic()
        results = sample(self.problems, n, **self._options(progress))
        seconds = time.monotonic() - started
        drawn = [[candidate.text for candidate in result.candidates] for result in results]
        texts = [row + [""] * (n - len(row)) for row in drawn]  # a failed sample is a wrong one
        scores = {reward.name: self._score(reward, texts) for reward in self.rewards}
        answers = [[extract(text) for text in row] for row in texts]
        voted = [majority(row) or 0 for row in answers]
        usage = _total_usage(results)
        once = _tokens(sample(self.problems, 1, **self._options(None))) if n > 1 else _tokens(results)
        sampled = Measure(
            name="sampled",
            scores={name: sampled_accuracy(rows) for name, rows in scores.items()},
            usage=usage,
            seconds=seconds,
            tokens_per_problem=self._mean(once),
            curves=self._curves(n, drawn, scores[self.rewards[0].name], answers, (once, _tokens(results))),
            samples=self._samples("sampled", texts, scores),
        )
        vote = {
            name: sampled_accuracy([[row[i]] for row, i in zip(rows, voted, strict=True)])
            for name, rows in scores.items()
        }
        of_all = self._mean(_tokens(results))
        return [sampled, Measure("majority", vote, usage, seconds, tokens_per_problem=of_all)]

    def measure_strategy(
        self, resolved: ResolvedStrategy, budget: Budget | None = None, progress: Progress | None = None
    ) -> Measure:
        """A strategy's own answer to each problem, within a budget for each."""
        started = time.monotonic()
        results = solve(
            copy.deepcopy(resolved.strategy),  # one that remembers starts anew with each model and budget
            self.problems,
            scorers=resolved.scorers,
            columns=self.columns,
            budget=budget,
            **self._options(progress),
        )
        seconds = time.monotonic() - started
        texts = [[result.text] for result in results]
        scores = {reward.name: self._score(reward, texts) for reward in self.rewards}
        is_oracle = any(scorer.is_oracle for scorer in resolved.scorers.values())
        name = resolved.label + _printed(budget) + ORACLE * is_oracle
        told = [{"tokens": _tokens([result]), "stopped_by": result.stopped_by} for result in results]
        return Measure(
            name=name,
            scores={reward: sampled_accuracy(rows) for reward, rows in scores.items()},
            usage=_total_usage(results),
            seconds=seconds,
            tokens_per_problem=self._mean(_tokens(results)),
            samples=self._samples(name, texts, scores, told),
            errors=[f"problem {p.id}: {r.error}" for p, r in zip(self.problems, results, strict=True) if r.error],
            stopped=sum(result.stopped_by is not None for result in results),
            is_oracle=is_oracle,
        )

    def _curves(
        self,
        n: int,
        drawn: Sequence[Sequence[str]],
        metric: Sequence[Sequence[float | None]],
        answers: Sequence[Sequence[str | None]],
        tokens: tuple[int, int],
    ) -> dict[str, Curve]:
        """Every curve with its cost: what is drawn, by `tokens` of one draw and of all, and what the verifier reads."""
        said = {reward.name: self._score(reward, drawn) for reward in self.verifiers}
        draws = [
            Draws(
                metric[i], answers[i], {name: [*rows[i], *[None] * (n - len(rows[i]))] for name, rows in said.items()}
            )
            for i in range(len(drawn))
        ]
        reads = {reward.name: self._mean(self._read(reward, drawn)) for reward in self.verifiers}
        oracles = {reward.name for reward in self.verifiers if reward.is_oracle}
        first, step = self._mean(tokens[0]), self._mean(tokens[1] - tokens[0]) / max(n - 1, 1)
        found = {}
        for name, values in curves(draws, n, self.seed).items():
            verifier = name.partition("/")[2]
            each = reads.get(verifier, 0.0) / n
            cost = {k: first + step * (k - 1) + each * k for k in powers(n)}
            is_oracle = verifier in oracles
            found[name + ORACLE * is_oracle] = Curve(values, cost, is_oracle or name == "pass")
        return found

    def _read(self, reward: ResolvedReward, drawn: Sequence[Sequence[str]]) -> int:
        """The tokens that scoring all draws took, equal ones counted as often as they were drawn."""
        items = [item for row in scored_items(self.problems, self.columns, drawn) for item in row]
        return sum(self.log.cost_of(key).total_tokens for key in score_keys("score", reward, items))

    def _mean(self, tokens: int) -> float:
        return tokens / max(len(self.problems), 1)

    def _options(self, progress: Progress | None) -> dict[str, Any]:
        return {
            "backend": self.backends,
            "log": self.log,
            "seed": self.seed,
            "progress": progress,
            "should_stop": self.should_stop,
        }

    def _score(self, reward: ResolvedReward, texts: Sequence[Sequence[str]]) -> list[list[float | None]]:
        return score_texts(reward, self.problems, self.columns, texts, self.log)

    def _samples(
        self,
        name: str,
        texts: Sequence[Sequence[str]],
        scores: Mapping[str, Sequence[Sequence[float | None]]],
        told: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        """With the problem's other columns, so that the file can be scored again by other rewards."""
        return [
            {
                **{column: values[i] for column, values in self.columns.items()},
                "measure": name,
                "problem": problem.id,
                "prompt": problem.prompt,
                "completion": text,
                "answer": extract(text),
                "rewards": {reward: rows[i][j] for reward, rows in scores.items()},
                **(told[i] if told else {}),
            }
            for i, problem in enumerate(self.problems)
            for j, text in enumerate(texts[i])
        ]


def _printed(budget: Budget | None) -> str:
    """` @ tokens=500`; nothing without a limit."""
    limits = {name: limit for name, limit in asdict(budget).items() if limit is not None} if budget else {}
    return " @ " + ", ".join(f"{name}={limit}" for name, limit in limits.items()) if limits else ""


def _total_usage(results: Iterable[Result]) -> dict[str, Usage]:
    total: dict[str, Usage] = {}
    for result in results:
        for role, usage in result.usage.items():
            total[role] = total.get(role, Usage()) + usage
    return total


def _tokens(results: Iterable[Result]) -> int:
    spent = sum(_total_usage(results).values(), Usage())
    return spent.total_tokens + spent.cached_tokens
