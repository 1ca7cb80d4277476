"""A recipe run gives the numbers of a plain TRL script: same seed, same logs, same weights, bit for bit. No tolerance.

The scripts below import trl, transformers, peft and datasets, and nothing of ours. What they share with the recipe is
the `args` mapping, the files of data, and the reward functions in `rewards.py` beside the recipe.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.recipe.run.run import Run, run

pytestmark = pytest.mark.slow

REWARDS = """
def correct(completions, solution, **columns):
    return [float(f"<answer>{s}</answer>" in c[0]["content"]) for c, s in zip(completions, solution)]


def digits(completions, **columns):
    return [sum(x.isdigit() for x in c[0]["content"]) / 8 for c in completions]
"""

SHARED = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "gradient_checkpointing": False,
}
SAMPLED = {**SHARED, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 12}
ARGS: dict[str, dict[str, Any]] = {
    "sft": {**SHARED, "gradient_accumulation_steps": 2},
    "sft_bf16": {**SHARED, "max_steps": 2, "bf16": True, "use_cpu": True},
    "lora": {**SHARED, "assistant_only_loss": True},
    "qlora": {**SHARED, "max_steps": 2},
    "rm": SHARED,
    "dpo": {**SHARED, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "dpo_lora": SHARED,
    "grpo": {**SAMPLED, "max_steps": 6, "beta": 0.02, "num_iterations": 2, "steps_per_generation": 2},
    "grpo_lora": {**SAMPLED, "max_steps": 2, "beta": 0.02},
    "rloo": SAMPLED,
}

RECIPE = """
    name: transparency
    seed: 11
    model: {model}
    adapters:
      policy: {use: lora, r: 4, lora_alpha: 8}
    datasets:
      demos: {path: "{data}/demos.jsonl"}
      problems: {path: "{data}/problems.jsonl"}
      pairs: {path: "{data}/pairs.jsonl"}
    rewards:
      correct: {use: "./rewards.py:correct"}
      digits: {use: "./rewards.py:digits", weight: 0.25}
    stages:
      sft: {use: sft, model: base, dataset: demos, args: {sft}}
      sft_bf16: {use: sft, model: base, dataset: demos, args: {sft_bf16}}
      lora: {use: sft, model: base, dataset: demos, adapter: policy, args: {lora}}
      rm: {use: reward, model: sft, dataset: pairs, args: {rm}}
      dpo: {use: dpo, model: sft, dataset: pairs, args: {dpo}}
      dpo_lora: {use: dpo, model: sft, dataset: pairs, adapter: policy, args: {dpo_lora}}
      grpo: {use: grpo, model: sft, dataset: problems, rewards: [correct, digits, rm], args: {grpo}}
      grpo_lora:
        {use: grpo, model: lora, dataset: problems, adapter: policy, rewards: [correct, digits], args: {grpo_lora}}
      rloo: {use: rloo, model: sft, dataset: problems, rewards: [correct, digits], args: {rloo}}
"""


@dataclass(frozen=True)
class World:
    """Where a plain script finds what it needs: the base, the data, the rewards, and the recipe's own artifacts."""

    base: str
    data: Path
    rewards: Any
    recipe: Run
    folder: Path

    def rows(self, name: str) -> Any:
        from datasets import load_dataset

        return load_dataset("json", data_files=str(self.data / f"{name}.jsonl"), split="train")

    def model(self, stage: str) -> str:
        return str(self.recipe[stage].model_path)


# --- the plain scripts -----------------------------------------------------------------------------------------------


def plain_sft(world: World, name: str, out: str) -> Any:
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(output_dir=out, seed=11, save_strategy="no", **{"bf16": False, **ARGS[name]})
    return SFTTrainer(model=world.base, args=args, train_dataset=world.rows("demos"))


def plain_lora(world: World, name: str, out: str) -> Any:
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    args = SFTConfig(output_dir=out, seed=11, save_strategy="no", bf16=False, **ARGS[name])
    return SFTTrainer(model=world.base, args=args, train_dataset=world.rows("demos"), peft_config=lora)


def plain_qlora(world: World, name: str, out: str) -> Any:
    import torch
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=torch.float32,
    )
    args = SFTConfig(
        output_dir=out, seed=11, save_strategy="no", bf16=False, model_init_kwargs={"dtype": "float32"}, **ARGS[name]
    )
    rows = world.rows("demos")
    return SFTTrainer(model=world.base, args=args, train_dataset=rows, peft_config=lora, quantization_config=four_bit)


def plain_reward(world: World, name: str, out: str) -> Any:
    from trl import RewardConfig, RewardTrainer

    args = RewardConfig(output_dir=out, seed=11, save_strategy="no", bf16=False, **ARGS[name])
    return RewardTrainer(model=world.model("sft"), args=args, train_dataset=world.rows("pairs"))


def plain_dpo(world: World, name: str, out: str) -> Any:
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(output_dir=out, seed=11, save_strategy="no", bf16=False, **ARGS[name])
    return DPOTrainer(model=world.model("sft"), args=args, train_dataset=world.rows("pairs"))


def plain_dpo_lora(world: World, name: str, out: str) -> Any:
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    args = DPOConfig(output_dir=out, seed=11, save_strategy="no", bf16=False, **ARGS[name])
    return DPOTrainer(model=world.model("sft"), args=args, train_dataset=world.rows("pairs"), peft_config=lora)


def plain_grpo(world: World, name: str, out: str) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(
        output_dir=out, seed=11, save_strategy="no", bf16=False, reward_weights=[1.0, 0.25, 1.0], **ARGS[name]
    )
    judge = world.folder / "rm"  # TRL logs a reward model under its folder's name
    judge.symlink_to(world.model("rm"))
    rewards = [world.rewards.correct, world.rewards.digits, str(judge)]
    return GRPOTrainer(model=world.model("sft"), reward_funcs=rewards, args=args, train_dataset=world.rows("problems"))


def plain_grpo_lora(world: World, name: str, out: str) -> Any:
    """Goes on with the adapter that SFT trained; the reference is that adapter, frozen."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    base = AutoModelForCausalLM.from_pretrained(world.base, dtype="float32")
    policy = PeftModel.from_pretrained(base, world.model("lora"), is_trainable=True)
    args = GRPOConfig(output_dir=out, seed=11, save_strategy="no", bf16=False, reward_weights=[1.0, 0.25], **ARGS[name])
    rewards = [world.rewards.correct, world.rewards.digits]
    return GRPOTrainer(model=policy, reward_funcs=rewards, args=args, train_dataset=world.rows("problems"))


def plain_rloo(world: World, name: str, out: str) -> Any:
    from trl import RLOOConfig, RLOOTrainer

    args = RLOOConfig(output_dir=out, seed=11, save_strategy="no", bf16=False, reward_weights=[1.0, 0.25], **ARGS[name])
    rewards = [world.rewards.correct, world.rewards.digits]
    return RLOOTrainer(model=world.model("sft"), reward_funcs=rewards, args=args, train_dataset=world.rows("problems"))


SCRIPTS: dict[str, Callable[[World, str, str], Any]] = {
    "sft": plain_sft,
    "sft_bf16": plain_sft,
    "lora": plain_lora,
    "rm": plain_reward,
    "dpo": plain_dpo,
    "dpo_lora": plain_dpo_lora,
    "grpo": plain_grpo,
    "grpo_lora": plain_grpo_lora,
    "rloo": plain_rloo,
}


# --- the comparison --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(
    tiny_model: Path, tiny_data: Path, load_script: Callable[[Path], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("transparency")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    file = folder / "recipe.yaml"
    text = RECIPE.replace("{model}", str(tiny_model)).replace("{data}", str(tiny_data))
    for name, args in ARGS.items():
        text = text.replace("{" + name + "}", json.dumps(args))
    file.write_text(text, encoding="utf-8")
    finished = run(file, runs_dir=folder / "runs")
    yield World(str(tiny_model), tiny_data, load_script(folder / "rewards.py"), finished, folder)
    sys.modules.pop("rewards", None)


@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_stage_equals_a_plain_trl_script(stage: str, world: World) -> None:
    trainer = SCRIPTS[stage](world, stage, str(world.folder / f"plain-{stage}"))
    trainer.train()
    trainer.save_model(str(world.folder / f"plain-{stage}"))
    artifact = world.recipe[stage]
    assert artifact.model_path is not None
    ours = [json.loads(line) for line in (artifact.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert_same_log(ours, trainer.state.log_history, ARGS[stage]["max_steps"])
    assert_same_weights(artifact.model_path, world.folder / f"plain-{stage}")


def test_a_4bit_stage_equals_a_plain_trl_script(
    world: World, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    recipe = write_recipe(
        """
        name: qlora
        seed: 11
        model: {model_name_or_path: {model}, load_in_4bit: true, dtype: float32}
        adapters: {policy: {use: lora, r: 4, lora_alpha: 8}}
        stages:
          qlora: {use: sft, model: base, dataset: {path: "{data}/demos.jsonl"}, adapter: policy, args: {args}}
        """,
        model=world.base,
        data=world.data,
        args=json.dumps(ARGS["qlora"]),
    )
    artifact = run(recipe, runs_dir=tmp_path / "runs")["qlora"]
    trainer = plain_qlora(world, "qlora", str(tmp_path / "plain"))
    trainer.train()
    trainer.save_model(str(tmp_path / "plain"))
    assert artifact.model_path is not None
    ours = [json.loads(line) for line in (artifact.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert_same_log(ours, trainer.state.log_history, ARGS["qlora"]["max_steps"])
    assert_same_weights(artifact.model_path, tmp_path / "plain")


def assert_same_log(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], steps: int) -> None:
    """Every figure of every row but those that are a time."""
    ours, theirs = _timeless(ours), json.loads(json.dumps(_timeless(theirs)))
    losses = [row["loss"] for row in ours if "loss" in row]
    assert len(losses) == steps
    assert len(set(losses)) > 1, f"losses that never change compare nothing: {losses}"
    assert ours == theirs


def _timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not _is_time(k)} for row in rows]


def _is_time(name: str) -> bool:
    return name.endswith(("_runtime", "_per_second")) or name == "step_time"


def assert_same_weights(ours: Path, theirs: Path) -> None:
    import torch
    from safetensors.torch import load_file

    files = sorted(file.name for file in ours.glob("*.safetensors"))
    assert files
    assert files == sorted(file.name for file in theirs.glob("*.safetensors"))
    for name in files:
        left, right = load_file(ours / name), load_file(theirs / name)
        assert left.keys() == right.keys()
        different = [key for key in left if not torch.equal(left[key], right[key])]
        assert not different, f"{len(different)} of {len(left)} tensors differ: {different[:5]}"
