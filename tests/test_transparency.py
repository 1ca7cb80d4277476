"""A recipe run gives the numbers of a plain TRL script: same seed, same logs, same weights, bit for bit. No tolerance.

The scripts are those of `examples/plain_trl/`, which import nothing of ours. What they share with the recipe is the
`args` mapping, the files of data, and the reward functions in `rewards.py` beside the recipe.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins
from posttrain_plugins import run
from posttrain_plugins.recipe.run.run import Run
from posttrain_plugins.record.figures import read_figures

pytestmark = pytest.mark.slow

PLAIN = Path(__file__).parent.parent / "examples/plain_trl"
PACKAGE = Path(posttrain_plugins.__file__).parent

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


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


def four_bit() -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=torch.float32,
    )


def judged(world: World) -> dict[str, Any]:
    """Two functions and a reward model, which TRL logs under its folder's name."""
    judge = world.folder / "rm"
    judge.symlink_to(world.model("rm"))
    rewards = [world.rewards.correct, world.rewards.digits, str(judge)]
    return {"reward_funcs": rewards, "reward_weights": [1.0, 0.25, 1.0]}


def by_rules(world: World) -> dict[str, Any]:
    return {"reward_funcs": [world.rewards.correct, world.rewards.digits], "reward_weights": [1.0, 0.25]}


def sft_adapter(world: World) -> Any:
    """The adapter that SFT trained, to go on with; the reference is that adapter, frozen."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(world.base, dtype="float32")
    return PeftModel.from_pretrained(base, world.model("lora"), is_trainable=True)


SCRIPTS: dict[str, tuple[str, str, Callable[[World], dict[str, Any]]]] = {
    "sft": ("sft", "demos", lambda world: {"model": world.base}),
    "sft_bf16": ("sft", "demos", lambda world: {"model": world.base}),
    "lora": ("sft", "demos", lambda world: {"model": world.base, "peft_config": lora()}),
    "rm": ("reward", "pairs", lambda world: {"model": world.model("sft")}),
    "dpo": ("dpo", "pairs", lambda world: {"model": world.model("sft")}),
    "dpo_lora": ("dpo", "pairs", lambda world: {"model": world.model("sft"), "peft_config": lora()}),
    "grpo": ("grpo", "problems", lambda world: {"model": world.model("sft"), **judged(world)}),
    "grpo_lora": ("grpo", "problems", lambda world: {"model": sft_adapter(world), **by_rules(world)}),
    "rloo": ("rloo", "problems", lambda world: {"model": world.model("sft"), **by_rules(world)}),
}
"""Stage of the recipe -> a script of `examples/plain_trl/`, its data, and what it is given."""


def train_plainly(
    load_script: Callable[[Path], Any], script: str, out: Path, args: dict[str, Any], **given: Any
) -> Any:
    trainer = load_script(PLAIN / f"{script}.py").build(out=str(out), seed=11, **args, **given)
    trainer.train()
    trainer.save_model(str(out))
    return trainer


def test_the_scripts_have_nothing_of_ours() -> None:
    scripts = sorted(PLAIN.glob("*.py"))
    assert [script.stem for script in scripts] == ["dpo", "grpo", "reward", "rloo", "sft"]
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert "posttrain" not in text
        doc = (PACKAGE / "stages" / script.name).read_text(encoding="utf-8").split('"""')[1]
        assert f"examples/plain_trl/{script.name}" in doc, "a stage's docstring names its script"


@pytest.mark.parametrize("script", ["sft", "grpo"])
def test_a_script_runs_by_hand(script: str, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = tiny_data / ("demos.jsonl" if script == "sft" else "problems.jsonl")
    args = SAMPLED if script == "grpo" else SHARED
    command = [sys.executable, str(PLAIN / f"{script}.py")]
    done = subprocess.run(
        [*command, str(tiny_model), str(data), str(tmp_path / "out"), "--args", json.dumps({**args, "max_steps": 1})],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").is_file()
    told = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert f"the stage `{script}`" in told.stdout


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
def test_a_stage_equals_a_plain_trl_script(stage: str, world: World, load_script: Callable[[Path], Any]) -> None:
    script, data, given = SCRIPTS[stage]
    out = world.folder / f"plain-{stage}"
    trainer = train_plainly(load_script, script, out, ARGS[stage], rows=world.rows(data), **given(world))
    artifact = world.recipe[stage]
    assert artifact.model_path is not None
    assert_same_log(artifact.folder, trainer.state.log_history, ARGS[stage]["max_steps"])
    assert_same_weights(artifact.model_path, world.folder / f"plain-{stage}")


def test_a_4bit_stage_equals_a_plain_trl_script(
    world: World, write_recipe: Callable[..., Path], load_script: Callable[[Path], Any], tmp_path: Path
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
    args = {**ARGS["qlora"], "model_init_kwargs": {"dtype": "float32"}}
    adapted = {"peft_config": lora(), "quantization_config": four_bit()}
    rows = world.rows("demos")
    trainer = train_plainly(load_script, "sft", tmp_path / "plain", args, model=world.base, rows=rows, **adapted)
    assert artifact.model_path is not None
    assert_same_log(artifact.folder, trainer.state.log_history, ARGS["qlora"]["max_steps"])
    assert_same_weights(artifact.model_path, tmp_path / "plain")


NO_FIGURES = ("step", "epoch", "total_flos", "step_time", "peak_memory_gib", "generation_s")


def assert_same_log(stage: Path, history: list[dict[str, Any]], steps: int) -> None:
    """Every figure of every step but those that are a time, or that TRL does not take."""
    ours = [(line.step, line.figures) for line in read_figures(stage)]
    losses = [figures["loss"] for _, figures in ours]
    assert len(losses) == steps
    assert len(set(losses)) > 1, f"losses that never change compare nothing: {losses}"
    theirs: dict[int, dict[str, Any]] = {}
    for row in json.loads(json.dumps(history)):
        theirs.setdefault(row["step"], {}).update(row)
    assert [(step, _timeless(figures)) for step, figures in ours] == [(n, _timeless(row)) for n, row in theirs.items()]


def _timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if not k.endswith(("_runtime", "_per_second")) and k not in NO_FIGURES}


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
