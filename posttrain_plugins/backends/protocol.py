"""What answers a strategy's `Generate` requests: in process, on a server, or scripted in a test.

A backend answers a whole wave in one call (`Backend`: a model in this process, which wants large batches), or one
request at a time and many of them at once (`AsyncBackend`: a server, which batches by itself). The engine runs either,
and both together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from posttrain_plugins.errors import InputError
from posttrain_plugins.types import Completion, Generate

__all__ = ["AnyBackend", "AsyncBackend", "Backend", "Capabilities", "check_request", "counting"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; a server's are probed, never taken from its name.

    A request for what is not there is refused before it is sent, where the completions would be wrong in silence:
    `prefill`, `logprobs`, `top_logprobs`, `values`, `tools`, and `stop_reason` for a search that goes step by step.

    Args:
        seed: equal requests with equal seeds give equal completions.
        prefill: goes on from a last message of role `assistant`.
        logprobs: gives the log-probability of each completion token.
        stop: ends a completion at a stop string.
        n: draws several completions of a prompt in one call of its own; where not, the backend calls several times.
        temperature: above temperature 0, completions of one prompt differ.
        top_logprobs: gives `Completion.confidences`.
        stop_reason: tells which stop string ended a completion.
        values: has a value head, and gives `Completion.value`.
        tools: the model may call functions natively (`Generate.tools`).
    """

    seed: bool = True
    prefill: bool = True
    logprobs: bool = True
    stop: bool = True
    n: bool = True
    temperature: bool = True
    top_logprobs: bool = True
    stop_reason: bool = True
    values: bool = False
    tools: bool = False


@runtime_checkable
class Backend(Protocol):
    """Draws completions. A sample that fails is `Completion(finish_reason="error")`; an exception ends the run.

    `identity` says which model this is: it is part of every request's key, so of the noise that a completion is drawn
    with and of the log's entries. Give the same identity to the same weights, wherever they lie.

    It may have `on_tokens`, None or a function. While it is one, the backend calls it with how many tokens were drawn
    since the last call, from the thread that draws: so a pace is told before the first completion is finished.

    A completion's `usage` is what it cost: sums over completions are what was spent. So the prompt tokens stand on the
    first completion of those for which the prompt was read once. `usage.calls` may say how many calls it took; a
    request none of whose completions says so counts as one.
    """

    @property
    def identity(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        """Answer a whole wave.

        Args:
            batch: the requests; each wants `n` completions.
            seeds: for each request, `n` seeds of 63 bits, one per completion.

        Yields:
            `(i, j, completion)`: completion `j` of request `i`, in any order, each as soon as it is finished, so that
            it can be logged before the rest of the wave is. One that is not yielded counts as failed.
        """
        ...


@runtime_checkable
class AsyncBackend(Protocol):
    """Draws completions for many callers at once; else as `Backend`.

    All requests that are open are put to it at the same time: it limits how many are in flight, and tries again what
    may pass. Each `solve` has an event loop of its own, so connections and semaphores belong to the loop that runs. A
    backend may have `async def aclose(self) -> None`, which is called in that loop at the end of each `solve`.
    """

    @property
    def identity(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
        """Answer one request.

        Args:
            request: it wants `n` completions.
            seeds: `n` seeds of 63 bits, one per completion.

        Returns:
            `n` completions in the order of the seeds; those that are missing count as failed.
        """
        ...


AnyBackend: TypeAlias = Backend | AsyncBackend


@contextmanager
def counting(backend: AnyBackend, drew: Callable[[int], None]) -> Iterator[None]:
    """Within, a backend that has `on_tokens` calls `drew`; what it called before is called again after."""
    before = getattr(backend, "on_tokens", None)
    if hasattr(backend, "on_tokens"):
        backend.on_tokens = drew
    try:
        yield
    finally:
        if hasattr(backend, "on_tokens"):
            backend.on_tokens = before


def check_request(request: Generate, backend: AnyBackend, asker: str) -> None:
    """See that the backend can do what a request needs, before it is sent: a server answers all the same.

    Args:
        request: what is asked for.
        backend: what would answer.
        asker: the strategy's name.

    Raises:
        InputError: where the completions would be others than those that were asked for.
    """
    for name in _needs_of(request):
        if not getattr(backend.capabilities, name):
            what, instead = _NEEDS[name]
            message = f"{asker} asks model role {request.model!r} for {what}, which its backend cannot give"
            raise InputError(f"{message}: {backend.identity} has capability {name}=False", hint=instead)


def _needs_of(request: Generate) -> Iterator[str]:
    """Yield the capabilities without which the completions would be others."""
    params, prompt = request.params, request.prompt
    if not isinstance(prompt, str) and prompt and prompt[-1].get("role") == "assistant":
        yield "prefill"
    if params.logprobs:
        yield "logprobs"
    if params.top_logprobs > 0:
        yield "top_logprobs"
    if params.values:
        yield "values"
    if request.tools:
        yield "tools"
    # Only a step's end has to be told from the answer's. Elsewhere a stop string that is not told costs nothing.
    if request.purpose == "step" and params.stop:
        yield "stop_reason"


# what is asked for, and what to do where it is not there
_NEEDS = {
    "prefill": (
        "a completion that goes on from a begun answer",
        "use a plain text prompt, a model in this process, or a server that continues a last assistant message (vLLM)",
    ),
    "logprobs": ("log-probabilities", "use a model in this process, or a server that gives logprobs (vLLM)"),
    "top_logprobs": ("confidences", "use a model in this process, or a server that gives top_logprobs (vLLM)"),
    "values": ("values of states", "use a model with a value head in this process, or a scorer instead"),
    "stop_reason": (
        "steps, whose end it must tell from the end of the answer",
        "use a model in this process, a server that tells stop_reason (vLLM), or value_guided_search",
    ),
    "tools": ("native tool calls", "let the strategy write its tool calls as text, or use a server that takes tools"),
}
