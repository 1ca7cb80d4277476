"""The driver for backends that answer whole batches: waves.

In each wave it collects what **all** live problems ask for and answers it with one call per backend and one per scorer,
so a strategy that thinks about one problem is batched over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from posttrain_plugins.backends.protocol import Backend
from posttrain_plugins.engine.problem_run import Ask, Live
from posttrain_plugins.engine.session import Session
from posttrain_plugins.types import CallTool, Generate, Score, ScoreSteps

__all__ = ["run_waves"]


def run_waves(session: Session, lives: Sequence[Live]) -> None:
    """Let every problem come to its result."""
    while live := [one for one in lives if one.result is None]:
        session.check_in()
        asks = [ask for one in live for ask in session.admit(one)]
        for one in live:
            session.charge_known(one)
        _draw(session, [ask for ask in asks if isinstance(ask.request, Generate)])
        if session.total.is_spent() != "seconds":
            _score(session, [ask for ask in asks if isinstance(ask.request, Score | ScoreSteps)])
            _call_tools(session, [ask for ask in asks if isinstance(ask.request, CallTool)])
        for one in live:
            session.settle(one)
    session.check_in()


def _draw(session: Session, asks: Sequence[Ask]) -> None:
    """One call for each backend; each completion is logged as it comes."""
    of: dict[int, list[Ask]] = {}
    for ask in asks:
        of.setdefault(id(session.backend(ask.request.model)), []).append(ask)
    for mine in of.values():
        if session.total.is_spent():
            return
        backend = cast(Backend, session.backend(mine[0].request.model))
        batch, seeds = zip(*map(session.order, mine), strict=True)
        for i, j, completion in backend.generate(batch, seeds):
            session.land(mine[i], j, completion)
            session.check_in()
            if session.total.is_spent():
                return
        for ask in mine:
            session.land_missing(ask)


def _score(session: Session, asks: Sequence[Ask]) -> None:
    for call in session.score_calls(asks):
        call.run()
    for ask in asks:
        session.land_scores(ask)


def _call_tools(session: Session, asks: Sequence[Ask]) -> None:
    for ask in asks:
        session.land_tool(ask, session.call_tool(ask))
