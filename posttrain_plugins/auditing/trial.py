"""A reward tried by hand: on its own examples, on a data set's references, and on what no one wants to see rewarded."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain_plugins.auditing.scoring import scores_of
from posttrain_plugins.errors import InputError, PluginBroken
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.text import is_conversational, to_text
from posttrain_plugins.types import ResolvedReward

__all__ = ["REFERENCES", "Tried", "on_data", "on_examples", "stress"]

REFERENCES = ("completion", "chosen", "solution", "answer")
"""Columns that may hold what a good completion says, the first that is there."""

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Tried:
    """One completion and what came of it.

    Args:
        name: what it is.
        completion: its text.
        score: what it got; None where the reward cannot judge.
        expected: what it should get: a number, `none` (it cannot be judged) or a bound in words; None where nothing is
            asked.
        problem: what is wrong; `""` where nothing is.
        seconds: what scoring it took.
    """

    name: str
    completion: str
    score: float | None
    expected: float | str | None = None
    problem: str = ""
    seconds: float = 0.0


def on_examples(reward: ResolvedReward) -> list[Tried]:
    """Its own `examples`, each against the `score` beside it.

    Raises:
        InputError: it declares none.
    """
    return [_against(row, reward) for row in _examples(reward)]


def on_data(reward: ResolvedReward, rows: Sequence[Mapping[str, Any]]) -> list[Tried]:
    """Each row's reference as its completion, and another row's: the first must score higher.

    Args:
        reward: needs columns that the rows have.
        rows: with `prompt` and one of `REFERENCES`.

    Raises:
        InputError: no column holds a prompt, or a reference.
    """
    column = next((name for name in REFERENCES if rows and name in rows[0]), None)
    if column is None:
        names = ", ".join(rows[0]) if rows else "no rows"
        raise InputError(f"the data has no reference, it has {names}", hint=f"rename one to {', '.join(REFERENCES)}")
    if "prompt" not in rows[0]:
        raise InputError(f"the data has no 'prompt', it has {', '.join(rows[0])}", hint="rename that column to prompt")
    others = [_different(rows, i, column) for i in range(len(rows))]
    own = scores_of(reward, [_as_row(row, row[column]) for row in rows])
    foreign = scores_of(reward, [_as_row(row, other) for row, other in zip(rows, others, strict=True)])
    return [_compared(i, row[column], *pair) for i, (row, *pair) in enumerate(zip(rows, own, foreign, strict=True), 1)]


def stress(reward: ResolvedReward) -> list[Tried]:
    """Texts that a policy writes early and a clever one later: none may raise, be no number, or beat a good example.

    A reward that reads the reference answer must give them less than its best example, any other no more. One without
    examples is only called: nothing is asked of its scores but that they are finite.
    """
    from posttrain_plugins.testing.rewards import SPAM

    rows = declared(reward.func, "examples")
    good = max(rows, key=lambda row: -math.inf if row.get("score") is None else row["score"], default=None)
    like = dict(good) if good else {"prompt": "2+2=?", "completion": "4"}
    best = _against({**like, "name": "the best example"}, reward) if good else None
    texts = {**SPAM, "prompt echo": to_text(like["prompt"]), "answer list": " ".join(map(str, range(100)))}
    texts["many answers"] = "".join(f"<answer>{i}</answer>" for i in range(10))
    texts["the good one, fifty times"] = to_text(like["completion"]) * 50
    found = [_one(name, {**like, "completion": text}, reward) for name, text in texts.items()]
    bound = best.score if best else None
    return [*([best] if best else []), *(_bounded(tried, bound, reward.is_oracle) for tried in found)]


def _examples(reward: ResolvedReward) -> Sequence[Mapping[str, Any]]:
    rows: Sequence[Mapping[str, Any]] = declared(reward.func, "examples")
    if not rows:
        raise InputError(
            f"reward '{reward.name}' has no examples",
            hint='examples = ({"prompt": ..., "completion": ..., "score": 1.0}, ...), a good one and a bad one',
        )
    return rows


def _against(row: Mapping[str, Any], reward: ResolvedReward) -> Tried:
    tried = _one(str(row.get("name", "")), row, reward)
    if "score" not in row or tried.problem:
        return tried
    wanted = row["score"]
    is_equal = tried.score == wanted if None in (tried.score, wanted) else abs(tried.score - wanted) <= TOLERANCE
    return Tried(
        tried.name,
        tried.completion,
        tried.score,
        "none" if wanted is None else wanted,
        "" if is_equal else "another score than its example says",
        tried.seconds,
    )


def _one(name: str, row: Mapping[str, Any], reward: ResolvedReward) -> Tried:
    text = to_text(row["completion"])
    given = {key: value for key, value in row.items() if key not in ("score", "name")}
    began = time.perf_counter()
    try:
        (score,) = scores_of(reward, [given])
    except PluginBroken as broken:
        cause = broken.__cause__
        return Tried(name, text, None, problem=f"raises {type(cause).__name__}: {cause}" if cause else broken.message)
    problem = "is no finite number" if score is not None and not math.isfinite(score) else ""
    return Tried(name, text, score, problem=problem, seconds=time.perf_counter() - began)


def _bounded(tried: Tried, best: float | None, strictly: bool) -> Tried:
    """The same, with the bound that it must keep; fifty good answers may be as good as one."""
    if best is None or tried.score is None or tried.problem:
        return tried
    strictly = strictly and not tried.name.startswith("the good one")
    is_fooled = tried.score >= best if strictly else tried.score > best
    bound = f"{'<' if strictly else '<='} {best:g}"
    problem = f"pays {'as much as' if strictly else 'more than'} a good answer" if is_fooled else ""
    return Tried(tried.name, tried.completion, tried.score, bound, problem, tried.seconds)


def _as_row(row: Mapping[str, Any], reference: Any) -> dict[str, Any]:
    """The row with a reference as its completion, in the format of its prompt."""
    text = to_text(reference) if not isinstance(reference, int | float) else str(reference)
    completion = [{"role": "assistant", "content": text}] if is_conversational(row["prompt"]) else text
    return {**row, "completion": completion}


def _different(rows: Sequence[Mapping[str, Any]], i: int, column: str) -> Any:
    """The next row's reference that is not this one's; an empty one where all are alike."""
    others: Iterator[Any] = (rows[(i + k) % len(rows)][column] for k in range(1, len(rows)))
    return next((other for other in others if other != rows[i][column]), "")


def _compared(number: int, reference: Any, own: float | None, foreign: float | None) -> Tried:
    name, text = f"row {number}", to_text(reference) if not isinstance(reference, int | float) else str(reference)
    if own is None:
        return Tried(name, text, own, None, "cannot judge its own reference")
    if foreign is None:
        return Tried(name, text, own)
    return Tried(name, text, own, f"> {foreign:g}", "" if own > foreign else "another row's reference scores as much")
