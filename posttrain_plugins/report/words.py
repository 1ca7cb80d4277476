"""Writes figures, intervals, times and sizes as people read them, the same on the terminal and on pages."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["count", "cut_lines", "duration", "figure", "verdict"]

HEAD_LINES = 80
TAIL_LINES = 20  # an answer stands at the end
MAX_LINE_CHARS = 2_000


def figure(value: Sequence[float] | float | None, sign: str = "") -> str:
    """Write a mean, or mean, low and high; nothing for what was not measured.

    Example:
        >>> figure((0.5124, 0.48, 0.544)), figure(0.1, "+"), figure(None)
        ('0.512 [0.480, 0.544]', '+0.100', '')
    """
    if not isinstance(value, Sequence):
        return "" if value is None else f"{value:{sign}.3f}"
    mean, low, high = (f"{part:{sign}.3f}" for part in value)
    return f"{mean} [{low}, {high}]"


def verdict(gain: Sequence[float]) -> str:
    """Say whether a difference is one: `better`, `worse`, or `no difference` where its interval holds 0.

    Example:
        >>> verdict((0.2, 0.1, 0.3)), verdict((-0.2, -0.3, -0.1)), verdict((0.0, -0.1, 0.1))
        ('better', 'worse', 'no difference')
    """
    return "better" if gain[1] > 0 else "worse" if gain[2] < 0 else "no difference"


def duration(seconds: float) -> str:
    """Write seconds as `0.4s`, `12s`, `3m 05s`, `2h 10m`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes = int(seconds // 60)
    return f"{minutes}m {int(seconds % 60):02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


def count(number: int, noun: str) -> str:
    """Write a number with its noun.

    Example:
        >>> count(1, "problem"), count(12000, "problem")
        ('1 problem', '12,000 problems')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def cut_lines(value: str) -> str:
    """Return a text with its middle left out, and told, where it has more lines than a page can lay out.

    A browser lays out a megabyte in a second, and half a million lines in ten, again at each change of the window.
    """
    lines = [line if len(line) <= MAX_LINE_CHARS else _cut_line(line) for line in value.split("\n")]
    if len(lines) > HEAD_LINES + TAIL_LINES:
        gone = len(lines) - HEAD_LINES - TAIL_LINES
        lines = [*lines[:HEAD_LINES], f"… {gone:,} lines left out …", *lines[-TAIL_LINES:]]
    return "\n".join(lines)


def _cut_line(line: str) -> str:
    half = MAX_LINE_CHARS // 2
    return f"{line[:half]} … {len(line) - 2 * half:,} characters left out … {line[-half:]}"
