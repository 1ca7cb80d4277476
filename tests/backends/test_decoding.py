"""The decoding loop: draws that depend on their seed alone, batches, stop strings, noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import CHATS, CONFIG, EXPRESSIONS, generate, params
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain_plugins.backends.protocol import counting
from posttrain_plugins.backends.transformers import decode as decoding
from posttrain_plugins.backends.transformers.backend import TransformersBackend, render
from posttrain_plugins.backends.transformers.decode import draw_tokens, uniforms
from posttrain_plugins.types import Generate


def test_greedy_is_what_generate_gives(backend: TransformersBackend, model: Any, tokenizer: Any) -> None:
    batch = [Generate(prompt, params=params(temperature=0.0, logprobs=True)) for prompt in CHATS]
    for request, [completion] in zip(batch, generate(backend, batch, [[0]] * 4), strict=True):
        ids = torch.tensor([render(tokenizer, request.prompt)])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
        assert completion.token_ids == theirs[0, ids.shape[1] :].tolist()


def test_what_else_is_in_the_batch_does_not_change_a_draw(backend: TransformersBackend) -> None:
    seeds = [[10 * i + j for j in range(4)] for i in range(4)]
    batch = [Generate(prompt, n=4, params=params(logprobs=True)) for prompt in CHATS]
    together = generate(backend, batch, seeds)
    for request, of_request, completions in zip(batch, seeds, together, strict=True):
        [[alone]] = generate(backend, [request], [of_request[2:3]])
        assert alone.token_ids == completions[2].token_ids
        assert alone.logprobs == pytest.approx(completions[2].logprobs, abs=1e-4)
    assert len({completion.text for row in together for completion in row}) > 8


def test_packs_do_not_change_a_draw(backend: TransformersBackend, model: Any, tokenizer: Any) -> None:
    batch = [Generate(prompt, n=4, params=params()) for prompt in CHATS]
    seeds = [[10 * i + j for j in range(4)] for i in range(4)]
    narrow = TransformersBackend(model, tokenizer, max_batch_tokens=150)
    assert generate(narrow, batch, seeds) == generate(backend, batch, seeds)


def test_rows_of_one_batch_may_differ_in_their_parameters(backend: TransformersBackend) -> None:
    mixed = [params(temperature=0.0), params(), params(top_p=0.3), params(max_tokens=3), params(temperature=2.0)]
    mixed += [params(top_k=2), params(top_k=10**6)]
    batch = [Generate(CHATS[0], params=one) for one in mixed]
    together = generate(backend, batch, [[7]] * 7)
    assert together == [generate(backend, [request], [[7]])[0] for request in batch]
    assert together[3][0].usage.completion_tokens <= 3
    assert together[6] == together[1], "all tokens are no choice"


def test_top_k_keeps_the_likeliest_and_their_shares() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]])).repeat(1001, 1)
    uniform = torch.linspace(0, 1 - 1e-6, 1001)[:, None]
    ones = torch.ones(1001, 1)
    for top_k, top_p, expected in (
        (0, 1.0, [0.1, 0.4, 0.2, 0.3]), (1, 1.0, [0, 1, 0, 0]),
        (2, 1.0, [0, 4 / 7, 0, 3 / 7]), (3, 0.5, [0, 4 / 7, 0, 3 / 7]),
    ):  # fmt: skip
        count = torch.full((1001, 1), top_k)
        drawn = draw_tokens(logits, ones, ones * top_p, uniform, count)
        assert torch.bincount(drawn, minlength=4).numpy() / 1001 == pytest.approx(expected, abs=2e-3)


def test_sampling_follows_the_model(backend: TransformersBackend, model: Any, tokenizer: Any) -> None:
    [row] = generate(backend, [Generate(CHATS[0], n=4000, params=params(max_tokens=1, logprobs=True))], [range(4000)])
    with torch.inference_mode():
        logits = model(torch.tensor([render(tokenizer, CHATS[0])])).logits[0, -1]
    expected = torch.softmax(logits, -1).numpy()
    drawn = np.bincount([completion.token_ids[0] for completion in row if completion.token_ids], minlength=64) / 4000
    assert np.abs(drawn - expected).max() < 5 * math.sqrt(0.25 / 4000)
    first = row[0]
    assert first.token_ids
    assert first.logprobs == pytest.approx([math.log(expected[first.token_ids[0]])], abs=1e-4)


def test_tokens_are_told_as_they_are_drawn(model: Any, tokenizer: Any) -> None:
    """Those of rows that have ended, and of rows that wait for something else, are not."""
    told: list[int] = []
    backend = TransformersBackend(model, tokenizer, max_batch_tokens=600)
    batch = [Generate(prompt, n=8, params=params()) for prompt in CHATS]
    seeds = [[10 * i + j for j in range(8)] for i in range(4)]
    with counting(backend, told.append):
        drawn = generate(backend, batch, seeds)
    assert sum(told) == sum(completion.usage.completion_tokens for row in drawn for completion in row)
    assert len(told) > 16, "step by step, in each of several packs"
    assert backend.on_tokens is None


def test_finish_reasons_and_counts(backend: TransformersBackend, tokenizer: Any) -> None:
    batch = [Generate(CHATS[0], n=64, params=params(logprobs=True))]
    [row] = generate(backend, batch, [range(64)])
    assert {completion.finish_reason for completion in row} == {"stop", "length"}
    for completion in row:
        assert completion.token_ids is not None
        assert completion.logprobs is not None
        assert completion.usage.completion_tokens == len(completion.token_ids) == len(completion.logprobs)
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == 1)
        assert completion.stop_reason is None
        assert "<eos>" not in completion.text


def test_a_prompt_that_was_read_once_is_counted_once(backend: TransformersBackend, tokenizer: Any) -> None:
    batch = [Generate(prompt, n=3, params=params(max_tokens=2)) for prompt in CHATS]
    found = generate(backend, batch, [range(3)] * 4)
    for request, completions in zip(batch, found, strict=True):
        read = len(render(tokenizer, request.prompt))
        assert [completion.usage.prompt_tokens for completion in completions] == [read, 0, 0]


def test_stop_strings_cut_the_text(backend: TransformersBackend) -> None:
    [free] = generate(backend, [Generate(CHATS[0], n=16, params=params())], [range(16)])
    [ended] = generate(backend, [Generate(CHATS[0], n=16, params=params(stop=("a", "4")))], [range(16)])
    for whole, short in zip(free, ended, strict=True):
        ends = [at for at in (whole.text.find("a"), whole.text.find("4")) if at >= 0]
        assert short.text == whole.text[: min(ends, default=None)]
        assert short.stop_reason == (whole.text[min(ends)] if ends else None)
        assert not ends or short.finish_reason == "stop"
        assert short.usage.completion_tokens <= whole.usage.completion_tokens
    assert {short.stop_reason for short in ended} == {"a", "4", None}
    assert sum(c.usage.completion_tokens for c in ended) < sum(c.usage.completion_tokens for c in free)


def test_a_prompt_without_room_is_a_failed_sample(backend: TransformersBackend) -> None:
    batch = [Generate("1" * 130, params=params()), Generate("1" * 125, params=params(temperature=0.0))]
    [[failed], [short]] = generate(backend, batch, [[0], [0]])
    assert failed.finish_reason == "error"
    assert "no room" in str(failed.error)
    assert short.usage.completion_tokens <= 3


def test_the_prompt_is_read_once_for_all_its_completions(backend: TransformersBackend, model: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    handle = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    stops = tuple("0123456789")
    generate(backend, [Generate(prompt, n=8, params=params(stop=stops)) for prompt in CHATS], [range(8)] * 4)
    handle.remove()
    assert shapes[0][0] == 4 < shapes[1][0] <= 32
    assert shapes[-1][0] < shapes[1][0]  # finished rows have left


def test_stopping_early_leaves_no_inference_mode_behind(backend: TransformersBackend) -> None:
    stream: Iterator[Any] = backend.generate([Generate(CHATS[0], n=8, params=params())], [range(8)])
    next(stream)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("change", [("PREFILL_TOKENS", 12), ("DROP_SHARE", 1e-9), ("DROP_SHARE", 1.0)])
def test_how_the_batch_is_run_changes_no_draw(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch, change: tuple[str, float]
) -> None:
    batch = [Generate(prompt, n=6, params=params(logprobs=True)) for prompt in [*CHATS, *EXPRESSIONS]]
    seeds = [range(6 * i, 6 * i + 6) for i in range(8)]
    before = generate(backend, batch, seeds)
    monkeypatch.setattr(decoding, *change)
    after = generate(backend, batch, seeds)
    for was, now in zip(before, after, strict=True):
        assert [c.token_ids for c in was] == [c.token_ids for c in now]
        assert [c.logprobs for c in was] == [pytest.approx(c.logprobs, abs=1e-4) for c in now]


def test_layers_with_a_window_keep_their_own_cache(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 8)
    torch.manual_seed(0)
    config = {name: value for name, value in CONFIG.items() if name != "head_dim"}
    narrow = AutoModelForCausalLM.from_config(AutoConfig.for_model("mistral", **config, sliding_window=6)).eval()
    windowed = TransformersBackend(narrow, tokenizer)
    batch = [Generate(prompt, params=params(temperature=0.0, logprobs=True)) for prompt in CHATS]
    for request, [completion] in zip(batch, generate(windowed, batch, [[0]] * 4), strict=True):
        ids = torch.tensor([render(tokenizer, request.prompt)])
        theirs = narrow.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
        assert completion.token_ids == theirs[0, ids.shape[1] :].tolist()


def test_a_row_that_is_done_is_read_at_no_position_that_the_model_lacks(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "DROP_SHARE", 1.0)  # rows that are done stay as long as another one is not
    torch.manual_seed(0)
    options = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 24, "eos_token_id": 1}
    learned = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **options)).eval()
    backend = TransformersBackend(learned, tokenizer)
    greedy = params(temperature=0.0, max_tokens=20)
    batch = [Generate("1" * 22, params=greedy), Generate("12", params=greedy)]
    together = generate(backend, batch, [[0], [0]])
    assert [row[0].usage.completion_tokens for row in together] == [2, 20]
    assert together == [generate(backend, [request], [[0]])[0] for request in batch]


def test_a_batch_is_as_large_as_memory_allows(backend: TransformersBackend) -> None:
    from posttrain_plugins.backends.transformers import backend as module

    a_token, a_row = 2 * 2 * 2 * 8 * 4, 16 * 64  # keys and values, layers, heads, size, bytes; logits
    assert module._batch_tokens(backend.model, 1000 * a_token) == 1000 * module.CACHE_SHARE
    assert module._batch_tokens(backend.model, 2**50) == module.CPU_BATCH_TOKENS
    assert module._batch_rows(backend.model, 1000 * a_row) == 1000 * module.LOGITS_SHARE
    rows = [decoding.Row((0, i), (1,), params(), 0, 3) for i in range(10)]
    assert [len(pack) for pack in module._packs(rows, 1000, 4)] == [4, 4, 2]
    assert [len(pack) for pack in module._packs(rows, 20, 100)] == [5, 5]


def test_noise_is_a_function_of_seed_and_step_alone() -> None:
    noise = uniforms([3, 2**62, 5], 100)
    assert noise.shape == (3, 100)
    assert noise.min() >= 0
    assert noise.max() < 1
    assert (uniforms([2**62], 10)[0] == noise[1, :10]).all()
    many = uniforms(range(2000), 50)
    assert abs(many.mean() - 0.5) < 0.005
    assert abs(many.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(many[:-1].ravel(), many[1:].ravel())[0, 1]) < 0.02


def test_draw_tokens_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).log().expand(5, 4)
    uniform = torch.tensor([[0.0], [0.49], [0.51], [0.81], [1 - 2**-24]])
    ones = torch.ones(5, 1)
    assert draw_tokens(logits, ones, ones, uniform).tolist() == [0, 0, 1, 2, 2]
    assert draw_tokens(logits, 0 * ones, ones, uniform).tolist() == [0] * 5
    assert draw_tokens(logits, ones, 0.6 * ones, uniform).tolist() == [0, 0, 0, 1, 1]  # .5 + .3 hold .6
    assert draw_tokens(logits, ones, 0.0 * ones, uniform).tolist() == [0] * 5
