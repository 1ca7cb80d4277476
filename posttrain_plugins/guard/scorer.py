"""What scores in a process of the guard's pool. It imports the plugin and what the plugin imports, nothing else of ours
but `outcome.py`: a process that was killed is replaced in the time of these imports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.guard import outcome
from posttrain_plugins.guard.outcome import ScoreMethod

__all__ = ["Scorer"]


class Scorer:
    """Scores rows one after the other, or all at once where the reward is asynchronous.

    Args:
        reward: the author's callable.
        reading: reader and thought of the stage that asks, where they are not the usual ones.
    """

    def __init__(self, reward: Callable[..., Any], reading: tuple[str, bool] | None = None) -> None:
        self.reward = reward
        if reading is not None:
            from posttrain_plugins.text import readers

            self.reading = readers.reading(*reading)
            self.reading.__enter__()  # for as long as the process lives
        self.loop: Any = None  # one for all requests: what a reward keeps open (a client's session) belongs to it

    def __call__(
        self,
        rows: list[tuple[ScoreMethod, Mapping[str, Any]]],
        timeout_s: float | None,
        reply: Callable[[int, Any], None],
    ) -> None:
        """Reply an outcome for each row, or the `InputError` of a reward that refuses to work at all."""
        if not outcome.is_async(outcome.method_of(self.reward, rows[0][0])):
            for i, (method, row) in enumerate(rows):
                try:
                    reply(i, outcome.score(self.reward, method, row))
                except InputError as error:
                    reply(i, _plain(error))
            return
        import asyncio  # a third of a process's start, where nothing is asynchronous

        async def score_one(i: int, method: ScoreMethod, row: Mapping[str, Any]) -> None:
            try:
                reply(i, await outcome.score_async(self.reward, method, row, timeout_s))
            except InputError as error:
                reply(i, _plain(error))

        async def score_all() -> None:
            await asyncio.gather(*(score_one(i, method, row) for i, (method, row) in enumerate(rows)))

        self.loop = self.loop or asyncio.new_event_loop()
        self.loop.run_until_complete(score_all())


def _plain(error: InputError) -> InputError:
    """Return it in a class that the other process knows: a plugin's own may not be there, or not pickle."""
    return InputError(error.message, error.hint)
