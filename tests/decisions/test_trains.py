"""Each form of decisions goes into its trainer with no converter between."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.datasets.digit_chain import DigitChain
from posttrain_plugins.decisions.item import Decision, Item
from posttrain_plugins.decisions.ledger import Ledger
from posttrain_plugins.decisions.questions import latest_questions, read_questions
from posttrain_plugins.errors import WaitsForPerson

pytestmark = pytest.mark.slow

ARGS = "{max_steps: 1, per_device_train_batch_size: 2, max_length: 64, gradient_checkpointing: false}"
RECIPE = """
model: {model}
datasets: {prompts: prompts.jsonl, answers: answers.jsonl, one: one.jsonl}
stages:
  written: {use: annotate, dataset: prompts, mode: demonstration, file: {ledger}}
  picked: {use: annotate, dataset: answers, mode: pick, file: {ledger}}
  ranked: {use: annotate, dataset: answers, mode: rank, file: {ledger}}
  accepted: {use: annotate, dataset: one, mode: accept, file: {ledger}}
  checked: {use: annotate, dataset: one, mode: first_wrong, separator: ";", file: {ledger}}
  sft: {use: sft, model: base, dataset: written, args: {args}}
  rm: {use: reward, model: base, dataset: picked, args: {args}}
  dpo: {use: dpo, model: base, dataset: picked, args: {args}}
  listwise_rm: {use: ranking, model: base, dataset: ranked, args: {args}}
  listwise: {use: listwise_dpo, model: base, dataset: ranked, args: {args}}
  kto: {use: kto, model: base, dataset: accepted, args: {args}}
  prm: {use: prm, model: base, dataset: checked, separator: ";", args: {args}}
"""
ASKS = ("written", "picked", "ranked", "accepted", "checked")


def answered(item: Item, rng: random.Random) -> dict[str, Any]:
    places = list(range(len(item.completions)))
    rng.shuffle(places)
    return {
        "demonstration": {"text": "<answer>4</answer>"},
        "pick": {"choice": places[0]} if places else {},
        "rank": {"order": (tuple(places[:1]), tuple(places[1:]))},
        "accept": {"verdict": rng.random() < 0.5},
        "first_wrong": {"first_wrong": rng.randrange(len(item.steps) + 1)},
    }[item.mode]


def test_six_trainers_take_what_people_decided(
    tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rows = DigitChain(part="demonstrations", size=12)().to_list()
    prompts = [{"prompt": row["prompt"]} for row in rows]
    said = [[{"role": "assistant", "content": f"<answer>{n}</answer>"}] for n in range(3)]
    for name, made in {
        "prompts": prompts,
        "answers": [{**row, "completions": said} for row in prompts],
        "one": rows,
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    ledger = tmp_path / "decisions.jsonl"
    file = write_recipe(RECIPE, name="r.yaml", model=tiny_model, ledger=ledger, args=ARGS)
    with pytest.raises(WaitsForPerson):
        pp.run(file, runs_dir=tmp_path / "runs")
    rng = random.Random(0)
    with Ledger.open(ledger) as opened:
        for stage in ASKS:  # one run has asked them all: none needs another
            folder = latest_questions(tmp_path / "runs" / "r", stage)
            assert folder is not None
            for item in read_questions(folder).items:
                given = answered(item, rng)
                opened.append(Decision(f"{stage}{item.id}", item.id, item.mode, "ann", **given))
    run = pp.run(file, runs_dir=tmp_path / "runs")
    for stage in ("sft", "rm", "dpo", "listwise_rm", "listwise", "kto", "prm"):
        assert run[stage].model_path is not None
        assert run[stage].metrics["steps"] == 1
