"""What a stage says of its settings before anything is loaded: mistakes with the others, warnings in the plan."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins import api
from posttrain_plugins.errors import RecipeErrors, StageFailed
from posttrain_plugins.recipe.check import stage_validation
from posttrain_plugins.recipe.run.observer import Observer

HIDDEN, LAYERS, INNER, VOCABULARY = 4096, 32, 12288, 150_000
BILLIONS = (LAYERS * (4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER) + 2 * VOCABULARY * HIDDEN) / 1e9

RECIPE = """
    name: facts
    model: {model_name_or_path: ./base, dtype: bfloat16}
    adapters:
      policy: {use: lora, r: 8}
      everything: {use: full}
    datasets:
      problems: {use: digit_chain, size: 8}
    rewards:
      correct: {use: exact_answer}
      steps: {use: digit_chain_steps}
    stages:
      ppo: {use: ppo, model: base, dataset: problems, rewards: [correct, steps]{more}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 8e9 parameters by its header: there are no weights behind it."""
    (tmp_path / "base").mkdir()
    config = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "intermediate_size": INNER}
    config |= {"num_attention_heads": 32, "vocab_size": VOCABULARY}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    size = round(BILLIONS * 1e9)
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "BF16", "shape": [2, size // 2], "data_offsets": [0, 0]}})
    (tmp_path / "base/model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    return tmp_path


@pytest.fixture
def plan(folder: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    def planned(more: str = "", gib: int = 80) -> Any:
        monkeypatch.setattr(stage_validation, "memory_bytes", lambda: gib * 2**30)
        return api.plan(write_recipe(RECIPE, more=more), runs_dir=folder / "runs")

    return planned


def warnings(plan: Any) -> list[str]:
    return [str(w) for stage in plan.stages for w in stage.spec.warnings]


@pytest.mark.parametrize(
    ("more", "copies"),
    [
        ("", 9),  # policy and critic with gradients and Adam, and the reference
        (", args: {critic: shared}", 5),
        (", args: {kl_coef: 0.0}", 8),
        (", adapter: everything", 9),
        (", critic: policy", 6),  # the critic is a frozen copy with an adapter
    ],
)
def test_a_critic_without_memory_is_warned_of(plan: Callable[..., Any], more: str, copies: int) -> None:
    """Two bytes a parameter; a GiB less than they need warns, a GiB more does not."""
    needed = copies * 2 * BILLIONS * 1e9 / 2**30
    (warning,) = warnings(plan(more, gib=int(needed)))
    assert f"full fine-tuning of {BILLIONS:.2f}e9 parameters" in warning
    assert f"{needed:.1f} GiB before activations, but a device here has {int(needed)}.0 GiB" in warning
    assert "adapter: {use: lora}" in warning
    assert warnings(plan(more, gib=int(needed) + 1)) == []


def test_float32_takes_twice_as_much(plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "RECIPE", RECIPE.replace(", dtype: bfloat16", ""))
    assert f"{9 * 4 * BILLIONS * 1e9 / 2**30:.1f} GiB" in warnings(plan(gib=1))[0]


@pytest.mark.parametrize("more", [", adapter: policy", ", args: {advantage_estimator: remax}"])
def test_adapters_and_estimators_without_a_critic_are_not_warned_of(plan: Callable[..., Any], more: str) -> None:
    assert warnings(plan(more, gib=1)) == []


def test_the_plan_shows_it_without_anything_heavy(folder: Path, write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe(RECIPE.replace("[correct, steps]", "[correct]"), more="")
    script = (
        "import sys; from posttrain_plugins.recipe.check import stage_validation\n"
        "stage_validation.memory_bytes = lambda: 2**30\n"
        "from posttrain_plugins.cli import main; main()\n"
        "assert not {'torch', 'transformers', 'trl', 'peft', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "plan", str(recipe), "--runs-dir", str(folder)], capture_output=True, text=True
    )
    assert "warning: ppo: full fine-tuning of" in done.stdout, done.stderr


def test_process_supervision_leaves_no_choice_of_aggregation(plan: Callable[..., Any]) -> None:
    args = "args: {multi_objective_aggregation: normalize_then_sum}"
    grpo = "{use: grpo, model: base, dataset: problems, rewards: [correct, steps], " + args
    more = ", adapter: policy}\n  grouped: " + grpo
    plan(more)  # TRL's own trainer, whose argument it is
    with pytest.raises(RecipeErrors, match="but process_rewards leave no choice"):
        plan(more + ", process_rewards: [steps]")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (", args: {kl_target: 6.0, kl_coef: 0.0}", "kl_target adapts kl_coef, which is 0"),
        (
            ", args: {multi_objective_aggregation: normalize_then_sum}",
            "adds the rewards of a completion by their weights",
        ),
        (", args: {beta: 0.1}", "beta is 0.1, but PPO's KL stands in the reward"),
        (", args: {gamma: 2.0}", "gamma is 2.0, expected 0 to 1"),
        (", args: {loss_type: vespo}", "loss_type is 'vespo'"),
        (", args: {critic: adapter}", "the policy trains all parameters"),
        (", adapter: policy, critic: policy, args: {critic: shared}", "it has no adapter"),
        (", critic: policy, args: {advantage_estimator: remax}", "remax has no critic"),
        (", args: {advantage_estimator: remax, critic: shared}", "remax has no critic"),
        (", args: {process_rewards: [stesp]}", "process_rewards names no reward: 'stesp', expected one of correct"),
        (", args: {process_rewards: [correct]}", "'correct' is in process_rewards, but it has no step_scores"),
    ],
)
def test_what_ppo_cannot_do_is_a_mistake_of_the_recipe(plan: Callable[..., Any], more: str, message: str) -> None:
    """Told once, at the line of the value."""
    with pytest.raises(RecipeErrors) as told:
        plan(more)
    (mistake,) = told.value.mistakes
    assert message in mistake.message
    assert mistake.line == 13


def test_a_mistake_elsewhere_is_told_alone(plan: Callable[..., Any]) -> None:
    """What is wrong with the adapter says nothing of the critic."""
    with pytest.raises(RecipeErrors) as told:
        plan(", adapter: {use: lroa}, args: {critic: adapter}")
    assert [mistake.message for mistake in told.value.mistakes] == ["no adapter plugin 'lroa'"]


def test_a_quantized_copy(plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "RECIPE", RECIPE.replace("dtype: bfloat16", "load_in_4bit: true"))
    with pytest.raises(RecipeErrors, match="trains a copy of the model, but it is quantized"):
        plan(", adapter: policy, args: {critic: separate}")


def test_the_process_rewards_of_grpo(plan: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "RECIPE", RECIPE.replace("use: ppo", "use: grpo"))
    assert plan(", process_rewards: [steps]")
    with pytest.raises(RecipeErrors, match="'correct' is in process_rewards, but it has no step_scores"):
        plan(", process_rewards: [correct]")


def test_a_size_by_header_config_and_adapter(folder: Path) -> None:
    size = stage_validation.parameters_in(folder / "base")
    assert size == pytest.approx(BILLIONS * 1e9, abs=2)
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder / "base")}))
    assert stage_validation.parameters_in(adapter) == size
    (folder / "base/model.safetensors").unlink()
    assert stage_validation.parameters_in(folder / "base") == pytest.approx(size, rel=1e-6)
    assert stage_validation.parameters_in(folder) is None
    (folder / "base/config.json").write_text("[]")
    assert stage_validation.parameters_in(folder / "base") is None


def test_a_real_models_size(tiny_model: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_model / "model.safetensors", "pt") as file:
        expected = sum(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 (not a mapping)
    assert stage_validation.parameters_in(tiny_model) == expected
    assert stage_validation.memory_bytes() > 2**28


STRANGER = """
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar
from posttrain_plugins.types import AdapterRef, Issue, ConfigOf, ModelRef

@dataclass
class Careful:
    model: ModelRef
    adapter: AdapterRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl:SFTConfig")] = field(default_factory=dict)
    produces: ClassVar[str] = "model"

    def issues(self, facts):
        assert self.model == "base"
        if facts.args.learning_rate > 1:
            yield Issue("learning_rate is above 1", "lower it", "args.learning_rate")
        if facts.args.max_steps == 13:
            yield Issue(f"13 steps, all parameters: {facts.trains_all}", is_warning=True)
        if facts.args.seed == 13:
            raise KeyError("its own fault")

    def __call__(self, context): ...
"""


def test_a_strangers_stage_is_asked_too(
    folder: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "careful_stage.py").write_text(STRANGER, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    text = (
        RECIPE.partition("stages:")[0] + "stages:\n      it: {use: 'careful_stage:Careful', model: base, args: {args}}"
    )

    def planned(args: str) -> Any:
        return api.plan(write_recipe(text, args=args), runs_dir=folder / "runs")

    assert warnings(planned("{max_steps: 2}")) == []
    assert warnings(planned("{max_steps: 13}")) == ["13 steps, all parameters: True"]
    notes: list[str] = []
    watching = Observer()
    watching.note = lambda stage, message: notes.append(f"{stage.id}: {message}")  # type: ignore[method-assign]
    with pytest.raises(StageFailed, match="expected StageResult"):
        api.run(write_recipe(text, args="{max_steps: 13}"), runs_dir=folder / "runs", observer=watching)
    assert notes == ["it: 13 steps, all parameters: True"]
    for args, message in (("{learning_rate: 2.0}", "above 1"), ("{seed: 13}", "KeyError: 'its own fault'")):
        with pytest.raises(RecipeErrors, match=message):
            planned(args)
