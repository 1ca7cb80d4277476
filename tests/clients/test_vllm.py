"""The OpenAI-compatible backend against `vllm serve`: what it can do, and that its usage is what was drawn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_exam import needs
from openai_server import ask, draws, free_port, texts
from peer_server import running, tiny_llama

from posttrain_plugins.backends.openai.backend import OpenAIBackend, listed_model

pytestmark = [pytest.mark.clients, needs("POSTTRAIN_VLLM")]

MAX_TOKENS = 24
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIBackend]:
    folder = tmp_path_factory.mktemp("vllm")
    model, port = tiny_llama(folder / "tiny"), free_port()
    vllm = Path(os.environ["POSTTRAIN_VLLM"]).parent / "vllm"
    command = [str(vllm), "serve", str(model), "--served-model-name", "tiny", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/health", folder / "server.log", **QUIET):
        yield OpenAIBackend(listed_model(f"{url}/v1"), f"{url}/v1")


def test_what_it_can_do_is_found_out(backend: OpenAIBackend) -> None:
    found, lines = backend.capabilities, "\n".join(backend.describe())
    assert (found.n, found.logprobs, found.top_logprobs, found.temperature, found.seed) == (True,) * 5
    assert (found.stop, found.stop_reason, found.prefill, found.tools) == (True, True, True, False)
    assert "counts all completions of a request" in lines


def test_usage_is_what_was_drawn(backend: OpenAIBackend) -> None:
    """With log-probabilities the server itself shows each token; without, its count is that of the same draws."""
    (shown,) = ask(backend, draws(4, max_tokens=MAX_TOKENS, logprobs=True), seed=5)
    assert [one.usage.completion_tokens for one in shown] == [len(one.logprobs or ()) for one in shown]
    assert shown[0].usage.prompt_tokens > 0
    assert [one.usage.prompt_tokens for one in shown[1:]] == [0, 0, 0]
    (told,) = ask(backend, draws(4, max_tokens=MAX_TOKENS), seed=5)
    assert texts(told) == texts(shown)
    assert sum(one.usage.completion_tokens for one in told) == sum(len(one.logprobs or ()) for one in shown)
    assert sum(one.usage.completion_tokens for one in told) > MAX_TOKENS  # more than one completion can have
