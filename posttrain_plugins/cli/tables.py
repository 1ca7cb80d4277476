"""Tables that people read: a run's result, a plan, the plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain_plugins.cli.display import duration
from posttrain_plugins.recipe.plan import Plan
from posttrain_plugins.recipe.report import Row
from posttrain_plugins.types import Result

__all__ = ["candidate_table", "evaluation_table", "plan_table", "plugin_table", "print_plugin", "result_table"]


def result_table(rows: Sequence[Row], title: str) -> Table:
    """One row a stage: what it was made from, train time, and how good the model is, where that was measured."""
    table = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
    table.add_column("stage")
    table.add_column("made from")
    table.add_column("train time", justify="right")
    is_measured = any(row.sampled or row.greedy is not None for row in rows)
    for name in ("sampled accuracy", "gain over its parent", "majority", "greedy") if is_measured else ():
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        time = duration(row.seconds) if row.seconds is not None else ""
        figures = (_interval(row.sampled), _gain(row.gain), _share(row.majority), _share(row.greedy))
        table.add_row(row.stage, row.made_from, time, *(figures if is_measured else ()), Text(row.remark, style="dim"))
    return table


def evaluation_table(details: Mapping[str, Any], title: str) -> Table:
    """One row a model and way of answering: accuracy with its interval, further rewards, and what it costs."""
    table = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
    measures = [m for found in details["models"].values() for m in found["measures"].values()]
    rewards = list(dict.fromkeys(name for measure in measures for name in measure["rewards"]))
    table.add_column("model")
    table.add_column("answered by")
    for i, name in enumerate(rewards):
        table.add_column(f"{name} [95 %]" if i == 0 else name, justify="right")
    table.add_column("tokens / problem", justify="right")
    for model, found in details["models"].items():
        for i, (label, measure) in enumerate(found["measures"].items()):
            values = [measure["rewards"].get(name) for name in rewards]
            shown = [_interval(_triple(values[0]))] + [_share(v["mean"] if v else None) for v in values[1:]]
            tokens = f"{measure['tokens'] / max(1, details['problems']):.0f}"
            table.add_row(model if i == 0 else "", label, *shown, tokens)
        table.add_section()
    return table


def plan_table(plan: Plan) -> Table:
    """One row a stage: what it makes from what, and whether and why it runs."""
    table = Table(header_style="bold")
    for name in ("stage", "use", "from", "key", "state", "why"):
        table.add_column(name, overflow="fold")
    for stage in plan.stages:
        state = (
            "cached" if stage.artifact else "resumes" if stage.can_resume else "runs" if stage.is_wanted else "left out"
        )
        table.add_row(
            stage.id,
            stage.spec.plugin.name,
            ", ".join(stage.spec.parents()),
            stage.key[:12],
            Text(state, style="green" if stage.artifact else "yellow"),
            "; ".join(stage.reasons),
        )
    return table


def plugin_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """One row a plugin; a broken one with its cause."""
    table = Table(header_style="bold")
    for name in ("kind", "name", "distribution", "version", "what"):
        table.add_column(name, overflow="fold")
    for row in rows:
        what = Text(row["cause"], style="red") if row["status"] != "ok" else Text(row["summary"])
        table.add_row(row["kind"], row["name"], row["distribution"], row["version"], what)
    return table


def print_plugin(console: Console, found: Mapping[str, Any]) -> None:
    """One plugin in full."""
    package = f"{found['distribution']} {found['version']}".strip() or "named in place"
    console.print(Text.assemble((found["name"], "bold"), f"  {found['kind']}, {package}"))
    console.print(Text(f"{found['target']}\n{found['source']}\n", style="dim"), soft_wrap=True)
    console.print(Text(found["doc"] + "\n"))
    if found["columns"]:
        console.print(Text(f"needs columns: {found['columns']}\n"))
    table = Table(header_style="bold")
    for name in ("parameter", "type", "default"):
        table.add_column(name, overflow="fold")
    for field in found["parameters"]:
        table.add_row(field["name"], field["type"], "required" if field["required"] else repr(field["default"]))
    if found["parameters"]:
        console.print(table)


def candidate_table(result: Result) -> Table:
    """Every candidate that a strategy considered, and what was spent."""
    spent = ", ".join(
        f"{role} {usage.total_tokens + usage.cached_tokens} tokens" for role, usage in result.usage.items()
    )
    table = Table(title=f"{len(result.candidates)} candidates; {spent}", title_justify="left", header_style="bold")
    for name in ("answer", "score", "ended by", "completion"):
        table.add_column(name, overflow="fold")
    for candidate in result.candidates:
        score = "" if candidate.score is None else f"{candidate.score:.3f}"
        is_chosen = candidate.text == result.text
        style = "bold green" if is_chosen else ""
        table.add_row(Text(str(candidate.answer), style=style), score, candidate.finish_reason, Text(candidate.text))
    return table


def _triple(interval: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    return (interval["mean"], interval["low"], interval["high"]) if interval else None


def _interval(value: tuple[float, float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def _gain(value: tuple[float, float, float] | None) -> Text:
    if value is None:
        return Text("")
    style = "green" if value[1] > 0 else "red" if value[2] < 0 else ""
    return Text(f"{value[0]:+.3f} [{value[1]:+.3f}, {value[2]:+.3f}]", style=style)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
