"""Results in OpenAI's protocol: one JSON object, or server-sent events that end with `[DONE]`.

1. `usage` counts every role, a judge and a reward model too; `usage.roles` has each of them.
2. A text is known when it is finished, so a stream is the finished text in pieces.
3. `stop_reason` is the stop string that ended a completion, as vLLM tells it.
4. `posttrain` holds what OpenAI's protocol has no place for: the extracted answer, the budget that ended a strategy,
   and the trace, where the request asks for it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from posttrain_plugins.serve.protocol import Call
from posttrain_plugins.types import Completion, Result, Usage

__all__ = ["Choice", "Reply", "body", "event", "events"]

PIECE_CHARS = 32


@dataclass(frozen=True)
class Choice:
    """One text that the client is given; `tokens` are its tokens as text, where log-probabilities were asked for."""

    completion: Completion
    tokens: Sequence[str] = ()


@dataclass(frozen=True)
class Reply:
    """What a call came to: `n` choices for each prompt, in order, and one result for each prompt."""

    call: Call
    choices: Sequence[Choice]
    results: Sequence[Result]
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, is_chunk: bool = False) -> dict[str, Any]:
        if self.call.is_chat:
            kind = "chat.completion.chunk" if is_chunk else "chat.completion"
            return {"id": f"chatcmpl-{self.id}", "object": kind, "created": self.created, "model": self.call.model}
        return {"id": f"cmpl-{self.id}", "object": "text_completion", "created": self.created, "model": self.call.model}


def body(reply: Reply) -> dict[str, Any]:
    """The whole answer."""
    choice = _chat_choice if reply.call.is_chat else _text_choice
    choices = [choice(i, one) for i, one in enumerate(reply.choices)]
    return {**reply.head(), "choices": choices, "usage": _usage(reply.results), "posttrain": _extra(reply)}


def events(reply: Reply) -> Iterator[str]:
    """The answer as server-sent events."""
    chunk = _chat_chunk if reply.call.is_chat else _text_chunk
    head = reply.head(is_chunk=True)
    for i, choice in enumerate(reply.choices):
        for part in chunk(i, choice):
            yield event({**head, "choices": [part]})
    if reply.call.with_usage:
        yield event({**head, "choices": [], "usage": _usage(reply.results), "posttrain": _extra(reply)})
    elif reply.call.with_trace:
        yield event({**head, "choices": [], "posttrain": _extra(reply)})
    yield "data: [DONE]\n\n"


def event(value: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


# --- chat ------------------------------------------------------------------------------------------------------------


def _chat_choice(index: int, choice: Choice) -> dict[str, Any]:
    completion = choice.completion
    message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
    if completion.tool_calls:
        message |= {"content": completion.text or None, "tool_calls": _tool_calls(completion)}
    return {
        "index": index,
        "message": message,
        "logprobs": _chat_logprobs(choice),
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }


def _chat_chunk(index: int, choice: Choice) -> Iterator[dict[str, Any]]:
    completion = choice.completion
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": piece} for piece in _pieces(completion.text)]
    if completion.tool_calls:
        deltas.append({"tool_calls": [{"index": i, **call} for i, call in enumerate(_tool_calls(completion))]})
    for delta in deltas:
        yield {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    last = {"index": index, "delta": {}, "logprobs": _chat_logprobs(choice)}
    yield {**last, "finish_reason": completion.finish_reason, "stop_reason": completion.stop_reason}


def _tool_calls(completion: Completion) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{secrets.token_hex(8)}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
        }
        for call in completion.tool_calls or ()
    ]


def _chat_logprobs(choice: Choice) -> dict[str, Any] | None:
    if choice.completion.logprobs is None:
        return None
    pairs = zip(choice.tokens, choice.completion.logprobs, strict=True)
    content = [
        {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
        for token, logprob in pairs
    ]
    return {"content": content, "refusal": None}


# --- text completions ------------------------------------------------------------------------------------------------


def _text_choice(index: int, choice: Choice) -> dict[str, Any]:
    completion = choice.completion
    logprobs = None
    if completion.logprobs is not None:
        logprobs = {"tokens": list(choice.tokens), "token_logprobs": completion.logprobs, "top_logprobs": None}
    ended = {"finish_reason": completion.finish_reason, "stop_reason": completion.stop_reason}
    return {"index": index, "text": completion.text, "logprobs": logprobs, **ended}


def _text_chunk(index: int, choice: Choice) -> Iterator[dict[str, Any]]:
    for piece in _pieces(choice.completion.text):
        yield {"index": index, "text": piece, "logprobs": None, "finish_reason": None}
    yield {**_text_choice(index, choice), "text": ""}


# --- both ------------------------------------------------------------------------------------------------------------


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS))


def _usage(results: Sequence[Result]) -> dict[str, Any]:
    roles: dict[str, Usage] = {}
    for result in results:
        for role, usage in result.usage.items():
            roles[role] = roles.get(role, Usage()) + usage
    spent = sum(roles.values(), Usage())
    return {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "total_tokens": spent.total_tokens,
        "roles": {role: asdict(usage) for role, usage in roles.items()},
    }


def _extra(reply: Reply) -> dict[str, Any]:
    """Of the one prompt of a chat, or of each prompt."""
    told = []
    for result in reply.results:
        answer = None if result.answer is None else str(result.answer)
        trace = {"trace": result.trace} if reply.call.with_trace else {}
        told.append({"answer": answer, "stopped_by": result.stopped_by, **trace})
    return told[0] if len(told) == 1 else {"prompts": told}
