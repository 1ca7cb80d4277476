"""What each trainer holds in a step: rows, loss, reference, rollouts; read off TRL 1.16's and our own code. No paper.

| trainer                  | rows of a pass | head                                                             |
|--------------------------|----------------|------------------------------------------------------------------|
| SFT, KTO                 | B              | fused: a tile of the logits                                       |
| DPO                      | 2B             | fused                                                             |
| GRPO, RLOO, PPO          | B              | fused; a rollout has B `steps_per_generation`                     |
| reward, ranking          | 2B             | a number a row                                                    |
| PRM                      | B              | a number a token                                                  |
| CPO, ORPO, online DPO    | 2B             | all logits                                                        |
| OREO                     | B              | all logits, their logarithms twice, beside a critic               |
| any other                | B              | all logits                                                        |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from posttrain_plugins.plugins.schema import Options
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.spec import StageSpec

__all__ = ["Method", "method_of", "options_of_stage", "processes_of", "trains"]


@dataclass(frozen=True)
class Method:
    """How a trainer goes over its rows.

    Args:
        head: `fused`, `plain` (all logits), `score` (a number a row or token) or `kl` (the whole vocabulary, twice).
        task: PEFT's task type.
        rows_per_item: rows of a pass for each of `per_device_train_batch_size`.
        has_rollouts: does it sample?
        has_critic: may it have one?
        is_known: False for a trainer that is not in the table.
    """

    head: Literal["fused", "plain", "score", "kl"] = "plain"
    task: str = "CAUSAL_LM"
    rows_per_item: int = 1
    has_rollouts: bool = False
    has_critic: bool = False
    is_known: bool = True


METHODS: Mapping[str, Method] = {
    "SFTConfig": Method("fused"),
    "KTOConfig": Method("fused"),
    "DPOConfig": Method("fused", rows_per_item=2),
    "GRPOConfig": Method("fused", has_rollouts=True),
    "RLOOConfig": Method("fused", has_rollouts=True),
    "PPOConfig": Method("fused", has_rollouts=True, has_critic=True),
    "RewardConfig": Method("score", "SEQ_CLS", 2),
    "RankingConfig": Method("score", "SEQ_CLS", 2),
    "PRMConfig": Method("score", "TOKEN_CLS"),
    "ValueConfig": Method("score", "TOKEN_CLS"),
    "CPOConfig": Method("plain", rows_per_item=2),
    "ORPOConfig": Method("plain", rows_per_item=2),
    "OnlineDPOConfig": Method("plain", rows_per_item=2, has_rollouts=True),
    "OREOConfig": Method("kl", has_critic=True),
}
"""Config class -> how its trainer goes over rows."""


def trains(spec: StageSpec) -> bool:
    """Tell whether a stage has a trainer's config; `export` has one of how a model is packed."""
    return bool(spec.configs) and spec.produces in ("model", "reward") and "args" in spec.configs


def processes_of(spec: StageSpec) -> int:
    """Return how many processes train a stage together."""
    return 1 if spec.launch is None else spec.launch.num_processes


def method_of(spec: StageSpec) -> Method:
    """Return how a stage's trainer goes over its rows, by the config class that it names."""
    # by the class's name, not by the stage's: a stranger's stage that wraps the same trainer is the same
    target = next(iter(spec.configs.values()))
    return METHODS.get(target.partition(":")[2], Method(is_known=False))


def options_of_stage(spec: StageSpec) -> Mapping[str, Any]:
    """Return what the trainer's config will hold, as far as its source tells."""
    name, target = next(iter(spec.configs.items()))
    return Options(of_config(target).fields, spec.params.get(name) or {})
