"""Tiny models and data that plugins are tried on: made once a process, in a folder that goes with it.

In `example_params`, `tiny:model` stands for a causal model's folder (Qwen3, hidden 32, the tiny world's tokenizer),
`tiny:classifier` for a reward model's (one label for a sequence), `tiny:tokens` for a process reward model's (one label
for a token), `tiny:adapter` for a LoRA adapter's on the first, `tiny:critic` for a policy with a value head,
`tiny:gguf` for a GGUF file.
"""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain_plugins.testing.tiny_gguf import write_gguf
from posttrain_plugins.tiny_world import evaluate, make_expression

__all__ = ["MODELS", "data", "folder", "model", "resolve"]

ROWS = 8  # a few batches of two
HIDDEN = 32  # small, and yet every code path is the one of a real model
MODELS = ("model", "classifier", "tokens", "adapter", "critic", "gguf")


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="posttrain-testing-")


def folder() -> Path:
    """Return the folder that holds everything made here."""
    return Path(_temporary().name)


def resolve(value: Any) -> Any:
    """Replace `tiny:model` and its like, at any depth, by folders and files."""
    if isinstance(value, str) and value.startswith("tiny:"):
        return str(model(value.removeprefix("tiny:")))
    if isinstance(value, Mapping):
        return {key: resolve(item) for key, item in value.items()}
    return type(value)(map(resolve, value)) if isinstance(value, list | tuple) else value


@functools.cache
def model(kind: str = "model") -> Path:
    """Make one of `MODELS` at the first call, and return its folder, or its file."""
    if kind not in MODELS:
        raise ValueError(f"no tiny model '{kind}', expected one of {', '.join(MODELS)}")
    made = folder() / kind
    if kind == "gguf":
        return write_gguf(made / "tiny.gguf")
    if kind == "adapter":
        from peft import LoraConfig, get_peft_model

        base = bare_model()
        base.name_or_path = str(model())  # PEFT writes it into the adapter's file, as the base to load
        get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(made)
    else:
        bare_model(kind).save_pretrained(made)
    if kind == "critic":  # a value head on the policy's own body, as the stage `ppo` saves it
        import torch
        from safetensors.torch import save_file

        (made / "critic").mkdir()
        (made / "critic" / "critic.json").write_text('{"kind": "shared"}\n', encoding="utf-8")
        weight = torch.linspace(-1, 1, HIDDEN)[None]  # (1, H)
        save_file({"weight": weight, "bias": torch.zeros(1)}, made / "critic" / "value_head.safetensors")
    _tokenizer().save_pretrained(made)
    return made


def bare_model(kind: str = "model") -> Any:
    """Return a new tiny model with the same random weights each time; the global generators stay where they are."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification, Qwen3ForTokenClassification

    classes = {"classifier": Qwen3ForSequenceClassification, "tokens": Qwen3ForTokenClassification}
    tokenizer = _tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=kind not in ("classifier", "tokens"),  # their head is no embedding
        attention_bias=True,  # so that `bias: all` finds a bias
        initializer_range=0.05,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = classes.get(kind, Qwen3ForCausalLM)(config).eval()
    if getattr(made, "generation_config", None) is not None:
        made.generation_config.pad_token_id = tokenizer.pad_token_id
        made.generation_config.eos_token_id = tokenizer.eos_token_id
    return made


def _tokenizer() -> Any:
    from posttrain_plugins.tiny_world import tokenizer

    return tokenizer()


def data(columns: Sequence[str]) -> Any:
    """Return eight rows with these columns, conversational if TRL's format is; None if a column is unknown here."""
    import datasets

    rng = random.Random(0)
    # both labels in turn: KTO learns from the two against each other
    # both kinds, for a stage that learns what tells them apart
    rows = [{**_row(make_expression(rng, 2, 2)), "label": i % 2 == 0, "reward": float(i % 2)} for i in range(ROWS)]
    if {"completions", "labels"} <= set(columns):  # stepwise supervision is plain text
        rows = [{**row, "prompt": row["text"], "completions": ["3|7=4;", "4>2=4"]} for row in rows]
    if "chosen" in columns and "prompt" not in columns:  # the prompt stands in both
        rows = [{**row, **{name: [*row["prompt"], *row[name]] for name in ("chosen", "rejected")}} for row in rows]
    if not set(columns) <= set(rows[0]):
        return None
    made = datasets.Dataset.from_list([{name: row[name] for name in columns} for row in rows])
    return made


def _row(expression: str) -> dict[str, Any]:
    answer = evaluate(expression)
    prompt = [{"role": "user", "content": expression}]
    # wrong for every answer, and a digit as well: only its truth tells it from the right one
    right, wrong = ([{"role": "assistant", "content": f"<answer>{a}</answer>"}] for a in (answer, (answer + 3) % 10))
    return {
        "prompt": prompt,
        "solution": str(answer),
        "completion": right,
        "chosen": right,
        "rejected": wrong,
        "messages": [*prompt, *right],
        "text": f"<eos>{expression}\n{answer}<eos>",
        # two kinds of rows, for a stage that trains an adapter on each
        "task": "largest" if answer > 4 else "smallest",
        "labels": [True, False],
        "completions": [right[0]["content"], wrong[0]["content"]],
        "scores": [1.0, 0.0],
        "rewards": [1.0],
    }
