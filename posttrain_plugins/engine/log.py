"""The log of answered requests, one JSON object a line: cache, replay and resume in one file."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from json.encoder import encode_basestring as _quoted
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from posttrain_plugins.errors import InputError
from posttrain_plugins.types import Completion, Usage

__all__ = ["RequestLog", "completion_of"]

_encode = json.JSONEncoder(ensure_ascii=False).encode
_NOTHING = Usage()
_COUNTS = tuple(Usage.__slots__)
_OPTIONAL = ("token_ids", "logprobs", "stop_reason", "confidences", "value", "tool_calls")


class RequestLog:
    """Answers by request key. What is put is on disk when `put` returns; a torn last line (a killed run) is dropped.

    Args:
        path: the JSONL file, made where it is not there; None keeps the answers in memory.

    `missing` holds the keys of answers that a scorer could not get, with the reason.

    Raises:
        InputError: for a line, other than the last, that is not an entry.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._costs: dict[str, Usage] = {}
        self.missing: dict[str, str] = {}
        self._lock = threading.Lock()  # several runs of one process may share a log
        self._file: BinaryIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._load(path)
            self._file = path.open("ab")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def completion(self, key: str) -> Completion:
        """Return the completion of this key; one that was read from the file is made when it is first asked for."""
        value = self._values[key]
        if not isinstance(value, Completion):
            value = self._values[key] = completion_of(value)
        return value

    def cost_of(self, key: str) -> Usage:
        """Return what an answer cost, where that stands beside it; a completion's usage is its own."""
        return self._costs.get(key, _NOTHING)

    def put(self, key: str, value: Any, cost: Usage = _NOTHING, missing: str | None = None, **about: str) -> None:
        """Remember an answer.

        Args:
            key: of the request.
            value: a `Completion` or a JSON value.
            cost: of the answer.
            missing: why the value only stands in for an answer that never came. It is not written, so that the next
                run asks again, and stands in `missing`.
            about: what the answer belongs to.
        """
        self._values[key] = value
        if cost is not _NOTHING:
            self._costs[key] = cost
        if missing is not None:
            self.missing[key] = missing
        elif self._file is not None:
            line = _line(key, value, cost, about)
            with self._lock:
                # one write for the whole line, and out of this process at once: a run that is killed now loses nothing
                self._file.write(line)
                self._file.flush()

    def close(self) -> None:
        """Close the file; answers can still be looked up."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> RequestLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _load(self, path: Path) -> None:
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the next line would go on from the torn one
            path.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self._remember(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                message = f"the request log cannot be read: {path}:{number}: {error}"
                raise InputError(message, hint=f"delete {path} to start anew") from error

    def _remember(self, entry: dict[str, Any]) -> None:
        self._values[entry["key"]] = entry["value"]
        if "cost" in entry:
            read, written, calls = entry["cost"]
            self._costs[entry["key"]] = Usage(read, written, calls=calls)


def _line(key: str, value: Any, cost: Usage, about: Mapping[str, str]) -> bytes:
    # by hand, as keys are hashed: it is done for each answer, and an encoder takes three times as long
    named = "".join([f', "{name}": {_text(value)}' for name, value in about.items()])
    if cost.prompt_tokens or cost.completion_tokens or cost.calls:
        named += f', "cost": {_encode([cost.prompt_tokens, cost.completion_tokens, cost.calls])}'
    told = _completion_text(value) if isinstance(value, Completion) else _encode(value)
    # a server may send half a character
    return f'{{"key": {_text(key)}{named}, "value": {told}}}\n'.encode(errors="surrogatepass")


def _text(value: Any) -> str:
    return _quoted(value) if type(value) is str else _encode(value)


def _completion_text(completion: Completion) -> str:
    """Return the entry that `completion_of` reads, as JSON."""
    usage = completion.usage
    counts = ", ".join([f'"{name}": {int(count)}' for name in _COUNTS if (count := getattr(usage, name))])
    more = ""
    for name in _OPTIONAL:
        value = getattr(completion, name)
        if value is not None:
            more += f', "{name}": {_text(value)}'
    head = f'"text": {_text(completion.text)}, "finish_reason": {_text(completion.finish_reason)}'
    return f'{{{head}, "usage": {{{counts}}}{more}}}'


def completion_of(entry: Mapping[str, Any]) -> Completion:
    """Return the completion that an entry tells of."""
    return Completion(**{**entry, "usage": Usage(**entry["usage"])})
