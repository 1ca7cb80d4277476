"""`sample`: draw completions, or take saved ones, score them, and keep the good ones as training data.

It gives every format of TRL: demonstrations, preferences, labelled and ranked completions, labelled steps. What is kept
is told in `training_data/selection.py`, how steps are labelled in `training_data/step_labels.py`, with their papers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from posttrain_plugins.engine.trace import failures_of, unanswered
from posttrain_plugins.errors import InputError, StageFailed
from posttrain_plugins.evaluation.missing import Missing, check_max_missing
from posttrain_plugins.text import in_format_of, to_text
from posttrain_plugins.text.readers import check_reader, read, reading
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.training_data.selection import (
    COLUMNS,
    WRITERS,
    Judged,
    Keep,
    Selection,
    distinct,
    judge,
    judgeable,
    read_saved,
    without_texts,
)
from posttrain_plugins.training_data.step_labels import Estimate
from posttrain_plugins.types import (
    DataRef,
    Issue,
    ModelArtifact,
    ModelRef,
    Problem,
    ResolvedReward,
    RewardRef,
    SamplingParams,
    StageContext,
    StageFacts,
    StageResult,
    StrategyRef,
    ToolRef,
)

if TYPE_CHECKING:  # `validate` and `plan` import this module, and what it runs with takes them longer than the check
    from posttrain_plugins.backends.protocol import AnyBackend
    from posttrain_plugins.engine.log import RequestLog

__all__ = ["Sample"]


@dataclass
class Sample:
    """Make a data set out of completions: a model's own, or those that a data set holds already.

    Without a model (or with `num_generations: 0`) the data set's completions are judged: a column `completion`, or
    `completions` with several to a row; rows with the same prompt are one problem. So whatever was saved with prompts,
    completions and rewards, such as an evaluation's `samples.jsonl`, can be scored again and trained on.

    Args:
        dataset: prompts, and the columns that the rewards need; they are kept.
        rewards: the first decides what is right; their weighted sum ranks. Saved completions may do without, where a
            column `reward`, `rewards` or `scores` tells.
        model: who writes.
        models: several who write, in place of `model`, each `num_generations` completions: a column `model` says who
            (of pairs `chosen_model` and `rejected_model`, of rankings `models`). A reward model that follows a policy
            learns from such rows; what a value model learns from them is the worth of a state to a mixture of them.
            One that is named twice writes once: in a loop's first turn `${prev}` is `init`, which may stand beside it.
        strategy: how completions are made; by default `num_generations` plain draws. All finished candidates count.
        num_generations: completions per problem.
        keep: of the right completions the `best`, the best `top_k`, or all (`all_correct`), as prompt and completion;
            `all`, right or wrong, equal ones too, each with its weighted sum of rewards; `pairs`, a right one chosen
            and a wrong one rejected; `labelled`, every one with a bool; `ranked`, a problem's completions in one row,
            the best first; `unjudged`, all distinct ones in one row, for people to judge (stage `annotate`), which
            takes no rewards; `steps`, every one cut into labelled steps.
        top_k: how many of a problem's completions `top_k` keeps.
        threshold: a completion, or a step, is right where the first reward is at least this; None takes every judged
            completion, and `pairs` then sets the best against the worst by the weighted sum.
        max_pairs_per_prompt: how many pairs `pairs` makes of one problem.
        labels: `rules` asks the first reward's `step_scores`; `rollouts` lets the model go on from each step.
        separator: what ends a step; the rule of `posttrain_plugins.text.steps`.
        num_rollouts: completions from each step.
        estimate: a step is right where any rollout is (`hard`), or `share_threshold` of them (`soft`); `share` labels
            it with the share, and keeps equal completions, too.
        share_threshold: see `estimate`.
        stop_at_first_error: leave out the steps after the first wrong one.
        temperature: of the draws.
        top_p: of the draws.
        max_tokens: per completion.
        reader: how answers are read for a strategy's votes, and to tell how many cannot be read (as of `evaluate`).
        max_missing: the share of completions that may be missing: failed samples, and what a judge could not be asked.
        tools: what the model may call: each completion is then a conversation, as in `grpo` with tools, kept whole.
            `max_tokens` is of what the model writes in it; strategies with tools of their own call these too.
        max_tool_calling_iterations: rounds of calls in a conversation; None sets no limit.
        max_trajectory_s: seconds after which a conversation calls no tool any more.
        engine: what answers for the model: `transformers` or `vllm` in this process, or the URL of a server
            that has it, by the name that it has here or behind a `#`; nothing can tell whether these are the same
            weights. Models that strategies name are asked as ever.
        vllm: options of vLLM's own engine, `{tensor_parallel_size: 2, max_model_len: 4096}`.

    Raises:
        InputError: for fields that do not go together.
        StageFailed: where nothing is worth keeping, or more is missing than may be.
    """

    produces: ClassVar[str] = "dataset"

    dataset: DataRef
    rewards: list[RewardRef] = field(default_factory=list)
    model: ModelRef | None = None
    models: list[ModelRef] = field(default_factory=list)
    strategy: StrategyRef | None = None
    num_generations: int = 8
    keep: Keep = "best"
    top_k: int = 1
    threshold: float | None = 0.5
    max_pairs_per_prompt: int = 1
    labels: Literal["rules", "rollouts"] = "rules"
    separator: str = SEPARATOR
    num_rollouts: int = 8
    estimate: Estimate = "hard"
    share_threshold: float = 0.5
    stop_at_first_error: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024
    reader: str = "auto"
    max_missing: float = 0.01
    tools: list[ToolRef] = field(default_factory=list)
    max_tool_calling_iterations: int | None = None
    max_trajectory_s: float | None = None
    engine: str = "transformers"
    vllm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # what no run could make sense of is refused when the recipe is checked, before a model is loaded
        check_max_missing(self.max_missing)
        check_reader(self.reader)
        for name in ("top_k", "max_pairs_per_prompt", "num_rollouts"):
            if getattr(self, name) < 1:
                raise InputError(f"sample cannot use {name}: {getattr(self, name)}, expected 1 or more")
        if self.models and (self.model is not None or self.num_generations == 0):
            what = "a model" if self.model is not None else "num_generations: 0"
            raise InputError(f"sample has models, and {what} beside them", hint="models: [...], who write")
        if not self.writes and self.strategy is not None:
            raise InputError("sample has a strategy, but no model", hint="model: who writes")
        if self.keep == "unjudged" and (self.is_offline or self.rewards):
            what = (
                "rewards" if self.rewards else "no model: what a data set holds needs no stage to be judged by people"
            )
            raise InputError(f"sample keeps unjudged completions, but has {what}", hint="model: who writes; no rewards")
        if not self.rewards and self.keep != "unjudged" and not (self.is_offline and self.keep != "steps"):
            raise InputError("sample has no rewards", hint="rewards: [...], the first decides what is right")
        if self.keep == "steps" and self.labels == "rollouts" and self.model is None:
            found = "several models" if self.models else "no model"
            raise InputError(f"sample has labels: rollouts, but {found}", hint="model: who goes on from each step")
        if self.tools and (self.is_offline or self.keep == "steps"):
            raise InputError("sample has tools, which need a model that draws whole completions", hint="remove tools")
        if self.keep in ("steps", "labelled") and self.threshold is None:
            raise InputError(
                f"keep: {self.keep} tells right from wrong, so it needs a threshold", hint="threshold: 0.5"
            )

    @property
    def is_offline(self) -> bool:
        """Are the data set's own completions taken?"""
        return not self.writes or (self.num_generations == 0 and self.strategy is None)

    @property
    def writes(self) -> bool:
        """Is there a model?"""
        return self.model is not None or bool(self.models)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data set that it makes, before those that it hands through."""
        return COLUMNS[self.keep] + (WRITERS.get(self.keep, ("model",)) if self.models else ())

    @property
    def requires_columns(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Of the data set: prompts, and what stands in for model and rewards where there are none."""
        if not self.is_offline:  # the model writes, the rewards judge: prompts are enough
            return {"dataset": (("prompt",),)}
        verdicts = [()] if self.rewards else [("reward",), ("rewards",), ("scores",)]
        texts = ("completion", "completions")
        return {"dataset": tuple(("prompt", text, *verdict) for text in texts for verdict in verdicts)}

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield that the first reward cannot label steps, or that the model cannot be shown tools, or asked so."""
        from posttrain_plugins.backends.engines import engine_issues
        from posttrain_plugins.trainers import tool_rules

        yield from engine_issues(self.engine, self.vllm)
        yield from tool_rules.draw_concerns(self, facts)
        first = next(iter(facts.judges_steps.items()), None)
        if self.keep == "steps" and self.labels == "rules" and first is not None and not first[1]:
            yield _no_steps(first[0])

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.engine.log import RequestLog
        from posttrain_plugins.engine.solve import is_thinking
        from posttrain_plugins.evaluation.bench import problems_of

        rows = [dict(row) for row in context.inputs["dataset"]]
        # rows with one prompt become one problem, as if the completions had been drawn together
        saved = read_saved(rows, needs_rewards=not self.rewards) if self.is_offline else None
        rows = [one.row for one in saved] if saved is not None else rows
        params = SamplingParams(self.temperature, self.top_p, self.max_tokens)
        problems, columns = problems_of(rows, params)
        rewards: list[ResolvedReward] = context.inputs["rewards"]
        if self.keep == "steps" and self.labels == "rules" and not hasattr(rewards[0].func, "step_scores"):
            issue = _no_steps(rewards[0].name)  # before anything is drawn
            raise InputError(issue.message, hint=issue.hint)
        with RequestLog(context.folder / "log.jsonl") as log:
            if self.models:
                judged, missing = self._of_several(context, problems, columns, log)
                # labels by rollouts would need one of the models: they are refused
                kept = self._kept(context, problems, columns, judged, {"log": log})
                return self._write(context, rows, judged, kept, missing)
            with self._backends(context) as backends, reading(self.reader, is_thinking(backends)):
                options = self._options(context, log, backends)
                if saved is not None and not rewards:
                    judged, missing = [one.judged() for one in saved], {}  # by the verdicts that were saved with them
                elif saved is not None:
                    judged, missing = self._judged(context, problems, columns, [one.completions for one in saved], log)
                else:
                    judged, missing = self._new(context, problems, columns, options)
                # still within: labels by rollouts draw from the same backends, into the same log
                kept = self._kept(context, problems, columns, judged, options)
        return self._write(context, rows, judged, kept, missing)

    def _options(self, context: StageContext, log: RequestLog, backends: Mapping[str, AnyBackend]) -> dict[str, Any]:
        """Return the options of `engine.solve`."""
        from posttrain_plugins.engine.tool_loop import tool_loop

        options = {"log": log, "seed": context.seed, "should_stop": context.should_stop, "backend": backends}
        return options | {"progress": context.reporter.progress, "tool_loop": tool_loop(context, self)}

    def _of_several(
        self,
        context: StageContext,
        problems: list[Problem],
        columns: Mapping[str, Sequence[Any]],
        log: RequestLog,
    ) -> tuple[list[list[Judged]], dict[str, float]]:
        """Return each problem's completions of all models, one model after another, and how much is missing."""
        from posttrain_plugins.engine.saved_traces import TRACES
        from posttrain_plugins.engine.solve import is_thinking

        judged: list[list[Judged]] = [[] for _ in problems]
        missing: dict[str, float] = {}
        (context.folder / TRACES).unlink(missing_ok=True)  # of a run before that was stopped
        for artifact in {artifact.name: artifact for artifact in context.inputs["models"]}.values():
            own = replace(context, inputs={**context.inputs, "model": artifact})
            with self._backends(own) as backends, reading(self.reader, is_thinking(backends)):
                made, lost = self._new(own, problems, columns, self._options(own, log, backends))
            for of_problem, more in zip(judged, made, strict=True):
                of_problem += [replace(item, model=artifact.name) for item in more]
            missing |= {name: missing.get(name, 0.0) + count for name, count in lost.items()}
        return judged, missing

    def _new(
        self,
        context: StageContext,
        problems: list[Problem],
        columns: Mapping[str, Sequence[Any]],
        options: Mapping[str, Any],
    ) -> tuple[list[list[Judged]], dict[str, float]]:
        """Draw each problem's completions and judge them; return how much is missing, too."""
        made, missing = self._drawn(context, problems, columns, options)
        if self.keep == "unjudged":
            texts = zip(problems, made, strict=True)
            return [[Judged(t, in_format_of(p.prompt, t), None, None) for t in of_one] for p, of_one in texts], missing
        judged, unrated = self._judged(context, problems, columns, made, options["log"])
        return judged, {**missing, **unrated}

    def _drawn(
        self,
        context: StageContext,
        problems: list[Problem],
        columns: Mapping[str, Sequence[Any]],
        options: Mapping[str, Any],
    ) -> tuple[list[list[str]], dict[str, float]]:
        """Return each problem's completions: all that a strategy finished, or its answer where it names none."""
        from posttrain_plugins.backends.markers import unknown_markers
        from posttrain_plugins.engine.saved_traces import TRACES, trace_lines
        from posttrain_plugins.engine.solve import sample, solve

        strategy = context.inputs.get("strategy")
        if strategy is None:  # plain draws, all problems and all completions in one go
            results = sample(problems, self.num_generations, **options)
            reasons = [why for result in results for why in failures_of(result)]
            asked = self.num_generations * len(results)
        else:
            for warning in unknown_markers(strategy.strategy, options["backend"]["policy"]):
                context.reporter.note(f"{strategy.label}: {warning}")
            results = solve(strategy.strategy, problems, scorers=strategy.scorers, columns=columns, **options)
            how = "a" if self.models else "w"  # `_of_several` has begun the file anew
            with (context.folder / TRACES).open(how, encoding="utf-8", errors="replace") as traces:
                traces.writelines(trace_lines(results, model=context.inputs["model"].name, measure=strategy.label))
            reasons = [why for result in results if (why := unanswered(result)) is not None]
            asked = len(results)
        found = [[candidate.text for candidate in result.candidates] for result in results]
        texts = [texts or ([one.text] if one.text else []) for texts, one in zip(found, results, strict=True)]
        return texts, self._missing("completions", asked, reasons, context)

    def _judged(
        self,
        context: StageContext,
        problems: list[Problem],
        columns: Mapping[str, Sequence[Any]],
        made: Sequence[Sequence[Any]],
        log: RequestLog,
    ) -> tuple[list[list[Judged]], dict[str, float]]:
        """Return each problem's completions with their scores, and how many scores are missing."""
        from posttrain_plugins.evaluation.bench import score_texts, unrated_texts

        rewards: list[ResolvedReward] = context.inputs["rewards"]
        texts = [[to_text(completion) for completion in of_problem] for of_problem in made]
        self._tell_unread(context, problems, texts)
        # one call a reward for all problems: a model that judges fills its batches, a guard its workers
        scores = [score_texts(reward, problems, columns, texts, log) for reward in rewards]
        missing: dict[str, float] = {}
        for reward in rewards:
            unrated = [why for row in unrated_texts(reward, problems, columns, texts, log) for why in row]
            missing |= self._missing(f"ratings/{reward.name}", sum(map(len, texts)), unrated, context)
        judged = [
            judge(made[i], problem.prompt, rewards, [of_reward[i] for of_reward in scores])
            for i, problem in enumerate(problems)
        ]
        return judged, missing

    def _missing(self, name: str, asked: int, reasons: Sequence[str], context: StageContext) -> dict[str, float]:
        """Tell what is missing, as a figure too; what did come may all be easy problems, so too much is refused."""
        missing = Missing(asked, tuple(reasons))
        if not missing.count:
            return {}
        context.reporter.note(f"{name}: {missing}")
        missing.check(name, self.max_missing)
        return {f"missing_{name}": float(missing.count)}

    def _tell_unread(self, context: StageContext, problems: Sequence[Problem], texts: Sequence[Sequence[str]]) -> None:
        """Say how many completions have no answer that can be read, where the first reward compares answers."""
        if not context.inputs["rewards"][0].is_oracle:
            return
        answers = [read(text, prompt=p.prompt) for p, row in zip(problems, texts, strict=True) for text in row]
        if None in answers:
            count = answers.count(None)
            context.reporter.note(f"{count} of {len(answers)} completions have no answer that can be read")

    def _kept(
        self,
        context: StageContext,
        problems: list[Problem],
        columns: Mapping[str, Sequence[Any]],
        judged: list[list[Judged]],
        options: Mapping[str, Any],
    ) -> list[list[dict[str, Any]]]:
        """Return for each problem the new columns of each row that is kept."""
        from posttrain_plugins.training_data.step_labels import StepLabels

        if self.keep != "steps":
            selection = self._selection(context.seed)
            return [selection.rows(of_problem, i) for i, of_problem in enumerate(judged)]
        assert self.threshold is not None
        labelling = StepLabels(
            context.inputs["rewards"][0],
            self.separator,
            self.threshold,
            self.num_rollouts,
            self.estimate,
            self.share_threshold,
            self.stop_at_first_error,
        )
        among = [distinct(of_problem) for of_problem in judged]  # before they are labelled, which costs rollouts
        if self.labels == "rules":
            labels = labelling.by_rules(problems, columns, among, options["log"])
        else:
            labels = labelling.by_rollouts(problems, columns, among, **options)
        # no label is no wrong step: such a completion is left out, and told of
        lost = sum(of_one is None for of_problem in labels for of_one in of_problem)
        if lost:
            why = "they are empty, or every rollout from one of their steps failed"
            if self.labels == "rules":
                name = context.inputs["rewards"][0].name
                why = f"reward '{name}' sees other steps in them than separator {self.separator!r} makes"
            context.reporter.note(f"{lost} of {sum(map(len, labels))} completions have no labels: {why}")
        rows = []
        for of_problem, items, found in zip(judged, among, labels, strict=True):
            known = {item.text: of_one for item, of_one in zip(items, found, strict=True)}
            # what is expected of a begun completion is a mean over draws, as with `all`
            drawn = judgeable(of_problem) if self.estimate == "share" and self.labels == "rollouts" else items
            found_of = [(item, of_one) for item in drawn if (of_one := known[item.text]) is not None]
            rows.append([labelling.row(item, of_one) for item, of_one in found_of])
        return rows

    def _selection(self, seed: int) -> Selection:
        return Selection(self.keep, self.top_k, self.threshold, self.max_pairs_per_prompt, seed)

    @contextmanager
    def _backends(self, context: StageContext) -> Iterator[dict[str, AnyBackend]]:
        """Load the model and those that the strategy names, each once; none where nothing is to be drawn."""
        from posttrain_plugins.backends.open import opened

        policy: ModelArtifact | None = context.inputs.get("model")
        needs_model = not self.is_offline or (self.keep == "steps" and self.labels == "rollouts")
        with ExitStack() as stack:
            backends: dict[str, AnyBackend] = {}
            if policy is not None and needs_model:
                backends["policy"] = stack.enter_context(opened(policy, self.engine, self.vllm))
            strategy = context.inputs.get("strategy")
            for role, artifact in strategy.models.items() if strategy else ():
                # a strategy may name the sampling model itself, as judge of its own drafts: it is loaded once
                is_policy = policy is not None and artifact.name == policy.name
                backends[role] = backends["policy"] if is_policy else stack.enter_context(opened(artifact))
            yield backends

    def _write(
        self,
        context: StageContext,
        rows: Sequence[Mapping[str, Any]],
        judged: list[list[Judged]],
        kept: list[list[dict[str, Any]]],
        missing: Mapping[str, float],
    ) -> StageResult:
        # the row's own columns go on, so that the next stage's rewards find theirs, but for texts that were judged here
        made = [without_texts(row) | part for row, parts in zip(rows, kept, strict=True) for part in parts]
        if not made:  # an empty data set would fail in the next stage, without a word of why
            raise StageFailed(
                f"stage {context.stage!r} kept nothing of {sum(map(len, judged))} completions",
                hint="lower threshold, raise num_generations, or look at log.jsonl for what the model writes"
                if self.threshold is not None
                else "raise num_generations, or look at log.jsonl for what the model writes",
            )
        # text as it is, not escaped: people read these files, and correct them
        path = context.folder / "data.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in made)
        return StageResult(metrics={**self._metrics(judged, made), **missing}, data_path=path)

    def _metrics(self, judged: list[list[Judged]], made: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        rewards = [item.reward for row in judged for item in row if item.reward is not None]
        is_right = self._selection(0).is_right  # right does not depend on the seed
        figures = {
            "problems": len(judged),
            "completions": sum(map(len, judged)),
            "mean_reward": sum(rewards) / max(len(rewards), 1),
            "rows": len(made),
            "solved_share": sum(any(map(is_right, row)) for row in judged) / max(len(judged), 1),
        }
        if self.keep == "unjudged":  # nobody has said what is right
            del figures["mean_reward"], figures["solved_share"]
        if self.keep == "steps":
            labels = [float(label) for row in made for label in row["labels"]]
            figures |= {"steps": len(labels), "right_steps_share": sum(labels) / max(len(labels), 1)}
        return {name: value for name, value in figures.items() if isfinite(value)}  # rewards may be infinite


def _no_steps(reward: str) -> Issue:
    found = f"reward {reward!r} cannot label steps: it has no step_scores"
    return Issue(found, "name another first, or labels: rollouts", "rewards")
