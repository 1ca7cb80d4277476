"""Any OpenAI-compatible server as a backend: vLLM, SGLang, llama.cpp, `transformers serve`, a hosted API.

1. What the server does is probed at first use (`probe.py`), never taken from its name; `describe()` tells.
2. `temperature` and `top_p` are always sent. Other sampling defaults of a server, such as vLLM's top_k from the model's
   `generation_config.json`, hold unless `extra_body` sets them, as in `extra_body={"top_k": -1}`.
3. Seeds are sent as 31 bits, which every server can read. Of a request with native `n` the first seed is sent.
4. A stop string is told from the end of the answer where the server says which (`stop_reason` of vLLM, `matched_stop`
   of SGLang) or leaves it in the text (`transformers serve`). Else `stop_reason` is None, and so is the capability:
   nothing more is asked of the server, since it has no field for it.
5. Reasoning that a server splits off stands before the text in `<think>` tags, as the model wrote it.

No paper.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from posttrain_plugins.backends.openai.format import body_of, completions_of
from posttrain_plugins.backends.openai.http import Endpoint
from posttrain_plugins.backends.openai.probe import RouteProfile, probe
from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.errors import InputError
from posttrain_plugins.nested_rewards import wait_for
from posttrain_plugins.types import Completion, Generate, Usage

__all__ = ["OpenAIBackend", "listed_model"]

CHAT, TEXT = "chat/completions", "completions"
NOTED = (
    "n",
    "usage",
    "temperature",
    "seed",
    "prefill",
    "stop_reason",
)  # what is missing of these changes what a run gives
MAX_N = 128  # OpenAI's limit on `n`; more are asked in several requests


class OpenAIBackend:
    """Draws completions from an OpenAI-compatible server: messages by `/chat/completions`, text by `/completions`.

    Args:
        model: its name on the server.
        base_url: with the version, such as `http://localhost:8000/v1`; by default `OPENAI_BASE_URL`, else OpenAI's own.
        api_key: by default `OPENAI_API_KEY`; local servers need none.
        concurrency: requests in flight at most.
        timeout_s: for one try of one request.
        max_retries: tries after the first where the server is busy, fails or cannot be reached.
        identity: which weights these are, for request keys; by default the model's name.
        should_probe: try what the server can do when it is first needed; False takes it at its word, without prefill.
        extra_body: further fields for every request; a value of None leaves one of ours out.
        on_note: called once with each line that the user should read; they stay in `notes`.

    Raises:
        InputError: at the first request, for a host that cannot be reached, a key that is refused, or an unknown model.

    Example:
        >>> from posttrain_plugins.engine.solve import solve                                   # doctest: +SKIP
        >>> backend = OpenAIBackend("Qwen/Qwen3-0.6B", "http://localhost:8000/v1")          # doctest: +SKIP
        >>> print(*backend.describe(), sep="\\n")                                            # doctest: +SKIP
        >>> solve(SelfConsistency(n=8), problems, backend=backend)                          # doctest: +SKIP
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        concurrency: int = 256,
        timeout_s: float = 600.0,
        max_retries: int = 5,
        identity: str | None = None,
        should_probe: bool = True,
        extra_body: Mapping[str, Any] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self.model = model
        self.identity = identity or model
        self.extra_body = dict(extra_body or {})
        self.should_probe = should_probe
        self.probe_usage = Usage()
        self.notes: list[str] = []
        self._on_note = on_note or (lambda _: None)
        url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        if "@" in urlsplit(url).netloc:  # it would stand in every message and in every log
            hint = "leave it out, and set OPENAI_API_KEY in the environment"
            raise InputError("the server's address holds a user or a password", hint=hint)
        key = api_key or os.environ.get("OPENAI_API_KEY")
        self._endpoint = Endpoint(url, key, concurrency=concurrency, timeout_s=timeout_s, max_retries=max_retries)
        self._found: dict[str, RouteProfile] = {}
        self._probing: dict[tuple[str, asyncio.AbstractEventLoop], asyncio.Task[RouteProfile]] = {}

    @property
    def capabilities(self) -> Capabilities:
        """What the chat route can, or the text route where there is no chat; the first look may probe."""
        return self._main().capabilities

    def describe(self) -> list[str]:
        """Return what was found, one line each."""
        head = f"{self._endpoint.base_url}, model {self.model}"
        return [head, *(str(finding) for finding in self._main().findings)]

    async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
        """See `AsyncBackend.agenerate`."""
        route = TEXT if isinstance(request.prompt, str) else CHAT
        found = self._found.get(route)
        if found is None:
            # All requests of an event loop that come before the finding wait for the same probe; another loop, in
            # another thread, makes its own, since a task belongs to one loop.
            key = route, asyncio.get_running_loop()
            if key not in self._probing:
                self._probing[key] = asyncio.create_task(self._find(route))
            try:
                # shielded: one that gives up, because its time is over, must not take the others along
                found = await asyncio.shield(self._probing[key])
            finally:
                self._probing.pop(key, None)
        return await self._draw(found, request, seeds)

    async def aclose(self) -> None:
        """Close this event loop's connections. `asyncio.run` does so by itself when it ends."""
        await self._endpoint.aclose()

    # Probing

    def _main(self) -> RouteProfile:
        """Return what the chat route can, or the text route where there is no chat."""

        async def find_any() -> None:
            try:
                await self._find(CHAT)
            except InputError as chat_error:
                try:
                    await self._find(TEXT)
                except InputError:  # of a server with neither, the chat's error is the one that users know
                    raise chat_error from None

        if not self._found:
            wait_for(find_any())
        return self._found.get(CHAT) or self._found[TEXT]

    async def _find(self, route: str) -> RouteProfile:
        start = RouteProfile(Capabilities(n=not self.should_probe, tools=not self.should_probe, prefill=False))
        if not self.should_probe:
            return self._found.setdefault(route, start)

        async def draw(found: RouteProfile, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            completions = await self._draw(found, request, seeds, is_probe=True)
            # apart from what a run spends: the probe is paid once, by whichever run comes first
            self.probe_usage += sum((completion.usage for completion in completions), Usage())
            return completions

        await self._endpoint.check()  # a host that is not there is told at once, not after five tries
        found, plain = await probe(draw, start, is_chat=route == CHAT)
        if plain.error is not None:
            known = ", ".join(await self._endpoint.models()) or "none that it lists"
            message = f"{self._endpoint.base_url}/{route} refuses a plain request to {self.model!r}: {plain.error}"
            hint = f"models there: {known}; a field that it refuses is left out by extra_body={{'temperature': None}}"
            raise InputError(message, hint=hint)
        for finding in found.findings:
            is_odd = not finding.is_there or (found.needs_config and finding.name == "temperature")
            line = f"{self._endpoint.base_url}: {finding.name}: {finding.how}"
            if is_odd and finding.name in NOTED and line not in self.notes:  # both routes may find the same
                self.notes.append(line)
                self._on_note(line)
        return self._found.setdefault(route, found)

    # Drawing

    async def _draw(
        self, found: RouteProfile, request: Generate, seeds: Sequence[int], is_probe: bool = False
    ) -> list[Completion]:
        """Ask for as many completions as there are seeds, in one request or in several that are in flight together."""
        route = TEXT if isinstance(request.prompt, str) else CHAT

        async def ask(part: Sequence[int]) -> list[Completion]:
            body = {"model": self.model, **body_of(found, request, part), **self.extra_body}
            reply = await self._endpoint.post(route, {name: value for name, value in body.items() if value is not None})
            if is_probe and reply.status == 429:  # it would be found to lack whatever was asked for just then
                message = f"{self._endpoint.base_url} cannot be tried for what it can do: 429 {reply.error}"
                raise InputError(message, hint="wait for its rate limit to end, or set should_probe=False")
            return completions_of(reply, request.params, len(part), found.counts_all)

        size = MAX_N if found.capabilities.n else 1
        parts = [seeds[at : at + size] for at in range(0, len(seeds), size)]
        if len(parts) == 1:  # without the task that `gather` makes of each
            return await ask(parts[0])
        return [completion for answer in await asyncio.gather(*map(ask, parts)) for completion in answer]


def listed_model(base_url: str, api_key: str | None = None, wanted: str = "") -> str:
    """Return the name by which a server knows a model: the wanted one where it lists that, else the only one it lists.

    Raises:
        InputError: it lists none, or several, of which one has to be named; or it cannot be reached.
    """
    endpoint = Endpoint(
        base_url, api_key or os.environ.get("OPENAI_API_KEY"), concurrency=1, timeout_s=30.0, max_retries=1
    )

    async def ask() -> list[str]:
        try:
            await endpoint.check()
            return await endpoint.models()
        finally:
            await endpoint.aclose()

    listed = wait_for(ask())
    if wanted in listed:
        return wanted
    if len(listed) != 1:
        found = f"it lists {', '.join(listed)}" if listed else "it lists none"
        raise InputError(
            f"no model is named for the server {base_url}: {found}", hint=f"model=..., or {base_url}#MODEL"
        )
    return str(listed[0])
