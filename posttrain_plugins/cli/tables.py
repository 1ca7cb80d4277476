"""Tables that people read: a run's result, a plan, the plugins."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from posttrain_plugins.cli.display import duration
from posttrain_plugins.recipe.plan.plan import Plan
from posttrain_plugins.recipe.run.report import Row

__all__ = [
    "at_k_table",
    "evaluation_table",
    "footing_table",
    "plan_table",
    "print_checks",
    "print_plugin",
    "print_plugins",
    "result_table",
    "warnings_of",
]

PLUGIN_COLUMNS = 120  # narrower than that, a table of plugins would break every summary into many lines


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
    """One row a model and way of answering: accuracy with its interval, further rewards, and what it takes."""
    table = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
    measures = [m for found in details["models"].values() for m in found["measures"].values()]
    rewards = list(dict.fromkeys(name for measure in measures for name in measure["rewards"]))
    has_many = len(details["models"]) > 1
    for name in ("model", "answered by") if has_many else ("answered by",):
        table.add_column(name, overflow="fold")
    for i, name in enumerate(rewards):
        table.add_column(f"{_short(name)} [95 %]" if i == 0 else _short(name), justify="right")
    for name in ("tokens / problem", "calls", "seconds", "*"):
        table.add_column(name, justify="right")
    for model, found in details["models"].items():
        for i, (label, measure) in enumerate(found["measures"].items()):
            values = [measure["rewards"].get(name) for name in rewards]
            shown = [_interval(_triple(values[0]))] + [_share(v["mean"] if v else None) for v in values[1:]]
            lead = [model if i == 0 else ""] if has_many else []
            table.add_row(*lead, _label(label, measure), *shown, *_costs(measure, details["problems"]))
        table.add_section()
    table.caption = "\n".join(_notes(measures))
    table.caption_justify = "left"
    return table


def at_k_table(details: Mapping[str, Any]) -> Table | None:
    """What k of the samples would have given: pass@k, maj@k, and each verifier's weighted@k and best@k."""
    curves = {
        (model, name): points
        for model, found in details["models"].items()
        for name, points in found["measures"].get("sampled", {}).get("at_k", {}).items()
    }
    ks = sorted({int(k) for points in curves.values() for k in points})
    if not ks:
        return None
    has_many = len({model for model, _ in curves}) > 1
    table = Table(title="k of the samples", title_justify="left", header_style="bold", title_style="bold")
    for name in ("model", "figure") if has_many else ("figure",):
        table.add_column(name, overflow="fold")
    for k in ks:
        table.add_column(f"k = {k}", justify="right")
    before = ""
    for (model, name), points in curves.items():
        figures = (_share(points[str(k)]["mean"]) if str(k) in points else "" for k in ks)
        table.add_row(*([model if model != before else ""] if has_many else []), _marked(_figure(name)), *figures)
        before = model
    return table


def _notes(measures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What the marks of the table mean, those that are in it."""
    if any(measure.get("pareto") for measure in measures):
        yield "* nothing else is as accurate for as few tokens"
    if any(measure.get("oracle") for measure in measures):
        yield "oracle: its scorer has seen the answer"
    if any(measure.get("stopped") for measure in measures):
        yield "cut: problems that the budget ended"
    if len(measures) > 1:
        yield "calls and seconds: what was not known from the rows above"


def _label(label: str, measure: Mapping[str, Any]) -> Text:
    text = _marked(_short(label))
    if measure.get("stopped"):
        text.append(f"  {measure['stopped']} cut", style="dim")
    return text


def _marked(name: str) -> Text:
    text = Text(name)
    text.highlight_words(["(oracle)"], style="yellow")
    return text


def _costs(measure: Mapping[str, Any], problems: int) -> tuple[str, str, str, Text]:
    tokens = measure.get("tokens_per_problem") or measure["tokens"] / max(1, problems)
    mark = Text("*" if measure.get("pareto") else "", style="bold green")
    return f"{tokens:.0f}", str(measure["calls"]), f"{measure['seconds']:.1f}", mark


def _figure(name: str) -> str:
    """`best/rm` -> `best@k by rm`."""
    kind, slash, verifier = name.partition("/")
    return f"{kind}@k" + (f" by {_short(verifier)}" if slash else "")


def _short(name: str) -> str:
    """Of a folder in a name its last two parts: `reward_model(model_name_or_path=…/rm-61/model)`."""
    return re.sub(r"(?<![\w.])/(?:[^/,()\s]+/)+([^/,()\s]+/[^/,()\s]+)", r"…/\1", name)


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


def footing_table(plan: Plan) -> Table:
    """One row a training stage: what it stands on, what trains, and what the policy is held to."""
    table = Table(header_style="bold")
    for name in ("stage", "base", "merged first", "frozen", "trains", "reference"):
        table.add_column(name, overflow="fold")
    for stage in plan.stages:
        found = stage.footing
        if found is not None:
            reference = found.reference or ""
            table.add_row(stage.id, found.base, found.merged, found.frozen, found.trains, reference)
    return table


def warnings_of(plan: Plan) -> list[str]:
    """What the stages warn of, a line each with its hint."""
    return [f"warning: {stage.id}: {warning}" for stage in plan.stages for warning in stage.spec.warnings]


def print_plugins(console: Console, rows: Sequence[Mapping[str, str]]) -> None:
    """A table with one row a plugin, a broken one with its cause; two lines each where the console is narrow."""
    if console.width >= PLUGIN_COLUMNS:
        console.print(_plugin_table(rows))
        return
    longest = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        lead = f"{row['kind']:8}  {row['name']:{longest}}"
        package = f"  {row['distribution']} {row['version']}  "
        console.print(Text.assemble(f"{lead}", (package, "dim"), _status(row)), soft_wrap=True)
        console.print(Padding(_what(row), (0, 0, 0, 4)))


def _plugin_table(rows: Sequence[Mapping[str, str]]) -> Table:
    table = Table(header_style="bold")
    for name in ("kind", "name", "distribution", "version", "status"):
        table.add_column(name, no_wrap=True)
    table.add_column("what", overflow="fold")
    for row in rows:
        table.add_row(row["kind"], row["name"], row["distribution"], row["version"], _status(row), _what(row))
    return table


def _status(row: Mapping[str, str]) -> Text:
    return Text(row["status"], style="" if row["status"] == "ok" else "red")


def _what(row: Mapping[str, str]) -> Text:
    return Text(row["summary"]) if row["status"] == "ok" else Text(row["cause"], style="red")


def print_checks(console: Console, found: Sequence[Mapping[str, Any]], is_long: bool) -> None:
    """One row a plugin with how many checks went how, and every failure with its reason.

    Args:
        console: where to.
        found: `{kind, name, checks}` each.
        is_long: list every check, not only what failed.
    """
    table = Table(header_style="bold")
    for name in ("kind", "name", "passed", "failed", "expected", "skipped"):
        table.add_column(name, justify="left" if name in ("kind", "name") else "right")
    for row in found:
        counts = Counter(check["status"] for check in row["checks"])
        failed = Text(str(counts["failed"]), style="bold red" if counts["failed"] else "")
        numbers = (str(counts["passed"]), failed, str(counts["expected"]), str(counts["skipped"]))
        table.add_row(row["kind"], row["name"], *numbers)
    lines = [(row["name"], check) for row in found for check in row["checks"]]
    for name, check in lines:
        if is_long or check["status"] == "failed":
            style = {"failed": "bold red", "passed": "green"}.get(check["status"], "dim")
            status = Text(f"{check['status']:9}", style=style)
            lead = "" if is_long else f"{name} "
            reason = f": {check['reason']}" if check["reason"] else ""
            console.print(Text.assemble(status, f" {lead}{check['check']}", (reason, "dim")), soft_wrap=True)
    console.print(table)


def print_plugin(console: Console, found: Mapping[str, Any]) -> None:
    """One plugin in full."""
    package = f"{found['distribution']} {found['version']}".strip() or "named in place"
    console.print(Text.assemble((found["name"], "bold"), f"  {found['kind']}, {package}"))
    console.print(Text(f"{found['target']}\n{found['source']}\n", style="dim"), soft_wrap=True)
    console.print(Text(found["doc"] + "\n"))
    if found["produces"]:
        console.print(Text(f"produces: {found['produces']}"))
    if found["columns"]:
        console.print(Text(f"needs columns: {_columns(found['columns'])}\n"))
    table = Table(header_style="bold")
    for name in ("parameter", "type", "default"):
        table.add_column(name, overflow="fold")
    for field in found["parameters"]:
        table.add_row(field["name"], field["type"], "required" if field["required"] else repr(field["default"]))
    if found["parameters"]:
        console.print(table)


def _columns(needed: Any) -> str:
    """`prompt, solution` of a reward; of a stage `dataset: messages, or prompt + completion`."""
    if isinstance(needed, Mapping):
        return "; ".join(f"{name}: {', or '.join(' + '.join(g) for g in groups)}" for name, groups in needed.items())
    return ", ".join(needed)


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
