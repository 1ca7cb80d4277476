"""Arguments of a training that takes a second on the tiny model, and its reward: of PPO's tests and its like."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "bf16": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "report_to": [],
    "seed": 3,
}
"""Of any trainer that samples; each test file adds its own."""


def digits(completions: list[Any], **columns: Any) -> list[float]:
    """Reward the share of digits: something that a random model can learn to write more of."""
    return [sum(x.isdigit() for x in c[0]["content"]) / 8 for c in completions]
