"""Take a port before anything is loaded: a taken port is told in a moment, a model takes minutes. No paper."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from posttrain_plugins.errors import InputError

__all__ = ["listening", "url_of"]


@contextlib.contextmanager
def listening(host: str, port: int, other: int = 8001) -> Iterator[socket.socket]:
    """Give a port that is taken; connections are accepted when a server is run on it.

    Args:
        host: the address to listen at.
        port: 0 takes a free one.
        other: what the hint proposes.

    Raises:
        InputError: it is in use, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that ended a moment ago still holds it
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        message = f"cannot listen at {host}:{port}: {getattr(error, 'strerror', None) or error}"
        raise InputError(message, hint=f"choose another: --port {other}, or --port 0 for a free one") from error
    with contextlib.closing(listener):
        yield listener


def url_of(listener: socket.socket) -> str:
    """Return where a taken port is reached, without a slash at the end.

    Example:
        >>> with listening("127.0.0.1", 0) as listener:
        ...     url_of(listener).rpartition(":")[0]
        'http://127.0.0.1'
    """
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
