"""The chain at a glance: every stage with what it gained and how surely, as a forest plot in a table. No paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import floor, log10
from typing import Any

from posttrain_plugins.record.lineage import evaluations
from posttrain_plugins.record.results import Row, rows
from posttrain_plugins.record.runs import RunRecord, StageRecord
from posttrain_plugins.report.masking import masked_text
from posttrain_plugins.report.page import text
from posttrain_plugins.report.words import count, duration, figure, verdict

__all__ = ["Scale", "chain_section", "forest", "gain_text", "header"]

STATES = {
    "done": ("✓", "done"),
    "cached": ("✓", "cached"),
    "running": ("▶", "running"),
    "failed": ("✕", "failed"),
    "stopped": ("■", "stopped"),
    "planned": ("·", "not run yet"),
    "waiting": ("…", "waits for a person"),
}
SIGNS = {"better": "▲", "worse": "▼", "no difference": "≈"}
HEAD = "<th role=columnheader scope=col"
COLOURS = {"better": "good", "worse": "bad", "no difference": "dim"}


@dataclass(frozen=True)
class Scale:
    """From values to percent of a plot's width.

    Args:
        low: the value at the left end.
        high: at the right end.
        ticks: values that have a line.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float]) -> Scale:
        """Return a scale that holds the values, with three to six round ticks."""
        low, high = min(values), max(values)
        room = (high - low or abs(high) or 1.0) * 0.04
        low, high = low - room, high + room
        step = 10 ** floor(log10(high - low))
        step = next(one for one in (step / 5, step / 2, step, step * 2) if (high - low) / one <= 5)
        first = -floor(-low / step)
        ticks = tuple(round(i * step, 10) for i in range(first, first + 7) if i * step <= high)
        return cls(low, high, ticks)

    def at(self, value: float) -> str:
        return f"{100 * (value - self.low) / (self.high - self.low):.2f}%"


def header(run: RunRecord, title: str) -> Iterator[str]:
    """Yield the name, the state, and in one sentence what came out."""
    sign, word = STATES[run.state]
    yield f'<header><h1>{text(title)} <span class="state {run.state}">{sign} {word}</span></h1>'
    seconds = sum(float(stage.manifest.get("seconds", 0)) for stage in run.stages)
    made = sum(stage.state in ("done", "cached") for stage in run.stages)
    facts = [f"{made} of {count(len(run.stages), 'stage')} done", f"{duration(seconds)} of work"]
    finished = max((str(stage.manifest.get("finished", "")) for stage in run.stages), default="")
    facts += [_date(finished)] if finished else []
    facts += [f"seed {text(run.resolved['seed'])}"] if "seed" in run.resolved else []
    facts += [f"as of {datetime.now(UTC):%H:%M:%S} UTC, reload for more"] if run.state == "running" else []
    yield f"<p class=dim>{' · '.join(facts)}</p>"
    yield from _sentences(run)
    yield "</header>"


def _date(finished: str) -> str:
    moment = datetime.fromisoformat(finished).astimezone(UTC)
    return f"newest result {moment.day} {moment:%B %Y, %H:%M} UTC"


def _sentences(run: RunRecord) -> Iterator[str]:
    for stage in run.stages:
        message, hint = (text(masked_text(told or "")) for told in (stage.message, stage.hint))
        # most messages begin with the stage, whose name stands before them here
        message = message.removeprefix(f"stage &#x27;{text(stage.id)}&#x27; ")
        if stage.state == "failed":
            shown = message if message.startswith("failed") else f"failed: {message}"
            yield f'<p class="notice bad"><b>{text(stage.id)}</b> {shown}. {hint}</p>'
        elif stage.state == "waiting":
            yield f'<p class="notice warn"><b>{text(stage.id)}</b> {message}. {hint}</p>'
        elif stage.state in ("running", "stopped"):
            place = f": {text(stage.unit)} {stage.done:,} of {stage.total:,}" if stage.total else ""
            how = "is running" if stage.state == "running" else "was stopped; the same command goes on"
            colour = "works" if stage.state == "running" else "warn"
            yield f'<p class="notice {colour}"><b>{text(stage.id)}</b> {how}{place}.</p>'
    measured = [row for row in rows(run.artifacts) if row.sampled]
    problems = f" on {_problems(run)}" if _problems(run) else ""
    if len(measured) > 1 and len({row.sampled for row in measured}) == 1:
        told = f"All {len(measured)} models have sampled accuracy {figure(measured[0].sampled)}{problems}"
        yield f"<p class=headline>{told}.</p>"
    elif measured:
        best = max(measured, key=lambda row: row.sampled[0] if row.sampled else 0)
        over = _overs(run).get(best.stage)
        gain = f", {gain_text(best.gain)} over {text(over)}" if best.gain and over else ""
        told = f"sampled accuracy <b>{figure(best.sampled)}</b>{problems}{gain}"
        yield f"<p class=headline><b>{text(best.stage)}</b> is best: {told}.</p>"


def _overs(run: RunRecord) -> dict[str, str]:
    """Return for each measured model the one that its gain is over."""
    found = (item for artifact in evaluations(run.artifacts) for item in artifact.details["models"].items())
    return {name: str(model["gain"]["over"]) for name, model in found if model.get("gain")}


def _problems(run: RunRecord) -> str:
    sizes = {int(artifact.details["problems"]) for artifact in evaluations(run.artifacts)}
    return count(sizes.pop(), "problem") if len(sizes) == 1 else ""


def gain_text(gain: Sequence[float] | None) -> str:
    """Write a gain with its interval, a sign and a colour; a gain that may be none has neither."""
    if gain is None:
        return ""
    word = verdict(gain)
    shown = f"<span class={COLOURS[word]}><span aria-hidden=true>{SIGNS[word]} </span>{figure(gain, '+')}</span>"
    return shown + ('<span class="dim small"> no difference</span>' if word == "no difference" else "")


def chain_section(run: RunRecord) -> Iterator[str]:
    """Yield a row a stage: its state, its accuracy on one scale with all others, its gain, and how long it took."""
    stages = {stage.id: stage for stage in run.stages}
    known = rows(run.artifacts)
    shown = [*known, *(Row(stage.id, ", ".join(stage.parents)) for stage in run.stages if stage.artifact is None)]
    shown.sort(key=lambda row: list(stages).index(row.stage) if row.stage in stages else -1)
    means = {row.stage: row.sampled[0] for row in known if row.sampled}
    scale = Scale.over([value for row in known for value in row.sampled or ()]) if means else None
    overs = _overs(run)
    yield "<section id=chain aria-labelledby=h-chain><h2 id=h-chain>The chain</h2>"
    yield '<table class="forest" role=table><thead role=rowgroup><tr role=row>'
    yield f"{HEAD} class=stage>Stage</th>"
    if scale is not None:
        yield f"{HEAD} class=plot><span class=small>Sampled accuracy, 95 % interval</span>{_axis(scale)}</th>"
        yield "<th role=columnheader scope=col class=value>Accuracy</th>"
        yield "<th role=columnheader scope=col class=gain>Gain, paired by problem</th>"
    else:
        yield f"{HEAD} class=remark>What came out</th>"
    yield "<th role=columnheader scope=col class=time>Time</th></tr></thead><tbody role=rowgroup>"
    for row in shown:
        stage = stages.get(row.stage)
        over = overs.get(row.stage)
        yield f'<tr role=row class="{stage.state if stage else "done"}">{_name(row, stage)}'
        if scale is not None and row.sampled:
            yield f"<td role=cell class=plot>{forest(row.sampled, scale, means.get(over or ''), row.gain)}</td>"
            yield f"<td role=cell class=value>{figure(row.sampled)}</td>"
            shown_gain = f"{gain_text(row.gain)} <span class='dim small'>over {text(over)}</span>" if row.gain else ""
            yield f"<td role=cell class=gain>{shown_gain}</td>"
        else:
            columns = 3 if scale is not None else 1
            yield f'<td role=cell class="remark dim" colspan={columns}>{text(row.remark)}</td>'
        yield f"<td role=cell class=time>{'' if row.seconds is None else duration(row.seconds)}</td></tr>"
    yield "</tbody></table>"
    if means:
        yield "<p class='dim small'>● accuracy with its 95 % bootstrap interval &nbsp; ○ the model it started from. "
        yield "▲ better, ▼ worse, ≈ the interval of the gain holds 0: it may be noise. Gains are paired by problem.</p>"
    for artifact in evaluations(run.artifacts):
        yield from _measures(artifact.manifest["stage"], artifact.details)
        yield from _retained(artifact.manifest["stage"], artifact.details.get("retain") or {})
    yield "</section>"


def _name(row: Row, stage: StageRecord | None) -> str:
    state = stage.state if stage else "done"
    sign, word = STATES[state]
    use = f"<span class=use>{text(stage.use)}</span>" if stage and stage.use != stage.id else ""
    origin = f'<span class="dim small">← {text(row.made_from)}</span>' if row.made_from else ""
    mark = f'<span class="mark {state}" role=img aria-label="{word}" title="{word}">{sign}</span>'
    return f"<th role=rowheader scope=row class=stage>{mark} <b>{text(row.stage)}</b> {use} {origin}</th>"


def _axis(scale: Scale) -> str:
    ticks = "".join(f'<text x="{scale.at(tick)}" y="12">{tick:g}</text>' for tick in scale.ticks)
    return f"<svg class=axis aria-hidden=true>{ticks}</svg>"


def forest(
    value: Sequence[float], scale: Scale, before: float | None = None, gain: Sequence[float] | None = None
) -> str:
    """Draw a mean with its interval, and from where it came.

    Args:
        value: mean, low and high.
        scale: of the plot.
        before: the mean of the model that it started from.
        gain: over that, with its interval.
    """
    mean, low, high = (scale.at(part) for part in value)
    colour = COLOURS[verdict(gain)] if gain else "dim"
    lines = "".join(
        f'<line class=tick x1="{scale.at(tick)}" x2="{scale.at(tick)}" y1="0" y2="100%"/>' for tick in scale.ticks
    )
    came = ""
    if before is not None:
        was = scale.at(before)
        came = f'<line class="came {colour}" x1="{was}" x2="{mean}" y1="50%" y2="50%"/>'
        came += f'<circle class=was cx="{was}" cy="50%" r="4"/>'
    label = f"{figure(value)}" + (f", started from {figure(before)}" if before is not None else "")
    return (
        f'<svg class=forest-row role=img aria-label="{label}">{lines}{came}'
        f'<line class=whisker x1="{low}" x2="{high}" y1="50%" y2="50%"/>'
        f'<line class=whisker x1="{low}" x2="{low}" y1="34%" y2="66%"/>'
        f'<line class=whisker x1="{high}" x2="{high}" y1="34%" y2="66%"/>'
        f'<circle class=mean cx="{mean}" cy="50%" r="5"/></svg>'
    )


def _measures(name: str, details: Mapping[str, Any]) -> Iterator[str]:
    """Yield all ways of answering of an evaluation."""
    models: Mapping[str, Any] = details["models"]
    ways = list(dict.fromkeys(way for found in models.values() for way in found["measures"]))
    measures = [measure for found in models.values() for measure in found["measures"].values()]
    rewards = list(dict.fromkeys(reward for measure in measures for reward in measure["rewards"]))
    title = f"{text(name)}: {count(len(ways), 'way')} of answering, {count(int(details['problems']), 'problem')}"
    yield f"<details><summary>{title}</summary><div class=scroll tabindex=0 role=region aria-label='{text(name)}'>"
    heads = ["model", "answered by", *rewards, "tokens a problem", "missing"]
    yield f"<table><tr>{''.join(f'<th scope=col>{text(head)}</th>' for head in heads)}</tr>"
    for model, found in models.items():
        for way, measure in found["measures"].items():
            values = [measure["rewards"].get(reward) for reward in rewards]
            shown = [figure((v["mean"], v["low"], v["high"])) if v else "" for v in values]
            tokens = measure.get("tokens_per_problem")
            cells = [
                text(model),
                text(way),
                *shown,
                "" if tokens is None else f"{tokens:.0f}",
                measure.get("missing") or "",
            ]
            yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</table></div></details>"


def _retained(name: str, kept: Mapping[str, Any]) -> Iterator[str]:
    """Yield what each model still can do that it was not trained for, in sight where one has lost some of it."""
    rows, has_lost = [], False
    for data, found in kept.items():
        is_text = found["kind"] == "perplexity"
        for model, one in found["models"].items():
            changes = []
            for other, change in one["over"].items():
                ends = (change["mean"], change["low"], change["high"])
                # a perplexity is worse when it rises, and changes by a factor
                word = verdict((1 - ends[0], 1 - ends[2], 1 - ends[1]) if is_text else ends)
                has_lost |= word == "worse"
                shown = f"× {figure(ends)}" if is_text else figure(ends, "+")
                sign = f"<span aria-hidden=true>{SIGNS[word]} </span>"
                told = f"<span class={COLOURS[word]}>{sign}{shown}</span> <span class='dim small'>{word}, "
                changes.append(f"{told}over {text(other)}</span>")
            value = figure((one["mean"], one["low"], one["high"]))
            cells = [text(model), text(data), f"{found['kind']} {value}", "<br>".join(changes)]
            rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    if not rows:
        return
    title = f"{text(name)}: what is retained, {count(len(kept), 'data set')}"
    yield f"<details{' open' if has_lost else ''}><summary>{title}</summary>"
    yield f"<div class=scroll tabindex=0 role=region aria-label='{title}'><table>"
    heads = ("model", "data", "figure [95 %]", "changed from what it was made from")
    yield f"<tr>{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table></div></details>"
