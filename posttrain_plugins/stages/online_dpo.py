"""Online DPO by `trl.experimental.online_dpo.OnlineDPOTrainer`: pairs are drawn from the policy as it learns.

Paper: Guo et al., 2024 (https://huggingface.co/papers/2402.04792). Iterative DPO, in rounds, is `sample` and `dpo` in a
`repeat:` loop (recipe `iterative_dpo`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.types import AdapterRef, ConfigOf, DataRef, ModelRef, RewardRef, StageContext, StageResult

__all__ = ["OnlineDPO"]


@dataclass
class OnlineDPO:
    """Draws two completions of each prompt, lets the rewards say which is better, and takes a DPO step.

    Args:
        model: what to start from, and the reference.
        rewards: their weighted sum ranks the two.
        dataset: prompts, and the columns that the rewards need.
        adapter: what is trainable; everything where it is left out.
        eval_dataset: measured once at the end, or as `args.eval_strategy` says.
        args: fields of `trl.experimental.online_dpo.OnlineDPOConfig`.
    """

    model: ModelRef
    rewards: list[RewardRef]
    dataset: DataRef
    adapter: AdapterRef | None = None
    eval_dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl.experimental.online_dpo:OnlineDPOConfig")] = field(
        default_factory=dict
    )

    produces: ClassVar[str] = "model"
    refuses: ClassVar[dict[str, str]] = {
        "embeds": "TRL's trainer lays the logits beside the text, and those of the learned tokens come first"
    }
    reference: ClassVar[str] = "model"  # as of DPO, in every case
    requires_columns: ClassVar[dict[str, Any]] = dict.fromkeys(("dataset", "eval_dataset"), (("prompt",),))

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.trainers import training
        from posttrain_plugins.trainers.experimental import as_stable, load_experimental

        online_dpo = load_experimental("online_dpo")
        # experimental: asynchronous rewards, which it calls as if they were not, are waited for
        return training.train_with_rewards(
            context, as_stable(online_dpo.OnlineDPOTrainer), online_dpo.OnlineDPOConfig, self.args
        )
