"""Select the answer of a search from its finished paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

from posttrain_plugins.errors import BudgetExhausted
from posttrain_plugins.search.expansion import PartialCompletion, sort_by_score
from posttrain_plugins.text.answers import equivalent, extract, majority, sortable, vote_weights
from posttrain_plugins.types import Candidate, Result

__all__ = ["AnswerRule", "select_answer", "stop_when_spent"]

AnswerRule: TypeAlias = Literal["best", "weighted_vote", "majority"]
"""How finished paths become an answer."""


@contextmanager
def stop_when_spent(found: Sequence[PartialCompletion]) -> Iterator[None]:
    """End a search at the end of its budget, if one of the paths that it has found so far is finished.

    Args:
        found: filled or changed in place by the search, so that it holds what there is whenever the budget ends.

    Raises:
        BudgetExhausted: nothing is finished; the engine, which has seen every completion, then makes the result.
    """
    try:
        yield
    except BudgetExhausted:
        # With nothing finished the engine knows better: it has seen all completions of the problem, also those that
        # another strategy (`compute_optimal`'s pilot) drew before this search.
        if not any(path.ended for path in found):
            raise


def select_answer(
    paths: Sequence[PartialCompletion], rule: AnswerRule, weights: Sequence[float] | None = None
) -> Result:
    """Make the result of a search.

    Args:
        paths: the ended ones are the candidates; where none has ended, the best of the others is the only one.
        rule: `best` takes the best score, and a path without an answer only where none has one. A vote decides among
            the answers, and takes the best of the paths that have the winning one.
        weights: what each path's vote counts; by default its score, through a sigmoid where one of them is negative.
    """
    indices = [i for i, path in enumerate(paths) if path.ended]
    if not indices:
        paths, weights = sort_by_score(path for path in paths if path.text)[:1], None
        indices = list(range(len(paths)))
    among = [
        Candidate(p.text, extract(p.text), p.score, list(p.step_scores), p.ended or "length")
        for p in (paths[i] for i in indices)
    ]
    if not among:
        return Result(answer=None, text="")
    winner = None
    if rule != "best":
        votes = vote_weights([c.score for c in among]) if weights is None else [weights[i] for i in indices]
        # Where all weights of the answers are 0, since nothing was judged or all of it worthless, each vote counts one.
        says_something = any(vote for vote, one in zip(votes, among, strict=True) if one.answer is not None)
        is_weighted = rule == "weighted_vote" and says_something
        winner = majority([one.answer for one in among], votes if is_weighted else None)
    eligible = list(range(len(among)))
    if winner is not None:
        answer = str(among[winner].answer)
        eligible = [i for i, c in enumerate(among) if c.answer is not None and equivalent(str(c.answer), answer)]
    # `max` takes the first of equal ones, so the result does not change from run to run.
    best = max(eligible, key=lambda i: (among[i].answer is not None, sortable(paths[indices[i]].score)))
    return Result(answer=among[best].answer, text=among[best].text, candidates=among)
