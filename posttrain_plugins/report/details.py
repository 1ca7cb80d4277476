"""The sections of a run's page that are tables: health, people, cost, and the recipe that it was. No paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from posttrain_plugins.record.health import health
from posttrain_plugins.record.runs import RunRecord, StageRecord
from posttrain_plugins.report.curves import Curves
from posttrain_plugins.report.masking import masked, masked_text
from posttrain_plugins.report.page import text
from posttrain_plugins.report.words import count, duration, figure

__all__ = ["cost_section", "health_section", "people_section", "recipe_section"]

KEY_DIGITS = 12


def health_section(run: RunRecord, curves: Mapping[str, Curves]) -> Iterator[str]:
    """Yield what is wrong with each training, since when and what cures it; closed, what is fine and the notes."""
    found = {stage: health(of_stage.lines()) for stage, of_stage in curves.items()}
    wrong = [(stage, one) for stage, verdicts in found.items() for one in verdicts if one.state != "ok"]
    fine = [(stage, one) for stage, verdicts in found.items() for one in verdicts if one.state == "ok"]
    if not (wrong or fine or run.notes):
        return
    yield "<section id=health aria-labelledby=h-health><h2 id=h-health>Health</h2>"
    if not wrong and fine:
        yield "<p><span class='badge good'>fine</span> No figure of a training is beyond its threshold.</p>"
    # what is bad before what may become so
    for stage, one in sorted(wrong, key=lambda item: item[1].state != "bad"):
        since = "" if one.since_step is None else f", since step {one.since_step:,}"
        yield f'<article class="verdict {one.state}"><p><span class="badge {one.state}">{one.state}</span> '
        yield f"<b>{text(stage)}</b>: {text(one.what)}.</p>"
        yield f"<p class=small><span class=mono>{text(one.figure)}</span> is {one.value:.3g}, "
        yield f"threshold {one.threshold:g}{since}. <b>Cure:</b> {text(one.cure)}. "
        yield f"<span class=dim>After {text(one.source)}.</span></p></article>"
    if fine:
        yield f"<details><summary>{count(len(fine), 'check')} passed</summary>"
        yield "<div class=scroll tabindex=0 role=region aria-label='checks that passed'><table class=diff>"
        yield "<tr><th scope=col>stage</th><th scope=col>check</th><th scope=col>figure</th>"
        yield "<th scope=col>value</th><th scope=col>threshold</th></tr>"
        for stage, one in fine:
            cells = (stage, one.name, one.figure, f"{one.value:.3g}", f"{one.threshold:g}")
            yield f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>"
        yield "</table></div></details>"
    notes = list(dict.fromkeys(run.notes))
    if notes:
        yield f"<details><summary>{count(len(notes), 'note')} of the run</summary><ul>"
        yield "".join(f"<li><b>{text(stage)}</b>: {text(masked_text(told))}</li>" for stage, told in notes)
        yield "</ul></details>"
    yield "</section>"


def people_section(run: RunRecord) -> Iterator[str]:
    """Yield what people decided, of each stage that waits for them."""
    stages = [stage for stage in run.stages if "decisions" in stage.details]
    if not stages:
        return
    yield "<section id=people aria-labelledby=h-people><h2 id=h-people>What people decided</h2>"
    for stage in stages:
        yield f"<h3>{text(stage.id)}</h3><table class=people>"
        for name, value in {**stage.details["decisions"], **stage.metrics}.items():
            for label, shown in _told(name.replace("_", " "), value):
                yield f"<tr><th scope=row>{text(label)}</th><td>{text(shown)}</td></tr>"
        yield "</table>"
    yield "</section>"


def _told(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield a label and its text; a table of annotators is a row for each of them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _told(f"{name} {key}", item)
    elif isinstance(value, list) and len(value) == 3 and all(isinstance(part, float) for part in value):
        yield name, figure(value)
    elif isinstance(value, list):
        yield name, ", ".join(f"{part:.4g}" if isinstance(part, float) else str(part)[:KEY_DIGITS] for part in value)
    elif isinstance(value, float):
        yield name, f"{value:.4g}"
    else:
        yield name, str(value)


def cost_section(run: RunRecord, curves: Mapping[str, Curves]) -> Iterator[str]:
    """Yield what each stage took: time, tokens, memory, and the share of the time in which it sampled."""
    stages = [stage for stage in run.stages if stage.manifest or stage.id in curves]
    if not stages:
        return
    seconds = {stage.id: _seconds(stage, curves.get(stage.id)) for stage in stages}
    most = max(seconds.values()) or 1.0
    yield "<section id=cost aria-labelledby=h-cost><h2 id=h-cost>What it cost</h2>"
    yield "<div class=scroll tabindex=0 role=region aria-label='cost by stage'><table class=cost><tr>"
    told = {stage.id: _figures_of(stage, curves.get(stage.id) or Curves()) for stage in stages}
    columns = [name for name in next(iter(told.values())) if any(cells[name] for cells in told.values())]
    yield "<th scope=col>stage</th><th scope=col>time</th><td></td>"
    yield "".join(f"<th scope=col>{head}</th>" for head in columns) + "</tr>"
    for stage in stages:
        share = f"{100 * seconds[stage.id] / most:.1f}%"
        bar = f'<svg class=bar aria-hidden=true><rect width="{share}" height="100%"/></svg>'
        cells = [duration(seconds[stage.id]), bar, *(told[stage.id][name] for name in columns)]
        yield f"<tr><th scope=row>{text(stage.id)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    rest = "<td></td>" * (1 + len(columns))
    yield f"<tr class=total><th scope=row>all</th><td>{duration(sum(seconds.values()))}</td>{rest}</tr>"
    yield "</table></div></section>"


def _seconds(stage: StageRecord, curves: Curves | None) -> float:
    if stage.manifest:
        return float(stage.manifest["seconds"])
    return curves.seconds or 0.0 if curves else 0.0


def _figures_of(stage: StageRecord, curves: Curves) -> dict[str, str]:
    peaks, spent = (curves.by_name.get(name) for name in ("peak_memory_gib", "generation_s"))
    return {
        "steps": f"{curves.step:,}" if curves.step else "",
        "tokens": _tokens(stage, curves),
        "peak memory": f"{max(peaks.values):.2f} GiB" if peaks and peaks.values else "",
        "sampling": f"{sum(spent.values) / curves.seconds:.0%}" if spent and curves.seconds else "",
    }


def _tokens(stage: StageRecord, curves: Curves) -> str:
    if "num_tokens" in curves.by_name and curves.by_name["num_tokens"].values:
        return f"{curves.by_name['num_tokens'].values[-1]:,.0f}"
    models = stage.details.get("models", {})
    usages = [u for m in models.values() for way in m["measures"].values() for u in way.get("usage", {}).values()]
    spent = sum(usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)
    return f"{spent:,}" if spent else ""


def recipe_section(run: RunRecord) -> Iterator[str]:
    """Yield the recipe as it was resolved, versions, keys and hashes; secrets and the home folder are taken out."""
    yield "<section id=recipe aria-labelledby=h-recipe><h2 id=h-recipe>Recipe</h2>"
    command = run.planned.get("command")
    if command:
        yield f"<p>Run by <span class=mono>{text(masked_text(str(command)))}</span></p>"
    shown = yaml.safe_dump(masked(run.resolved), sort_keys=False, allow_unicode=True, width=100)
    yield f"<details><summary>The recipe, resolved</summary><pre>{text(shown)}</pre></details>"
    yield "<details><summary>Keys and hashes</summary>"
    yield "<div class=scroll tabindex=0 role=region aria-label='keys and hashes'><table>"
    yield "<tr><th scope=col>stage</th><th scope=col>key</th><th scope=col>source</th><th scope=col>data</th></tr>"
    for stage in run.stages:
        parts = stage.manifest.get("parts", {})
        data = parts.get("dataset.source") or parts.get("dataset") or ""
        hashes = (stage.key[:KEY_DIGITS], str(parts.get("source", ""))[:KEY_DIGITS], str(data)[:KEY_DIGITS])
        cells = "".join(f"<td class=mono>{text(one)}</td>" for one in hashes)
        yield f"<tr><th scope=row>{text(stage.id)}</th>{cells}</tr>"
    yield "</table></div></details>"
    yield from _versions(run)
    yield "</section>"


def _versions(run: RunRecord) -> Iterator[str]:
    """Yield the versions of the libraries, and which stages were made with others."""
    by_stage = {stage.id: versions_of(stage.manifest) for stage in run.stages if stage.manifest}
    if not by_stage:
        return
    newest = list(by_stage.values())[-1]
    shown = ", ".join(f"{name} {version}" for name, version in newest.items())
    yield f"<p class=small><span class=dim>Versions:</span> {text(shown)}</p>"
    for id, versions in by_stage.items():
        others = [f"{name} {version}" for name, version in versions.items() if newest.get(name) != version]
        if others:
            yield f"<p class='small warn'>{text(id)} was made with {text(', '.join(others))}</p>"


def versions_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return what a stage was made with: Python and the libraries."""
    python = {"python": str(manifest["python"])} if "python" in manifest else {}
    return {**python, **{str(name): str(version) for name, version in manifest.get("versions", {}).items()}}
