"""The process: models are loaded, a port is opened, and a signal ends it gracefully."""

from __future__ import annotations

import importlib.util
import json
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain_plugins.backends.engines import check_engine
from posttrain_plugins.errors import InputError
from posttrain_plugins.recipe.run.ad_hoc import NameResolver
from posttrain_plugins.serve.model_thread import ModelThread
from posttrain_plugins.serve.models import open_models, parse_models
from posttrain_plugins.serve.protocol import RequestLimits
from posttrain_plugins.serve.service import Service
from posttrain_plugins.serve.strategies import Strategies
from posttrain_plugins.web.origin import LOOPBACK, OriginCheck
from posttrain_plugins.web.port import listening, url_of

__all__ = ["serve"]

LAST_WORDS_S = 3  # for answers of cancelled calls to be written, and for the models' thread to end
LIMITS = RequestLimits()


def serve(
    models: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    scorers: Mapping[str, str] | None = None,
    strategies: Mapping[str, str] | None = None,
    api_key: str | None = None,
    allowed_hosts: Collection[str] = (),
    limits: RequestLimits = LIMITS,
    threads: int = 64,
    grace_s: float = 30.0,
    reader: str = "auto",
    engine: str = "transformers",
    vllm: Mapping[str, Any] | None = None,
    runs_dir: Path = Path("runs"),
    loading: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = print,
) -> bool:
    """Serve until SIGINT or SIGTERM.

    Args:
        models: `MODEL` or `NAME=MODEL` each; a folder, a Hub id, or `RUN:STAGE`.
        host: the address to listen at.
        port: 0 takes a free one.
        scorers: name -> reward (`RUN:STAGE`, or a plugin with its parameters), for the strategies of clients.
        strategies: name -> specification; `NAME@name` is then listed as a model.
        api_key: what clients must send.
        allowed_hosts: names by which the server may be called, beside its own address and those of this machine.
        limits: what one request may ask for.
        threads: calls at work at once.
        grace_s: how long calls may go on after the signal; what is not done by then is answered with 503.
        reader: how strategies read answers (`text/readers.py`).
        engine: what runs the models that are no servers: `transformers`, `vllm`, or the URL of a server that has them.
        vllm: options for vLLM, in each of its engines.
        runs_dir: where `RUN:STAGE` is looked up.
        loading: TRL `ModelConfig` fields for every model.
        tell: is given the lines that a person reads.

    Returns:
        Whether all came to its end; False where a wave goes on in its thread, which cannot be broken off.

    Raises:
        InputError: FastAPI is not installed, the port is taken, or a name cannot be resolved.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        hint = "pip install 'posttrain-plugins[serve]'"
        raise InputError(f"the server needs {' and '.join(missing)}, which are not installed", hint=hint)
    check_engine(engine, vllm or {})
    named = parse_models(models)  # names first, the port next, models last: what fails soonest costs least
    outside = NameResolver.with_scorers(runs_dir.resolve(), scorers or {})
    with listening(host, port) as listener:
        model_thread = ModelThread()
        known = Strategies(list(named), model_thread, dict(outside.scorers), strategies or {}, runs_dir)
        service = Service(
            open_models(named, runs_dir, loading or {}, engine, vllm or {}), known, model_thread, limits, reader
        )
        if api_key is None and host not in LOOPBACK:
            tell(f"warning: whoever reaches {host} can use this server; --api-key KEY asks for a key")
        # Behind a key and open to the network it is called by names that nobody can list; foreign pages stay out.
        is_any = api_key is not None and host in ("0.0.0.0", "::") and not allowed_hosts
        allowed = None if is_any else (*LOOPBACK, host, *allowed_hosts)
        _run(service, listener, api_key, allowed, threads, grace_s, tell)
        # What runs in torch cannot be broken off: after a few seconds the caller ends the process without it.
        return model_thread.close(LAST_WORDS_S)


def _run(
    service: Service,
    listener: socket.socket,
    api_key: str | None,
    allowed: Collection[str] | None,
    threads: int,
    grace_s: float,
    tell: Callable[[str], None],
) -> None:
    import uvicorn

    from posttrain_plugins.serve.app import RequestGate, create_app

    class Server(uvicorn.Server):
        """Ends when no request is in flight any more, or when the grace is over."""

        deadline: float | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            url = f"{url_of(listener)}/v1"
            key = " -H 'Authorization: Bearer KEY'" if api_key else ""
            messages = [{"role": "user", "content": "2+3=?"}]
            body = json.dumps({"model": f"{next(iter(service.models))}@self_consistency(n=8)", "messages": messages})
            try_it = f"curl {url}/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'"
            tell(f"serving {', '.join(service.models)} at {url}\n  {try_it}")

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.deadline is not None:  # the second signal
                self.should_exit = self.force_exit = True
                return
            self.deadline = time.monotonic() + grace_s
            gate.is_closing = True
            tell(f"stopping: {len(gate.in_flight)} in flight, at most {grace_s:g} s; again stops at once")

        async def on_tick(self, counter: int) -> bool:
            # Not uvicorn's own end at the signal: it would close the port, and a balancer would see errors, not 503.
            if self.deadline is not None and (not gate.in_flight or time.monotonic() >= self.deadline):
                gate.cancel_all()
                self.should_exit = True
            return await super().on_tick(counter)

    gate = RequestGate(service, api_key=api_key, threads=threads)
    config = uvicorn.Config(
        OriginCheck(create_app(gate), allowed),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=LAST_WORDS_S,
    )
    Server(config).run([listener])
