"""The transformers backend and the reward model, on a tiny random model; and the figures."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain_plugins.backends.transformers import decode as decoding
from posttrain_plugins.backends.transformers.backend import TransformersBackend, opened, render
from posttrain_plugins.backends.transformers.chat import parse_tool_calls
from posttrain_plugins.backends.transformers.decode import draw_tokens, uniforms
from posttrain_plugins.backends.transformers.stops import StopStrings, cut
from posttrain_plugins.errors import InputError
from posttrain_plugins.evaluation import figures
from posttrain_plugins.models.folder import copy_below
from posttrain_plugins.rewards.reward_model import RewardModel
from posttrain_plugins.tiny_world import tokenizer as make_tokenizer
from posttrain_plugins.types import Completion, Generate, ModelArtifact, SamplingParams

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


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small gains nothing from more threads, and loses much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **CONFIG)).eval()


@pytest.fixture(scope="module")
def backend(model: Any, tokenizer: Any) -> TransformersBackend:
    return TransformersBackend(model, tokenizer)


def generate(
    backend: TransformersBackend, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
) -> list[list[Completion]]:
    found = {(i, j): completion for i, j, completion in backend.generate(batch, seeds)}
    return [[found[i, j] for j in range(len(of_request))] for i, of_request in enumerate(seeds)]


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 16, **changes})


# --- Decoding --------------------------------------------------------------------------------------------------------


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
    batch = [Generate(CHATS[0], params=one) for one in mixed]
    together = generate(backend, batch, [[7]] * 5)
    assert together == [generate(backend, [request], [[7]])[0] for request in batch]
    assert together[3][0].usage.completion_tokens <= 3


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


# --- Confidences, values, stop strings -------------------------------------------------------------------------------


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


def save_head(folder: Path, kind: str, size: int = 32) -> dict[str, torch.Tensor]:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    head = {"weight": torch.linspace(-1, 1, size)[None], "bias": torch.tensor([0.25])}
    save_file(head, folder / "value_head.safetensors")
    (folder / "critic.json").write_text(json.dumps({"kind": kind}), encoding="utf-8")
    return head


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


# --- Noise and drawing -----------------------------------------------------------------------------------------------


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


# --- Rendering -------------------------------------------------------------------------------------------------------


def test_render_uses_the_template(tokenizer: Any) -> None:
    assert tokenizer.decode(render(tokenizer, CHATS[1])) == "<|user|>1<2<|assistant|>"
    begun = [*CHATS[1], {"role": "assistant", "content": "<think>1"}]
    assert tokenizer.decode(render(tokenizer, begun)) == "<|user|>1<2<|assistant|><think>1"
    assert tokenizer.decode(render(tokenizer, "1<2\n")) == "1<2\n"


def test_render_without_a_template_makes_a_document() -> None:
    base = make_tokenizer()
    base.chat_template = None
    system = [{"role": "system", "content": "be brief"}, *CHATS[1]]
    assert base.decode(render(base, CHATS[1])) == "<eos>1<2\n"
    assert base.decode(render(base, system)) == "<eos>be brief\n\n1<2\n"
    assert base.decode(render(base, [*CHATS[1], {"role": "assistant", "content": "1<"}])) == "<eos>1<2\n1<"
    assert base.decode(render(base, "")) == "<eos>"


# --- Chat: prefills and tools ----------------------------------------------------------------------------------------

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
TOOLS = ({"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},)


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


PREFILLS = [
    "",
    "12",
    "Le",
    "<thi",
    "<think>",
    "<think>\nLet",
    "<think>\n\n",
    "\n",
    "\n\na",
    "x \n ",
    "<think>a</think>\nb",
]


@pytest.mark.parametrize("prefill", PREFILLS)
def test_a_prefill_is_gone_on_from_as_it_is(prefill: str) -> None:
    tokenizer = byte_tokenizer()
    begun = [*CHATS[0], {"role": "assistant", "content": prefill}]
    before, whole = render(tokenizer, CHATS[0]), render(tokenizer, begun)
    assert tokenizer.decode(before) == "<|im_start|>user\n3|7>2<|im_end|>\n<|im_start|>assistant\n"
    assert whole[: len(before)] == before, "what stands before it keeps its tokens"
    assert tokenizer.decode(whole[len(before) :]) == prefill
    assert whole[len(before) :] == tokenizer(prefill, add_special_tokens=False)["input_ids"]
    blocks = [*CHATS[0], {"role": "assistant", "content": [{"type": "text", "text": prefill}]}]
    assert render(tokenizer, blocks) == whole


def test_a_thought_that_the_template_opens_is_not_opened_twice() -> None:
    tokenizer = byte_tokenizer(OPENED_TEMPLATE)
    for prefill in ("<think>\nLet", "Let"):
        ids = render(tokenizer, [*CHATS[0], {"role": "assistant", "content": prefill}])
        assert tokenizer.decode(ids).endswith("assistant\n<think>\nLet")
    assert tokenizer.decode(render(tokenizer, CHATS[0])).endswith("assistant\n<think>\n")


def test_earlier_thoughts_are_the_templates_business() -> None:
    tokenizer = byte_tokenizer()
    earlier = [*CHATS[0], {"role": "assistant", "content": "<think>a</think>4"}, *CHATS[1]]
    begun = [*earlier, {"role": "assistant", "content": "<think>b"}]
    text = tokenizer.decode(render(tokenizer, begun))
    assert "<think>a" not in text
    assert "assistant\n4<|im_end|>" in text
    assert text.endswith("assistant\n<think>b")


@pytest.mark.parametrize("has_template", [True, False])
def test_greedy_goes_on_from_any_token_of_its_own(model: Any, has_template: bool) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template if has_template else None
    backend = TransformersBackend(model, tokenizer)
    greedy = params(temperature=0.0, logprobs=True)
    whole = generate(backend, [Generate(prompt, params=greedy) for prompt in CHATS], [[0]] * 4)
    batch, expected = [], []
    for prompt, [completion] in zip(CHATS, whole, strict=True):
        ids = completion.token_ids or []
        for k in range(len(ids)):
            begun = tokenizer.decode(ids[:k])
            if tokenizer(begun, add_special_tokens=False)["input_ids"] == ids[:k]:
                messages = [*prompt, {"role": "assistant", "content": begun}]
                batch.append(Generate(messages, params=replace(greedy, max_tokens=16 - k)))
                expected.append(ids[k:])
    assert len(batch) > 30
    found = generate(backend, batch, [[0]] * len(batch))
    assert [completion.token_ids for [completion] in found] == expected


def test_a_prompt_that_the_template_refuses_is_a_failed_sample(model: Any) -> None:
    backend = TransformersBackend(model, byte_tokenizer())
    odd = [{"role": "wizard", "content": "1<2"}]
    calls = [*CHATS[0], {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}}]}]
    batch = [Generate(odd, n=2, params=params()), Generate(calls, params=params()), Generate([], params=params())]
    refused, unanswered, empty = generate(backend, batch, [[0, 1], [0], [0]])
    assert [completion.finish_reason for completion in (*refused, *unanswered, *empty)] == ["error"] * 4
    assert "the chat template refuses the messages: no role wizard" in str(refused[1].error)
    assert "role tool" in str(unanswered[0].error)
    assert "no messages" in str(empty[0].error)


def test_tools_and_their_answers_go_through_the_template() -> None:
    tokenizer = byte_tokenizer()
    asked: list[dict[str, Any]] = [
        {"name": "add", "arguments": {"a": 1}},
        {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}},
    ]
    messages = [
        *CHATS[0],
        {"role": "assistant", "content": None, "tool_calls": asked},
        {"role": "tool", "name": "add", "content": "3"},
    ]
    text = tokenizer.decode(render(tokenizer, messages, TOOLS))
    assert text.startswith('<|im_start|>system\n{"type": "function", "function": {"name": "add"')
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>' in text
    assert text.endswith("<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    bare = tokenizer.decode(render(tokenizer, messages, [TOOLS[0]["function"]]))
    assert bare == text


def test_tools_that_nobody_would_see_are_refused(backend: TransformersBackend, tokenizer: Any) -> None:
    assert not backend.capabilities.tools
    for prompt in (CHATS[0], "1<2"):
        with pytest.raises(InputError, match="native tools need messages and a template"):
            render(tokenizer, prompt, TOOLS)
        [[failed]] = generate(backend, [Generate(prompt, params=params(), tools=TOOLS)], [[0]])
        assert failed.finish_reason == "error"


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>'
ADD = {"name": "add", "arguments": {"a": 1, "b": [2]}}


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        ("no call", "no call", []),
        (CALL, "", [ADD]),
        (f"<think>x</think>I add.\n{CALL}\n{CALL}", "<think>x</think>I add.", [ADD, ADD]),
        ('<tool_call>{"name": "now"}</tool_call> later', "later", [{"name": "now", "arguments": {}}]),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            "",
            [{"name": "f", "arguments": {"a": 1}}],
        ),
        ("<tool_call>{'name': 'add'}</tool_call>", "<tool_call>{'name': 'add'}</tool_call>", []),
        ('<tool_call>{"name": "add", "argum', '<tool_call>{"name": "add", "argum', []),
        ('<tool_call>["add"]</tool_call>', '<tool_call>["add"]</tool_call>', []),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        (f"<tool_call>{{</tool_call>{CALL}", "<tool_call>{</tool_call>", [ADD]),
    ],
)
def test_tool_calls_are_read_from_the_text(text: str, rest: str, calls: list[dict[str, Any]]) -> None:
    assert parse_tool_calls(byte_tokenizer(), [], [], text, TOOLS) == (rest, calls)


def test_a_tokenizer_may_say_itself_how_calls_are_written() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "tool_calls": {
                "open": "[[",
                "close": "]]",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"close": "<|im_end|>", "content": "text"},
        },
    }
    prompt = render(tokenizer, CHATS[0], TOOLS)
    written = tokenizer('I add.[[{"name": "add", "arguments": {"a": 1}}]]<|im_end|>')["input_ids"]
    text = tokenizer.decode(written, skip_special_tokens=True)
    found = parse_tool_calls(tokenizer, prompt, written, text, TOOLS)
    assert found == ("I add.", [{"name": "add", "arguments": {"a": 1}}])
    broken = tokenizer("I add.[[{]]<|im_end|>")["input_ids"]
    assert parse_tool_calls(tokenizer, prompt, broken, "I add.[[{]]", TOOLS) == ("I add.[[{]]", [])


class Writes(torch.nn.Module):
    """A model that writes one text, whatever the prompt."""

    def __init__(self, like: Any, prompt: list[int], ids: list[int]) -> None:
        super().__init__()
        self.config, self.generation_config = copy.deepcopy(like.config), copy.deepcopy(like.generation_config)
        self.config.max_position_embeddings, self.generation_config.eos_token_id = 1024, None
        self.device, self.dtype = like.device, like.dtype
        self.begin, self.ids = len(prompt), torch.tensor(ids)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **options: Any) -> Any:
        from transformers import DynamicCache
        from transformers.modeling_outputs import CausalLMOutputWithPast

        at = (position_ids[:, -1:] + 1 - self.begin).clamp(max=len(self.ids) - 1)
        logits = torch.nn.functional.one_hot(self.ids[at], 512).float() * 100
        return CausalLMOutputWithPast(logits=logits, past_key_values=options["past_key_values"] or DynamicCache())


def test_a_completion_that_calls_tools_says_so(model: Any) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(f"I add.\n{CALL}<|im_end|>", add_special_tokens=False)["input_ids"]
    writer = Writes(model, render(tokenizer, CHATS[0], TOOLS), ids)
    backend = TransformersBackend(writer, tokenizer, identity="writer")
    assert backend.capabilities.tools
    room = params(max_tokens=len(ids))
    [[called]] = generate(backend, [Generate(CHATS[0], params=room, tools=TOOLS)], [[0]])
    assert (called.finish_reason, called.text, called.tool_calls) == ("tool_calls", "I add.", [ADD])
    writer.begin = len(render(tokenizer, CHATS[0]))
    [[untold]] = generate(backend, [Generate(CHATS[0], params=room)], [[0]])
    assert (untold.finish_reason, untold.text, untold.tool_calls) == ("stop", f"I add.\n{CALL}", None)


# --- Loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_folder_draws_what_the_model_draws(folder: Path, backend: TransformersBackend) -> None:
    loaded = TransformersBackend(str(folder), device="cpu")
    request = [Generate(CHATS[0], n=4, params=params())]
    assert generate(loaded, request, [range(4)]) == generate(backend, request, [range(4)])
    assert loaded.identity == str(folder)
    loaded.close()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT 0.21 on transformers 5.23
def test_an_adapter_folder_is_loaded_over_its_base(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(folder)
    adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    loaded = TransformersBackend(str(tmp_path), device="cpu")  # the tokenizer is the base's
    request = [Generate(CHATS[0], n=4, params=params())]
    expected = generate(TransformersBackend(adapted, loaded.tokenizer), request, [range(4)])
    assert generate(loaded, request, [range(4)]) == expected


@pytest.mark.filterwarnings("ignore")
def test_four_bits(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    loading = {"load_in_4bit": True, "dtype": "float32", "model_name_or_path": "x"}
    loaded = TransformersBackend(str(folder), loading=loading, device="cpu")
    assert loaded.model.is_loaded_in_4bit
    [[completion]] = generate(loaded, [Generate(CHATS[0], params=params())], [[0]])
    assert completion.finish_reason in ("stop", "length")


@pytest.fixture
def adapters(folder: Path, tmp_path: Path) -> list[Path]:
    """Two LoRA adapters on the same base, one on the attention, the other on all layers."""
    from peft import LoraConfig, get_peft_model

    made = []
    for i, target in enumerate((["q_proj", "v_proj"], "all-linear")):
        torch.manual_seed(i)
        base = AutoModelForCausalLM.from_pretrained(folder)
        adapted = get_peft_model(
            base, LoraConfig(target_modules=target, init_lora_weights=False, task_type="CAUSAL_LM")
        )
        adapted.save_pretrained(tmp_path / str(i))
        made.append(tmp_path / str(i))
    return made


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT 0.21 on transformers 5.23
def test_a_stack_of_adapters_is_all_in_force(folder: Path, adapters: list[Path]) -> None:
    from peft import PeftModel

    first, second = map(str, adapters)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), first).merge_and_unload()
    expected = PeftModel.from_pretrained(merged, second)
    request = [Generate(prompt, n=4, params=params(logprobs=True)) for prompt in CHATS]
    seeds = [range(4)] * 4
    alone = generate(TransformersBackend(second, device="cpu"), request, seeds)
    copy_below([Path(first)], Path(second))
    with opened(ModelArtifact("both", second)) as backend:
        assert backend.identity == "both"
        assert not any(parameter.requires_grad for parameter in backend.model.parameters())
        both = generate(backend, request, seeds)
        reference = generate(TransformersBackend(expected, backend.tokenizer), request, seeds)
    for mine, theirs in zip(both, reference, strict=True):
        assert [c.token_ids for c in mine] == [c.token_ids for c in theirs]
        assert [c.logprobs for c in mine] == [pytest.approx(c.logprobs, abs=1e-4) for c in theirs]
    assert both != alone


@pytest.mark.filterwarnings("ignore")
def test_adapters_on_four_bits(adapters: list[Path]) -> None:
    pytest.importorskip("bitsandbytes")
    first, second = map(str, adapters)
    loading = {"load_in_4bit": True, "dtype": "float32", "model_name_or_path": "x"}
    request = [Generate(CHATS[0], n=4, params=params(logprobs=True))]
    copy_below([Path(first)], Path(second))
    found = []
    for path in (first, second):
        with opened(ModelArtifact("quantized", path, loading=loading)) as backend:
            assert backend.model.get_base_model().is_loaded_in_4bit
            kinds = {type(module).__name__ for module in backend.model.modules()}
            assert "Linear4bit" in kinds
            found.append(generate(backend, request, [range(4)]))
    assert found[0] != found[1]
    assert all(completion.finish_reason in ("stop", "length") for rows in found for completion in rows[0])


def test_a_critic_of_the_policys_body_is_picked_up(folder: Path, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    save_head(tmp_path / "critic", "shared")
    with opened(ModelArtifact("ppo", str(tmp_path))) as backend:
        assert backend.capabilities.values
        [[completion]] = generate(backend, [Generate(CHATS[0], params=params(values=True))], [[0]])
        assert completion.value is not None
    assert TransformersBackend(str(tmp_path), device="cpu").capabilities.values
    save_head(tmp_path / "critic", "separate")
    assert not TransformersBackend(str(tmp_path), device="cpu").capabilities.values
    with opened(ModelArtifact("sft", str(folder))) as backend:
        assert not backend.capabilities.values


# --- transformers' continuous batching -------------------------------------------------------------------------------


def test_continuous_batching_draws_what_it_can(model: Any, tokenizer: Any) -> None:
    backend = TransformersBackend(model, tokenizer, continuous_batching=True)
    assert not backend.capabilities.seed
    kinds = [params(max_tokens=1), params(temperature=0.5, max_tokens=5), params(temperature=0.0, logprobs=True)]
    batch = [Generate(CHATS[i], n=n, params=kind) for i, (n, kind) in enumerate(zip((400, 3, 2), kinds, strict=True))]
    single, several, greedy = generate(backend, batch, [range(400), range(3), range(2)])
    backend.close()
    with torch.inference_mode():
        logits = model(torch.tensor([render(tokenizer, CHATS[0])])).logits[0, -1]
    expected = torch.softmax(logits, -1)
    for text in ("a", "4", "<think>"):
        share = sum(completion.text == text for completion in single) / 400
        assert abs(share - float(expected[tokenizer.convert_tokens_to_ids(text)])) < 5 * math.sqrt(0.25 / 400)
    ended = sum(completion.finish_reason == "stop" for completion in single) / 400
    assert abs(ended - float(expected[1])) < 5 * math.sqrt(0.25 / 400)
    assert [completion.usage.prompt_tokens for completion in several] == [len(render(tokenizer, CHATS[1])), 0, 0]
    assert all(completion.usage.completion_tokens <= 5 for completion in several)
    plain = TransformersBackend(model, tokenizer)
    assert greedy == generate(plain, batch[2:], [range(2)])[0]


def test_continuous_batching_may_be_left_early(model: Any, tokenizer: Any) -> None:
    backend = TransformersBackend(model, tokenizer, continuous_batching=True)
    batch = [Generate(CHATS[0], n=8, params=params())]
    stream = backend.generate(batch, [range(8)])
    next(stream)
    stream.close()
    [again] = generate(backend, batch, [range(8)])
    assert len(again) == 8
    backend.close()


def test_importing_the_package_imports_no_torch() -> None:
    modules = "engine, evaluation.measure, backends.transformers.backend, stages.sample, stages.evaluate"
    names = ", ".join(f"posttrain_plugins.{name.strip()}" for name in modules.split(","))
    code = f"import sys, posttrain_plugins.rewards.reward_model, {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- The reward model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("reward")
    config = AutoConfig.for_model("qwen3", **CONFIG, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_reward_model_scores_as_trl_does(reward_folder: Path, tokenizer: Any) -> None:
    reward = RewardModel(str(reward_folder), batch_size=2, device="cpu")
    completions = [[{"role": "assistant", "content": text}] for text in ("4", "12345", "1", "777")]
    scores = reward(prompts=CHATS, completions=completions, solution=["1"] * 4)
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    texts = [tokenizer.apply_chat_template(p + c, tokenize=False) for p, c in zip(CHATS, completions, strict=True)]
    inputs = tokenizer(text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.inference_mode():
        expected = model(**inputs).logits[:, 0].tolist()
    assert scores == pytest.approx(expected, abs=1e-5)
    assert reward.count_tokens(CHATS, completions) == int(inputs["attention_mask"].sum())


def test_the_reward_model_takes_plain_text_and_pickles(reward_folder: Path) -> None:
    reward = RewardModel(str(reward_folder), device="cpu", max_length=3)
    scores = reward(prompts=["1<2", "1<3"], completions=["45", "6"])
    alone = [*reward(prompts=["1<2"], completions=["45"]), *reward(prompts=["1<3"], completions=["6"])]
    assert scores == pytest.approx(alone, abs=1e-5)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward
    assert copy._classifier._model is None
    assert copy(prompts=["1<2"], completions=["45"]) == alone[:1]
    assert reward.__name__ == "reward_model"


# --- Figures ---------------------------------------------------------------------------------------------------------


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    found = [figures.mean_interval((rng.random(60) < 0.7).astype(float).tolist(), draws=500) for _ in range(200)]
    assert 0.88 <= np.mean([interval.low <= 0.7 <= interval.high for interval in found]) <= 0.99


def test_pairing_narrows_a_difference() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(100)
    after = before + 0.1 + 0.01 * rng.standard_normal(100)
    gain = figures.difference_interval(after.tolist(), before.tolist())
    assert gain.low < 0.1 < gain.high
    assert gain.high - gain.low < 0.01


def test_figures_leave_out_what_nobody_could_judge() -> None:
    assert figures.mean_interval([1.0, math.nan]).mean == 1.0
    assert math.isnan(figures.mean_interval([]).mean)
    assert figures.sampled_accuracy([[1.0, None], [0.0, 1.0]]) == [1.0, 0.5]
    assert math.isnan(figures.sampled_accuracy([[None]])[0])


def test_pass_at_k_is_the_mean_over_subsets() -> None:
    from itertools import combinations

    right = [True, False, True, False, False]
    for k in range(1, 6):
        subsets = list(combinations(right, k))
        assert figures.pass_at_k(5, 2, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
