"""A process reward model on stepwise data (Lightman et al., 2023, https://huggingface.co/papers/2305.20050)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.text.steps import SEPARATOR, Aggregate
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

__all__ = ["PRM"]


@dataclass
class PRM:
    """Trains a model to tell at the end of each step whether the completion is right so far.

    The stage's name can stand wherever a reward can: in `rewards:` of another stage, and as a strategy's `scorer` of
    whole completions or of steps. Labels come from people, from a rule, or from rollouts (`sample` with `keep: steps`).
    With `eval_dataset`, accuracy and the share of wrong steps found are measured at the end.

    Args:
        model: what to start from, with a new head; or an earlier PRM without an adapter, with the head that it has.
        dataset: `prompt`, `completions` (steps) and `labels` (a bool or probability for each).
        adapter: what is trainable beside the head; everything where it is left out.
        eval_dataset: held-out rows.
        separator: what ends a step, here and where the model is used as a reward.
        aggregate: how the steps' probabilities become one reward: `min`, `prod`, `last` or `mean`.
        args: fields of `PRMConfig`, which are those of `trl.RewardConfig`.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    separator: str = SEPARATOR
    aggregate: Aggregate = "min"
    args: Annotated[dict[str, Any], ConfigOf("posttrain_plugins.trainers.prm:PRMConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "reward"
    refuses: ClassVar[dict[str, str]] = {
        "embeds": "the scores of the learned tokens would stand where those of the text are looked for"
    }
    reward_plugin: ClassVar[str] = "process_reward_model"  # what the stage's name stands for among rewards
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("dataset", "eval_dataset"), (("prompt", "completions", "labels"),)
    )

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield the first row that is no completion in steps with a probability for each."""
        yield from stage_rules.first_concern(facts.rows, stage_rules.step_label_concern)

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.trainers import training
        from posttrain_plugins.trainers.prm import PRMConfig, PRMTrainer

        # one separator for training and for use: a model that is asked at other places than it was trained at guesses
        args = {"step_separator": self.separator, **self.args}
        result = training.train(context, PRMTrainer, PRMConfig, args, task_type="TOKEN_CLS")
        result.handoff["reward"] = {"separator": self.separator, "aggregate": self.aggregate}
        return result
