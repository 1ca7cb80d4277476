"""Kill training runs, damage what they left, and let them go on: other weights never, without a word.

A kill is SIGKILL after a random optimizer step of a stage on a model of hidden size 32. Then one file of the newest
checkpoint, which a marker calls complete, is removed, cut, emptied, made longer, or has one byte changed. The same
recipe is run again, and its weights, its log and its figures are compared bit for bit with those of a run that nothing
disturbed. Every second kill meets checkpoints that are taken by time, of which there is one at a time.

    python benchmarks/kills.py
    python benchmarks/kills.py --stages sft grpo --kills 2 --seed 7
"""

from __future__ import annotations

import argparse
import contextlib
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
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import record
from adapters import _quiet_libraries, datasets, tiny_model

from posttrain_plugins import run
from posttrain_plugins.checkpoints import damage
from posttrain_plugins.recipe.plan.plan import PlannedStage
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.figures import read_figures
from posttrain_plugins.trainers import watch
from posttrain_plugins.types import CHECKPOINT_MARKER

STEPS, SAVE_EVERY = 14, 4
ARGS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 5,  # no multiple of SAVE_EVERY: a figure is then over steps on both sides of a checkpoint
    "gradient_checkpointing": False,
    "report_to": "none",
}
SAMPLING = {"max_completion_length": 8, "num_generations": 2, "num_iterations": 2}
PROBLEMS = 8  # so few that what samples is killed in its second epoch and later, too
LORA = {"adapter": {"use": "lora", "r": 4}}
REWARDED = {"rewards": ["digits", "size"]}
STAGES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pretrain": ("texts", {}, {}),
    "sft": ("demos", {}, {"neftune_noise_alpha": 5}),
    "sft, adalora": ("demos", {"adapter": {"use": "adalora", "init_r": 4, "target_r": 2}}, {}),
    "multi_adapter_sft": ("tasks", LORA, {}),
    "dpo": ("pairs", {}, {"gradient_accumulation_steps": 2}),
    "dpo, sync_ref_model": ("pairs", {}, {"sync_ref_model": True, "ref_model_sync_steps": 3}),
    "dpo, lora": ("pairs", LORA, {}),
    "kto": ("labelled", {}, {}),
    "orpo": ("pairs", {}, {}),
    "cpo": ("pairs", {}, {}),
    "listwise_dpo": ("rankings", {}, {}),
    "reward": ("pairs", {}, {}),
    "ranking": ("rankings", {}, {}),
    "prm": ("steps", {}, {}),
    "grpo": ("problems", REWARDED, {**SAMPLING, "beta": 0.02}),
    "rloo": ("problems", REWARDED, {**SAMPLING}),
    "ppo": ("problems", REWARDED, {"max_completion_length": 8, "kl_coef": 0.05}),
    "ppo, lora": ("problems", {**REWARDED, **LORA}, {"max_completion_length": 8, "kl_coef": 0.05}),
    "online_dpo": ("problems", {"rewards": ["digits"]}, {"max_new_tokens": 8}),
    "distill": ("problems", {"teacher": "./teacher"}, {"max_completion_length": 8}),
    "oreo": ("scored", {}, {}),
}
"""Name in the table -> its data, the fields and the `args` that it needs beside `ARGS`."""

REWARDS = """
def digits(completions, **columns):
    return [sum(x.isdigit() for x in str(c)) / 8 for c in completions]

def size(completions, **columns):
    return [len(str(c)) / 100 for c in completions]
"""
TIMES = ("train_s", "step_time", "_runtime", "_per_second", "generation_s", "peak_memory_gib")
IMPORTED = [
    "posttrain_plugins.trainers.training",
    "posttrain_plugins.trainers.ppo.trainer",
    "peft",
    "trl.trainer.dpo_trainer",
]


def main() -> int:
    options = _options()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        kills = [row for stage in options.stages for row in bench.rows(stage, options.kills, options.seed)]
    wrong = [row for row in kills if not is_kept(row)]
    results = {"kills": kills, "steps": STEPS, "seed": options.seed, "seconds": time.perf_counter() - began}
    print(record.write("kills", results, options.out), file=sys.stderr)
    for row in wrong:
        print(f"error: {row}", file=sys.stderr)
    return 1 if wrong else 0


def is_kept(row: Mapping[str, Any]) -> bool:
    """Whether a kill came to the same end: equal weights, log and figures, and a damaged checkpoint was told."""
    is_torn = row["harm"] == f"{CHECKPOINT_MARKER} removed"  # as any checkpoint that was being written
    return all(row[what] for what in ("weights", "log", "figures", "rollouts")) and (row["told"] or is_torn)


class Bench:
    """Models, data and a process that has imported the libraries, from which runs are forked.

    Args:
        folder: a scratch folder.
    """

    def __init__(self, folder: Path) -> None:
        _quiet_libraries()
        self.folder = folder
        self.base = tiny_model(folder / "base", seed=0)
        tiny_model(folder / "teacher", seed=1)
        _write_data(folder)
        (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(["__main__", *IMPORTED])

    def rows(self, stage: str, kills: int, seed: int) -> list[dict[str, Any]]:
        """One row for each kill of a stage."""
        recipe = self.recipe(stage)
        whole = self.folder / "whole"
        told = dict(_received(self.start(recipe, whole, by_time=False)[1]))
        expected = outcome(whole)
        if expected["weights"] is None:
            raise SystemExit(f"error: {stage} does not run: {told.get('error')}")
        rows = []
        for number in range(kills):
            chance = random.Random(f"{stage} {number} {seed}")
            row = self.kill(recipe, chance, by_time=bool(number % 2))
            found = row.pop("outcome")
            row |= {what: found[what] == expected[what] for what in expected}
            rows.append({"stage": stage, "number": number, **row})
            print("ok   " if is_kept(rows[-1]) else "WRONG", json.dumps(rows[-1]), file=sys.stderr, flush=True)
        shutil.rmtree(whole)
        return rows

    def recipe(self, stage: str) -> Path:
        """The recipe of one stage."""
        data, fields, args = STAGES[stage]
        body: dict[str, Any] = {"use": stage.partition(",")[0], "model": "base", "dataset": "data", **fields}
        recipe = {
            "name": "killed",
            "seed": 5,
            "model": str(self.base),
            "datasets": {"data": {"path": str(self.folder / f"{data}.jsonl")}},
            "rewards": {
                "digits": {"use": "./rewards.py:digits"},
                "size": {"use": "./rewards.py:size", "on_error": "none"},  # guarded: its outcomes are counted
            },
            "stages": {"it": {**body, "args": {**ARGS, **args}}},
        }
        file = self.folder / "recipe.yaml"
        file.write_text(json.dumps(recipe), encoding="utf-8")
        return file

    def start(self, recipe: Path, runs: Path, by_time: bool) -> tuple[Any, Connection]:
        """A run in a process of its own, and the end of the pipe on which it tells its steps."""
        hears, tells = self.processes.Pipe(duplex=False)
        process = self.processes.Process(target=train, args=(recipe, runs, by_time, tells), daemon=True)
        process.start()
        tells.close()
        return process, hears

    def kill(self, recipe: Path, chance: random.Random, by_time: bool) -> dict[str, Any]:
        """Kill a run, damage its newest checkpoint, go on, and say what came of it."""
        runs = self.folder / "runs"
        reached = checkpoint = None
        while reached is None or checkpoint is None:  # one that was done, or had saved nothing, is drawn again
            shutil.rmtree(runs, ignore_errors=True)
            process, hears = self.start(recipe, runs, by_time)
            reached, checkpoint = kill_at(process, hears, chance, by_time), newest_complete(runs)
        harm = damaged(checkpoint, chance)
        process, hears = self.start(recipe, runs, by_time)
        told = dict(_received(hears))  # of each word the last
        process.join()
        row = {"saved": "by time" if by_time else "by steps", "after_step": reached, "checkpoint": checkpoint.name}
        row |= {"harm": harm, "from": told.get("from"), "told": checkpoint.name in told.get("note", "")}
        row |= {"error": told["error"]} if "error" in told else {}
        row["outcome"] = outcome(runs)
        return row


# --- a run -----------------------------------------------------------------------------------------------------------


class Told(Observer):
    """Tells steps, where the run starts, and notes on damage through a pipe."""

    def __init__(self, tells: Connection) -> None:
        self.tells = tells

    def started(self, stage: PlannedStage, resumes_from: Path | None) -> None:
        self.tells.send(("from", resumes_from.name if resumes_from else "the start"))

    def progress(
        self, stage: PlannedStage, done: int, total: int | None, unit: str, figures: Mapping[str, float]
    ) -> None:
        self.tells.send(("step", done))

    def note(self, stage: PlannedStage, message: str) -> None:
        if "damaged and passed over" in message:
            self.tells.send(("note", message))


def train(recipe: Path, runs: Path, by_time: bool, tells: Connection) -> None:
    """What a process does."""
    _quiet_libraries()
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (as long as the process)
    os.chdir(recipe.parent)
    saving = [] if by_time else [f"stages.it.args.save_steps={SAVE_EVERY}", "stages.it.args.save_strategy=steps"]
    # due at every boundary, but for what saving costs: some steps lie between two of them
    watch.CHECKPOINT_SECONDS, watch.CHECKPOINT_SHARE = 0.0, 0.5
    try:
        run(recipe, saving, runs_dir=runs, observer=Told(tells))
    except Exception as error:
        tells.send(("error", f"{type(error).__name__}: {error}"))


def kill_at(process: Any, hears: Connection, chance: random.Random, by_time: bool) -> int | None:
    """Kill a run at a random moment after a random step; None where it ended before."""
    # by steps, there is a checkpoint before the newest one then
    target, delay_s = chance.randint(SAVE_EVERY * (2 - by_time) + 1, STEPS - 1), chance.uniform(0, 0.05)
    done = 0
    for what, value in _received(hears):
        if what == "error":
            raise SystemExit(f"error: a run failed before it was killed: {value}")
        done = value if what == "step" else done
        if done >= target:
            break
    time.sleep(delay_s)
    process.kill()
    process.join()
    done = max([done, *(value for what, value in _received(hears) if what == "step")])
    if process.exitcode > 0:
        raise SystemExit(f"error: a run ended with exit code {process.exitcode} before it was killed")
    return done if process.exitcode == -signal.SIGKILL else None


def _received(hears: Connection) -> Iterator[tuple[str, Any]]:
    """What a run tells, until it has ended."""
    with contextlib.suppress(EOFError):
        while True:
            yield hears.recv()


# --- what it left ----------------------------------------------------------------------------------------------------


def newest_complete(runs: Path) -> Path | None:
    """The newest checkpoint with a marker."""
    markers = runs.glob(f"killed/.it-*.partial/checkpoints/checkpoint-*/{CHECKPOINT_MARKER}")
    folders = [marker.parent for marker in markers]
    return max(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def damaged(checkpoint: Path, chance: random.Random) -> str:
    """Damage one file of a checkpoint, and say how."""
    assert damage(checkpoint) is None
    file = chance.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file()))
    content, name = file.read_bytes(), str(file.relative_to(checkpoint))
    place = chance.randrange(max(len(content), 1))
    harms: dict[str, bytes | None] = {
        "removed": None,
        f"cut from {len(content):,} to {place:,} bytes": content[:place],
        "emptied": b"",
        "a byte longer": content + b"!",
        f"changed at byte {place:,}": content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :],
    }
    how = chance.choice(list(harms))
    harm = harms[how]
    file.unlink() if harm is None else file.write_bytes(harm)
    return f"{name} {how}"


def outcome(runs: Path) -> dict[str, Any]:
    """Digests of the weights, the log without times, the figures of the manifest, and what was sampled."""
    folder = runs / "killed/latest/it"
    if not folder.is_dir():
        return dict.fromkeys(("weights", "log", "figures", "rollouts"))
    weights = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("model/**/*.safetensors"))
    }
    rows = [line.figures for line in read_figures(folder)]
    metrics = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    rollouts = folder / "rollouts.jsonl"
    return {
        "weights": weights,
        "log": [{name: value for name, value in row.items() if not name.endswith(TIMES)} for row in rows],
        "figures": {name: value for name, value in metrics.items() if not name.endswith(TIMES)},
        "rollouts": rollouts.read_text(encoding="utf-8") if rollouts.is_file() else None,
    }


def _write_data(folder: Path) -> None:
    """The data of every stage, as JSONL."""
    rows = {name: table.to_list() for name, table in datasets(folder, size=32).items()}
    rows["texts"] = [{"text": str(row["prompt"])} for row in rows["demos"]]
    rows["tasks"] = [{"task": ("a", "b")[i % 2], **row} for i, row in enumerate(rows["demos"])]
    rows["problems"] = rows["problems"][:PROBLEMS]
    rows["scored"] = [
        {"prompt": row["prompt"], "completion": row["completion"], "reward": float(row["label"])}
        for row in rows["labelled"]
    ]
    for name, table in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=[*STAGES], help="which (all)")
    parser.add_argument("--kills", type=int, default=3, help="of each stage (3)")
    parser.add_argument("--seed", type=int, default=0, help="of steps, files and harms (0)")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of kills.json")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
