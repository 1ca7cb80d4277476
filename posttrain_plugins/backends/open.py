"""The backend of a model that a stage is given: in this process, or the server behind a URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from posttrain_plugins.backends.protocol import AnyBackend
from posttrain_plugins.backends.transformers import backend as in_process
from posttrain_plugins.types import ModelArtifact

__all__ = ["opened"]


@contextmanager
def opened(artifact: ModelArtifact) -> Iterator[AnyBackend]:
    """A model's backend, freed at the end. Its identity is the model's name, so that the same recipe draws the same
    completions wherever its folders lie.

    Args:
        artifact: with a folder, a Hub id, or a server's URL with the model's name there, `http://host:8000/v1#name`.
    """
    if not artifact.path.startswith(("http://", "https://")):
        with in_process.opened(artifact) as backend:
            yield backend
        return
    from posttrain_plugins.backends.openai.backend import OpenAIBackend

    url, _, name = artifact.path.partition("#")
    yield OpenAIBackend(name, url, identity=artifact.name)
