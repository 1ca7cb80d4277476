"""A value model from saved trajectories, by our `ValueTrainer` (Wang et al., 2025).

Paper: https://huggingface.co/papers/2505.17373, section 3. It judges begun completions: for a search that it guides,
and for best of n.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.trainers import stage_rules
from posttrain_plugins.types import (
    AdapterRef,
    ConfigOf,
    DataRef,
    Issue,
    ModelRef,
    StageContext,
    StageFacts,
    StageResult,
)

__all__ = ["Value"]


@dataclass
class Value:
    """Learns from saved completions and their rewards what a begun completion is worth, at each of its tokens.

    The stage's name can stand wherever a reward can, such as the `scorer` of `value_guided_search` or `best_of_n`.
    Explained variance and calibration on held-out prompts are its figures.

    Args:
        model: what to start from, with a new head, best the policy that wrote the completions; or an earlier value
            model without an adapter, such as that of the policy before, with the head that it has.
        dataset: `prompt`, `completion` and `reward` (a number), or `label` (a bool); `sample` with `keep: all` makes
            it, best of one policy: a state is worth what the policy makes of it. Rows longer than `args.max_length`
            are left out. Or `prompt`, `completions` (steps) and `labels` (what is expected behind each), which `sample`
            makes with `keep: steps`, `labels: rollouts` and `estimate: share`: the share of rollouts that are right.
        adapter: what is trainable beside the head; everything where it is left out.
        eval_dataset: held-out trajectories, best whole ones; by default `args.held_out` of the prompts are set aside.
        separator: what ends a step, where the rows are steps.
        args: fields of `ValueConfig`, which are those of `trl.RewardConfig` and more.

    Raises:
        InputError: all rewards are equal.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    separator: str = SEPARATOR
    args: Annotated[dict[str, Any], ConfigOf("posttrain_plugins.trainers.value:ValueConfig")] = field(
        default_factory=dict
    )

    produces: ClassVar[str] = "reward"
    refuses: ClassVar[dict[str, str]] = {
        "embeds": "the values of the learned tokens would stand where those of the text are looked for"
    }
    reward_plugin: ClassVar[str] = "value_model"  # what the stage's name stands for among rewards
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("dataset", "eval_dataset"),
        (("prompt", "completion", "reward"), ("prompt", "completion", "label"), ("prompt", "completions", "labels")),
    )

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield settings that cannot be used, and the first row that is no trajectory."""
        yield from stage_rules.value_concerns(facts.args, stage_rules.in_steps(facts.columns or ()))
        yield from stage_rules.first_concern(facts.rows, stage_rules.state_concern)
        if facts.has_all_rows:
            yield from stage_rules.equal_reward_concerns(facts.rows)

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.models.folder import template_options
        from posttrain_plugins.trainers import training
        from posttrain_plugins.trainers.value import ValueConfig, ValueTrainer, split_prompts

        # one separator for training and for use, as of a process reward model
        inputs, args = dict(context.inputs), {"step_separator": self.separator, **self.args}
        if options := template_options(inputs["model"].path):
            args = {"chat_template_kwargs": options, **args}
        if not context.preview:
            share = args.get("held_out", ValueConfig.held_out)
            if inputs.get("eval_dataset") is None:
                inputs["dataset"], inputs["eval_dataset"] = split_prompts(inputs["dataset"], share)
                if inputs["eval_dataset"] is None and share:
                    context.reporter.note("too few prompts to set some aside: no value is measured or calibrated")
            for issue in stage_rules.equal_reward_concerns(inputs["dataset"]):
                raise InputError(f"stage '{context.stage}': {issue.message}", hint=issue.hint)
        return training.train(replace(context, inputs=inputs), ValueTrainer, ValueConfig, args, task_type="TOKEN_CLS")
