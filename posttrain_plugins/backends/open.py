"""Open what answers for a model: transformers or vLLM in this process, or the server behind a URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from posttrain_plugins.backends.protocol import AnyBackend
from posttrain_plugins.backends.transformers import backend as in_process
from posttrain_plugins.errors import InputError
from posttrain_plugins.types import ModelArtifact, server_of

__all__ = ["open_backend", "opened"]


def open_backend(
    model: str,
    loading: Mapping[str, Any] | None = None,
    *,
    engine: str = "transformers",
    identity: str | None = None,
    api_key: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> AnyBackend:
    """Open a model for requests; whoever opens it closes it.

    Args:
        model: a folder, a Hub id, or a server's URL with the model's name behind a `#`; a server that lists one model
            needs no name.
        loading: TRL `ModelConfig` fields, for a model in this process.
        engine: what runs it in this process, `transformers` or `vllm`.
        identity: its name in requests' keys, and so in the noise of its completions; by default its own.
        api_key: for a server.
        options: what else the server's backend or vLLM's `LLM` takes.

    Raises:
        InputError: a URL without a model's name whose server lists several or none, or another engine.
    """
    # each kind imports what it needs only when it is opened: a server needs no torch, a model in process no aiohttp
    named: Any = {} if identity is None else {"identity": identity}
    server = server_of(model)
    if server is not None:
        url, name = server
        from posttrain_plugins.backends.openai.backend import OpenAIBackend, only_model

        name = name or only_model(url, api_key)
        return OpenAIBackend(name, url, api_key=api_key, **{**named, **(options or {})})
    if engine == "vllm":
        from posttrain_plugins.backends.vllm import VLLMBackend

        return VLLMBackend(model, loading=loading, options=options, **named)
    if engine != "transformers":
        raise InputError(f"engine is {engine!r}, expected 'transformers' or 'vllm'", hint="change engine")
    return in_process.TransformersBackend(model, loading=loading, **named)


@contextmanager
def opened(artifact: ModelArtifact) -> Iterator[AnyBackend]:
    """Open the model that a stage is given, and free it at the end.

    Its identity is the model's name, so that the same recipe draws the same completions wherever its folders lie.
    """
    if server_of(artifact.path) is not None:  # `solve` closes its connections, at the end of each event loop
        yield open_backend(artifact.path, identity=artifact.name)
        return
    with in_process.opened(artifact) as backend:
        yield backend
