"""A training that is refused at its very end, when its model is compared with what it started from, is not lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins import run
from posttrain_plugins.errors import HandoffError
from posttrain_plugins.recipe import handoff
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.trainers import watch

RECIPE = """
name: refused
seed: 5
model: {model}
adapters: {policy: {use: lora, r: 4}}
stages:
  sft: {use: sft, model: base, dataset: {path: {data}/demos.jsonl}, {adapter}
        args: {max_steps: 4, per_device_train_batch_size: 2, learning_rate: 1e-2, gradient_checkpointing: false}}
"""


class Told(Observer):
    """Notes where a run started, and its steps."""

    def __init__(self) -> None:
        self.start: str | None = None
        self.steps: list[int] = []

    def started(self, stage: Any, resumes_from: Path | None) -> None:
        self.start = resumes_from.name if resumes_from else None

    def progress(self, stage: Any, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        self.steps.append(done)


@pytest.mark.parametrize("adapter", ["", "adapter: policy,"])
def test_a_run_goes_on_from_the_last_checkpoint_of_a_training_that_was_refused(
    adapter: str,
    tiny_model: Path,
    tiny_data: Path,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And ends as one that was never refused, without what only served to go on."""
    recipe = write_recipe(RECIPE.replace("{adapter}", adapter), model=tiny_model, data=tiny_data)
    monkeypatch.setattr(watch, "CHECKPOINT_SECONDS", 0.0)  # those that nobody asked for, at each step
    monkeypatch.setattr(watch, "CHECKPOINT_SHARE", 1e9)
    whole = run(recipe, runs_dir=tmp_path / "whole")["sft"]

    def refuse(*given: Any) -> None:
        raise HandoffError("stage 'sft' changed chat_template: a, expected b")

    with monkeypatch.context() as patch:
        patch.setattr(handoff, "check_kept", refuse)
        with pytest.raises(HandoffError, match="changed chat_template"):
            run(recipe, runs_dir=tmp_path / "runs")
    (partial,) = (tmp_path / "runs/refused").glob(".sft-*.partial")
    (partial / "model/of_the_refused.json").write_text("{}")

    told = Told()
    made = run(recipe, runs_dir=tmp_path / "runs", observer=told)["sft"]
    assert (told.start, told.steps) == ("checkpoint-3", [4])
    assert made.manifest["resumed_from"] == "checkpoint-3"
    names, expected = (sorted(json.loads((one.folder / "manifest.json").read_text())["files"]) for one in (made, whole))
    assert names == expected
    assert not [name for name in names if "checkpoint" in name]
    (weights,) = (name for name in names if name.endswith(".safetensors"))
    assert (made.folder / weights).read_bytes() == (whole.folder / weights).read_bytes()
