"""OpenAI's JSON: a request as the body that a server is sent, an answer as completions. No paper."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_plugins.backends.openai.http import Reply
from posttrain_plugins.backends.openai.probe import RouteProfile
from posttrain_plugins.backends.transformers.stops import cut
from posttrain_plugins.text.actions import read_object
from posttrain_plugins.types import Completion, Generate, SamplingParams, Usage

__all__ = ["body_of", "completions_of"]

SEED_BITS = 31
FINISH = {"length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}
FILTERED = {"content_filter", "abort", "error"}


def body_of(found: RouteProfile, request: Generate, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the fields that ask for as many completions as there are seeds, as the server wants to be asked."""
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
        # also top_k=0, for all, because transformers' own default is 50
        config = {"do_sample": True, "temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
        body["generation_config"] = json.dumps(config)
    elif params.top_k:  # no part of OpenAI's protocol: vLLM, llama.cpp and SGLang take it, others refuse the request
        body["top_k"] = params.top_k
    wants_logprobs = params.logprobs or params.top_logprobs or (len(seeds) > 1 and not found.counts_all)
    # the two routes differ: a number of likeliest tokens for text, a flag and a number for chat
    if isinstance(request.prompt, str) and wants_logprobs:
        body["logprobs"] = max(params.top_logprobs, 1)
    elif wants_logprobs:
        body |= {"logprobs": True} | ({"top_logprobs": params.top_logprobs} if params.top_logprobs else {})
    return body


def completions_of(reply: Reply, params: SamplingParams, n: int, counts_all: bool = True) -> list[Completion]:
    """Return `n` completions; what the server failed to send are failed samples.

    Args:
        reply: what came.
        params: what was asked for.
        n: how many completions were.
        counts_all: `usage` is of all of them; where not, of several the tokens that came are counted.
    """
    if reply.error is not None:
        told = f"HTTP {reply.status}: {reply.error}" if reply.status else reply.error
        return [_failed(told) for _ in range(n)]
    completions = []
    for choice in reply.payload["choices"][:n]:
        try:
            completions.append(_completion(choice, params))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            completions.append(_failed(f"a choice is not as expected: {type(error).__name__}: {error}"))
    # The server's counters, exactly: prompt tokens stand on the first completion, completion tokens go by length, each
    # from its share of the whole: nothing is lost to rounding.
    counted = reply.payload.get("usage")
    counts = counted.items() if isinstance(counted, Mapping) else ()
    usage = {name: count for name, count in counts if isinstance(count, int | float)}
    weights = [len(completion.logprobs or completion.text) + 1 for completion in completions]
    total, given, seen = int(usage.get("completion_tokens", 0)), 0, 0
    if not counts_all and n > 1:
        total = max(total, sum(len(completion.logprobs or ()) for completion in completions))
    for completion, weight in zip(completions, weights, strict=True):
        seen += weight
        upto = round(total * seen / sum(weights))
        completion.usage = Usage(completion_tokens=upto - given)
        given = upto
        completion.logprobs = completion.logprobs if params.logprobs else None
    completions[0].usage.prompt_tokens = int(usage.get("prompt_tokens", 0))
    completions[0].usage.calls = 1
    missing = f"the server sent {len(completions)} of {n} completions"
    return completions + [_failed(missing) for _ in range(n - len(completions))]


def _prompt_fields(found: RouteProfile, request: Generate) -> dict[str, Any]:
    if isinstance(request.prompt, str):
        return {"prompt": request.prompt}
    fields: dict[str, Any] = {"messages": [_message(message) for message in request.prompt]}
    if request.prompt[-1]["role"] == "assistant":
        fields |= found.prefill_fields
    if request.tools:
        functions = [tool.get("function", tool) for tool in request.tools]
        # what a tool returns stands in transformers' schemas, and in no server's
        shown = [{name: value for name, value in one.items() if name != "return"} for one in functions]
        fields["tools"] = [{"type": "function", "function": function} for function in shown]
    return fields


def _message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write the arguments of tool calls as JSON text: OpenAI refuses the objects that chat templates want."""
    calls = [{**call, "function": dict(call.get("function") or call)} for call in message.get("tool_calls") or ()]
    for call in calls:
        if not isinstance(call["function"].get("arguments"), str):
            call["function"]["arguments"] = json.dumps(call["function"].get("arguments") or {}, ensure_ascii=False)
    return {**message, "tool_calls": calls} if calls else message


def _completion(choice: Mapping[str, Any], params: SamplingParams) -> Completion:
    reason, message = str(choice.get("finish_reason")), choice.get("message")
    if message is None:  # the text route
        thought, text = "", str(choice["text"] or "")
    else:
        thought, text = _thought_and_text(message)
    # Apart, because what stands between them is ours: a stop string may be its line breaks.
    thought, stop_in_thought = cut(thought, params.stop)
    text, stop = ("", stop_in_thought) if stop_in_thought else cut(text, params.stop)
    told = choice.get("stop_reason") or choice.get("matched_stop")
    stop = stop or (told if told in params.stop else None)
    calls = [_tool_call(call) for call in (message or {}).get("tool_calls") or ()]
    if thought:
        # Closed where something follows: a thought that was cut has no end, and nothing in it is an answer.
        text = f"<think>\n{thought}\n</think>\n\n{text}" if text or calls else f"<think>\n{thought}"
    failure = choice.get("error")
    if failure or reason in FILTERED:
        why = failure.get("message", failure) if isinstance(failure, Mapping) else failure or reason
        return _failed(f"the server ended the completion: {why}", text)
    logprobs, top = _logprobs(choice["logprobs"]) if choice.get("logprobs") else (None, [])
    likeliest = [sorted(of_token, reverse=True)[: params.top_logprobs] for of_token in top if params.top_logprobs]
    finish: Any = "tool_calls" if calls else FINISH.get(reason, "stop")
    return Completion(
        text=text,
        finish_reason="stop" if stop is not None else finish,
        logprobs=logprobs,
        confidences=[-sum(of) / len(of) for of in likeliest] if likeliest and all(likeliest) else None,
        stop_reason=stop,
        tool_calls=calls or None,
    )


def _thought_and_text(message: Mapping[str, Any]) -> tuple[str, str]:
    """Return what the model thought and what it says, of a message whose content is text, nothing, or a list of parts.

    A part of kind `text` (or `output_text`, `refusal`) is said, one of kind `thinking` or `reasoning` is thought; the
    text of a part may be a list of parts again.
    """
    thoughts = [str(message.get("reasoning_content") or message.get("reasoning") or "")]
    texts: list[str] = []

    def read(part: Any, where: list[str]) -> None:
        if isinstance(part, Mapping):
            kind = str(part.get("type", "text"))
            where = thoughts if kind in ("thinking", "reasoning") else where
            inner = next((part[name] for name in (kind, "text", "content", "summary") if part.get(name)), "")
            read(inner, where)
        elif isinstance(part, list):
            for one in part:
                read(one, where)
        elif part is not None:
            where.append(str(part))

    read(message.get("content") or message.get("refusal"), texts)
    return "".join(thoughts), "".join(texts)


def _logprobs(given: Mapping[str, Any]) -> tuple[list[float] | None, list[list[float]]]:
    """Return those of the tokens, and of the likeliest at each place.

    Chat has a list of objects, completions parallel lists.
    """
    if given.get("content") is not None:
        tokens = given["content"]
        top = [[float(other["logprob"]) for other in token.get("top_logprobs") or ()] for token in tokens]
        return [float(token["logprob"]) for token in tokens], top if all(top) else []
    if given.get("token_logprobs") is not None:
        likeliest = given.get("top_logprobs") or ()
        return [float(value) for value in given["token_logprobs"]], [list(of.values()) for of in likeliest]
    return None, []


def _tool_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Read a call; the arguments are an object, or what the model wrote where that is none, so that it can be told."""
    function = call.get("function") or call
    given = function.get("arguments")
    arguments = read_object(given)
    return {"name": str(function.get("name") or ""), "arguments": given if arguments is None else arguments}


def _failed(error: str, text: str = "") -> Completion:
    return Completion(text=text, finish_reason="error", error=error)
