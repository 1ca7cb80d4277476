"""Prints what `plan --masks` shows: what carries loss is coloured, and between marks for those who see no colour."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

__all__ = ["print_masks"]

OPEN, CLOSE = "⟦", "⟧"  # no model writes these by chance, as it does brackets of every other form


def print_masks(console: Console, masks: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a block for each stage.

    Args:
        console: where to.
        masks: what `api.masks` returns.
    """
    console.print(Text.assemble("\nwhat carries loss: ", (f"{OPEN}this{CLOSE}", "bold green")))
    for stage, found in masks.items():
        console.print(Text(f"\n{stage}", style="bold"))
        for name, style in (("missing", "dim"), ("error", "red")):
            if name in found:
                console.print(Text(f"  {'not yet made: ' if name == 'missing' else ''}{found[name]}", style=style))
        for row in found.get("rows", ()):
            line = Text(f"  {row['part'] + ': ' if row['part'] else ''}")
            # runs of tokens and not single ones: a mark around each would hide the words
            for is_learned, run in groupby(row["tokens"], key=lambda token: token[1]):
                text = "".join(token for token, _ in run).replace("\n", "↵")
                shown = f"{OPEN}{text}{CLOSE}" if is_learned else text
                line.append(shown, style="bold green" if is_learned else "dim")
            console.print(line)
        if found.get("is_drawn"):
            note = "the model writes the completions as it learns, and every token of theirs carries loss"
            console.print(Text(f"  {note}; these are random", style="dim"))
        for warning in found.get("warnings", ()):
            console.print(Text(f"  warning: {warning}", style="yellow"))
