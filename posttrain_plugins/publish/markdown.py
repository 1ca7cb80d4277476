"""Texts that somebody else wrote, put into Markdown so that they stay text. No paper."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["fenced", "plain", "table"]

SIGNS = re.compile(r"[\\`*\[\]<>|!#~&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=:)/(?=/)|(?<=www)\.")
"""What may begin something in Markdown within a line: emphasis, links, addresses, HTML, math, cells of a table."""


def plain(text: Any) -> str:
    r"""Return one line in which no sign of Markdown or HTML means anything.

    Example:
        >>> plain("a | ![x](y)\n<script>")
        'a \\| \\!\\[x\\](y) \\<script\\>'
    """
    line = " ".join(str(text).encode("utf-8", "replace").decode().split())
    return SIGNS.sub(lambda found: f"\\{found[0]}", line)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a table, with an empty line before and after; none where there is no row."""
    lines = [f"| {' | '.join(map(plain, row))} |" for row in rows]
    return ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines, ""] if lines else []


def fenced(text: str, language: str = "") -> list[str]:
    """Return the lines of a code block, its fence longer than any within."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", *text.split("\n"), fence]
