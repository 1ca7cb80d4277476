"""Loops whose turns name an earlier model beside `${prev}`: in the first turn they are one, and not one named twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain_plugins.errors import RecipeErrors
from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.read import document
from posttrain_plugins.recipe.spec import Recipe

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
      e: {use: evaluate, models: ["${prev}", sft], dataset: problems, rewards: [correct]}
      t: {use: sft, model: "${prev}", dataset: s}
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


def test_the_first_turn_has_init_once(read: Callable[..., Recipe]) -> None:
    parents = {stage.id: stage.parents() for stage in read(BOTH).stages}
    for name in ("s", "e"):
        assert parents[f"loop.1.{name}"] == ("sft",)
        assert set(parents[f"loop.2.{name}"]) == {"sft", "loop.1.t"}
        assert set(parents[f"loop.3.{name}"]) == {"sft", "loop.2.t"}


def test_init_may_be_the_base(read: Callable[..., Recipe]) -> None:
    text = BOTH.replace("init: sft", "init: base").replace("[sft, ", "[base, ").replace(", sft]", ", base]")
    parents = {stage.id: stage.parents() for stage in read(text).stages}
    assert parents["loop.1.s"] == ()
    assert parents["loop.2.s"] == ("loop.1.t",)


@pytest.mark.parametrize("models", ['[sft, sft, "${prev}"]', "[sft, sft]", '["${prev}", "${prev}"]'])
def test_a_model_that_is_written_twice_is_told(read: Callable[..., Recipe], models: str) -> None:
    text = BOTH.replace('use: sample, models: [sft, "${prev}"]', f"use: sample, models: {models}")
    with pytest.raises(RecipeErrors) as caught:
        read(text)
    assert any("names a model twice" in mistake.message for mistake in caught.value.mistakes)
