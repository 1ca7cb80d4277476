"""Takes out of a report what nobody wants to send by e-mail: secrets, and the place of the home folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["masked", "masked_text"]

MASK = "***"
SECRET_WORDS = {
    "token",
    "tokens",
    "key",
    "apikey",
    "secret",
    "secrets",
    "password",
    "passwd",
    "credential",
    "credentials",
}
# A tokenizer's own, which a reader wants to see and which open no door.
NO_SECRETS = re.compile(r"(bos|eos|pad|unk|sep|cls|mask|stop|image|video|audio|think)_tokens?")
# What is a secret wherever it stands: keys of well-known services, and what stands before the @ of an address.
SECRETS = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[opsu]_[A-Za-z0-9]{16,}|xox[abps]-[A-Za-z0-9-]{10,}"
    r"|AKIA[0-9A-Z]{16})|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}"
)
# `--api-key x`, `hub_token=x`, `"secret": "x"` within a line of text: what follows has a digit, as keys have.
NAMED = re.compile(
    r"(?i)((?:^|[\s\"'._-])(?:[a-z0-9]+[_-])*(?:token|key|secret|password)[\"']?(?:\s*[=:]\s*|\s+)[\"']?)"
    r"([A-Za-z0-9._~+/=-]*\d[A-Za-z0-9._~+/=-]{7,})"
)


def masked_text(value: str) -> str:
    """Return a text with secrets as `***` and the home folder as `~`.

    Example:
        >>> masked_text("--api-key abc123def456 https://me:pw@host/x")
        '--api-key *** https://***@host/x'
    """
    home = str(Path.home())
    if len(home) > 1:  # the root of the disk is in every path
        value = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", value)
    return NAMED.sub(rf"\1{MASK}", SECRETS.sub(MASK, value))


def masked(value: Any, name: str = "") -> Any:
    """Return a JSON value with the texts under names such as `hub_token` or `api_key` as `***`.

    Args:
        value: dicts, lists, texts and numbers.
        name: under which it stands.

    Example:
        >>> masked({"hub_token": "abc", "max_tokens": 48, "eos_token": "<eos>", "tokenizer": "x"})
        {'hub_token': '***', 'max_tokens': 48, 'eos_token': '<eos>', 'tokenizer': 'x'}
    """
    if isinstance(value, Mapping):
        return {masked_text(str(key)): masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, name) for item in value]
    if not isinstance(value, str):
        return value
    words = set(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    is_secret = words & SECRET_WORDS and not NO_SECRETS.fullmatch(name) and not re.fullmatch(r"[\d.\"-]*", value)
    return MASK if is_secret else masked_text(value)
