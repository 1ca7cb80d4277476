"""Read a request's body: of a size that is allowed, and within a time. No paper."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["BodyRefused", "read_body"]

BODY_S = 30.0


class BodyRefused(Exception):
    """A body that is not taken.

    Args:
        status: of the HTTP answer.
        message: what is wrong.
        code: the same as one word.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


async def read_body(request: Any, limit: int) -> bytes:
    """Read the body.

    Args:
        request: Starlette's.
        limit: bytes at most.

    Raises:
        BodyRefused: 413 where it is larger than the limit, 408 where it does not come in time.
        starlette.requests.ClientDisconnect: the client has gone.
    """
    too_large = BodyRefused(413, f"the body is larger than {limit} bytes", "request_too_large")
    if int(request.headers.get("content-length", "0")) > limit:  # refused before a byte of it is read
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):  # half a body would otherwise hold its connection for ever
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:  # a chunked body says no length
                    raise too_large
    except TimeoutError:
        raise BodyRefused(408, f"the body did not come within {BODY_S:g} s", "request_timeout") from None
    return bytes(body)
