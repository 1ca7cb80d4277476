"""Whole models combined: the mean of their weights, halfway back to the base, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import HandoffError, InputError
from posttrain_plugins.types import ModelArtifact


def moved(model: Path, folder: Path, by: float, dtype: str = "float32", **config: Any) -> Path:
    """The same model with every weight moved, saved in a precision."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by)
    other.to(getattr(torch, dtype)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("shares", "expected"), [(None, 0.5), ([0.25, 0.75], 0.75), ([-0.5, 1.5], 1.5)])
def test_a_mean_of_two_whole_models_has_the_mean_of_their_weights(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path], shares: list[float] | None, expected: float
) -> None:
    """Beyond 1 it is what fine-tuning did, and half as much again."""
    moved(tiny_model, tmp_path / "tuned", 1.0)
    given = f", weights: {shares}" if shares else ""
    file = write_recipe(
        "model: {model}\nstages: {c: {use: combine, models: [base, ./tuned]{given}}}", model=tiny_model, given=given
    )
    made = pp.run(file, runs_dir=tmp_path / "runs")["c"].model_path
    assert made is not None
    before, after = weights(tiny_model), weights(made)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (after[name] - tensor).flatten().tolist() == pytest.approx([expected] * tensor.numel(), abs=1e-5)


def test_an_adapter_is_merged_first_and_the_last_ones_precision_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from posttrain_plugins.models.interpolate import interpolate

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    peft.save_pretrained(str(tmp_path / "lora"))
    merged = dict(peft.merge_and_unload().named_parameters())
    base, adapter = ModelArtifact("base", str(tiny_model)), ModelArtifact("lora", str(tmp_path / "lora"))
    half = dict(interpolate([base, adapter], [0.5, 0.5]).named_parameters())
    before = dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    for name, parameter in half.items():
        assert torch.allclose(parameter, (before[name] + merged[name]) / 2, atol=1e-6)
    last = ModelArtifact("tuned", str(moved(tiny_model, tmp_path / "tuned", 1.0, "bfloat16")))
    assert interpolate([base, last], [0.5, 0.5]).dtype == torch.bfloat16


def test_models_of_two_sizes_and_weights_that_are_no_mean_are_refused(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    import shutil

    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    other = Qwen3Config.from_pretrained(tiny_model, hidden_size=16)
    Qwen3ForCausalLM(other).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "other")
    shutil.copytree(tiny_model, tmp_path / "same")

    def run(models: str, options: str = "") -> None:
        text = "model: {model}\nstages: {c: {use: combine, models: {models}{options}}}"
        pp.run(write_recipe(text, model=tiny_model, models=models, options=options), runs_dir=tmp_path / "runs")

    with pytest.raises(HandoffError, match=r"'other' and 'base' cannot be combined: .* is \(.*16.*\), expected \(.*32"):
        run("[base, ./other]")
    with pytest.raises(InputError, match=r"add up to 1\.5, expected 1"):
        run("[base, ./same]", ", weights: [1.0, 0.5]")
    with pytest.raises(InputError, match=r"'base' cannot be combined by svd: it is a whole model"):
        run("[base, ./same]", ", combination_type: svd")
