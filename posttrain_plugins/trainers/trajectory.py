"""The tokens of a conversation that a strategy had with the policy, and which of them the policy wrote.

A strategy such as `react` asks, is answered, calls a tool, and asks again with the answer put behind. In a chat each of
its prompts begins with the one before and what was written there, so the last prompt and its completion are one row of
tokens, as TRL's own loop makes it for native calls. What stands between is masked: instructions, observations, headers.
No paper; the masking is Search-R1's (Jin et al., 2025, https://huggingface.co/papers/2503.09516, section 3.2).

1. What the strategy dropped behind an action is no part of the row: the policy never saw it again.
2. The end of a turn counts as written where the policy ended there by itself, and not where a stop string cut it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_plugins.backends.transformers.chat import render
from posttrain_plugins.errors import InputError

__all__ = ["Trajectory", "trajectory"]

HINT = "a template that keeps earlier turns as they are, or tools: [...] on the stage in place of the strategy"


@dataclass(frozen=True)
class Trajectory:
    """One row for the loss.

    Args:
        prompt_ids: the first prompt, instructions among it.
        completion_ids: all that follows, T tokens.
        mask: T numbers, 1 where the policy wrote.
        turns: how often it did.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    mask: list[int]
    turns: int


def trajectory(tokenizer: Any, trace: Sequence[Mapping[str, Any]]) -> Trajectory:
    """Return the conversation that a trace holds.

    Args:
        tokenizer: with the chat template that the policy was asked by.
        trace: `Result.trace` of a strategy that asks for one completion at a time, each time with all that was before.

    Raises:
        InputError: a later prompt does not begin with an earlier one and what was written there.
    """
    drawn = [event for event in trace if event["kind"] == "generate"]
    # a request that failed wrote nothing
    turns = [event for event in drawn if event["completions"][0]["finish_reason"] != "error"]
    start = len(render(tokenizer, turns[0]["prompt"]))
    ids: list[int] = []
    mask: list[int] = []
    for i, turn in enumerate(turns):
        asked = render(tokenizer, turn["prompt"])
        if asked[: len(ids)] != ids:
            raise InputError("the chat template changes what was written in earlier turns: no one row of tokens", HINT)
        # what stands between two turns was heard: observations, and the marks of the template
        heard = [0] * (len(asked) - len(ids))
        # the mark that ends a turn is the policy's where it wrote it, and the template's where it was cut
        if i and asked[len(ids)] == tokenizer.eos_token_id:
            heard[0] = int(_ends_turn(turns[i - 1], turn))
        mask += heard
        written = _written(turn, turns[i + 1] if i + 1 < len(turns) else None)
        own = tokenizer(written, add_special_tokens=False)["input_ids"]
        ids = [*asked, *own]
        mask += [1] * len(own)
    if _stopped(turns[-1]) or len(ids) == start:  # an empty completion is EOS alone
        ids, mask = [*ids, tokenizer.eos_token_id], [*mask, 1]
    return Trajectory(ids[:start], ids[start:], mask[start:], len(turns))


def _written(turn: Mapping[str, Any], following: Mapping[str, Any] | None) -> str:
    """Return what the policy wrote in a turn, as far as the next prompt holds it."""
    text: str = turn["completions"][0]["text"]
    if following is None:
        return text
    # a strategy may keep less than was written: what follows an action, say, is invented
    told = following["prompt"][len(turn["prompt"]) :]
    kept = str(told[0]["content"]) if told and told[0]["role"] == "assistant" else None
    if kept is None or not text.startswith(kept):
        raise InputError("the strategy changes what the policy wrote: no one row of tokens", HINT)
    return kept


def _ends_turn(turn: Mapping[str, Any], following: Mapping[str, Any]) -> bool:
    """Tell whether the policy itself wrote the end of a turn that the next prompt holds."""
    return _stopped(turn) and _written(turn, following) == turn["completions"][0]["text"]


def _stopped(turn: Mapping[str, Any]) -> bool:
    # with a stop reason it was a stop string, which is no token of the policy's
    drawn = turn["completions"][0]
    return drawn["finish_reason"] == "stop" and drawn.get("stop_reason") is None
