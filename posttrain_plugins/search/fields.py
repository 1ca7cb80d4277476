"""Check the fields of a strategy when it is made, before anything is drawn."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from posttrain_plugins.errors import InputError

__all__ = ["check_fields", "refuse_field"]


def check_fields(name: str, plugin: Any, *counts: str) -> None:
    """Raise where a field holds a word that its `Literal` lacks, or a number that does not fit.

    Counts are at least one, a separator is not empty, and where there is an `n`, `beam_width` divides it.

    Args:
        name: of the plugin.
        plugin: the strategy, a dataclass.
        counts: its fields that are counts of at least one; None in one of them is "no limit".

    Raises:
        InputError: for the first of them.
    """
    hints = get_type_hints(type(plugin))
    for field in fields(plugin):
        value, hint = getattr(plugin, field.name), hints[field.name]
        if get_origin(hint) is Literal and value not in get_args(hint):
            refuse_field(name, field.name, value, " or ".join(map(repr, get_args(hint))))
        if field.name in counts and value is not None and value < 1:
            refuse_field(name, field.name, value, "at least 1")
        if field.name == "separator" and not value:  # `str.split` raises on it, in the middle of a run
            refuse_field(name, field.name, value, "what ends a step")
    given = vars(plugin)
    n, beam_width = given.get("n", 0), given.get("beam_width", 1)
    if n % beam_width:  # n / beam_width beams are kept: a fraction of one would be draws that nobody counts
        refuse_field(name, "beam_width", beam_width, f"a divisor of n ({n})")


def refuse_field(name: str, field: str, value: Any, expected: str) -> NoReturn:
    """Raise the error of a field that cannot be used."""
    raise InputError(f"{name} cannot use {field}: {value!r}, expected {expected}", hint=f"change {field}")
