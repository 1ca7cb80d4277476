"""How the logits of a value head become values, kept beside the model as `value_head.json`.

| loss         | logits | share of the way from `low` to `high`                        |
|--------------|--------|--------------------------------------------------------------|
| `regression` | 1      | slope * logit + intercept                                    |
| `binary`     | 1      | sigmoid(slope * logit + intercept)                           |
| `two_hot`    | K      | sigmoid(slope * logit(mean of the classes) + intercept)      |

Slope and intercept are the calibration, 1 and 0 where there is none. Papers: classes in place of regression,
Farebrother et al., 2024 (https://huggingface.co/papers/2403.03950), section 3.1 for two-hot; a classifier of whether a
begun completion will be right, Wang et al., 2025 (https://huggingface.co/papers/2505.17373); the sigmoid behind a
classifier, Platt, 1999, as in Guo et al., 2017 (https://huggingface.co/papers/1706.04599), section 4.

1. The classes of `two_hot` are `num_labels` points at equal distances from `low` to `high`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from posttrain_plugins.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FILE", "ValueForm", "ValueLoss", "form_in"]

FILE = "value_head.json"

ValueLoss: TypeAlias = Literal["regression", "binary", "two_hot"]

EDGE = 1e-4
"""The least distance of a share from 0 and from 1 where its log-odds are taken."""


@dataclass(frozen=True)
class ValueForm:
    """What the logits of a value head mean.

    Args:
        loss: what it was trained with, and so how logits are read.
        low: the least value.
        high: the largest value; `regression` may go beyond both.
        num_labels: logits of a state.
        slope: of the calibration.
        intercept: of the calibration.

    Example:
        >>> import torch
        >>> ValueForm("binary", low=0.0, high=10.0).values(torch.tensor([[0.0]]))
        tensor([5.])
    """

    loss: ValueLoss = "regression"
    low: float = 0.0
    high: float = 1.0
    num_labels: int = 1
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def span(self) -> float:
        """The distance from `low` to `high`."""
        return self.high - self.low

    def values(self, logits: Tensor) -> Tensor:
        """Map logits (..., K) to values (...)."""
        return self.low + self.span * self.calibrated(self.raw(logits))

    def raw(self, logits: Tensor) -> Tensor:
        """Map logits (..., K) to what the calibration is fitted on, (...): the logit, or log-odds of a mean class."""
        import torch

        if self.loss != "two_hot":
            return logits.squeeze(-1)
        # a line through shares could leave [0, 1], so it is laid through their log-odds
        points = torch.linspace(0.0, 1.0, self.num_labels, device=logits.device, dtype=logits.dtype)
        return torch.logit(logits.softmax(-1) @ points, eps=EDGE)

    def calibrated(self, raw: Tensor) -> Tensor:
        """Map what `raw` gives to shares of the way from `low` to `high`."""
        # what regression gives has no bounds to keep
        moved = self.slope * raw + self.intercept
        return moved if self.loss == "regression" else moved.sigmoid()

    def share(self, values: Tensor) -> Tensor:
        """Map values to shares of the way from `low` to `high`."""
        return (values - self.low) / self.span

    def write(self, folder: Path) -> None:
        """Write `value_head.json`."""
        (folder / FILE).write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")


def form_in(folder: str | Path) -> ValueForm | None:
    """Return the form of a value model's head; None for any other model.

    Raises:
        InputError: the file does not say it.
    """
    file = Path(folder) / FILE
    # PPO's critic and a reward model have a head whose logit is the value
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return ValueForm(**found)
    except (OSError, ValueError, TypeError) as cause:
        raise InputError(f"{file} does not say how values are read: {cause}") from cause
