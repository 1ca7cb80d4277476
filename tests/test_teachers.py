"""Distillation from a teacher that is an adapter, or a stack of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import posttrain_plugins as pp
from posttrain_plugins.models.folder import copy_below
from posttrain_plugins.models.load import load_model, load_tokenizer
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.recipe.run.run import Run

RECIPE = """
model: {model}
datasets: {{d: {{path: {data}/problems.jsonl, limit: 4, columns: [prompt]}}}}
stages:
  student: {{use: distill, model: base, teacher: {teacher}, dataset: d, args: {{max_steps: 1,
    per_device_train_batch_size: 4, max_completion_length: 6, gradient_checkpointing: false, bf16: false {args}}}}}
"""


def adapter(base: Path, folder: Path, seed: int) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(folder))
    load_tokenizer(base).save_pretrained(str(folder))
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(8)[None]).logits
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["one", "stacked"])
@pytest.mark.parametrize("args", ["", ", teacher_model_init_kwargs: {dtype: float32}"])
def test_a_teacher_is_all_of_its_adapters(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, args: str
) -> None:
    import trl

    lower, top = adapter(tiny_model, tmp_path / "lower", 1), adapter(tiny_model, tmp_path / "top", 2)
    alone = logits(load_model(top, {"dtype": "float32"}, device="cpu"))
    if kind == "stacked":
        copy_below([lower], top)
    wanted = logits(load_model(top, {"dtype": "float32"}, device="cpu"))
    assert torch.allclose(wanted, alone, atol=1e-4) == (kind == "one")
    seen: list[torch.Tensor] = []
    train = trl.DistillationTrainer.train

    def note(self: Any, *given: Any, **more: Any) -> Any:
        seen.append(logits(self.teacher_model))
        return train(self, *given, **more)

    monkeypatch.setattr(trl.DistillationTrainer, "train", note)
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=tiny_data, teacher=top, args=args))
    made: Run = pp.run(file, runs_dir=tmp_path / "runs", observer=Observer())
    assert made["student"].model_path.is_dir()
    assert torch.allclose(seen[0], wanted, atol=1e-4)
