"""`report.html`: a run as one page that stands alone, also while it runs. No paper.

What was read once is kept, so that a page of a run that goes on costs what is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.record.figures import FIGURES
from posttrain_plugins.record.lineage import evaluations
from posttrain_plugins.record.runs import RunRecord, StageRecord, read_run
from posttrain_plugins.report.chain import chain_section, gain_text, header
from posttrain_plugins.report.curves import Curves
from posttrain_plugins.report.details import cost_section, health_section, people_section, recipe_section
from posttrain_plugins.report.masking import masked
from posttrain_plugins.report.page import page, static, text
from posttrain_plugins.report.problems import Pairing, paired, read_answers
from posttrain_plugins.report.results_json import results_json
from posttrain_plugins.report.rollouts import Rollouts
from posttrain_plugins.report.searches import search_section
from posttrain_plugins.report.tail import Tail
from posttrain_plugins.report.texts import group_card, problem_cards, summary_line
from posttrain_plugins.report.words import count

__all__ = ["REPORT", "RunPage", "curves_section"]

REPORT = "report.html"
LIMITS = {"broken": 24, "fixed": 24, "worse": 6, "better": 6, "same": 2}
SECTIONS = {
    "differences": "What differs",
    "results": "Better or worse",
    "chain": "Chain",
    "health": "Health",
    "curves": "Curves",
    "completions": "Completions",
    "problems": "Before and after",
    "people": "People",
    "searches": "Search",
    "cost": "Cost",
    "recipe": "Recipe",
}


class RunPage:
    """The page of a run, which may be asked for again and again while it runs.

    Args:
        folder: `runs/<recipe>`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.curves: dict[str, tuple[Tail, Curves]] = {}
        self.rollouts: dict[str, Rollouts] = {}
        self.pairings: dict[Path, list[tuple[str, str, str, Pairing]]] = {}

    def html(self) -> str:
        """Return the page as the run stands now.

        Raises:
            InputError: no run stands there, or a newer version made it.
        """
        run = read_run(self.folder)
        curves = {stage.id: found for stage in run.stages if (found := self.curves_of(stage)).by_name}
        sections = {
            "chain": list(chain_section(run)),
            "health": list(health_section(run, curves)),
            "curves": list(curves_section({run.name: curves})),
            "completions": list(self._completions(run)),
            "problems": list(self._problems(run)),
            "people": list(people_section(run)),
            "searches": list(search_section(run)),
            "cost": list(cost_section(run, curves)),
            "recipe": list(recipe_section(run)),
        }
        body = [*header(run, run.name), navigation(sections), "<main>"]
        body += [line for lines in sections.values() for line in lines]
        data = {
            "curves-data": curves_json({run.name: curves}),
            "report-data": masked(results_json(run.name, run.artifacts)),
        }
        return report_page(f"{run.name}: report", [*body, "</main>"], data)

    def curves_of(self, stage: StageRecord) -> Curves:
        """Return a stage's curves with what is new of them."""
        if stage.folder is None:
            return Curves()
        if stage.key not in self.curves:
            self.curves[stage.key] = Tail(stage.folder / FIGURES), Curves()
        tail, curves = self.curves[stage.key]
        tail.path = stage.folder / FIGURES  # a finished stage bears another name than the one at work
        if not tail.path.is_file():
            if not curves.by_name:
                curves.feed(stage.figures())  # of an earlier version, which wrote another file
            return curves
        if tail.is_new():
            curves = Curves()
            self.curves[stage.key] = tail, curves
        curves.feed_rows(row for _, row in tail.rows())
        return curves

    def _completions(self, run: RunRecord) -> Iterator[str]:
        stages = [stage for stage in run.stages if stage.rollouts is not None]
        if not stages:
            return
        yield "<section id=completions aria-labelledby=h-completions><h2 id=h-completions>What it wrote</h2>"
        yield "<p class=dim>Groups of one prompt, side by side, each with its rewards. "
        yield "A step is the one that learned from them.</p>"
        yield "<div class=controls data-for=groups></div>"
        for stage in stages:
            assert stage.rollouts is not None
            found = self.rollouts.setdefault(stage.key, Rollouts(stage.rollouts))
            found.tail.path = stage.rollouts
            found.read()
            chosen = found.chosen()
            shown = sum(len(group.completions) for group in chosen)
            told = f"{shown:,} of {count(found.count, 'completion')} of {count(len(found.steps()), 'step')}"
            yield f'<div class=groups data-stage="{text(stage.id)}"><h3>{text(stage.id)}</h3>'
            yield f"<p class='dim small'>{told} stand here: of chosen steps, the best, the worst, "
            yield "and prompts that changed most. "
            yield f"The others are in <span class=mono>{text(_place(stage))}/rollouts.jsonl</span>.</p>"
            for group in chosen:
                yield from group_card(stage.id, group, found.names)
            yield "</div>"
        yield "</section>"

    def _problems(self, run: RunRecord) -> Iterator[str]:
        found = [(a, one) for a in evaluations(run.artifacts) for one in self._pairings_of(a.folder, a.details)]
        if not found:
            return
        yield "<section id=problems aria-labelledby=h-problems><h2 id=h-problems>Before and after</h2>"
        yield "<p class=dim>The same problems, answered by a model and by the one that it was made from.</p>"
        yield "<div class=controls data-for=problems></div>"
        for artifact, (before, after, way, pairing) in found:
            gain = artifact.details["models"][after]["gain"]["measures"].get(way)
            shown = (gain["mean"], gain["low"], gain["high"]) if gain else None
            yield f'<div class=pairing data-pair="{text(before)} → {text(after)}" data-way="{text(way)}">'
            yield f"<h3>{text(before)} → {text(after)}, {text(way)}</h3>"
            told = f"on {count(len(pairing.pairs), 'problem')}: {summary_line(pairing)}"
            yield f"<p>{gain_text(shown)} <span class=dim>{told}</span></p>"
            yield from problem_cards(pairing, (before, after), LIMITS)
            yield "</div>"
        yield "</section>"

    def _pairings_of(self, folder: Path, details: Mapping[str, Any]) -> list[tuple[str, str, str, Pairing]]:
        """Return before, after, way of answering and the pairs, of the draws and of the first strategy."""
        if folder not in self.pairings:
            answers = read_answers(folder / "samples.jsonl", details["metric"])
            made = []
            for after, model in reversed(details["models"].items()):
                before = model.get("gain", {}).get("over")
                ways = [way for name, way in answers if name == after and (before, way) in answers]
                ordered = sorted(ways, key=lambda way: way == "sampled")[:1] + [way for way in ways if way == "sampled"]
                made += [
                    (before, after, way, paired(answers[before, way], answers[after, way]))
                    for way in dict.fromkeys(ordered)
                ]
            self.pairings[folder] = made
        return self.pairings[folder]


def _place(stage: StageRecord) -> str:
    return stage.folder.name if stage.folder is not None else ""


def navigation(sections: Mapping[str, list[str]]) -> str:
    """Return links to the sections that have something to show."""
    links = [f"<a href=#{id}>{SECTIONS[id]}</a>" for id, lines in sections.items() if lines]
    return f'<nav aria-label="Sections">{"".join(links)}</nav>'


def report_page(title: str, body: list[str], data: Mapping[str, Any]) -> str:
    """Return a page with the scripts and styles of reports."""
    styles = [static("uPlot.min.css"), static("report.css"), static("trace.css")]
    return page(title, body, styles=styles, scripts=[static("uPlot.iife.min.js"), static("report.js")], data=data)


def curves_json(runs: Mapping[str, Mapping[str, Curves]]) -> dict[str, Any]:
    """Return the runs' names, and for each stage its figures, of each figure the points of every run."""
    stages = list(dict.fromkeys(stage for curves in runs.values() for stage in curves))
    found = []
    for stage in stages:
        of_runs = {run: curves[stage] for run, curves in runs.items() if stage in curves}
        names = list(dict.fromkeys(name for curves in of_runs.values() for name in curves.names()))
        figures = [
            {"name": name, "runs": {run: c.by_name[name].to_json() for run, c in of_runs.items() if name in c.names()}}
            for name in names
        ]
        found.append({"stage": stage, "figures": figures})
    return {"runs": list(runs), "stages": found}


def curves_section(runs: Mapping[str, Mapping[str, Curves]]) -> Iterator[str]:
    """Yield a table of each stage's figures, in which the script draws their curves.

    Args:
        runs: name of the run -> stage -> curves.
    """
    stages = list(dict.fromkeys(stage for curves in runs.values() for stage in curves))
    if not stages:
        return
    yield "<section id=curves aria-labelledby=h-curves><h2 id=h-curves>Curves</h2>"
    yield "<div class=controls data-for=curves></div>"
    for stage in stages:
        yield f'<div class=stage-curves data-stage="{text(stage)}"><h3>{text(stage)}</h3><div class=charts></div>'
        rows = [
            (run, name, curves[stage])
            for run, curves in runs.items()
            if stage in curves
            for name in curves[stage].names()
        ]
        told = count(len({name for _, name, _ in rows}), "figure")
        yield f"<details class=figures open><summary>{told} as a table</summary>"
        yield f"<div class=scroll tabindex=0 role=region aria-label='figures of {text(stage)}'><table><tr>"
        has_runs = len(runs) > 1
        heads = [
            "figure",
            *(["run"] if has_runs else []),
            "first",
            "last",
            "lowest",
            "at step",
            "highest",
            "at step",
            "points",
        ]
        yield "".join(f"<th scope=col>{head}</th>" for head in heads) + "</tr>"
        for run, name, curves in rows:
            curve = curves.by_name[name]
            found = curve.summary()
            cells = [f"{found['first']:.4g}", f"{found['last']:.4g}", f"{found['low']:.4g}", f"{found['low_step']:,}"]
            cells += [f"{found['high']:.4g}", f"{found['high_step']:,}", _points(len(curve.values), curve.lost)]
            lead = f"<td>{text(run)}</td>" if has_runs else ""
            yield f"<tr><td>{text(name)}</td>{lead}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        yield "</table></div></details></div>"
    yield "</section>"


def _points(known: int, lost: int) -> str:
    return f"{known:,}" + (f" <span class=bad>{lost:,} not finite</span>" if lost else "")
