"""Tables of a run's results, a plan, the plugins and their checks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain_plugins.models.folder import base_of
from posttrain_plugins.publish.push import files_to_push
from posttrain_plugins.recipe.spec import CriticStart, External, FromStage, Object, Source, StageSpec, Use, flat
from posttrain_plugins.report.words import duration, figure, verdict

if TYPE_CHECKING:
    from posttrain_plugins.recipe.plan.plan import Plan
    from posttrain_plugins.record.results import Row
    from posttrain_plugins.report.compare import Change, Comparison, Remade

__all__ = [
    "at_k_table",
    "changes_table",
    "code_of",
    "comparison_table",
    "copies_of",
    "duration",
    "evaluation_table",
    "footing_table",
    "plan_table",
    "print_checks",
    "print_plugin",
    "pushes_of",
    "remade_table",
    "result_table",
    "retained_table",
    "warnings_of",
]


def result_table(rows: Sequence[Row], title: str) -> Table:
    """Return a row a stage: what it was made from, train time, and how good the model is, if that was measured."""
    table = _titled(title)
    table.add_column("stage")
    table.add_column("made from")
    table.add_column("train time", justify="right")
    is_measured = any(row.sampled or row.greedy is not None for row in rows)
    for name in ("sampled accuracy", "gain over its parent", "majority", "greedy") if is_measured else ():
        table.add_column(name, justify="right")
    table.add_column("")
    for row in rows:
        time = duration(row.seconds) if row.seconds is not None else ""
        # coloured only if the interval leaves out 0: a gain within the noise looks like none
        sign = 0 if row.gain is None else (row.gain[1] > 0) - (row.gain[2] < 0)
        gain = Text(figure(row.gain, "+"), style=("", "green", "red")[sign])
        figures = (figure(row.sampled), gain, figure(row.majority), figure(row.greedy))
        table.add_row(row.stage, row.made_from, time, *(figures if is_measured else ()), Text(row.remark, style="dim"))
    return table


def evaluation_table(details: Mapping[str, Any], title: str) -> Table:
    """Return a row a model and way of answering: accuracy with its interval, further rewards, and what it takes."""
    table = _titled(title)
    measures = [m for found in details["models"].values() for m in found["measures"].values()]
    rewards = list(dict.fromkeys(name for measure in measures for name in measure["rewards"]))
    has_many = len(details["models"]) > 1
    for name in ("model", "answered by") if has_many else ("answered by",):
        table.add_column(name, overflow="fold")
    for i, name in enumerate(rewards):
        table.add_column(f"{_name(name)} [95 %]" if i == 0 else str(_name(name)), justify="right")
    for name in ("tokens / problem", "calls", "seconds", "*"):
        table.add_column(name, justify="right")
    for model, found in details["models"].items():
        for i, (label, measure) in enumerate(found["measures"].items()):
            values = [measure["rewards"].get(name) for name in rewards]
            first = values[0] and (values[0]["mean"], values[0]["low"], values[0]["high"])
            # one interval is what a terminal has room for: the first reward is the metric
            shown = [figure(first), *(figure(v and v["mean"]) for v in values[1:])]
            text = _name(label)
            if measure.get("stopped"):
                text.append(f"  {measure['stopped']} cut", style="dim")
            if measure.get("missing"):
                text.append(f"  {measure['missing']} of {measure['asked']} missing", style="yellow")
            tokens = measure.get("tokens_per_problem") or measure["tokens"] / max(1, details["problems"])
            costs = (f"{tokens:.0f}", str(measure["calls"]), f"{measure['seconds']:.1f}")
            mark = Text("*" if measure.get("pareto") else "", style="bold green")
            table.add_row(*([model if i == 0 else ""] if has_many else []), text, *shown, *costs, mark)
        table.add_section()
    table.caption = _legend(measures)
    table.caption_justify = "left"
    return table


def at_k_table(details: Mapping[str, Any]) -> Table | None:
    """Return what k of the samples would have given: pass@k, maj@k, and each verifier's weighted@k and best@k."""
    curves = {
        (model, name): points
        for model, found in details["models"].items()
        for name, points in found["measures"].get("sampled", {}).get("at_k", {}).items()
    }
    ks = sorted({int(k) for points in curves.values() for k in points})
    if not ks:
        return None
    has_many = len({model for model, _ in curves}) > 1
    table = _titled("k of the samples")
    for name in ("model", "figure") if has_many else ("figure",):
        table.add_column(name, overflow="fold")
    for k in ks:
        table.add_column(f"k = {k}", justify="right")
    before = ""
    over = {m: found["measures"].get("sampled", {}).get("over_optimised", {}) for m, found in details["models"].items()}
    if any(over.values()):
        table.caption = "over-optimised: best@k falls as k grows, by more than noise; the scorer likes what is wrong"
        table.caption_justify = "left"
    for (model, name), points in curves.items():
        kind, slash, verifier = name.partition("/")  # `best/rm` is best@k by rm
        figures = (figure(points[str(k)]["mean"]) if str(k) in points else "" for k in ks)
        lead = [model if model != before else ""] if has_many else []
        shown = _name(f"{kind}@k" + (f" by {verifier}" if slash else ""))
        if kind == "best" and verifier.removesuffix(" (oracle)") in over[model]:
            shown.append("  over-optimised", style="red")
        table.add_row(*lead, shown, *figures)
        before = model
    return table


def retained_table(details: Mapping[str, Any]) -> Table | None:
    """Return what each model still can do beside what it was trained for, and how that changed on the way."""
    kept = details.get("retain") or {}
    if not kept:
        return None
    from posttrain_plugins.evaluation.retain import is_lost

    table = _titled("retained")
    for name in ("model", "data", "figure"):
        table.add_column(name, overflow="fold")
    table.add_column("[95 %]", justify="right")
    table.add_column("over what it was made from", justify="right")
    for model in details["models"]:
        for i, (name, found) in enumerate(kept.items()):
            one, is_text = found["models"][model], found["kind"] == "perplexity"
            changes = Text()
            for other, change in one["over"].items():
                is_worse = is_lost(found["kind"], change)
                shown = figure((change["mean"], change["low"], change["high"]), "" if is_text else "+")
                changes.append("\n" if changes else "")
                changes.append(f"{other} {'x ' if is_text else ''}{shown}", style="red" if is_worse else "")
            shown_one = figure((one["mean"], one["low"], one["high"]))
            table.add_row(model if i == 0 else "", _name(name), found["kind"], shown_one, changes)
        table.add_section()
    table.caption = "red: worse by more than another draw of rows would make it; x: as many times the perplexity"
    table.caption_justify = "left"
    return table


def _titled(title: str) -> Table:
    return Table(title=title, title_justify="left", header_style="bold", title_style="bold")


def _legend(measures: Sequence[Mapping[str, Any]]) -> str:
    """Say what the marks of a table mean, those that are in it."""
    lines = []
    if any(measure.get("pareto") for measure in measures):
        lines.append("* nothing else is as accurate for as few tokens")
    if any(measure.get("oracle") for measure in measures):
        lines.append("oracle: its scorer has seen the answer")
    if any(measure.get("stopped") for measure in measures):
        lines.append("cut: problems that the budget ended")
    if any(measure.get("missing") for measure in measures):
        lines.append("missing: could not be answered; the interval holds all of them wrong, and all right")
    if len(measures) > 1:  # they share one request log: greedy's answers are free for a strategy that begins with them
        lines.append("calls and seconds: what was not known from the rows above")
    return "\n".join(lines)


def _name(name: str) -> Text:
    """Mark the oracle, and keep of a folder its last two parts: `reward_model(model_name_or_path=…/rm-61/model)`."""
    text = Text(re.sub(r"(?<![\w.])/(?:[^/,()\s]+/)+([^/,()\s]+/[^/,()\s]+)", r"…/\1", name))
    text.highlight_words(["(oracle)"], style="yellow")
    return text


def changes_table(title: str, changes: Sequence[Change], names: tuple[str, str]) -> Table:
    """Return a row a value that is another in two runs."""
    table = _titled(title)
    for name in ("where", *names):
        table.add_column(Text(name))
    for change in changes:
        table.add_row(*map(Text, (change.path, change.a, change.b)))
    return table


def remade_table(remade: Sequence[Remade]) -> Table:
    """Return a row a stage that is another in two runs, with why."""
    table = _titled("made again")
    table.add_column("stage")
    table.add_column("because")
    for one in remade:
        table.add_row(Text(one.stage), Text("\n".join(one.reasons())))
    return table


def comparison_table(found: Comparison) -> Table:
    """Return a row a model and way of answering: what it came to in both runs, and whether the difference is one."""
    table = _titled(f"{found.b} less {found.a}, paired by problem")
    for name in ("model", "answered by"):
        table.add_column(name)
    for name in (found.a, found.b, "difference"):
        table.add_column(Text(name), justify="right")
    for name in ("", "fixed", "broken"):
        table.add_column(name, justify="right" if name else "left")
    for one in found.measured:
        values = [figure(value and value[0]) for value in (one.a, one.b)]
        if one.gain is None or one.pairing is None:
            told: list[Any] = [Text(""), Text(one.reason, style="dim"), "", ""]
        else:
            word = verdict(one.gain)
            style = {"better": "green", "worse": "red"}.get(word, "dim")
            counts = [str(one.pairing.count(kind)) for kind in ("fixed", "broken")]
            told = [Text(figure(one.gain, "+"), style=style), Text(word, style=style), *counts]
        table.add_row(Text(one.model), Text(one.way), *values, *told)
    return table


def plan_table(plan: Plan) -> Table:
    """Return a row a stage: what it makes from what, and whether and why it runs."""
    table = Table(header_style="bold")
    for name in ("stage", "use", "from", "key", "state", "why"):
        table.add_column(name, overflow="fold")
    for stage in plan.stages:
        begins = "waits" if stage.waits else "resumes" if stage.can_resume else "runs"
        state = begins if stage.is_wanted else "left out"
        table.add_row(
            stage.id,
            stage.spec.plugin.name,
            ", ".join(stage.spec.parents()),
            stage.key[:12],  # as in the name of its folder
            Text("cached", style="green") if stage.artifact else Text(state, style="yellow"),
            "; ".join(stage.reasons),
        )
    return table


def footing_table(plan: Plan) -> Table:
    """Return a row a training stage: what it stands on, what trains, and what the policy is held to."""
    table = Table(header_style="bold")
    for name in ("stage", "base", "merged first", "frozen", "trains", "reference"):
        table.add_column(name, overflow="fold")
    for stage in plan.stages:
        found = stage.starting_point
        if found is not None:
            reference = found.reference or ""
            table.add_row(stage.id, found.base, found.merged, found.frozen, found.trains, reference)
    return table


def copies_of(plan: Plan) -> list[str]:
    """Return a line for each stage that stores a base of its own, or trains beside reward models: where these are."""
    lines = []
    for stage in plan.stages:
        found = stage.starting_point
        if found is not None and found.merged != "nothing" and found.stores != "all weights":
            lines.append(f"{stage.id} stores {found.stores}; adapter_mode: stack stores no base")
        if found is not None and found.judges:
            where = ", ".join(f"{name} is {place}" for name, place in found.judges.items())
            lines.append(f"{stage.id} in memory: {where}")
    return lines


def code_of(plan: Plan) -> list[str]:
    """Return a line for each stage that runs code which is not of an installed package's plugins, by its place.

    A recipe has no other way to run any: files and modules named in it, and models that bring their own.
    """
    lines = []
    for stage in plan.stages:
        named = dict.fromkeys(_named_code(stage.spec))
        found = [target for target in named if not target.startswith("posttrain_plugins.")]
        if found:
            lines.append(f"{stage.id} runs code that the recipe names: {', '.join(found)}")
    return lines


def _named_code(spec: StageSpec) -> Iterator[str]:
    if not spec.plugin.distribution:
        yield spec.plugin.target
    for _, source in flat(spec.inputs):
        yield from _code_in(source)
    if spec.loading.get("trust_remote_code"):
        yield "the model's own (trust_remote_code)"
    if "/" in str(spec.loading.get("attn_implementation") or ""):
        yield f"a kernel of the Hub, {spec.loading['attn_implementation']}"


def _code_in(source: Source) -> Iterator[str]:
    if isinstance(source, Use):
        if not source.plugin.distribution:
            yield source.plugin.target
        for _, inner in flat(source.refs):
            yield from _code_in(inner)
    elif isinstance(source, CriticStart):
        yield from _code_in(source.source)
    elif isinstance(source, Object) and ":" in source.target:
        yield source.target
    elif isinstance(source, External):
        if source.template is not None:
            yield from _code_in(source.template)
        if source.loading.get("trust_remote_code"):
            yield f"{source.name}'s own (trust_remote_code)"


def pushes_of(plan: Plan) -> list[str]:
    """Return a line for each stage that puts something on the Hub: where, who sees it, and what it is."""
    lines = []
    for stage in plan.stages:
        params = stage.spec.params
        if not params.get("push_to_hub"):
            continue
        verb = "would push (dry run)" if params.get("push_dry_run") else "pushes"
        seen = "PUBLIC" if params.get("private") is False else "private"
        folder = Path(str(params["to"]))
        if stage.artifact is not None and folder.is_dir():
            files = files_to_push(folder)
            size = sum(file.stat().st_size for file in files)
            what = f"{', '.join(file.name for file in files)}: {size / 1e9:.3g} GB"
        else:
            size = _base_size(plan, stage.spec) if params.get("merge") is not False else 0
            known = f"about {size / 1e9:.3g} GB, as its base" if size else "GB known when it is made"
            what = f"weights (*.safetensors), configs, tokenizer, README.md, resolved.yaml: {known}"
        lines.append(f"{stage.id} {verb} to {params['push_to_hub']} ({seen}): {what}")
    return lines


def _base_size(plan: Plan, spec: StageSpec) -> int:
    """Return the bytes of the whole weights that a stage's model rests on; 0 where no folder here has them."""
    specs = {stage.id: stage.spec for stage in plan.stages}
    source = spec.inputs.get("model") or spec.inputs.get("reward")
    if spec.params.get("dtype") or spec.params.get("quantization"):
        return 0
    while isinstance(source, FromStage):
        made = next(stage for stage in plan.stages if stage.id == source.stage)
        if made.artifact is not None and made.artifact.model_path is not None:
            return _weights_in(base_of(made.artifact.model_path).path)
        source = specs[source.stage].inputs.get("model")
    return _weights_in(base_of(source.path).path) if isinstance(source, External) else 0


def _weights_in(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) if Path(folder).is_absolute() else 0


def warnings_of(plan: Plan) -> list[str]:
    """Return what the stages warn of, a line each with its hint."""
    return [f"warning: {stage.id}: {warning}" for stage in plan.stages for warning in stage.spec.warnings]


def print_checks(console: Console, found: Sequence[Mapping[str, Any]], is_long: bool) -> None:
    """Print a row a plugin with how many checks went how, and every failure with its reason.

    Args:
        console: where to.
        found: `{kind, name, checks}` each.
        is_long: list every check, and not only those that failed.
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
    """Print one plugin in full."""
    package = f"{found['distribution']} {found['version']}".strip() or "named in place"
    console.print(Text.assemble((found["name"], "bold"), f"  {found['kind']}, {package}"))
    # whole, however narrow the console: paths are there to be copied
    console.print(Text(f"{found['target']}\n{found['source']}\n", style="dim"), soft_wrap=True)
    console.print(Text(found["doc"] + "\n"))
    if found["produces"]:
        console.print(Text(f"produces: {found['produces']}"))
    needed = found["columns"]
    if needed:  # `prompt, solution` of a reward; of a stage `dataset: messages, or prompt + completion`
        groups = needed.items() if isinstance(needed, Mapping) else ()
        fields = "; ".join(f"{name}: {', or '.join(map(' + '.join, choices))}" for name, choices in groups)
        console.print(Text(f"needs columns: {fields or ', '.join(needed)}\n"))
    table = Table(header_style="bold")
    for name in ("parameter", "type", "default"):
        table.add_column(name, overflow="fold")
    for field in found["parameters"]:
        table.add_row(field["name"], field["type"], "required" if field["required"] else repr(field["default"]))
    if found["parameters"]:
        console.print(table)
