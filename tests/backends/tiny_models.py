"""A tiny random model's configuration, prompts, tokenizers and templates; how a backend is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain_plugins.backends.transformers.backend import TransformersBackend
from posttrain_plugins.types import Completion, Generate, SamplingParams

EXPRESSIONS = ["3|7>2", "1<2", "9|9>3<2|1", "4>4|8"]


CHATS = [[{"role": "user", "content": expression}] for expression in EXPRESSIONS]


CONFIG: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def generate(
    backend: TransformersBackend, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
) -> list[list[Completion]]:
    found = {(i, j): completion for i, j, completion in backend.generate(batch, seeds)}
    return [[found[i, j] for j in range(len(of_request))] for i, of_request in enumerate(seeds)]


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 16, **changes})


def save_head(folder: Path, kind: str, size: int = 32) -> dict[str, torch.Tensor]:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    head = {"weight": torch.linspace(-1, 1, size)[None], "bias": torch.tensor([0.25])}
    save_file(head, folder / "value_head.safetensors")
    (folder / "critic.json").write_text(json.dumps({"kind": kind}), encoding="utf-8")
    return head


THINKING_TEMPLATE = """
{%- macro turn(role, content) -%}{{ '<|im_start|>' + role + '\n' + content + '<|im_end|>\n' }}{%- endmacro -%}
{%- macro called(call) -%}{{ '\n<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}{%- endmacro -%}
{%- if tools -%}{{ turn('system', tools | map('tojson') | join('\n')) }}{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'assistant' -%}
        {%- set thought = '<think>\n\n</think>\n\n' if loop.last else '' -%}
        {%- set calls = message.tool_calls or [] -%}
        {%- set said = message.content.split('</think>')[-1].lstrip('\n') -%}
        {%- set written = namespace(text=thought + said) -%}
        {%- for call in calls -%}{%- set written.text = written.text + called(call) -%}{%- endfor -%}
        {{- turn('assistant', written.text) -}}
    {%- elif message.role == 'tool' -%}
        {{- turn('user', '<tool_response>\n' + message.content + '\n</tool_response>') -}}
    {%- elif message.role == 'user' -%}{{- turn('user', message.content) -}}
    {%- else -%}{{- raise_exception('no role ' + message.role) -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
"""As thinking models have it: earlier thoughts are taken out, and the last turn is given an empty one."""


OPENED_TEMPLATE = THINKING_TEMPLATE.replace("'<|im_start|>assistant\n' -", "'<|im_start|>assistant\n<think>\n' -")


def byte_tokenizer(template: str = THINKING_TEMPLATE) -> Any:
    """Byte-level BPE with a few merges, two of which join line breaks; the tags are tokens, but not special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ġ", "a"), ("a", "b"), ("L", "e"), ("Le", "t")]
    words = [*alphabet, *(left + right for left, right in merges)]
    core = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    core.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>")])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", chat_template=template)
