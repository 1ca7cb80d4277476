"""Knowledge distillation by `trl.DistillationTrainer`: the student learns from a teacher on its own completions.

Paper: on-policy distillation, Agarwal et al., 2023 (https://huggingface.co/papers/2306.13649). Learning from a
teacher's texts alone, as DeepSeek-R1's distilled models did, is `sample` with the teacher, then `sft`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.models.load import load_base, options_of
from posttrain_plugins.types import AdapterRef, ConfigOf, DataRef, ModelArtifact, ModelRef, StageContext, StageResult

__all__ = ["Distill"]


@dataclass
class Distill:
    """Brings the student close to the teacher, token by token.

    Args:
        model: what to start from.
        teacher: a model with the same vocabulary; it may be loaded in 4-bit.
        dataset: prompts; the student writes the completions.
        adapter: what is trainable; everything where it is left out.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        args: fields of `trl.DistillationConfig`.
    """

    model: ModelRef
    teacher: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl:DistillationConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    shares_tokenizer: ClassVar[tuple[str, ...]] = ("teacher",)  # its logits are compared token id by token id
    refuses: ClassVar[dict[str, str]] = {
        "is_prompt": "TRL's distillation passes its text to the layers directly, without the learned tokens before it"
    }
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("prompt",),))

    def __call__(self, context: StageContext) -> StageResult:
        from trl import DistillationConfig, DistillationTrainer

        from posttrain_plugins.trainers import training

        teacher: ModelArtifact = context.inputs["teacher"]
        # as the recipe loads its models; what `args` says goes before
        options = {**options_of(teacher.loading), **(self.args.get("teacher_model_init_kwargs") or {})}
        model: Any = teacher.path
        if (
            teacher.is_adapter
        ):  # TRL finds no architecture in its folder, and PEFT none of the adapters below the newest
            if self.args.get("teacher_model_revision"):
                options.setdefault("revision", self.args["teacher_model_revision"])
            model = load_base(model, with_newest=True, **options)
            options = {}  # TRL refuses them beside a model that is loaded
        args = {**self.args, "teacher_model_init_kwargs": options or None}
        return training.train(context, DistillationTrainer, DistillationConfig, args, teacher_model=model)
