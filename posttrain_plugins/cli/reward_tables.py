"""Tables of `posttrain rewards`: what a reward said of odd and of saved completions, and how two rewards compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain_plugins.auditing.audit import Audit
from posttrain_plugins.auditing.trial import TriedCompletion
from posttrain_plugins.evaluation.figures import Interval

__all__ = ["audit_table", "replay_table", "trial_table"]

SHOWN_CHARS = 60  # of a completion; the beginning tells which it is, the length the rest


def trial_table(rows: Sequence[TriedCompletion], title: str, is_compared: bool = True) -> Table:
    """Return a row a completion; what is wrong stands last, in red.

    Args:
        rows: what was tried.
        title: above the table.
        is_compared: False if there was nothing to compare the scores with, which the caption then says.
    """
    table = _titled(title)
    has_names = any(tried.name for tried in rows)
    for name in ("what", "completion") if has_names else ("completion",):
        table.add_column(name, overflow="fold")
    for name in ("score", "expected", "ms"):
        table.add_column(name, justify="right")
    table.add_column("")
    for tried in rows:
        lead = [tried.name] if has_names else []
        words = ": ".join(filter(None, (tried.problem or "ok", tried.note)))
        verdict = Text(words, style="red" if tried.problem else "green")
        expected = "-" if tried.expected is None else _number(tried.expected)
        # as Python writes it: control characters must not reach the terminal, and half of these texts are blank
        text = repr(tried.completion)[1:-1]
        if len(text) > SHOWN_CHARS:
            text = f"{text[: SHOWN_CHARS - 24]} ... ({len(tried.completion)} characters)"
        table.add_row(*lead, Text(text), _number(tried.score), expected, f"{1000 * tried.seconds:.1f}", verdict)
    fine = f"{sum(not tried.problem for tried in rows)} of {len(rows)}"
    unasked = f"{fine} raise nothing; no examples: only that nothing raises was checked"
    table.caption = f"{fine} as they should be" if is_compared else unasked
    return table


def replay_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row a stage and reward."""
    table = _titled("saved completions, scored again")
    table.add_column("rollouts")
    table.add_column("reward")
    for name in ("completions", "judged", "mean", "mean as saved", "changed"):
        table.add_column(name, justify="right")
    for row in rows:  # the last two are empty for a reward that the run did not have
        changed = "" if row["changed"] is None else str(row["changed"])
        counts = (str(row["completions"]), str(row["judged"]))
        before = "" if row["saved_mean"] is None else _number(row["saved_mean"])
        table.add_row(row["run"], row["reward"], *counts, _number(row["mean"]), before, changed)
    return table


def audit_table(found: Audit, name: str) -> Table:
    """Return a row a part of training, then what changed from the first to the last."""
    table = _titled(f"{name}: '{found.independent}' against '{found.trained}'")
    for column in ("steps", "completions", f"trained: {found.trained}", f"independent: {found.independent}"):
        table.add_column(column, justify="right")
    table.add_column("rank correlation", justify="right")
    for part in found.parts:
        agreement = "" if math.isnan(part.agreement) else f"{part.agreement:.2f}"
        figures = (_interval(part.trained), _interval(part.independent), agreement)
        table.add_row(f"{part.first} to {part.last}", str(part.completions), *figures)
    table.add_section()
    table.add_row("change", "", _interval(found.trained_change), _interval(found.independent_change), "", style="bold")
    table.caption = (
        f"The independent reward: {found.verdict}. Means with 95 % intervals over completions. This tells what has "
        "happened; it is no early warning."
    )
    return table


def _titled(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold", caption_justify="left")


def _interval(value: Interval) -> str:
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def _number(value: float | str | None) -> str:
    return "none" if value is None else value if isinstance(value, str) else f"{value:.3g}"
