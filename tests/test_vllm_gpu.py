"""TRL's server mode on two GPUs: `vllm serve` on one, the policy on the other, weights by NCCL.

    CUDA_VISIBLE_DEVICES=0,1 pytest -m gpu tests/test_vllm_gpu.py

TRL compares the log-probabilities that the server sampled with, with those of the model that trains. They agree only
where every weight has arrived: those of the base, of the adapter below, and of the one that trains.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

RECIPE = """
    name: synced
    model: {model_name_or_path: {base}}
    adapters:
      below: {use: lora, r: 8}
      policy: {use: lora, r: 8}
      critic: {use: lora, r: 4}
    datasets:
      demos: {path: {data}/demos.jsonl}
      problems: {path: {data}/problems.jsonl}
    rewards: {right: exact_answer}
    stages:
      sft: {use: sft, model: base, dataset: demos, adapter: below, args: {max_steps: 20, learning_rate: 1e-2}}
      grpo:
        use: grpo
        model: sft
        dataset: problems
        adapter: policy
        adapter_mode: stack
        rewards: [right]
        vllm_server: &server {devices: "1", max_model_len: 256, enforce_eager: true, gpu_memory_utilization: 0.3}
        args: &args
          use_vllm: true
          vllm_mode: server
          max_steps: 3
          per_device_train_batch_size: 8
          num_generations: 4
          max_completion_length: 16
          learning_rate: 1e-2
          logging_steps: 1
      ppo:
        use: ppo
        model: sft
        dataset: problems
        adapter: policy
        adapter_mode: stack
        critic: critic
        rewards: [right]
        vllm_server: *server
        args: *args
"""
DIFFERENCE = "sampling/sampling_logp_difference/mean"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A random Qwen3 with heads of a size that vLLM has kernels for."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    words = tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(words), initializer_range=0.05, **sizes, **heads, **ids))
    model.to(torch.bfloat16).save_pretrained(str(tmp_path / "base"))
    words.save_pretrained(str(tmp_path / "base"))
    return tmp_path / "base"


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_every_weight_reaches_the_server(
    stage: str, base: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: NCCL joins no GPU with itself")
    recipe = write_recipe(RECIPE, base=base, data=tiny_data)
    command = [sys.executable, "-m", "posttrain_plugins", "run", str(recipe), "--only", "sft", "--only", stage]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "0"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    folder = (tmp_path / "runs" / "synced" / "latest" / stage).resolve()
    lines = [json.loads(line) for line in (folder / "figures.jsonl").read_text().splitlines()]
    found = [value for line in lines for name, value in _flat(line) if name.endswith(DIFFERENCE)]
    assert len(found) >= 3
    assert max(found) < 0.05  # bfloat16 rounds by less; a missing adapter is a difference of more than 1
    assert "vllm_server.log" in {file.name for file in folder.iterdir()}


def _flat(line: object) -> list[tuple[str, float]]:
    """Return every number of a line of figures with its name."""
    if not isinstance(line, dict):
        return []
    own = [(name, float(value)) for name, value in line.items() if isinstance(value, int | float)]
    return own + [pair for value in line.values() for pair in _flat(value)]
