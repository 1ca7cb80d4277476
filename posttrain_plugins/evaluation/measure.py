"""One way of answering, measured: how good, with intervals, and at what cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isnan
from typing import Any

from posttrain_plugins.evaluation.figures import Interval, difference_interval, mean_interval, pareto
from posttrain_plugins.evaluation.missing import Missing
from posttrain_plugins.evaluation.proxy import Fall, find_fall, proxy_against_gold
from posttrain_plugins.types import ModelArtifact, Result, Usage

__all__ = ["Curve", "Measure", "flat_figures", "gains", "mark_pareto"]


@dataclass(frozen=True)
class Curve:
    """A figure against the number of completions.

    Args:
        values: k -> the figure of each problem.
        tokens: k -> tokens per problem.
        is_oracle: whether a verifier that knows the answer chose.
    """

    values: Mapping[int, Sequence[float]]
    tokens: Mapping[int, float]
    is_oracle: bool = False

    def summary(self) -> dict[str, Any]:
        """Return k -> the mean with its interval and its cost, as JSON values."""
        points = {k: (mean_interval(values), self.tokens[k]) for k, values in self.values.items()}
        return {str(k): {**asdict(found), "tokens": t} for k, (found, t) in points.items() if not isnan(found.mean)}


@dataclass
class Measure:
    """One way of answering, measured.

    Args:
        name: `sampled`, `majority`, or a strategy's label with its budget; ` (oracle)` behind it where a scorer knows
            the answer.
        scores: reward -> its mean for each of P problems over what was answered, NaN where it cannot judge.
        missing: what was asked for and never came.
        extremes: reward -> the means of each problem if all that is missing were as bad, and as good, as can be; none
            where nothing is missing.
        usage: what it takes, by role; what came from the log counts as `cached_tokens`.
        seconds: wall time of drawing; what came from the log takes none.
        tokens_per_problem: what one answer takes, read and written, by all roles, whether fresh or from the log.
        curves: `pass`, `maj`, `weighted/NAME`, `best/NAME` -> the figure against the number of completions.
        proxies: verifier -> k -> what it thinks of its best of k, for each problem.
        samples: one JSON object per completion.
        traced: of a strategy, the first problems with their traces.
        errors: problems where the strategy raised.
        unread: completions that came and have no answer that can be read; rewards that read answers give them 0.0.
        voteless: problems with several completions none of which has an answer to vote for.
        stopped: problems that ended because their budget was spent.
        is_oracle: whether a scorer knows the answer.
        is_pareto: no other way of this model is as accurate for as few tokens; see `mark_pareto`.
    """

    name: str
    scores: dict[str, list[float]]
    missing: Missing = field(default_factory=lambda: Missing(0))
    extremes: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)
    seconds: float = 0.0
    tokens_per_problem: float = 0.0
    curves: dict[str, Curve] = field(default_factory=dict)
    proxies: dict[str, Mapping[int, Sequence[float]]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    traced: list[Result] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    unread: int = 0
    voteless: int = 0
    stopped: int = 0
    is_oracle: bool = False
    is_pareto: bool = False

    @property
    def values(self) -> list[float]:
        """The metric, which is the first reward, for each problem."""
        return next(iter(self.scores.values()))

    @property
    def tokens(self) -> int:
        """What all problems took, read and written by all roles, whether fresh or from the log."""
        spent = sum(self.usage.values(), Usage())
        # a run that goes on after a kill has most of its answers from the log, and must report the same cost
        return spent.total_tokens + spent.cached_tokens

    def summary(self) -> dict[str, Any]:
        """Return the intervals, costs and errors as JSON values."""
        intervals = {name: self.interval_of(name) for name in self.scores}
        # a mean that nobody can tell is left out: NaN is no JSON, and a reader would have to know what it stands for
        at_k = {name: curve.summary() for name, curve in self.curves.items()}
        return {
            "rewards": {name: asdict(found) for name, found in intervals.items() if not isnan(found.mean)},
            "tokens": self.tokens,
            "tokens_per_problem": self.tokens_per_problem,
            "calls": sum(usage.calls for usage in self.usage.values()),
            "seconds": round(self.seconds, 3),
            "usage": {role: asdict(usage) for role, usage in self.usage.items()},
            "pass_at": {k: found["mean"] for k, found in at_k.get("pass", {}).items()},
            "at_k": at_k,
            "proxy": {name: proxy_against_gold(told, self._best(name)) for name, told in self.proxies.items()},
            "over_optimised": {name: fall.to_json() for name, fall in self.falls().items()},
            "completions": len(self.samples),
            "unread": self.unread,
            "voteless": self.voteless,
            "stopped": self.stopped,
            "asked": self.missing.asked,
            "missing": self.missing.count,
            "missing_because": dict(Counter(self.missing.reasons).most_common(5)),
            "oracle": self.is_oracle,
            "pareto": self.is_pareto,
            "errors": self.errors,
        }

    def falls(self) -> dict[str, Fall]:
        """Return the verifiers that are followed too far: best of k by them falls as k grows."""
        # one that knows the answer is no proxy: where it disagrees with the metric, the two judge other things
        learned = [name for name in self.proxies if f"best/{name}" in self.curves]
        found = {name: find_fall(self._best(name)) for name in learned}
        return {name: fall for name, fall in found.items() if fall is not None}

    def _best(self, verifier: str) -> Mapping[int, Sequence[float]]:
        """Return the metric of a verifier's best of k; `Bench` marks the curve of one that knows the answer."""
        name = f"best/{verifier}"
        return next(curve.values for key, curve in self.curves.items() if key.removesuffix(" (oracle)") == name)

    @cached_property
    def interval(self) -> Interval:
        """The metric's."""
        return self.interval_of(next(iter(self.scores)))

    def interval_of(self, reward: str) -> Interval:
        """Return a reward's mean over what was answered; its interval holds what is missing, all wrong or all right."""
        found = mean_interval(self.scores[reward])
        if reward not in self.extremes:
            return found
        worst, best = map(mean_interval, self.extremes[reward])
        return Interval(found.mean, worst.low, best.high)


def mark_pareto(measures: Sequence[Measure]) -> None:
    """Mark those measures of one model on the Pareto front of accuracy against tokens."""
    # an oracle does not compete: it would push off the front what can be had without knowing the answers
    honest = [measure for measure in measures if not measure.is_oracle]
    front = pareto([(measure.interval.mean, measure.tokens_per_problem) for measure in honest])
    for measure, is_pareto in zip(honest, front, strict=True):
        measure.is_pareto = is_pareto


def gains(artifact: ModelArtifact, measured: Mapping[str, Sequence[Measure]]) -> dict[str, Any]:
    """Compare each measure with that of its nearest measured ancestor, paired by problem; the first is the headline."""
    parent = next((name for name in artifact.ancestors if name in measured), None)
    if parent is None:
        return {}
    before = {measure.name: measure for measure in measured[parent]}
    found = {}
    for measure in measured[artifact.name]:
        if measure.name not in before:
            continue
        # paired by problem: problems differ more than models do, and that part of the noise cancels in the difference
        other, metric = before[measure.name], next(iter(measure.scores))
        gain = difference_interval(measure.values, other.values)
        if measure.extremes or other.extremes:
            worst, best = measure.extremes.get(metric, (measure.values, measure.values))
            others_worst, others_best = other.extremes.get(metric, (other.values, other.values))
            low, high = difference_interval(worst, others_best).low, difference_interval(best, others_worst).high
            gain = Interval(gain.mean, low, high)
        found[measure.name] = gain
    return {"over": parent, "measures": {name: asdict(gain) for name, gain in found.items() if not isnan(gain.mean)}}


def flat_figures(
    metric: str, summaries: Mapping[str, Mapping[str, Mapping[str, Any]]], gained: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
    """Return the figures by one name each, every interval with `_low` and `_high`.

    Args:
        metric: the reward that counts.
        summaries: model -> measure -> `Measure.summary()`.
        gained: model -> `gains`.

    Returns:
        `model/measure`; `model/measure/reward` of further rewards; `model/measure/tokens_per_problem`;
        `model/measure/missing` and `model/measure/unread` where something is; `model/pass@k`, `model/maj@k`,
        `model/weighted@k/verifier`, `model/best@k/verifier`; `model/gain` and `model/gain/measure`.
    """
    figures: dict[str, float] = {}
    for model, measures in summaries.items():
        for name, measure in measures.items():
            for reward, found in measure["rewards"].items():
                is_metric = reward == metric
                figures |= (
                    _spread(f"{model}/{name}", found) if is_metric else {f"{model}/{name}/{reward}": found["mean"]}
                )
            figures[f"{model}/{name}/tokens_per_problem"] = measure["tokens_per_problem"]
            for count in ("missing", "unread"):
                if measure.get(count):
                    figures[f"{model}/{name}/{count}"] = measure[count]
            for curve, points in measure["at_k"].items():
                kind, slash, verifier = curve.partition("/")
                for k, point in points.items():
                    figures |= _spread(f"{model}/{kind}@{k}{slash}{verifier}", point)
        # the first measure is `sampled`: its gain is the model's own, what any strategy adds comes on top
        for i, (name, gain) in enumerate(gained[model].get("measures", {}).items()):
            figures |= _spread(f"{model}/gain" if i == 0 else f"{model}/gain/{name}", gain)
    return figures


def _spread(name: str, found: Mapping[str, float]) -> dict[str, float]:
    return {name: found["mean"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
