"""Who may speak to a server on this machine: the Host and Origin headers, checked before anything else.

A page on the web can make a browser send requests to 127.0.0.1. Three headers tell such a request from a program's:
`Origin` names the page that sends it, `Host` the name that the browser resolved, which is the attacker's where a name
server answers with 127.0.0.1 at the second question (DNS rebinding), and `Sec-Fetch-Site` tells what sends no `Origin`,
such as an image or a frame. Programs send neither the first nor the last. RFC 6454, RFC 9110, W3C Fetch Metadata.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

__all__ = ["LOOPBACK", "OriginCheck", "refusal"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]


def refusal(
    host: str | None,
    origin: str | None,
    allowed: Collection[str] | None,
    site: str | None = None,
    is_opened: bool = False,
) -> str | None:
    """Return why a request may not come in, or None where it may.

    Args:
        host: the Host header, with or without a port.
        origin: the Origin header; None where the sender is no browser, or a page asks its own server by GET.
        allowed: names that the server may be called by; None for any, where a key keeps strangers out.
        site: the Sec-Fetch-Site header.
        is_opened: a page is opened in a tab by a GET, which a link on a foreign page may do: it is no request of that
            page, which never sees what comes.

    Example:
        >>> refusal("127.0.0.1:8000", None, LOOPBACK)
        >>> refusal("evil.example", None, LOOPBACK)
        "the server is not called 'evil.example'"
        >>> refusal("localhost:8000", "https://evil.example", LOOPBACK)
        "a page of 'https://evil.example' may not use this server"
    """
    name = _name_and_port(f"//{host or ''}")[0]
    if not name or (allowed is not None and name not in {_plain(known) for known in allowed}):
        return f"the server is not called {host!r}"
    if site not in (None, "same-origin", "none") and not is_opened:  # `none` is an address that a person typed
        return "a page of another site may not use this server"
    if origin is None:
        return None
    # A page that this server gave out has its own name and port; `null` is a file or a sandboxed frame.
    scheme = urlsplit(origin).scheme if "//" in origin else ""
    if scheme not in ("http", "https") or _name_and_port(origin) != _name_and_port(f"{scheme}://{host or ''}"):
        return f"a page of {origin!r} may not use this server"
    return None


def _name_and_port(url: str) -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # brackets without an end, a port that is no number
        return None, None
    return _plain(parts.hostname or ""), port or {"http": 80, "https": 443}.get(parts.scheme)


def _plain(name: str) -> str:
    """Return a name in one form: lower case, no last dot, addresses as `ipaddress` writes them."""
    name = name.strip("[]").lower().removesuffix(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


class OriginCheck:
    """Wrap an ASGI application so that requests of strangers are answered with 403.

    Args:
        app: what answers the others.
        allowed: as in `refusal`.
    """

    def __init__(self, app: Any, allowed: Collection[str] | None) -> None:
        self.app = app
        self.allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        fetched = (scope.get("method"), headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
        is_opened = fetched == ("GET", "navigate", "document")
        site = headers.get("sec-fetch-site")
        why = refusal(headers.get("host"), headers.get("origin"), self.allowed, site, is_opened)
        if why is None:
            await self.app(scope, receive, send)
            return
        hint = "--allowed-host NAME lets it be called so" if "called" in why else "send requests from a program"
        body = json.dumps(
            {"error": {"message": f"{why}; {hint}", "type": "invalid_request_error", "code": "forbidden"}}
        )
        kind = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 403, "headers": kind})
        await send({"type": "http.response.body", "body": body.encode()})
