"""The stage `ppo` in a recipe, and killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain_plugins import run
from posttrain_plugins.errors import InputError
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.figures import read_figures

ARGS = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "max_completion_length": 12,
    "num_iterations": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "gradient_checkpointing": False,
}
HEAD = """
    name: ppo
    seed: 5
    model: {model}
    adapters:
      policy: {use: lora, r: 4, lora_alpha: 8}
      small: {use: lora, r: 2}
      everything: {use: full}
    rewards:
      correct: {use: digit_chain_steps, mode: fraction}
      steps: {use: digit_chain_steps, weight: 0.5}
"""
PPO = "posttrain_plugins.stages.ppo:PPO"


def args(**more: object) -> str:
    return json.dumps({**ARGS, **more})


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_a_stage_saves_policy_and_critic(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """An adapter each, nothing of the reference and no model cards; process rewards by the recipe's own names."""
    recipe = write_recipe(
        HEAD
        + """
    stages:
      it: {use: "{ppo}", model: base, dataset: {path: "{data}/problems.jsonl"}, rewards: [correct, steps],
           adapter: policy, critic: small, args: {args}}
      again: {use: "{ppo}", model: it, dataset: {path: "{data}/problems.jsonl"}, rewards: [correct], adapter: policy,
              args: {args}}
    """,
        model=tiny_model,
        data=tiny_data,
        ppo=PPO,
        args=args(process_rewards=["steps"], step_separator=";"),
    )
    with pytest.raises(InputError, match="process_rewards names no reward: 'steps', expected one of correct"):
        run(recipe, runs_dir=tmp_path / "runs")
    done = run(recipe, ["stages.again.args.process_rewards=[]"], runs_dir=tmp_path / "runs")
    for stage in ("it", "again"):
        folder = done[stage].model_path
        assert folder is not None
        names = [name for name in files(folder) if "adapter" in name or "critic" in name]
        assert names == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "critic/adapter_config.json",
            "critic/adapter_model.safetensors",
            "critic/critic.json",
            "critic/value_head.safetensors",
        ]
        assert not [name for name in files(folder) if name.endswith(("README.md", ".bin")) or "ref/" in name]
    made = done["it"].model_path
    assert made is not None
    assert json.loads((made / "critic/adapter_config.json").read_text(encoding="utf-8"))["r"] == 2
    log = list(read_figures(done["it"].folder))
    names = {"rewards/correct/mean", "rewards/steps/mean", "kl", "value/mean", "generation_s"}
    assert names <= log[0].figures.keys()
    assert done["it"].metrics["generation_s"] == pytest.approx(sum(line.figures["generation_s"] for line in log))
    assert 0 < done["it"].metrics["generation_s"] < done["it"].metrics["train_s"]


@pytest.mark.slow
def test_every_way_to_train(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Full and LoRA; reward models beside functions, one an adapter on the same base, one a model of its own."""
    recipe = write_recipe(
        HEAD
        + """
    stages:
      rm: {use: reward, model: base, dataset: {path: "{data}/pairs.jsonl"}, args: {rm}}
      rm_lora: {use: reward, model: base, dataset: {path: "{data}/pairs.jsonl"}, adapter: policy, args: {rm}}
      full: {use: "{ppo}", model: base, dataset: {path: "{data}/problems.jsonl"}, rewards: [correct, rm], args: {args}}
      full_small: {use: "{ppo}", model: full, dataset: {path: "{data}/problems.jsonl"}, rewards: [correct],
                   critic: small, args: {args}}
      whole: {use: "{ppo}", model: base, dataset: {path: "{data}/problems.jsonl"}, rewards: [correct], adapter: policy,
              critic: everything, args: {args}}
      lora: {use: "{ppo}", model: base, dataset: {path: "{data}/problems.jsonl"}, adapter: policy,
             rewards: [correct, rm, rm_lora], eval_dataset: {path: "{data}/problems.jsonl", limit: 8}, args: {args}}
      grouped: {use: grpo, model: base, dataset: {path: "{data}/problems.jsonl"}, rewards: [correct, steps],
                process_rewards: [steps], separator: ";", args: {grpo}}
    """,
        model=tiny_model,
        data=tiny_data,
        ppo=PPO,
        args=args(),
        grpo=json.dumps({**ARGS, "num_generations": 4}),
        rm=json.dumps({"max_steps": 2, "per_device_train_batch_size": 4, "gradient_checkpointing": False}),
    )
    done = run(recipe, runs_dir=tmp_path / "runs")
    kinds = {
        stage: json.loads((done[stage].model_path / "critic/critic.json").read_text(encoding="utf-8"))["kind"]  # type: ignore[operator]
        for stage in ("full", "full_small", "whole", "lora")
    }
    assert kinds == {"full": "separate", "full_small": "separate", "whole": "separate", "lora": "adapter"}
    first, *_, last = read_figures(done["lora"].folder)
    assert {f"rewards/{name}/mean" for name in ("correct", "rm", "rm_lora")} <= first.figures.keys()
    assert "eval_reward" in last.figures


@pytest.mark.slow
def test_a_4bit_policy_critic_and_reward_model_on_one_base(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = write_recipe(
        HEAD.replace("model: {model}", "model: {model_name_or_path: {model}, load_in_4bit: true, dtype: float32}")
        + """
    stages:
      rm: {use: reward, model: base, dataset: {path: "{data}/pairs.jsonl"}, adapter: policy, args: {rm}}
      it: {use: "{ppo}", model: base, dataset: {path: "{data}/problems.jsonl"}, adapter: policy, critic: small,
           rewards: [correct, rm], args: {args}}
    """,
        model=tiny_model,
        data=tiny_data,
        ppo=PPO,
        args=args(gradient_checkpointing=True),
        rm=json.dumps({"max_steps": 2, "per_device_train_batch_size": 4, "bf16": True, "use_cpu": True}),
    )
    made = run(recipe, runs_dir=tmp_path / "runs")["it"]
    assert made.model_path is not None
    assert (made.model_path / "critic/adapter_model.safetensors").is_file()
    first = next(read_figures(made.folder))
    assert first.figures["rewards/rm/std"] > 0


KILLER = """
import os, signal

calls = 0

def digits(completions, **columns):
    global calls
    calls += 1
    if str(calls) == os.environ.get("KILL_AT_ROLLOUT"):
        os.kill(os.getpid(), signal.SIGKILL)
    return [sum(x.isdigit() for x in c[0]["content"]) / 8 for c in completions]
"""
RUNNER = """
import sys
from posttrain_plugins import run
run(sys.argv[1], runs_dir=sys.argv[2])
"""


class Began(Observer):
    """Notes the checkpoint that a stage goes on from."""

    checkpoint: Path | None = None

    def started(self, stage: object, resumes_from: Path | None) -> None:
        self.checkpoint = resumes_from


@pytest.mark.slow
def test_killed_it_goes_on_to_the_same_weights(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """In the middle of its third rollout of three; each is two steps, and a checkpoint stands after each."""
    (tmp_path / "killer.py").write_text(KILLER, encoding="utf-8")
    recipe = write_recipe(
        HEAD
        + """
    stages:
      it: {use: "{ppo}", model: base, dataset: {path: "{data}/problems.jsonl"}, rewards: ["./killer.py:digits"],
           adapter: policy, args: {args}}
    """,
        model=tiny_model,
        data=tiny_data,
        ppo=PPO,
        args=args(max_steps=6, save_strategy="steps", save_steps=2, kl_target=0.01, kl_horizon=40.0),
    )
    whole = run(recipe, runs_dir=tmp_path / "whole")["it"].model_path
    runs = tmp_path / "runs"
    environment = {**os.environ, "KILL_AT_ROLLOUT": "3"}
    child = [sys.executable, "-c", RUNNER, str(recipe), str(runs)]
    assert subprocess.run(child, stderr=subprocess.DEVNULL, env=environment).returncode == -signal.SIGKILL
    assert not (runs / "ppo/latest").exists()
    began = Began()
    again = run(recipe, runs_dir=runs, observer=began)["it"].model_path
    assert began.checkpoint is not None
    assert began.checkpoint.name == "checkpoint-4"
    assert whole is not None
    assert again is not None
    weights = [name for name in files(whole) if name.endswith(".safetensors")]
    assert weights == ["adapter_model.safetensors", "critic/adapter_model.safetensors", "critic/value_head.safetensors"]
    assert [name for name in weights if (whole / name).read_bytes() != (again / name).read_bytes()] == []


def test_what_was_sampled_before_a_checkpoint_is_kept_whatever_it_holds(tmp_path: Path) -> None:
    """U+2028, U+2029 and U+0085 end a line for Python and stand raw in JSON."""
    from posttrain_plugins.trainers.saved_rollouts import _forget_after

    file = tmp_path / "rollouts.jsonl"
    rows = [{"completion": f"a{mark}b", "global_step": i} for i, mark in enumerate("\u2028\u2029\u0085 ")]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines) + '{"completion": "torn', encoding="utf-8")
    _forget_after(file, tmp_path / "checkpoint-3")
    assert file.read_text(encoding="utf-8") == "".join(lines[:3])
    _forget_after(file, None)
    assert file.read_text(encoding="utf-8") == ""
