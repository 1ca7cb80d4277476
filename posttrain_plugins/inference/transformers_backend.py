"""Models in this process: a folder or Hub id, full, adapter or 4-bit, or a model that is already there."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_plugins.inference.backends import Capabilities
from posttrain_plugins.types import Completion, Generate, ModelArtifact, Prompt, Usage

if TYPE_CHECKING:
    from posttrain_plugins.inference.decode import Drawn, Row

__all__ = ["TransformersBackend", "load_model", "load_tokenizer", "opened", "render"]

CPU_BATCH_TOKENS = 2**17
FREE_MEMORY_SHARE = 0.4  # of a GPU, for the cache; growing it needs a second copy of a layer, and logits need room


class TransformersBackend:
    """Draws completions with a transformers model, on whatever device there is.

    Args:
        model: a folder (a PEFT adapter's too), a Hub id, or a loaded model.
        tokenizer: by default the one that lies beside the model.
        loading: TRL `ModelConfig` fields (dtype, load_in_4bit, attn_implementation, model_revision ...).
        device: by default `cuda` where there is one, else `cpu`; `auto` spreads a model over several GPUs.
        max_batch_tokens: rows times (prompt + completion) tokens in one batch at most; by default what memory allows.
        identity: which weights these are, for request keys; by default the path.

    Example:
        >>> from posttrain_plugins.inference import solve                               # doctest: +SKIP
        >>> backend = TransformersBackend("Qwen/Qwen3-0.6B", loading={"dtype": "bfloat16"})  # doctest: +SKIP
        >>> solve(SelfConsistency(n=8), problems, backend=backend)                       # doctest: +SKIP
    """

    capabilities = Capabilities()

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        loading: Mapping[str, Any] | None = None,
        device: str | None = None,
        max_batch_tokens: int | None = None,
        identity: str | None = None,
    ) -> None:
        path = model if isinstance(model, str | Path) else model.config.name_or_path
        self.identity = identity or str(path)
        self.tokenizer = tokenizer if tokenizer is not None else load_tokenizer(path, loading)
        is_path = isinstance(model, str | Path)
        self.model = (load_model(model, loading, device) if is_path else model).eval()
        self.max_batch_tokens = max_batch_tokens or _batch_tokens(self.model)
        self.eos_ids = _eos_ids(self.model, self.tokenizer)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        """See `Backend.generate`."""
        from posttrain_plugins.inference.decode import decode

        rows = list(self._rows(batch, seeds))
        for row in rows:
            if row.max_tokens < 1:
                error = f"no room for a completion after {len(row.prompt)} prompt tokens"
                yield *row.name, Completion(text="", finish_reason="error", error=error)
        for pack in _packs([row for row in rows if row.max_tokens >= 1], self.max_batch_tokens):
            for drawn in decode(self.model, self.tokenizer, pack, self.eos_ids):
                yield *drawn.row.name, self._completion(drawn)

    def close(self) -> None:
        """Free the model's memory."""
        import torch

        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _rows(self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]) -> Iterator[Row]:
        from posttrain_plugins.inference.decode import Row

        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for i, (request, of_request) in enumerate(zip(batch, seeds, strict=True)):
            prompt = tuple(render(self.tokenizer, request.prompt))
            room = request.params.max_tokens if context is None else context - len(prompt)
            for j, seed in enumerate(of_request):
                yield Row((i, j), prompt, request.params, seed, min(request.params.max_tokens, room))

    def _completion(self, drawn: Drawn) -> Completion:
        params, ids = drawn.row.params, drawn.token_ids
        text = self.tokenizer.decode(ids[:-1] if ids[-1] in self.eos_ids else ids, skip_special_tokens=True)
        cut = min((at for stop in params.stop if (at := text.find(stop)) >= 0), default=len(text))
        return Completion(
            text=text[:cut],
            finish_reason="stop" if drawn.is_stopped else "length",
            usage=Usage(prompt_tokens=len(drawn.row.prompt), completion_tokens=len(ids)),
            token_ids=ids if params.logprobs else None,
            logprobs=drawn.logprobs,
        )


@contextmanager
def opened(artifact: ModelArtifact) -> Iterator[TransformersBackend]:
    """The backend of a stage's model, freed at the end. Its identity is the model's name, so that the same recipe draws
    the same completions wherever its folders lie."""
    backend = TransformersBackend(artifact.path, loading=artifact.loading, identity=artifact.name)
    try:
        yield backend
    finally:
        backend.close()


def render(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The tokens of a prompt.

    Messages go through the chat template; a last message of role `assistant` is gone on from. A tokenizer without a
    template belongs to a base model: it reads a document that starts with BOS (else EOS) and holds the contents, joined
    by an empty line, and a line break. Plain text is tokenised as it is.
    """
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
        return list(ids) or [_document_start(tokenizer)]
    is_prefill = prompt[-1]["role"] == "assistant"
    if tokenizer.chat_template is None:
        return _render_document(tokenizer, [str(message["content"]) for message in prompt], is_prefill)
    text = tokenizer.apply_chat_template(
        list(prompt), tokenize=False, add_generation_prompt=not is_prefill, continue_final_message=is_prefill
    )
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _render_document(tokenizer: Any, contents: list[str], is_prefill: bool) -> list[int]:
    begun = contents.pop() if is_prefill else ""
    text = "\n\n".join(contents) + "\n" + begun
    return [_document_start(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]]


def load_model(path: str | Path, loading: Mapping[str, Any] | None = None, device: str | None = None) -> Any:
    """Load a causal language model, or a PEFT adapter with its base, as TRL's `ModelConfig` fields say."""
    import torch
    from transformers import AutoModelForCausalLM

    loading = dict(loading or {})
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    options = {
        "dtype": loading.get("dtype") or "auto",
        "attn_implementation": loading.get("attn_implementation"),
        "revision": loading.get("model_revision") or "main",
        "quantization_config": _quantization(loading),
        "device_map": "auto" if device == "auto" else {"": device},
    }
    options = {name: value for name, value in options.items() if value is not None}
    if (Path(path) / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(str(path), **options)
    return AutoModelForCausalLM.from_pretrained(str(path), **options)


def load_tokenizer(path: str | Path, loading: Mapping[str, Any] | None = None) -> Any:
    """The tokenizer beside a model; an adapter without one has its base's."""
    from transformers import AutoTokenizer

    config = Path(path) / "adapter_config.json"
    if config.is_file() and not (Path(path) / "tokenizer_config.json").is_file():
        path = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    return AutoTokenizer.from_pretrained(str(path), revision=(loading or {}).get("model_revision") or "main")


def _quantization(loading: Mapping[str, Any]) -> Any:
    """TRL's own reading of its fields; None where nothing is quantized."""
    if not (loading.get("load_in_4bit") or loading.get("load_in_8bit")):
        return None
    from trl import ModelConfig, get_quantization_config

    names = ModelConfig.__dataclass_fields__
    return get_quantization_config(ModelConfig(**{name: value for name, value in loading.items() if name in names}))


def _packs(rows: Sequence[Row], max_batch_tokens: int) -> Iterator[list[Row]]:
    """Rows of about the same length together, longest first, as many as fit."""
    pack: list[Row] = []
    widest = longest = 0
    for row in sorted(rows, key=lambda row: (-len(row.prompt), row.prompt, -row.max_tokens)):
        widest, longest = max(widest, len(row.prompt)), max(longest, row.max_tokens)
        if pack and (len(pack) + 1) * (widest + longest) > max_batch_tokens:
            yield pack
            pack, widest, longest = [], len(row.prompt), row.max_tokens
        pack.append(row)
    if pack:
        yield pack


def _batch_tokens(model: Any) -> int:
    """How many tokens' keys and values fit: a share of the GPU's free memory, or a fixed number on CPU."""
    import torch

    if model.device.type != "cuda":
        return CPU_BATCH_TOKENS
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    return int(torch.cuda.mem_get_info(model.device)[0] * FREE_MEMORY_SHARE / bytes_per_token)


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends a completion: the generation config's and the tokenizer's."""
    found = model.generation_config.eos_token_id
    ids = found if isinstance(found, list) else [found]
    return sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None})


def _document_start(tokenizer: Any) -> int:
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return int(start)
