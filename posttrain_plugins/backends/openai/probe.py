"""Finds out what a server really does: few short requests, each compared with what a true answer must look like.

Servers differ in silence. Some ignore `n` and send one completion; some decode greedily whatever the temperature, and
then self-consistency agrees with itself perfectly; some keep one global seed, which holds only while nobody else asks;
some close an assistant message that was to be continued. Nothing here goes by a server's name or version. No paper.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.types import Completion, Generate, Prompt, SamplingParams

__all__ = ["Draw", "Finding", "RouteProfile", "probe"]

MAX_TOKENS = 16
REASONING_MAX_TOKENS = 1024  # where the first ones are thoughts that the server keeps to itself
TOOL_MAX_TOKENS = 128
DRAWS = 4
QUESTION = "Write a random number of twenty digits."
PREFILL = "One two three four"  # ends in a letter, so that a line break after it is a token of its own
NONE_CAME = "asked for, but none came"
TOOL_QUESTION = "What is the weather in Paris? Use the tool."
TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CONTINUE: Mapping[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
"""How vLLM and SGLang are told to go on from a last message of role `assistant`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried."""

    name: str
    is_there: bool
    how: str

    def __str__(self) -> str:
        return f"{self.name:<12} {'yes' if self.is_there else 'no':<4} {self.how}"


@dataclass(frozen=True, slots=True)
class RouteProfile:
    """What one route of a server can do, and how it wants to be asked.

    Args:
        capabilities: see `Capabilities`.
        limit_field: what it calls the most completion tokens.
        seed_field: what it calls the seed; empty where it takes none.
        needs_config: it samples only where a `generation_config` says so (`transformers serve`).
        prefill_fields: sent along with a last message of role `assistant`.
        counts_all: its `usage` counts all completions of a request; where not, they are counted by their
            log-probabilities, which every request with `n` then asks for.
        findings: all that was tried.
    """

    capabilities: Capabilities
    limit_field: str = "max_tokens"
    seed_field: str = "seed"
    needs_config: bool = False
    prefill_fields: Mapping[str, Any] = field(default_factory=dict)
    counts_all: bool = True
    findings: tuple[Finding, ...] = ()


Draw: TypeAlias = Callable[[RouteProfile, Generate, Sequence[int]], Awaitable[list[Completion]]]
"""The backend's own way of asking, so that the probe tries the very requests that a run will send."""


async def probe(draw: Draw, start: RouteProfile, is_chat: bool) -> tuple[RouteProfile, Completion]:
    """Try a route, in the order in which one answer is needed to ask the next question.

    Args:
        draw: asks the server as a `RouteProfile` says; failures come back as completions.
        start: what to begin from.
        is_chat: the route takes messages, not text.

    Returns:
        What was found, and the answer to the plainest request: where that failed, nothing else was tried.
    """
    trial = _Trial(draw, [{"role": "user", "content": QUESTION}] if is_chat else QUESTION)
    found, plain = await trial.plain(start)
    if plain.error is not None:
        return found, plain
    found, sampling = await trial.sampling(await trial.seed_field(found), plain)
    fields, prefill = await trial.prefill(found)
    tried = await asyncio.gather(
        trial.n(found), trial.logprobs(found), trial.top_logprobs(found), trial.stop(found, plain), trial.tools(found)
    )
    seed = await trial.seed(found)  # alone: a server with one global seed is disturbed by any other request
    findings = [*(finding for several in tried for finding in several), prefill, sampling, seed]
    there = {finding.name: finding.is_there for finding in findings}
    if there["n"]:
        usage, there["n"] = await trial.usage(found, has_logprobs=there["logprobs"])
        findings.append(usage)
        found = replace(found, counts_all=usage.is_there)
    capabilities = replace(found.capabilities, **there)
    return replace(found, capabilities=capabilities, prefill_fields=fields, findings=tuple(findings)), plain


@dataclass
class _Trial:
    """The questions, each answered by findings."""

    draw: Draw
    prompt: Prompt
    max_tokens: int = MAX_TOKENS

    async def plain(self, found: RouteProfile) -> tuple[RouteProfile, Completion]:
        """Ask for a greedy completion, the plainest request that there is."""
        completion = await self._one(found, self._request(temperature=0.0))
        # OpenAI's reasoning models know only the newer name of the token limit, old servers only the older one.
        if "max_tokens" in (completion.error or ""):
            found = replace(found, limit_field="max_completion_tokens")
            completion = await self._one(found, self._request(temperature=0.0))
        if completion.error is None and not completion.text.strip():
            self.max_tokens = REASONING_MAX_TOKENS
            completion = await self._one(found, self._request(temperature=0.0))
        return found, completion

    async def seed_field(self, found: RouteProfile) -> RouteProfile:
        """Find what the seed is called: some servers refuse a field that they do not know."""
        for name in ("seed", "random_seed"):
            if await self._texts(replace(found, seed_field=name), self._request(), [1]):
                return replace(found, seed_field=name)
        return replace(found, seed_field="")

    async def sampling(self, found: RouteProfile, plain: Completion) -> tuple[RouteProfile, Finding]:
        """See that draws with different seeds are not all equal: some servers decode greedily, whatever is asked."""
        if not plain.text.strip():
            return found, Finding("temperature", True, "not tried: the server shows no text")
        for temperature in (1.0, 2.0):  # a model that is very sure of its twenty digits is asked hotter
            for way in (found, replace(found, needs_config=True)):
                texts = await self._texts(way, self._request(temperature=temperature), range(1, DRAWS + 1))
                if len(texts) == DRAWS and len(set(texts)) > 1:
                    how = f"{len(set(texts))} of {DRAWS} completions differ at temperature {temperature:g}"
                    how += ", but only with a generation_config: greedy without it" if way.needs_config else ""
                    return way, Finding("temperature", True, how)
        how = "all completions of a prompt are equal, at any temperature: there is nothing to vote on or to choose"
        return found, Finding("temperature", False, how)

    async def n(self, found: RouteProfile) -> list[Finding]:
        """See that `n` completions come, and not one completion n times, which a vote would find unanimous."""
        asked = replace(found, capabilities=replace(found.capabilities, n=True))
        completions = await self.draw(asked, replace(self._request(), n=DRAWS), range(1, DRAWS + 1))
        texts = [completion.text for completion in completions if completion.error is None]
        single = "each completion is a request of its own"
        if len(texts) < DRAWS:
            return [Finding("n", False, f"{len(texts)} of {DRAWS} came: {single}")]
        if len(set(texts)) == 1 and len(set(await self._texts(found, self._request(), range(1, DRAWS + 1)))) > 1:
            return [Finding("n", False, f"one completion came {DRAWS} times: {single}")]
        return [Finding("n", True, "many completions in one request")]

    async def usage(self, found: RouteProfile, has_logprobs: bool) -> tuple[Finding, bool]:
        """See that `usage` counts all completions of a request: some count the first alone, and budgets overrun.

        Returns:
            What was found, and whether `n` can be asked for, which takes a count.
        """
        asked = replace(found, capabilities=replace(found.capabilities, n=True))
        request = replace(self._request(logprobs=has_logprobs), n=DRAWS)
        completions = [one for one in await self.draw(asked, request, range(1, DRAWS + 1)) if one.error is None]
        told = sum(completion.usage.completion_tokens for completion in completions)
        # at least: a completion that was cut has as many tokens as it may have, and any other one or more
        cut = [self.max_tokens if completion.finish_reason == "length" else 1 for completion in completions]
        written = sum(len(one.logprobs or ()) or least for one, least in zip(completions, cut, strict=True))
        if told == 0 or told >= written:  # of a server that counts nothing there is nothing to compare
            return Finding("usage", True, "counts all completions of a request"), True
        wrong = f"{told} tokens told of {written} in {len(completions)} completions of a request"
        if has_logprobs:
            return Finding("usage", False, f"{wrong}: they are counted here, by their log-probabilities"), True
        return Finding("usage", False, f"{wrong}: each completion is a request of its own"), False

    async def seed(self, found: RouteProfile) -> Finding:
        """See that equal seeds give equal completions while other requests are in flight, as in a run."""
        seeds = list(range(1, DRAWS + 1))
        texts = await self._texts(found, self._request(), seeds * 2)
        if len(texts) == 2 * DRAWS and texts[:DRAWS] == texts[DRAWS:]:
            return Finding("seed", True, "equal seeds, equal completions, also of requests in flight together")
        alone = [await self._texts(found, self._request(), [seed]) for seed in (1, 2, 1, 2)]
        if all(alone) and alone[:2] == alone[2:]:
            return Finding("seed", False, "equal seeds hold only for one request at a time, so not in a run")
        return Finding("seed", False, "equal seeds give different completions; the log still replays a run exactly")

    async def logprobs(self, found: RouteProfile) -> list[Finding]:
        """See that log-probabilities come: most servers take the field and say nothing."""
        completion = await self._one(found, self._request(logprobs=True))
        how = "of each completion token" if completion.logprobs else completion.error or NONE_CAME
        return [Finding("logprobs", bool(completion.logprobs), how)]

    async def top_logprobs(self, found: RouteProfile) -> list[Finding]:
        """See that those of the likeliest tokens come, too."""
        completion = await self._one(found, self._request(top_logprobs=2))
        how = "of the likeliest tokens, for confidences" if completion.confidences else completion.error or NONE_CAME
        return [Finding("top_logprobs", bool(completion.confidences), how)]

    async def stop(self, found: RouteProfile, plain: Completion) -> list[Finding]:
        """Stop at a character from the middle of what the greedy completion says anyway."""
        text = plain.text.strip()
        is_told = False
        if len(text) < 3:
            stops = Finding("stop", True, "not tried: the greedy completion is too short")
        else:
            # a stop string that is sure to come, and neither at the start nor at the end of what is said anyway
            stop = text[len(text) // 2]
            completion = await self._one(found, self._request(temperature=0.0, stop=(stop,)))
            is_paid = completion.usage.completion_tokens >= plain.usage.completion_tokens > 0
            how = (
                "ignored: texts are cut here, and the tokens after it are paid"
                if is_paid
                else "a completion ends at it"
            )
            is_told = completion.error is None and completion.stop_reason == stop
            stops = Finding("stop", completion.error is None, completion.error or how)
        # A search by steps has to know whether a step or the whole answer ended here.
        told = "a stop string and the end of the answer are told apart"
        return [stops, Finding("stop_reason", is_told, told if is_told else "not told: it may be the answer's end")]

    async def prefill(self, found: RouteProfile) -> tuple[Mapping[str, Any], Finding]:
        """See that a last assistant message is gone on from, by the number of prompt tokens."""
        if isinstance(self.prompt, str):
            return {}, Finding("prefill", True, "a text prompt is gone on from as it is")

        async def prompt_tokens(
            way: RouteProfile, prompt: Prompt
        ) -> int:  # 0 where the server refuses, or does not count
            request = replace(self._request(temperature=0.0, max_tokens=1), prompt=prompt)
            return (await self._one(way, request)).usage.prompt_tokens

        # The text would not tell: a model may well go on by itself. Prompt tokens do not lie: an assistant message that
        # is closed and followed by a new turn costs more of them than one that is left open.
        begun = [*self.prompt, {"role": "assistant", "content": PREFILL}]
        asked = await prompt_tokens(replace(found, prefill_fields=CONTINUE), begun)
        plainly = await prompt_tokens(found, begun)
        if asked and (asked < plainly or not plainly):
            return CONTINUE, Finding("prefill", True, f"with {' and '.join(CONTINUE)}")
        once, twice = [
            await prompt_tokens(found, [{"role": "user", "content": text}])
            for text in (PREFILL, f"{PREFILL}\n{PREFILL}")
        ]
        alone = await prompt_tokens(found, self.prompt)
        if plainly and plainly - alone == twice - once - 1:  # its own tokens, none of a template; 1 is the line break
            return {}, Finding("prefill", True, "a last assistant message is gone on from as it is")
        return {}, Finding("prefill", False, "a last assistant message is closed, or refused, or cannot be verified")

    async def tools(self, found: RouteProfile) -> list[Finding]:
        """See that the model calls a tool natively when it is told to."""
        if isinstance(self.prompt, str):
            return [Finding("tools", False, "a text prompt has none")]
        room = self._request(temperature=0.0, max_tokens=max(TOOL_MAX_TOKENS, self.max_tokens))
        request = replace(room, prompt=[{"role": "user", "content": TOOL_QUESTION}], tools=(TOOL,))
        completion = await self._one(found, request)
        is_called = bool(completion.tool_calls)
        how = "called when it was told to" if is_called else completion.error or "offered, but the model called none"
        return [Finding("tools", is_called, how)]

    # How to ask

    def _request(self, **params: Any) -> Generate:
        return Generate(self.prompt, params=SamplingParams(**{"max_tokens": self.max_tokens, **params}))

    async def _one(self, found: RouteProfile, request: Generate) -> Completion:
        (completion,) = await self.draw(found, request, [1])
        return completion

    async def _texts(self, found: RouteProfile, request: Generate, seeds: Sequence[int]) -> list[str]:
        """Return the completions, one request each, all in flight together; failed ones are left out."""
        answers = await asyncio.gather(*(self.draw(found, request, [seed]) for seed in seeds))
        return [completion.text for (completion,) in answers if completion.error is None]
