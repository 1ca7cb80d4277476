"""Open what answers for a model: transformers or vLLM in this process, or the server behind a URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from posttrain_plugins.backends.engines import TRANSFORMERS, VLLM, check_engine
from posttrain_plugins.backends.protocol import AnyBackend
from posttrain_plugins.backends.transformers import backend as in_process
from posttrain_plugins.errors import InputError
from posttrain_plugins.types import ModelArtifact, server_of

__all__ = ["open_backend", "opened"]


def open_backend(
    model: str,
    loading: Mapping[str, Any] | None = None,
    *,
    engine: str = TRANSFORMERS,
    identity: str | None = None,
    api_key: str | None = None,
    options: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
) -> AnyBackend:
    """Open a model for requests; whoever opens it closes it.

    Args:
        model: a folder, a Hub id, or a server's URL with the model's name behind a `#`; a server that lists one model
            needs no name.
        loading: TRL `ModelConfig` fields, for a model in this process.
        engine: what runs it: `transformers` or `vllm` in this process, or the URL of a server that has it, by its
            `identity` or behind a `#`.
        identity: its name in requests' keys, and so in the noise of its completions; by default its own.
        api_key: for a server.
        options: what else the server's backend or vLLM's `LLM` takes.
        chat_template: in place of the one that lies beside a model in this process.

    Raises:
        InputError: a URL without a model's name whose server lists several or none, or another engine.
    """
    # each kind imports what it needs only when it is opened: a server needs no torch, a model in process no aiohttp
    named: Any = {} if identity is None else {"identity": identity}
    server, by_engine = server_of(model), server_of(engine)
    if server is not None and engine != TRANSFORMERS:
        raise InputError(f"{model} is a server, and engine is {engine!r}", hint="leave engine out")
    check_engine(engine, (options or {}) if engine == VLLM else {})
    if server is not None or by_engine is not None:
        from posttrain_plugins.backends.openai.backend import OpenAIBackend, listed_model

        url, name = server or by_engine or ("", "")
        name = name or listed_model(url, api_key, wanted=identity or model)
        return OpenAIBackend(name, url, api_key=api_key, **{"identity": identity, **(options or {})})
    if engine == VLLM:
        from posttrain_plugins.backends.vllm import VLLMBackend

        return VLLMBackend(model, loading=loading, options=options, chat_template=chat_template, **named)
    tokenizer = None if chat_template is None else in_process.load_tokenizer(model, loading, chat_template)
    return in_process.TransformersBackend(model, tokenizer, loading=loading, **named)


@contextmanager
def opened(
    artifact: ModelArtifact, engine: str = TRANSFORMERS, options: Mapping[str, Any] | None = None
) -> Iterator[AnyBackend]:
    """Open the model that a stage is given, and free it at the end.

    Its identity is the model's name, so that the same recipe draws the same completions wherever its folders lie.

    Args:
        artifact: the model.
        engine: what runs it, as of `open_backend`.
        options: for vLLM.
    """
    backend = open_backend(
        artifact.path,
        artifact.loading,
        engine=engine,
        identity=artifact.name,
        options=options or None,
        chat_template=artifact.chat_template,
    )
    try:
        yield backend
    finally:  # of a server `solve` closes the connections, at the end of each event loop
        getattr(backend, "close", lambda: None)()
