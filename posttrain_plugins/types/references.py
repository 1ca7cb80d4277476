"""What a stage's field refers to: annotations that make a field an edge of the plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

__all__ = [
    "AdapterMode",
    "AdapterRef",
    "ConfigOf",
    "CriticRef",
    "DataRef",
    "ModelRef",
    "ObjectRef",
    "Ref",
    "RewardRef",
    "StrategyRef",
    "ToolRef",
    "server_of",
]

AdapterMode: TypeAlias = Literal["continue", "stack", "merge"]
"""How a training stage goes on from a model that is an adapter (`stack.choose_mode`)."""


@dataclass(frozen=True)
class Ref:
    """Marks a stage's or strategy's field as a reference, an edge of the plan.

    Args:
        kind: what the field names.
    """

    kind: Literal["model", "dataset", "reward", "adapter", "critic", "strategy", "tool", "object"]


@dataclass(frozen=True)
class ConfigOf:
    """Marks a mapping that goes untouched to a config class, such as `ConfigOf("trl:SFTConfig")`.

    Args:
        target: the class, `package.module:name`.
    """

    target: str  # as text, so that annotating a field imports neither trl nor torch


# To Python they are plain strings and `args` a plain dict: a stage is an ordinary dataclass, which a script can make
# and call without any recipe. Only the recipe's check looks at the annotation.
ModelRef: TypeAlias = Annotated[str, Ref("model")]

DataRef: TypeAlias = Annotated[str, Ref("dataset")]

RewardRef: TypeAlias = Annotated[str, Ref("reward")]

AdapterRef: TypeAlias = Annotated[str, Ref("adapter")]

CriticRef: TypeAlias = Annotated[str | dict[str, Any], Ref("critic")]
"""An adapter; or `{kind: ..., from: ...}`, where `from` is a stage or a folder whose values a critic starts with."""

StrategyRef: TypeAlias = Annotated[str, Ref("strategy")]

ToolRef: TypeAlias = Annotated[str, Ref("tool")]

ObjectRef: TypeAlias = Annotated[str, Ref("object")]
"""`package.module:attr`, `./file.py:attr`, or a file or folder beside the recipe."""


def server_of(model: str) -> tuple[str, str] | None:
    """Split the URL of a served model into the server's address and the model's name there, empty if none is named.

    Returns:
        None for a folder, a Hub id or any other name.

    Example:
        >>> server_of("http://host:8000/v1#qwen")
        ('http://host:8000/v1', 'qwen')
    """
    if not model.startswith(("http://", "https://")):
        return None
    address, _, name = model.partition("#")
    return address, name
