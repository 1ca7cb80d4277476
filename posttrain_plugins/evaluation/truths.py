"""What a reward that knows the answers says of the questions that people are asked. No paper."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain_plugins.decisions.gold import can_be_gold, is_chosen
from posttrain_plugins.decisions.item import Item
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.scoring import Scored, score_steps
from posttrain_plugins.evaluation.bench import problems_of, score_texts
from posttrain_plugins.text import to_text
from posttrain_plugins.types import ResolvedReward, SamplingParams

__all__ = ["truths_of"]


def truths_of(
    items: Sequence[Item], reward: ResolvedReward, share: float, threshold: float = 0.5
) -> dict[str, list[bool]]:
    """Choose items that measure annotators, and tell what is right of each.

    Args:
        items: of one mode.
        reward: is given the other columns of their rows; of `first_wrong` it needs `step_scores`.
        share: of the items, in [0, 1]; those on which nobody could be wrong are left out.
        threshold: right is a completion, or a step, with this score or more.

    Returns:
        Item -> for each completion, or each step, whether it is right.

    Raises:
        InputError: the reward cannot judge steps.
    """
    chosen = [item for item in items if is_chosen(item.id, share)]
    problems, columns = problems_of([{"prompt": item.prompt, **item.row} for item in chosen], SamplingParams())
    texts = [[to_text(completion) for completion in item.completions] for item in chosen]
    scores: list[list[float | None]]
    if any(item.mode == "first_wrong" for item in chosen):
        rows = [{name: values[i] for name, values in columns.items()} for i in range(len(chosen))]
        asked = [
            Scored(problem.id, problem.prompt, of_item[0], row, item.steps)
            for problem, of_item, row, item in zip(problems, texts, rows, chosen, strict=True)
        ]
        scores = [list(of_item) for of_item in score_steps(reward, asked, RequestLog())]
    else:
        scores = score_texts(reward, problems, columns, texts, RequestLog())
    truths = {}
    for item, found in zip(chosen, scores, strict=True):
        known = [None if value is None else value >= threshold for value in found]
        # a reward that counts other steps than the page shows says nothing of these
        if can_be_gold(item, known) and len(known) == len(item.steps or item.completions):
            truths[item.id] = [bool(value) for value in known]
    return truths
