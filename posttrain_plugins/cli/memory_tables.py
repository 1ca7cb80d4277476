"""Tables of what a plan takes: work and time of each training stage, and its memory part by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from posttrain_plugins.memory_plan.work import Work
from posttrain_plugins.report.words import duration

if TYPE_CHECKING:
    from posttrain_plugins.memory_plan.advice import Advice
    from posttrain_plugins.memory_plan.estimate import Machine, StageMemory

__all__ = ["memory_json", "memory_lines", "memory_tables", "work_table"]

ACROSS = 5
"""Stages beside each other, which is what 80 columns hold."""
PARTS = {
    "weights": "weights",
    "adapters": "adapters",
    "optimizer": "optimizer",
    "reference": "reference",
    "critic": "critic",
    "rewards": "reward models",
    "gradients": "gradients",
    "activations": "activations",
    "logits": "logits, head",
    "cache": "KV cache",
    "sampling": "sampling",
    "update": "update, peak",
    "rollout": "rollout, peak",
}


def work_table(work: Mapping[str, Work]) -> Table:
    """Return a row a training stage: steps, tokens, and time at the speed of its last run."""
    table = Table(header_style="bold")
    for name in ("trains", "steps", "tokens, at most", "time, as last run"):
        table.add_column(name, justify="left" if name == "trains" else "right")
    for id, one in work.items():
        steps = "by rows" if one.steps is None else str(one.steps)
        tokens = "" if one.tokens is None else f"{one.tokens:,}"
        time = "cached" if one.is_cached else "never run" if one.seconds is None else duration(one.seconds)
        table.add_row(id, steps, tokens, Text(time, style="green" if one.is_cached else ""))
    return table


def memory_tables(found: Mapping[str, StageMemory | str], machine: Machine) -> Iterator[Table]:
    """Yield tables with a column a stage and a row a part, what stays first and the peaks last."""
    from posttrain_plugins.memory_plan.advice import fits
    from posttrain_plugins.memory_plan.sizes import shown

    known = {id: one for id, one in found.items() if not isinstance(one, str)}
    ids = list(known)
    for first in range(0, len(ids), ACROSS):
        some = ids[first : first + ACROSS]
        table = Table(header_style="bold", title=f"memory, of {shown(machine.memory)}", title_justify="left")
        table.add_column("")
        for id in some:
            table.add_column(Text(id), justify="right", overflow="fold")
        for name, words in PARTS.items():
            values = [getattr(known[id], name) for id in some]
            # a part that no stage has takes no line
            if any(values):
                table.add_row(words, *(shown(value) if value else "" for value in values))
            if name in ("rewards", "sampling"):
                table.add_section()
        marks = [fits(known[id], machine.memory) for id in some]
        table.add_row("", *(Text("fits", "green") if mark else Text("too large", "red") for mark in marks))
        yield table


def memory_lines(
    found: Mapping[str, StageMemory | str], advice: Mapping[str, Advice | None], machine: Machine
) -> Iterator[str]:
    """Yield what the tables leave out: stages that cannot be told, what was assumed, and what makes a stage fit."""
    from posttrain_plugins.memory_plan.sizes import shown
    from posttrain_plugins.models.training_memory import SHARE

    where = "a GPU, computing in bfloat16 as TRL does there" if machine.is_gpu else "a CPU, computing in float32"
    yield f"on {where}; a stage fits in {SHARE:.0%} of the memory. Update and rollout are never there together."
    for id, one in found.items():
        if isinstance(one, str):
            yield f"{id}: {one}"
        else:
            yield from (f"{id}: {note}" for note in one.notes)
    for id, change in advice.items():
        if change is None:
            yield f"{id}: nothing to change makes it smaller"
        elif change.fits:
            yield f"{id} fits ({shown(change.peak)}) with: {change.line}"
        else:
            yield f"{id}: no single change makes it fit; most saves ({shown(change.peak)}): {change.line}"


def memory_json(found: StageMemory | str, advice: Advice | None, machine: Machine) -> dict[str, Any]:
    """Return a stage's memory for a program: bytes by part."""
    from posttrain_plugins.memory_plan.advice import fits

    if isinstance(found, str):
        return {"unknown": found}
    told = {**vars(found), "notes": list(found.notes), "there": machine.memory, "fits": fits(found, machine.memory)}
    return told | ({"change": vars(advice)} if advice is not None else {})
