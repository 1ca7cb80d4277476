"""The process reward model: data, trainer, stage and reward."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForTokenClassification, AutoTokenizer

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError
from posttrain_plugins.rewards.process_reward_model import ProcessRewardModel
from posttrain_plugins.steps import aggregate, last_tokens, split_steps, step_ends
from posttrain_plugins.trainers.prm import IGNORED, PRMConfig, PRMTrainer, StepCollator, encode

PROMPT = [{"role": "user", "content": "3|7>2"}]
STEPS = ["<think>3|7=4;", "4>2=4</think><answer>4</answer>"]
ARGS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "dataloader_pin_memory": False,
    "gradient_checkpointing": False,
    "step_separator": ";",
}


def rows(count: int = 8) -> list[dict[str, Any]]:
    wrong = ["<think>3|7=7;", "7>2=7</think><answer>7</answer>"]
    return [
        {"prompt": PROMPT, "completions": wrong if i % 2 else STEPS, "labels": [False, True] if i % 2 else [True, True]}
        for i in range(count)
    ]


def test_the_rule_splits_and_joins() -> None:
    text = "a;b;;c"
    assert split_steps(text, ";") == ["a;", "b;", ";", "c"]
    assert "".join(split_steps(text, ";")) == text
    assert step_ends(text, ";") == [2, 4, 5, 6]
    assert split_steps("a;", ";") == ["a;"]
    assert split_steps("", ";") == []


@pytest.mark.parametrize(("how", "expected"), [("min", 0.2), ("prod", 0.1), ("last", 0.5), ("mean", 0.35)])
def test_aggregates(how: Any, expected: float) -> None:
    assert aggregate([0.2, 0.5], how) == pytest.approx(expected)
    assert aggregate([], how) is None
    assert math.isnan(aggregate([0.5, math.nan, 0.5], how))


def test_a_step_ends_at_the_token_that_holds_its_last_character() -> None:
    assert last_tokens([0, 3, 4], [3, 4, 9]) == [0, 1, 2]
    assert last_tokens([0, 3], [2]) == [0], "a token that reaches beyond the step's end"


def test_labels_stand_on_the_last_token_of_each_step(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = encode(tokenizer, {"prompt": PROMPT, "completions": STEPS, "labels": [True, False]}, 0, ";")
    marked = [(i, label) for i, label in enumerate(row["step_labels"]) if label != IGNORED]
    assert [label for _, label in marked] == [1.0, 0.0]
    read = [tokenizer.decode(row["input_ids"][: i + 1]) for i, _ in marked]
    assert read[0].endswith("<think>3|7=4;")
    assert read[1].endswith("<answer>4</answer>")
    assert marked[1][0] == len(row["input_ids"]) - 1


def test_a_missing_separator_is_put_in_as_at_inference(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    bare = {"prompt": PROMPT, "completions": ["3|7=4", "4>2=4"], "labels": [True, True]}
    whole = {"prompt": PROMPT, "completions": ["3|7=4;", "4>2=4"], "labels": [True, True]}
    assert encode(tokenizer, bare, 0, ";") == encode(tokenizer, whole, 0, ";")


def test_rows_without_a_label_for_each_step_are_refused(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with pytest.raises(InputError, match="row 4 has 2 steps and 1 labels"):
        encode(tokenizer, {"prompt": PROMPT, "completions": STEPS, "labels": [True]}, 3, ";")


def test_the_collator_pads_what_is_not_read() -> None:
    batch = StepCollator(0)(
        [{"input_ids": [5, 6], "step_labels": [IGNORED, 1.0]}, {"input_ids": [7], "step_labels": [0.0]}]
    )
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["step_labels"].tolist() == [[IGNORED, 1.0], [0.0, IGNORED]]


def test_the_loss_is_the_mean_cross_entropy_over_step_ends(tiny_model: Path, tmp_path: Path) -> None:
    trainer = PRMTrainer(
        str(tiny_model),
        PRMConfig(str(tmp_path), **ARGS),
        train_dataset=Dataset.from_list(rows()),
        processing_class=None,
    )
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    loss = trainer.compute_loss(trainer.model, dict(batch))
    trainer.model.eval()
    logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[..., 0]
    at = [(i, j) for i in range(2) for j in range(batch["step_labels"].shape[1]) if batch["step_labels"][i, j] >= 0]
    by_hand = [
        -torch.log(torch.sigmoid(logits[i, j]) if batch["step_labels"][i, j] else 1 - torch.sigmoid(logits[i, j]))
        for i, j in at
    ]
    assert len(at) == 4
    assert float(loss.detach()) == pytest.approx(sum(term.item() for term in by_hand) / 4, abs=1e-6)


UNEVEN = [
    {"prompt": PROMPT, "completions": [f"{i};"] * (1 + i % 4), "labels": [bool(i % 3)] * (1 + i % 4)} for i in range(8)
]
"""Rows of one to four steps, so that micro-batches end a different number of them."""


def test_the_loss_does_not_depend_on_how_a_step_is_cut_up(tiny_model: Path, tmp_path: Path) -> None:
    """Once a batch of four, once four of one: the same loss, the same weights. A mean of means would be another."""
    found = []
    for accumulation in (1, 4):
        options = {"per_device_train_batch_size": 4 // accumulation, "gradient_accumulation_steps": accumulation}
        still = {"optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0, "logging_steps": 1}
        args = PRMConfig(str(tmp_path / str(accumulation)), **{**ARGS, **options, **still})
        trainer = PRMTrainer(str(tiny_model), args, train_dataset=Dataset.from_list(UNEVEN))
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        found.append((losses, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}))
    (one, weights), (several, others) = found
    assert len(one) == 2
    assert several == pytest.approx(one, abs=1e-6)
    assert all(torch.allclose(weights[name], others[name], atol=1e-6) for name in weights)


def test_longer_rows_are_left_out_and_none_left_is_told(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="max_length=4"):
        PRMTrainer(
            str(tiny_model), PRMConfig(str(tmp_path), max_length=4, **ARGS), train_dataset=Dataset.from_list(rows())
        )


@pytest.fixture(scope="module")
def prm_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recipe that trains a PRM in three ways and uses it as a reward."""
    folder = tmp_path_factory.mktemp("prm")
    (folder / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(16)), encoding="utf-8")
    args = "{max_steps: 30, per_device_train_batch_size: 8, learning_rate: 1e-2, gradient_checkpointing: false}"
    (folder / "r.yaml").write_text(
        f"""
        name: prm
        model: {tiny_model}
        datasets: {{steps: {{path: steps.jsonl}}}}
        adapters: {{small: {{use: lora, r: 4}}}}
        stages:
          full:
            {{use: prm, model: base, dataset: steps, eval_dataset: steps, separator: ";", aggregate: prod,
              args: {args}}}
          adapter: {{use: prm, model: base, dataset: steps, adapter: small, separator: ";", args: {args}}}
        """,
        encoding="utf-8",
    )
    return pp.run(folder / "r.yaml", runs_dir=folder / "runs")


@pytest.mark.parametrize("stage", ["full", "adapter"])
def test_it_learns_which_step_is_wrong(prm_run: Any, stage: str) -> None:
    reward = ProcessRewardModel(str(prm_run[stage].model_path), separator=";", device="cpu")
    completions = ["".join(row["completions"]) for row in rows(2)]
    right, wrong = reward.step_scores([PROMPT] * 2, [[{"role": "assistant", "content": text}] for text in completions])
    assert min(right) > 0.5
    assert wrong[0] < 0.5 < wrong[1]
    assert prm_run[stage].manifest["handoff"]["reward"]["separator"] == ";"


def test_held_out_figures_are_measured(prm_run: Any) -> None:
    assert prm_run["full"].metrics["eval_accuracy"] == 1.0


def test_the_reward_keeps_the_contract(prm_run: Any) -> None:
    reward = ProcessRewardModel(str(prm_run["full"].model_path), separator=";", aggregate="prod", device="cpu")
    text = "".join(STEPS)
    steps = reward.step_scores([PROMPT], [text])[0]
    assert reward([PROMPT], [text], solution=["4"]) == [pytest.approx(steps[0] * steps[1])]
    assert reward([PROMPT], [""]) == [None]  # no step was judged
    assert reward([], []) == []
    given = reward.step_scores([PROMPT], [text], steps=[[text]])
    assert given == [[pytest.approx(steps[1], abs=1e-6)]]
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward
    assert copy([PROMPT], [text]) == reward([PROMPT], [text])
    assert reward.count_tokens([PROMPT], [text]) > len(STEPS)


def test_it_reads_at_inference_what_it_was_trained_on(prm_run: Any, tiny_model: Path) -> None:
    """The tokens of prompt and completion are those of a row of the training data."""
    path = prm_run["full"].model_path
    model = AutoModelForTokenClassification.from_pretrained(path, num_labels=1).eval()
    row = encode(
        AutoTokenizer.from_pretrained(path), {"prompt": PROMPT, "completions": STEPS, "labels": [1, 1]}, 0, ";"
    )
    probabilities = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :, 0].sigmoid().tolist()
    expected = [value for value, label in zip(probabilities, row["step_labels"], strict=True) if label > 0]
    reward = ProcessRewardModel(str(path), separator=";", device="cpu")
    assert reward.step_scores([PROMPT], ["".join(STEPS)])[0] == pytest.approx(expected, abs=1e-5)


def test_steps_behind_the_cut_are_worth_nothing(prm_run: Any) -> None:
    reward = ProcessRewardModel(str(prm_run["full"].model_path), separator=";", device="cpu", max_length=14)
    scores = reward.step_scores([PROMPT], ["".join(STEPS)])[0]
    assert scores[0] > 0
    assert scores[1] == 0.0


def test_two_labels_as_trl_had_them(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    AutoModelForTokenClassification.from_pretrained(tiny_model, num_labels=2).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    reward = ProcessRewardModel(str(tmp_path), separator=";", num_labels=2, device="cpu")
    assert all(0 < score < 1 for score in reward.step_scores([PROMPT], ["".join(STEPS)])[0])


def test_recipes_check_the_config_and_the_columns(
    tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n", encoding="utf-8")
    file = write_recipe(
        """
        model: {model}
        datasets: {d: {path: d.jsonl}}
        stages:
          prm: {use: prm, model: base, dataset: d, args: {learning_rat: 1e-3}}
        """,
        model=tiny_model,
    )
    with pytest.raises(InputError) as caught:
        pp.validate(file)
    assert "learning_rate" in str(caught.value)
    assert "completions" in str(caught.value)
