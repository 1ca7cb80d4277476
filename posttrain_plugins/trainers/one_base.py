"""GRPO and RLOO whose reward models are adapters on the policy's own base, which is then once in memory. No paper.

All else is TRL's. The scores are those of the reward model by itself, up to rounding: the base's products are computed
once with the policy's layers, and rows are batched by length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl import GRPOTrainer, RLOOTrainer

from posttrain_plugins.trainers.ppo.shared_reward import WithSharedRewards, could_share
from posttrain_plugins.types import ResolvedReward

__all__ = ["OneBaseGRPOTrainer", "OneBaseRLOOTrainer", "on_one_base"]


class OneBaseGRPOTrainer(WithSharedRewards, GRPOTrainer):  # type: ignore[misc]
    """`trl.GRPOTrainer`, its reward models beside the policy's adapter where they are adapters on its base."""


class OneBaseRLOOTrainer(WithSharedRewards, RLOOTrainer):  # type: ignore[misc]
    """`trl.RLOOTrainer`, its reward models beside the policy's adapter where they are adapters on its base."""


ON_ONE_BASE = {GRPOTrainer: OneBaseGRPOTrainer, RLOOTrainer: OneBaseRLOOTrainer}


def on_one_base(trainer_class: Any, rewards: Sequence[ResolvedReward]) -> Any:
    """Return TRL's own class, or with a reward model that is an adapter the one that shares the base with it.

    Args:
        trainer_class: `GRPOTrainer` or `RLOOTrainer`.
        rewards: of the stage.
    """
    return ON_ONE_BASE[trainer_class] if could_share([reward.func for reward in rewards]) else trainer_class
