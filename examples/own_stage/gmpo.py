"""GMPO as a stage: `trl.experimental.gmpo.GMPOTrainer`, which posttrain-plugins does not wrap.

Paper: Geometric-Mean Policy Optimization, Zhao et al., 2025 (https://huggingface.co/papers/2507.20673).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.types import AdapterRef, ConfigOf, DataRef, ModelRef, RewardRef, StageContext, StageResult


@dataclass
class GMPO:
    """Raises the reward of sampled completions, by the geometric mean of a completion's importance ratios.

    Args:
        model: the policy to start from; also the reference where `args.beta` is not 0.
        dataset: `prompt`, and the columns that the rewards need.
        rewards: what is raised, each by its `weight`.
        adapter: what is trainable; everything where it is left out.
        args: fields of `trl.experimental.gmpo.GMPOConfig`.
    """

    # Annotated fields are the edges of the plan: each is resolved before the stage runs, and is a part of its key.
    model: ModelRef
    dataset: DataRef
    rewards: list[RewardRef]
    adapter: AdapterRef | None = None
    # Options are checked against that class's source before anything is loaded, and its docstrings complete in editors.
    args: Annotated[dict[str, Any], ConfigOf("trl.experimental.gmpo:GMPOConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    reference: ClassVar[str] = "beta"  # not 0: the model with its adapter off is what the policy is held to
    requires_columns: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {"dataset": (("prompt",),)}

    def __call__(self, context: StageContext) -> StageResult:
        # what is heavy is imported here, so that `posttrain validate` and `plan` stay light
        from posttrain_plugins.trainers.experimental import load_experimental
        from posttrain_plugins.trainers.training import train_with_rewards

        gmpo = load_experimental("gmpo")
        return train_with_rewards(context, gmpo.GMPOTrainer, gmpo.GMPOConfig, self.args)
