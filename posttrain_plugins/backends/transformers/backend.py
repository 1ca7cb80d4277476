"""Models in this process: a folder or Hub id, full, adapter or 4-bit, or a model that is already there."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.backends.transformers.chat import parse_tool_calls, render, show_tools, takes_tools
from posttrain_plugins.backends.transformers.stops import StopStrings, cut
from posttrain_plugins.errors import InputError
from posttrain_plugins.models.critic import load_value_head, shared_critic_in
from posttrain_plugins.models.load import load_model, load_tokenizer, sampling_defaults
from posttrain_plugins.text.readers import template_opens_thought
from posttrain_plugins.types import Completion, Generate, Usage

if TYPE_CHECKING:
    from posttrain_plugins.backends.transformers.decode import Drawn, Row

__all__ = ["TransformersBackend", "load_model", "load_tokenizer", "render", "sampling_defaults"]

CPU_BATCH_TOKENS = 2**17  # larger batches are no faster on a CPU
CPU_MEMORY = 2**34  # bytes of the free memory that are counted on: a container may be given less than there is
CACHE_SHARE = 0.5  # of the free memory, for keys and values
LOGITS_SHARE = 0.2  # of the free memory, for what is computed over the vocabulary


class TransformersBackend:
    """Draws completions with a transformers model, on whatever device there is.

    Args:
        model: a folder (a PEFT adapter's too), a Hub id, or a loaded model.
        tokenizer: by default the one that lies beside the model.
        loading: TRL `ModelConfig` fields (dtype, load_in_4bit, attn_implementation, model_revision ...).
        device: by default `cuda` where there is one, else `cpu`; `auto` spreads a model over several GPUs.
        max_batch_tokens: rows times (prompt + completion) tokens in one batch at most; by default what memory allows.
        identity: which weights these are, for request keys; by default the path.
        value_head: the `critic/` folder of a critic that shares the policy's body, for `SamplingParams.values`; by
            default the one that lies in the model's folder.
        continuous_batching: draw with transformers' continuous batching what it can draw; made for CUDA, slower on a
            CPU, and with it a seed no longer decides what is drawn.

    Raises:
        InputError: for a value head that does not read this model's hidden states.

    Example:
        >>> from posttrain_plugins.engine.solve import solve                               # doctest: +SKIP
        >>> backend = TransformersBackend("Qwen/Qwen3-0.6B", loading={"dtype": "bfloat16"})  # doctest: +SKIP
        >>> solve(SelfConsistency(n=8), problems, backend=backend)                       # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        loading: Mapping[str, Any] | None = None,
        device: str | None = None,
        max_batch_tokens: int | None = None,
        identity: str | None = None,
        value_head: str | Path | None = None,
        continuous_batching: bool | None = None,
    ) -> None:
        is_path = isinstance(model, str | Path)
        path = model if is_path else model.config.name_or_path
        self.identity = identity or str(path)
        self._path, self._revision = path, (loading or {}).get("model_revision")
        self.tokenizer = show_tools(tokenizer if tokenizer is not None else load_tokenizer(path, loading))
        self.model = (load_model(model, loading, device) if is_path else model).eval()
        memory = _free_memory(self.model)
        self.max_batch_tokens = max_batch_tokens or _batch_tokens(self.model, memory)
        self.on_tokens: Callable[[int], None] | None = None
        self.eos_ids = _eos_ids(self.model, self.tokenizer)
        critic = value_head or (shared_critic_in(path) if is_path else None)
        self.capabilities = Capabilities(
            seed=not continuous_batching, values=critic is not None, tools=takes_tools(self.tokenizer)
        )
        self._max_rows = _batch_rows(self.model, memory)
        self._value_head = load_value_head(critic, self.model) if critic else None
        self._stops = StopStrings(self.tokenizer)
        self._continuous: Any = None
        if continuous_batching:
            from posttrain_plugins.backends.transformers.continuous import ContinuousBatching

            self._continuous = ContinuousBatching(self.model, self.eos_ids)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        """See `Backend.generate`."""
        from posttrain_plugins.backends.transformers.decode import Row

        if self._value_head is None and any(request.params.values for request in batch):
            raise InputError(
                f"values were asked of {self.identity}, which has no value head that reads the policy's hidden states",
                hint="use a ppo stage's model with critic: shared, or the reward plugin value_model as a scorer",
            )
        rows: list[Row] = []
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        for i, (request, of_request) in enumerate(zip(batch, seeds, strict=True)):
            try:
                prompt, error = tuple(render(self.tokenizer, request.prompt, request.tools)), ""
            except InputError as refusal:  # one prompt that the template refuses fails its own samples, not the wave
                prompt, error = (), str(refusal)
            room = request.params.max_tokens if context is None else context - len(prompt)
            if room < 1:
                error = f"no room for a completion after {len(prompt)} prompt tokens"
            for j, seed in enumerate(of_request):
                if error:
                    yield i, j, Completion(text="", finish_reason="error", error=error)
                else:
                    rows.append(Row((i, j), prompt, request.params, seed, min(request.params.max_tokens, room)))
        if self._continuous is not None:
            taken = [row for row in rows if self._continuous.takes(row)]
            rows = [row for row in rows if not self._continuous.takes(row)]
            for drawn in self._continuous.draw(taken):
                yield *drawn.row.name, self._completion(batch[drawn.row.name[0]], drawn)
        for drawn in self.draw(rows):
            yield *drawn.row.name, self._completion(batch[drawn.row.name[0]], drawn)

    def draw(self, rows: Sequence[Row]) -> Iterator[Drawn]:
        """Draw rows of tokens, in batches of rows of about the same length that fit in memory.

        Yields:
            Each row as soon as it is finished.
        """
        from posttrain_plugins.backends.transformers.decode import decode

        for pack in _packs(rows, self.max_batch_tokens, self._max_rows):
            yield from decode(self.model, pack, self.eos_ids, self._stops, self._value_head, self.on_tokens)

    @cached_property
    def opens_thought(self) -> bool:
        """Whether the chat template opens a thought: a completion without its end is then all thought."""
        return template_opens_thought(self.tokenizer, **getattr(self.tokenizer, "chat_template_kwargs", {}))

    @cached_property
    def sampling_defaults(self) -> dict[str, Any]:
        """What the model's `generation_config` asks for of `temperature`, `top_p` and `top_k`."""
        return sampling_defaults(self._path, self._revision)

    def close(self) -> None:
        """Free the model's memory."""
        import torch

        if self._continuous is not None:
            self._continuous.close()
            self._continuous = None
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _completion(self, request: Generate, drawn: Drawn) -> Completion:
        params, ids = drawn.row.params, drawn.token_ids
        ended = ids[-1] in self.eos_ids
        text = self.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=True)
        text, stop = cut(text, params.stop)
        calls: list[dict[str, Any]] = []
        if request.tools:
            text, calls = parse_tool_calls(self.tokenizer, drawn.row.prompt, ids, text, request.tools)
        is_first = drawn.row.name[1] == 0  # the prompt was read once for all of the request's completions
        return Completion(
            text=text,
            finish_reason="tool_calls" if calls else "stop" if drawn.is_stopped or stop else "length",
            usage=Usage(prompt_tokens=len(drawn.row.prompt) if is_first else 0, completion_tokens=len(ids)),
            token_ids=ids if params.logprobs else None,
            logprobs=drawn.logprobs,
            stop_reason=stop,
            confidences=drawn.confidences,
            value=drawn.value,
            tool_calls=calls or None,
        )


def _packs(rows: Sequence[Row], max_batch_tokens: int, max_rows: int) -> Iterator[list[Row]]:
    """Yield rows of about the same length together, longest first, as many as fit."""
    # Longest first: where memory does not suffice, the first pack tells, and not one after an hour. By the prompt too,
    # so that the completions of one prompt are in one pack and it is read once.
    pack: list[Row] = []
    widest = longest = 0
    for row in sorted(rows, key=lambda row: (-len(row.prompt), row.prompt, -row.max_tokens)):
        widest, longest = max(widest, len(row.prompt)), max(longest, row.max_tokens)
        if pack and (len(pack) == max_rows or (len(pack) + 1) * (widest + longest) > max_batch_tokens):
            yield pack
            pack, widest, longest = [], len(row.prompt), row.max_tokens
        pack.append(row)
    if pack:
        yield pack


def _free_memory(model: Any) -> int:
    """Return the memory that may be used, in bytes."""
    import torch

    if model.device.type == "cuda":
        return int(torch.cuda.mem_get_info(model.device)[0])
    import psutil  # type: ignore[import-untyped]

    return min(int(psutil.virtual_memory().available), CPU_MEMORY)


def _batch_tokens(model: Any, memory: int) -> int:
    """Return how many tokens' keys and values fit."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_per_token = 2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize
    fitting = int(memory * CACHE_SHARE / bytes_per_token)
    return fitting if model.device.type == "cuda" else min(fitting, CPU_BATCH_TOKENS)


def _batch_rows(model: Any, memory: int) -> int:
    """Return how many rows' logits fit, with probabilities, their sums and an order of the tokens in float32."""
    return max(1, int(memory * LOGITS_SHARE / (4 * 4 * model.config.get_text_config().vocab_size)))


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """Return every token that ends a completion: the generation config's and the tokenizer's."""
    found = model.generation_config.eos_token_id
    ids = found if isinstance(found, list) else [found]
    return sorted({i for i in (*ids, tokenizer.eos_token_id) if i is not None})
