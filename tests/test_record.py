"""What a run's folder tells, while it works, after it was killed, and where an earlier version made it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError, Interrupted, StageFailed
from posttrain_plugins.record.events import EVENTS, EventFile, born, is_alive
from posttrain_plugins.record.figures import FIGURES, FiguresFile, StepFigures, read_figures
from posttrain_plugins.record.health import MIN_POINTS, health
from posttrain_plugins.record.lines import json_line, read_lines
from posttrain_plugins.record.runs import RunRecord, read_run

STAGES = """
import json, os, time
from dataclasses import dataclass
from posttrain_plugins.errors import InputError, Interrupted
from posttrain_plugins.types import DataRef, StageContext, StageResult


@dataclass
class Rows:
    dataset: DataRef | None = None
    does: str = ""
    produces = "dataset"

    def __call__(self, context: StageContext) -> StageResult:
        for done in range(5):
            context.reporter.progress(done, 5, "row", {"tokens_per_s": float("inf") if done else 1.5})
        context.reporter.note("look: \\x1b[31m[red]")
        if self.does == "raise":
            raise RuntimeError("oh no")
        if self.does == "stop":
            raise Interrupted("stopped", hint="the same command goes on")
        if self.does == "die":
            os.kill(os.getpid(), 9)
        if self.does == "sleep":
            time.sleep(60)
        path = context.folder / "data.jsonl"
        path.write_text(json.dumps({"prompt": context.stage}) + "\\n")
        return StageResult(data_path=path, metrics={"rows": 1.0})
"""
RECIPE = """
stages:
  first: {use: './stages.py:Rows'}
  child: {use: './stages.py:Rows', dataset: first, does: '%s'}
  last: {use: './stages.py:Rows', dataset: child}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], Path]:
    def write(does: str = "") -> Path:
        (tmp_path / "stages.py").write_text(STAGES)
        (tmp_path / "r.yaml").write_text(RECIPE % does)
        return tmp_path / "r.yaml"

    return write


def states(run: RunRecord) -> dict[str, str]:
    return {stage.id: stage.state for stage in run.stages}


# --- runs and events -------------------------------------------------------------------------------------------------


def test_a_run_that_ended(recipe: Callable[..., Path], tmp_path: Path) -> None:
    made = pp.run(recipe(), runs_dir=tmp_path / "runs")
    run = read_run(tmp_path / "runs/r")
    assert (run.name, run.state, states(run)) == ("r", "done", {"first": "done", "child": "done", "last": "done"})
    child = run["child"]
    assert (child.use, child.makes, child.parents, child.start) == ("Rows", "dataset", ("first",), None)
    assert (child.done, child.total, child.unit, child.shown) == (4, 5, "row", {"tokens_per_s": None})
    assert child.metrics == {"rows": 1.0}
    assert child.folder == made["child"].folder
    assert run.artifacts == dict(made)
    assert run.resolved["stages"]["child"]["dataset"] == "first"
    assert run.planned["pid"] == os.getpid()
    assert ("child", "look: \x1b[31m[red]") in run.notes
    assert [event["event"] for event in run.events][-1] == "ended"
    # of five calls within a second, the first and, since the stage ended, the last
    told = [event["done"] for event in run.events if event["event"] == "progress" and event["stage"] == "child"]
    assert told == [0, 4]


def test_the_next_run_begins_the_file_anew(recipe: Callable[..., Path], tmp_path: Path) -> None:
    pp.run(recipe(), runs_dir=tmp_path / "runs")
    pp.run(recipe(), runs_dir=tmp_path / "runs", only=["last"])
    run = read_run(tmp_path / "runs/r")
    assert states(run) == dict.fromkeys(("first", "child", "last"), "cached")
    assert [stage.is_wanted for stage in run.stages] == [False, False, True]
    assert len([event for event in run.events if event["event"] == "planned"]) == 1
    assert not list((tmp_path / "runs/r").glob(f".{EVENTS}.*"))


def test_a_result_of_another_recipe_is_found_where_it_stands(recipe: Callable[..., Path], tmp_path: Path) -> None:
    file = recipe()
    made = pp.run(file, runs_dir=tmp_path / "runs")
    pp.run(file.rename(tmp_path / "twin.yaml"), runs_dir=tmp_path / "runs")
    run = read_run(tmp_path / "runs/twin")
    assert run["first"].state == "cached"
    assert run["first"].folder == made["first"].folder
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = read_run(tmp_path / "moved/twin")["first"]
    assert moved.folder == tmp_path / "moved/r" / made["first"].folder.name
    assert moved.metrics == {"rows": 1.0}


@pytest.mark.parametrize(
    ("does", "error", "state"), [("raise", StageFailed, "failed"), ("stop", Interrupted, "stopped")]
)
def test_a_run_that_broke(recipe: Callable[..., Path], tmp_path: Path, does: str, error: Any, state: str) -> None:
    with pytest.raises(error):
        pp.run(recipe(does), runs_dir=tmp_path / "runs")
    run = read_run(tmp_path / "runs/r")
    assert run.state == state
    assert states(run) == {"first": "done", "child": state, "last": "planned"}
    assert run["child"].message is not None
    assert ("oh no" in run["child"].message) == (does == "raise")
    assert run.ended is not None
    assert run.ended["message"]


def test_a_killed_run_is_stopped(recipe: Callable[..., Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "posttrain_plugins",
        "run",
        str(recipe("die")),
        "--runs-dir",
        str(tmp_path / "runs"),
    ]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    run = read_run(tmp_path / "runs/r")
    assert (run.state, run.ended) == ("stopped", None)
    assert states(run) == {"first": "done", "child": "stopped", "last": "planned"}
    assert str(tmp_path / "r.yaml") in run.planned["command"]


def test_a_run_at_work(recipe: Callable[..., Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "posttrain_plugins",
        "run",
        str(recipe("sleep")),
        "--runs-dir",
        str(tmp_path / "runs"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        run = None
        while time.monotonic() < until and (run is None or run["child"].state == "planned"):
            time.sleep(0.1)
            run = read_run(tmp_path / "runs/r") if (tmp_path / "runs/r" / EVENTS).exists() else None
        assert run is not None
        assert run.state == "running"
        assert states(run) == {"first": "done", "child": "running", "last": "planned"}
        assert run["child"].folder is not None
        assert run["child"].folder.name.endswith(".partial")
    finally:
        process.kill()
        process.wait()


def test_a_process_number_that_another_has_now_is_no_sign_of_life() -> None:
    planned = {"host": os.uname().nodename, "pid": os.getpid(), "born": born(os.getpid())}
    assert is_alive(planned)
    assert not is_alive({**planned, "born": 1})
    assert is_alive({**planned, "born": 1, "host": "elsewhere"}), "of another machine nobody here can say"
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not is_alive({**planned, "pid": process.pid, "born": None})


def test_a_run_of_an_earlier_version(recipe: Callable[..., Path], tmp_path: Path) -> None:
    made = pp.run(recipe(), runs_dir=tmp_path / "runs")
    (tmp_path / "runs/r" / EVENTS).unlink()
    run = read_run(tmp_path / "runs/r")
    assert (run.state, states(run)) == ("done", dict.fromkeys(("first", "child", "last"), "done"))
    assert run.artifacts.keys() == made.keys()
    assert run["last"].folder == made["last"].folder
    (tmp_path / "runs/r/resolved.yaml").write_text("stages: {a: ")  # half of it, as a kill left it
    assert read_run(tmp_path / "runs/r").resolved == {}


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run stands in"):
        read_run(tmp_path / "nothing")


def test_a_full_disk_stops_no_run(tmp_path: Path) -> None:
    told: list[str] = []
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    events = EventFile(tmp_path, "r", [], told.append)
    assert events.stream is not None
    events.stream.close()
    events.stream = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 (the file closes it)
    for _ in range(3):
        events.write("note", stage="a", message="x")
    assert told == ["run.jsonl is not written any further, the run goes on: No space left on device"]
    told.clear()
    figures = FiguresFile(tmp_path, 0, told.append)
    (tmp_path / FIGURES).symlink_to("/dev/full")
    for step in range(3):
        figures.write(step, 3, 1.0, {})
    (line,) = told
    assert line.startswith("figures.jsonl is not written any further, the training goes on: ")


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_are_on_disk_when_the_step_is_done(tmp_path: Path) -> None:
    file = FiguresFile(tmp_path, 0, pytest.fail)
    file.write(1, 3, 0.5, {"loss": 2.0, "grad_norm": math.inf})
    file.write(1, 3, 0.6, {"eval_loss": 1.0})
    file.write(2, 3, 0.9, {"loss": 1.0})
    first, second = read_figures(tmp_path)
    assert (first.step, first.total, first.seconds) == (1, 3, 0.5)
    assert first.figures["eval_loss"] == 1.0
    assert math.isnan(first.figures["grad_norm"]), "JSON has no infinity; that it was none is kept"
    assert abs((second.at or 0) - time.time()) < 60


@pytest.mark.parametrize("torn", ["", '{"step": 4, "to', "\n\n", "\xff"])
def test_what_is_after_the_checkpoint_is_dropped(tmp_path: Path, torn: str) -> None:
    file = FiguresFile(tmp_path, 0, pytest.fail)
    for step in (1, 2, 2, 3):
        file.write(step, 4, float(step), {"loss": float(step)})
    with (tmp_path / FIGURES).open("a", encoding="latin-1") as stream:
        stream.write(torn)
    assert [line.step for line in read_figures(tmp_path)] == [1, 2, 3]
    FiguresFile(tmp_path, 2, pytest.fail).write(3, 4, 9.0, {"loss": 9.0})
    assert [(line.step, line.figures["loss"]) for line in read_figures(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 9.0)]
    assert len((tmp_path / FIGURES).read_text().splitlines()) == 4
    FiguresFile(tmp_path, 0, pytest.fail)
    assert (tmp_path / FIGURES).read_bytes() == b""


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    file = FiguresFile(tmp_path, 0, pytest.fail)
    file.write(1, 2, 1.0, {"loss": 1.0})
    with (tmp_path / FIGURES).open("a") as stream:
        stream.write('{"step": 2, "total": 2, "seconds": 2, "at": 2, "figures": {"loss": 1}}')  # no end of line yet
        stream.flush()
        assert [line.step for line in read_figures(tmp_path)] == [1]
        stream.write("\n")
    assert [line.step for line in read_figures(tmp_path)] == [1, 2]


def test_the_log_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"loss": 2.0, "reward": None, "epoch": 0.1, "step": 1},
        {"loss": 1.0, "epoch": 0.2, "step": 2},
        {"eval_loss": 3.0, "epoch": 0.2, "step": 2},
        {"train_loss": 1.5, "total_flos": 1e9, "step": 2},
    ]
    (tmp_path / "log.jsonl").write_text("".join(map(json_line, rows)))
    first, second = read_figures(tmp_path)
    assert math.isnan(first.figures["reward"])
    assert second == StepFigures(2, None, None, None, {"loss": 1.0, "eval_loss": 3.0, "train_loss": 1.5})


def test_a_log_of_requests_has_no_figures(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"key": "a", "value": {}}) + "\n")
    assert list(read_figures(tmp_path)) == []
    assert list(read_figures(tmp_path / "nothing")) == []


def test_lines_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a": 1}\n[1]\nnull\n\xff\xfe\n{"a": "\xe2\x80\xa8"}\n{"a"')
    assert list(read_lines(file)) == [{"a": 1}, {"a": "\u2028"}]


# --- a training ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_step_has_its_own_figures_whatever_the_trainer_logs(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """With `logging_steps: 3` a line of TRL's log is of three steps; a curve of the same steps is as with 1."""
    args = {"max_steps": 6, "per_device_train_batch_size": 4, "max_completion_length": 6, "num_generations": 2}
    args |= {"learning_rate": 1e-3, "use_cpu": True, "report_to": []}
    found = {}
    for every in (1, 3):
        recipe = write_recipe(
            """
            model: {model_name_or_path: {model}, dtype: float32}
            rewards: {odd: {use: regex, pattern: "[13579]"}}
            stages:
              sft: {use: sft, model: base, dataset: {path: "{data}/demos.jsonl"}, args: {sft}}
              rl: {use: grpo, model: base, dataset: {path: "{data}/problems.jsonl"}, rewards: [odd], args: {args}}
            """,
            name=f"every{every}.yaml",
            model=tiny_model,
            data=tiny_data,
            args=json.dumps({**args, "logging_steps": every}),
            sft=json.dumps({**{k: v for k, v in args.items() if "gener" not in k and "compl" not in k}}),
        )
        made = pp.run(recipe, runs_dir=tmp_path / f"runs{every}")
        found[every] = list(read_figures(made["rl"].folder))
    for one, three in zip(found[1], found[3], strict=True):
        assert (one.step, one.total) == (three.step, three.total)
        for name in ("loss", "reward", "rewards/odd/mean", "completions/mean_length", "entropy"):
            assert one.figures[name] == pytest.approx(three.figures[name], abs=1e-6), (one.step, name)
    assert "grad_norm" not in found[3][0].figures
    assert "grad_norm" in found[3][2].figures
    seconds = [line.seconds for line in found[1]]
    assert seconds == sorted(seconds)  # type: ignore[type-var]
    metrics = made["rl"].metrics
    assert metrics["peak_memory_gib"] == max(line.figures["peak_memory_gib"] for line in found[3]) > 0
    assert 0 < metrics["generation_s"] < metrics["train_s"]
    assert "generation_s" not in made["sft"].metrics
    assert made["sft"].metrics["peak_memory_gib"] > 0


@pytest.mark.slow
def test_a_training_that_is_ill_is_told_of_once(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """A random model never ends its completions: all are cut."""
    args = {"max_steps": MIN_POINTS, "per_device_train_batch_size": 2, "max_completion_length": 2, "num_generations": 2}
    recipe = write_recipe(
        """
        model: {model_name_or_path: {model}, dtype: float32}
        rewards: {odd: {use: regex, pattern: "[13579]"}}
        stages:
          rl: {use: grpo, model: base, dataset: {path: "{data}/problems.jsonl"}, rewards: [odd], args: {args}}
        """,
        model=tiny_model,
        data=tiny_data,
        args=json.dumps({**args, "use_cpu": True, "report_to": []}),
    )
    pp.run(recipe, runs_dir=tmp_path / "runs")
    run = read_run(tmp_path / "runs/recipe")
    told = [message for stage, message in run.notes if stage == "rl" and "completions/clipped_ratio" in message]
    assert len(told) == 1
    assert "cure: raise args.max_completion_length" in told[0]
    assert {verdict.name: verdict.state for verdict in health(run["rl"].figures())}["truncated"] == "bad"
