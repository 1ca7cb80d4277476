"""Search trees on a run's page, from the traces that evaluations and samples leave. No paper."""

from __future__ import annotations

from collections.abc import Iterator

from posttrain_plugins.engine.saved_traces import TRACES, read_traces
from posttrain_plugins.record.runs import RunRecord, StageRecord
from posttrain_plugins.report.page import text
from posttrain_plugins.report.texts import preview, prompt_text
from posttrain_plugins.report.trace_page import trace_body
from posttrain_plugins.report.words import count

__all__ = ["search_section"]

MAX_TRACES = 200
MAX_CHARS = 2_500_000


def search_section(run: RunRecord) -> Iterator[str]:
    """Yield the traces of each stage that searched, closed; how many are left out is told."""
    stages = [stage for stage in run.stages if stage.folder is not None and (stage.folder / TRACES).is_file()]
    lines, left_out = _traces(stages)
    if not lines:
        return
    yield "<section id=searches aria-labelledby=h-searches><h2 id=h-searches>How it searched</h2>"
    yield "<p class=dim>What strategies asked, on the first problems: ● is on the path of the answer.</p>"
    yield from lines
    if left_out:
        yield f"<p class='dim small'>{count(left_out, 'trace')} more in traces.jsonl</p>"
    yield "</section>"


def _traces(stages: list[StageRecord]) -> tuple[list[str], int]:
    lines: list[str] = []
    shown = left_out = chars = 0
    for stage in stages:
        assert stage.folder is not None
        for about, result in read_traces(stage.folder / TRACES):
            if shown == MAX_TRACES or chars > MAX_CHARS:
                left_out += 1
                continue
            first = next((event["prompt"] for event in result.trace if "prompt" in event), "")
            asked = text(preview(prompt_text(first)))
            name = f"<b>{text(about['model'])}</b> <span class=dim>{text(about['measure'])}</span>"
            head = (
                f"{name} <span class='mono preview'>{asked}</span><span class=mean>{text(result.answer or '')}</span>"
            )
            body = [*trace_body(result, f"t{shown}n", 3)]
            lines += [f"<details class='problem trace'><summary>{head}</summary>", *body, "</details>"]
            chars += sum(map(len, body))
            shown += 1
    return lines, left_out
