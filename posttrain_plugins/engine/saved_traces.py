"""Traces on disk: how some problems were solved, one JSON line each, for reports to draw. No paper.

Those of the first problems, which nobody has picked. A strategy that asks once and once only leaves none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain_plugins.types import Result, Usage

__all__ = ["TRACED_PROBLEMS", "TRACES", "read_traces", "trace_lines"]

TRACES = "traces.jsonl"
TRACED_PROBLEMS = 3  # of each strategy and model


def trace_lines(results: Sequence[Result], **about: str) -> Iterator[str]:
    """Yield a line for each of the first problems of which more than one request was asked.

    Args:
        results: with their traces, in the order of the problems.
        **about: what they belong to: `model`, `measure`.
    """
    for number, result in enumerate(results[:TRACED_PROBLEMS]):
        if len(result.trace) > 1:
            usage = {role: asdict(spent) for role, spent in result.usage.items()}
            made = {"answer": result.answer, "text": result.text, "usage": usage}
            made |= {"stopped_by": result.stopped_by, "error": result.error, "trace": result.trace}
            yield json.dumps({**about, "problem": str(number), **made}, ensure_ascii=False, default=str) + "\n"


def read_traces(file: Path) -> Iterator[tuple[dict[str, Any], Result]]:
    """Yield what each trace belongs to, and the result with it; a torn line, and a missing file, are passed over."""
    try:
        stream = file.open("rb")
    except OSError:
        return
    with stream:
        for line in stream:
            try:
                row = json.loads(line)
                usage = {role: Usage(**spent) for role, spent in row["usage"].items()}
                fields = {name: row[name] for name in ("answer", "text", "stopped_by", "error", "trace")}
            except (ValueError, TypeError, KeyError):
                continue
            yield {name: row.get(name, "") for name in ("model", "measure", "problem")}, Result(usage=usage, **fields)
