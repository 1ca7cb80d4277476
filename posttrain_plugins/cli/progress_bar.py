"""Shows how far a strategy is: problems, completions, tokens per second, and the share of the budget that is spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from posttrain_plugins.engine.solve import Progress as ProgressCall

__all__ = ["figures_text", "progress_bar"]


@contextmanager
def progress_bar(console: Console) -> Iterator[ProgressCall]:
    """Show a bar while a strategy works, gone when it is done; nothing if the console is no terminal.

    Yields:
        The `progress` that `solve` takes.
    """
    columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[figures]}"))
    is_hidden = not console.is_terminal  # a bar in a log file is a line for every step
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=is_hidden) as bar:
        task = bar.add_task("loading", total=None, figures="")  # until the first call a model is being loaded

        def progress(done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
            description = f"{done}/{total or '?'} {unit}{'' if total == 1 else 's'}"
            bar.update(task, completed=done, total=total, description=description, figures=figures_text(figures))

        yield progress


def figures_text(figures: Mapping[str, float]) -> str:
    """Write figures as `64 completions, 512 tokens/s, 40 % of the budget`.

    Example:
        >>> figures_text({"completions": 64.0, "tokens_per_s": 512.4, "budget_spent": 0.4})
        '64 completions, 512 tokens/s, 40 % of the budget'
        >>> figures_text({"completions": 1.0, "tokens_per_s": 0.31})
        '1 completion, 0.3 tokens/s'
    """
    parts = []  # a reward that scores rows has none of these
    if "completions" in figures:
        count = int(figures["completions"])
        parts.append(f"{count} completion{'s' * (count != 1)}")
    if "tokens_per_s" in figures:
        # a large model on a CPU draws less than one in a second, which is slow and not 0
        parts.append(f"{figures['tokens_per_s']:.{0 if figures['tokens_per_s'] >= 10 else 1}f} tokens/s")
    if "budget_spent" in figures:
        parts.append(f"{100 * figures['budget_spent']:.0f} % of the budget")
    return ", ".join(parts)
