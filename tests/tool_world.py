"""A model of a few thousand parameters that learns to call a calculator, and the data that it learns it from."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from posttrain_plugins.engine.tools import schema_of
from posttrain_plugins.models.training_templates import CHATML, CHATML_TOOLS
from posttrain_plugins.tools.calculator import calculator

__all__ = ["conversation", "make_world", "problems", "rendered"]

SCHEMAS = [schema_of("calculator", calculator)]


def call(expression: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "calculator", "arguments": {"expression": expression}}}


def problems(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows of `prompt` and `solution`, `7 * 8 = ?`."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        text = rng.choice(("7 * 8", "9 * 9", "6 + 7", "8 - 3"))  # few: it is to learn the form, and no arithmetic
        rows.append({"prompt": [{"role": "user", "content": f"{text} = ?"}], "solution": calculator(text)})
    return rows


def conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the whole of a conversation in which a problem is solved with the tool."""
    text = row["prompt"][0]["content"].removesuffix(" = ?")
    return [
        *row["prompt"],
        {"role": "assistant", "content": "", "tool_calls": [call(text)]},
        {"role": "tool", "name": "calculator", "content": row["solution"]},
        {"role": "assistant", "content": f"<answer>{row['solution']}</answer>"},
    ]


def rendered(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tools=SCHEMAS, tokenize=False, **options))


def make_world(folder: Path, template: str = CHATML) -> str:
    """Write `traces.jsonl`, `problems.jsonl` and a random model with a tokenizer of its own; return its folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain = PreTrainedTokenizerFast(tokenizer_object=bpe)
    plain.chat_template = CHATML_TOOLS
    texts = [rendered(plain, conversation(row)) for row in problems(40)]
    training = trainers.BpeTrainer(
        vocab_size=520, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, training)
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **ends)
    tokenizer.chat_template = template
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(str(folder / "base"))
    tokenizer.save_pretrained(str(folder / "base"))
    rows = problems(64, seed=1)
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    traces = [{"messages": conversation(row)} for row in rows]
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in traces))
    return str(folder / "base")
