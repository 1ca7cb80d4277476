"""A value model of completions in steps, whose labels are what is expected behind each: targets, weights, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from posttrain_plugins import api
from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.models.value_form import form_in
from posttrain_plugins.trainers.value import ValueConfig, ValueTrainer, _returns_of_steps

RIGHT = (["<think>3|7=4;", "4>2=4</think><answer>4</answer>"], [0.75, 1.0])
WRONG = (["<think>3|7=7;", "7>2=7</think><answer>7</answer>"], [0.25, 0.0])


def rows(count: int = 8, **more: Any) -> list[dict[str, Any]]:
    """As many prompts; of each other one the steps are right."""
    kinds = [RIGHT if i % 2 else WRONG for i in range(count)]
    return [
        {
            "prompt": [{"role": "user", "content": f"{i}|7>2"}],
            "completions": steps,
            "labels": labels,
            **more,
        }
        for i, (steps, labels) in enumerate(kinds)
    ]


def trainer_of(model: Path, folder: Path, data: list[dict[str, Any]], **more: Any) -> ValueTrainer:
    given = {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "max_steps": 2}
    config = ValueConfig(str(folder), **{**given, "step_separator": ";", "gradient_checkpointing": False, **more})
    return ValueTrainer(str(model), config, train_dataset=Dataset.from_list(data))


def test_a_state_learns_the_label_of_the_next_end_of_a_step(tiny_model: Path, tmp_path: Path) -> None:
    """Also the state that stands at one; behind the last step, before EOS, its own."""
    row = trainer_of(tiny_model, tmp_path, rows()).train_dataset[1]
    states = len(row["input_ids"]) - row["prompt_length"]
    words = trainer_of(tiny_model, tmp_path, rows()).processing_class
    first, last = (len(words(step, add_special_tokens=False)["input_ids"]) for step in RIGHT[0])
    assert states == first + last + 1
    # before each of the first step's tokens and behind its last one; then before the others, and before EOS
    assert row["returns"] == [0.75] * (first + 1) + [1.0] * last


def test_a_step_that_lacks_its_separator_gets_it(tiny_model: Path, tmp_path: Path) -> None:
    data = rows()
    bare = [{**row, "completions": [row["completions"][0].rstrip(";"), row["completions"][1]]} for row in data]
    with_it, without = (trainer_of(tiny_model, tmp_path, of).train_dataset[:] for of in (data, bare))
    assert with_it["input_ids"] == without["input_ids"]
    assert with_it["returns"] == without["returns"]


def test_labels_of_one_completion_are_the_trajectory_with_that_reward(tiny_model: Path, tmp_path: Path) -> None:
    """Where all labels of a row are equal, nothing is told apart from whole completions but how they are written."""
    steps = [{**row, "labels": [row["labels"][-1]] * 2} for row in rows()]
    whole = [
        {
            "prompt": row["prompt"],
            "completion": [{"role": "assistant", "content": "".join(row["completions"])}],
            "reward": row["labels"][-1],
        }
        for row in steps
    ]
    losses = []
    for data in (steps, whole):
        trainer = trainer_of(tiny_model, tmp_path, data, balance=0.5, max_steps=4)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_the_odds_are_set_back_whatever_lies_between_right_and_wrong(
    tiny_model: Path, tmp_path: Path, share: float
) -> None:
    """Of states whose label is a share, the loss is least where the value that is read is that share."""
    trainer = trainer_of(tiny_model, tmp_path, rows(8) + [row for row in rows(40) if row["labels"][-1]], balance=0.5)
    assert trainer.weights[0] > 2.0 * trainer.weights[1], "wrong ones are rare"
    logits = torch.linspace(-9, 9, 721).reshape(1, -1, 1)
    shares = torch.full((1, 721), share)
    losses = trainer._losses(logits, shares, torch.ones(1, 721))
    least = logits[:, int(losses.argmin())]
    # at the ends of the range no logit is enough
    assert float(trainer.form.values(least)) == pytest.approx(share, abs=2e-2)


@pytest.mark.parametrize("wrong", [{"gamma": 0.9}, {"lam": 0.5}])
def test_what_stands_against_labels_of_steps(tiny_model: Path, tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"{next(iter(wrong))} is .*but rows with `labels` say what is expected"):
        trainer_of(tiny_model, tmp_path, rows(), **wrong)


def test_a_row_with_a_label_too_few(tiny_model: Path, tmp_path: Path) -> None:
    data = rows()
    data[3] = {**data[3], "labels": [1.0]}
    with pytest.raises(InputError, match="row 4 has 2 steps and 1 labels"):
        trainer_of(tiny_model, tmp_path, data)


def test_held_out_rows_in_steps_are_not_discounted_either(tiny_model: Path, tmp_path: Path) -> None:
    whole = [{"prompt": f"{i}:", "completion": f"{i};", "reward": float(i % 2)} for i in range(4)]
    config = ValueConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", gamma=0.9)
    steps = Dataset.from_list([{**row, "prompt": "1:"} for row in rows()])
    with pytest.raises(InputError, match=r"gamma is 0\.9, but rows with `labels` say"):
        ValueTrainer(str(tiny_model), config, train_dataset=Dataset.from_list(whole), eval_dataset=steps)


@pytest.mark.parametrize("trainer", ["value", "oreo"])
def test_labels_beside_whole_completions_are_a_column_like_any_other(trainer: str, tiny_model: Path) -> None:
    """Of topics, say: what is learned from is the reward."""
    from posttrain_plugins.models.load import load_tokenizer
    from posttrain_plugins.trainers import oreo, stage_rules

    row = {"prompt": "1:", "completion": "2;", "reward": 0.5, "labels": ["algebra"], "completions": ["x"]}
    assert stage_rules.returns_of(row) == [0.5]
    assert stage_rules.state_concern(row, 0) is None
    words = load_tokenizer(str(tiny_model))
    made = oreo.encode(words, {k: v for k, v in row.items() if k != "completions"}, 0, "response", "")
    assert made["reward"] == 0.5


def test_of_two_ends_within_one_token_the_later_counts() -> None:
    """An empty step, as two separators in a row make it, may have no token of its own."""

    class Words:
        eos_token = "<e>"

        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            return {"offset_mapping": [(0, 1), (1, 5), (5, 6)]}

    found = _returns_of_steps(Words(), ["x\n\n", "\n\n", "y"], [0.1, 0.5, 0.9], 4)
    assert found == [0.1, 0.1, 0.5, 0.9]


# --- the stage -------------------------------------------------------------------------------------------------------

RECIPE = """
    name: values
    model: {model_name_or_path: {model}}
    datasets: {saved: {path: {data}}, problems: {use: digit_chain, size: 12}}
    rewards: {digits: {use: length, max_chars: 8, decay_chars: 40}}
    stages:
      rolled:
        use: sample
        model: base
        dataset: problems
        rewards: [digits]
        num_generations: 2
        max_tokens: 16
        keep: steps
        labels: rollouts
        estimate: share
        num_rollouts: 2
        separator: ";"
      value:
        use: value
        model: base
        dataset: {source}
        separator: ";"
        args: {max_steps: 2, per_device_train_batch_size: 4, max_length: 96, gradient_checkpointing: false{more}}
"""


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> Callable[..., Path]:
    def made(source: str, data: list[dict[str, Any]] | None = None, more: str = "") -> Path:
        file = tmp_path / "saved.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in data or rows(24)), encoding="utf-8")
        return write_recipe(RECIPE, model=tiny_model, data=file, source=source, more=more)

    return made


def test_the_stage_learns_from_rollouts_of_each_step(recipe: Callable[..., Path], tmp_path: Path) -> None:
    made = api.run(recipe("rolled"), runs_dir=tmp_path / "runs")["value"]
    assert math.isfinite(made.metrics["eval_explained_variance"])
    assert form_in(Path(made.model_path)).loss == "binary"
    assert len((tmp_path / "runs/values/latest/value/seen.txt").read_text(encoding="utf-8").split()) == 10, (
        "two of twelve are held out"
    )


def test_a_process_reward_model_takes_shares_and_no_other_numbers(tmp_path: Path, tiny_model: Path) -> None:
    """From a file, too; a value model takes any number."""
    file = tmp_path / "recipe.yaml"
    for labels, told in (([0.25, 1.0], ""), ([0.5, 2.0], r"row 1 has the label 2\.0, expected true, false, or a prob")):
        (tmp_path / "d.jsonl").write_text(json.dumps({**rows(1)[0], "labels": labels}) + "\n", encoding="utf-8")
        for use in ("prm", "value"):
            stage = f"{{use: {use}, model: base, dataset: d, args: {{max_steps: 1}}}}"
            file.write_text(
                f"name: x\nmodel: {{model_name_or_path: {tiny_model}}}\ndatasets: {{d: {{path: d.jsonl}}}}\n"
                f"stages: {{it: {stage}}}\n",
                encoding="utf-8",
            )
            if told and use == "prm":
                with pytest.raises(RecipeErrors, match=told):
                    api.validate(file)
            else:
                api.validate(file)


@pytest.mark.parametrize(
    ("data", "more", "told"),
    [
        (
            [{"prompt": "1:", "completion": "2;"}],
            "",
            "missing column: stage .value. needs",
        ),  # no reward: nothing else is said of it
        (None, ", lam: 0.9", r"lam is 0\.9, but rows with `labels` say what is expected behind each step"),
        ([{**row, "labels": [1.0]} for row in rows(24)], "", "row 1 has 2 steps and 1 labels"),
        ([{**row, "labels": [1.0, 1.0]} for row in rows(24)], "", r"every trajectory has reward 1\.0"),
    ],
)
def test_before_anything_is_loaded(recipe: Callable[..., Path], data: Any, more: str, told: str) -> None:
    with pytest.raises(RecipeErrors, match=told):
        api.validate(recipe("saved", data, more))


def test_steps_that_are_cut_at_one_separator_are_not_joined_by_another(recipe: Callable[..., Path]) -> None:
    file = recipe("rolled")
    text = file.read_text(encoding="utf-8").replace('dataset: rolled\n    separator: ";"', "dataset: rolled")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeErrors, match=r"'rolled' cuts completions at ';', and this would put '\\n\\n' behind"):
        api.validate(file)


def test_what_comes_of_rollouts_is_known_by_its_columns(recipe: Callable[..., Path]) -> None:
    """Before they are drawn, which costs most."""
    with pytest.raises(RecipeErrors, match=r"gamma is 0\.9, but rows with `labels` say"):
        api.validate(recipe("rolled", more=", gamma: 0.9"))
