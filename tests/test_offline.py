"""A file of completions and rewards that a stranger wrote: SFT on the best, DPO pairs, KTO labels, OREO."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain_plugins import run

RIGHT = "<think>3|7=4;4>2=4</think><answer>4</answer>"
WRONG = "<think>3|7=7;7>2=7</think><answer>7</answer>"
THEIRS = [  # prompt, completion, a score of their own scale, and a column that nobody asked for
    ("3|7>2", RIGHT, 8, "web"),
    ("3|7>2", WRONG, 2, "web"),
    ("3|7>2<9", RIGHT, 3, "log"),
    ("3|7>3", WRONG, 4, "log"),
    ("3|7>2<9", f"{RIGHT}!", 9, "log"),
    ("3|7>2<9", WRONG, 1, "log"),
    ("3|7>3", RIGHT, 6, "log"),
]
RECIPE = """
name: offline
seed: 3
model: {model}
datasets:
  theirs: {path: theirs.jsonl}
  heldout: {use: digit_chain, split: test, size: 2}
rewards:
  right: {use: regex, pattern: "^<think>3.7=4;4>2=4</think><answer>4</answer>$"}
  value: {use: value_model, model_name_or_path: oreo}
stages:
  best: {use: sample, dataset: theirs, threshold: 5, keep: best}
  pairs: {use: sample, dataset: theirs, threshold: 5, keep: pairs, max_pairs_per_prompt: 2}
  labelled: {use: sample, dataset: theirs, threshold: 5, keep: labelled}
  anew: {use: sample, dataset: theirs, rewards: [right], keep: all}
  sft: {use: sft, model: base, dataset: best, args: {args}}
  dpo: {use: dpo, model: base, dataset: pairs, args: {args}}
  kto: {use: kto, model: base, dataset: labelled, args: {args}}
  oreo: {use: oreo, model: base, dataset: anew, eval_dataset: labelled, args: {args}}
  figures: {use: evaluate, models: [oreo], dataset: heldout, rewards: [right], num_generations: 0, max_tokens: 8,
            plot: false, strategies: [{use: value_guided_search, scorer: value, n: 4, beam_width: 2, block_tokens: 3}]}
"""
ARGS = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "gradient_checkpointing": False}


def rows(file: Path | None) -> list[dict[str, object]]:
    assert file is not None
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_strangers_file_trains_four_ways(tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """By the stranger's own scores, or scored anew; and what OREO learned of it guides a search, unchanged."""
    recipe = write_recipe(RECIPE, model=tiny_model, args=json.dumps(ARGS))
    names = ("prompt", "completion", "reward", "source")
    text = "".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in THEIRS)
    (tmp_path / "theirs.jsonl").write_text(text, encoding="utf-8")
    done = run(recipe, runs_dir=tmp_path / "runs")
    best = [(row["prompt"], row["completion"], row["reward"]) for row in rows(done["best"].data_path)]
    assert best == [("3|7>2", RIGHT, 8), ("3|7>2<9", f"{RIGHT}!", 9), ("3|7>3", RIGHT, 6)]
    pairs = {(row["prompt"], row["chosen"], row["rejected"]) for row in rows(done["pairs"].data_path)}
    assert ("3|7>2", RIGHT, WRONG) in pairs
    assert ("3|7>3", RIGHT, WRONG) in pairs
    assert len(pairs) == 3
    labels = [(row["prompt"], row["completion"], row["label"]) for row in rows(done["labelled"].data_path)]
    assert labels.count(("3|7>3", WRONG, False)) == 1
    assert [label for _, _, label in labels].count(True) == 3
    anew = {(row["prompt"], row["completion"]): row["reward"] for row in rows(done["anew"].data_path)}
    assert len(anew) == 7
    assert {text: reward for (prompt, text), reward in anew.items() if prompt == "3|7>2<9"} == {
        RIGHT: 1.0,
        f"{RIGHT}!": 0.0,
        WRONG: 0.0,
    }
    assert {row["source"] for row in rows(done["anew"].data_path)} == {"web", "log"}
    for stage in ("sft", "dpo", "kto", "oreo"):
        assert done[stage].metrics["steps"] == 2
        assert (done[stage].folder / "seen.txt").read_text(encoding="utf-8").count("\n") == 3
    made = done["oreo"].model_path
    assert made is not None
    assert (made / "critic" / "value_head.safetensors").is_file()
    assert done["figures"].details["models"]["oreo"]["measures"]
