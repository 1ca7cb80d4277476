"""What in a recipe opens a door, by its name or its form. No paper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["has_password", "holds_secret", "is_secret"]

# A tokenizer's `eos_token` opens no door.
NAME = re.compile(
    r"(?:^|.*[_-])(?:api_?key|password|passwd|secret|secret_key|private_key|credentials?"
    r"|(?:hub|hf|access|auth|bearer|api|refresh)_token)|token",
    re.IGNORECASE,
)
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@", re.IGNORECASE)


def is_secret(name: str, value: Any) -> bool:
    """Return whether a value under a name is one that nobody else should read.

    Example:
        >>> is_secret("hub_token", "abc"), is_secret("eos_token", "<eos>"), is_secret("apiKey", "abc")
        (True, False, True)
    """
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return isinstance(value, str) and bool(value) and NAME.fullmatch(snake) is not None


def has_password(text: str) -> bool:
    """Return whether an address holds a password, `https://user:password@host`."""
    return ADDRESS.search(text) is not None


def holds_secret(name: str, value: Any) -> bool:
    """Return whether a value is a secret, or has one at any depth.

    Example:
        >>> holds_secret("stages", {"it": {"api_key": "abc"}})
        True
    """
    if isinstance(value, Mapping):
        return any(holds_secret(str(key), item) for key, item in value.items())
    if isinstance(value, list):
        return any(holds_secret(name, item) for item in value)
    return is_secret(name, value) or (isinstance(value, str) and has_password(value))
