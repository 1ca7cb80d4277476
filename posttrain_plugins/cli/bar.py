"""How far a strategy is: problems, completions, tokens per second, and how much of the budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["figures_text", "solving"]

Tell: TypeAlias = Callable[[int, int | None, str, Mapping[str, float]], None]


@contextmanager
def solving(console: Console) -> Iterator[Tell]:
    """A bar while a strategy works, gone when it is done; nothing where nobody looks.

    Yields:
        What `solve` takes as `progress`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("loading", total=None, told="")

        def tell(done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
            many = "" if total == 1 else "s"
            bar.update(
                task,
                completed=done,
                total=total,
                description=f"{done}/{total or '?'} {unit}{many}",
                told=figures_text(figures),
            )

        yield tell


def figures_text(figures: Mapping[str, float]) -> str:
    """`64 completions, 512 tokens/s, 40 % of the budget`.

    Example:
        >>> figures_text({"completions": 64.0, "tokens_per_s": 512.4, "budget_spent": 0.4})
        '64 completions, 512 tokens/s, 40 % of the budget'
    """
    parts = []
    if "completions" in figures:
        parts.append(f"{figures['completions']:.0f} completions")
    if "tokens_per_s" in figures:
        parts.append(f"{figures['tokens_per_s']:.0f} tokens/s")
    if "budget_spent" in figures:
        parts.append(f"{100 * figures['budget_spent']:.0f} % of the budget")
    return ", ".join(parts)
