"""Writes pages of HTML that stand alone, and on which nothing that a model or a person wrote can run or load.

Three locks: every text is escaped; data stands in JSON that no parser of HTML leaves, and is drawn as text; and the
page's own policy lets run and style only what has the hash of the very bytes that this module writes. No paper.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

__all__ = ["clean", "json_script", "page", "policy", "static", "text", "write_whole"]

# Everything that a terminal or a browser would act on and not show: C0 and C1 without newline and tab, the marks that
# turn the direction of what follows, and lone surrogates, which no encoding takes.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# What ends a script element, or a line of JavaScript, in the middle of a JSON string.
ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def clean(value: str) -> str:
    """Return a text in which what no reader could see is written out.

    Example:
        >>> clean("a\\x1b[31mb\\u202ec")
        'a\\\\x1b[31mb\\\\u202ec'
    """
    return UNSEEN.sub(lambda found: f"\\x{ord(c):02x}" if ord(c := found[0]) < 256 else f"\\u{ord(c):04x}", value)


def text(value: object) -> str:
    """Return a value as text of HTML, in an element or between quotes.

    Example:
        >>> text('<b title="x">')
        '&lt;b title=&quot;x&quot;&gt;'
    """
    return escape(clean(str(value)))


def json_script(id: str, value: Any) -> str:
    """Return an element that holds JSON for `JSON.parse`: no NaN, no infinity, and nothing that ends the element.

    Args:
        id: of the element.
        value: made of dicts, lists, texts and numbers; NaN and infinities become null.
    """
    body = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    body = re.sub("[<>&\u2028\u2029]", lambda found: ESCAPES[found[0]], body)
    return f'<script type="application/json" id="{escape(id)}">{body}</script>'


def page(
    title: str,
    body: Iterable[str],
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    is_served: bool = False,
) -> str:
    """Return a page that stands alone, or that asks the server which it came from.

    Args:
        title: as plain text.
        body: HTML, in which every text went through `text`.
        styles: CSS behind the colours and forms that all pages share.
        scripts: JavaScript, run in this order after the body is there.
        data: id -> JSON value, for the scripts.
        is_served: its scripts may ask its own server, and nobody else.
    """
    sheets = [static("page.css"), *styles]
    lines = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy(sheets, scripts, is_served)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">',
        f"<title>{text(title)}</title>",
        *(f"<style>{sheet}</style>" for sheet in sheets),
        "</head>\n<body>",
        *body,
        *(json_script(id, value) for id, value in (data or {}).items()),
        *(f"<script>{script}</script>" for script in scripts),
        "</body>\n</html>\n",
    ]
    return "\n".join(lines)


def policy(styles: Sequence[str], scripts: Sequence[str], is_served: bool = False) -> str:
    """Return the Content-Security-Policy under which these texts, byte for byte, and nothing else may style and run."""
    allowed = f"; script-src {' '.join(map(_source, scripts))}; require-trusted-types-for 'script'" if scripts else ""
    styled = f"; style-src {' '.join(map(_source, styles))}" if styles else ""
    connected = "; connect-src 'self'" if is_served else ""
    return f"default-src 'none'{allowed}{styled}{connected}; base-uri 'none'; form-action 'none'"


@cache
def static(name: str, package: str = "posttrain_plugins.report") -> str:
    """Return a file of a room's `static/`, which is to stand within an element of the page.

    Raises:
        ValueError: it would end the element.
    """
    content = files(package).joinpath("static", name).read_text(encoding="utf-8")
    # what a browser hashes is what it read: it makes one line end of two characters
    content = content.replace("\r\n", "\n").strip()
    if re.search("</(script|style)|<!--", content, re.IGNORECASE):
        raise ValueError(f"static/{name} would end the element that it stands in")
    return content


def write_whole(file: Path, content: str) -> None:
    """Write beside and rename, so that who opens the file at any moment finds one that is whole.

    Raises:
        OSError: it cannot be written; what stood there stands.
    """
    # of its own name: two processes that write the same page must not write into one scratch file
    number, scratch = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(number, "wb") as stream:
            # a byte-level model may leave half a character at the end of a completion
            stream.write(content.encode("utf-8", errors="replace"))
        os.chmod(scratch, 0o666 & ~_umask())  # noqa: PTH101  a scratch file is for its owner alone, a report is not
        Path(scratch).replace(file)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _umask() -> int:
    found = os.umask(0o022)
    os.umask(found)
    return found


def _source(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else clean(str(value))
