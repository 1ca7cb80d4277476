"""The decoding loop of the transformers backend: many prompts, many completions each, one model.

What it does that `generate` does not: a prompt that several completions share is read once and its cache spread; rows
that are finished leave the batch; parameters may differ from row to row; and every row has noise of its own, a function
of its seed and of the position only, so that what else is in the batch does not change what is drawn. No paper.

1. Only temperature, top_k and top_p are applied, in this order: a model's `generation_config` gives the EOS ids, not
   its sampling defaults.
2. Log-probabilities and confidences are the model's own, before temperature, top_k and top_p.
3. The value is that of the state after the last token; EOS is an action and no state, so there it is that before EOS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from posttrain_plugins.backends.transformers.kv_cache import is_plain, keep_rows, spread
from posttrain_plugins.backends.transformers.stops import StopStrings
from posttrain_plugins.types import SamplingParams

__all__ = ["Drawn", "Row", "ValueHead", "decode", "draw_tokens", "uniforms"]

DROP_SHARE = 1 / 32  # finished rows leave when they are this share of the batch
PREFILL_TOKENS = 2**14  # prompts are read in parts of about this size: a forward pass needs room for all its tokens

ValueHead: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""(R, H) hidden states to (R,) values."""


@dataclass(frozen=True, slots=True)
class Row:
    """One completion to draw: after which tokens, how, with which seed. `name` comes back with it."""

    name: tuple[int, int]
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished row; `token_ids` end with the EOS token where there was one."""

    row: Row
    token_ids: list[int]
    is_stopped: bool
    logprobs: list[float] | None = None
    confidences: list[float] | None = None
    value: float | None = None


@dataclass
class _Rows:
    """What the loop keeps of each of the R rows in the batch; P is the widest prompt, T the most completion tokens."""

    index: torch.Tensor  # (R,) into the rows as given
    mask: torch.Tensor  # (R, P+T) attention
    position: torch.Tensor  # (R,) of the newest token
    temperature: torch.Tensor  # (R, 1)
    top_p: torch.Tensor  # (R, 1)
    top_k: torch.Tensor  # (R, 1), 0 for all
    limit: torch.Tensor  # (R,) completion tokens at most
    noise: torch.Tensor  # (R, T) uniform
    drawn: torch.Tensor  # (R, T) token ids
    logprobs: torch.Tensor  # (R, T), or (R, 0) where nobody asks
    likeliest: torch.Tensor  # (R, 1) how many tokens a confidence is over
    confidences: torch.Tensor  # (R, T), or (R, 0) where nobody asks
    is_valued: torch.Tensor  # (R,) wants a value
    is_alive: torch.Tensor  # (R,) not yet finished
    is_stopped: torch.Tensor  # (R,) finished by EOS or a stop string
    is_late: torch.Tensor  # (R,) finished, but the state after its last token is yet to be seen

    def select(self, keep: torch.Tensor) -> _Rows:
        return _Rows(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})


@dataclass(frozen=True)
class _Seen:
    """What a forward pass gives for the last token of each row."""

    logits: torch.Tensor  # (R, V)
    hidden: torch.Tensor | None  # (R, H), where values are asked for
    cache: Any


_Read: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any], _Seen]
"""Token ids, their positions, the attention mask and a cache -> what is seen."""


@torch.inference_mode()  # type: ignore[untyped-decorator]
def decode(
    model: Any,
    rows: Sequence[Row],
    eos_ids: Sequence[int],
    stops: StopStrings,
    value_head: ValueHead | None = None,
    on_tokens: Callable[[int], None] | None = None,
) -> Iterator[Drawn]:
    """Draw every row, in one batch.

    Args:
        model: a causal language model in evaluation mode.
        rows: R rows with prompts that are not empty.
        eos_ids: tokens that end a completion.
        stops: finds stop strings.
        value_head: for rows that ask for values.
        on_tokens: told after each step how many tokens were drawn in it.

    Yields:
        Each row as soon as it is finished.
    """
    state = _start(rows, model.device)
    width = max(len(row.prompt) for row in rows)
    eos = torch.tensor(list(eos_ids), device=model.device)
    head = value_head if any(row.params.values for row in rows) else None
    with _reading(model, with_hidden=head is not None) as read:
        seen = _prefill(read, rows, state, model.device)
        for step in range(state.drawn.shape[1]):
            # The order matters: a value is that of the state after the last token, so rows that want one stay for one
            # more forward pass (`is_late`); all others leave before it.
            token = _draw(state, seen.logits, step)
            if on_tokens is not None:
                on_tokens(int(state.is_alive.sum()))
            is_eos = torch.isin(token, eos)
            finished = _end(state, is_eos | _hits_stop(state, rows, step, stops), is_eos, step)
            yield from _finish(state, rows, finished, step, _values(head, seen))
            state, token = _drop(state, token, seen.cache)
            if len(token) == 0:
                return
            mask = state.mask[:, : width + step + 1]
            seen = read(token[:, None], state.position[:, None], mask, seen.cache)
            if head is not None:
                yield from _finish(state, rows, state.is_late, step, _values(head, seen))


def draw_tokens(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    uniform: torch.Tensor,
    top_k: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return one token for each row, by the inverse of the cumulative distribution.

    Args:
        logits: (R, V).
        temperature: (R, 1); 0 is greedy.
        top_p: (R, 1).
        uniform: (R, 1), in [0, 1).
        top_k: (R, 1) of the likeliest tokens; 0, and None for every row, for all.

    Returns:
        (R,) token ids.
    """
    greedy = logits.argmax(-1)
    if not (temperature > 0).any():
        return greedy
    if top_k is not None and (top_k > 0).any():
        logits = _likeliest(logits, top_k)
    probabilities = torch.softmax(logits / temperature.where(temperature > 0, 1.0), dim=-1)
    if (top_p < 1).any():
        probabilities = _nucleus(probabilities, top_p)
    # The inverse of the cumulative distribution, not `multinomial`: one uniform number a token, the row's own.
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    # below the total, whatever was rounded: a target at the total would be a token behind the last
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    sampled = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return sampled.where(temperature.squeeze(-1) > 0, greedy)


def uniforms(seeds: Sequence[int], steps: int) -> npt.NDArray[np.float32]:
    """Return uniform noise in [0, 1), of seed and step alone: splitmix64 (Steele et al., 2014) read as a counter.

    Returns:
        (R, steps), 24 random bits each.
    """
    counter = np.arange(1, steps + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = np.array(seeds, dtype=np.uint64)[:, None] + counter
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.asarray((mixed >> np.uint64(40)) * 2.0**-24, dtype=np.float32)


def _start(rows: Sequence[Row], device: torch.device) -> _Rows:
    count, steps = len(rows), max(row.max_tokens for row in rows)
    lengths = torch.tensor([len(row.prompt) for row in rows])
    is_prompt = torch.arange(int(lengths.max())) >= lengths.max() - lengths[:, None]
    has_logprobs, has_confidences = (
        any(getattr(row.params, name) for row in rows) for name in ("logprobs", "top_logprobs")
    )
    state = _Rows(
        index=torch.arange(count),
        mask=torch.cat([is_prompt.long(), torch.ones(count, steps, dtype=torch.long)], dim=1),
        position=lengths - 1,
        temperature=torch.tensor([[row.params.temperature] for row in rows], dtype=torch.float32),
        top_p=torch.tensor([[row.params.top_p] for row in rows], dtype=torch.float32),
        top_k=torch.tensor([[row.params.top_k] for row in rows]),
        limit=torch.tensor([row.max_tokens for row in rows]),
        noise=torch.from_numpy(uniforms([row.seed for row in rows], steps)),
        drawn=torch.zeros(count, steps, dtype=torch.long),
        logprobs=torch.zeros(count, steps if has_logprobs else 0),
        likeliest=torch.tensor([[row.params.top_logprobs] for row in rows]),
        confidences=torch.zeros(count, steps if has_confidences else 0),
        is_valued=torch.tensor([row.params.values for row in rows]),
        is_alive=torch.ones(count, dtype=torch.bool),
        is_stopped=torch.zeros(count, dtype=torch.bool),
        is_late=torch.zeros(count, dtype=torch.bool),
    )
    return _Rows(**{field.name: getattr(state, field.name).to(device) for field in fields(state)})


# --- The model -------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(model: Any, with_hidden: bool) -> Iterator[_Read]:
    """Open the forward pass; hidden states are what the LM head is given, so that no other layer's need be kept."""
    given: list[torch.Tensor] = []
    watch = model.get_output_embeddings().register_forward_pre_hook if with_hidden else None
    handle = watch(lambda module, args: given.append(args[0])) if watch else None

    def read(ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Any) -> _Seen:
        given.clear()
        output = model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return _Seen(output.logits[:, -1], given[0][:, -1] if given else None, output.past_key_values)

    try:
        yield read
    finally:
        if handle is not None:
            handle.remove()


def _prefill(read: _Read, rows: Sequence[Row], state: _Rows, device: torch.device) -> _Seen:
    """Read each distinct prompt once, in parts; then what is seen and a row of the cache for each completion."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    size = max(1, PREFILL_TOKENS // max(map(len, prompts)))
    parts = [_read_prompts(read, prompts[:size], device)]
    if len(prompts) > size and not is_plain(parts[0].cache):  # such caches cannot be joined
        parts = [_read_prompts(read, prompts, device)]
        size = len(prompts)
    parts += [_read_prompts(read, prompts[i : i + size], device) for i in range(size, len(prompts), size)]
    place = {prompt: i for i, prompt in enumerate(prompts)}
    prompt_of = torch.tensor([place[row.prompt] for row in rows], device=device)
    hidden = None if parts[0].hidden is None else torch.cat([part.hidden for part in parts])[prompt_of]  # type: ignore[misc]
    cache = spread([part.cache for part in parts], prompt_of, state.mask.shape[1])
    return _Seen(torch.cat([part.logits for part in parts])[prompt_of], hidden, cache)


def _read_prompts(read: _Read, prompts: Sequence[tuple[int, ...]], device: torch.device) -> _Seen:
    """Read all in one forward pass, left-padded."""
    width = max(map(len, prompts))
    ids = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    return read(ids, (mask.cumsum(-1) - 1).clamp(min=0), mask, None)


# --- One step --------------------------------------------------------------------------------------------------------


def _draw(state: _Rows, logits: torch.Tensor, step: int) -> torch.Tensor:
    """Draw the next token of each row, (R,), and note it down."""
    logits = logits.float()
    token = draw_tokens(logits, state.temperature, state.top_p, state.noise[:, step : step + 1], state.top_k)
    state.drawn[:, step] = token
    state.position += 1
    if state.logprobs.shape[1] or state.confidences.shape[1]:
        known = torch.log_softmax(logits, dim=-1)
        if state.logprobs.shape[1]:
            state.logprobs[:, step] = known.gather(1, token[:, None]).squeeze(1)
        if state.confidences.shape[1]:
            state.confidences[:, step] = _confidence(known, state.likeliest)
    return token


def _confidence(logprobs: torch.Tensor, likeliest: torch.Tensor) -> torch.Tensor:
    """Return minus the mean log-probability of the `likeliest` tokens of each row, (R,); anything where none are."""
    count = likeliest.clamp(min=1, max=logprobs.shape[1])
    ordered = logprobs.topk(int(count.max()), dim=-1).values
    return -(ordered.cumsum(-1).gather(1, count - 1) / count).squeeze(1)


def _likeliest(logits: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Keep the `top_k` largest logits of a row, and what equals the last of them; all others become -inf."""
    count = top_k.clamp(min=1, max=logits.shape[1])
    last = logits.topk(int(count.max()), dim=-1).values.gather(1, count - 1)
    return logits.where((logits >= last) | (top_k == 0), -torch.inf)


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep the smallest set of tokens that holds `top_p` of the mass; all others get none."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.where((before < top_p) | (torch.arange(ordered.shape[1], device=ordered.device) == 0), 0.0)
    return torch.zeros_like(probabilities).scatter(1, order, kept)


def _hits_stop(state: _Rows, rows: Sequence[Row], step: int, stops: StopStrings) -> torch.Tensor:
    """Return which rows have just written a stop string."""
    hits = torch.zeros_like(state.is_alive)
    if not any(row.params.stop for row in rows):
        return hits
    alive = state.is_alive.tolist()
    for i, (index, token) in enumerate(zip(state.index.tolist(), state.drawn[:, step].tolist(), strict=True)):
        wanted = rows[index].params.stop
        if wanted and alive[i]:
            tail = state.drawn[i, : step + 1]
            hits[i] = stops.is_hit(wanted, token, lambda count, tail=tail: tail[-count:].tolist())  # type: ignore[misc]
    return hits


def _end(state: _Rows, stopped: torch.Tensor, is_eos: torch.Tensor, step: int) -> torch.Tensor:
    """Note which rows end here; return those of which nothing more is to be seen."""
    ended = state.is_alive & (stopped | (state.limit == step + 1))
    state.is_stopped = state.is_stopped.where(~ended, stopped)
    state.is_alive = state.is_alive & ~ended
    state.is_late = ended & state.is_valued & ~is_eos
    # what is read for rows that are done does not count, but it must be a position that the model has
    state.position = state.position.where(state.is_alive | state.is_late, 0)
    return ended & ~state.is_late


def _values(head: ValueHead | None, seen: _Seen) -> torch.Tensor | None:
    return None if head is None or seen.hidden is None else head(seen.hidden)


def _finish(
    state: _Rows, rows: Sequence[Row], which: torch.Tensor, step: int, values: torch.Tensor | None
) -> Iterator[Drawn]:
    at = which.nonzero().flatten()
    if len(at) == 0:
        return
    columns = [state.index, state.is_stopped]
    columns += [of[:, : step + 1] for of in (state.drawn, state.logprobs, state.confidences)]
    value = [None] * len(at) if values is None else values[at].tolist()
    for index, is_stopped, ids, logprobs, confidences, of in zip(
        *(column[at].tolist() for column in columns), value, strict=True
    ):
        params = rows[index].params
        yield Drawn(
            rows[index],
            ids,
            is_stopped,
            logprobs if params.logprobs else None,
            confidences if params.top_logprobs else None,
            of if params.values else None,
        )


def _drop(state: _Rows, token: torch.Tensor, cache: Any) -> tuple[_Rows, torch.Tensor]:
    """Let finished rows leave when they are many: the last rows move into their places. None stays where all left."""
    stays = state.is_alive | state.is_late
    count, size = int(stays.sum()), len(token)
    if count == 0:
        return state, token[:0]
    if count > size * (1 - DROP_SHARE):  # moving keys and values costs more than a few rows that are drawn for nothing
        return state, token
    order = torch.arange(count, device=token.device)
    freed = (~stays[:count]).nonzero().flatten()
    order[freed] = stays[count:].nonzero().flatten() + count
    keep_rows(cache, order, freed)
    return state.select(order), token[order]
