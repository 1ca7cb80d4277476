"""vLLM in this process: a whole wave in one `LLM.generate`, on GPUs that vLLM supports.

1. Every completion is a row of its own, with its own seed, rather than `n` of one prompt: what is drawn does not depend
   on what else of its request is known already. vLLM reads a shared prompt once all the same (prefix caching).
2. Equal seeds give equal noise; the logits still vary with the batch, by rounding.
3. Only temperature, top_p and top_k are applied, none of the sampling defaults of a model's `generation_config`.
4. A wave comes back when its last completion is done, so a killed run pays at most one wave twice.

No paper.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.backends.transformers.backend import load_tokenizer, render, sampling_defaults
from posttrain_plugins.backends.transformers.chat import parse_tool_calls, show_tools, takes_tools
from posttrain_plugins.errors import InputError
from posttrain_plugins.models.folder import adapter_config, adapters_in, base_of
from posttrain_plugins.text.readers import template_opens_thought
from posttrain_plugins.types import Completion, Generate, SamplingParams, Usage

__all__ = ["VLLMBackend"]

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the `max_lora_rank` that vLLM has kernels for
LOADING = {"dtype": "dtype", "model_revision": "revision", "trust_remote_code": "trust_remote_code"}


class VLLMBackend:
    """Draws completions with vLLM (https://docs.vllm.ai), which is installed beside this package.

    Args:
        model: a folder (a LoRA adapter's too), a Hub id, or a `vllm.LLM`.
        loading: TRL `ModelConfig` fields: dtype, model_revision, trust_remote_code, load_in_4bit; vLLM chooses its own
            attention.
        options: `vllm.LLM`'s own, such as `gpu_memory_utilization`, `tensor_parallel_size`, `max_model_len`.
        identity: which weights these are, for request keys; by default the path.
        chat_template: in place of the one that lies beside the model.

    Raises:
        InputError: where vLLM is not installed, or an adapter is not a LoRA that it can serve.

    Example:
        >>> from posttrain_plugins.engine.solve import solve                                   # doctest: +SKIP
        >>> backend = VLLMBackend("Qwen/Qwen3-0.6B", options={"max_model_len": 8192})       # doctest: +SKIP
        >>> solve(SelfConsistency(n=8), problems, backend=backend)                          # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        *,
        loading: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        identity: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        self._vllm = _import_vllm()
        is_path = isinstance(model, str | Path)
        self._lora = _lora_request(Path(model)) if is_path else None
        self.llm = self._vllm.LLM(**_llm_options(Path(model), loading or {}, options or {})) if is_path else model
        config = self.llm.llm_engine.model_config
        self._path = model if is_path else config.model
        self._revision = (loading or {}).get("model_revision")
        self.identity = identity or str(self._path)
        self.tokenizer = load_tokenizer(model, loading, chat_template) if is_path else model.get_tokenizer()
        show_tools(self.tokenizer)
        self.capabilities = Capabilities(tools=takes_tools(self.tokenizer))
        self.max_model_len = int(config.max_model_len)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        """See `Backend.generate`."""
        names, prompts, params = [], [], []
        for i, (request, of_request) in enumerate(zip(batch, seeds, strict=True)):
            try:
                ids, error = render(self.tokenizer, request.prompt, request.tools), ""
            except InputError as refusal:  # one prompt that the template refuses fails its own samples, not the wave
                ids, error = [], str(refusal)
            if len(ids) >= self.max_model_len:  # vLLM refuses the whole wave for one such prompt
                error = f"no room for a completion after {len(ids)} prompt tokens"
            for j, seed in enumerate(of_request):
                if error:
                    yield i, j, Completion(text="", finish_reason="error", error=error)
                    continue
                names.append((i, j))
                prompts.append(self._vllm.TokensPrompt(prompt_token_ids=ids))
                params.append(self._sampling(request.params, seed))
        if not names:
            return
        outputs = self.llm.generate(prompts, params, use_tqdm=False, lora_request=self._lora)
        for (i, j), output in zip(names, outputs, strict=True):
            yield i, j, self._completion(output, batch[i], is_first=j == 0)

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the chat template opens a thought: a completion without its end is then all thought."""
        return template_opens_thought(self.tokenizer, **getattr(self.tokenizer, "chat_template_kwargs", {}))

    @cached_property
    def sampling_defaults(self) -> dict[str, Any]:
        """What the model's `generation_config` asks for of `temperature`, `top_p` and `top_k`."""
        return sampling_defaults(self._path, self._revision)

    def close(self) -> None:
        """Free the GPU's memory."""
        import torch

        del self.llm  # vLLM frees its memory when its engine is collected, and has no other way
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _sampling(self, params: SamplingParams, seed: int) -> Any:
        """Return vLLM's parameters; its `logprobs=0` gives the drawn token's alone, `k` also the k likeliest's."""
        return self._vllm.SamplingParams(
            n=1,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            max_tokens=params.max_tokens,
            stop=list(params.stop),
            seed=seed,
            logprobs=params.top_logprobs if params.logprobs or params.top_logprobs else None,
        )

    def _completion(self, output: Any, request: Generate, is_first: bool) -> Completion:
        """Return the completion of a row; the prompt was read once for all of its request, and counts on the first."""
        (drawn,) = output.outputs
        params, ids, text = request.params, list(drawn.token_ids), drawn.text
        usage = Usage(prompt_tokens=len(output.prompt_token_ids) if is_first else 0, completion_tokens=len(ids))
        if drawn.finish_reason not in ("stop", "length"):
            return Completion(text, "error", usage, error=f"vLLM ended the completion: {drawn.finish_reason}")
        places = drawn.logprobs or []
        confidences = None
        if params.top_logprobs:
            confidences = []
            for place in places:  # the drawn token stands there too: one more than asked for where it is not among them
                top = sorted((float(entry.logprob) for entry in place.values()), reverse=True)[: params.top_logprobs]
                confidences.append(-sum(top) / len(top))
        calls: list[dict[str, Any]] = []
        if request.tools:
            text, calls = parse_tool_calls(self.tokenizer, output.prompt_token_ids, ids, text, request.tools)
        return Completion(
            text=text,
            finish_reason="tool_calls" if calls else drawn.finish_reason,
            usage=usage,
            token_ids=ids if params.logprobs else None,
            logprobs=[place[i].logprob for i, place in zip(ids, places, strict=True)] if params.logprobs else None,
            stop_reason=drawn.stop_reason if isinstance(drawn.stop_reason, str) else None,
            confidences=confidences,
            tool_calls=calls or None,
        )


def _import_vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise InputError(f"vLLM cannot be imported: {error}", hint="pip install vllm") from error


def _llm_options(path: Path, loading: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `vllm.LLM`; an adapter is served over its base."""
    ours = {name: loading[field] for field, name in LOADING.items() if loading.get(field) is not None}
    if loading.get("load_in_4bit"):
        ours["quantization"] = "bitsandbytes"
    if loading.get("load_in_8bit"):
        hint = "load_in_4bit, or a checkpoint that is quantized already"
        raise InputError("vLLM cannot quantize to 8 bits with bitsandbytes while it loads", hint=hint)
    ours["model"] = str(path)
    if adapter := adapter_config(path):
        base, revision = base_of(path, ours.get("revision"))
        ours |= {"model": base, "enable_lora": True, "max_lora_rank": _rank(adapter)}
        ours |= {"revision": revision} if revision else {}
        ours["tokenizer"] = str(path if (path / "tokenizer_config.json").is_file() else base)
    return {**ours, **options}


def _lora_request(path: Path) -> Any:
    """Return the adapter as vLLM wants it named in each call; None for a full model."""
    adapter = adapter_config(path)
    if not adapter:
        return None
    # what vLLM would load without a word and leave out, so that completions would be another model's
    wrong = [name for name in ("modules_to_save", "use_dora") if adapter.get(name)]
    wrong += ["a stack of adapters"] if len(adapters_in(path)) > 1 else []
    if adapter.get("peft_type") != "LORA" or wrong:
        found = ", ".join(wrong) or f"peft_type {adapter.get('peft_type')}"
        raise InputError(f"vLLM serves plain LoRA adapters only, {path} has {found}", hint="merge it into its base")
    return importlib.import_module("vllm.lora.request").LoRARequest(path.name, 1, str(path))


def _rank(adapter: Mapping[str, Any]) -> int:
    """Return the smallest rank that vLLM has kernels for and the adapter fits in."""
    widest = max([adapter["r"], *(adapter.get("rank_pattern") or {}).values()])
    for rank in RANKS:
        if rank >= widest:
            return rank
    raise InputError(f"the adapter's rank is {widest}, expected {RANKS[-1]} at most", hint="merge it into its base")
