"""The process: a signal ends it when every answer is written. No paper."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from typing import Any

from posttrain_plugins.annotate.desk import Desk
from posttrain_plugins.annotate.door import Door
from posttrain_plugins.annotate.page import About
from posttrain_plugins.errors import InputError

__all__ = ["check_installed", "run"]

LAST_WORDS_S = 3


def check_installed() -> None:
    """See that what serves the page is there.

    Raises:
        InputError: it is not installed.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        hint = "pip install 'posttrain-plugins[annotate]'"
        raise InputError(f"the page needs {' and '.join(missing)}, which are not installed", hint=hint)


def run(desk: Desk, door: Door, about: About, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve the page until SIGINT or SIGTERM; what was sent by then is answered.

    Args:
        desk: answers.
        door: lets in.
        about: what all pages say.
        listener: the port.
        ready: is called when the port answers.
    """
    import uvicorn

    from posttrain_plugins.annotate.app import create_app
    from posttrain_plugins.web.origin import OriginCheck

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        def handle_exit(self, sig: int, frame: Any) -> None:
            # not uvicorn's own, which sends the signal again at the end: the summary is still to be printed
            self.force_exit = self.should_exit
            self.should_exit = True
            desk.close()

    config = uvicorn.Config(
        OriginCheck(create_app(desk, door, about), door.allowed),
        log_level="warning",
        access_log=False,  # addresses hold no token, but names of people
        lifespan="off",
        timeout_graceful_shutdown=LAST_WORDS_S,
    )
    Server(config).run([listener])
