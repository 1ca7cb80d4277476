"""A reward model's accuracy and calibration on held-out pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

import posttrain_plugins as pp
from posttrain_plugins.evaluation.calibration import calibration


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_a_model_that_is_as_right_as_it_says_has_no_error() -> None:
    found = calibration([logit(0.75)] * 3 + [-logit(0.75)])
    assert found.accuracy == 0.75
    assert found.error == pytest.approx(0.0)
    assert [(one.pairs, round(one.confidence, 6), one.accuracy) for one in found.bins] == [(4, 0.75, 0.75)]


def test_the_error_is_the_mean_gap_over_pairs() -> None:
    found = calibration([logit(0.95)] * 2 + [-logit(0.95)] * 2 + [logit(0.55)] * 4)
    assert found.error == pytest.approx((4 * 0.45 + 4 * 0.45) / 8)
    assert sum(one.pairs for one in found.bins) == 8


@pytest.mark.parametrize("margins", [[], [0.0], [1e9, -1e9, 0.0]])
def test_any_margins_can_be_judged(margins: list[float]) -> None:
    found = calibration(margins)
    assert 0.0 <= found.error <= 1.0
    assert sum(one.pairs for one in found.bins) == len(margins)


@pytest.mark.slow
def test_the_reward_stage_measures_held_out_pairs(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_recipe(
        """
        model: {model}
        datasets: {pairs: {path: {data}/pairs.jsonl}}
        stages:
          rm:
            use: reward
            model: base
            dataset: pairs
            eval_dataset: pairs
            args: {max_steps: 2, per_device_train_batch_size: 4, gradient_checkpointing: false}
        """,
        model=tiny_model,
        data=tiny_data,
    )
    made = pp.run(file, runs_dir=tmp_path / "runs")["rm"]
    assert made.metrics["pair_accuracy"] == pytest.approx(made.metrics["eval_accuracy"], abs=1e-6)
    assert 0 <= made.metrics["calibration_error"] <= 1
    assert json.loads((made.folder / "calibration.json").read_text())["pairs"] == 64
