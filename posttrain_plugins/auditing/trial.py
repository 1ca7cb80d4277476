"""Tries a reward on its own examples, on a data set's references, and on completions that nobody wants rewarded."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain_plugins.auditing.scoring import scores_of
from posttrain_plugins.errors import InputError, PluginBroken
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.plugins.signature import reward_columns
from posttrain_plugins.text import is_conversational, to_text
from posttrain_plugins.text.readers import read
from posttrain_plugins.types import ResolvedReward

__all__ = ["REFERENCES", "TriedCompletion", "on_data", "on_examples", "stress"]

REFERENCES = ("completion", "chosen", "solution", "answer")
"""Columns that may hold what a good completion says; the first that is there counts."""

TOLERANCE = 1e-6  # a score that is written by hand, such as 0.6666667, is not the float of a division


@dataclass(frozen=True)
class TriedCompletion:
    """One completion and what a reward said of it.

    Args:
        name: what kind of completion it is.
        completion: its text.
        score: its score; None if the reward cannot judge.
        expected: what it should get: a number, `none` (it cannot be judged) or a bound in words; None if nothing is
            asked of it.
        problem: what is wrong; `""` if nothing is.
        note: what explains the score, such as that no answer could be read.
        seconds: how long scoring it took.
    """

    name: str
    completion: str
    score: float | None
    expected: float | str | None = None
    problem: str = ""
    note: str = ""
    seconds: float = 0.0


def on_examples(reward: ResolvedReward) -> list[TriedCompletion]:
    """Score a reward's own `examples`, each against the `score` beside it.

    Raises:
        InputError: it declares none.
    """
    rows: Sequence[Mapping[str, Any]] = declared(reward.func, "examples")
    if not rows:
        raise InputError(
            f"reward '{reward.name}' has no examples",
            hint='examples = ({"prompt": ..., "completion": ..., "score": 1.0}, ...), a good one and a bad one',
        )
    # one form for all: a reward that reads texts and fails on one of them is not asked again with messages
    shown = _as_messages if _reads_messages_alone(reward, rows[0]) else dict
    return [_against_its_score(shown(row), reward) for row in rows]


def on_data(reward: ResolvedReward, rows: Sequence[Mapping[str, Any]]) -> list[TriedCompletion]:
    """Score each row's reference as its completion, and another row's: the first must score higher.

    Args:
        reward: needs columns that the rows have.
        rows: with `prompt` and one of `REFERENCES`.

    Raises:
        InputError: no column holds a prompt, a reference, or what the reward needs.
    """
    column = next((name for name in REFERENCES if rows and name in rows[0]), None)
    if column is None:
        names = ", ".join(rows[0]) if rows else "no rows"
        raise InputError(f"the data has no reference, it has {names}", hint=f"rename one to {', '.join(REFERENCES)}")
    if "prompt" not in rows[0]:
        raise InputError(f"the data has no 'prompt', it has {', '.join(rows[0])}", hint="rename that column to prompt")
    references = [row[column] for row in rows]
    # the nearest one that is not the row's own; an empty one where all are alike
    others = [
        next((other for other in references[i + 1 :] + references[:i] if other != own), "")
        for i, own in enumerate(references)
    ]
    own_scores, other_scores = (
        scores_of(reward, [_completed(row, reference) for row, reference in zip(rows, given, strict=True)])
        for given in (references, others)
    )
    found = []
    for i, (reference, own, other) in enumerate(zip(references, own_scores, other_scores, strict=True), 1):
        text = _text(reference)
        tried = TriedCompletion(f"row {i}", text, own, note=_note(reward, text, own, rows[i - 1]["prompt"]))
        if own is None:
            tried = replace(tried, problem="cannot judge its own reference")
        elif other is not None:  # a reward may be unable to judge the wrong one: nothing to compare with
            problem = "" if own > other else "another row's reference scores as much"
            tried = replace(tried, expected=f"> {other:g}", problem=problem)
        found.append(tried)
    return found


def stress(reward: ResolvedReward) -> list[TriedCompletion]:
    """Score texts that a policy writes early and a clever one later: none may raise, be no number, or beat a good one.

    A reward that reads the reference answer must give them less than its best example, any other no more. One without
    examples is only called: nothing is asked of its scores but that they are finite.
    """
    from posttrain_plugins.testing.rewards import SPAM

    # the example that its author calls the best, scored as it is now
    rows = declared(reward.func, "examples")
    good = max(rows, key=lambda row: -math.inf if row.get("score") is None else row["score"], default=None)
    like = dict(good) if good else {"prompt": "2+2=?", "completion": "4"}
    if not good:
        like |= dict.fromkeys(reward_columns(reward.func), "4")
    shown = _as_messages if _reads_messages_alone(reward, like) else dict
    best = _against_its_score(shown({**like, "name": "the best example"}), reward) if good else None
    repeated = "the good one, fifty times"
    texts = {**SPAM, "prompt echo": to_text(like["prompt"]), "answer list": " ".join(map(str, range(100)))}
    texts["many answers"] = "".join(f"<answer>{i}</answer>" for i in range(10))
    texts[repeated] = to_text(like["completion"]) * 50
    found = [best] if best else []
    for name, text in texts.items():
        tried = _tried(name, shown({**like, "completion": text}), reward)
        if best is not None and best.score is not None and tried.score is not None and not tried.problem:
            strictly = reward.is_oracle and name != repeated  # fifty good answers may be as good as one
            is_fooled = tried.score >= best.score if strictly else tried.score > best.score
            problem = f"pays {'as much as' if strictly else 'more than'} a good answer" if is_fooled else ""
            tried = replace(tried, expected=f"{'<' if strictly else '<='} {best.score:g}", problem=problem)
        found.append(tried)
    return found


def _reads_messages_alone(reward: ResolvedReward, row: Mapping[str, Any]) -> bool:
    """Tell whether a reward takes no texts, by what it declares, else by trying an ordinary completion as both."""
    formats = declared(reward.func, "formats")
    if len(formats) == 1 or not isinstance(row["completion"], str):
        return "plain" not in formats
    return bool(_tried("", row, reward).problem) and not _tried("", _as_messages(row), reward).problem


def _as_messages(row: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(row["completion"], str):
        return dict(row)
    prompt = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
    return {**row, "prompt": prompt, "completion": [{"role": "assistant", "content": row["completion"]}]}


def _tried(name: str, row: Mapping[str, Any], reward: ResolvedReward) -> TriedCompletion:
    text = to_text(row["completion"])
    given = {key: value for key, value in row.items() if key not in ("score", "name")}
    missing = [column for column in reward_columns(reward.func) if column not in given]
    if missing:
        return TriedCompletion(name, text, None, problem=f"its example lacks what it needs: {', '.join(missing)}")
    began = time.perf_counter()
    try:
        (score,) = scores_of(reward, [given])  # one by one, so that one that raises costs no other its score
    except PluginBroken as broken:
        cause = broken.__cause__
        problem = f"raises {type(cause).__name__}: {cause}" if cause else broken.message
        return TriedCompletion(name, text, None, problem=problem)
    problem = "is no finite number" if score is not None and not math.isfinite(score) else ""
    seconds = time.perf_counter() - began
    note = _note(reward, text, score, row.get("prompt"))
    return TriedCompletion(name, text, score, problem=problem, note=note, seconds=seconds)


def _note(reward: ResolvedReward, text: str, score: float | None, prompt: Any) -> str:
    """Say that no answer was read: 0.0 for that and for a wrong answer have other cures."""
    reader = getattr(reward.func, "reader", None)
    is_unread = score == 0 and isinstance(reader, str) and read(text, reader, prompt) is None
    return f"no answer read (reader: {reader})" if is_unread else ""


def _against_its_score(row: Mapping[str, Any], reward: ResolvedReward) -> TriedCompletion:
    tried = _tried(str(row.get("name", "")), row, reward)
    if "score" not in row or tried.problem:
        return tried
    wanted = row["score"]
    is_equal = tried.score == wanted if None in (tried.score, wanted) else abs(tried.score - wanted) <= TOLERANCE
    problem = "" if is_equal else "another score than its example says"
    return replace(tried, expected="none" if wanted is None else wanted, problem=problem)


def _text(reference: Any) -> str:
    return str(reference) if isinstance(reference, int | float) else to_text(reference)


def _completed(row: Mapping[str, Any], reference: Any) -> dict[str, Any]:
    """Return the row with a reference as its completion, in the format of its prompt."""
    text = _text(reference)
    completion = [{"role": "assistant", "content": text}] if is_conversational(row["prompt"]) else text
    return {**row, "completion": completion}
