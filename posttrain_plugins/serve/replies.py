"""Results in OpenAI's protocol: one JSON object, or server-sent events that end with `[DONE]`.

1. `usage` counts every role, a judge and a reward model too; `usage.roles` has each of them.
2. A text is known when it is finished, so a stream is the finished text in pieces.
3. `stop_reason` is the stop string that ended a completion, as vLLM tells it.
4. Log-probabilities of echoed prompts, and those of the likeliest tokens, are the model's own, at temperature 1; the
   first token of a prompt has none.
5. `posttrain` holds what OpenAI's protocol has no place for: the extracted answer, the budget that ended a strategy,
   and the trace, where the request asks for it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from posttrain_plugins.backends.transformers.likelihood import TokenScore
from posttrain_plugins.serve.protocol import ApiRequest
from posttrain_plugins.types import Completion, Result, Usage

__all__ = ["ApiReply", "Choice", "event"]

PIECE_CHARS = 32  # about a line of a chat at a time


@dataclass(frozen=True)
class Choice:
    """One text that the client is given.

    Args:
        completion: what was drawn.
        tokens: its tokens as text, where log-probabilities were asked for; those of an echoed prompt before them.
        scores: what the model says of each of these tokens, where more was asked for than a draw tells.
        prompt: the text of an echoed prompt.
    """

    completion: Completion
    tokens: Sequence[str] = ()
    scores: Sequence[TokenScore] | None = None
    prompt: str = ""

    def to_json(self, index: int, is_chat: bool) -> dict[str, Any]:
        """Return the choice as it stands in a whole answer."""
        completion = self.completion
        ended = {"finish_reason": completion.finish_reason, "stop_reason": completion.stop_reason}
        logprobs: dict[str, Any] | None = None
        if not is_chat:
            if self.scores is not None:
                told: list[Any] = [score.logprob for score in self.scores]
                top: list[Any] | None = [score.likeliest or None for score in self.scores]
            else:
                told, top = completion.logprobs or [], None
            if completion.logprobs is not None:
                logprobs = {"tokens": list(self.tokens), "token_logprobs": told, "top_logprobs": top}
            return {"index": index, "text": self.prompt + completion.text, "logprobs": logprobs, **ended}
        if completion.logprobs is not None:
            pairs = zip(self.tokens, completion.logprobs, strict=True)
            content = [
                {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}
                for token, logprob in pairs
            ]
            logprobs = {"content": content, "refusal": None}
        message: dict[str, Any] = {"role": "assistant", "content": completion.text, "refusal": None}
        if completion.tool_calls:
            given = [(call["name"], call["arguments"]) for call in completion.tool_calls]
            functions = [  # what is no object goes on as the model wrote it, as in OpenAI's own answers
                {"name": name, "arguments": text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)}
                for name, text in given
            ]
            # An id of its own for each: the client sends a tool's result back under it.
            message["tool_calls"] = [
                {"id": f"call_{secrets.token_hex(8)}", "type": "function", "function": function}
                for function in functions
            ]
            message["content"] = completion.text or None  # null, not "", is how OpenAI says that it only calls
        return {"index": index, "message": message, "logprobs": logprobs, **ended}

    def chunks(self, index: int, is_chat: bool) -> Iterator[dict[str, Any]]:
        """Yield the choice in pieces, the last of which says how it ended."""
        whole = self.to_json(index, is_chat)
        text = self.prompt + self.completion.text
        pieces = [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]
        unfinished = {"index": index, "logprobs": None, "finish_reason": None}
        if not is_chat:
            yield from ({**unfinished, "text": piece} for piece in pieces)
            yield {**whole, "text": ""}
            return
        message = whole.pop("message")
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece} for piece in pieces]
        if "tool_calls" in message:  # pieces of several calls may be mixed in a stream, so each has its number
            deltas.append({"tool_calls": [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]})
        yield from ({**unfinished, "delta": delta} for delta in deltas)
        yield {**whole, "delta": {}}


@dataclass(frozen=True)
class ApiReply:
    """What a request came to: `n` choices for each prompt, in order, and one result for each prompt."""

    request: ApiRequest
    choices: Sequence[Choice]
    results: Sequence[Result]
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, is_chunk: bool = False) -> dict[str, Any]:
        """Return what stands in front of the choices, in a whole answer and in each chunk of a stream."""
        prefix, kind = "cmpl", "text_completion"
        if self.request.is_chat:
            prefix, kind = "chatcmpl", "chat.completion.chunk" if is_chunk else "chat.completion"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.request.model}

    def totals(self) -> dict[str, Any]:
        """Return `usage` over all roles, and `posttrain`: of the one prompt of a chat, or of each prompt."""
        roles: dict[str, Usage] = {}
        extras = []
        for result in self.results:
            for role, usage in result.usage.items():  # who pays for the model pays for its judge
                roles[role] = roles.get(role, Usage()) + usage
            answer = None if result.answer is None else str(result.answer)
            trace = {"trace": result.trace} if self.request.with_trace else {}
            extras.append({"answer": answer, "stopped_by": result.stopped_by, **trace})
        spent = sum(roles.values(), Usage())
        usage_json = {
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
            "total_tokens": spent.total_tokens,
            "roles": {role: asdict(usage) for role, usage in roles.items()},
        }
        return {"usage": usage_json, "posttrain": extras[0] if len(extras) == 1 else {"prompts": extras}}

    def body(self) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [choice.to_json(i, self.request.is_chat) for i, choice in enumerate(self.choices)]
        return {**self.head(), "choices": choices, **self.totals()}

    def events(self) -> Iterator[str]:
        """Yield the answer as server-sent events."""
        head = self.head(is_chunk=True)
        for i, choice in enumerate(self.choices):
            for chunk in choice.chunks(i, self.request.is_chat):
                yield event({**head, "choices": [chunk]})
        totals = self.totals()
        if not self.request.with_usage:  # OpenAI's rule: only who asked for it is told
            del totals["usage"]
        if self.request.with_usage or self.request.with_trace:
            yield event({**head, "choices": [], **totals})
        yield "data: [DONE]\n\n"  # no JSON: clients of OpenAI's protocol read to this line


def event(value: Mapping[str, Any]) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(value)}\n\n"
