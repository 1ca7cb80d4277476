"""Reward models: margin and centring by hand, three answers that a person has ordered, an ensemble in a recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins import run
from posttrain_plugins.recipe.run.run import Run
from posttrain_plugins.record.figures import read_figures

pytestmark = pytest.mark.slow

PROMPT = [{"role": "user", "content": "3|7>2"}]
ORDER = ["<think>3|7=4;4>2=4</think><answer>4</answer>", "<answer>4</answer>", "<answer>7</answer>"]
ARGS = {"max_steps": 1, "per_device_train_batch_size": 8, "learning_rate": 0.0, "gradient_checkpointing": False}
MARGINS = [0.0, 2.0] * 4
RECIPE = """
name: reward_models
seed: 5
model: {model}
datasets:
  pairs: {path: pairs.jsonl}
  graded: {path: graded.jsonl}
  rankings: {path: rankings.jsonl}
  problems: {path: "{data}/problems.jsonl", limit: 8}
rewards: {team: {use: ensemble, rewards: [plain, ranked], penalty: 0.5}}
stages:
  plain: {use: reward, model: base, dataset: pairs, args: {args}}
  margin: {use: reward, model: base, dataset: graded, args: {args}}
  centred: {use: reward, model: base, dataset: pairs, args: {centred}}
  ranked: {use: ranking, model: base, dataset: rankings, eval_dataset: rankings, args: {ranked}}
  grpo: {use: grpo, model: base, dataset: problems, rewards: [ranked, team], args: {grpo}}
"""


def write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("reward_models")
    pairs = [json.loads(line) for line in (tiny_data / "pairs.jsonl").read_text().splitlines()][:8]
    write(folder / "pairs.jsonl", pairs)
    write(folder / "graded.jsonl", [{**row, "margin": m} for row, m in zip(pairs, MARGINS, strict=True)])
    write(folder / "rankings.jsonl", [{"prompt": PROMPT, "completions": ORDER}] * 8)
    values = {
        "model": tiny_model,
        "data": tiny_data,
        "args": json.dumps(ARGS),
        "centred": json.dumps({**ARGS, "center_rewards_coefficient": 0.5}),
        "ranked": json.dumps({**ARGS, "max_steps": 30, "learning_rate": 1e-3}),
        "grpo": json.dumps({**ARGS, "num_generations": 4, "max_completion_length": 6, "logging_steps": 1}),
    }
    text = RECIPE
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    (folder / "r.yaml").write_text(text, encoding="utf-8")
    return run(folder / "r.yaml", runs_dir=folder / "runs")


def scores(made: Run, stage: str, name: str) -> list[float]:
    """Of the pairs' chosen or rejected completions by the head that the stage left, which nothing has moved."""
    rows = [json.loads(line) for line in (made[stage].folder.parents[2] / "pairs.jsonl").read_text().splitlines()]
    reward = pp.load("reward", "reward_model", model_name_or_path=str(made[stage].model_path))
    return reward([row["prompt"] for row in rows], [row[name] for row in rows])  # type: ignore[no-any-return]


def test_a_margin_is_asked_for_on_top(made: Run) -> None:
    chosen, rejected = scores(made, "plain", "chosen"), scores(made, "plain", "rejected")
    assert scores(made, "margin", "chosen") == pytest.approx(chosen), "the same seed gives the same head"
    for stage, margins in (("plain", [0.0] * 8), ("margin", MARGINS)):
        gaps = [c - r - m for c, r, m in zip(chosen, rejected, margins, strict=True)]
        loss = sum(math.log(1 + math.exp(-gap)) for gap in gaps) / 8
        assert made[stage].metrics["train_loss"] == pytest.approx(loss, abs=1e-4)


def test_centring_costs_the_square_of_the_sum(made: Run) -> None:
    chosen, rejected = scores(made, "plain", "chosen"), scores(made, "plain", "rejected")
    extra = 0.5 * sum((c + r) ** 2 for c, r in zip(chosen, rejected, strict=True)) / 8
    difference = made["centred"].metrics["train_loss"] - made["plain"].metrics["train_loss"]
    assert extra > 1e-6
    assert difference == pytest.approx(extra, rel=1e-2, abs=1e-6)


def test_three_answers_that_a_person_ordered_make_a_reward(made: Run) -> None:
    """Trained by Plackett-Luce, measured on pairs with its calibration, used in GRPO beside and inside an ensemble."""
    figures = made["ranked"].metrics
    assert figures["eval_accuracy"] == figures["pair_accuracy"] == 1.0
    assert 0.0 <= figures["calibration_error"] <= 1.0
    assert json.loads((made["ranked"].folder / "calibration.json").read_text())["pairs"] == 24
    log = next(read_figures(made["grpo"].folder))
    assert {"rewards/ranked/mean", "rewards/team/mean"} <= log.figures.keys()


def test_the_ensemble_is_its_members_less_their_disagreement(made: Run) -> None:
    texts = [[{"role": "assistant", "content": text}] for text in ORDER]
    members = [
        pp.load("reward", "reward_model", model_name_or_path=str(made[stage].model_path))([PROMPT] * 3, texts)
        for stage in ("plain", "ranked")
    ]
    team = pp.load("reward", "ensemble", rewards=[lambda i=i, **_: members[i] for i in (0, 1)], penalty=0.5)
    expected = [(a + b) / 2 - 0.5 * ((a - b) / 2) ** 2 for a, b in zip(*members, strict=True)]
    assert team(prompts=[PROMPT] * 3, completions=texts) == pytest.approx(expected)
