"""Calls a reward on rows `{prompt, completion, ...columns}`, in pieces, so that long work shows how far it is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError, PluginBroken
from posttrain_plugins.nested_rewards import wait_for
from posttrain_plugins.plugins.signature import reward_columns
from posttrain_plugins.types import ResolvedReward

if TYPE_CHECKING:
    from posttrain_plugins.engine.solve import Progress

__all__ = ["CHUNK", "check_columns", "scores_of"]

CHUNK = 64  # rows a call; the progress is shown between calls
# what a stage adds to its rows, and a reward never gets as a column
OURS = ("prompt", "completion", "rewards", "weighted_reward", "global_step")


def scores_of(
    reward: ResolvedReward,
    rows: Sequence[Mapping[str, Any]],
    progress: Progress = lambda done, total, unit, figures: None,
) -> list[float | None]:
    """Return what a reward says of each row; None if it cannot judge.

    Args:
        reward: any reward, also an async one.
        rows: with `prompt`, `completion`, and the columns that it needs.
        progress: is called with how many are done, of how many, of what, and further figures.

    Raises:
        InputError: a column that it needs is missing.
        PluginBroken: it raises, or does not give one float or None per completion.
    """
    check_columns(reward, rows)
    scores: list[float | None] = []
    for start in range(0, len(rows), CHUNK):
        scores += _call(reward, rows[start : start + CHUNK])
        progress(len(scores), len(rows), "completion", {})
    return scores


def check_columns(reward: ResolvedReward, rows: Sequence[Mapping[str, Any]]) -> None:
    """Check, before anything is scored, that the rows have what the reward needs.

    Raises:
        InputError: names the columns that are missing and those that are there.
    """
    there = {name for row in rows for name in row}
    missing = [name for name in reward_columns(reward.func) if name not in there]
    if missing and rows:
        found = ", ".join(sorted(there - set(OURS))) or "none"
        raise InputError(
            f"reward '{reward.name}' needs the column '{missing[0]}', the rows have {found}",
            hint="keep that column in the data set that the stage trains on",
        )


def _call(reward: ResolvedReward, rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    # rows of several stages may have columns of their own: the union, with None where a row has none
    names = dict.fromkeys(name for row in rows for name in row if name not in OURS)
    columns = {name: [row.get(name) for row in rows] for name in names}
    texts = {f"{name}s": [row[name] for row in rows] for name in ("prompt", "completion")}

    try:
        found = reward.func(**{**columns, **texts})
        values = wait_for(found) if inspect.isawaitable(found) else found
        # TRL writes None as NaN into its tensor of rewards: a reward may say either
        scores = [None if value is None or math.isnan(value) else float(value) for value in values]
    except PLUGIN_FAILURES as cause:  # the plugin boundary
        raise PluginBroken(
            f"reward '{reward.name}' failed: {type(cause).__name__}: {cause}",
            hint=f"posttrain rewards stress {reward.name!r} tries it on odd completions one by one",
        ) from cause
    if len(scores) != len(rows):
        raise PluginBroken(f"reward '{reward.name}' gave {len(scores)} scores, expected one for each of {len(rows)}")
    return scores
