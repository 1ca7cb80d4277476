"""Sizes as people write and read them, and the machine that a stage is to run on. No paper."""

from __future__ import annotations

import re

from posttrain_plugins.errors import InputError
from posttrain_plugins.memory_plan.estimate import ALONE, Machine
from posttrain_plugins.models.training_memory import Sharding
from posttrain_plugins.recipe.check.stage_validation import memory_bytes

__all__ = ["HERE", "machine", "parse_size", "shown"]

HERE = "here"
"""In place of a size: this machine's own."""
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt])(i?)b?\s*", re.IGNORECASE)
POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(text: str) -> int:
    """Return the bytes of a size: `80GB` (10^9), `79.6GiB` (2^30), `512 MB`.

    Raises:
        InputError: it is no size, or none of more than nothing.
    """
    found = SIZE.fullmatch(text)
    if found is None:
        raise InputError(f"'{text}' is no size of memory", hint=f"a number with its unit, 80GB or 79.6GiB; or {HERE}")
    number, unit, binary = found.groups()
    size = int(float(number) * (1024 if binary else 1000) ** POWERS[unit.lower()])
    if size == 0:
        raise InputError(f"'{text}' is no memory at all", hint=f"80GB, or {HERE} for this machine's")
    return size


def shown(size: int) -> str:
    """Return bytes with three digits: `1.25 GiB`."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    digits = 0 if value >= 99.95 or units[0] == "B" else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {units[0]}"


def machine(text: str, sharding: Sharding = ALONE) -> Machine:
    """Return the machine of `--memory`: a GPU of that size, or this machine for `here`.

    Raises:
        InputError: it is no size.
    """
    if text.strip().lower() != HERE:
        return Machine(parse_size(text), True, sharding)
    import torch

    return Machine(memory_bytes(), bool(torch.accelerator.is_available()), sharding)
