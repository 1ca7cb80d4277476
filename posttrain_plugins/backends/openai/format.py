"""OpenAI's JSON: a request as the body that a server is sent, an answer as completions. No paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_plugins.backends.openai.http import Reply
from posttrain_plugins.backends.openai.probe import Found
from posttrain_plugins.text.actions import read_object
from posttrain_plugins.types import Completion, Generate, SamplingParams, Usage

__all__ = ["body_of", "completions_of"]

SEED_BITS = 31
FINISH = {"length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}
FILTERED = {"content_filter", "abort", "error"}


def body_of(found: Found, request: Generate, seeds: Sequence[int]) -> dict[str, Any]:
    """The fields that ask for as many completions as there are seeds, as the server wants to be asked."""
    params = request.params
    body = _prompt_fields(found, request)
    body |= {found.limit_field: params.max_tokens, "temperature": params.temperature, "top_p": params.top_p}
    if len(seeds) > 1:
        body["n"] = len(seeds)
    if params.stop:
        body["stop"] = list(params.stop)
    if params.temperature > 0 and found.seed_field:
        body[found.seed_field] = seeds[0] % 2**SEED_BITS
    if params.temperature > 0 and found.needs_config:
        body["generation_config"] = _generation_config(params)
    if params.logprobs or params.top_logprobs:
        body |= _logprob_fields(params, is_text=isinstance(request.prompt, str))
    return body


def completions_of(reply: Reply, params: SamplingParams, n: int) -> list[Completion]:
    """`n` completions; what the server failed to send are failed samples."""
    choices = reply.payload.get("choices")
    if reply.error is not None:
        return _failures(f"HTTP {reply.status}: {reply.error}" if reply.status else reply.error, n)
    if not isinstance(choices, list):
        return _failures(f"the answer has no list of choices: {str(reply.payload)[:200]}", n)
    completions = [_read(choice, params) for choice in choices[:n]]
    _share(completions, reply.payload.get("usage") or {})
    return completions + _failures(f"the server sent {len(completions)} of {n} completions", n - len(completions))


def _prompt_fields(found: Found, request: Generate) -> dict[str, Any]:
    if isinstance(request.prompt, str):
        return {"prompt": request.prompt}
    fields: dict[str, Any] = {"messages": [_message(message) for message in request.prompt]}
    if request.prompt[-1]["role"] == "assistant":
        fields |= found.prefill_fields
    if request.tools:
        fields["tools"] = [
            tool if "function" in tool else {"type": "function", "function": tool} for tool in request.tools
        ]
    return fields


def _message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write the arguments of tool calls as JSON text: OpenAI refuses the objects that chat templates want."""
    calls = [{**call, "function": dict(call.get("function") or call)} for call in message.get("tool_calls") or ()]
    for call in calls:
        if not isinstance(call["function"].get("arguments"), str):
            call["function"]["arguments"] = json.dumps(call["function"].get("arguments") or {}, ensure_ascii=False)
    return {**message, "tool_calls": calls} if calls else message


def _logprob_fields(params: SamplingParams, is_text: bool) -> dict[str, Any]:
    if is_text:
        return {"logprobs": max(params.top_logprobs, 1)}
    return {"logprobs": True} | ({"top_logprobs": params.top_logprobs} if params.top_logprobs else {})


def _generation_config(params: SamplingParams) -> str:
    """`top_k=0` because transformers' own default is 50."""
    return json.dumps({"do_sample": True, "temperature": params.temperature, "top_p": params.top_p, "top_k": 0})


def _read(choice: Any, params: SamplingParams) -> Completion:
    try:
        return _completion(choice, params)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return _failed(f"a choice is not as expected: {type(error).__name__}: {error}")


def _completion(choice: Mapping[str, Any], params: SamplingParams) -> Completion:
    reason, message = str(choice.get("finish_reason")), choice.get("message")
    text = str(choice.get("text") or "") if message is None else _text(message)
    text, stop_reason = _cut(text, params.stop, choice.get("stop_reason") or choice.get("matched_stop"))
    if reason in FILTERED:
        return _failed(f"the server ended the completion: {reason}", text)
    calls = [_tool_call(call) for call in (message or {}).get("tool_calls") or ()]
    logprobs, top = _logprobs(choice["logprobs"]) if choice.get("logprobs") else (None, [])
    finish: Any = "tool_calls" if calls else FINISH.get(reason, "stop")
    return Completion(
        text=text,
        finish_reason="stop" if stop_reason is not None else finish,
        logprobs=logprobs if params.logprobs else None,
        confidences=[_confidence(of, params.top_logprobs) for of in top] if params.top_logprobs and top else None,
        stop_reason=stop_reason,
        tool_calls=calls or None,
    )


def _text(message: Mapping[str, Any]) -> str:
    text = str(message.get("content") or "")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return f"<think>\n{reasoning}\n</think>\n\n{text}" if reasoning else text


def _cut(text: str, stops: Sequence[str], told: Any) -> tuple[str, str | None]:
    """The text before the first stop string, and that string: found in the text, else as the server tells."""
    if not stops:
        return text, None
    found = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        at, stop = min(found)
        return text[:at], stop
    return text, told if told in stops else None


def _logprobs(given: Mapping[str, Any]) -> tuple[list[float] | None, list[list[float]]]:
    """Of each token, and of the likeliest at its place; chat has a list of objects, completions parallel lists."""
    if given.get("content") is not None:
        tokens = given["content"]
        top = [[float(other["logprob"]) for other in token.get("top_logprobs") or ()] for token in tokens]
        return [float(token["logprob"]) for token in tokens], top if all(top) else []
    if given.get("token_logprobs") is not None:
        likeliest = given.get("top_logprobs") or ()
        return [float(value) for value in given["token_logprobs"]], [list(of.values()) for of in likeliest]
    return None, []


def _confidence(likeliest: Sequence[float], k: int) -> float:
    top = sorted(likeliest, reverse=True)[:k]
    return -sum(top) / len(top)


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Read a call; the arguments are an object, or what the model wrote where that is none, so that it can be told."""
    function = call.get("function") or call
    given = function.get("arguments")
    arguments = read_object(given)
    return {"name": str(function.get("name") or ""), "arguments": given if arguments is None else arguments}


def _share(completions: Sequence[Completion], usage: Mapping[str, Any]) -> None:
    """The server's counters, exactly: prompt tokens stand on the first completion, completion tokens go by length."""
    weights = [len(completion.logprobs or completion.text) + 1 for completion in completions]
    total, whole, given, seen = int(usage.get("completion_tokens") or 0), sum(weights), 0, 0
    for completion, weight in zip(completions, weights, strict=True):
        seen += weight
        upto = round(total * seen / whole)
        completion.usage = Usage(completion_tokens=upto - given)
        given = upto
    if completions:
        completions[0].usage.prompt_tokens = int(usage.get("prompt_tokens") or 0)
        completions[0].usage.calls = 1


def _failed(error: str, text: str = "") -> Completion:
    return Completion(text=text, finish_reason="error", error=error)


def _failures(error: str, count: int) -> list[Completion]:
    return [_failed(error) for _ in range(count)]
