"""The log of answered requests, one JSON object a line: cache, replay and resume in one file."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from posttrain_plugins.errors import InputError

__all__ = ["RequestLog"]


class RequestLog:
    """Answers by request key. What is put is on disk when `put` returns; a torn last line (a killed run) is dropped.

    Args:
        path: the JSONL file, made where it is not there; None keeps the answers in memory.

    Raises:
        InputError: for a line, other than the last, that is not an entry.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._load(path)
            self._file = path.open("a", encoding="utf-8")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def put(self, key: str, value: Any, **about: str) -> None:
        """Remember an answer; `about` says in words what it belongs to."""
        self._values[key] = value
        if self._file is not None:
            self._file.write(json.dumps({"key": key, **about, "value": value}, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
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
        if len(whole) < len(content):
            path.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = json.loads(line)
                self._values[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError) as error:
                message = f"the request log cannot be read: {path}:{number}: {error}"
                raise InputError(message, hint=f"delete {path} to start anew") from error
