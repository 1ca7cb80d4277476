"""The vLLM backend: against a stand-in with vLLM's signatures, and against vLLM itself where it is installed."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import CompletionOutput, FakeLLM, FakeLoRARequest, FakeSamplingParams, RequestOutput, install

from posttrain_plugins.backends.protocol import Backend
from posttrain_plugins.backends.transformers.backend import render
from posttrain_plugins.backends.vllm import VLLMBackend
from posttrain_plugins.errors import InputError
from posttrain_plugins.types import Completion, Generate, SamplingParams

CHAT = [{"role": "user", "content": "3+4="}]
HAS_VLLM = importlib.util.find_spec("vllm") is not None


@pytest.fixture
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed here, so its signatures cannot be compared")
def test_the_stand_in_has_the_signatures_of_vllm() -> None:
    import vllm
    from vllm.lora.request import LoRARequest

    for fake, real in ((FakeSamplingParams, vllm.SamplingParams), (FakeLoRARequest, LoRARequest)):
        assert set(inspect.signature(fake).parameters) <= set(inspect.signature(real).parameters)
    assert list(inspect.signature(LoRARequest).parameters)[:3] == ["lora_name", "lora_int_id", "lora_path"]
    assert {"prompts", "sampling_params", "use_tqdm", "lora_request"} <= set(
        inspect.signature(vllm.LLM.generate).parameters
    )
    assert vllm.TokensPrompt(prompt_token_ids=[1]) == {"prompt_token_ids": [1]}


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw(backend: VLLMBackend, *requests: Generate, seed: int = 1) -> list[list[Completion]]:
    seeds = [[seed + 100 * i + j for j in range(request.n)] for i, request in enumerate(requests)]
    found = {(i, j): completion for i, j, completion in backend.generate(requests, seeds)}
    return [[found[i, j] for j in range(request.n)] for i, request in enumerate(requests)]


def draws(n: int = 4, prompt: Any = CHAT, **params: Any) -> Generate:
    return Generate(prompt, n=n, params=SamplingParams(**{"max_tokens": 12, **params}))


@pytest.mark.usefixtures("fake_vllm")
def test_a_wave_is_one_call_with_a_seed_for_each_completion(tiny_model: Path) -> None:
    backend = VLLMBackend(tiny_model, identity="tiny")
    assert isinstance(backend, Backend)
    assert backend.identity == "tiny"
    answers = draw(backend, draws(4), draws(2, "3+4=", temperature=0.5, top_p=0.9, top_k=7, max_tokens=5))
    (call,) = backend.llm.calls
    assert call["use_tqdm"] is False
    assert call["lora"] is None
    assert [params.seed for params in call["params"]] == [1, 2, 3, 4, 101, 102]
    assert [(p.temperature, p.top_p, p.max_tokens) for p in call["params"][3:5]] == [(1.0, 1.0, 12), (0.5, 0.9, 5)]
    assert [p.top_k for p in call["params"][3:5]] == [0, 7]
    ids = [render(backend.tokenizer, prompt) for prompt in (CHAT, "3+4=")]
    assert [prompt["prompt_token_ids"] for prompt in call["prompts"]] == [ids[0]] * 4 + [ids[1]] * 2
    assert len({completion.text for completion in answers[0]}) == 4
    assert [c.usage.prompt_tokens for c in answers[0]] == [len(ids[0]), 0, 0, 0]
    again = draw(backend, draws(4))
    assert [c.text for c in again[0]] == [c.text for c in answers[0]]


@pytest.mark.usefixtures("fake_vllm")
def test_a_prefill_is_gone_on_from(tiny_model: Path) -> None:
    backend = VLLMBackend(tiny_model)
    draw(backend, draws(1, [*CHAT, {"role": "assistant", "content": "ab"}]))
    (ids,) = [prompt["prompt_token_ids"] for prompt in backend.llm.calls[0]["prompts"]]
    assert ids == [*render(backend.tokenizer, CHAT), *backend.tokenizer("ab", add_special_tokens=False)["input_ids"]]


@pytest.mark.usefixtures("fake_vllm")
def test_stop_reasons_and_ends(tiny_model: Path) -> None:
    backend = VLLMBackend(tiny_model)
    found = draw(backend, draws(40, stop=("ab", "c"), max_tokens=6), draws(40, max_tokens=6))
    assert {c.stop_reason for c in found[0]} == {"ab", "c", None}
    assert {(c.finish_reason, c.stop_reason) for c in found[1]} == {("stop", None), ("length", None)}
    assert all("c" not in c.text and "ab" not in c.text for c in found[0])
    assert all(c.usage.completion_tokens == 6 for c in found[1] if c.finish_reason == "length")


@pytest.mark.usefixtures("fake_vllm")
def test_logprobs_and_confidences(tiny_model: Path) -> None:
    backend = VLLMBackend(tiny_model)
    requests = [draws(1), draws(1, logprobs=True), draws(1, top_logprobs=2), draws(1, logprobs=True, top_logprobs=2)]
    plain, own, top, both = (completion for (completion,) in draw(backend, *requests))
    assert [params.logprobs for params in backend.llm.calls[0]["params"]] == [None, 0, 2, 2]
    assert (plain.logprobs, plain.confidences, plain.token_ids) == (None, None, None)
    assert own.logprobs == [-9.0] * own.usage.completion_tokens
    assert own.token_ids is not None
    assert len(own.token_ids) == own.usage.completion_tokens
    assert (own.confidences, top.logprobs) == (None, None)
    assert (
        top.confidences == [1.5] * top.usage.completion_tokens
    )  # of -1 and -2; the drawn token's -9 is not of the two
    assert (both.logprobs, both.confidences) == ([-9.0] * len(both.logprobs or ()), [1.5] * len(both.logprobs or ()))


@pytest.mark.usefixtures("fake_vllm")
def test_a_prompt_that_leaves_no_room_is_a_failed_sample(tiny_model: Path) -> None:
    backend = VLLMBackend(tiny_model)
    long, short = draw(backend, draws(2, "a" * 100), draws(1))
    assert [c.error for c in long] == ["no room for a completion after 100 prompt tokens"] * 2
    assert short[0].error is None
    (only,) = draw(backend, draws(1, "a" * 100))
    assert only[0].finish_reason == "error"
    assert len(backend.llm.calls) == 1


@pytest.mark.usefixtures("fake_vllm")
def test_a_completion_that_vllm_aborts_is_a_failed_sample(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = VLLMBackend(tiny_model)
    aborted = RequestOutput("0", [1], [CompletionOutput(0, "", (), None, "abort", None)])
    monkeypatch.setattr(backend.llm, "generate", lambda *_, **__: [aborted])
    ((completion,),) = draw(backend, draws(1))
    assert (completion.finish_reason, completion.error) == ("error", "vLLM ended the completion: abort")


# --- what is loaded --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake_vllm")
def test_loading_and_options_reach_vllm(tiny_model: Path) -> None:
    loading = {"dtype": "bfloat16", "model_revision": "main", "load_in_4bit": True, "attn_implementation": "sdpa"}
    backend = VLLMBackend(tiny_model, loading=loading, options={"max_model_len": 32})
    expected = {"dtype": "bfloat16", "revision": "main", "quantization": "bitsandbytes", "max_model_len": 32}
    assert backend.llm.given | expected == backend.llm.given
    assert backend.max_model_len == 32
    with pytest.raises(InputError, match="8 bits"):
        VLLMBackend(tiny_model, loading={"load_in_8bit": True})


@pytest.mark.usefixtures("fake_vllm")
def test_a_loaded_llm_is_taken_as_it_is(tiny_model: Path) -> None:
    backend = VLLMBackend(FakeLLM(str(tiny_model)))
    assert backend.identity == str(tiny_model)
    assert draw(backend, draws(1))[0][0].error is None
    backend.close()
    assert not hasattr(backend, "llm")


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(tiny_model))
    get_peft_model(model, LoraConfig(r=12, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "lora"))
    return tmp_path / "lora"


@pytest.mark.usefixtures("fake_vllm")
def test_an_adapter_is_served_over_its_base(adapter: Path, tiny_model: Path) -> None:
    backend = VLLMBackend(adapter)
    draw(backend, draws(1))
    given = backend.llm.given
    assert (given["model"], given["enable_lora"], given["max_lora_rank"]) == (str(tiny_model), True, 16)
    assert given["tokenizer"] == str(tiny_model)
    assert backend.llm.calls[0]["lora"] == FakeLoRARequest("lora", 1, str(adapter))
    assert backend.identity == str(adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "plain LoRA adapters only.*peft_type IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"r": 1024}, "rank is 1024, expected 512 at most"),
    ],
)
@pytest.mark.usefixtures("fake_vllm")
def test_an_adapter_that_vllm_cannot_serve_is_told(adapter: Path, change: dict[str, Any], message: str) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        VLLMBackend(adapter)


def test_without_vllm_the_hint_installs_it(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match="vLLM cannot be imported") as missing:
        VLLMBackend(tiny_model)
    assert missing.value.hint == "pip install vllm"


# --- vLLM itself -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed here")
def test_vllm_itself(tmp_path: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    words = tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None}
    heads = {"num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 256}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(words), **sizes, **heads, **ids)).save_pretrained(str(tmp_path))
    words.save_pretrained(str(tmp_path))
    backend = VLLMBackend(tmp_path, options={"gpu_memory_utilization": 0.2, "enforce_eager": True})
    first, second = (draw(backend, draws(8, logprobs=True, top_logprobs=2))[0] for _ in range(2))
    assert [c.error for c in first] == [None] * 8
    assert len({c.text for c in first}) == 8
    assert sum(a.text == b.text for a, b in zip(first, second, strict=True)) >= 7
    assert all(len(c.logprobs or ()) == c.usage.completion_tokens == len(c.confidences or ()) for c in first)
    ((stopped,),) = draw(backend, draws(1, stop=(first[0].text[2],)))
    assert (stopped.text, stopped.stop_reason) == (first[0].text.split(first[0].text[2])[0], first[0].text[2])
    backend.close()
