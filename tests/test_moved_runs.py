"""Runs that are moved, renamed, linked or copied go on, and their adapters find their bases."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import posttrain_plugins as pp
from posttrain_plugins import api

pytestmark = pytest.mark.slow

RECIPE = """
    name: moved
    model:
      use: random_init
      config: {model_type: qwen3, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2,
               num_key_value_heads: 2, head_dim: 16}
      tokenizer: "posttrain_plugins.tiny_world.tokenizer:tokenizer"
    adapters: {policy: {use: lora, r: 2}}
    datasets: {demos: {path: "{data}/demos.jsonl", limit: 4}}
    stages:
      sft: {use: sft, model: base, dataset: demos, adapter: policy,
            args: {max_steps: 1, per_device_train_batch_size: 2, gradient_checkpointing: false}}
"""

PLAIN = """
import sys
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM
base = PeftConfig.from_pretrained(sys.argv[1]).base_model_name_or_path
PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sys.argv[1])
print(base)
"""


@pytest.fixture(scope="module")
def finished(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe, and the runs folder of a finished run with an adapter on a base that the run made."""
    folder = tmp_path_factory.mktemp("moved")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("{data}", str(tiny_data)))
    pp.run(recipe, runs_dir=folder / "runs")
    return recipe, folder / "runs"


def base_in_plain_peft(adapter: Path) -> Path:
    """The base that plain PEFT reads, in a process that knows nothing of this package."""
    done = subprocess.run([sys.executable, "-c", PLAIN, str(adapter)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


def moved(runs: Path, to: Path) -> Path:
    shutil.copytree(runs, to, symlinks=True)
    return to


def renamed_recipe(runs: Path, to: Path) -> Path:
    """Only the folder of the recipe, below another runs folder."""
    to.mkdir()
    shutil.copytree(runs / "moved", to / "moved", symlinks=True)
    return to


def linked(runs: Path, to: Path) -> Path:
    real = to.with_name("real")
    shutil.copytree(runs, real, symlinks=True)
    to.symlink_to(real)
    return to


@pytest.mark.parametrize("how", [moved, renamed_recipe, linked])
def test_a_run_that_stands_elsewhere_is_done_and_answers(
    how: Callable[[Path, Path], Path], finished: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, original = finished
    source = tmp_path / "source"
    shutil.copytree(original, source, symlinks=True)
    # The original is another folder than the copy's source, and both are gone for what follows: nothing may reach back.
    hidden = original.with_name("hidden")
    runs = how(source, tmp_path / "else where")
    shutil.rmtree(source)
    original.rename(hidden)
    try:
        plan = api.plan(recipe, runs_dir=runs)
        assert [stage.id for stage in plan.stages if stage.must_run] == []
        run = pp.run(recipe, runs_dir=runs)
        adapter = run["sft"].model_path
        assert adapter is not None
        base = base_in_plain_peft(adapter)
        assert base.is_relative_to(runs.resolve())
        answers = pp.solve("greedy", ["1>2"], backend=pp.backend(str(adapter)))
        assert len(answers) == 1
    finally:
        hidden.rename(original)


def test_a_copy_outlives_what_it_was_copied_from(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, original = finished
    copy = moved(original, tmp_path / "copy")
    adapter = pp.run(recipe, runs_dir=copy)["sft"].model_path
    assert adapter is not None
    assert base_in_plain_peft(adapter).is_relative_to(copy)
    first = pp.run(recipe, runs_dir=original)["sft"].model_path
    assert first is not None
    assert base_in_plain_peft(first).is_relative_to(original)


def test_an_adapter_named_by_its_folder_finds_its_base(finished: tuple[Path, Path], tmp_path: Path) -> None:
    _, original = finished
    copy = moved(original, tmp_path / "copy")
    adapter = (copy / "moved/latest/sft").resolve() / "model"
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"""
model: {{model_name_or_path: {adapter}}}
datasets: {{d: {{use: digit_chain, size: 2}}}}
rewards: {{correct: exact_answer}}
stages: {{e: {{use: evaluate, models: [base], dataset: d, rewards: [correct], strategies: [greedy], max_tokens: 4}}}}
"""
    )
    pp.run(recipe, runs_dir=tmp_path / "other")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]).is_relative_to(copy)
