"""A stage that makes a judge goes on from an earlier judge of its kind: reward model, process reward model, value."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain_plugins import api
from posttrain_plugins.errors import InputError, RecipeErrors

RECIPE = """
    name: judges
    model: {model_name_or_path: {model}}
    adapters: {small: {use: lora, r: 4, target_modules: all-linear}}
    datasets: {problems: {use: digit_chain, size: 12}}
    rewards: {digits: {use: length, max_chars: 8, decay_chars: 40}}
    stages:
      pairs: {use: sample, keep: pairs, threshold: null, {drawn}}
      rolled: {use: sample, keep: steps, labels: rollouts, estimate: share, num_rollouts: 2, separator: ";", {drawn}}
      all: {use: sample, keep: all, {drawn}}
      rm: {use: reward, model: base, dataset: pairs, {args}}
      prm: {use: prm, model: base, dataset: rolled, separator: ";", {args}}
      value: {use: value, model: base, dataset: all, {args}}
      rm_again: {use: reward, model: rm, dataset: pairs, {same}}
      prm_again: {use: prm, model: prm, dataset: rolled, separator: ";", adapter: small, {same}}
      value_again: {use: value, model: value, dataset: all, {same}}
      {more}
      eval:
        use: evaluate
        models: [base]
        dataset: problems
        rewards: [rm, rm_again, prm, prm_again, value, value_again]
        num_generations: 2
        max_tokens: 16
"""
WORDS = {
    "drawn": "model: base, dataset: problems, rewards: [digits], num_generations: 4, max_tokens: 16",
    "args": "args: {max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1e-2, gradient_checkpointing: false}",
    "same": "args: {max_steps: 1, per_device_train_batch_size: 4, learning_rate: 0.0, gradient_checkpointing: false}",
}


@pytest.fixture
def recipe(tiny_model: Path, write_recipe: Callable[..., Path]) -> Callable[[str], Path]:
    return lambda more="": write_recipe(RECIPE, model=tiny_model, more=more, **WORDS)


@pytest.mark.slow
def test_a_judge_that_learns_nothing_is_the_one_that_it_goes_on_from(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Its head, too, whole or below an adapter."""
    made = api.run(recipe(), runs_dir=tmp_path / "runs")
    judged = made["eval"].details["models"]["base"]["measures"]["sampled"]["rewards"]
    for name in ("rm", "prm", "value"):
        assert judged[f"{name}_again"]["mean"] == pytest.approx(judged[name]["mean"], abs=1e-6), name
    assert len({round(judged[name]["mean"], 4) for name in ("rm", "prm", "value")}) == 3


def test_a_plan_says_whose_head_it_is(recipe: Callable[..., Path]) -> None:
    starts = {stage.id: stage.starting_point.trains for stage in api.plan(recipe()).stages if stage.starting_point}
    assert starts["rm"] == "all parameters and a new head"
    assert starts["rm_again"] == "all parameters and its head"
    assert starts["prm_again"].endswith("(lora) and its head")


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("other: {use: value, model: rm, dataset: all}", "stage 'rm' makes a reward, expected a model"),
        ("typo: {use: sftt, model: base, dataset: all}\n  other: {use: dpo, model: typo, dataset: pairs}", "'sftt'"),
        ("policy: {use: sft, model: value, dataset: all}", "stage 'value' makes a reward, expected a model"),
        (
            "small_rm: {use: reward, model: base, dataset: pairs, adapter: small}\n"
            "  other: {use: reward, model: small_rm, dataset: pairs}",
            "'small_rm' is an adapter with a head, and a judge goes on from a whole model",
        ),
    ],
)
def test_what_it_cannot_go_on_from(recipe: Callable[..., Path], stage: str, told: str) -> None:
    with pytest.raises(RecipeErrors, match=told):
        api.validate(recipe(stage))


def test_a_head_that_is_read_in_another_way_is_no_start(tiny_model: Path, tmp_path: Path) -> None:
    """And its range is the one that it learned, whatever the new rewards are."""
    from datasets import Dataset

    from posttrain_plugins.trainers.value import ValueConfig, ValueTrainer

    def trainer(model: Path, rewards: tuple[float, float], **more: object) -> ValueTrainer:
        rows = [{"prompt": f"{i}:", "completion": f"{i};", "reward": rewards[i % 2]} for i in range(8)]
        config = ValueConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, report_to="none", **more)  # type: ignore[arg-type]
        return ValueTrainer(str(model), config, train_dataset=Dataset.from_list(rows))

    first = trainer(tiny_model, (0.0, 1.0))
    first.save_model(str(tmp_path / "first"))
    first.form.write(tmp_path / "first")
    form = trainer(tmp_path / "first", (0.25, 0.5)).form
    assert (form.low, form.high) == (0.0, 1.0)
    with pytest.raises(InputError, match=r"value_loss is two_hot with 5 logits, but .* is a value model of binary"):
        trainer(tmp_path / "first", (0.0, 1.0), value_loss="two_hot", num_classes=5)
