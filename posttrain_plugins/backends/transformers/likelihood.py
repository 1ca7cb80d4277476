"""How likely a model finds texts, for perplexity (Jelinek et al., 1977); higher perplexity is a worse model of them.

A text is read in windows that do not overlap, so no token is predicted from nothing but the first of each, which does
not count: https://huggingface.co/docs/transformers/perplexity has what windows do to the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Likelihood", "TokenScore", "likelihoods", "token_scores"]

WINDOW = 1024  # tokens, or as many as the model has places for
BLOCK = 64  # tokens whose log-probabilities over the vocabulary are in memory at once
BATCH_TOKENS = 2**11  # whose logits over the vocabulary are in memory at once


@dataclass(frozen=True)
class Likelihood:
    """What a model says of one text.

    Args:
        nats: minus the sum of the log-probabilities of its tokens.
        tokens: how many were predicted; 0 of a text of one token.
    """

    nats: float
    tokens: int


@dataclass(frozen=True)
class TokenScore:
    """What a model says of one token.

    Args:
        logprob: its log-probability; None of the first, which nothing precedes.
        likeliest: log-probabilities of the likeliest tokens at its place and of itself, by their texts.
    """

    logprob: float | None
    likeliest: Mapping[str, float] = field(default_factory=dict)


def token_scores(model: Any, tokenizer: Any, ids: Sequence[int], count: int) -> list[TokenScore]:
    """Return what a causal language model says of each of T tokens.

    Args:
        model: in evaluation mode.
        tokenizer: gives tokens as text.
        ids: T of them.
        count: how many of the likeliest tokens are told at each place; 0 tells none.
    """
    import torch

    found = [TokenScore(None)]
    with torch.inference_mode():
        rows = torch.tensor([list(ids)], device=model.device)
        logits = model(input_ids=rows, use_cache=False).logits[0, :-1]  # (T-1, V)
        for at in range(0, len(ids) - 1, BLOCK):  # in float32 all of them may be more than memory holds
            logprobs = logits[at : at + BLOCK].float().log_softmax(-1)
            own = logprobs.gather(1, rows[0, 1:][at : at + BLOCK, None])[:, 0].tolist()
            values, tokens = (part.tolist() for part in logprobs.topk(count))
            for place, (value, likeliest) in enumerate(zip(own, zip(values, tokens, strict=True), strict=True), at + 1):
                told = [(value, ids[place]), *zip(*likeliest, strict=True)] if count else []
                texts: dict[str, float] = {}
                for logprob, token in told:  # parts of a character all read the same: the likelier one counts
                    text = tokenizer.decode([token])
                    texts[text] = max(logprob, texts.get(text, logprob))
                found.append(TokenScore(value, texts))
    return found


def likelihoods(
    model: Any, tokenizer: Any, texts: Sequence[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Likelihood]:
    """Return what a causal language model says of each text.

    Args:
        model: in evaluation mode.
        tokenizer: its own; special tokens are added as it adds them to plain text.
        texts: N of them.
        progress: is told after each batch how many windows of how many are done.
    """
    places = getattr(model.config.get_text_config(), "max_position_embeddings", None) or WINDOW
    width = min(WINDOW, places)
    ids = tokenizer(list(texts))["input_ids"] if texts else []
    windows = [(i, row[at : at + width]) for i, row in enumerate(ids) for at in range(0, len(row), width)]
    windows = [(i, window) for i, window in windows if len(window) > 1]
    nats, tokens = [0.0] * len(texts), [0] * len(texts)
    done = 0
    for batch in _batches(sorted(windows, key=lambda one: len(one[1]), reverse=True)):
        for (i, window), found in zip(batch, _read(model, [window for _, window in batch]), strict=True):
            nats[i] += found
            tokens[i] += len(window) - 1
        done += len(batch)
        progress(done, len(windows))
    return [Likelihood(*found) for found in zip(nats, tokens, strict=True)]


def _batches(windows: Sequence[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
    """Yield windows of nearly one length together, the longest first."""
    batch: list[tuple[int, list[int]]] = []
    for window in windows:
        if batch and (len(batch) + 1) * len(batch[0][1]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _read(model: Any, rows: Sequence[list[int]]) -> list[float]:
    """Return the nats of each row, in one pass."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -width:]
        # the padding is on the right: no token sees it, and what it would predict is masked
        chosen = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
        found: list[float] = (chosen.double() * mask[:, 1:]).sum(1).tolist()
    return found
