"""Supervised fine-tuning by `trl.SFTTrainer`: likelihood of demonstrations.

Paper: Ouyang et al., 2022 (https://huggingface.co/papers/2203.02155). With TRL alone: `examples/plain_trl/sft.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.trainers import stage_rules, tool_rules
from posttrain_plugins.types import (
    AdapterRef,
    ConfigOf,
    DataRef,
    Issue,
    ModelRef,
    StageContext,
    StageFacts,
    StageResult,
    ToolRef,
)

__all__ = ["SFT"]


@dataclass
class SFT:
    """Fine-tunes a model on demonstrations.

    Args:
        model: what to start from.
        dataset: `messages`, `prompt` + `completion`, or `text`.
        adapter: what is trainable; everything where it is left out.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        kl_coef: price of a nat of KL per token from the model that it starts from, exact over the vocabulary, so that
            less of what that model knew is forgotten; 0 is TRL's own loss, above it each batch is read three times.
        tools: their schemas are shown in every row, as in stages that call them; the rows may hold calls and answers.
            `args.assistant_only_loss` is then true unless the recipe says otherwise.
        args: fields of `trl.SFTConfig`.

    Raises:
        InputError: `kl_coef` is below 0.
    """

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    kl_coef: float = 0.0
    tools: list[ToolRef] = field(default_factory=list)
    args: Annotated[dict[str, Any], ConfigOf("trl:SFTConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"  # so its name may stand wherever a recipe names a model
    # groups of columns, of which one has to be there: TRL's three forms of demonstrations
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(
        ("dataset", "eval_dataset"), (("messages",), ("prompt", "completion"), ("text",))
    )

    def __post_init__(self) -> None:
        if not 0 <= self.kl_coef < float("inf"):
            raise InputError(f"sft cannot use kl_coef: {self.kl_coef}, expected 0 or more", hint="kl_coef: 0.1")

    def issues(self, facts: StageFacts) -> Iterator[Issue]:
        """Yield why the assistant's turns cannot be told from the others, or warn that all turns are learned."""
        yield from stage_rules.mask_concerns(self._args, facts)
        yield from tool_rules.learned_answers(self._args, facts)
        if self.tools:
            yield from tool_rules.schema_concerns(facts)
        if self.tools or any(map(tool_rules.calls_tools, facts.rows)):
            yield from tool_rules.template_concern(facts, "tools" if self.tools else "dataset")

    def __call__(self, context: StageContext) -> StageResult:
        from trl import SFTConfig, SFTTrainer  # here, as in every stage: `validate` and `plan` import this module

        from posttrain_plugins.trainers import tool_use, training

        tools = context.inputs.get("tools") or []
        sets = {name: context.inputs.get(name) for name in ("dataset", "eval_dataset")}
        shown = {name: tool_use.with_schemas(rows, tools) for name, rows in sets.items()}
        context = replace(context, inputs={**context.inputs, **shown})
        if not self.kl_coef:
            return training.train(context, SFTTrainer, SFTConfig, self._args)
        from posttrain_plugins.trainers.held_sft import HeldSFTTrainer

        return training.train(context, HeldSFTTrainer, SFTConfig, self._args, kl_coef=self.kl_coef)

    @property
    def _args(self) -> dict[str, Any]:
        """What TRL is given: with tools, what they answered is not learned."""
        return {"assistant_only_loss": True, **self.args} if self.tools else self.args
