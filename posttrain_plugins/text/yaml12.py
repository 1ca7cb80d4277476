"""Plain scalars of YAML 1.2 (https://yaml.org/spec/1.2.2/#1032-tag-resolution): PyYAML's own are 1.1's. No paper.

There `1e-5` is text and `no` is false.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

__all__ = ["INTEGER", "TextLoader", "read_yaml", "scalar"]

# Without resolvers every plain scalar stays text, for `scalar`. The parser in C is faster, and not in every wheel.
TextLoader = type("TextLoader", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {"yaml_implicit_resolvers": {}})

INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf"), float("inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    "-.inf": float("-inf"),
}


def scalar(text: str) -> Any:
    """Return what a plain scalar stands for.

    Example:
        >>> scalar("1e-5"), scalar("no"), scalar("true"), scalar("")
        (1e-05, 'no', True, None)
    """
    if text in _WORDS:
        return _WORDS[text]
    if INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _PlainLoader(TextLoader):  # type: ignore[misc, valid-type]
    """Gives values, not places; for what a program has written."""


_PlainLoader.add_constructor(
    "tag:yaml.org,2002:str", lambda loader, node: node.value if node.style else scalar(node.value)
)


def read_yaml(text: str) -> Any:
    """Return the values of a YAML 1.2 text.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=_PlainLoader)
