"""How finished paths become a result, and what a strategy's fields may hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, Literal, NoReturn, TypeAlias, get_args, get_origin, get_type_hints

from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.search.expansion import Path, best_first, rank
from posttrain_plugins.text.answers import equivalent, extract, majority
from posttrain_plugins.types import Candidate, Result

__all__ = ["Select", "check_fields", "refuse", "settle", "until_spent"]

Select: TypeAlias = Literal["best", "weighted_vote", "majority"]
"""How finished paths become an answer."""


@contextmanager
def until_spent(found: Sequence[Path]) -> Iterator[None]:
    """Where the budget ends a search that has finished paths, these are its result; else the engine knows better."""
    try:
        yield
    except BudgetExhausted:
        if not any(path.ended for path in found):
            raise


def settle(paths: Sequence[Path], select: Select, weights: Sequence[float] | None = None) -> Result:
    """The result of a search.

    Args:
        paths: the ended ones are the candidates; where none has ended, the best of the others is the only one.
        select: `best` takes the best score, and a path without an answer only where none has one. A vote decides among
            the answers, and takes the best of the paths that have the winning one.
        weights: what each path's vote counts; by default its score, through a sigmoid where one of them is negative.
    """
    given = [None] * len(paths) if weights is None else weights
    voters = [(path, weight) for path, weight in zip(paths, given, strict=True) if path.ended]
    if not voters:
        voters = [(path, 1.0) for path in best_first(path for path in paths if path.text)[:1]]
    if not voters:
        return Result(answer=None, text="")
    among = [_candidate(path) for path, _ in voters]
    winner = None if select == "best" else _voted(among, [weight for _, weight in voters], select)
    eligible = [i for i in range(len(among)) if winner is None or _agree(among[i].answer, among[winner].answer)]
    index = max(eligible, key=lambda i: (among[i].answer is not None, rank(voters[i][0])))
    return Result(answer=among[index].answer, text=among[index].text, candidates=among)


def _agree(a: Any, b: Any) -> bool:
    return a is not None and equivalent(str(a), str(b))


def _candidate(path: Path) -> Candidate:
    return Candidate(path.text, extract(path.text), path.score, list(path.step_scores), path.ended or "length")


def _voted(among: Sequence[Candidate], weights: Sequence[float | None], select: Select) -> int | None:
    """The first of the winning class; where the weights of the answers say nothing, each counts one."""
    answers = [candidate.answer for candidate in among]
    votes = _weights([c.score for c in among]) if None in weights else [weight or 0.0 for weight in weights]
    is_told = any(vote for vote, answer in zip(votes, answers, strict=True) if answer is not None)
    return majority(answers, votes if select == "weighted_vote" and is_told else None)


def _weights(scores: Sequence[float | None]) -> list[float]:
    is_logit = any(score is not None and score < 0 for score in scores)
    return [0.0 if s is None or math.isnan(s) else (1 + math.tanh(s / 2)) / 2 if is_logit else s for s in scores]


def check_fields(name: str, plugin: Any, *counts: str) -> None:
    """Raise where a field holds a word that its `Literal` lacks, a count is below one, or a separator is empty.

    Raises:
        InputError: for the first of them.
    """
    hints = get_type_hints(type(plugin))
    for field in fields(plugin):
        value, hint = getattr(plugin, field.name), hints[field.name]
        if get_origin(hint) is Literal and value not in get_args(hint):
            refuse(name, field.name, value, " or ".join(map(repr, get_args(hint))))
        if field.name in counts and value is not None and value < 1:
            refuse(name, field.name, value, "at least 1")
        if field.name == "separator" and not value:
            refuse(name, field.name, value, "what ends a step")


def refuse(name: str, field: str, value: Any, expected: str) -> NoReturn:
    """Raise the error of a field that cannot be used."""
    raise InputError(f"{name} cannot use {field}: {value!r}, expected {expected}", hint=f"change {field}")
