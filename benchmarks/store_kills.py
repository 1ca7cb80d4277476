"""Kill runs hundreds of times at random moments, on stages that compute nothing: what keeps results is tried alone.

Two stages: each takes steps whose state hangs on the step before, writes a checkpoint after every second one, and goes
on from one; the second reads what the first made. A timer of the kernel ends the process at a moment drawn uniformly
from the time that an undisturbed run takes; every third run is one with `--force`. Then every folder that bears the
name of a result is read again against its hashes, the run goes on to its end, and what it made is compared with the
undisturbed run's. A step that is lost or taken twice gives another state. Nothing here imports torch.

    python benchmarks/store_kills.py
    python benchmarks/store_kills.py --kills 20 --seed 3
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

from posttrain_plugins import run
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.artifact import read_manifest
from posttrain_plugins.record.storage import changes_of

PHASES = ("planning", "loading", "working", "saving", "publishing", "ending")
STAGE = """
import hashlib, json, time
from dataclasses import dataclass
from posttrain_plugins import checkpoints
from posttrain_plugins.types import DataRef, StageResult

@dataclass
class Steps:
    dataset: DataRef | None = None
    produces = "dataset"
    columns = ("prompt",)

    def __call__(self, context):
        state, done = str(context.inputs.get("dataset") and context.inputs["dataset"][0]["prompt"]), 0
        if context.resume_from is not None:
            done, state = json.loads((context.resume_from / "state.json").read_text())
        for step in range(done + 1, 9):
            state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
            time.sleep(0.001)
            context.reporter.progress(step, 8, "step", {})
            if step % 2 == 0 and step < 8:
                folder = context.folder / f"checkpoints/checkpoint-{step}"
                folder.mkdir(parents=True)
                (folder / "state.json").write_text(json.dumps([step, state]))
                checkpoints.mark_complete(folder)
        (context.folder / "data.jsonl").write_text(json.dumps({"prompt": state}) + "\\n")
        return StageResult(metrics={"steps": 8.0}, data_path=context.folder / "data.jsonl")
"""
RECIPE = "name: kept\nmodel: none/such\nstages:\n  first: {use: './steps.py:Steps'}\n"
RECIPE += "  second: {use: './steps.py:Steps', dataset: first}\n"


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        rows = killed(Path(scratch), options.kills, options.seed)
    wrong = [row for row in rows if row["corrupt"] or not row["equal"]]
    counts = {phase: sum(row["phase"] == phase for row in rows) for phase in PHASES}
    results = {"kills": len(rows), "wrong": wrong, "phases": counts, "seed": options.seed}
    results["went_on"] = sum(bool(row["from"]) for row in rows)
    print(record.write("store_kills", results, options.out), json.dumps(results), file=sys.stderr)
    return 1 if wrong else 0


def killed(folder: Path, kills: int, seed: int) -> list[dict[str, Any]]:
    """Kill so many runs, and return what came of each."""
    import datasets  # noqa: F401 (once, and not in each process that is killed)

    (folder / "steps.py").write_text(STAGE, encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    phase = mmap.mmap(-1, 1)  # shared with the process that is killed
    began = time.monotonic()
    assert in_a_process(recipe, folder / "whole", phase, None, ()) == 0
    seconds = time.monotonic() - began
    expected, chance, rows = made(folder / "whole"), random.Random(seed), list[dict[str, Any]]()
    for number in range(20 * kills):
        runs = folder / "runs"
        force: tuple[str, ...] = ("first",) if number % 3 == 2 else ()
        shutil.rmtree(runs, ignore_errors=True)
        if force:  # what stands is made again
            shutil.copytree(folder / "whole", runs, symlinks=True)
        code = in_a_process(recipe, runs, phase, chance.uniform(0, seconds), force)
        if code == 0:  # it was done before
            continue
        assert code == -signal.SIGALRM, f"it ended by itself: {code}"
        found = corrupt(runs)
        starts: list[str] = []
        run(recipe, runs_dir=runs, observer=Starts(starts))
        row = {"phase": PHASES[phase[0]], "forced": bool(force), "corrupt": found + corrupt(runs)}
        rows.append({**row, "from": [name for name in starts if name], "equal": made(runs) == expected})
        if len(rows) == kills:
            break
    return rows


class Starts(Observer):
    """Notes where stages start from."""

    def __init__(self, starts: list[str]) -> None:
        self.starts = starts

    def started(self, stage: Any, resumes_from: Path | None) -> None:
        self.starts.append(resumes_from.name if resumes_from else "")


class Marks(Observer):
    """Writes into shared memory which phase a run is in."""

    def __init__(self, phase: mmap.mmap) -> None:
        self.phase = phase

    def started(self, stage: Any, resumes_from: Path | None) -> None:
        self.phase[0] = 1

    def progress(self, stage: Any, done: int, total: int | None, unit: str, figures: Any) -> None:
        self.phase[0] = 2

    def finished(self, stage: Any, artifact: Any, is_cached: bool) -> None:
        self.phase[0] = 5


def in_a_process(recipe: Path, runs: Path, phase: mmap.mmap, after_s: float | None, force: tuple[str, ...]) -> int:
    """Run in a process of its own, which the kernel ends after so many seconds; return how it ended."""
    phase[0] = 0
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        _mark(phase)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if after_s is not None:
            signal.setitimer(signal.ITIMER_REAL, max(after_s, 1e-6))
        run(recipe, runs_dir=runs, force=force, observer=Marks(phase))
        code = 0
    finally:
        os._exit(code)


def _mark(phase: mmap.mmap) -> None:
    """Let two functions of this process mark their phase."""
    from posttrain_plugins import checkpoints

    def marked(inner: Any, number: int) -> Any:
        def call(*args: Any) -> Any:
            before, phase[0] = phase[0], number
            result = inner(*args)
            phase[0] = before
            return result

        return call

    checkpoints.mark_complete = marked(checkpoints.mark_complete, 3)
    Store.publish = marked(Store.publish, 4)  # type: ignore[method-assign]


def corrupt(runs: Path) -> list[str]:
    """Return what bears the name of a result and is none, or is not as it was made."""
    found = []
    for result in sorted(runs.glob("kept/[!.]*-*")):
        manifest = read_manifest(result)
        found += [f"{result.name}: no manifest"] if manifest is None else []
        found += [f"{result.name}: {change}" for change in changes_of(result, manifest or {})]
    return found


def made(runs: Path) -> list[str]:
    """Return what the two stages came to; what is missing is empty."""
    files = [runs / "kept/latest" / stage / "data.jsonl" for stage in ("first", "second")]
    return [file.read_text(encoding="utf-8") if file.is_file() else "" for file in files]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300, help="how many (300)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of store_kills.json")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
