"""Two runs as one page: what differs, why stages were made again, what became better or worse, curves overlaid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from posttrain_plugins.record.runs import read_run
from posttrain_plugins.report.chain import HEAD, Scale, forest, gain_text
from posttrain_plugins.report.compare import Change, Comparison, Measured, compare, headline, told_apart
from posttrain_plugins.report.page import text
from posttrain_plugins.report.run_page import RunPage, curves_json, curves_section, navigation, report_page
from posttrain_plugins.report.texts import problem_cards, summary_line
from posttrain_plugins.report.words import count, figure

__all__ = ["compare_page"]

# every problem that was broken is what one came for
LIMITS = {"broken": 400, "fixed": 200, "worse": 40, "better": 40, "same": 5}
MOST_CARDS = 4_000


def compare_page(folders: tuple[Path, Path], names: tuple[str, str]) -> str:
    """Return the page of two runs.

    Args:
        folders: `runs/<recipe>` of both; the first is the baseline.
        names: by which the user called them.

    Raises:
        InputError: no run stands there, or a newer version made it.
    """
    runs = read_run(folders[0]), read_run(folders[1])
    names = told_apart(names)
    found = compare(*runs, names=names)
    pages = {name: RunPage(folder) for name, folder in zip(names, folders, strict=True)}
    curves = {
        name: {stage.id: c for stage in run.stages if (c := page.curves_of(stage)).by_name}
        for (name, page), run in zip(pages.items(), runs, strict=True)
    }
    sections = {
        "differences": list(_differences(found)),
        "results": list(_results(found)),
        "problems": list(_problems(found)),
        "curves": list(curves_section(curves)),
    }
    title = f"<span class=a>{text(names[0])}</span> <span class=dim>and</span> <span class=b>{text(names[1])}</span>"
    body = [
        f"<header><h1>{title}</h1><p class=headline>{text(headline(found))}</p></header>",
        navigation(sections),
        "<main>",
    ]
    body += [line for lines in sections.values() for line in lines]
    data = {"curves-data": curves_json(curves), "report-data": found.to_json()}
    return report_page(f"{names[0]} and {names[1]}", [*body, "</main>"], data)


def _results(found: Comparison) -> Iterator[str]:
    yield "<section id=results aria-labelledby=h-results><h2 id=h-results>What became better or worse</h2>"
    for note in found.notes:
        yield f'<p class="notice warn">{text(note)}</p>'
    # a model that is the same in both is told in a line: eighteen rows of zeros hide the one that moved
    same = [one for one in found.measured if one.pairing is not None and not one.pairing.is_changed]
    others = [one for one in found.measured if one not in same]
    if not found.measured:
        yield "<p class=dim>No model was measured in both.</p></section>"
        return
    if others:
        yield from _result_table(found, others)
        yield "<p class='dim small'>Paired by problem, 95 % bootstrap interval; ≈ holds 0 and may be noise. "
        yield f"Of {count(len(others), 'comparison')} of equal models about 1 in 20 would leave out 0 by chance.</p>"
    if same:
        moved = {one.model for one in others}
        models = list(dict.fromkeys(one.model for one in same if one.model not in moved))
        named = f": {text(', '.join(models))} answered every problem the same" if models else ""
        told = f"No difference in {len(same)} of {len(found.measured)}{named}"
        yield f"<details{'' if others else ' open'}><summary>{told}</summary>"
        yield from _result_table(found, same)
        yield "</details>"
    yield "</section>"


def _result_table(found: Comparison, rows: Sequence[Measured]) -> Iterator[str]:
    gains = [value for one in rows for value in one.gain or ()]
    scale = Scale.over([0.0, *gains]) if any(gains) else None
    yield "<table class='forest compare' role=table><thead role=rowgroup><tr role=row>"
    yield f"{HEAD} class=stage>Model</th>"
    if scale is not None:
        shown = [(scale.at(tick), f"{tick:+g}" if tick else "0") for tick in scale.ticks]
        ticks = "".join(f'<text x="{place}" y="12">{name}</text>' for place, name in shown)
        yield f"{HEAD} class=plot><span class=small>{text(found.b)} less {text(found.a)}</span>"
        yield f"<svg class=axis aria-hidden=true>{ticks}</svg></th>"
    yield f"{HEAD} class=value><span class=a>{text(found.a)}</span> → <span class=b>{text(found.b)}</span></th>"
    yield f"{HEAD} class=gain>Difference</th>"
    yield "</tr></thead><tbody role=rowgroup>"
    for one in rows:
        name = f"<b>{text(one.model)}</b> <span class=dim>{text(one.way)}</span>"
        yield f"<tr role=row><th role=rowheader scope=row class=stage>{name}</th>"
        if scale is not None:
            plot = forest(one.gain, scale, 0.0, one.gain) if one.gain else ""
            yield f"<td role=cell class=plot>{plot}</td>"
        before, after = (figure(value and value[0]) for value in (one.a, one.b))
        yield f"<td role=cell class=value>{before} → {after}</td>"
        told = gain_text(one.gain) if one.gain else f"<span class=dim>{text(one.reason)}</span>"
        yield f"<td role=cell class=gain>{told}</td></tr>"
    yield "</tbody></table>"


def _differences(found: Comparison) -> Iterator[str]:
    yield "<section id=differences aria-labelledby=h-differences><h2 id=h-differences>What differs</h2>"
    if not (found.recipe or found.remade or found.only_a or found.only_b or found.versions):
        yield "<p>Nothing: the recipes, the versions, the data and every stage are the same.</p>"
    yield from _table("Recipe", found.recipe, found)
    yield from _table("Versions", found.versions, found)
    if found.remade:
        yield "<h3>Why stages were made again</h3><table class=diff>"
        yield "<tr><th scope=col>stage</th><th scope=col>because</th></tr>"
        for one in found.remade:
            yield f"<tr><th scope=row>{text(one.stage)}</th><td>{'<br>'.join(map(text, one.reasons()))}</td></tr>"
        yield "</table>"
    for name, stages in ((found.a, found.only_a), (found.b, found.only_b)):
        if stages:
            yield f"<p>Only {text(name)} has {text(', '.join(stages))}.</p>"
    yield "</section>"


def _table(title: str, changes: Sequence[Change], found: Comparison) -> Iterator[str]:
    if not changes:
        return
    yield f"<h3>{title}: {count(len(changes), 'difference')}</h3>"
    yield f"<div class=scroll tabindex=0 role=region aria-label='{title}'><table class=diff>"
    heads = f"<th scope=col class=a>{text(found.a)}</th><th scope=col class=b>{text(found.b)}</th>"
    yield f"<tr><th scope=col>where</th>{heads}</tr>"
    for change in changes:
        cells = "".join(f"<td class=mono>{text(one)}</td>" for one in (change.path, change.a, change.b))
        yield f"<tr>{cells}</tr>"
    yield "</table></div>"


def _problems(found: Comparison) -> Iterator[str]:
    shown = [one for one in found.measured if one.pairing is not None and one.pairing.is_changed]
    if not shown:
        return
    # where most was broken comes first
    shown.sort(key=lambda one: -(one.pairing.count("broken") + one.pairing.count("worse")) if one.pairing else 0)
    yield "<section id=problems aria-labelledby=h-problems><h2 id=h-problems>On the same problems</h2>"
    yield "<div class=controls data-for=problems></div>"
    cards = 0
    for one in shown:
        if one.pairing is None or cards > MOST_CARDS:
            continue
        yield f'<div class=pairing data-pair="{text(one.model)}" data-way="{text(one.way)}">'
        yield f"<h3>{text(one.model)}, {text(one.way)}</h3>"
        told = f"on {count(len(one.pairing.pairs), 'problem')}: {summary_line(one.pairing)}"
        yield f"<p>{gain_text(one.gain)} <span class=dim>{told}</span></p>"
        lines = list(problem_cards(one.pairing, (found.a, found.b), LIMITS))
        cards += len(lines)
        yield from lines
        yield "</div>"
    yield "</section>"
