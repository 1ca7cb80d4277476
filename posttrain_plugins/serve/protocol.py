"""Requests in OpenAI's protocol, read and checked by hand: what changes a result is obeyed or refused, never ignored.

Reference: https://platform.openai.com/docs/api-reference/chat.

1. A last message of role `assistant` is gone on from (a prefill), and the answer holds only what is new.
2. `max_tokens` is 1024 unless told, for text completions too, where OpenAI has 16.
3. Text completions take prompts of token ids, `echo` and `logprobs` up to 5, as programs that measure likelihoods ask.
4. Two more fields: `trace` (the answer brings every request that a strategy made), `budget` (`{"tokens": 500}`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.serve.fields import ApiError, flag, integer, number, refused, shown, strings
from posttrain_plugins.serve.messages import read_messages, read_tools
from posttrain_plugins.types import Budget, Prompt, SamplingParams

__all__ = ["ApiRequest", "RequestLimits", "capped", "read_body", "read_chat", "read_completion"]

MAX_STOPS = 16
MAX_LOGPROBS = 5

COMMON = {
    "model", "stream", "stream_options", "n", "temperature", "top_p", "max_tokens", "stop", "seed", "logprobs",
    "trace", "budget",
}  # fmt: skip
CHAT = COMMON | {"messages", "max_completion_tokens", "tools", "tool_choice", "top_logprobs"}
COMPLETION = COMMON | {"prompt", "echo"}

IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
}  # fmt: skip
"""Fields that do not change what is answered: OpenAI's clients send them unasked."""

NEUTRAL: dict[str, list[Any]] = {
    "audio": [],
    "best_of": [1],
    "frequency_penalty": [0],
    "function_call": ["none"],
    "functions": [[]],
    "ignore_eos": [False],
    "logit_bias": [{}],
    "min_p": [0],
    "min_tokens": [0],
    "modalities": [["text"]],
    "parallel_tool_calls": [True],
    "prediction": [],
    "presence_penalty": [0],
    "reasoning_effort": [],
    "repetition_penalty": [1],
    "response_format": [{"type": "text"}],
    "suffix": [""],
    "tool_choice": ["auto", "none"],
    "top_k": [-1, 0],
    "top_logprobs": [0],
    "verbosity": ["medium"],
    "web_search_options": [],
}
"""Fields that are not supported, with the values at which they change nothing."""


NO_BUDGET = Budget()
DEFAULT_BUDGET = Budget(completions=1024)


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for.

    Args:
        max_tokens: per completion.
        max_n: completions of a plain request.
        max_prompts: prompts of one text completion request.
        max_body_bytes: of the request's JSON.
        budget: for one question, whatever its strategy; a request may only lower it.
    """

    max_tokens: int = 4096
    max_n: int = 64
    max_prompts: int = 64
    max_body_bytes: int = 2**20
    budget: Budget = DEFAULT_BUDGET


@dataclass(frozen=True)
class ApiRequest:
    """What a client asks.

    Args:
        model: as the client names it, `NAME` or `NAME@STRATEGY`.
        params: how completions are drawn.
        prompts: one for a chat; one or more for text completions.
        prompt_ids: token ids of the prompts, where the client sent these; `prompts` are then made of them.
        n: completions of each prompt.
        tools: JSON schemas of functions that the model may call.
        seed: the same seed gives the same answer; None draws one.
        budget: the server's and the request's, the lower of each.
        is_chat: a chat, or a text completion.
        is_echoed: the prompt stands before the completion, with its log-probabilities where these are asked for.
        likeliest: how many of the likeliest tokens are told at each place.
        is_streamed: answered as server-sent events.
        with_usage: these end with the usage.
        with_trace: the answer brings the trace.
    """

    model: str
    params: SamplingParams
    prompts: tuple[Prompt, ...] = ()
    prompt_ids: tuple[tuple[int, ...], ...] = ()
    n: int = 1
    tools: tuple[Mapping[str, Any], ...] = ()
    seed: int | None = None
    budget: Budget = NO_BUDGET
    is_chat: bool = True
    is_echoed: bool = False
    likeliest: int = 0
    is_streamed: bool = False
    with_usage: bool = False
    with_trace: bool = False


def read_body(raw: bytes) -> Mapping[str, Any]:
    """Read the JSON object of a request.

    Raises:
        ApiError: 400 for anything else.
    """

    def refuse_constant(name: str) -> Any:  # `NaN` and `Infinity`, which Python reads and JSON does not have
        raise ValueError(f"{name} is no JSON value")

    try:
        body = json.loads(raw, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:  # the last: brackets in brackets without end
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(body, Mapping):
        raise ApiError(400, f"the body is {shown(body)}, expected a JSON object", code="invalid_json")
    return body


def read_chat(body: Mapping[str, Any], limits: RequestLimits) -> ApiRequest:
    """Read the body of `POST /v1/chat/completions`.

    Raises:
        ApiError: 400, with the field's name as `param`.
    """
    request = _request(body, CHAT, ("max_tokens", "max_completion_tokens"), limits)  # the older and the newer name
    return replace(
        request,
        params=replace(request.params, logprobs=flag(body, "logprobs")),
        prompts=(read_messages(body.get("messages")),),
        tools=read_tools(body.get("tools")) if body.get("tool_choice") != "none" else (),
    )


def read_completion(body: Mapping[str, Any], limits: RequestLimits) -> ApiRequest:
    """Read the body of `POST /v1/completions`.

    Raises:
        ApiError: 400, with the field's name as `param`.
    """
    request = _request(body, COMPLETION, ("max_tokens",), limits)
    likeliest = integer(body, "logprobs", 0, 0, MAX_LOGPROBS)  # a number here, where a chat has true or false
    ids = _token_ids(body.get("prompt"), limits.max_prompts)
    prompts = () if ids else strings(body.get("prompt"), "prompt", limits.max_prompts, " or of token ids")
    if not (prompts or ids):
        raise refused("prompt", "[], expected at least one string")
    params = replace(request.params, logprobs=body.get("logprobs") is not None)  # 0 asks for the drawn tokens' own
    request = replace(request, is_echoed=flag(body, "echo"), likeliest=likeliest)
    return replace(request, params=params, prompts=prompts, prompt_ids=ids, is_chat=False)


def capped(asked: Budget, limit: Budget) -> Budget:
    """Return the lower of two budgets in each of their figures.

    Example:
        >>> capped(Budget(tokens=900, calls=3), Budget(tokens=500))
        Budget(tokens=500, completions=None, calls=3, seconds=None)
    """
    pairs = {f.name: (getattr(asked, f.name), getattr(limit, f.name)) for f in fields(Budget)}
    known = {name: [value for value in pair if value is not None] for name, pair in pairs.items()}
    return Budget(**{name: min(values) if values else None for name, values in known.items()})


def _request(
    body: Mapping[str, Any], known: set[str], token_fields: Sequence[str], limits: RequestLimits
) -> ApiRequest:
    """Read what chats and text completions have in common."""
    for name, value in body.items():
        if name in NEUTRAL:
            if value is not None and value not in NEUTRAL[name]:
                raise refused(name, f"{shown(value)} is not supported; leave it out", "unsupported_parameter")
        elif name not in known and name not in IGNORED:  # a misspelt field would change the answer in silence
            raise refused(name, suggest(name, sorted(known)) or "unknown field", "unknown_parameter")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise refused("model", f"{shown(model)}, expected a name of GET /v1/models")
    given = [count for name in token_fields if (count := integer(body, name, 0, 1, limits.max_tokens))]
    if len(set(given)) > 1:
        raise refused(token_fields[-1], f"{given[1]}, while {token_fields[0]} is {given[0]}; give one of them")
    top_p = number(body, "top_p", 1.0, 0.0, 1.0)
    if top_p == 0.0:
        raise refused("top_p", "0, expected a number above 0 and up to 1")
    stop = body.get("stop")
    stops = strings(stop if isinstance(stop, str) else stop or [], "stop", MAX_STOPS, ", none of them empty")
    if "" in stops:  # it would stand everywhere
        raise refused("stop", f"{shown(stop)}, expected a string or a list of strings, none of them empty")
    options = body.get("stream_options")
    if not isinstance(options, Mapping | None):
        raise refused("stream_options", f"{shown(options)}, expected {{'include_usage': true}}")
    max_tokens = given[0] if given else min(SamplingParams().max_tokens, limits.max_tokens)
    temperature = number(body, "temperature", 1.0, 0.0, 2.0)
    return ApiRequest(
        model=model,
        params=SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_tokens, stop=stops),
        n=integer(body, "n", 1, 1, limits.max_n),
        seed=None if body.get("seed") is None else integer(body, "seed", 0, -(2**63), 2**63 - 1),
        budget=capped(_budget(body.get("budget")), limits.budget),
        is_streamed=flag(body, "stream"),
        with_usage=flag(options or {}, "include_usage"),
        with_trace=flag(body, "trace"),
    )


def _token_ids(value: Any, at_most: int) -> tuple[tuple[int, ...], ...]:
    """Read one prompt of token ids or several; none where the value is something else."""

    def is_prompt(one: Any) -> bool:
        return (
            isinstance(one, list) and bool(one) and all(type(i) is int and i >= 0 for i in one)
        )  # True is an int, too

    found = [value] if is_prompt(value) else value
    if not isinstance(found, list) or not found or not all(map(is_prompt, found)):
        return ()
    if len(found) > at_most:
        raise refused("prompt", f"{len(found)} prompts, expected at most {at_most}")
    return tuple(map(tuple, found))


def _budget(value: Any) -> Budget:
    known = [f.name for f in fields(Budget)]
    if value is None:
        return Budget()
    # Checked one by one: a budget that is misread is one that nobody has.
    if not isinstance(value, Mapping) or not set(value) <= set(known):
        raise refused("budget", f"{shown(value)}, expected an object with some of {', '.join(known)}")
    for name, limit in value.items():
        fits = isinstance(limit, int | float) if name == "seconds" else isinstance(limit, int)
        if isinstance(limit, bool) or not fits or not limit > 0:
            raise refused("budget", f"{name} is {shown(limit)}, expected a number above 0")
    return Budget(**value)
