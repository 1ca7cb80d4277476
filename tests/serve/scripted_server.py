"""A server in this process over backends that say what their seeds tell them to, and a real one in a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
from fastapi.testclient import TestClient

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.serve.app import RequestGate
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Completion, Generate, Usage

USER = [{"role": "user", "content": "2+3=?"}]
PATIENCE_S = 60  # after which a test gives up: what it waits for comes, however slow the machine


class ScriptedBackend:
    """A backend that says what its seeds tell it to: `answer is 0` ... `answer is 9`; it counts its calls."""

    capabilities = Capabilities(tools=True)

    def __init__(self, identity: str = "m") -> None:
        self.identity = identity
        self.waves: list[list[Generate]] = []
        self.gate: threading.Event | None = None
        self.delay_s = 0.0

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        self.waves.append(list(batch))
        if self.gate is not None:
            assert self.gate.wait(PATIENCE_S)
        for i, (request, of_request) in enumerate(zip(batch, seeds, strict=True)):
            if "boom" in to_text(request.prompt):
                raise RuntimeError("boom")
            for j, seed in enumerate(of_request):
                time.sleep(self.delay_s)
                yield i, j, self.completion(request, seed, is_first=j == 0)

    def completion(self, request: Generate, seed: int, is_first: bool) -> Completion:
        usage = Usage(5 if is_first else 0, 3)
        if request.tools:
            calls = [{"name": "add", "arguments": {"a": 2}}]
            return Completion("", "tool_calls", usage, tool_calls=calls)
        if "fail" in to_text(request.prompt):
            return Completion("", "error", usage, error="out of luck")
        digit = 7 if request.params.temperature == 0 else seed % 10
        return Completion(f"answer is {digit}", "stop", usage)


@dataclass
class LocalServer:
    """A server in this process."""

    backends: Mapping[str, Any]
    request_gate: RequestGate
    http: TestClient

    @property
    def backend(self) -> ScriptedBackend:
        found = next(iter(self.backends.values()))
        assert isinstance(found, ScriptedBackend)
        return found

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            api_key=self.request_gate.api_key or "none",
            base_url="http://testserver/v1",
            http_client=self.http,
            max_retries=0,
        )

    def chat(self, model: str = "m", **fields: Any) -> Any:
        return self.client.chat.completions.create(model=model, messages=USER, **fields)  # type: ignore[call-overload]

    def post(self, path: str = "/v1/chat/completions", **fields: Any) -> Any:
        return self.http.post(path, json={"model": "m", "messages": USER, **fields})


class ServerProcess:
    """`posttrain serve` as a user starts it."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        command = [sys.executable, "-m", "posttrain_plugins", "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(
            command, cwd=cwd, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert self.process.stderr is not None
        self.told: list[str] = []
        for line in self.process.stderr:
            self.told.append(line)
            if line.lstrip().startswith("curl"):
                break
        found = re.search(r"at (http://\S+)/v1", "".join(self.told))
        assert found, "".join(self.told)
        self.url = found[1]
        self.client = openai.OpenAI(api_key="k", base_url=f"{self.url}/v1", max_retries=0, timeout=PATIENCE_S)

    def chat(self, model: str, **fields: Any) -> Any:
        fields = {"max_tokens": 12, **fields}
        messages: Any = [{"role": "user", "content": "3|7>2<9"}]
        return self.client.chat.completions.create(model=model, messages=messages, **fields)

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=PATIENCE_S).json()
        return found

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        assert out == ""
        return self.process.returncode, err


def brevity(completions: list[Any], **columns: Any) -> list[float]:
    return [-float(to_text(completion)[-1]) for completion in completions]  # the smallest digit is best


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited for {PATIENCE_S} s"
        time.sleep(0.005)
