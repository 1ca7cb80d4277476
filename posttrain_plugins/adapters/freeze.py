"""Full fine-tuning with a part of the model frozen: chosen layers, or parameters by their names. No paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError

__all__ = ["Freeze"]

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d+)\.")
HEADS = re.compile(r"(?:^|\.)(?:score|classifier)\.")


@dataclass
class Freeze:
    """Train all of a model but what is named; TRL gets no PEFT config.

    The new head of a classifier (`reward`, `prm`, `ranking`) is always trained, unless `frozen_parameters` names it. A
    parameter that stands in two places, as tied embeddings do, has one name, the first. The critic of `ppo` and `oreo`
    is always trained.

    Args:
        frozen_layers: how many layers to freeze from the first on, or which: a list of indices, -1 for the last.
        frozen_parameters: regular expressions, searched in parameter names.
        trainable_parameters: regular expressions; what none of them finds is frozen. By default everything is trained.

    Example:
        >>> Freeze(frozen_layers=12, frozen_parameters=["embed_tokens"]).frozen_layers
        12
    """

    frozen_layers: int | list[int] = 0
    frozen_parameters: list[str] = field(default_factory=list)
    trainable_parameters: list[str] = field(default_factory=list)

    is_full: ClassVar[bool] = True
    example_params: ClassVar[dict[str, Any]] = {"frozen_layers": 1}

    def __post_init__(self) -> None:
        # checked as the recipe is read: the model, against which the patterns are held, is loaded much later
        for name in ("frozen_parameters", "trainable_parameters"):
            for pattern in getattr(self, name):
                try:
                    re.compile(pattern)
                except re.error as cause:
                    raise InputError(f"{name}: '{pattern}' is no regular expression: {cause}") from cause
        if not (self.frozen_layers or self.frozen_parameters or self.trainable_parameters):
            raise InputError("freeze: nothing is frozen", hint="set frozen_layers or frozen_parameters, or use: full")

    def __call__(self) -> Freeze:
        """Return itself: what a stage is given in place of a PEFT config."""
        return self

    def prepare(self, trainer: Any) -> dict[str, int]:
        """Freeze parts of a trainer's model before it trains.

        Args:
            trainer: one that trains all parameters.

        Returns:
            How many parameters are `frozen` and `trainable`, for the record; a critic's are in neither.

        Raises:
            InputError: a pattern finds no parameter, there is no such layer, or nothing is left to train.
        """
        # PPO's critic may be a module of the very model that the policy is
        critic = getattr(trainer, "critic", None)
        owned = critic.owns if critic is not None else lambda name: False
        parameters = {name: p for name, p in trainer.model.named_parameters() if not owned(name)}
        frozen = self.frozen(list(parameters))
        # `requires_grad` counts too: quantized weights cannot learn, whatever the patterns say
        trainable = [p for name, p in parameters.items() if p.requires_grad and name not in frozen]
        if not trainable:
            raise InputError("freeze: no parameter is left to train", hint="freeze fewer layers or parameters")
        # after all checks: a refused stage leaves the model as it was
        for name in frozen:
            parameters[name].requires_grad_(False)
        return {
            "frozen": sum(parameters[name].numel() for name in frozen),
            "trainable": sum(p.numel() for p in trainable),
        }

    def frozen(self, names: Sequence[str]) -> set[str]:
        """Return the names among a model's parameters that are frozen."""
        layers = self._layers(names)
        chosen = {n for n in names if (found := LAYER.search(n)) is not None and int(found[1]) in layers}
        chosen |= set().union(*(_found(pattern, names) for pattern in self.frozen_parameters))
        # a head that the stage put on the model starts at random: frozen, it would never be anything else
        heads = {n for n in names if HEADS.search(n)} - chosen
        if self.trainable_parameters:
            kept = set().union(*(_found(pattern, names) for pattern in self.trainable_parameters))
            chosen |= set(names) - kept - heads
        return chosen

    def _layers(self, names: Sequence[str]) -> set[int]:
        if not self.frozen_layers:
            return set()
        count = 1 + max((int(found[1]) for n in names if (found := LAYER.search(n)) is not None), default=-1)
        wanted = range(self.frozen_layers) if isinstance(self.frozen_layers, int) else self.frozen_layers
        # refused and not clipped: a recipe written for a deeper model would train layers that it means to keep
        for index in wanted:
            if not -count <= index < count:
                raise InputError(f"freeze: frozen_layers has {index}, but the model has {count} layers")
        return {index % count for index in wanted}


def _found(pattern: str, names: Sequence[str]) -> set[str]:
    """Return the parameters that a pattern finds; one that finds none is a mistake, as names differ between models."""
    found = {name for name in names if re.search(pattern, name)}
    if not found:
        hint = f"names are like {', '.join(list(names)[:3])}"
        raise InputError(f"freeze: no parameter of the model fits '{pattern}'", hint=hint)
    return found
