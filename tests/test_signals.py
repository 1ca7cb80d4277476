"""A run that is told to end saves, ends with that signal's exit code, and says the command that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain_plugins import run
from posttrain_plugins.recipe.run.observer import Observer

STAGE = """
import sys, time
from dataclasses import dataclass
from posttrain_plugins.errors import Interrupted
from posttrain_plugins.types import StageResult

@dataclass
class Works:
    heeds: bool = True
    produces = "figures"

    def __call__(self, context):
        log = context.folder / "log.jsonl"
        if log.exists():
            return StageResult(metrics={"went_on": 1.0})
        log.write_text("{}")
        print("at work", flush=True)
        deadline = time.monotonic() + 60
        while not (self.heeds and context.should_stop()):
            assert time.monotonic() < deadline, "no signal came"
            time.sleep(0.01)
            if context.should_stop():
                print("it goes on all the same", flush=True)
        raise Interrupted("stopped in its middle")
"""
RECIPE = "name: signals\nmodel: none/such\nstages: {it: {use: './mine.py:Works', heeds: {heeds}}}"
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]


def started(recipe: Path, folder: Path, word: str) -> subprocess.Popen[str]:
    """A `posttrain run` that has said a word on its stdout or stderr."""
    command = [sys.executable, "-m", "posttrain_plugins", "run", str(recipe), "--runs-dir", str(folder / "runs")]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if word in line:
            return process
    raise AssertionError(f"it ended before {word!r}: {said}")


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    (tmp_path / "mine.py").write_text(STAGE, encoding="utf-8")
    return lambda heeds: write_recipe(RECIPE, heeds=heeds)


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_each_signal_has_its_exit_code_and_the_command_goes_on(
    number: signal.Signals, code: int, recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    process = started(recipe("true"), tmp_path, "at work")
    process.send_signal(number)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "error: stopped in its middle" in told
    assert f"hint: go on with the same command: posttrain run {tmp_path}/recipe.yaml --runs-dir" in told.replace(
        "\n", " "
    )
    assert "Traceback" not in told
    assert run(tmp_path / "recipe.yaml", runs_dir=tmp_path / "runs")["it"].metrics == {"went_on": 1.0}


def test_the_second_signal_ends_at_once_with_the_code_of_the_first(
    recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    """A stage that never asks whether it should stop."""
    process = started(recipe("false"), tmp_path, "at work")
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert any("goes on all the same" in line for line in process.stdout)  # two that come together would be one
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 138, told
    assert "stopped at once" in told
    assert run(tmp_path / "recipe.yaml", runs_dir=tmp_path / "runs")["it"].metrics == {"went_on": 1.0}


def test_a_host_program_keeps_its_own_use_of_sigusr1(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    """Such as `faulthandler.register`, or a server's log rotation; handlers are as they were afterwards."""
    mine = lambda number, frame: None  # noqa: E731
    before = signal.signal(signal.SIGUSR1, mine)
    seen: list[object] = []

    class Looks(Observer):
        def started(self, stage: object, resumes_from: object) -> None:
            seen.append(signal.getsignal(signal.SIGUSR1))
            log = next((tmp_path / "runs").glob("signals/.it-*.partial")) / "log.jsonl"
            log.write_text("{}", encoding="utf-8")  # so that the stage ends at once

    try:
        run(recipe("true"), runs_dir=tmp_path / "runs", observer=Looks())
        assert seen == [mine]
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, before)


SFT = """
name: signals
model: {model}
stages:
  it:
    use: sft
    model: base
    dataset: {path: "{data}/demos.jsonl"}
    args: {max_steps: 4000, per_device_train_batch_size: 2, gradient_checkpointing: false, save_steps: 1000000}
"""


@pytest.mark.slow
def test_slurms_signal_stops_a_training_with_a_checkpoint(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe(SFT, model=tiny_model, data=tiny_data)
    process = started(recipe, tmp_path, "step")
    process.send_signal(signal.SIGUSR1)
    told, _ = process.communicate(timeout=180)
    assert process.returncode == 138, told
    assert "a checkpoint stands" in told
    (marker,) = (tmp_path / "runs").glob("signals/.it-*.partial/checkpoints/checkpoint-*/complete")
    step = int(marker.parent.name.rpartition("-")[2])
    again = started(recipe, tmp_path, "step")
    again.send_signal(signal.SIGTERM)
    told, _ = again.communicate(timeout=180)
    assert again.returncode == 143, told
    steps = [
        int(one.parent.name.rpartition("-")[2])
        for one in (tmp_path / "runs").glob("signals/.it-*.partial/checkpoints/checkpoint-*/complete")
    ]
    assert max(steps) > step, "it went on from the checkpoint and took one further on"
