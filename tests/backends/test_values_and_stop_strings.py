"""Confidences, values of states, and stop strings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CHATS, byte_tokenizer, generate, params, save_head

from posttrain_plugins.backends.transformers.backend import TransformersBackend, render
from posttrain_plugins.backends.transformers.stops import StopStrings, cut
from posttrain_plugins.errors import InputError
from posttrain_plugins.types import Generate


def read_again(model: Any, prompt: list[int], ids: list[int]) -> Any:
    """One forward pass over a prompt and its completion."""
    with torch.inference_mode():
        return model(torch.tensor([prompt + ids]), output_hidden_states=True)


def test_confidences_are_minus_the_mean_of_the_likeliest(
    backend: TransformersBackend, model: Any, tokenizer: Any
) -> None:
    wanted = [0, 1, 5, 1000]
    batch = [Generate(CHATS[0], params=params(logprobs=True, top_logprobs=k, temperature=0.7)) for k in wanted]
    prompt = render(tokenizer, CHATS[0])
    for k, [completion] in zip(wanted, generate(backend, batch, [[i] for i in range(4)]), strict=True):
        assert completion.token_ids is not None
        if k == 0:
            assert completion.confidences is None
            continue
        logits = read_again(model, prompt, completion.token_ids).logits[0, len(prompt) - 1 : -1]
        top = torch.log_softmax(logits, -1).topk(min(k, 64)).values
        assert completion.confidences == pytest.approx((-top.mean(-1)).tolist(), abs=1e-4)


def test_values_are_those_of_the_last_state(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    head = save_head(tmp_path, "shared")
    valued = TransformersBackend(model, tokenizer, value_head=tmp_path)
    assert valued.capabilities.values
    each = [params(logprobs=True, values=True), params(logprobs=True), params(logprobs=True, values=True, stop=("a",))]
    batch = [Generate(prompt, n=16, params=one) for prompt in CHATS[:2] for one in each]
    found = generate(valued, batch, [range(16)] * 6)
    ends = set()
    for request, completions in zip(batch, found, strict=True):
        prompt = render(tokenizer, request.prompt)
        for completion in completions:
            if not request.params.values:
                assert completion.value is None
                continue
            ids = completion.token_ids or []
            ends.add((completion.finish_reason, completion.stop_reason))
            hidden = read_again(model, prompt, ids).hidden_states[-1][0]
            last = hidden[-2] if ids[-1] == 1 else hidden[-1]  # EOS is no state
            expected = float(last @ head["weight"][0] + head["bias"])
            assert completion.value == pytest.approx(expected, abs=1e-3)
    assert ends == {("stop", None), ("stop", "a"), ("length", None)}


def test_asking_for_values_changes_no_draw(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    save_head(tmp_path, "shared")
    valued = TransformersBackend(model, tokenizer, value_head=tmp_path, max_batch_tokens=300)
    batch = [Generate(prompt, n=8, params=params()) for prompt in CHATS]
    asked = [replace(request, params=params(values=True)) for request in batch]
    plain, with_values = (generate(valued, requests, [range(8)] * 4) for requests in (batch, asked))
    texts = [[[completion.text for completion in row] for row in rows] for rows in (plain, with_values)]
    assert texts[0] == texts[1]


def test_a_value_head_that_cannot_be_used_is_told(backend: TransformersBackend, model: Any, tmp_path: Path) -> None:
    assert not backend.capabilities.values
    with pytest.raises(InputError, match="no value head that reads the policy's hidden states") as told:
        generate(backend, [Generate(CHATS[0], params=params(values=True))], [[0]])
    assert "value_model" in str(told.value)
    save_head(tmp_path / "other", "adapter")
    save_head(tmp_path / "large", "shared", size=33)
    for folder, message in (("other", "kind 'adapter'.*value_model"), ("large", "shape"), ("none", "not there")):
        with pytest.raises(InputError, match=f"(?s){message}"):
            TransformersBackend(model, backend.tokenizer, value_head=tmp_path / folder)


def test_stop_strings_are_found_at_the_token_that_ends_them() -> None:
    tokenizer = byte_tokenizer()
    pieces = tokenizer("né né ab\n\na b;; a\n né</think>\n", add_special_tokens=False)["input_ids"]
    assert len(tokenizer("é", add_special_tokens=False)["input_ids"]) == 2, "its two bytes are two tokens"
    stops = StopStrings(tokenizer)
    found = set()
    for seed in range(60):
        order = np.random.default_rng(seed).permutation(pieces).tolist()
        begun = [order[: i + 1] for i in range(len(order))]
        texts = [tokenizer.decode(ids) for ids in begun]
        for wanted in (("é",), ("\n\n", ";"), ("</think>", "a b"), (" n",)):
            told = [stops.is_hit(wanted, ids[-1], lambda count, ids=ids: ids[-count:]) for ids in begun]
            known = [any(stop in text for stop in wanted) for text in texts]
            assert told.index(True) == known.index(True) if any(known) else not any(told)
            found.add((wanted, any(known)))
    assert {wanted for wanted, is_there in found if is_there} == {("é",), ("\n\n", ";"), ("</think>", "a b"), (" n",)}


def test_text_is_cut_before_the_first_stop_string() -> None:
    assert cut("a;b.c", (".", ";")) == ("a", ";")
    assert cut("abc", (";", "")) == ("abc", None)
