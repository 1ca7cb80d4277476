"""The decoding loop of the transformers backend: many prompts, many completions each, one model.

What it does that `generate` does not: a prompt that several completions share is read once and its cache expanded; rows
that are finished leave the batch; parameters may differ from row to row; and every row has noise of its own, a function
of its seed and of the position only, so that what else is in the batch does not change what is drawn. No paper.

1. Only temperature and top_p are applied: a model's `generation_config` gives the EOS ids, not its sampling defaults.
2. Log-probabilities are the model's own, before temperature and top_p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from posttrain_plugins.types import SamplingParams

__all__ = ["Drawn", "Row", "decode", "draw_tokens", "uniforms"]

DROP_SHARE = 0.125  # finished rows leave when they are this share of the batch: leaving copies the cache


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
    logprobs: list[float] | None
    is_stopped: bool


@dataclass
class _Rows:
    """What the loop keeps of each of the R rows in the batch; P is the widest prompt, T the most completion tokens."""

    index: torch.Tensor  # (R,) into the rows as given
    mask: torch.Tensor  # (R, P+T) attention
    position: torch.Tensor  # (R,) of the newest token
    temperature: torch.Tensor  # (R, 1)
    top_p: torch.Tensor  # (R, 1)
    limit: torch.Tensor  # (R,) completion tokens at most
    noise: torch.Tensor  # (R, T) uniform
    drawn: torch.Tensor  # (R, T) token ids
    logprobs: torch.Tensor  # (R, T), or (R, 0) where nobody asks
    alive: torch.Tensor  # (R,) not yet finished

    def select(self, keep: torch.Tensor) -> _Rows:
        return _Rows(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})


@torch.inference_mode()  # type: ignore[untyped-decorator]
def decode(model: Any, tokenizer: Any, rows: Sequence[Row], eos_ids: Sequence[int]) -> Iterator[Drawn]:
    """Draw every row, in one batch.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: decodes for stop strings.
        rows: R rows with prompts that are not empty.
        eos_ids: tokens that end a completion.

    Yields:
        Each row as soon as it is finished.
    """
    state = _start(rows, model.device)
    width = max(len(row.prompt) for row in rows)
    logits, cache = _prefill(model, rows)
    eos = torch.tensor(list(eos_ids), device=model.device)
    for step in range(state.drawn.shape[1]):
        token = _draw(state, logits, step)
        stopped = torch.isin(token, eos) | _hits_stop(state, rows, step, tokenizer)
        finished = state.alive & (stopped | (state.limit == step + 1))
        for i in finished.nonzero().flatten().tolist():
            yield _finish(state, rows, i, step, bool(stopped[i]))
        state.alive &= ~finished
        keep = state.alive.nonzero().flatten()
        if len(keep) == 0:
            return
        if len(keep) <= len(token) * (1 - DROP_SHARE):
            state, token = state.select(keep), token[keep]
            cache.reorder_cache(keep)  # takes any selection of rows, not only a new order
        seen = state.mask[:, : width + step + 1]
        logits = _forward(model, token[:, None], state.position[:, None], seen, cache).logits[:, -1]


def draw_tokens(
    logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """One token for each row, by the inverse of the cumulative distribution.

    Args:
        logits: (R, V).
        temperature: (R, 1); 0 is greedy.
        top_p: (R, 1).
        uniform: (R, 1), in [0, 1).

    Returns:
        (R,) token ids.
    """
    greedy = logits.argmax(-1)
    if not (temperature > 0).any():
        return greedy
    probabilities = torch.softmax(logits / temperature.where(temperature > 0, 1.0), dim=-1)
    if (top_p < 1).any():
        probabilities = _nucleus(probabilities, top_p)
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    sampled = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return sampled.where(temperature.squeeze(-1) > 0, greedy)


def uniforms(seeds: Sequence[int], steps: int) -> npt.NDArray[np.float32]:
    """Uniform noise in [0, 1), a function of seed and step alone: splitmix64 (Steele et al., 2014) read as a counter.

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
    with_logprobs = any(row.params.logprobs for row in rows)
    state = _Rows(
        index=torch.arange(count),
        mask=torch.cat([is_prompt.long(), torch.ones(count, steps, dtype=torch.long)], dim=1),
        position=lengths - 1,
        temperature=torch.tensor([[row.params.temperature] for row in rows]),
        top_p=torch.tensor([[row.params.top_p] for row in rows]),
        limit=torch.tensor([row.max_tokens for row in rows]),
        noise=torch.from_numpy(uniforms([row.seed for row in rows], steps)),
        drawn=torch.zeros(count, steps, dtype=torch.long),
        logprobs=torch.zeros(count, steps if with_logprobs else 0),
        alive=torch.ones(count, dtype=torch.bool),
    )
    return _Rows(**{field.name: getattr(state, field.name).to(device) for field in fields(state)})


def _prefill(model: Any, rows: Sequence[Row]) -> tuple[torch.Tensor, Any]:
    """Read each distinct prompt once, left-padded; then a row of logits and of the cache for each completion."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(row.prompt for row in rows))}
    width = max(map(len, place))
    ids = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in place], device=model.device)
    lengths = torch.tensor([len(prompt) for prompt in place], device=model.device)
    mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
    output = _forward(model, ids, (mask.cumsum(-1) - 1).clamp(min=0), mask, None)
    prompt_of = torch.tensor([place[row.prompt] for row in rows], device=model.device)
    output.past_key_values.reorder_cache(prompt_of)
    return output.logits[prompt_of, -1], output.past_key_values


def _forward(model: Any, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: Any) -> Any:
    return model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )


def _draw(state: _Rows, logits: torch.Tensor, step: int) -> torch.Tensor:
    """The next token of each row, (R,), noted down."""
    logits = logits.float()
    token = draw_tokens(logits, state.temperature, state.top_p, state.noise[:, step : step + 1])
    state.drawn[:, step] = token
    state.position += 1
    if state.logprobs.shape[1]:
        state.logprobs[:, step] = torch.log_softmax(logits, dim=-1).gather(1, token[:, None]).squeeze(1)
    return token


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The smallest set of tokens that holds `top_p` of the mass; all others get none."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.where((before < top_p) | (torch.arange(ordered.shape[1], device=ordered.device) == 0), 0.0)
    return torch.zeros_like(probabilities).scatter(1, order, kept)


def _hits_stop(state: _Rows, rows: Sequence[Row], step: int, tokenizer: Any) -> torch.Tensor:
    """Which rows have just written a stop string; only their last tokens are decoded."""
    hits = torch.zeros_like(state.alive)
    if not any(row.params.stop for row in rows):
        return hits
    for i, index in enumerate(state.index.tolist()):
        stops = rows[index].params.stop
        if stops and state.alive[i]:
            tail = state.drawn[i, max(0, step - 2 * max(map(len, stops)) - 8) : step + 1]
            text = tokenizer.decode(tail, skip_special_tokens=True)
            hits[i] = any(stop in text for stop in stops)
    return hits


def _finish(state: _Rows, rows: Sequence[Row], i: int, step: int, is_stopped: bool) -> Drawn:
    row = rows[int(state.index[i])]
    logprobs = state.logprobs[i, : step + 1].tolist() if row.params.logprobs else None
    return Drawn(row, state.drawn[i, : step + 1].tolist(), logprobs, is_stopped)
