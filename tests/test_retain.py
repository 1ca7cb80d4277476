"""What is forgotten: perplexity against transformers' own loss, changes paired by row, a gate, a model that forgot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import RecipeErrors
from posttrain_plugins.evaluation.figures import ratio_interval
from posttrain_plugins.evaluation.retain import Retained, flat_retained, is_lost, retained_summary

TEXTS = ["3|7>2", "", "4", "3|7=4;4>2=4 3|7>2 <answer>4</answer>" * 4, "7>2=7"]


def test_a_text_has_the_likelihood_that_transformers_gives_it(tiny_model: Path) -> None:
    """Alone and in a batch, whatever stands beside it; a text of one token predicts nothing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain_plugins.backends.transformers.likelihood import likelihoods

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model).eval(),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    found = likelihoods(model, tokenizer, TEXTS)
    for text, one in zip(TEXTS, found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        assert one.tokens == max(0, ids.shape[1] - 1)
        if one.tokens:
            loss = model(input_ids=ids, labels=ids).loss.item()  # the mean
            assert one.nats == pytest.approx(loss * one.tokens, rel=1e-5)
        else:
            assert one.nats == 0.0
    assert likelihoods(model, tokenizer, []) == []


def test_a_text_longer_than_the_model_is_read_in_windows(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain_plugins.backends.transformers.likelihood import likelihoods

    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_model).eval(),
        AutoTokenizer.from_pretrained(tiny_model),
    )
    places = model.config.max_position_embeddings
    text = "3|7>2" * places
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    parts = [ids[:, at : at + places] for at in range(0, ids.shape[1], places)]
    expected = sum(model(input_ids=part, labels=part).loss.item() * (part.shape[1] - 1) for part in parts)
    (found,) = likelihoods(model, tokenizer, [text])
    assert len(parts) > 1
    assert found.tokens == sum(part.shape[1] - 1 for part in parts)
    assert found.nats == pytest.approx(expected, rel=1e-5)


def test_an_interval_of_a_ratio_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(200):
        tokens = rng.integers(5, 50, size=60)
        nats = tokens * rng.normal(2.0, 0.3, size=60)
        found = ratio_interval(nats.tolist(), tokens.tolist(), draws=500)
        hits.append(found.low <= 2.0 <= found.high)
    assert 0.88 <= np.mean(hits) <= 0.99
    assert math.isnan(ratio_interval([], []).mean)
    assert math.isnan(ratio_interval([0.0], [0]).mean)
    # a row that predicts nothing moves nothing
    assert ratio_interval([2.0, 8.0, 0.0], [1, 4, 0]) == ratio_interval([2.0, 8.0], [1, 4])


def test_changes_are_paired_and_over_the_nearest_and_the_first() -> None:
    tokens = [10, 20, 30]
    base = Retained("perplexity", [20.0, 42.0, 61.0], tokens)
    sft = Retained("perplexity", [21.0, 44.0, 64.0], tokens)
    rl = Retained("perplexity", [20.5, 43.0, 62.5], tokens)
    other = Retained("perplexity", [1.0, 2.0, 3.0], [3, 6, 9])  # of another tokenizer
    ancestors = {"base": [], "sft": ["base"], "rl": ["sft", "base"], "other": ["base"]}
    summary = retained_summary({"english": {"base": base, "sft": sft, "rl": rl, "other": other}}, ancestors)
    models = summary["english"]["models"]
    assert models["base"]["mean"] == pytest.approx(math.exp(123 / 60))
    assert models["sft"]["over"]["base"]["mean"] == pytest.approx(math.exp(6 / 60))
    assert list(models["rl"]["over"]) == ["sft", "base"]
    assert models["rl"]["over"]["sft"]["mean"] == pytest.approx(math.exp(-3 / 60))
    assert is_lost("perplexity", models["sft"]["over"]["base"])  # each text by 0.1 nats a token: no noise at all
    assert not is_lost("perplexity", models["rl"]["over"]["sft"])
    assert models["other"]["over"] == {}
    figures = flat_retained(summary)
    assert figures["rl/retain/english/over/base"] == pytest.approx(math.exp(3 / 60))
    assert figures["sft/retain/english/over/base_low"] == pytest.approx(math.exp(0.1))

    before, after = Retained("accuracy", [1.0, 1.0, 0.0, math.nan]), Retained("accuracy", [0.0, 0.0, 0.0, 1.0])
    change = after.over(before)
    assert change is not None
    assert change.mean == pytest.approx(-2 / 3)  # over what both could be judged on


def test_a_model_that_went_astray_has_no_finite_perplexity() -> None:
    astray = Retained("perplexity", [1e6], [10])
    assert astray.interval.mean == math.inf
    assert flat_retained(retained_summary({"t": {"m": astray}}, {"m": []})) == {}


@pytest.fixture
def files(tmp_path: Path, tiny_data: Path) -> Path:
    texts = [{"text": f"{a}|{b}={min(a, b)}"} for a in range(6) for b in range(6)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts), encoding="utf-8")
    for name in ("demos", "problems"):
        (tmp_path / f"{name}.jsonl").write_text((tiny_data / f"{name}.jsonl").read_text(), encoding="utf-8")
    return tmp_path


RECIPE = """
model: {model}
datasets:
  sums: {path: texts.jsonl}
  tasks: {path: problems.jsonl, limit: 4}
stages:
  before: {use: sft, model: base, dataset: sums, args: {max_steps: 30, learning_rate: 0.02}}
  after: {use: sft, model: before, dataset: demos.jsonl, args: {max_steps: 8, learning_rate: 0.05}}
  half: {use: combine, models: [before, after]}
  eval:
    use: evaluate
    models: [before, after, half]
    dataset: {path: problems.jsonl, limit: 4}
    rewards: [exact_answer]
    num_generations: 2
    max_tokens: 8
    retain: [{retain}]
    require: {"{gate}": "<=1.01"}
"""


@pytest.mark.slow
def test_what_training_on_another_thing_costs_is_seen_and_gated(
    tiny_model: Path, files: Path, write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from posttrain_plugins.cli.runs import print_results
    from posttrain_plugins.errors import GateNotMet

    gate = "after/retain/sums/over/before"
    file = write_recipe(RECIPE, model=tiny_model, retain="sums, tasks", gate=gate)
    with pytest.raises(GateNotMet, match=gate):
        pp.run(file, runs_dir=files / "runs")
    run = pp.run(file, runs_dir=files / "runs", overrides={f"stages.eval.require.{gate}": "<=100"})
    figures = run["eval"].metrics
    assert figures[gate] > 1.5, "half of a small model's weights moved to another text"
    assert figures["before/retain/sums"] < figures["after/retain/sums"]
    assert figures["half/retain/sums"] < figures["after/retain/sums"], "halfway back gives part of it back"
    assert 0.0 <= figures["after/retain/tasks"] <= 1.0
    models = run["eval"].details["retain"]["sums"]["models"]
    assert list(models["half"]["over"]) == ["after", "before"]
    print_results("recipe", run.artifacts, as_json=False)
    shown = capsys.readouterr().out
    assert "retained" in shown
    assert "perplexity" in shown


@pytest.mark.parametrize(
    ("retain", "message"),
    [
        (
            "{path: problems.jsonl, columns: [solution]}",
            r"stage 'eval' needs 'text' or 'prompt', the data has 'solution'",
        ),
        ("{path: problems.jsonl, columns: [prompt]}", r"missing column: reward 'exact_answer' needs 'solution'"),
        ("nothing.jsonl", "nothing.jsonl"),
    ],
)
def test_data_that_cannot_be_measured_is_told_before_the_training(
    tiny_model: Path, files: Path, write_recipe: Callable[..., Path], retain: str, message: str
) -> None:
    file = write_recipe(RECIPE, model=tiny_model, retain=retain, gate="accuracy")
    with pytest.raises(RecipeErrors, match=message):
        pp.validate(file)
