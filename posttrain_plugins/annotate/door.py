"""Who may come in: by name and origin (`web/origin.py`), and from another machine with the token. No paper.

The token reaches a browser in the fragment of the address, which no browser sends to anybody; the page trades it for a
cookie that no script can read and no other site sends along. Neither stands in a line of the log.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping
from http.cookies import CookieError, SimpleCookie

from posttrain_plugins.errors import InputError
from posttrain_plugins.web.origin import LOOPBACK

__all__ = ["HEADERS", "Door"]

LEAST_TOKEN_CHARS = 8
COOKIE_S = 30 * 24 * 3600

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Door:
    """Checks tokens.

    Args:
        host: the address that is listened at.
        token: what a page or a program must bring; None lets all in.
        allowed_hosts: names by which the server may be called, beside its own address and those of this machine.

    Raises:
        InputError: other machines reach the server, and there is no token or a short one.
    """

    def __init__(self, host: str, token: str | None, allowed_hosts: Collection[str] = ()) -> None:
        if token is None and host not in LOOPBACK:
            what = f"whoever reaches {host} could read the questions and answer them"
            raise InputError(what, hint="--token WORD, or POSTTRAIN_ANNOTATE_TOKEN in the environment")
        if token is not None and len(token) < LEAST_TOKEN_CHARS:
            short = f"the token has {len(token)} characters, expected at least {LEAST_TOKEN_CHARS}"
            raise InputError(short, hint="python -c 'import secrets; print(secrets.token_urlsafe())' makes one")
        self.token = token
        # Behind a token and open to the network it is called by names that nobody can list: foreign pages stay out, and
        # one that has this name by a trick of its name server has no cookie of ours.
        is_any = token is not None and host in ("0.0.0.0", "::") and not allowed_hosts
        self.allowed = None if is_any else (*LOOPBACK, host, *allowed_hosts)

    def is_open_to(self, headers: Mapping[str, str], port: int) -> bool:
        """Does a request bring the token, in its cookie or as `Authorization: Bearer`?"""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = [key] if scheme.lower() == "bearer" else []
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            cookies = SimpleCookie()
        given += [morsel.value for name, morsel in cookies.items() if name == self.cookie_name(port)]
        return self.token is None or any(map(self.is_token, given))

    def is_token(self, word: str) -> bool:
        """Is this the token? Compared in constant time."""
        # how long `==` takes tells how many characters of a guess are right
        return self.token is not None and hmac.compare_digest(word.encode(), self.token.encode())

    @staticmethod
    def cookie_name(port: int) -> str:
        """Return the cookie's name: cookies of all ports of a machine are one jar."""
        return f"posttrain_annotate_{port}"

    def cookie(self, port: int) -> dict[str, object]:
        """Return the cookie as Starlette's `set_cookie` takes it."""
        return {
            "key": self.cookie_name(port), "value": self.token, "max_age": COOKIE_S, "httponly": True,
            "samesite": "strict", "path": "/",
        }  # fmt: skip
