"""`critic: {kind, from}` in a recipe: what `validate` tells of it, what the plan knows, and that it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins import api
from posttrain_plugins.errors import RecipeErrors

ARGS = {
    "max_steps": 1,
    "per_device_train_batch_size": 8,
    "max_completion_length": 8,
    "num_iterations": 1,
    "gradient_checkpointing": False,
}
RECIPE = """
    name: starts
    seed: 5
    model: {loading}
    adapters:
      policy: {use: lora, r: 4, lora_alpha: 8}
      other: {use: lora, r: 2}
    rewards: {correct: {use: digit_chain_steps, mode: fraction}}
    stages:
      start: {use: sft, model: base, dataset: {path: "{data}/demos.jsonl"}, adapter: policy, args: {short}}
      v: {use: value, model: base, dataset: {path: "{tmp}/rows.jsonl"}, adapter: policy, args: {value}}
      v_on_start: {use: value, model: start, dataset: {path: "{tmp}/rows.jsonl"}, adapter: policy, args: {value}}
      whole: {use: reward, model: base, dataset: {path: "{data}/pairs.jsonl"}, args: {short}}
      steps: {use: prm, model: base, dataset: {path: "{tmp}/steps.jsonl"}, adapter: policy, args: {short}}
      ppo: {use: ppo, model: base, dataset: {path: "{data}/problems.jsonl"}, rewards: [correct], adapter: policy,
            critic: {critic}, args: {args}}
"""
RIGHT, WRONG = "<think>3|7=4;4>2=4</think><answer>4</answer>", "<think>3|7=7;7>2=7</think><answer>7</answer>"


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Callable[..., Path]:
    def written(start: str, loading: str | None = None, **args: Any) -> Path:
        rows = [
            {
                "prompt": [{"role": "user", "content": f"{i // 2}|7>2"}],
                "completion": [{"role": "assistant", "content": RIGHT if i % 2 else WRONG}],
                "reward": float(i % 2),
            }
            for i in range(16)
        ]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        steps = {"prompt": "3|7>2", "completions": ["3|7=4", "4>2=4"], "labels": [True, True]}
        (tmp_path / "steps.jsonl").write_text(json.dumps(steps) + "\n", encoding="utf-8")
        short = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_checkpointing": False}
        return write_recipe(
            RECIPE,
            loading=loading or tiny_model,
            data=tiny_data,
            tmp=tmp_path,
            critic=start,
            short=json.dumps(short),
            value=json.dumps(short),
            args=json.dumps({**ARGS, **args}),
        )

    return written


def mistakes(file: Path) -> str:
    with pytest.raises(RecipeErrors) as caught:
        api.validate(file)
    return str(caught.value)


@pytest.mark.parametrize(
    ("critic", "message"),
    [
        ("{from: nobody}", "critic.from 'nobody' is neither a stage with a value function nor a folder"),
        ("{from: base}", "critic.from 'base' is neither a stage"),
        ("{from: steps}", "stage 'steps' (prm) has no value function"),
        ("{from: start}", "stage 'start' (sft) has no value function"),
        ("{from: 3}", "'from' is 3, expected a stage, a folder or a Hub id"),
        ("{kind: both}", "'adapter' | 'shared' | 'separate'"),
        ("{form: v}", "unknown key 'form'"),
        ("{from: whole, kind: adapter}", "critic.from 'whole' is a whole model"),
        ("{from: v, kind: shared}", "critic.from 'v' has another"),
        ("{from: v_on_start, kind: shared}", "critic.from 'v_on_start' has another"),
        ("{from: ppo}", "cycle: ppo -> ppo"),
    ],
)
def test_validate_tells_what_cannot_be_started_from(recipe: Any, critic: str, message: str) -> None:
    found = mistakes(recipe(critic))
    assert message in found
    assert "cannot be looked through" not in found


def test_validate_tells_two_kinds(recipe: Any) -> None:
    assert "critic.kind is 'separate', but args.critic is 'adapter'" in mistakes(
        recipe("{kind: separate}", critic="adapter")
    )


def test_validate_tells_values_that_nobody_asks_for(recipe: Any) -> None:
    assert "critic is given, but remax has no critic" in mistakes(recipe("{from: v}", advantage_estimator="remax"))


def test_validate_tells_a_whole_model_beside_4_bits(recipe: Any, tiny_model: Path) -> None:
    loading = f"{{model_name_or_path: {tiny_model}, load_in_4bit: true}}"
    found = mistakes(recipe("{from: whole}", loading))
    assert "critic.from 'whole' would be a whole model beside a quantized one" in found


def test_validate_tells_an_adapter_on_another_base(recipe: Any) -> None:
    """What merges SFT's adapter first has a base of its own."""
    file = recipe("{from: v}")
    text = file.read_text(encoding="utf-8").replace("ppo: {use: ppo, model: base", "ppo: {use: ppo, model: start")
    file.write_text(text.replace("adapter: policy,\n", "adapter: policy, adapter_mode: merge,\n"), encoding="utf-8")
    assert "critic.from 'v' does not fit on the policy's base" in mistakes(file)


@pytest.mark.parametrize(
    "critic", ["{from: v}", "{from: whole}", "{from: v_on_start}", "{kind: shared}", "other", "{}"]
)
def test_what_fits_is_no_mistake(recipe: Any, critic: str) -> None:
    api.validate(recipe(critic))


def test_the_plan_knows_what_a_critic_starts_from(recipe: Any, tmp_path: Path) -> None:
    """An edge, so that it runs before; and in the key, so that another value model is another policy."""
    plain, started = api.plan(recipe("{}"), runs_dir=tmp_path), api.plan(recipe("{from: v}"), runs_dir=tmp_path)
    assert "v" not in plain["ppo"].spec.parents()
    assert "v" in started["ppo"].spec.parents()
    assert plain["ppo"].key != started["ppo"].key
    other = api.plan(recipe("{from: v}"), ["stages.v.args.max_steps=2"], runs_dir=tmp_path)
    assert other["ppo"].key != started["ppo"].key
    kind = api.plan(recipe("{from: v, kind: separate}"), runs_dir=tmp_path)
    assert kind["ppo"].key != started["ppo"].key


def test_a_recipe_starts_its_critic(recipe: Any, tmp_path: Path) -> None:
    done = api.run(recipe("{from: v}"), runs_dir=tmp_path / "runs", until="ppo")
    folder = done["ppo"].model_path
    assert folder is not None
    said = json.loads((folder / "critic/critic.json").read_text(encoding="utf-8"))
    assert (said["kind"], said["form"]["loss"]) == ("adapter", "binary")


def test_passes_of_the_critic_are_counted_where_checkpoints_may_stand(recipe: Any) -> None:
    """And nothing is asked of a recipe that leaves to the run when to save."""
    api.validate(recipe("{}", critic_iterations=3))
    found = mistakes(recipe("{}", critic_iterations=3, save_steps=500))
    assert "save_steps=500 is no generation boundary" in found
    assert "a multiple of 3" in found
    api.validate(recipe("{}", critic_iterations=3, save_steps=501))
