"""Process rewards: what `step_scores` of a reward gives, at the tokens where the steps end.

A reward that a trainer names in `process_rewards` pays by its steps, in place of its score for the whole completion; it
is called once, and logged with the sum of its steps. Steps are told apart as everywhere (`text/steps.py`): the k-th
score is paid at the token with which the k-th step ends. Scores fewer than steps pay the first ones; what is over is
paid at the end, and the share of completions with another number of scores than of steps is logged as `steps/mismatch`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from posttrain_plugins.errors import InputError
from posttrain_plugins.text.steps import step_ends
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.ppo import rules

__all__ = ["StepScores", "as_tensor", "check", "check_names", "place", "step_end_tokens", "stepwise"]

StepScores = dict[int, list[list[float]]]
"""Index of the reward function -> for each completion of this process, a score for each step."""


def check(trainer: Any, names: Sequence[str]) -> None:
    """Refuse what a trainer cannot pay by steps.

    Raises:
        InputError: as `check_names`, or there are tools.
    """
    check_names(dict(zip(trainer.reward_func_names, trainer.reward_funcs, strict=True)), names)
    if names and trainer.tools:
        raise InputError("process_rewards cannot be used with tools: a tool's answer is no step of the model")


def check_names(known: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse names that are no reward, and rewards that cannot judge steps.

    Raises:
        InputError: names the reward.
    """
    judges_steps = {name: callable(getattr(reward, "step_scores", None)) for name, reward in known.items()}
    rules.refuse(rules.step_concerns(names, judges_steps))


@contextmanager
def stepwise(trainer: Any, names: Sequence[str]) -> Iterator[StepScores]:
    """Within, the rewards in `names` are asked for their steps and give TRL the sum of them."""
    steps: StepScores = {}
    before = list(trainer.reward_funcs)
    # only while rewards are calculated: TRL puts one number per completion into a tensor and cannot take lists
    for i, name in enumerate(trainer.reward_func_names):
        if name in names:
            trainer.reward_funcs[i] = _summing(before[i].step_scores, i, name, steps)
    try:
        yield steps
    finally:
        trainer.reward_funcs[:] = before


def _summing(step_scores: Callable[..., list[list[float]]], i: int, name: str, steps: StepScores) -> Callable[..., Any]:
    def score(**columns: Any) -> list[float | None]:
        found = [list(map(float, row)) for row in step_scores(**columns)]
        if len(found) != len(columns["completions"]):
            message = f"step_scores of reward '{name}' gave {len(found)} lists"
            raise InputError(f"{message}, expected one for each of {len(columns['completions'])} completions")
        steps[i] = found
        return [sum(row) for row in found]

    return score


def step_end_tokens(tokenizer: Any, ids: Sequence[int], separator: str) -> list[int]:
    """Return the index of the token with which each step ends.

    Args:
        tokenizer: of the policy.
        ids: one completion, without padding.
        separator: what ends a step.

    Returns:
        As many indices as the completion has steps; a token that spans two steps ends the first.
    """

    # Drawn tokens have no offsets, and to tokenize the text again may give others. But a longer start of them never
    # decodes to a shorter text, so the first that reaches a step's end is found by bisection.
    def length(last: int) -> int:
        return len(tokenizer.decode(ids[: last + 1], skip_special_tokens=True))

    ends = step_ends(tokenizer.decode(ids, skip_special_tokens=True), separator)
    return [min(bisect_left(range(len(ids)), end, key=length), len(ids) - 1) for end in ends]


def place(
    trainer: Any, steps: StepScores, ids: Sequence[Sequence[int]], separator: str
) -> dict[int, list[list[float]]]:
    """Put the scores of each reward at the tokens of each completion.

    Raises:
        InputError: no completion has as many steps as it has scores, so the separator is another.
    """
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    ends = [step_end_tokens(tokenizer, row, separator) for row in ids]
    placed = {
        i: [_row(s, e, len(row)) for s, e, row in zip(scores, ends, ids, strict=True)] for i, scores in steps.items()
    }
    pairs = [(len(s), len(e)) for scores in steps.values() for s, e in zip(scores, ends, strict=True)]
    if pairs:
        compat.add_metric(trainer, "steps/mismatch", sum(s != e for s, e in pairs) / len(pairs))
    if any(s for s, _ in pairs) and all(s > e for s, e in pairs if s):
        most = max(pairs)
        raise InputError(
            f"process rewards give more scores than there are steps, in every completion: {most[0]} for {most[1]}",
            hint=f"set step_separator to what ends a step for the reward; it is {separator!r}",
        )
    return placed


def _row(scores: Sequence[float], ends: Sequence[int], length: int) -> list[float]:
    row = [0.0] * length
    for k, score in enumerate(scores if ends else ()):
        row[ends[min(k, len(ends) - 1)]] += score  # what is over is paid at the end, so that the sum stays
    return row


def as_tensor(rows: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Return (B, T), padded with 0 on the right."""
    tensor = torch.zeros_like(like)
    for i, row in enumerate(rows):
        tensor[i, : len(row)] = torch.tensor(row, dtype=like.dtype, device=like.device)
    return tensor
