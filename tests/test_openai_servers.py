"""The OpenAI-compatible backend against `transformers serve`, and its benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_server import CHAT, ask, draws, free_port, texts
from peer_server import running, tiny_llama

from posttrain_plugins.backends.openai.backend import OpenAIBackend

# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def transformers_serve(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """`transformers serve` on a random tiny model: its URL, and the model's folder, which is the model's name."""
    folder, port = tiny_llama(tmp_path / "tiny"), free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    url = f"http://127.0.0.1:{port}"
    with running([*command, "--host", "127.0.0.1", "--port", str(port)], f"{url}/health", tmp_path / "server.log"):
        yield f"{url}/v1", folder


@pytest.mark.slow
def test_transformers_serve(transformers_serve: tuple[str, Path]) -> None:
    """It ignores `n`, decodes greedily unless a `generation_config` says otherwise, and keeps one global seed."""
    from transformers import AutoTokenizer

    url, folder = transformers_serve
    backend = OpenAIBackend(str(folder), url)
    found, lines = backend.capabilities, "\n".join(backend.describe())
    assert (found.n, found.temperature, found.seed, found.prefill, found.logprobs) == (False, True, False, False, False)
    assert (found.stop, found.stop_reason) == (True, True)
    assert "1 of 4 came" in lines
    assert "only with a generation_config: greedy without it" in lines
    assert "equal seeds hold only for one request at a time" in lines

    ((*completions,),) = ask(backend, draws(8, max_tokens=24))
    assert len(set(texts(completions))) == 8
    words = AutoTokenizer.from_pretrained(str(folder))
    for one in completions:  # what it tells is what was drawn; tokens that no text shows are among them
        written = len(words(one.text)["input_ids"])
        assert max(written, 24 if one.finish_reason == "length" else 1) <= one.usage.completion_tokens <= 24
    tokens = {name: _true_tokens(url, str(folder), seed) for seed, name in ((1, "first"), (1, "again"), (2, "other"))}
    assert tokens["first"] == tokens["again"]  # one after another, its seed works
    assert tokens["first"] != tokens["other"]
    ((alone,),) = ask(backend, draws(1, max_tokens=24), seed=1)
    assert (alone.text, alone.usage.prompt_tokens, alone.usage.completion_tokens) == tokens["first"]

    ((stopped, *_),) = ask(backend, draws(1, max_tokens=24, stop=(alone.text[3],)), seed=1)
    assert stopped.text == alone.text[: alone.text.index(alone.text[3])]
    assert stopped.stop_reason == alone.text[3]
    ((*plain,),) = ask(backend, draws(4, "3+4=", max_tokens=24))
    assert len(set(texts(plain))) == 4


def _true_tokens(url: str, model: str, seed: int) -> tuple[str, int, int]:
    """What the server says to a request that was written by hand: text, prompt tokens, completion tokens."""
    config = json.dumps({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0})
    body = {"model": model, "messages": CHAT, "max_tokens": 24, "seed": seed, "generation_config": config}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        said = json.load(answer)
    usage = said["usage"]
    return said["choices"][0]["message"]["content"], usage["prompt_tokens"], usage["completion_tokens"]


# --- the benchmark ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_benchmark_runs_and_counts_the_same_work(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "endpoint.py"
    options = ["--problems", "8", "--rounds", "1", "--client-requests", "8", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "endpoint.json").read_text(encoding="utf-8"))["results"]
    (taken,) = results["rounds"]
    assert taken.keys() == {"raw", "bare_aiohttp", "bare_aiohttp_n", "ours", "ours_single", "ours_slot_per_completion"}
    assert {name: side["completions"] for name, side in taken.items() if "ours" in name} == dict.fromkeys(
        ("ours", "ours_single", "ours_slot_per_completion"), 64
    )
    assert (taken["ours"]["requests"], taken["ours_single"]["requests"]) == (8, 64)
