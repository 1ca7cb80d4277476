"""The driver for backends that answer whole batches: waves.

In each wave it collects what **all** live problems ask for and answers it with one call per backend and one per scorer,
so a strategy that thinks about one problem is batched over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from posttrain_plugins.backends.protocol import Backend, counting
from posttrain_plugins.engine.problem_run import PendingRequest, ProblemRun
from posttrain_plugins.engine.session import Session
from posttrain_plugins.types import CallTool, Generate, Score, ScoreSteps

__all__ = ["run_waves"]


def run_waves(session: Session, runs: Sequence[ProblemRun]) -> None:
    """Let every problem come to its result."""
    while live := [run for run in runs if run.result is None]:
        session.check_in()
        # All problems are admitted before anything is answered, so that who gets the last of a total budget depends on
        # the order of the problems and not on how fast each is answered.
        waiting = [pending for run in live for pending in session.admit(run)]
        for run in live:
            session.charge_known(run)
        # Completions first: they take the time, and if that is over, scores of this wave would come too late anyway.
        _draw(session, [pending for pending in waiting if isinstance(pending.request, Generate)])
        if session.total.is_spent() != "seconds":
            to_score = [pending for pending in waiting if isinstance(pending.request, Score | ScoreSteps)]
            for call in session.score_calls(to_score):
                call.run()
            for pending in to_score:
                session.land_scores(pending)
            for pending in waiting:
                if isinstance(pending.request, CallTool):
                    session.land_tool(pending, session.call_tool(pending))
        for run in live:
            session.settle(run)
    session.check_in()


def _draw(session: Session, waiting: Sequence[PendingRequest]) -> None:
    """Call each backend once; each completion is logged as it comes."""
    by_backend: dict[int, list[PendingRequest]] = {}
    for pending in waiting:  # by the object: two roles may share one, which then has them in one batch
        by_backend.setdefault(id(session.backend(pending.request.model)), []).append(pending)
    for mine in by_backend.values():
        if session.total.is_spent():
            return
        backend = cast(Backend, session.backend(mine[0].request.model))
        batch, seeds = zip(*map(session.order, mine), strict=True)

        def drew(count: int) -> None:
            session.tokens += count
            session.check_in()

        with counting(backend, drew):
            for i, j, completion in backend.generate(batch, seeds):
                session.land(mine[i], j, completion)
                session.check_in()
                if session.total.is_spent():  # leaving the loop closes the backend's generator: it draws no more
                    return
        for pending in mine:
            session.land_missing(pending)
