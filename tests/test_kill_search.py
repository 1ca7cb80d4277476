"""A tree search on a seeded endpoint, killed in the middle and started again: same answers, nothing much paid twice."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

CONCURRENCY = 8
CLIENT = """
import json, sys
from pathlib import Path
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.backends.openai.backend import OpenAIBackend
from posttrain_plugins.strategies.mcts import MCTS
from posttrain_plugins.types import Problem, ResolvedReward, SamplingParams

def digits(prompts, completions, **columns):
    return [sum(c in "56789" for c in text) / max(len(text), 1) for text in completions]

if __name__ == "__main__":
    url, log, out, concurrency = sys.argv[1:]
    backend = OpenAIBackend("fake", url, concurrency=int(concurrency), should_probe=False)
    problems = [Problem(f"problem {i}: ", SamplingParams(max_tokens=24), id=str(i)) for i in range(50)]
    strategy = MCTS(scorer="digits", num_simulations=16, branches=3, separator=";", aggregate="whole")
    scorers = {"digits": ResolvedReward("digits", digits)}
    results = solve(strategy, problems, backend=backend, scorers=scorers, log=Path(log), seed=3)
    Path(out).write_text(json.dumps([[r.text, r.error] for r in results]))
"""


class Endpoint(ThreadingHTTPServer):
    """`/v1/completions`: what is drawn depends on prompt and seed only; the tokens that were served are counted."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.tokens = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def draw(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = []
        for i in range(body.get("n", 1)):
            noise = random.Random(hashlib.sha256(f"{body['prompt']}|{body['seed']}|{i}".encode()).digest())
            is_end = body["prompt"].count(";") >= 3
            text = f"{noise.randrange(10)}+{noise.randrange(10)}"
            about = {"finish_reason": "stop", "stop_reason": None if is_end else ";"}
            choices.append({"index": i, "text": text, **about})
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 4 * len(choices)}
        usage["total_tokens"] = sum(usage.values())
        with self.lock:
            self.tokens += usage["total_tokens"]
        return {
            "id": "x",
            "object": "text_completion",
            "created": 1,
            "model": "fake",
            "choices": choices,
            "usage": usage,
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(0.01)
        raw = json.dumps(self.server.draw(body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        raw = json.dumps({"data": [{"id": "fake"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_killed_tree_search_goes_on_where_it_stood(endpoint: Endpoint, tmp_path: Path) -> None:
    client = tmp_path / "client.py"
    client.write_text(textwrap.dedent(CLIENT), encoding="utf-8")

    def command(log: str, out: str) -> list[str]:
        words = [endpoint.url, str(tmp_path / log), str(tmp_path / out), str(CONCURRENCY)]
        return [sys.executable, "-W", "ignore", str(client), *words]

    subprocess.run(command("whole.jsonl", "whole.json"), check=True, timeout=300)
    whole, endpoint.tokens = endpoint.tokens, 0
    with subprocess.Popen(command("killed.jsonl", "killed.json"), stderr=subprocess.DEVNULL) as process:
        while endpoint.tokens < whole / 2:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    time.sleep(0.2)  # what was in service then is served to nobody, and counts
    assert not (tmp_path / "killed.json").exists()
    subprocess.run(command("killed.jsonl", "killed.json"), check=True, timeout=300)
    results = json.loads((tmp_path / "whole.json").read_text())
    assert json.loads((tmp_path / "killed.json").read_text()) == results
    assert all(text and error is None for text, error in results)
    twice = (endpoint.tokens - whole) / whole
    print(f"paid twice: {twice:.2%} of {whole} tokens, at most {CONCURRENCY} requests in flight")
    assert 0 <= twice <= 0.02
