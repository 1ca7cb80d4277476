"""What a stage held is gone before the next begins, however it ended, and other programs' collector is left alone."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain_plugins import run
from posttrain_plugins.errors import PosttrainError

STAGES = """
import sys, weakref
from dataclasses import dataclass
from posttrain_plugins.types import StageResult

class Model:  # refers to itself, as a trainer and its model do
    def __init__(self):
        self.trainer = self
        sys.held.append(weakref.ref(self))  # not here: each stage may load this file for itself

@dataclass
class Holds:
    number: int
    fails: bool = False
    produces = "dataset"

    def __call__(self, context):
        model, alive = Model(), [ref for ref in sys.held if ref() is not None]
        if self.fails:
            try:
                raise ValueError("no")
            except ValueError as error:
                raise error from error  # a chain that bites its tail
        (context.folder / "data.jsonl").write_text('{"text": "a"}\\n')
        return StageResult(data_path=context.folder / "data.jsonl", metrics={"alive": float(len(alive))})
"""
RECIPE = """
name: given_back
model: none/such
stages:
  first: {use: "./stages.py:Holds", number: 1}
  second: {use: "./stages.py:Holds", number: 2}
  third: {use: "./stages.py:Holds", number: 3, fails: true}
  fourth: {use: "./stages.py:Holds", number: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "stages.py").write_text(STAGES, encoding="utf-8")
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    sys.held = []  # type: ignore[attr-defined]
    gc.disable()  # only what collects by itself is seen
    yield file
    gc.enable()
    gc.unfreeze()
    del sys.held  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_frozen", [False, True], ids=["", "in a program that has frozen its own"])
def test_no_stage_holds_what_the_one_before_it_held(recipe: Path, tmp_path: Path, is_frozen: bool) -> None:
    if is_frozen:
        gc.freeze()
    with pytest.raises(PosttrainError, match="no"):
        run(recipe, runs_dir=tmp_path / "runs")
    made = run(recipe, runs_dir=tmp_path / "runs", only=["first", "second", "fourth"])  # they stand
    assert {id: stage.metrics["alive"] for id, stage in made.items()} == {"first": 1, "second": 1, "fourth": 1}
    assert (gc.get_freeze_count() > 0) == is_frozen
