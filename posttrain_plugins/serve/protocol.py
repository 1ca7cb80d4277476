"""Requests in OpenAI's protocol, read and checked by hand: what changes a result is obeyed or refused, never ignored.

Reference: https://platform.openai.com/docs/api-reference/chat.

1. A last message of role `assistant` is gone on from (a prefill), and the answer holds only what is new.
2. `max_tokens` is 1024 unless told, for text completions too, where OpenAI has 16.
3. Two more fields: `trace` (the answer brings every request that a strategy made), `budget` (`{"tokens": 500}`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.serve.fields import ApiError, flag, integer, number, refused, shown
from posttrain_plugins.serve.messages import read_messages, read_tools
from posttrain_plugins.types import Budget, Prompt, SamplingParams

__all__ = ["Call", "Limits", "capped", "read_body", "read_chat", "read_completion"]

MAX_STOPS = 16

COMMON = {
    "model", "stream", "stream_options", "n", "temperature", "top_p", "max_tokens", "stop", "seed", "logprobs",
    "trace", "budget",
}  # fmt: skip
CHAT = COMMON | {"messages", "max_completion_tokens", "tools", "tool_choice", "top_logprobs"}
COMPLETION = COMMON | {"prompt"}

IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
}  # fmt: skip
"""Fields that do not change what is answered."""

NEUTRAL: dict[str, list[Any]] = {
    "audio": [],
    "best_of": [1],
    "echo": [False],
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
class Limits:
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
class Call:
    """What a client asks.

    Args:
        model: as the client names it, `NAME` or `NAME@STRATEGY`.
        params: how completions are drawn.
        prompts: one for a chat; one or more for text completions.
        n: completions of each prompt.
        tools: JSON schemas of functions that the model may call.
        seed: the same seed gives the same answer; None draws one.
        budget: the server's and the request's, the lower of each.
        is_chat: a chat, or a text completion.
        is_streamed: answered as server-sent events.
        with_usage: these end with the usage.
        with_trace: the answer brings the trace.
    """

    model: str
    params: SamplingParams
    prompts: tuple[Prompt, ...] = ()
    n: int = 1
    tools: tuple[Mapping[str, Any], ...] = ()
    seed: int | None = None
    budget: Budget = NO_BUDGET
    is_chat: bool = True
    is_streamed: bool = False
    with_usage: bool = False
    with_trace: bool = False


def read_body(raw: bytes) -> Mapping[str, Any]:
    """The JSON object of a request.

    Raises:
        ApiError: 400 for anything else.
    """
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(body, Mapping):
        raise ApiError(400, f"the body is {shown(body)}, expected a JSON object", code="invalid_json")
    return body


def read_chat(body: Mapping[str, Any], limits: Limits) -> Call:
    """`POST /v1/chat/completions`.

    Raises:
        ApiError: 400, with the field's name as `param`.
    """
    _check_names(body, CHAT)
    for name in ("tool_choice", "top_logprobs"):
        _check_neutral(name, body.get(name))
    given = [integer(body, name, 0, 1, limits.max_tokens) for name in ("max_tokens", "max_completion_tokens")]
    if all(given) and given[0] != given[1]:
        raise refused("max_completion_tokens", f"{given[1]}, while max_tokens is {given[0]}; give one of them")
    params = replace(_params(body, max(given), limits), logprobs=flag(body, "logprobs"))
    tools = read_tools(body.get("tools")) if body.get("tool_choice") != "none" else ()
    return replace(_call(body, params, limits), prompts=(read_messages(body.get("messages")),), tools=tools)


def read_completion(body: Mapping[str, Any], limits: Limits) -> Call:
    """`POST /v1/completions`.

    Raises:
        ApiError: 400, with the field's name as `param`.
    """
    _check_names(body, COMPLETION)
    if integer(body, "logprobs", 0, 0, 5):
        raise refused("logprobs", f"{body['logprobs']}, only 0 is supported: the drawn tokens' own")
    params = _params(body, integer(body, "max_tokens", 0, 1, limits.max_tokens), limits)
    params = replace(params, logprobs=body.get("logprobs") is not None)
    return replace(_call(body, params, limits), prompts=_prompts(body.get("prompt"), limits), is_chat=False)


def capped(asked: Budget, limit: Budget) -> Budget:
    """The lower of two budgets in each of their figures.

    Example:
        >>> capped(Budget(tokens=900, calls=3), Budget(tokens=500))
        Budget(tokens=500, completions=None, calls=3, seconds=None)
    """
    pairs = {f.name: (getattr(asked, f.name), getattr(limit, f.name)) for f in fields(Budget)}
    known = {name: [value for value in pair if value is not None] for name, pair in pairs.items()}
    return Budget(**{name: min(values) if values else None for name, values in known.items()})


# --- the parts of a request ------------------------------------------------------------------------------------------


def _check_names(body: Mapping[str, Any], known: set[str]) -> None:
    for name, value in body.items():
        if name in NEUTRAL and name not in known:
            _check_neutral(name, value)
        elif name not in known and name not in IGNORED:
            raise refused(name, suggest(name, sorted(known)) or "unknown field", "unknown_parameter")


def _check_neutral(name: str, value: Any) -> None:
    if value is not None and value not in NEUTRAL[name]:
        raise refused(name, f"{shown(value)} is not supported; leave it out", "unsupported_parameter")


def _call(body: Mapping[str, Any], params: SamplingParams, limits: Limits) -> Call:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise refused("model", f"{shown(model)}, expected a name of GET /v1/models")
    return Call(
        model=model,
        params=params,
        n=integer(body, "n", 1, 1, limits.max_n),
        seed=None if body.get("seed") is None else integer(body, "seed", 0, -(2**63), 2**63 - 1),
        budget=capped(_budget(body.get("budget")), limits.budget),
        is_streamed=flag(body, "stream"),
        with_usage=_wants_usage(body.get("stream_options")),
        with_trace=flag(body, "trace"),
    )


def _params(body: Mapping[str, Any], max_tokens: int, limits: Limits) -> SamplingParams:
    top_p = number(body, "top_p", 1.0, 0.0, 1.0)
    if top_p == 0.0:
        raise refused("top_p", "0, expected a number above 0 and up to 1")
    return SamplingParams(
        temperature=number(body, "temperature", 1.0, 0.0, 2.0),
        top_p=top_p,
        max_tokens=max_tokens or min(SamplingParams().max_tokens, limits.max_tokens),
        stop=_stops(body.get("stop")),
    )


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise refused("stop", f"{shown(value)}, expected a string or a list of strings, none of them empty")
    if len(stops) > MAX_STOPS:
        raise refused("stop", f"{len(stops)} strings, expected at most {MAX_STOPS}")
    return tuple(stops)


def _budget(value: Any) -> Budget:
    known = [f.name for f in fields(Budget)]
    if value is None:
        return Budget()
    if not isinstance(value, Mapping) or not set(value) <= set(known):
        raise refused("budget", f"{shown(value)}, expected an object with some of {', '.join(known)}")
    for name, limit in value.items():
        fits = isinstance(limit, int | float) if name == "seconds" else isinstance(limit, int)
        if isinstance(limit, bool) or not fits or not limit > 0:
            raise refused("budget", f"{name} is {shown(limit)}, expected a number above 0")
    return Budget(**value)


def _wants_usage(options: Any) -> bool:
    if not isinstance(options, Mapping | None):
        raise refused("stream_options", f"{shown(options)}, expected {{'include_usage': true}}")
    return flag(options or {}, "include_usage")


def _prompts(value: Any, limits: Limits) -> tuple[Prompt, ...]:
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise refused("prompt", f"{shown(value)}, expected a string or a list of strings; token ids are not supported")
    if len(prompts) > limits.max_prompts:
        raise refused("prompt", f"{len(prompts)} prompts, expected at most {limits.max_prompts}")
    return tuple(prompts)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
