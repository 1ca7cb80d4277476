"""The value head of a critic that shares the policy's body, as a PPO stage saves it beside the model. No paper.

A folder `critic/` holds `critic.json` (`{"kind": ...}`) and `value_head.safetensors` (`weight` (1, H), `bias` (1,)).
Only the kind `shared` reads the policy's own hidden states, which decoding has anyway.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_plugins.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["critic_beside", "load_value_head"]

FILE = "value_head.safetensors"


def critic_beside(model: str | Path) -> Path | None:
    """The `critic/` of a model's folder, where it shares the policy's body."""
    folder = Path(model) / "critic"
    return folder if (folder / FILE).is_file() and _kind(folder) == "shared" else None


def load_value_head(folder: str | Path, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The head as a function of hidden states, (R, H) to (R,), in float32.

    Args:
        folder: a `critic/` folder of kind `shared`.
        model: whose hidden states it reads.

    Raises:
        InputError: no such head, one of another kind, or one of another size.
    """
    import torch
    from safetensors.torch import load_file

    file = Path(folder) / FILE
    if not file.is_file():
        raise InputError(f"no value head: {file} is not there", hint="give the critic/ folder of a ppo stage's model")
    kind = _kind(Path(folder))
    if kind != "shared":
        raise InputError(
            f"the value head in {folder} is of kind {kind!r}, expected 'shared': it reads a body of its own",
            hint="let the reward plugin value_model judge: scorer={use: value_model, ...}",
        )
    head = load_file(file)
    size = model.config.get_text_config().hidden_size
    if head["weight"].shape != (1, size):
        found = tuple(head["weight"].shape)
        raise InputError(f"the value head in {folder} has shape {found}, expected {(1, size)}: is it another model's?")

    def values(hidden: torch.Tensor) -> torch.Tensor:
        weight, bias = (head[name].to(hidden.device, torch.float32) for name in ("weight", "bias"))
        return torch.nn.functional.linear(hidden.float(), weight, bias).squeeze(-1)

    return values


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / "critic.json").read_text(encoding="utf-8"))["kind"])
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise InputError(f"{folder / 'critic.json'} does not say the critic's kind: {cause}") from cause
