"""The fields of a request, one by one: a value that fits, or a refusal in OpenAI's error shape that names the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ApiError", "flag", "integer", "listed", "number", "refused", "shown", "strings"]


class ApiError(Exception):
    """A refusal as OpenAI's clients read it: `{"error": {message, type, param, code}}` under an HTTP status."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    def to_json(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refused(field: str, message: str, code: str = "invalid_value") -> ApiError:
    """Return the 400 for a field."""
    return ApiError(400, f"{field}: {message}", code=code, param=field)


def integer(body: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:  # True is an int in Python
        raise refused(name, f"{shown(value)}, expected a whole number from {low} to {high}")
    return value


def number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise refused(name, f"{shown(value)}, expected a number from {low:g} to {high:g}")
    return float(value)


def flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise refused(name, f"{shown(value)}, expected true or false")
    return bool(value)


def listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise refused(name, f"{shown(value)}, expected a list")
    return value


def strings(value: Any, name: str, at_most: int, note: str) -> tuple[str, ...]:
    """Read a string or a list of strings."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise refused(name, f"{shown(value)}, expected a string or a list of strings{note}")
    if len(found) > at_most:
        raise refused(name, f"{len(found)} strings, expected at most {at_most}")
    return tuple(found)


def shown(value: Any) -> str:
    """Return a value for a message: not longer than a line."""
    text = repr(value)  # a client's own text comes back to it, and no megabyte of it
    return text if len(text) <= 80 else text[:77] + "..."
