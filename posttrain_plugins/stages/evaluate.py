"""`evaluate`: measure models, strategies and budgets on held-out problems, with intervals, costs and gains.

The metric is sampled accuracy, the mean over `num_generations` completions per problem, as DeepSeek-R1 reports it
(https://huggingface.co/papers/2501.12948, section 3); each strategy's own accuracy stands beside it. What fewer
completions would have given comes from the same draws (`evaluation/curves.py`). Accuracy against compute is
what Snell et al., 2024 (https://huggingface.co/papers/2408.03314) compare strategies by.

1. A gain is over the nearest measured model that this one was made from, paired by problem.
2. All ways of answering share their draws: a strategy's `tokens` are what it takes alone, its `seconds` what was left.
3. What could not be answered (a failed sample, a problem where a strategy raised) is missing, not wrong: figures are
   over what was answered, with the missing in the interval, and more than `max_missing` of it ends the stage.
5. A learned scorer whose best of k falls as k grows is over-optimised, and said to be (`evaluation/proxy.py`).
6. What a gain has cost elsewhere is measured on `retain`: see `evaluation/retain.py`.
4. Tokens are those of all roles, read and written. The Pareto front is without oracles, which have seen the answer.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.evaluation.missing import check_max_missing
from posttrain_plugins.text import fingerprint
from posttrain_plugins.text.readers import check_reader, reading
from posttrain_plugins.types import (
    Budget,
    DataRef,
    Issue,
    ModelArtifact,
    ModelRef,
    Problem,
    ResolvedStrategy,
    RewardRef,
    SamplingParams,
    StageContext,
    StageFacts,
    StageResult,
    StrategyRef,
    ToolRef,
    server_of,
)

if TYPE_CHECKING:  # `validate` and `plan` import this module, and what it runs with takes them longer than the check
    from posttrain_plugins.backends.protocol import AnyBackend
    from posttrain_plugins.engine.solve import Progress
    from posttrain_plugins.evaluation.bench import Bench
    from posttrain_plugins.evaluation.measure import Measure
    from posttrain_plugins.evaluation.retain import Retained

__all__ = ["Evaluate"]

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
# `>=0.8`: no arithmetic and no second figure, so that a missed gate can be said in one line
_GATE = re.compile(r"\s*(>=|<=|>|<|==)\s*([+-]?\d*\.?\d+(?:[eE][+-]?\d+)?)\s*")


@dataclass
class Evaluate:
    """Measure every model with every strategy at every budget.

    Writes `summary.json`, `samples.jsonl` (which `sample` can take), `traces.jsonl` of the first problems, and plots.

    Args:
        models: what is measured.
        dataset: held-out prompts, and the columns that the rewards need.
        rewards: the first is the metric; the others are reported beside it.
        strategies: how the models answer. Models that they name are loaded beside, each once.
        budgets: limits for each problem, `{tokens: 500}`, with the fields of `types.Budget`; every strategy is measured
            at each of them. Empty: once, without limits, which among others is `{}`.
        verifiers: rewards that choose among the sampled completions, for weighted@k and best@k; the strategies'
            scorers do so too.
        num_generations: completions per problem for sampled accuracy, majority, and pass, maj, weighted and best @ k
            for k = 1, 2, 4 ... of them; 0 leaves them out.
        temperature: of these, and what strategies start from.
        top_p: of these, and what strategies start from.
        max_tokens: per completion.
        reader: how answers are read for votes, and to tell how many cannot be read: auto, marked, boxed, tag,
            last_number, whole, or regex:PATTERN. Rewards have a reader of their own.
        max_missing: the share of completions, or of a strategy's answers, that may be missing.
        tools: what the models may call: each completion is then a conversation, as in `grpo` with tools. `max_tokens`
            is of what the model writes in it; strategies with tools of their own call these too.
        max_tool_calling_iterations: rounds of calls in a conversation; None sets no limit.
        max_trajectory_s: seconds after which a conversation calls no tool any more.
        plot: draw `accuracy_tokens.svg` and `.png`, and `proxy_gold` where verifiers choose, if matplotlib is there.
        retain: data sets of what should not be forgotten: with a column `text` its perplexity is measured, with
            `prompt` the accuracy of greedy completions by the first reward. Each model is compared with the nearest and
            the first measured model that it was made from, paired by row.
        engine: what answers for the measured models: `transformers` or `vllm` in this process, or the URL of a server
            that has them, by the name that each has here or behind a `#`; nothing can tell whether these are the same
            weights. Models that strategies name are asked as ever.
        vllm: options of vLLM's own engine, `{tensor_parallel_size: 2, max_model_len: 4096}`.
        require: figure -> what it must be, such as `accuracy: ">=0.8"` or `sft/retain/english/over/base: "<=1.05"`;
            what is missed stands in `details["unmet"]`.

    Raises:
        InputError: for a requirement or a budget that cannot be read, or where there is nothing to measure.
        StageFailed: more is missing than may be.
    """

    produces: ClassVar[str] = "figures"
    requires_columns: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {
        "dataset": (("prompt",),),
        "retain": (("text",), ("prompt",)),
    }

    models: list[ModelRef]
    dataset: DataRef
    rewards: list[RewardRef]
    strategies: list[StrategyRef] = field(default_factory=lambda: ["greedy"])
    budgets: list[dict[str, float]] = field(default_factory=list)
    verifiers: list[RewardRef] = field(default_factory=list)
    num_generations: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024
    reader: str = "auto"
    max_missing: float = 0.01
    tools: list[ToolRef] = field(default_factory=list)
    max_tool_calling_iterations: int | None = None
    max_trajectory_s: float | None = None
    plot: bool = True
    retain: list[DataRef] = field(default_factory=list)
    engine: str = "transformers"
    vllm: dict[str, Any] = field(default_factory=dict)
    require: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for figure, gate in self.require.items():
            if not _GATE.fullmatch(gate):
                raise InputError(
                    f"require cannot be read: {figure}: {gate!r}, expected a comparison", hint='write ">=0.8"'
                )
        # all of this when the recipe is checked: an evaluation stands at the end of hours of training
        if not (self.strategies or self.num_generations):
            raise InputError("evaluate has nothing to measure", hint="name a strategy, or set num_generations")
        check_max_missing(self.max_missing)
        check_reader(self.reader)
        for budget in self.budgets:
            _check_budget(budget)

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield why the models cannot be asked with tools, or not by this engine."""
        from posttrain_plugins.backends.engines import engine_issues
        from posttrain_plugins.trainers import tool_rules

        yield from engine_issues(self.engine, self.vllm, len(self.models))
        yield from tool_rules.draw_concerns(self, facts)

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.backends.open import opened
        from posttrain_plugins.engine.log import RequestLog
        from posttrain_plugins.engine.saved_traces import TRACES, trace_lines
        from posttrain_plugins.engine.solve import is_thinking
        from posttrain_plugins.engine.tool_loop import tool_loop
        from posttrain_plugins.evaluation.bench import Bench, problems_of
        from posttrain_plugins.evaluation.measure import mark_pareto

        rows = [dict(row) for row in context.inputs["dataset"]]
        problems, columns = problems_of(rows, SamplingParams(self.temperature, self.top_p, self.max_tokens))
        models: list[ModelArtifact] = context.inputs["models"]
        strategies: list[ResolvedStrategy] = context.inputs["strategies"]
        # what chooses among the draws: the stage's own, and the strategies' scorers, each name once
        named = {reward.name: reward for reward in context.inputs.get("verifiers", [])}
        named |= {name: reward for strategy in strategies for name, reward in strategy.scorers.items()}
        verifiers = list(named.values()) if self.num_generations else []
        measured: dict[str, list[Measure]] = {}
        kept_known: dict[str, dict[str, Retained]] = {name: {} for name in self.retain}
        with (
            RequestLog(context.folder / "log.jsonl") as log,
            # half a character, which a server may send, is no reason to lose an evaluation
            (context.folder / "samples.jsonl").open("w", encoding="utf-8", errors="replace") as samples,
            (context.folder / TRACES).open("w", encoding="utf-8", errors="replace") as traces,
            ExitStack() as kept,
        ):
            # Models that strategies name stay until the end. A measured one goes before the next is loaded, so that one
            # at most is in memory beside them; one that is both is loaded once.
            backends: dict[str, AnyBackend] = {}
            for role, artifact in {role: a for one in strategies for role, a in one.models.items()}.items():
                backends[role] = kept.enter_context(opened(artifact))
            for number, artifact in enumerate(models):
                with ExitStack() as own:
                    # a model may be measured by a strategy that names it as judge: then they are one
                    policy = backends.get(artifact.name) or own.enter_context(
                        opened(artifact, self._engine_of(artifact), self.vllm)
                    )
                    roles = {**backends, "policy": policy}
                    rewards = context.inputs["rewards"]
                    options = (context.seed, context.should_stop, verifiers)
                    bench = Bench(problems, columns, rewards, roles, log, *options, tool_loop(context, self))
                    with reading(self.reader, is_thinking(roles)):  # by rewards too: a cut thought is no answer
                        measured[artifact.name] = list(self._measure(bench, context, number))
                        for name, data in zip(self.retain, context.inputs.get("retain", ()), strict=True):
                            kept_known[name][artifact.name] = self._retained(name, data, bench, context)
                mark_pareto(measured[artifact.name])
                # at once, model by model: what an evaluation that is killed has drawn by then can be read
                made = ({"model": artifact.name, **row} for one in measured[artifact.name] for row in one.samples)
                samples.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in made)
                for one in measured[artifact.name]:
                    traces.writelines(trace_lines(one.traced, model=artifact.name, measure=one.name))
        return self._report(context, models, problems, measured, kept_known)

    def _engine_of(self, artifact: ModelArtifact) -> str:
        """Return the engine; of a server that has several models, with the name of this one."""
        is_shared = len(self.models) > 1 and server_of(self.engine) is not None
        return f"{self.engine}#{artifact.name}" if is_shared else self.engine

    def _measure(self, bench: Bench, context: StageContext, number: int) -> Iterator[Measure]:
        from posttrain_plugins.backends.markers import unknown_markers

        # no budget is one run without limits, not no run
        budgets: list[Any] = [Budget(**limits) for limits in map(dict[str, Any], self.budgets)] or [None]
        runs = [(strategy, budget) for strategy in context.inputs["strategies"] for budget in budgets]
        per_model = len(runs) + bool(self.num_generations)
        total = per_model * len(context.inputs["models"])
        tell = [_shifted(context.reporter.progress, per_model * number + i, total) for i in range(per_model)]
        # the draws first: strategies that ask for the same find them in the log, and pay nothing for them
        if self.num_generations:
            for measure in bench.measure_draws(self.num_generations, tell.pop(0)):
                yield self._checked(measure, context)
        for strategy, budget in runs:
            for warning in unknown_markers(strategy.strategy, bench.backends["policy"]):
                context.reporter.note(f"{strategy.label}: {warning}")
            yield self._checked(bench.measure_strategy(strategy, budget, tell.pop(0)), context)

    def _retained(self, name: str, data: Any, bench: Bench, context: StageContext) -> Retained:
        """Measure a model on what it should not forget."""
        from posttrain_plugins.evaluation.bench import problems_of
        from posttrain_plugins.evaluation.retain import Retained

        policy: Any = bench.backends["policy"]
        if "text" in data.column_names:
            from posttrain_plugins.backends.transformers.likelihood import likelihoods

            if not hasattr(policy, "model"):
                message = f"the perplexity of '{name}' can only be asked of transformers in this process"
                raise InputError(message, hint="leave engine out, or retain prompts in place of text")

            def tell(done: int, total: int) -> None:
                context.reporter.progress(done, total, f"windows of {name}", {})

            found = likelihoods(policy.model, policy.tokenizer, data["text"], tell)
            return Retained("perplexity", [one.nats for one in found], [one.tokens for one in found])
        problems, columns = problems_of([dict(row) for row in data], SamplingParams(0.0, 1.0, self.max_tokens))
        asked = replace(bench, problems=problems, columns=columns, verifiers=())
        greedy = asked.measure_draws(1)[0]
        return Retained("accuracy", self._checked(replace(greedy, name=name), context).values)

    def _checked(self, measure: Measure, context: StageContext) -> Measure:
        if measure.missing.count:  # said while it runs, and before the next strategy asks the same endpoint
            context.reporter.note(f"{measure.name}: {measure.missing}")
            measure.missing.check(measure.name, self.max_missing)
        reward = context.inputs["rewards"][0]
        if measure.unread and reward.is_oracle:  # a low figure may be one of how answers are written
            context.reporter.note(
                f"{measure.name}: {measure.unread} of {len(measure.samples)} completions have no answer that "
                f"can be read (reader: {self.reader})"
            )
        if measure.voteless:
            context.reporter.note(
                f"{measure.name}: nothing to vote on in {measure.voteless} of {len(measure.values)} problems"
            )
        return measure

    def _report(
        self,
        context: StageContext,
        models: Sequence[ModelArtifact],
        problems: Sequence[Problem],
        measured: Mapping[str, list[Measure]],
        retained: Mapping[str, Mapping[str, Retained]],
    ) -> StageResult:
        # a gain is over the nearest model that is measured here too, so all have to be done
        from posttrain_plugins.evaluation.measure import flat_figures, gains
        from posttrain_plugins.evaluation.plot import draw
        from posttrain_plugins.evaluation.proxy_plot import draw_proxies
        from posttrain_plugins.evaluation.retain import flat_retained, retained_summary

        summaries = {name: {m.name: m.summary() for m in measures} for name, measures in measured.items()}
        gained = {artifact.name: gains(artifact, measured) for artifact in models}
        metric = context.inputs["rewards"][0].name
        kept = retained_summary(retained, {artifact.name: artifact.ancestors for artifact in models})
        _tell_of_falls(measured, context)
        _tell_of_losses(kept, context)
        metrics = {**flat_figures(metric, summaries, gained), **flat_retained(kept)}
        last = measured[models[-1].name]
        # `accuracy`: the last model's by the first strategy, which stands behind the two measures of the draws
        headline = last[2 if self.num_generations else 0] if context.inputs["strategies"] else last[0]
        # no figure rather than NaN, which JSON has not: all problems without a judgement
        metrics |= {} if isnan(headline.interval.mean) else {"accuracy": headline.interval.mean}
        details = {
            "metric": metric,
            "problems": len(problems),
            "models": {
                artifact.name: {
                    "ancestors": list(artifact.ancestors),
                    "measures": summaries[artifact.name],
                    "gain": gained[artifact.name],
                }
                for artifact in models
            },
            "overlap": {artifact.name: _overlap(artifact, problems, context) for artifact in models},
            "retain": kept,
            "pareto": {name: [m.name for m in measures if m.is_pareto] for name, measures in measured.items()},
            "unmet": list(_unmet(self.require, metrics)),  # the run's exit code is made of it, not an exception here
        }
        text = json.dumps({"metrics": metrics, **details}, indent=2, ensure_ascii=False)
        (context.folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        if self.plot:
            try:
                draw(details, context.folder / "accuracy_tokens")
                draw_proxies(details, context.folder / "proxy_gold")
            except ImportError:
                hint = "pip install 'posttrain-plugins[plot]', or plot: false"
                context.reporter.note(f"accuracy_tokens.svg is not drawn, matplotlib is not installed: {hint}")
        return StageResult(metrics=metrics, details=details)


def _tell_of_falls(measured: Mapping[str, Sequence[Measure]], context: StageContext) -> None:
    """Name the learned scorers that are followed too far."""
    from posttrain_plugins.evaluation.proxy import CURE

    for model, measures in measured.items():
        for name, fall in ((name, fall) for measure in measures for name, fall in measure.falls().items()):
            than = "one sample" if fall.over == 1 else f"best of {fall.over}"
            change = f"{fall.change.mean:+.3f} [{fall.change.low:+.3f}, {fall.change.high:+.3f}] over {than}"
            context.reporter.note(f"{model}: '{name}' is over-optimised, best of {fall.k} by it is {change}: {CURE}")


def _tell_of_losses(kept: Mapping[str, Any], context: StageContext) -> None:
    """Say what each model has lost by more than noise: a table is read after the next stage was started."""
    from posttrain_plugins.evaluation.retain import is_lost

    for name, found in kept.items():
        for model, one in found["models"].items():
            for other, change in one["over"].items():
                if is_lost(found["kind"], change):
                    sign, what = ("x", "perplexity") if found["kind"] == "perplexity" else ("", "accuracy")
                    how = f"{change['mean']:{'' if sign else '+'}.3f}{sign} [{change['low']:.3f}, {change['high']:.3f}]"
                    context.reporter.note(f"{model} has forgotten: {what} on '{name}' {how} over {other}")


def _shifted(progress: Progress, done_before: int, passes: int) -> Progress:
    """Return what tells the progress of one pass over the problems as that of the whole stage."""

    # every pass has as many problems as the others, so passes can be counted in problems
    def tell(done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        count = total or 0
        progress(done_before * count + done, passes * count, unit, figures)

    return tell


def _check_budget(budget: Mapping[str, float]) -> None:
    known = [limit.name for limit in fields(Budget)]
    for name, limit in budget.items():
        if name not in known:
            raise InputError(f"budgets cannot have {name!r}, expected {', '.join(known)}", hint="{tokens: 500}")
        if not limit > 0:
            raise InputError(
                f"budgets cannot have {name}: {limit}, expected more than 0", hint="leave out what is free"
            )


def _overlap(artifact: ModelArtifact, problems: Sequence[Problem], context: StageContext) -> int:
    """Count the problems that the model or an ancestor was trained on."""
    # fingerprints that each training stage wrote, for the model and all that it was made from
    seen = {line for path in artifact.seen for line in Path(path).read_text(encoding="utf-8").split()}
    count = sum(fingerprint(problem.prompt) in seen for problem in problems)
    if count:
        context.reporter.note(f"{artifact.name} was trained on {count} of the {len(problems)} problems")
    return count


def _unmet(require: Mapping[str, str], metrics: Mapping[str, float]) -> Iterator[str]:
    for figure, gate in require.items():
        match = _GATE.fullmatch(gate)
        assert match is not None
        if figure not in metrics:  # a gate that names nothing must not be passed
            yield f"{figure}: no such figure, expected one of: {', '.join(sorted(metrics))}"
        elif not _COMPARISONS[match[1]](metrics[figure], float(match[2])):
            yield f"{figure}: {metrics[figure]:.4g}, expected {gate.strip()}"
