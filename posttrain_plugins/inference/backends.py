"""What answers a strategy's `Generate` requests: in process, on a server, or scripted in a test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from posttrain_plugins.types import Completion, Generate

__all__ = ["Backend", "Capabilities"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; a server's are probed, never taken from its name.

    Args:
        seed: equal requests with equal seeds give equal completions.
        prefill: goes on from a last message of role `assistant`.
        logprobs: gives the log-probability of each completion token.
        stop: ends a completion at a stop string.
    """

    seed: bool = True
    prefill: bool = True
    logprobs: bool = True
    stop: bool = True


@runtime_checkable
class Backend(Protocol):
    """Draws completions. A sample that fails is `Completion(finish_reason="error")`; an exception ends the run.

    `identity` says which model this is: it is part of every request's key, so of the noise that a completion is drawn
    with and of the log's entries. Give the same identity to the same weights, wherever they lie.
    """

    identity: str
    capabilities: Capabilities

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        """Answer a whole wave.

        Args:
            batch: the requests; each wants `n` completions.
            seeds: for each request, `n` seeds of 63 bits, one per completion.

        Yields:
            `(i, j, completion)`: completion `j` of request `i`, in any order, each as soon as it is finished, so that
            it can be logged before the rest of the wave is.
        """
        ...
