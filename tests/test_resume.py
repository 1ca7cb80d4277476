"""Killed, torn or stopped, a run goes on from its newest complete checkpoint and ends with the very same weights."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins import run
from posttrain_plugins.checkpoints import mark_complete
from posttrain_plugins.errors import InputError, StageFailed
from posttrain_plugins.recipe.plan.plan import PlannedStage
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.figures import read_figures
from posttrain_plugins.trainers import watch

pytestmark = pytest.mark.slow

RUNNER = """
import sys
from posttrain_plugins.errors import PosttrainError
from posttrain_plugins import run
from posttrain_plugins.recipe.run.observer import Observer

class Told(Observer):
    def progress(self, stage, done, total, unit, figures):
        print("step", done, flush=True)

try:
    run(sys.argv[1], sys.argv[3:], runs_dir=sys.argv[2], observer=Told())
except PosttrainError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(error.exit_code)
"""

REWARDS = """
def digits(completions, **columns):
    return [sum(x.isdigit() for x in c[0]["content"]) / 8 for c in completions]

def size(completions, **columns):
    return [len(c[0]["content"]) / 100 for c in completions]
"""

SFT = """
    name: resume
    seed: 5
    model: {model}
    stages:
      it:
        use: sft
        model: base
        dataset: {path: "{data}/demos.jsonl"}
        args: {max_steps: 40, per_device_train_batch_size: 4, learning_rate: 1e-3, logging_steps: 3,
               gradient_checkpointing: false, neftune_noise_alpha: 5}
"""

DPO = """
    name: resume
    seed: 5
    model: {model}
    stages:
      it:
        use: dpo
        model: base
        dataset: {path: "{data}/pairs.jsonl"}
        args: {max_steps: 32, per_device_train_batch_size: 4, learning_rate: 1e-3, logging_steps: 3,
               gradient_checkpointing: false, sync_ref_model: true, ref_model_sync_steps: 3}
"""

GRPO = """
    name: resume
    seed: 5
    model: {model}
    rewards: {size: {use: "./rewards.py:size", on_error: none}}
    stages:
      it:
        use: grpo
        model: base
        dataset: {path: few.jsonl}
        rewards: ["./rewards.py:digits", size]
        args: {max_steps: 32, per_device_train_batch_size: 8, num_generations: 4, max_completion_length: 8, beta: 0.02,
               num_iterations: 2, steps_per_generation: 2, learning_rate: 1e-3, logging_steps: 3,
               gradient_checkpointing: false}
"""
RECIPES = {"sft": SFT, "dpo": DPO, "grpo": GRPO}  # a line of their logs is over steps on both sides of a checkpoint
PERIOD = {
    "sft": 1,
    "dpo": 1,
    "grpo": 4,
}  # optimizer steps between two generations: steps_per_generation * num_iterations
SAVING = ["stages.it.args.save_steps=4", "stages.it.args.save_strategy=steps"]
TIMEOUT_S = 180.0


@dataclass
class Bench:
    """One recipe, and what its run without interruption gave."""

    recipe: Path
    period: int
    log: list[dict[str, Any]]
    figures: dict[str, float]
    weights: bytes


@pytest.fixture(scope="module", params=RECIPES)
def bench(
    request: pytest.FixtureRequest, tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    recipe = folder / "recipe.yaml"
    text = RECIPES[request.param].replace("{model}", str(tiny_model)).replace("{data}", str(tiny_data))
    recipe.write_text(text, encoding="utf-8")
    few = (tiny_data / "problems.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:8]
    (folder / "few.jsonl").write_text("".join(few), encoding="utf-8")  # an epoch of GRPO has as many steps
    run(recipe, runs_dir=folder / "whole")
    return Bench(recipe, PERIOD[request.param], *outcome(folder / "whole"))


def test_kill_then_go_on(bench: Bench, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = start(bench.recipe, runs, SAVING)
    wait_for(process, lambda: newest_complete(runs) >= 8)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    newest = newest_complete(runs)
    assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
    assert not (runs / "resume/latest").exists(), "nothing may look like a result"
    assert_goes_on(bench, runs, SAVING, newest)


@pytest.mark.parametrize("bench", ["grpo"], indirect=True)
def test_kill_while_a_checkpoint_is_written(bench: Bench, tmp_path: Path) -> None:
    """The torn one has the highest number, a trainer state, half of its weights, and no marker."""
    runs = tmp_path / "runs"
    process = start(bench.recipe, runs, SAVING)
    wait_for(process, lambda: newest_complete(runs) >= 4)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    newest = newest_complete(runs)
    whole = checkpoints(runs) / f"checkpoint-{newest}"
    torn = whole.with_name(f"checkpoint-{newest + 4}")
    shutil.rmtree(torn, ignore_errors=True)
    shutil.copytree(whole, torn)
    (torn / "complete").unlink()
    weights = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert_goes_on(bench, runs, SAVING, newest)


@pytest.mark.parametrize("bench", ["sft"], indirect=True)
def test_a_damaged_checkpoint_is_passed_over_and_told(bench: Bench, tmp_path: Path) -> None:
    """Without its optimizer a run would end with other weights; without its state, in a traceback."""
    runs = tmp_path / "runs"
    process = start(bench.recipe, runs, SAVING)
    wait_for(process, lambda: newest_complete(runs) >= 12)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    newest = checkpoints(runs) / f"checkpoint-{newest_complete(runs)}"
    before = newest.with_name(f"checkpoint-{int(newest.name.rpartition('-')[2]) - 4}")
    files = sorted(path.name for path in newest.iterdir() if path.name != "complete")
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"} <= set(files)
    for name in ("optimizer.pt", "scheduler.pt", "model.safetensors", "complete"):
        copy = tmp_path / f"without {name}"
        shutil.copytree(runs, copy, symlinks=True)
        damaged = checkpoints(copy) / newest.name / name
        if name == "model.safetensors":
            damaged.write_bytes(damaged.read_bytes()[:-100])
        else:
            damaged.unlink()
        told = Told()
        run(bench.recipe, SAVING, runs_dir=copy, observer=told)
        assert told.start == before.name
        passed_over = [note for note in told.notes if "damaged and passed over" in note]
        assert len(passed_over) == (name != "complete"), "one without a marker is torn, as by any kill"
        assert all(newest.name in note and name in note for note in passed_over)
        assert outcome(copy) == (bench.log, bench.figures, bench.weights)


@pytest.mark.parametrize("bench", ["sft", "dpo"], indirect=True)
def test_a_checkpoint_of_an_earlier_version(bench: Bench, tmp_path: Path) -> None:
    """It holds neither what the log averages over, which is told, nor a reference, without which it is not gone on."""
    runs = tmp_path / "runs"
    process = start(bench.recipe, runs, SAVING)
    wait_for(process, lambda: newest_complete(runs) >= 8)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    for folder in checkpoints(runs).glob("checkpoint-*"):
        for file in (folder / "resume_state_0.json", folder / "reference.pt"):
            file.unlink(missing_ok=True)
        if (folder / "complete").exists():
            mark_complete(folder)
    newest = newest_complete(runs)
    told = Told()
    if "sync_ref_model" in bench.recipe.read_text(encoding="utf-8"):
        with pytest.raises(InputError, match=f"checkpoint-{newest} holds no reference"):
            run(bench.recipe, SAVING, runs_dir=runs, observer=told)
        return
    run(bench.recipe, SAVING, runs_dir=runs, observer=told)
    assert f"figures of the end are of the steps after checkpoint-{newest} alone" in told.notes
    assert (runs / "resume/latest/it/model/model.safetensors").read_bytes() == bench.weights


@pytest.mark.parametrize(("bench", "number"), [("sft", signal.SIGTERM), ("grpo", signal.SIGINT)], indirect=["bench"])
def test_one_signal_saves_and_stops(bench: Bench, number: signal.Signals, tmp_path: Path) -> None:
    """Without any save_* in the recipe: the checkpoint is the one that the signal asks for."""
    runs = tmp_path / "runs"
    process = start(bench.recipe, runs)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step 3"):
        assert process.poll() is None, f"it ended before it was stopped: {process.communicate()}"
    process.send_signal(number)
    told, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number, told
    assert "Interrupted" in told
    assert "hint:" in told
    newest = newest_complete(runs)
    assert newest >= 3
    assert newest % bench.period == 0
    assert f"at step {newest}" in told
    assert_goes_on(bench, runs, [], newest)


@pytest.mark.parametrize(("saving", "newest"), [(SAVING, 4), ([], 7)], ids=["by steps", "by time"])
def test_what_fails_after_the_last_step_goes_on_without_one_more(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saving: list[str], newest: int
) -> None:
    """The final evaluation runs out of memory; with `save_steps` there is a checkpoint of the very last step too."""
    from trl import SFTTrainer

    def evaluate(trainer: Any) -> None:
        raise MemoryError

    recipe = tmp_path / "recipe.yaml"
    text = SFT.replace("{model}", str(tiny_model)).replace("{data}", str(tiny_data))
    recipe.write_text(text.replace("model: base", f'model: base\n        eval_dataset: "{tiny_data}/demos.jsonl"'))
    overrides = [*saving, "stages.it.args.max_steps=8"]
    monkeypatch.setattr(watch, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(watch, "CHECKPOINT_SHARE", 1e9)
    run(recipe, overrides, runs_dir=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "evaluate", evaluate)
        with pytest.raises(StageFailed, match="out of memory"):
            run(recipe, overrides, runs_dir=tmp_path / "runs")
    assert newest_complete(tmp_path / "runs") == newest
    told = Told()
    run(recipe, overrides, runs_dir=tmp_path / "runs", observer=told)
    assert told.steps == [*range(newest + 1, 9)]
    assert outcome(tmp_path / "runs") == outcome(tmp_path / "whole")


START = """
    name: resume
    seed: 5
    model: {model}
    adapters: {first: {use: lora, r: 4}, second: {use: lora, r: 2}}
    stages:
      before: {use: sft, model: base, dataset: {path: "{data}/demos.jsonl"}, adapter: first, args: {max_steps: 2}}
      it: {use: sft, model: before, dataset: {path: "{data}/demos.jsonl"}, adapter: second, adapter_mode: merge,
           args: {max_steps: 6, per_device_train_batch_size: 4, save_steps: 2, save_strategy: steps}}
"""
NEW = """
    name: resume
    seed: 5
    stages:
      it: {use: pretrain, dataset: {path: "{data}/texts.jsonl"}, tokenizer: "posttrain_plugins.tiny_world:tokenizer",
           config: {model_type: qwen3, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,
                    num_attention_heads: 2, num_key_value_heads: 2},
           args: {max_steps: 6, save_steps: 2, save_strategy: steps}}
"""


@pytest.mark.parametrize(("text", "name"), [(START, "merged"), (NEW, "initial")], ids=["merged", "initial"])
def test_a_start_that_the_stage_made_itself_is_made_again_where_it_is_damaged(
    text: str, name: str, tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base with one other weight was trained on from the checkpoint, and nothing said so."""
    from trl import SFTTrainer

    (tmp_path / "texts.jsonl").write_text('{"text": "1+1=2"}\n' * 16, encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    data = tiny_data if name == "merged" else tmp_path
    recipe.write_text(text.replace("{model}", str(tiny_model)).replace("{data}", str(data)), encoding="utf-8")
    run(recipe, runs_dir=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "save_model", fails_at_the_end(SFTTrainer.save_model))
        with pytest.raises(StageFailed, match="out of memory"):
            run(recipe, runs_dir=tmp_path / "runs")
    (weights,) = (tmp_path / "runs/resume").glob(f".it-*.partial/{name}/model.safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 64]))
    told = Told()
    result = run(recipe, runs_dir=tmp_path / "runs", observer=told)["it"]
    assert told.start == "checkpoint-4"
    assert f"'{name}' is made again: 'model.safetensors' has other contents than were saved" in told.notes
    whole = (tmp_path / "whole/resume/latest/it").resolve()
    saved = {path.relative_to(whole) for path in whole.glob("**/*.safetensors") if "checkpoints" not in path.parts}
    assert saved
    assert all((result.folder / path).read_bytes() == (whole / path).read_bytes() for path in saved)
    assert not list(result.folder.glob(f"{name}/complete"))


def fails_at_the_end(save: Callable[..., None]) -> Callable[..., None]:
    """As `save_model`, but the model of the whole training cannot be written; checkpoints can."""

    def saves(trainer: Any, folder: str | None = None, **options: Any) -> None:
        if Path(str(folder)).name == "model" and trainer.state.global_step == 6:
            raise MemoryError
        save(trainer, folder, **options)

    return saves


class Told(Observer):
    """Notes where a run started and the steps that it took."""

    def __init__(self) -> None:
        self.start: str | None = None
        self.steps: list[int] = []
        self.notes: list[str] = []

    def note(self, stage: PlannedStage, message: str) -> None:
        self.notes.append(message)

    def started(self, stage: PlannedStage, resumes_from: Path | None) -> None:
        self.start = resumes_from.name if resumes_from else None

    def progress(
        self, stage: PlannedStage, done: int, total: int | None, unit: str, figures: Mapping[str, float]
    ) -> None:
        self.steps.append(done)


def assert_goes_on(bench: Bench, runs: Path, overrides: list[str], newest: int) -> None:
    told = Told()
    run(bench.recipe, overrides, runs_dir=runs, observer=told)
    assert told.start == f"checkpoint-{newest}"
    assert told.steps == [*range(newest + 1, int(bench.figures["steps"]) + 1)]
    log, figures, weights = outcome(runs)
    assert log == bench.log
    assert figures == bench.figures
    assert weights == bench.weights, "same losses, other weights"
    assert rollouts(runs) == rollouts(bench.recipe.parent / "whole"), "sampled again after the kill, each once"


def start(recipe: Path, runs: Path, overrides: list[str] | None = None) -> subprocess.Popen[str]:
    """A run in a process of its own; its figures come on stdout, everything else goes to a file beside `runs`."""
    with runs.with_suffix(".stderr").open("w", encoding="utf-8") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(recipe), str(runs), *(overrides or [])],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def wait_for(process: subprocess.Popen[str], is_reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_reached():
        assert process.poll() is None, f"it ended too early: {process.communicate()}"
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.001)


def checkpoints(runs: Path) -> Path:
    return next((runs / "resume").glob(".it-*.partial")) / "checkpoints"


def newest_complete(runs: Path) -> int:
    """The highest number of a checkpoint with its marker, 0 where there is none."""
    markers = (runs / "resume").glob(".it-*.partial/checkpoints/checkpoint-*/complete")
    return max((int(marker.parent.name.rpartition("-")[2]) for marker in markers), default=0)


def rollouts(runs: Path) -> list[str] | None:
    """The completions that an RL stage saved; None of a stage that samples nothing."""
    file = runs / "resume/latest/it/rollouts.jsonl"
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else None


def outcome(runs: Path) -> tuple[list[dict[str, Any]], dict[str, float], bytes]:
    """Log, figures of the manifest and bytes of the weights; of times only that the last line's are of all steps."""
    folder = runs / "resume/latest/it"
    lines = list(read_figures(folder))
    figures = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["metrics"]
    last = lines[-1]
    assert [line.step for line in lines] == list(range(1, last.step + 1))
    rate = last.step / last.figures["train_runtime"]
    assert last.figures["train_steps_per_second"] == pytest.approx(rate, rel=0.01, abs=1e-3)
    rows = untimed(*(dict(line.figures) for line in lines))
    return rows, *untimed(figures), (folder / "model/model.safetensors").read_bytes()


def untimed(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    times = ("step_time", "train_s", "_runtime", "_per_second", "generation_s", "peak_memory_gib")
    return [{name: value for name, value in row.items() if not name.endswith(times)} for row in rows]
