"""What `critic.json` in a folder `critic/` says, read without torch: for plans, and for whoever loads one. No paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.types import CriticKind

__all__ = ["SAYS", "has_critic", "kind_said", "said_of_critic"]

SAYS = "critic.json"
KINDS: dict[str, CriticKind] = {"adapter": "adapter", "shared": "shared", "separate": "separate"}


def has_critic(model: str | Path) -> bool:
    """Tell whether a critic was saved beside a model."""
    return (Path(model) / "critic" / SAYS).is_file()


def said_of_critic(folder: Path) -> dict[str, Any]:
    """Return all that a folder `critic/` says; empty where there is none."""
    file = folder / SAYS
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def kind_said(folder: Path) -> CriticKind:
    """Return the kind of the critic in a folder `critic/`.

    Raises:
        InputError: `critic.json` does not say it, as of a folder of before it was written, or of another program.
    """
    try:
        return KINDS[said_of_critic(folder)["kind"]]
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise InputError(f"{folder / SAYS} does not say the critic's kind: {cause}") from cause
