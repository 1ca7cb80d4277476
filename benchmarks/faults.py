"""Kill runs at random moments of loading, training, saving and publishing: nothing is lost, and the run goes on.

Each run has two stages: `before`, which is finished when the run starts, and `it`, of one kind, on a model of hidden
size 32. A timer of the kernel ends the process at a moment drawn uniformly from the time that an undisturbed run spent
in a phase: of its own code nothing runs any more, as after kill -9. Then every folder that bears the name of a result
is read again against the hashes in its manifest, the same recipe is run to its end, and weights, data and figures are
compared bit for bit with those of the undisturbed run.

| phase        | is                                                                                     |
|--------------|----------------------------------------------------------------------------------------|
| `loading`    | from the stage's start to its first step, or to the call of a stage that trains nothing |
| `training`   | the steps, or the work of a stage that trains nothing                                   |
| `saving`     | a checkpoint or the model is written                                                    |
| `publishing` | files are hashed, the manifest is written, the folder is renamed                        |

    python benchmarks/faults.py                      # one kill of each kind and phase; goes on where it was stopped
    python benchmarks/faults.py --kinds sft ppo --kills 3 --minutes 10
    python benchmarks/faults.py --processes 2        # the run is killed, and its two processes have to end with it
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kills
import record
from kills import ARGS, IMPORTED, SAVE_EVERY, STAGES, Bench, Told, _received

from posttrain_plugins import run
from posttrain_plugins.recipe.plan.plan import PlannedStage
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.recipe.run import run as running
from posttrain_plugins.record.artifact import read_manifest
from posttrain_plugins.record.storage import FILES, changes_of
from posttrain_plugins.trainers import watch

PHASES = ("loading", "training", "saving", "publishing")
SAMPLED: dict[str, Any] = {"dataset": "problems", "rewards": ["digits"], "num_generations": 4, "max_tokens": 8}
OTHERS: dict[str, dict[str, Any]] = {
    "sample": {**SAMPLED, "model": "before", "keep": "all"},
    "evaluate": {**SAMPLED, "models": ["before"], "strategies": ["greedy"]},
    "merge": {"model": "before"},
    "combine": {"models": ["base", "before"]},
    "random_init": {
        "config": {"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32},
        "tokenizer": "posttrain_plugins.tiny_world.tokenizer:tokenizer",
    },
}
"""Kinds that train nothing, with their fields."""
KINDS = (*STAGES, *OTHERS)
COMPARED = (".safetensors", "data.jsonl", "samples.jsonl", "rollouts.jsonl", "seen.txt")
TRIES = 6
SAVING = [f"stages.it.args.save_steps={SAVE_EVERY}", "stages.it.args.save_strategy=steps"]


def main() -> int:
    options = _options()
    ends_at = time.monotonic() + 60 * options.minutes
    rows = _earlier(options.out)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Faults(Path(scratch), options.processes)
        for number in range(options.kills):
            for kind in options.kinds:
                done = {
                    row["aimed"]
                    for row in rows
                    if (row["kind"], row["number"], row["processes"]) == (kind, number, options.processes)
                }
                if set(PHASES) <= done or (options.processes > 1 and kind not in STAGES) or time.monotonic() > ends_at:
                    continue
                for row in bench.rows(kind, number, [phase for phase in PHASES if phase not in done], options.seed):
                    rows.append(row)
                    record.write("faults", {"kills": rows, "steps": kills.STEPS, "seed": options.seed}, options.out)
                    print("ok   " if is_kept(row) else "WRONG", json.dumps(row), file=sys.stderr, flush=True)
    wrong = [row for row in rows if not is_kept(row)]
    print(f"{len(rows)} kills, {len(wrong)} that lost something", file=sys.stderr)
    return 1 if wrong else 0


def is_kept(row: Mapping[str, Any]) -> bool:
    """Whether a kill cost nothing but time: no result damaged or gone, and the same end bit for bit."""
    return not row["corrupt"] and row["equal"] and "error" not in row


class Faults(Bench):
    """As `kills.Bench`, with a stage before the one that is killed."""

    def __init__(self, folder: Path, ranks: int = 1) -> None:
        super().__init__(folder)
        self.ranks = ranks
        self.processes.set_forkserver_preload(["__main__", *IMPORTED])

    def rows(self, kind: str, number: int, phases: Sequence[str], seed: int) -> Any:
        """Yield a row for each kill of a kind in these phases that the kind has."""
        recipe, template, whole = self.recipe_of(kind), self.folder / "template", self.folder / "whole"
        for folder in (template, whole):
            shutil.rmtree(folder, ignore_errors=True)
        self.told(recipe, template, until="before")
        shutil.copytree(template, whole, symlinks=True)
        told = self.told(recipe, whole)
        expected = outcome(whole)
        if expected is None:
            raise SystemExit(f"error: {kind} does not run: {[value for what, value in told if what == 'error']}")
        visits = visits_of(told)
        for phase in phases:
            chance = random.Random(f"{kind} {phase} {number} {seed}")
            aimed = [(index, seconds) for index, (name, seconds) in enumerate(visits) if name == phase]
            if not aimed:  # such a stage writes what it made as it makes it
                continue
            found = self.kill_in(recipe, template, aimed, chance)
            row = {"kind": kind, "number": number, "aimed": phase, "processes": self.ranks, **found}
            row["equal"] = row.pop("outcome") == expected
            yield row

    def recipe_of(self, kind: str) -> Path:
        """Write the recipe of a kind: `before`, then `it`."""
        data, fields, args = STAGES.get(kind, ("demos", OTHERS.get(kind, {}), {}))
        body = {"use": kind.partition(",")[0], **fields}
        if kind in STAGES:
            body |= {"model": "before", "dataset": "data", "args": {**ARGS, **args}}
            body |= {"launch": {"config": "ddp", "num_processes": self.ranks}} if self.ranks > 1 else {}
        first: dict[str, Any] = {"use": "sft", "model": "base", "dataset": "demos", "args": {**ARGS, "max_steps": 1}}
        first |= {"adapter": {"use": "lora", "r": 4}} if kind == "merge" else {}
        recipe = {
            "name": "faults",
            "seed": 5,
            "model": str(self.base),
            "datasets": {
                "data": {"path": str(self.folder / f"{data}.jsonl")},
                "demos": {"path": str(self.folder / "demos.jsonl")},
                "problems": {"path": str(self.folder / "problems.jsonl")},
            },
            "rewards": {
                "digits": {"use": "./rewards.py:digits"},
                "size": {"use": "./rewards.py:size", "on_error": "none"},
            },
            "stages": {"before": first, "it": body},
        }
        file = self.folder / "recipe.yaml"
        file.write_text(json.dumps(recipe), encoding="utf-8")
        return file

    def told(self, recipe: Path, runs: Path, until: str | None = None) -> list[tuple[str, Any]]:
        """Run to the end, and return what was told."""
        process, hears = self.begin(recipe, runs, until, None)
        told = list(_received(hears))
        process.join()
        return told

    def begin(self, recipe: Path, runs: Path, until: str | None, ends: tuple[int, float] | None) -> Any:
        """Start a run in a process of its own; it ends in a visit of a phase, after so many seconds there."""
        hears, tells = self.processes.Pipe(duplex=False)
        process = self.processes.Process(target=train, args=(recipe, runs, until, ends, tells), daemon=True)
        process.start()
        tells.close()
        return process, hears

    def kill_in(
        self, recipe: Path, template: Path, aimed: Sequence[tuple[int, float]], chance: random.Random
    ) -> dict[str, Any]:
        """Kill a run in one of the visits, look at what it left, go on, and say what came of it."""
        runs = self.folder / "runs"
        for attempt in range(TRIES):
            shutil.rmtree(runs, ignore_errors=True)
            shutil.copytree(template, runs, symlinks=True)
            visit, seconds = chance.choices(aimed, [seconds for _, seconds in aimed])[0]
            after_s = chance.uniform(0, seconds / (1 + attempt))
            process, hears = self.begin(recipe, runs, None, (visit, after_s))
            told = list(_received(hears))
            process.join()
            if process.exitcode == -signal.SIGALRM:  # else it was done before: the machine was less busy this time
                break
        else:
            raise SystemExit(f"error: it was done before it was killed, {TRIES} times")
        died_in = [value for what, value in told if what == "phase"][-1]
        row: dict[str, Any] = {"phase": died_in, "after_s": round(after_s, 4)}
        row["corrupt"] = [*processes_left(runs), *corrupt(runs)]
        said = self.told(recipe, runs)
        row["from"] = next((value for what, value in said if what == "from"), "published")
        row |= {what: value for what, value in said if what == "error"}
        row["corrupt"] += corrupt(runs)
        row["outcome"] = outcome(runs)
        return row


# --- a run -----------------------------------------------------------------------------------------------------------


class Phases:
    """Tells which phase a run is in, and ends the process in one of them.

    Args:
        tells: the pipe.
        ends: the index of a visit, and seconds; None for an undisturbed run.
    """

    def __init__(self, tells: Any, ends: tuple[int, float] | None) -> None:
        self.tells = tells
        self.ends = ends
        self.visits = -1
        self.current = "other"

    def mark(self, phase: str) -> None:
        self.current = phase
        self.visits += 1
        self.tells.send(("phase", phase))
        self.tells.send(("at", time.monotonic()))
        if self.ends is not None and self.visits == self.ends[0]:
            signal.setitimer(signal.ITIMER_REAL, max(self.ends[1], 1e-6))

    def around(self, owner: Any, name: str, phase: str) -> None:
        """Let a method be a phase, and what it was called in go on afterwards."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def marked(*args: Any, **kwargs: Any) -> Any:
            before = self.current
            if before in (phase, "other"):  # a model is saved within a checkpoint; `before` is not looked at
                return inner(*args, **kwargs)
            self.mark(phase)
            try:
                return inner(*args, **kwargs)
            finally:
                self.mark(before)

        setattr(owner, name, marked)

    def at(self, owner: Any, name: str, phase: str) -> None:
        """Let a phase begin with a call."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def marked(*args: Any, **kwargs: Any) -> Any:
            if self.current not in (phase, "other"):
                self.mark(phase)
            return inner(*args, **kwargs)

        setattr(owner, name, marked)


class Starts(Told):
    """Marks the start of `it`."""

    def __init__(self, tells: Any, phases: Phases) -> None:
        super().__init__(tells)
        self.phases = phases

    def started(self, stage: PlannedStage, resumes_from: Path | None) -> None:
        super().started(stage, resumes_from)
        if stage.id == "it":
            self.phases.mark("loading")

    def progress(
        self, stage: PlannedStage, done: int, total: int | None, unit: str, figures: Mapping[str, float]
    ) -> None:
        super().progress(stage, done, total, unit, figures)
        if self.phases.current == "loading":  # of processes that were launched: this one loads and saves nothing itself
            self.phases.mark("training")


def train(recipe: Path, runs: Path, until: str | None, ends: tuple[int, float] | None, tells: Any) -> None:
    """What a process does."""
    import peft
    import transformers

    kills._quiet_libraries()
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (as long as the process)
    os.chdir(recipe.parent)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at once, whatever it is at
    phases = Phases(tells, ends)
    trains = "args" in json.loads(recipe.read_text(encoding="utf-8"))["stages"]["it"]
    if trains:
        phases.at(watch._Watch, "on_train_begin", "training")
    else:
        phases.at(running, "call_stage", "training")
    for owner, name in (
        (transformers.Trainer, "_save_checkpoint"),
        (transformers.Trainer, "save_model"),
        (transformers.PreTrainedModel, "save_pretrained"),
        (peft.PeftModel, "save_pretrained"),
    ):
        phases.around(owner, name, "saving")
    phases.around(Store, "publish", "publishing")
    try:
        run(recipe, SAVING if trains else [], runs_dir=runs, observer=Starts(tells, phases), until=until)
        tells.send(("at", time.monotonic()))
    except Exception as error:
        tells.send(("error", f"{type(error).__name__}: {error}"))


def visits_of(told: Sequence[tuple[str, Any]]) -> list[tuple[str, float]]:
    """Return the phases in their order, each with the seconds until the next."""
    names = [value for what, value in told if what == "phase"]
    times = [value for what, value in told if what == "at"]
    return [(name, after - at) for name, at, after in zip(names, times, times[1:], strict=False)]


# --- what it left ----------------------------------------------------------------------------------------------------


def processes_left(runs: Path) -> list[str]:
    """Return the processes of a stage that are still there a minute after their run was killed."""
    for _ in range(600):
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                found += [f"process {folder.name} is left"] if any(os.fsencode(runs) in word for word in words) else []
        if not found:
            return []
        time.sleep(0.1)
    return found


def corrupt(runs: Path) -> list[str]:
    """Return what bears the name of a result and is none, or is not as it was made; and a link to nothing."""
    found = []
    folder = runs / "faults"
    for result in sorted(folder.glob("[!.]*-*")):
        manifest = read_manifest(result)
        found += [f"{result.name}: no manifest"] if manifest is None else []
        found += [f"{result.name}: {change}" for change in changes_of(result, manifest or {})]
    found += [f"latest/{link.name} leads nowhere" for link in sorted(folder.glob("latest/*")) if not link.exists()]
    return found if (folder / "latest/before").exists() else [*found, "before: lost"]


def outcome(runs: Path) -> dict[str, Any] | None:
    """Return the hashes of weights and data of both stages, and their figures without times; None where one is gone."""
    found: dict[str, Any] = {}
    for stage in ("before", "it"):
        manifest = read_manifest(runs / "faults/latest" / stage)
        if manifest is None:
            return None
        hashes = {name: value for name, value in manifest[FILES].items() if name.endswith(COMPARED)}
        metrics = {name: value for name, value in manifest["metrics"].items() if not name.endswith(kills.TIMES)}
        found[stage] = [hashes, metrics]
    return found


def _earlier(folder: Path) -> list[dict[str, Any]]:
    file = folder / "faults.json"
    return list(json.loads(file.read_text(encoding="utf-8"))["results"]["kills"]) if file.is_file() else []


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="which (all)")
    parser.add_argument("--kills", type=int, default=1, help="of each kind in each phase (1)")
    parser.add_argument("--processes", type=int, default=1, help="in which a stage trains; more under DDP (1)")
    parser.add_argument("--minutes", type=float, default=60.0, help="no kind is begun after so many (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of faults.json; what it holds stays")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
