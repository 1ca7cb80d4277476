"""A stand-in for vLLM in this process, with its names and defaults, as far as our backend uses them."""

from __future__ import annotations

import dataclasses
import random
import sys
import types
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import pytest

from posttrain_plugins.backends.transformers.backend import load_tokenizer

MAX_MODEL_LEN = 64


@dataclasses.dataclass
class FakeSamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        assert self.temperature >= 0
        assert 0 < self.top_p <= 1
        assert self.max_tokens is not None
        assert self.max_tokens >= 1
        assert self.logprobs is None or self.logprobs >= 0


@dataclasses.dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclasses.dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: int | str | None


@dataclasses.dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


@dataclasses.dataclass
class FakeLoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


class FakeLLM:
    """Draws letters by seed, ends at a stop string as vLLM does, and keeps what it was called with."""

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        quantization: str | None = None,
        revision: str | None = None,
        gpu_memory_utilization: float = 0.9,
        **kwargs: Any,
    ) -> None:
        assert kwargs.keys() <= {"enable_lora", "max_lora_rank", "max_model_len"}
        given = {"tokenizer": tokenizer, "trust_remote_code": trust_remote_code, "dtype": dtype, "revision": revision}
        self.given = {"model": model, "quantization": quantization, **given, **kwargs}
        self.calls: list[dict[str, Any]] = []
        self.words = load_tokenizer(tokenizer or model)
        config = types.SimpleNamespace(model=model, max_model_len=kwargs.get("max_model_len", MAX_MODEL_LEN))
        self.llm_engine = types.SimpleNamespace(model_config=config)

    def get_tokenizer(self) -> Any:
        return self.words

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True, lora_request: Any = None
    ) -> list[RequestOutput]:
        assert len(prompts) == len(sampling_params)
        self.calls.append({"prompts": prompts, "params": sampling_params, "lora": lora_request, "use_tqdm": use_tqdm})
        pairs = enumerate(zip(prompts, sampling_params, strict=True))
        return [self._answer(str(i), prompt["prompt_token_ids"], params) for i, (prompt, params) in pairs]

    def _answer(self, name: str, ids: list[int], params: FakeSamplingParams) -> RequestOutput:
        if len(ids) >= self.llm_engine.model_config.max_model_len:
            raise ValueError("the decoder prompt is longer than the maximum model length")
        assert params.n == 1
        rng = random.Random(params.seed if params.temperature else 0)
        letters = [*self.words("abcdefgh", add_special_tokens=False)["input_ids"], self.words.eos_token_id]
        drawn: list[int] = []
        stop_reason, finish, text = None, "length", ""
        while len(drawn) < (params.max_tokens or 0) and finish == "length":
            drawn.append(rng.choice(letters))
            text = self.words.decode(drawn, skip_special_tokens=True)
            hit = next((stop for stop in params.stop or () if stop in text), None)
            if hit is not None or drawn[-1] == self.words.eos_token_id:
                finish, stop_reason = "stop", hit
                text = text[: text.index(hit)] if hit else text
        return RequestOutput(
            name, ids, [CompletionOutput(0, text, tuple(drawn), self._logprobs(drawn, params), finish, stop_reason)]
        )

    def _logprobs(self, drawn: list[int], params: FakeSamplingParams) -> list[dict[int, Logprob]] | None:
        """The k likeliest and the drawn one, which is the least likely here."""
        if params.logprobs is None:
            return None
        return [
            {**{1000 + k: Logprob(-1.0 - k, k + 1) for k in range(params.logprobs)}, token: Logprob(-9.0, 99)}
            for token in drawn
        ]


class TokensPrompt(dict[str, Any]):
    def __init__(self, *, prompt_token_ids: list[int]) -> None:
        super().__init__(prompt_token_ids=prompt_token_ids)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import vllm` give the stand-in."""
    vllm, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vars(vllm).update(LLM=FakeLLM, SamplingParams=FakeSamplingParams, TokensPrompt=TokensPrompt)
    vars(request).update(LoRARequest=FakeLoRARequest)
    for module in (vllm, lora, request):
        module.__spec__ = ModuleSpec(module.__name__, None)  # who looks for its source is told that there is none
        monkeypatch.setitem(sys.modules, module.__name__, module)
