"""The value model: losses and weights by hand, calibration, trainer, stage, and the reward that reads it."""

from __future__ import annotations

import functools
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
from posttrain_plugins.models.value_form import ValueForm, form_in
from posttrain_plugins.record.figures import read_figures
from posttrain_plugins.rewards.value_model import ValueModel
from posttrain_plugins.trainers.value import (
    ValueConfig,
    ValueTrainer,
    rarity_weights,
    split_prompts,
    two_hot,
)
from posttrain_plugins.trainers.value_figures import HeldOut, fitted, measured

RIGHT = "<think>3|7=4;4>2=4</think><answer>4</answer>"
WRONG = "<think>3|7=7;7>2=7</think><answer>7</answer>"


def prompt(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{number % 10}|7>{number // 10}"}]


def rows(count: int = 16, share: float = 0.5) -> list[dict[str, Any]]:
    """Two completions of each of `count / 2` prompts; the text tells which are right, a share of all."""
    right = [i % round(1 / (1 - share)) != 0 for i in range(count)]
    return [
        {
            "prompt": prompt(i // 2),
            "completion": [{"role": "assistant", "content": RIGHT if right[i] else WRONG}],
            "reward": float(right[i]),
        }
        for i in range(count)
    ]


def args(folder: Path, **more: Any) -> ValueConfig:
    given: dict[str, Any] = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "dataloader_pin_memory": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
    }
    return ValueConfig(str(folder), **{**given, **more})


# --- forms, losses, weights ------------------------------------------------------------------------------------------


def test_two_hot_targets_have_the_mean_of_the_share() -> None:
    shares = torch.tensor([0.0, 0.125, 0.3, 1.0])
    spread = two_hot(shares, 5)
    assert torch.allclose(spread.sum(-1), torch.ones(4))
    assert torch.allclose(spread @ torch.linspace(0, 1, 5), shares)
    assert (spread > 0).sum(-1).max() <= 2


@pytest.mark.parametrize("loss", ["binary", "two_hot", "regression"])
def test_a_form_is_the_same_from_its_file(tmp_path: Path, loss: Any) -> None:
    form = ValueForm(loss, -2.0, 6.0, 5 if loss == "two_hot" else 1, 1.5, -0.25)
    form.write(tmp_path)
    logits = torch.randn(3, 4, form.num_labels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(form_in(tmp_path).values(logits), form.values(logits))
    assert form.values(logits).shape == (3, 4)
    if loss != "regression":
        assert bool(((form.values(logits) > -2) & (form.values(logits) < 6)).all())


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "value_head.json").write_text('{"bins": 3}', encoding="utf-8")
    with pytest.raises(InputError, match="does not say how values are read"):
        form_in(tmp_path)
    assert form_in(tmp_path / "none") is None


def test_the_rarer_outcome_has_its_share_of_the_weight() -> None:
    wrong, right = rarity_weights([True] * 95 + [False] * 5, 0.25)
    assert wrong * 5 / (wrong * 5 + right * 95) == pytest.approx(0.25)
    assert rarity_weights([False] * 95 + [True] * 5, 0.25) == (1.0, pytest.approx(wrong))
    assert rarity_weights([True, False], 0.25) == (1.0, 1.0)
    assert rarity_weights([True] * 4, 0.25) == (1.0, 1.0), "nothing to weigh against"


def test_prompts_are_set_aside_with_all_their_rows() -> None:
    data = Dataset.from_list(rows(40))
    left, held = split_prompts(data, 0.2)
    seen = {row["prompt"][0]["content"] for row in left} & {row["prompt"][0]["content"] for row in held}
    assert not seen
    assert (len(left), len(held)) == (32, 8)
    again, _ = split_prompts(Dataset.from_list(list(reversed(rows(40)))), 0.2)
    assert {str(row["prompt"]) for row in again} == {str(row["prompt"]) for row in left}, "by the prompts alone"
    assert split_prompts(Dataset.from_list(rows(4)), 0.2)[1] is None


# --- calibration and figures -----------------------------------------------------------------------------------------


def trajectories(count: int, slope: float, shift: float, seed: int = 0) -> list[HeldOut]:
    """Raw log-odds that are `slope` times too steep and `shift` too high, and what came by the true odds."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        true = float(torch.randn(1, generator=draw)) * 1.5
        came = float(torch.rand(1, generator=draw) < 1 / (1 + math.exp(-true)))
        found.append(HeldOut(i, i // 2, [slope * true + shift] * 3, [came] * 3))
    return found


def test_calibration_finds_what_the_model_overstates() -> None:
    held = trajectories(4000, slope=3.0, shift=2.0)
    form = ValueForm("binary")
    found = fitted(form, held)
    assert found.slope == pytest.approx(1 / 3, abs=0.05)
    assert found.intercept == pytest.approx(-2 / 3, abs=0.1)
    before, after = measured(form, held, calibrate=False), measured(form, held, calibrate=True)
    assert after["calibration_error"] < before["calibration_error"] / 3
    assert after["explained_variance"] > before["explained_variance"]
    assert after["ranked"] == pytest.approx(before["ranked"], abs=0.01), "the order is the model's"


def test_least_squares_calibrate_a_regression() -> None:
    held = [HeldOut(i, i, [i / 10.0], [1.0 + i / 5.0]) for i in range(200)]
    found = fitted(ValueForm("regression", low=0.0, high=10.0), held)
    assert found.slope * 10 == pytest.approx(2.0, abs=1e-2)
    assert found.intercept * 10 == pytest.approx(1.0, abs=5e-2)


def test_a_model_that_knows_nothing_is_not_turned_round() -> None:
    held = [HeldOut(i, i, [1.0 if i % 2 else -1.0], [float(i % 2 == 0)]) for i in range(50)]
    found = fitted(ValueForm("binary"), held)
    assert 0 < found.slope < 0.01
    assert fitted(ValueForm("binary"), []) == ValueForm("binary")


def test_figures_of_a_perfect_and_of_a_constant_model() -> None:
    returns = [[float(i % 2)] * 2 for i in range(20)]
    perfect = [HeldOut(i, i // 2, r, r) for i, r in enumerate(returns)]
    found = measured(ValueForm("regression"), perfect, calibrate=False)
    assert found["explained_variance"] == found["explained_variance_end"] == 1.0
    assert found["ranked"] == 1.0
    assert found["calibration_error"] == 0.0
    constant = [HeldOut(row.number, row.group, [0.5, 0.5], row.returns) for row in perfect]
    found = measured(ValueForm("regression"), constant, calibrate=False)
    assert found["explained_variance"] == 0.0
    assert found["ranked"] == 0.5
    assert "explained_variance" not in measured(ValueForm(), [HeldOut(0, 0, [0.1], [1.0])], calibrate=False)


# --- the trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["binary", "two_hot", "regression"])
def test_the_loss_by_hand(tiny_model: Path, tmp_path: Path, loss: Any) -> None:
    """Of each state before a token of the completion, EOS among them, and of no other."""
    trainer = ValueTrainer(
        str(tiny_model), args(tmp_path, value_loss=loss, num_classes=5), train_dataset=Dataset.from_list(rows(4))
    )
    encoded = [trainer.train_dataset[i] for i in range(4)]
    batch = trainer.data_collator(encoded)
    trainer.model.train()
    found = trainer.compute_loss(trainer.model, batch)
    one: list[torch.Tensor] = []
    for row in encoded:
        ids = torch.tensor([row["input_ids"]])
        logits = trainer.model(input_ids=ids).logits[0, row["prompt_length"] - 1 : -1]
        target = torch.tensor(row["returns"])
        if loss == "binary":
            one.append(torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none"))
        elif loss == "regression":
            one.append((logits[:, 0] - target) ** 2 / 2)
        else:
            one.append(torch.nn.functional.cross_entropy(logits, (4 * target).long(), reduction="none"))
    assert float(found.detach()) == pytest.approx(float(torch.cat(one).detach().mean()), rel=1e-5)


def test_td_lambda_learns_from_later_values(tiny_model: Path, tmp_path: Path) -> None:
    """With lam 0 and gamma 1 the target of a state is the model's own value of the next, and the reward at the end."""
    data = Dataset.from_list(rows(4))
    trainer = ValueTrainer(str(tiny_model), args(tmp_path, value_loss="regression", lam=0.0), train_dataset=data)
    batch = trainer.data_collator([trainer.train_dataset[1]])  # a right one
    trainer.model.train()
    logits = trainer.model(input_ids=batch["input_ids"]).logits[0, :, 0].detach()
    start = int(batch["completion_mask"][0].long().argmax())
    values = logits[start - 1 : -1]
    expected = ((values[:-1] - values[1:]) ** 2).sum() + (values[-1] - 1.0) ** 2
    found = trainer.compute_loss(trainer.model, batch)
    assert float(found.detach()) == pytest.approx(float(expected) / 2 / len(values), rel=1e-4)


def test_the_split_into_micro_batches_does_not_matter(tiny_model: Path, tmp_path: Path) -> None:
    losses = []
    for rows_at_once in (4, 2):
        config = args(
            tmp_path / str(rows_at_once),
            per_device_train_batch_size=rows_at_once,
            gradient_accumulation_steps=4 // rows_at_once,
            max_steps=1,
            logging_steps=1,
            max_grad_norm=0.0,
        )
        data = rows(2, share=0.5) + [{**row, "completion": "4", "prompt": "4"} for row in rows(2)]
        data = [{**row, "prompt": "4", "completion": str(row["completion"])[:40]} for row in data]
        trainer = ValueTrainer(str(tiny_model), config, train_dataset=Dataset.from_list(data))
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_it_learns_what_the_text_tells_and_the_reward_reads_it(tiny_model: Path, tmp_path: Path) -> None:
    """Few are wrong: they weigh more, and the values stay true to how many there are."""
    data = Dataset.from_list(rows(40, share=0.8))
    config = args(tmp_path / "out", max_steps=40, learning_rate=5e-3, per_device_train_batch_size=20)
    trainer = ValueTrainer(str(tiny_model), config, train_dataset=data, eval_dataset=data)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    found = trainer.evaluate()
    assert found["eval_explained_variance_end"] > 0.2
    assert found["eval_calibration_error"] < 0.2
    value = ValueModel(str(tmp_path / "model"))
    right, wrong, begun = value([prompt(0)] * 3, [RIGHT, WRONG, "<think>3|7=4"])
    assert right > wrong + 0.2
    assert begun > wrong
    steps = value.step_scores([prompt(0)], [RIGHT], steps=[["<think>3|7=4;", "4>2=4</think><answer>4</answer>"]])
    assert len(steps[0]) == 2
    assert steps[0][-1] == pytest.approx(right, abs=1e-5)


def test_adapters_and_other_heads_are_read_as_they_were_trained(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig

    lora = LoraConfig(
        r=4, target_modules="all-linear", exclude_modules=["score"], modules_to_save=["score"], task_type="TOKEN_CLS"
    )
    for loss in ("binary", "two_hot"):
        folder = tmp_path / loss
        trainer = ValueTrainer(
            str(tiny_model),
            args(folder / "out", value_loss=loss, num_classes=7, learning_rate=1e-2),
            train_dataset=Dataset.from_list(rows()),
            peft_config=lora,
        )
        trainer.train()
        trainer.save_model(str(folder / "model"))
        batch = trainer.data_collator([trainer.train_dataset[1]])  # the right one of the first prompt
        trainer.model.eval()
        with torch.no_grad():
            logits = trainer.model(input_ids=batch["input_ids"]).logits
        expected = float(trainer.calibrated.values(logits)[0, -2])  # before EOS
        assert ValueModel(str(folder / "model"))([prompt(0)], [RIGHT]) == [pytest.approx(expected, abs=1e-6)]


def test_settings_that_cannot_be_used(tmp_path: Path) -> None:
    for wrong, told in (
        ({"value_loss": "huber"}, "value_loss is 'huber', expected regression, binary or two_hot"),
        ({"balance": 0.7}, "balance is 0.7, expected 0 to 0.5"),
        ({"num_classes": 1}, "num_classes is 1, expected 2 or more"),
        ({"value_range": [1.0, 0.0]}, "value_range is"),
        ({"center_rewards_coefficient": 0.1}, "center_rewards_coefficient"),
    ):
        with pytest.raises(InputError, match=told):
            args(tmp_path, **wrong)


# --- the stage -------------------------------------------------------------------------------------------------------

RECIPE = """
    name: values
    model: {model_name_or_path: {model}}
    adapters: {small: {use: lora, r: 4, target_modules: all-linear}}
    datasets: {saved: {path: {data}}}
    stages:
      value:
        use: value
        model: base
        dataset: saved
        {adapter}
        args: {max_steps: 12, per_device_train_batch_size: 8, learning_rate: 5e-3, gradient_checkpointing: false}
      eval:
        use: evaluate
        models: [base]
        dataset: saved
        rewards: [value]
        num_generations: 2
        max_tokens: 8
        strategies:
          - {use: value_guided_search, scorer: value, n: 4, beam_width: 2, block_tokens: 3, max_steps: 3}
"""


@pytest.mark.parametrize("adapter", ["", "adapter: small"])
def test_the_stage_guides_a_search(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path], adapter: str
) -> None:
    data = tmp_path / "saved.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(24)), encoding="utf-8")
    recipe = write_recipe(RECIPE, model=tiny_model, data=data, adapter=adapter)
    result = api.run(recipe, runs_dir=tmp_path / "runs")
    metrics = result["value"].metrics
    assert {"eval_explained_variance", "eval_calibration_error", "eval_ranked", "eval_loss"} <= set(metrics)
    assert metrics["eval_explained_variance"] <= 1.0
    folder = Path(result["value"].model_path)
    assert form_in(folder).loss == "binary"
    seen = (folder.parent / "seen.txt").read_text(encoding="utf-8").split()
    assert len(seen) == 10, "two of twelve prompts are held out, and are not seen"


PROGRESS = """
    name: progress
    model: {model_name_or_path: {model}}
    adapters: {small: {use: lora, r: 4, target_modules: all-linear}}
    datasets: {saved: {path: {tmp}/saved.jsonl}, pairs: {path: {tmp}/pairs.jsonl}}
    rewards:
      correct: digit_chain_steps
      progress: {use: value_model, model_name_or_path: {named}, separator: ";", differences: true}
    stages:
      value: {use: value, model: base, dataset: saved, {adapter} args: {max_steps: 2, gradient_checkpointing: false}}
      rm: {use: reward, model: base, dataset: pairs, args: {max_steps: 2}}
      policy:
        use: grpo
        model: base
        dataset: saved
        rewards: [correct, progress]
        process_rewards: [progress]
        separator: ";"
        args: {max_steps: 1, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8,
               reward_weights: [1.0, 0.2], gradient_checkpointing: false}
"""


@pytest.fixture
def progress(tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> Callable[..., Path]:
    """Writes `PROGRESS` and its data."""
    texts = {"saved": rows(24), "pairs": [{"prompt": "3|7>2", "chosen": RIGHT, "rejected": WRONG}]}
    for name, lines in texts.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return functools.partial(write_recipe, PROGRESS, model=tiny_model, tmp=tmp_path)


@pytest.mark.parametrize("adapter", ["", "adapter: small,"])
def test_its_differences_are_a_process_reward(tmp_path: Path, progress: Callable[..., Path], adapter: str) -> None:
    recipe = progress(adapter=adapter, named="value")
    result = api.run(recipe, only=["value", "policy"], runs_dir=tmp_path / "runs")
    (figures,) = [line.figures for line in read_figures(result["policy"].folder) if line.step == 1]
    assert math.isfinite(figures["rewards/progress/mean"])
    assert figures["rewards/progress/std"] > 0, "what the completions change of the value is not all the same"


def test_a_stage_is_the_model_of_the_reward_that_it_stands_for_alone(progress: Callable[..., Path]) -> None:
    assert "value" in api.validate(progress(adapter="", named="value")).stage("policy").parents()
    for named, found in {"rm": "stage 'rm' makes a reward, expected a model", "valeu": "unknown model 'valeu'"}.items():
        with pytest.raises(RecipeErrors, match=found):
            api.validate(progress(adapter="", named=named))


def test_rewards_that_are_all_equal_are_refused(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    data = tmp_path / "saved.jsonl"
    data.write_text("".join(json.dumps({**row, "reward": 1.0}) + "\n" for row in rows(24)), encoding="utf-8")
    recipe = write_recipe(RECIPE, model=tiny_model, data=data, adapter="")
    with pytest.raises(InputError, match=r"nothing to tell apart: every trajectory has reward 1\.0"):
        api.run(recipe, only=["value"], runs_dir=tmp_path / "runs")
