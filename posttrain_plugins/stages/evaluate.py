"""`evaluate`: measure models and strategies on held-out problems, with intervals, costs and gains.

The metric is sampled accuracy, the mean over `num_generations` completions per problem, as DeepSeek-R1 reports it
(https://huggingface.co/papers/2501.12948, section 3); each strategy's own accuracy stands beside it.

1. A gain is over the nearest measured model that this one was made from, paired by problem.
2. All ways of answering share their draws: a strategy's `tokens` are what it takes alone, its `seconds` what was left.
3. A failed sample, and a problem where a strategy raised, count as wrong.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.inference.engine import Progress
from posttrain_plugins.inference.figures import Interval, difference_interval
from posttrain_plugins.inference.log import RequestLog
from posttrain_plugins.inference.measure import Bench, Measure, problems_of
from posttrain_plugins.inference.transformers_backend import opened
from posttrain_plugins.text import fingerprint
from posttrain_plugins.types import (
    DataRef,
    ModelArtifact,
    ModelRef,
    Problem,
    RewardRef,
    SamplingParams,
    StageContext,
    StageResult,
    StrategyRef,
)

__all__ = ["Evaluate"]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_GATE = re.compile(r"\s*(>=|<=|>|<|==)\s*([+-]?\d*\.?\d+(?:[eE][+-]?\d+)?)\s*")


@dataclass
class Evaluate:
    """Measure every model with every strategy.

    Args:
        models: what is measured.
        dataset: held-out prompts, and the columns that the rewards need.
        rewards: the first is the metric; the others are reported beside it.
        strategies: how the models answer.
        num_generations: completions per problem for sampled accuracy, majority and pass@k; 0 leaves them out.
        temperature: of these, and what strategies start from.
        top_p: of these, and what strategies start from.
        max_tokens: per completion.
        require: figure -> what it must be, such as `accuracy: ">=0.8"`; what is missed stands in `details["unmet"]`.

    Raises:
        InputError: for a requirement that cannot be read.
    """

    produces: ClassVar[str] = "figures"
    requires_columns: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {"dataset": (("prompt",),)}

    models: list[ModelRef]
    dataset: DataRef
    rewards: list[RewardRef]
    strategies: list[StrategyRef] = field(default_factory=lambda: ["greedy"])
    num_generations: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024
    require: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for figure, gate in self.require.items():
            if not _GATE.fullmatch(gate):
                raise InputError(
                    f"require cannot be read: {figure}: {gate!r}, expected a comparison", hint='write ">=0.8"'
                )
        if not (self.strategies or self.num_generations):
            raise InputError("evaluate has nothing to measure", hint="name a strategy, or set num_generations")

    def __call__(self, context: StageContext) -> StageResult:
        rows = [dict(row) for row in context.inputs["dataset"]]
        problems, columns = problems_of(rows, SamplingParams(self.temperature, self.top_p, self.max_tokens))
        models: list[ModelArtifact] = context.inputs["models"]
        measured: dict[str, list[Measure]] = {}
        with RequestLog(context.folder / "log.jsonl") as log, (context.folder / "samples.jsonl").open("w") as samples:
            for number, artifact in enumerate(models):
                with opened(artifact) as backend:
                    rewards = context.inputs["rewards"]
                    bench = Bench(problems, columns, rewards, backend, log, context.seed, context.should_stop)
                    measured[artifact.name] = list(self._measure(bench, context, number))
                _write_samples(samples, artifact.name, measured[artifact.name])
        return self._report(context, models, problems, measured)

    def _measure(self, bench: Bench, context: StageContext, number: int) -> Iterator[Measure]:
        strategies = context.inputs["strategies"]
        per_model = len(strategies) + bool(self.num_generations)
        total = per_model * len(context.inputs["models"])
        tell = [_shifted(context.reporter.progress, per_model * number + i, total) for i in range(per_model)]
        if self.num_generations:
            yield from bench.measure_draws(self.num_generations, tell.pop(0))
        for strategy in strategies:
            measure = bench.measure_strategy(strategy, tell.pop(0))
            if measure.errors:
                context.reporter.note(f"{measure.name}: {len(measure.errors)} problems failed, {measure.errors[0]}")
            yield measure

    def _report(
        self,
        context: StageContext,
        models: Sequence[ModelArtifact],
        problems: Sequence[Problem],
        measured: Mapping[str, list[Measure]],
    ) -> StageResult:
        gains = {artifact.name: _gains(artifact, measured) for artifact in models}
        metrics = _metrics(measured, gains)
        last = measured[models[-1].name]
        headline = last[-len(context.inputs["strategies"])] if context.inputs["strategies"] else last[0]
        metrics |= {} if isnan(headline.interval.mean) else {"accuracy": headline.interval.mean}
        details = {
            "metric": context.inputs["rewards"][0].name,
            "problems": len(problems),
            "models": {
                artifact.name: {
                    "ancestors": list(artifact.ancestors),
                    "measures": {measure.name: measure.summary() for measure in measured[artifact.name]},
                    "gain": gains[artifact.name],
                }
                for artifact in models
            },
            "overlap": {artifact.name: _overlap(artifact, problems, context) for artifact in models},
            "unmet": list(_unmet(self.require, metrics)),
        }
        text = json.dumps({"metrics": metrics, **details}, indent=2, ensure_ascii=False)
        (context.folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        return StageResult(metrics=metrics, details=details)


def _shifted(progress: Progress, done_before: int, passes: int) -> Progress:
    """Progress of one pass over the problems as progress of the whole stage."""

    def tell(done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        count = total or 0
        progress(done_before * count + done, passes * count, unit, figures)

    return tell


def _gains(artifact: ModelArtifact, measured: Mapping[str, list[Measure]]) -> dict[str, Any]:
    """Each measure against that of its nearest measured ancestor, paired by problem; the first is the headline."""
    parent = next((name for name in artifact.ancestors if name in measured), None)
    if parent is None:
        return {}
    before = {measure.name: measure.values for measure in measured[parent]}
    gains = {
        measure.name: difference_interval(measure.values, before[measure.name])
        for measure in measured[artifact.name]
        if measure.name in before
    }
    return {
        "over": parent,
        "measures": {name: asdict(gain) for name, gain in gains.items() if not isnan(gain.mean)},
    }


def _metrics(measured: Mapping[str, list[Measure]], gains: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """Flat figures: `model/measure`, with `_low` and `_high`; `model/measure/reward`; `model/pass@k`; `model/gain`."""
    figures: dict[str, float] = {}
    for model, measures in measured.items():
        for measure in measures:
            figures |= _spread(f"{model}/{measure.name}", measure.interval)
            others = list(measure.summary()["rewards"].items())[1:]
            figures |= {f"{model}/{measure.name}/{reward}": interval["mean"] for reward, interval in others}
            figures |= {f"{model}/pass@{k}": value for k, value in measure.pass_at.items()}
        for i, (name, gain) in enumerate(gains[model].get("measures", {}).items()):
            figures |= _spread(f"{model}/gain" if i == 0 else f"{model}/gain/{name}", Interval(**gain))
    return {name: value for name, value in figures.items() if not isnan(value)}


def _spread(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _overlap(artifact: ModelArtifact, problems: Sequence[Problem], context: StageContext) -> int:
    """How many of the problems the model or an ancestor was trained on."""
    seen = {line for path in artifact.seen for line in Path(path).read_text(encoding="utf-8").split()}
    count = sum(fingerprint(problem.prompt) in seen for problem in problems)
    if count:
        context.reporter.note(f"{artifact.name} was trained on {count} of the {len(problems)} problems")
    return count


def _unmet(require: Mapping[str, str], metrics: Mapping[str, float]) -> Iterator[str]:
    for figure, gate in require.items():
        match = _GATE.fullmatch(gate)
        assert match is not None
        if figure not in metrics:
            yield f"{figure}: no such figure, expected one of: {', '.join(sorted(metrics))}"
        elif not _COMPARISONS[match[1]](metrics[figure], float(match[2])):
            yield f"{figure}: {metrics[figure]:.4g}, expected {gate.strip()}"


def _write_samples(file: Any, model: str, measures: Sequence[Measure]) -> None:
    rows = ({"model": model, **row} for measure in measures for row in measure.samples)
    file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
