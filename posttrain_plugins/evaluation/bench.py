"""A data set's problems, and one model measured on them: sampled, by majority, and by each strategy at each budget."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from posttrain_plugins.backends.protocol import AnyBackend
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.saved_traces import TRACED_PROBLEMS
from posttrain_plugins.engine.scoring import Scored, score, score_keys
from posttrain_plugins.engine.solve import Progress, sample, solve
from posttrain_plugins.engine.tool_loop import ToolLoop
from posttrain_plugins.engine.trace import failures_of, unanswered
from posttrain_plugins.evaluation.curves import Draws, curves, powers
from posttrain_plugins.evaluation.figures import sampled_accuracy
from posttrain_plugins.evaluation.measure import Curve, Measure
from posttrain_plugins.evaluation.missing import Missing
from posttrain_plugins.text import Conversation
from posttrain_plugins.text.answers import extract, is_vote_empty, majority
from posttrain_plugins.types import Budget, Problem, ResolvedReward, ResolvedStrategy, Result, SamplingParams, Usage

__all__ = ["Bench", "problems_of", "score_texts", "scored_items", "unrated_texts"]

NOT_REFERENCE = {"prompt", "completion", "completion_ids"}  # what TRL does not pass on to rewards either
ORACLE = " (oracle)"


def problems_of(
    rows: Sequence[Mapping[str, Any]], params: SamplingParams
) -> tuple[list[Problem], dict[str, list[Any]]]:
    """Return the rows of a data set as problems, and the other columns, which only rewards are given."""
    # the id is the row's number: it is part of every request's key, so equal prompts draw completions of their own
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
    """Score every text of every problem in one call: P lists, as long as those of `texts`."""
    # one call, so that a reward with a model fills its batches and a judge's requests run side by side
    items = scored_items(problems, columns, texts)
    scores = iter(score(reward, [item for of_problem in items for item in of_problem], log))
    return [[next(scores) for _ in of_problem] for of_problem in texts]


def unrated_texts(
    reward: ResolvedReward,
    problems: Sequence[Problem],
    columns: Mapping[str, Sequence[Any]],
    texts: Sequence[Sequence[str]],
    log: RequestLog,
) -> list[list[str]]:
    """Return for each problem why texts have no score, of those that the reward could not ask about."""
    if not log.missing:
        return [[] for _ in texts]
    items = scored_items(problems, columns, texts)
    return [[log.missing[k] for k in score_keys("score", reward, row) if k in log.missing] for row in items]


def scored_items(
    problems: Sequence[Problem], columns: Mapping[str, Sequence[Any]], texts: Sequence[Sequence[str]]
) -> list[list[Scored]]:
    """Return the texts of each problem with the problem's other columns, as a reward is asked about them."""
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
        tool_loop: what the model may call in each of its completions.
    """

    problems: Sequence[Problem]
    columns: Mapping[str, Sequence[Any]]
    rewards: Sequence[ResolvedReward]
    backends: Mapping[str, AnyBackend]
    log: RequestLog
    seed: int = 0
    should_stop: Callable[[], bool] | None = None
    verifiers: Sequence[ResolvedReward] = ()
    tool_loop: ToolLoop | None = None

    def measure_draws(self, n: int, progress: Progress | None = None) -> list[Measure]:
        """Draw `n` completions of each problem, and measure their mean and their vote.

        Returns:
            `sampled`, with the curves of what 1, 2 ... n completions give, and `majority`.
        """
        draw = partial(
            sample,
            self.problems,
            backend=self.backends,
            log=self.log,
            seed=self.seed,
            should_stop=self.should_stop,
            tool_loop=self.tool_loop,
        )
        started = time.monotonic()
        results = draw(n, progress=progress)
        seconds = time.monotonic() - started
        drawn = [[candidate.text for candidate in result.candidates] for result in results]
        missing = Missing(n * len(results), tuple(why for result in results for why in failures_of(result)))
        scores = {
            reward.name: score_texts(reward, self.problems, self.columns, drawn, self.log) for reward in self.rewards
        }
        answers = [
            [extract(text, prompt=problem.prompt) for text in row]
            for problem, row in zip(self.problems, drawn, strict=True)
        ]
        voted = [majority(row) or 0 for row in answers]
        vote = {
            name: [row[i : i + 1] for row, i in zip(rows, voted, strict=True)]  # none where nothing came
            for name, rows in scores.items()
        }
        sampled = self._measure("sampled", results, drawn, scores, seconds, missing)
        mute = tuple(why for result in results if (why := unanswered(result)) is not None)
        chosen = [row[i : i + 1] for row, i in zip(drawn, voted, strict=True)]
        majority_of_n = self._measure("majority", results, chosen, vote, seconds, Missing(len(results), mute))
        majority_of_n.samples, majority_of_n.unread = [], 0  # they stand among those of `sampled`
        # What one completion costs is asked of the log, not divided by n: the prompt is read once for all n, and a
        # reader compares with a strategy that draws once.
        once = draw(1) if n > 1 else results
        first = sum(usage.total_tokens + usage.cached_tokens for result in once for usage in result.usage.values())
        sampled.tokens_per_problem = first / max(len(self.problems), 1)
        metric = scores[self.rewards[0].name]
        found = self._curves(n, drawn, metric, answers, (first, sampled.tokens))
        sampled.proxies = {
            name.partition("/")[2].removesuffix(ORACLE): c.values
            for name, c in found.items()
            if name.startswith("proxy/")
        }
        sampled.curves = {name: curve for name, curve in found.items() if not name.startswith("proxy/")}
        majority_of_n.voteless = sum(majority(row) is None for row in answers if row)
        return [sampled, majority_of_n]

    def measure_strategy(
        self, resolved: ResolvedStrategy, budget: Budget | None = None, progress: Progress | None = None
    ) -> Measure:
        """Measure a strategy's own answer to each problem, within a budget for each."""
        started = time.monotonic()
        results = solve(
            copy.deepcopy(resolved.strategy),  # one that remembers starts anew with each model and budget
            self.problems,
            scorers=resolved.scorers,
            columns=self.columns,
            budget=budget,
            backend=self.backends,
            log=self.log,
            seed=self.seed,
            progress=progress,
            should_stop=self.should_stop,
            tool_loop=self.tool_loop,
        )
        seconds = time.monotonic() - started
        reasons = [unanswered(result) for result in results]
        texts = [[result.text] if why is None else [] for result, why in zip(results, reasons, strict=True)]
        missing = Missing(len(results), tuple(why for why in reasons if why is not None))
        scores = {
            reward.name: score_texts(reward, self.problems, self.columns, texts, self.log) for reward in self.rewards
        }
        is_oracle = any(scorer.is_oracle for scorer in resolved.scorers.values())
        limits = {name: limit for name, limit in asdict(budget).items() if limit is not None} if budget else {}
        # the budget is part of the name, by which figures of two models are paired and plots tell points apart
        within = " @ " + ", ".join(f"{name}={limit}" for name, limit in limits.items()) if limits else ""
        measure = self._measure(resolved.label + within + ORACLE * is_oracle, results, texts, scores, seconds, missing)
        answered = [result for result, why in zip(results, reasons, strict=True) if why is None]
        for line, result in zip(measure.samples, answered, strict=True):
            tokens = sum(usage.total_tokens + usage.cached_tokens for usage in result.usage.values())
            line |= {"tokens": tokens, "stopped_by": result.stopped_by}
        measure.errors = [f"problem {p.id}: {r.error}" for p, r in zip(self.problems, results, strict=True) if r.error]
        measure.traced = list(results[:TRACED_PROBLEMS])
        measure.voteless = sum(is_vote_empty(result) for result in results)
        measure.stopped = sum(result.stopped_by is not None for result in results)
        measure.is_oracle = is_oracle
        return measure

    def _measure(
        self,
        name: str,
        results: Sequence[Result],
        texts: Sequence[Sequence[str]],
        scores: Mapping[str, Sequence[Sequence[float | None]]],
        seconds: float,
        missing: Missing,
    ) -> Measure:
        """Return the figures of one way of answering, what it took, and a line for each completion that came."""
        usage: dict[str, Usage] = {}
        for role, spent in (item for result in results for item in result.usage.items()):
            usage[role] = usage.get(role, Usage()) + spent
        lines = [
            {
                # with the problem's other columns, so that the file can be scored again by other rewards
                **{column: values[i] for column, values in self.columns.items()},
                "measure": name,
                "problem": problem.id,
                "prompt": problem.prompt,
                "completion": text.messages if isinstance(text, Conversation) else text,
                "answer": extract(text, prompt=problem.prompt),
                "rewards": {reward: rows[i][j] for reward, rows in scores.items()},
            }
            for i, problem in enumerate(self.problems)
            for j, text in enumerate(texts[i])
        ]
        # what a judge could not be asked for is missing like a completion that never came
        unrated = {r.name: unrated_texts(r, self.problems, self.columns, texts, self.log) for r in self.rewards}
        first = unrated[self.rewards[0].name]
        missing = replace(missing, reasons=(*missing.reasons, *(why for of_problem in first for why in of_problem)))
        means = {reward: sampled_accuracy(rows) for reward, rows in scores.items()}
        measure = Measure(name, means, missing, usage=usage, seconds=seconds, samples=lines)
        measure.unread = sum(line["answer"] is None for line in lines)
        each = missing.asked // max(len(results), 1)
        for reward in self.rewards:
            gaps = [each - len(row) + len(why) for row, why in zip(texts, unrated[reward.name], strict=True)]
            if any(gaps):
                measure.extremes[reward.name] = _extremes(reward, scores[reward.name], gaps)
        measure.tokens_per_problem = measure.tokens / max(len(self.problems), 1)
        return measure

    def _curves(
        self,
        n: int,
        drawn: Sequence[Sequence[str]],
        metric: Sequence[Sequence[float | None]],
        answers: Sequence[Sequence[str | None]],
        tokens: tuple[int, int],
    ) -> dict[str, Curve]:
        """Return every curve with its cost: `tokens` of one draw and of all n, and what the verifier reads."""
        count = max(len(self.problems), 1)
        items = [item for row in scored_items(self.problems, self.columns, drawn) for item in row]
        verdicts, reads = {}, {}
        for reward in self.verifiers:
            rows = score_texts(reward, self.problems, self.columns, drawn, self.log)
            # a failed sample has no text to judge; it stays a draw that the verifier never chooses
            verdicts[reward.name] = [[*row, *[None] * (n - len(row))] for row in rows]
            # equal completions are counted as often as they were drawn: a verifier that is used alone reads each
            read = sum(self.log.cost_of(key).total_tokens for key in score_keys("score", reward, items))
            reads[reward.name] = read / count
        draws = []
        for i, row in enumerate(drawn):
            gap = [None] * (n - len(row))
            of_verifiers = {name: rows[i] for name, rows in verdicts.items()}
            draws.append(Draws([*metric[i], *gap], [*answers[i], *gap], of_verifiers, len(gap)))
        oracles = {reward.name for reward in self.verifiers if reward.is_oracle}
        # between one draw and all of them the cost is a line: each further completion shares the prompt that is read
        first, step = tokens[0] / count, (tokens[1] - tokens[0]) / count / max(n - 1, 1)
        found = {}
        for name, values in curves(draws, n, self.seed).items():
            verifier = name.partition("/")[2]
            each = reads.get(verifier, 0.0) / n
            cost = {k: first + step * (k - 1) + each * k for k in powers(n)}
            is_oracle = verifier in oracles
            # pass@k needs to know which completion is right, as an oracle does: neither can be had at test time
            found[name + ORACLE * is_oracle] = Curve(values, cost, is_oracle or name == "pass")
        return found


def _extremes(
    reward: ResolvedReward, scores: Sequence[Sequence[float | None]], gaps: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Return each problem's mean score if what is missing scored the least, and the most, that there is."""
    known = [[score for score in row if score is not None] for row in scores]
    # where a reward does not say how far it goes, as far as it went here
    every = [score for row in known for score in row] or [math.nan]
    low, high = getattr(reward.func, "bounds", None) or (min(every), max(every))
    found: tuple[list[float], list[float]] = ([], [])
    for judged, gap in zip(known, gaps, strict=True):
        count = len(judged) + gap
        for means, bound in zip(found, (low, high), strict=True):
            means.append((sum(judged) + (bound * gap if gap else 0.0)) / count if count else math.nan)
    return found
