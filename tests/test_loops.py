"""Loops whose turns name an earlier model beside `${prev}`: in the first turn they are one, in later ones two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.read import document
from posttrain_plugins.recipe.spec import FromStage, Recipe

BOTH = """\
model: ./base
datasets: {problems: {use: digit_chain}, demos: {path: demos.jsonl}}
rewards: {correct: exact_answer}
stages:
  sft: {use: sft, model: base, dataset: demos}
  loop:
    repeat: 3
    init: sft
    stages:
      s: {use: sample, models: [sft, "${prev}"], dataset: problems, rewards: [correct]}
      c: {use: combine, models: ["${prev}", sft], weights: [0.25, 0.75]}
      t: {use: sft, model: c, dataset: s}
"""


@pytest.fixture
def read(tmp_path: Path, write_rows: Callable[..., Path]) -> Callable[[str], Recipe]:
    write_rows([{"prompt": "1+1", "completion": "2"}], "demos.jsonl")
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "base" / name).write_text("{}")

    def read_text(text: str) -> Recipe:
        (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
        return check(document.load(tmp_path / "r.yaml"))

    return read_text


def inputs(recipe: Recipe, id: str) -> list[str]:
    [stage] = [stage for stage in recipe.stages if stage.id == id]
    models = stage.inputs["models"]
    assert isinstance(models, tuple)
    return [source.stage if isinstance(source, FromStage) else "base" for source in models]


def test_init_may_stand_beside_what_the_turn_before_made(read: Callable[[str], Recipe]) -> None:
    recipe = read(BOTH)
    assert inputs(recipe, "loop.2.s") == ["sft", "loop.1.t"]
    assert inputs(recipe, "loop.3.s") == ["sft", "loop.2.t"]


def test_what_has_a_figure_for_each_keeps_both(read: Callable[[str], Recipe]) -> None:
    recipe = read(BOTH)
    assert inputs(recipe, "loop.1.c") == ["sft", "sft"], "a weight for each"
    assert inputs(recipe, "loop.2.c") == ["loop.1.t", "sft"]


def test_init_may_be_the_base(read: Callable[[str], Recipe]) -> None:
    recipe = read(BOTH.replace("init: sft", "init: base").replace("[sft, ", "[base, "))
    assert inputs(recipe, "loop.2.s") == ["base", "loop.1.t"]
