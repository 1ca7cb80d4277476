"""A stage that fails costs the stages that are made from it, and no other; then the run fails, with its error."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError, StageFailed
from posttrain_plugins.recipe.run.observer import Observer

STAGES = """
import json
from dataclasses import dataclass, field
from posttrain_plugins.errors import InputError
from posttrain_plugins.types import DataRef, StageContext, StageResult


@dataclass
class Rows:
    dataset: DataRef | None = None
    fails: str = ""
    require: dict = field(default_factory=dict)
    produces = "dataset"

    def __call__(self, context: StageContext) -> StageResult:
        if self.fails == "input":
            raise InputError("refused", hint="mend it")
        if self.fails:
            raise RuntimeError(self.fails)
        path = context.folder / "data.jsonl"
        path.write_text(json.dumps({"prompt": context.stage}) + "\\n")
        return StageResult(data_path=path)
"""
RECIPE = """
stages:
  first: {use: './stages.py:Rows', %s}
  child: {use: './stages.py:Rows', dataset: first}
  grandchild: {use: './stages.py:Rows', dataset: child}
  other: {use: './stages.py:Rows'}
  last: {use: './stages.py:Rows', dataset: other}
"""


class Told(Observer):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}
        self.done: list[str] = []
        self.failures: list[str] = []

    def note(self, stage: Any, message: str) -> None:
        self.notes[stage.id] = message

    def finished(self, stage: Any, artifact: Any, is_cached: bool) -> None:
        self.done.append(stage.id)

    def failed(self, stage: Any, error: BaseException) -> None:
        self.failures.append(stage.id)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    def run(settings: str, told: Told, **choice: Any) -> Any:
        (tmp_path / "stages.py").write_text(STAGES)
        (tmp_path / "r.yaml").write_text(RECIPE % settings)
        return pp.run(tmp_path / "r.yaml", runs_dir=tmp_path / "runs", observer=told, **choice)

    return run


@pytest.mark.parametrize(
    ("fails", "error", "message"),
    [("oh no", StageFailed, "stage 'first' failed at .*RuntimeError: oh no"), ("input", InputError, "refused")],
)
def test_stages_that_do_not_need_it_go_on(run: Callable[..., Any], fails: str, error: Any, message: str) -> None:
    told = Told()
    with pytest.raises(error, match=message):
        run(f"fails: {fails}", told)
    assert told.done == ["other", "last"]
    assert told.failures == ["first"]
    assert told.notes["child"] == "not run: it needs 'first', which failed"
    assert told.notes["grandchild"] == "not run: it needs 'child', which failed"
    again = Told()
    run("fails: ''", again)
    assert again.done == ["first", "child", "grandchild", "other", "last"]


def test_the_first_of_several_failures_is_the_runs(run: Callable[..., Any], tmp_path: Path) -> None:
    told = Told()
    text = RECIPE.replace("other: {", "other: {fails: two, ")
    (tmp_path / "stages.py").write_text(STAGES)
    (tmp_path / "r.yaml").write_text(text % "fails: one")
    with pytest.raises(StageFailed, match="RuntimeError: one"):
        pp.run(tmp_path / "r.yaml", runs_dir=tmp_path / "runs", observer=told)
    assert (told.failures, told.done) == (["first", "other"], [])


def test_nothing_passes_a_gate_that_could_not_be_asked(run: Callable[..., Any]) -> None:
    told = Told()
    with pytest.raises(StageFailed, match="oh no"):
        run("fails: oh no, require: {accuracy: '>=0.8'}", told)
    assert told.done == []


def test_nothing_passes_a_gate_whose_model_failed(tmp_path: Path) -> None:
    told = Told()
    (tmp_path / "stages.py").write_text(STAGES)
    text = RECIPE.replace("dataset: first}", "dataset: first, require: {accuracy: '>=0.8'}}")
    (tmp_path / "r.yaml").write_text(text % "fails: oh no")
    with pytest.raises(StageFailed, match="oh no"):
        pp.run(tmp_path / "r.yaml", runs_dir=tmp_path / "runs", observer=told)
    assert (told.failures, told.done) == (["first"], [])


def test_a_full_disk_is_full_for_all(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain_plugins.recipe.run import run as running

    def full(*_: Any) -> Any:
        raise StageFailed("first") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(running, "_run_stage", full)
    told = Told()
    with pytest.raises(StageFailed, match="first"):
        run("fails: ''", told)
    assert list(told.notes) == ["first"]
