"""`examples/own_stage`: a stage of somebody else's around a trainer of TRL's that no stage of ours wraps."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain_plugins.plugins import registry
from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.read.document import load

EXAMPLE = Path(__file__).parent.parent / "examples/own_stage"


@pytest.fixture(autouse=True)
def no_module_is_left() -> Iterator[None]:
    yield
    for name in [name for name, module in sys.modules.items() if str(EXAMPLE) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def test_the_recipe_is_valid() -> None:
    assert [stage.id for stage in check(load(EXAMPLE / "recipe.yaml")).stages] == ["base", "sft", "gmpo"]


def test_it_wraps_what_we_do_not() -> None:
    ours = [plugin for plugin in registry.installed("stage") if plugin.distribution == "posttrain-plugins"]
    assert "gmpo" not in {plugin.name for plugin in ours}


@pytest.mark.slow
def test_it_passes_the_kit() -> None:
    from posttrain_plugins.testing import check_stage

    check_stage(str(EXAMPLE / "gmpo.py") + ":GMPO")


@pytest.mark.slow
def test_it_trains_in_a_recipe(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """With GMPO's loss: other weights than GRPO's from the same rollouts."""
    import torch
    from safetensors.torch import load_file

    from posttrain_plugins import run

    args = "max_steps: 2, per_device_train_batch_size: 8, num_generations: 4, num_iterations: 2, learning_rate: 1e-3"
    options = f"{{{args}, max_completion_length: 8, gradient_checkpointing: false}}"
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"""
name: own
seed: 3
model: {{model_name_or_path: {tiny_model}}}
datasets: {{problems: {{path: "{tiny_data}/problems.jsonl"}}}}
rewards: {{brief: {{use: length, max_chars: 2, decay_chars: 20}}}}
stages:
  gmpo: {{use: "{EXAMPLE}/gmpo.py:GMPO", model: base, dataset: problems, rewards: [brief], args: {options}}}
  grpo: {{use: grpo, model: base, dataset: problems, rewards: [brief], args: {options}}}
""",
        encoding="utf-8",
    )
    finished = run(file, runs_dir=tmp_path / "runs")
    weights = [load_file(finished[stage].model_path / "model.safetensors") for stage in ("gmpo", "grpo")]
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert (finished["gmpo"].folder / "rollouts.jsonl").is_file()
