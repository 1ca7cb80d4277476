"""`posttrain serve` as a process: what is told before it starts, the official client, and a graceful end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from scripted_server import PATIENCE_S, USER, LocalServer, ServerProcess, wait_for

from posttrain_plugins.errors import InputError
from posttrain_plugins.serve import server


def test_importing_the_room_imports_no_server() -> None:
    code = (
        "import sys, posttrain_plugins.serve\nprint([m for m in ('fastapi', 'uvicorn', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="fastapi and uvicorn") as missing:
        server.serve(["x"])
    assert missing.value.hint == "pip install 'posttrain-plugins[serve]'"


def test_a_taken_port_is_told_before_a_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot listen at") as refused:
            server.serve(["no/such-model"], port=taken.getsockname()[1])
    assert "--port" in str(refused.value.hint)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers, and kills what is left of them."""
    running: list[ServerProcess] = []

    def start(*arguments: str) -> ServerProcess:
        running.append(ServerProcess(*arguments, cwd=tmp_path))
        return running[-1]

    yield start
    for one in running:
        one.client.close()
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


@pytest.mark.slow
def test_the_official_client_against_a_real_server(
    start_server: Callable[..., ServerProcess],
    open_server: Callable[..., LocalServer],
    tiny_model: Path,
    lora_folders: list[Path],
) -> None:
    here = start_server(
        f"tiny={tiny_model}",
        f"one={lora_folders[0]}",
        f"two={lora_folders[1]}",
        "--strategy",
        "vote=self_consistency(n=3)",
    )
    told = "".join(here.told)
    assert f"serving tiny, one, two at {here.url}/v1" in told
    assert "curl" in told
    assert [row.id for row in here.client.models.list()] == ["tiny", "tiny@vote", "one", "one@vote", "two", "two@vote"]
    texts = {name: here.chat(name, seed=5).choices[0].message.content for name in ("tiny", "one", "two")}
    assert len(set(texts.values())) == 3
    reply = here.chat("one@self_consistency(n=4)", extra_body={"trace": True})
    assert reply.usage.completion_tokens > 4
    assert len(reply.posttrain["trace"][0]["completions"]) == 4
    chunks = list(here.chat("tiny", seed=5, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == texts["tiny"]
    assert chunks[-1].usage.total_tokens > 0
    assert here.client.completions.create(model="two", prompt=["3|7", "4>2"], n=2, max_tokens=4).choices[3].index == 3
    with pytest.raises(openai.NotFoundError):
        here.chat("three")
    with pytest.raises(openai.BadRequestError):
        here.chat("tiny@nothing")
    check_our_own_client(f"{here.url}/v1#tiny", open_server)
    before = here.health()
    with ThreadPoolExecutor(16) as clients:
        replies = list(clients.map(lambda i: here.chat("tiny@vote" if i % 2 else "tiny"), range(32)))
    after = here.health()
    assert len(replies) == 32
    assert after["completions"] - before["completions"] == 64
    assert after["waves"] - before["waves"] <= 16  # batches: fewer than half as many calls as requests
    assert here.end(signal.SIGINT)[0] == 0


def check_our_own_client(url: str, open_server: Callable[..., LocalServer]) -> None:
    """The server as a backend of another one: what it can do is found out, and strategies run over it."""
    from posttrain_plugins import api

    backend = api.backend(url)
    found = {name: getattr(backend.capabilities, name) for name in ("n", "prefill", "logprobs", "stop", "seed")}
    assert all(found.values()), found
    reply = open_server({"far": backend}).chat("far@self_consistency(n=3)", max_tokens=6)
    assert reply.usage.completion_tokens > 3
    steps = open_server({"far": backend}).chat("far", max_tokens=12, n=8, seed=1, stop=["3", "4", "5", "6", "7"])
    told = [choice.stop_reason for choice in steps.choices]
    assert any(told), "vLLM's field"


WAITS = """
import time
from pathlib import Path
from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.types import Generate

def waits(problem):
    completions = yield Generate(problem.prompt, params=problem.params)
    while not Path(GATE).exists():
        time.sleep(0.01)
    return choose(candidates(completions), 0)
"""


@pytest.fixture
def start_waiting_server(
    start_server: Callable[..., ServerProcess], tiny_model: Path, tmp_path: Path
) -> Callable[..., ServerProcess]:
    """Starts a server whose `tiny@waits` answers when the file `gate` is there."""
    (tmp_path / "waits.py").write_text(WAITS.replace("GATE", repr(str(tmp_path / "gate"))))
    return lambda *arguments: start_server(f"tiny={tiny_model}", "--strategy", "waits=./waits.py:waits", *arguments)


@pytest.mark.slow
def test_requests_in_flight_may_finish(start_waiting_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """After the signal nobody else comes in; when the last one inside has its answer, the server ends."""
    here = start_waiting_server("--api-key", "k", "--grace-s", "600")
    check_hung_up_clients_are_forgotten(here)
    with ThreadPoolExecutor(1) as clients:
        inside = clients.submit(here.chat, "tiny@waits")
        wait_for(lambda: here.health()["in_flight"] == 1)
        here.process.send_signal(signal.SIGTERM)
        wait_for(lambda: here.health()["status"] == "closing")
        with pytest.raises(openai.InternalServerError, match="the server ends"):
            here.chat("tiny")
        assert not inside.done()
        (tmp_path / "gate").touch()
        assert inside.result(PATIENCE_S).choices[0].message.content is not None
    _, err = here.process.communicate(timeout=PATIENCE_S)
    assert here.process.returncode == 0, err
    assert "stopping: 1 in flight, at most 600 s" in err
    assert "Traceback" not in err


def check_hung_up_clients_are_forgotten(here: ServerProcess) -> None:
    host, port = here.url.removeprefix("http://").split(":")
    for is_streamed in (False, True):
        body = json.dumps({"model": "tiny@waits", "messages": USER, "stream": is_streamed}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        head += "Authorization: Bearer k\r\n\r\n"
        with socket.create_connection((host, int(port))) as wire:
            wire.sendall(head.encode() + body)
            wait_for(lambda: here.health()["in_flight"] == 1)
        wait_for(lambda: here.health()["in_flight"] == 0)


@pytest.mark.slow
def test_requests_that_outlast_the_grace_are_told(start_waiting_server: Callable[..., ServerProcess]) -> None:
    here = start_waiting_server("--grace-s", "1")
    with ThreadPoolExecutor(2) as clients:
        endless = clients.submit(here.chat, "tiny@waits")
        stream = clients.submit(lambda: list(here.chat("tiny@waits", stream=True)))
        wait_for(lambda: here.health()["in_flight"] == 2)
        began = time.monotonic()
        here.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError) as late:
            endless.result(PATIENCE_S)
        assert late.value.status_code == 503
        with pytest.raises(openai.APIError, match="stopped"):
            stream.result(PATIENCE_S)
        _, err = here.process.communicate(timeout=PATIENCE_S)
    assert here.process.returncode == 0, err
    assert time.monotonic() - began >= 1
    assert "stopping: 2 in flight, at most 1 s" in err
    assert "Traceback" not in err
