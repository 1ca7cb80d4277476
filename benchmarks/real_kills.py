"""kill -9 in each stage of the chain on a real chat model, and the run goes on: to the same weights, data and figures.

The stages of `recipes/real/chain.yaml` and of `ppo.yaml` with few problems and steps, all saving after each step. Each
stage is killed twice by SIGKILL: one that trains at a random moment of a random step and at one of the whole stage,
loading and publishing with it; the others at two moments of the whole. What the stage made before is set aside, the
same recipe is run again, and weights, data and figures are compared bit for bit with it.

    python benchmarks/real_kills.py
    python benchmarks/real_kills.py --stages sft grpo --kills 1
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import kills
import record

from posttrain_plugins import run

ROOT = Path(__file__).resolve().parent.parent
STEPS, SEED = 3, 0
STAGES = {
    **dict.fromkeys(("base", "sft", "pairs", "dpo", "grpo", "eval"), "chain"),
    **dict.fromkeys(("rm", "ppo"), "ppo"),
}
"""Stage -> its recipe."""
TRAINED = ("sft", "dpo", "grpo", "rm", "ppo")
ARGS = {"max_steps": STEPS, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 1}
REDUCED: dict[str, dict[str, Any]] = {
    "chain": {
        "datasets.exam.size": 4,
        "stages.grpo.args.num_generations": 4,
        "stages.eval.num_generations": 2,
        "stages.eval.plot": False,
    },
    "ppo": {},
}
FEW = {"datasets.problems.size": 8, "datasets.practice.size": 32, "datasets.demos.size": 32}
# after so few steps nothing is right: pairs of what is more and less so
FEW |= {"stages.pairs.num_generations": 2, "stages.pairs.threshold": None, "stages.pairs.rewards": ["places"]}


def main() -> int:
    options = _options()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options.folder or Path(scratch))
        rows: list[dict[str, Any]] = []
        for stage in _needed(options.stages):
            undisturbed = bench.undisturbed(stage)
            for number in range(options.kills if stage in options.stages else 0):
                rows.append(bench.kill(stage, number, undisturbed))
                print("ok   " if is_kept(rows[-1]) else "WRONG", json.dumps(rows[-1]), file=sys.stderr, flush=True)
                took = time.perf_counter() - began  # what is known is written at once: it takes long
                record.write("real_kills", {"kills": rows, "steps": STEPS, "seconds": took}, options.out)
    return 0 if all(map(is_kept, rows)) else 1


def _needed(stages: list[str]) -> list[str]:
    """The stages, and those that stand before one of them, in their order."""
    last = max(list(STAGES).index(stage) for stage in stages)
    return [stage for stage in list(STAGES)[: last + 1] if stage in stages or stage in ("base", "sft", "pairs")]


def is_kept(row: Mapping[str, Any]) -> bool:
    """Whether a killed stage came to the same end."""
    return bool(row["weights"] and row["data"] and row["figures"])


class Told(kills.Told):
    """Tells when the stage has begun, too."""

    def started(self, stage: Any, resumes_from: Path | None) -> None:
        super().started(stage, resumes_from)
        self.tells.send(("began", stage.id))


def play(recipe: str, stage: str, runs: Path, tells: Connection) -> None:
    """What a process does: one stage of a recipe."""
    kills._quiet_libraries()
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (as long as the process)
    trained = [one for one in TRAINED if one == "sft" or STAGES[one] == recipe]
    args = {f"stages.{one}.args.{name}": value for one in trained for name, value in ARGS.items()}
    file = ROOT / "recipes" / "real" / f"{recipe}.yaml"
    try:
        run(file, {**FEW, **REDUCED[recipe], **args}, runs_dir=runs, only=[stage], observer=Told(tells))
    except Exception as error:
        tells.send(("error", f"{type(error).__name__}: {error}"))


class Bench:
    """A runs folder, and a process that has imported the libraries, from which runs are forked.

    Args:
        folder: where the runs stand.
    """

    def __init__(self, folder: Path) -> None:
        self.runs = folder / "runs"
        self.aside = folder / "aside"
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["__main__", *kills.IMPORTED])

    def start(self, stage: str) -> tuple[Any, Connection]:
        """A run of one stage in a process of its own, and the end of the pipe on which it tells."""
        hears, tells = self.processes.Pipe(duplex=False)
        process = self.processes.Process(target=play, args=(STAGES[stage], stage, self.runs, tells), daemon=True)
        process.start()
        tells.close()
        return process, hears

    def finish(self, stage: str) -> dict[str, Any]:
        """Run a stage to its end; what was told, of each word the last."""
        process, hears = self.start(stage)
        told = dict(kills._received(hears))
        process.join()
        if "error" in told or process.exitcode:
            raise SystemExit(f"error: {stage} does not run: {told.get('error', process.exitcode)}")
        return told

    def artifact(self, stage: str) -> Path:
        """The folder of what a stage made."""
        return (self.runs / f"real-{STAGES[stage]}" / "latest" / stage).resolve()

    def undisturbed(self, stage: str) -> dict[str, Any]:
        self.finish(stage)
        folder = self.artifact(stage)
        seconds = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["seconds"]
        print(f"{stage}: {seconds:.0f} s undisturbed", file=sys.stderr, flush=True)
        return {"outcome": outcome(folder), "seconds": seconds}

    def kill(self, stage: str, number: int, undisturbed: Mapping[str, Any]) -> dict[str, Any]:
        """Kill a stage once, go on, and say what came of it."""
        chance = random.Random(f"{stage} {number} {SEED}")
        by_step = stage in TRAINED and number % 2 == 0
        folder = self.artifact(stage)
        shutil.rmtree(self.aside, ignore_errors=True)
        shutil.move(folder, self.aside)
        at = None
        while at is None:  # one that was done is drawn again
            shutil.rmtree(folder, ignore_errors=True)
            process, hears = self.start(stage)
            at = kill_at(process, hears, chance, by_step, undisturbed["seconds"])
        told = self.finish(stage)
        found = outcome(self.artifact(stage))
        equal = {what: found[what] == undisturbed["outcome"][what] for what in found}
        return {"stage": stage, "number": number, **at, "from": told.get("from"), **equal}


def kill_at(
    process: Any, hears: Connection, chance: random.Random, by_step: bool, seconds: float
) -> dict[str, Any] | None:
    """Kill a run after a random step, or after a random share of the stage's time; None where it ended before."""
    target, share = chance.randint(1, STEPS - 1), chance.random()
    deadline = None if by_step else share * seconds
    began, done = None, 0
    while True:
        left = None if began is None or deadline is None else max(0.0, began + deadline - time.perf_counter())
        if not hears.poll(left):
            break
        try:
            what, value = hears.recv()
        except EOFError:
            break
        if what == "error":
            raise SystemExit(f"error: a run failed before it was killed: {value}")
        began = time.perf_counter() if what == "began" else began
        done = value if what == "step" else done
        if by_step and done >= target:
            time.sleep(share * seconds / (2 * STEPS))  # somewhere in the step that follows, or in its checkpoint
            break
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return None
    after = time.perf_counter() - (began or time.perf_counter())
    return {"after_step": done, "after_s": round(after, 1), "of_s": round(seconds, 1)}


def outcome(folder: Path) -> dict[str, Any]:
    """Digests of weights and of data, and the manifest's figures but for times."""

    def digests(pattern: str) -> dict[str, str]:
        files = (file for file in sorted(folder.rglob(pattern)) if "checkpoints" not in file.parts)
        return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    metrics = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    data = {**digests("data.jsonl"), **digests("samples.jsonl"), **digests("rollouts.jsonl")}
    figures = {name: value for name, value in metrics.items() if not name.endswith((*kills.TIMES, "seconds"))}
    return {"weights": digests("*.safetensors"), "data": data, "figures": figures}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=[*STAGES], help="which (all)")
    parser.add_argument("--kills", type=int, default=2, help="of each stage (2)")
    parser.add_argument("--folder", type=Path, help="where the runs stand; by default they are removed")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of real_kills.json")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
