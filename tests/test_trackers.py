"""Trackers: a run for each stage that outlives it, one run over a kill, and none that can stop or change a training."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins import plan, run
from posttrain_plugins.errors import StageFailed
from posttrain_plugins.recipe.run.run import Observer, Run
from posttrain_plugins.trainers import trackers

SFT = """
    name: tracked
    seed: 5
    model: {model}
    stages:
      sft:
        use: sft
        model: base
        dataset: {path: "{data}/demos.jsonl"}
        args: {max_steps: 3, per_device_train_batch_size: 4, logging_steps: 1, gradient_checkpointing: false, {more}}
"""

RECIPE = (
    SFT
    + """
      grpo:
        use: grpo
        model: sft
        dataset: {path: "{data}/problems.jsonl"}
        rewards: [length(max_chars=8)]
        args: {max_steps: 3, per_device_train_batch_size: 4, logging_steps: 1, gradient_checkpointing: false,
               num_generations: 2, max_completion_length: 4, log_completions: true, num_completions_to_print: 0, {more}}
"""
)

WANDB = """
import json, os
from pathlib import Path

run = None
calls = Path(os.environ["FAKE_WANDB"])

def _write(*what):
    with calls.open("a") as file:
        file.write(json.dumps(what) + "\\n")

class _Run:
    def __init__(self, id): self.id, self.name, self.url, self.summary = id, id, "", {}
    def _label(self, **kwargs): pass

class _Config(dict):
    def update(self, values, **kwargs): pass

config = _Config()

class Table:
    def __init__(self, dataframe): self.rows = len(dataframe)

def init(**kwargs):
    global run
    assert run is None
    run = _Run(kwargs["id"])
    _write("init", kwargs)
    return run

def log(row, **kwargs):
    _write("log", run.id, {k: v.rows if isinstance(v, Table) else v for k, v in row.items()})

def finish(exit_code=None):
    global run
    _write("finish", run.id, exit_code)
    run = None
"""


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path) -> Callable[..., Path]:
    def write(more: str, text: str = RECIPE) -> Path:
        return write_recipe(text, model=tiny_model, data=tiny_data, more=more)

    return write


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[list[Any]]]]:
    """A package that looks like wandb and writes what it is told; gives what it was told."""
    package = tmp_path / "site" / "wandb"
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(WANDB)
    for part in ("sdk", "sdk/lib"):
        (package / part / "__init__.py").touch()
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception): pass\n")
    told = tmp_path / "told.jsonl"
    monkeypatch.setenv("FAKE_WANDB", str(told))
    monkeypatch.syspath_prepend(str(package.parent))
    # TRL imports it when it is imported itself, which an earlier test may have done without it
    monkeypatch.setattr("trl.trainer.base_trainer.wandb", importlib.import_module("wandb"), raising=False)
    yield lambda: [json.loads(line) for line in told.read_text().splitlines()]
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb"]:
        del sys.modules[name]


class Told(Observer):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, stage: Any, message: str) -> None:
        self.notes.append(message)


def scalars(folder: Path, name: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    return [event.step for event in found.Scalars(name)]


def weights(done: Run, stage: str = "sft") -> bytes:
    assert done[stage].model_path is not None
    return (Path(str(done[stage].model_path)) / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_tensorboards_events_and_completions_outlive_the_stage(recipe: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    done = run(recipe("report_to: tensorboard"), runs_dir=tmp_path / "runs")
    for stage in ("sft", "grpo"):
        folder = done[stage].folder
        assert folder.parent == tmp_path / "runs/tracked"
        assert scalars(folder, "train/loss") == [1, 2, 3], "--logdir runs names the run as the artifact is called"
    found = sorted(file.name for file in (done["grpo"].folder / "completions").iterdir())
    assert found == [f"completions_0000{step}.parquet" for step in (1, 2, 3)]
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ


@pytest.mark.slow
def test_a_folder_of_the_users_own_has_a_run_for_each_stage(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    done = run(recipe("report_to: tensorboard"), runs_dir=tmp_path / "runs")
    for stage in ("sft", "grpo"):
        assert scalars(tmp_path / "board/tracked" / done[stage].folder.name, "train/loss") == [1, 2, 3]


@pytest.mark.slow
def test_trackio_has_a_run_for_each_stage_beside_them(recipe: Callable[..., Path], tmp_path: Path) -> None:
    trackio = pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    before = trackio.utils.TRACKIO_DIR
    done = run(recipe("report_to: trackio"), runs_dir=tmp_path / "runs")
    assert (tmp_path / "runs/tracked/trackio/tracked.db").is_file()
    assert before == trackio.utils.TRACKIO_DIR, "as it was"
    assert not (before / "tracked.db").exists()
    with trackers._paths_below(before, tmp_path / "runs/tracked/trackio"):
        for stage in ("sft", "grpo"):
            rows = SQLiteStorage.get_logs("tracked", run=f"tracked/{done[stage].folder.name}")
            assert [row["train/global_step"] for row in rows if "train/loss" in row] == [1, 2, 3]
        tables = [len(row["completions"]["_value"]) for row in rows if "completions" in row]
        assert tables == [4] * 4, "of three steps, and TRL's of the last line of its log"


@pytest.mark.slow
def test_wandb_is_begun_and_finished_once_for_each_stage(
    recipe: Callable[..., Path], tmp_path: Path, wandb: Callable[[], list[list[Any]]]
) -> None:
    before = dict(os.environ)
    done = run(recipe("report_to: wandb"), runs_dir=tmp_path / "runs")
    assert dict(os.environ) == before
    names = [f"tracked/{done[stage].folder.name}" for stage in ("sft", "grpo")]
    begun = [what[1] for what in wandb() if what[0] == "init"]
    assert [(one["project"], one["name"], one["resume"]) for one in begun] == [("tracked", n, "allow") for n in names]
    ids = [one["id"] for one in begun]
    assert len({*ids}) == 2
    assert [what[1:] for what in wandb() if what[0] == "finish"] == [[id, None] for id in ids]
    order = [(what[0], what[1]) for what in wandb()]
    for id in ids:
        steps = [w[2]["train/global_step"] for w in wandb() if w[:2] == ["log", id] and "train/loss" in w[2]]
        assert steps == [1, 2, 3]
    assert order.index(("finish", ids[0])) < [what[0] for what in wandb()].index("init", 1)
    logs = [what[2] for what in wandb() if what[0] == "log"]
    assert [row["completions"] for row in logs if "completions" in row] == [4] * 4, "TRL's tables"


@pytest.mark.slow
def test_the_run_of_a_stage_that_fails_is_finished_as_failed(
    recipe: Callable[..., Path], tmp_path: Path, wandb: Callable[[], list[list[Any]]]
) -> None:
    text = RECIPE.replace("length(max_chars=8)", '"./broken.py:broken"')
    (tmp_path / "broken.py").write_text("def broken(completions, **columns):\n    raise ValueError('no')\n")
    with pytest.raises(StageFailed, match="ValueError: no"):
        run(recipe("report_to: wandb", text), runs_dir=tmp_path / "runs")
    assert [what[2] for what in wandb() if what[0] == "finish"] == [None, 1]


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["raises", "exits", "hangs", "is missing", "is unknown"])
def test_a_tracker_changes_and_stops_nothing(
    manner: str, recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    released = threading.Event()

    class Bad(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            if manner == "is missing":
                raise RuntimeError("Bad requires bad to be installed")

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = True  # of a copy
            if manner == "hangs":
                released.wait()
            if manner == "exits":
                sys.exit(3)
            raise ConnectionError("500")

    if manner != "is unknown":
        monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "bad", Bad)
    monkeypatch.setattr(trackers, "PATIENCE_S", 0.3)
    without = run(recipe("report_to: none"), runs_dir=tmp_path / "without")
    told = Told()
    try:
        done = run(recipe("report_to: bad"), runs_dir=tmp_path / "with", observer=told)
    finally:
        released.set()
    for stage in ("sft", "grpo"):
        assert weights(done, stage) == weights(without, stage)
        assert done[stage].manifest["key"] == without[stage].manifest["key"], "reporting is in no key"
    if manner == "hangs":  # the second stage does not wait for it again
        expected = ["no answer within 0.3 s", "still does not answer"]
    else:
        words = {"raises": "ConnectionError: 500", "exits": "SystemExit: 3", "is missing": "requires bad"}
        expected = [words.get(manner, "bad is not supported")] * 2
    notes = [note for note in told.notes if "tracker 'bad'" in note]
    assert len(notes) == 2
    assert all(words in note for words, note in zip(expected, notes, strict=True)), notes


def test_a_slow_tracker_is_given_no_more_than_it_can_keep(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    released = threading.Event()

    class Slow(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            released.wait()

    monkeypatch.setitem(INTEGRATION_TO_CALLBACK, "slow", Slow)
    monkeypatch.setattr(trackers, "PATIENCE_S", 0.0)
    monkeypatch.setattr(trackers, "MOST_WAITING", 1)
    told = Told()
    try:
        run(recipe("report_to: slow", SFT), runs_dir=tmp_path / "runs", observer=told)
    finally:
        released.set()
    assert any("1 calls behind" in note for note in told.notes), told.notes


KILLED = """
import os, signal, sys
from pathlib import Path
from posttrain_plugins import run
from posttrain_plugins.recipe.run.run import Observer

class Told(Observer):
    def progress(self, stage, done, total, unit, figures):
        print("step", done, flush=True)

run(sys.argv[1], runs_dir=sys.argv[2], observer=Told())
"""


@pytest.mark.slow
def test_a_killed_stage_goes_on_in_the_same_runs_with_no_step_twice(
    recipe: Callable[..., Path], tmp_path: Path, wandb: Callable[[], list[list[Any]]]
) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage
    from trackio.utils import TRACKIO_DIR

    more = "report_to: [tensorboard, trackio, wandb], max_steps: 60, save_strategy: steps, save_steps: 20"
    file, runs = recipe(more, SFT.replace("max_steps: 3, ", "")), tmp_path / "runs"
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(file), str(runs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    events = "runs/tracked/.sft-*.partial/events.out.tfevents.*"
    for line in process.stdout:
        found = re.search(r"step (\d+)\n", line)  # trackio prints in between
        if found and int(found[1]) >= 29 and any(tmp_path.glob(events)):
            break
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was done before it was killed"
    done = run(file, runs_dir=runs)
    assert done["sft"].manifest["resumed_from"] is not None
    every = list(range(1, 61))
    assert scalars(done["sft"].folder, "train/loss") == every
    name = f"tracked/{done['sft'].folder.name}"
    with trackers._paths_below(TRACKIO_DIR, runs / "tracked/trackio"):
        assert [one["name"] for one in SQLiteStorage.get_run_records("tracked")] == [name]
        rows = SQLiteStorage.get_logs("tracked", run=name)
    steps = [row["train/global_step"] for row in rows if "train/loss" in row]
    assert steps == every
    assert len({what[1]["id"] for what in wandb() if what[0] == "init"}) == 1
    given = [what[2]["train/global_step"] for what in wandb() if what[0] == "log" and "train/loss" in what[2]]
    assert given == sorted({*given})
    assert len({*every} - {*given}) <= 1, "at most the one that was being told"


def test_reporting_is_in_no_key(recipe: Callable[..., Path], tmp_path: Path) -> None:
    keys = [
        [stage.key for stage in plan(recipe(more), runs_dir=tmp_path).stages]
        for more in ("report_to: none", "report_to: [tensorboard, trackio], run_name: mine, project: ours")
    ]
    assert keys[0] == keys[1]
