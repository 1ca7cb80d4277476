"""How `plan --masks` looks: what carries loss is coloured, and stands between marks where there is no colour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

__all__ = ["print_masks"]

OPEN, CLOSE = "⟦", "⟧"


def print_masks(console: Console, shown: Mapping[str, Mapping[str, Any]]) -> None:
    """A block for each stage."""
    console.print(Text.assemble("\nwhat carries loss: ", (f"{OPEN}this{CLOSE}", "bold green")))
    for stage, found in shown.items():
        console.print(Text(f"\n{stage}", style="bold"))
        for name, style in (("missing", "dim"), ("error", "red")):
            if name in found:
                console.print(Text(f"  {'not yet made: ' if name == 'missing' else ''}{found[name]}", style=style))
        for row in found.get("rows", ()):
            console.print(_line(row["part"], row["tokens"]))
        if found.get("is_drawn"):
            told = "the model writes the completions as it learns, and every token of theirs carries loss"
            console.print(Text(f"  {told}; these are random", style="dim"))
        for warning in found.get("warnings", ()):
            console.print(Text(f"  warning: {warning}", style="yellow"))


def _line(part: str, tokens: Sequence[tuple[str, bool]]) -> Text:
    line = Text(f"  {part + ': ' if part else ''}", style="")
    for is_learned, run in groupby(tokens, key=lambda token: token[1]):
        text = _visible(token for token, _ in run)
        line.append(f"{OPEN}{text}{CLOSE}" if is_learned else text, style="bold green" if is_learned else "dim")
    return line


def _visible(tokens: Iterable[str]) -> str:
    return "".join(tokens).replace("\n", "↵")
