"""Requests that a foreign page makes a browser send are turned away; those of programs are not."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from posttrain_plugins.web.origin import LOOPBACK, OriginCheck, refusal


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8000", None),
        ("localhost:8000", None),
        ("LOCALHOST:8000", None),
        ("localhost.:8000", None),
        ("[::1]:8000", None),
        ("[0:0:0:0:0:0:0:1]:8000", None),
        ("localhost", None),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("localhost", "https://localhost"),  # behind a proxy that ends TLS
    ],
)
def test_programs_and_own_pages_come_in(host: str, origin: str | None) -> None:
    assert refusal(host, origin, LOOPBACK) is None


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("evil.example", None),
        ("evil.example:8000", None),
        ("127.0.0.1.evil.example", None),
        ("localhost.evil.example:8000", None),
        ("", None),
        (None, None),
        ("[::1", None),
        ("localhost:port", None),
        ("user@evil.example", None),
        ("127.0.0.1:8000", "https://evil.example"),
        ("127.0.0.1:8000", "http://127.0.0.1:9000"),
        ("127.0.0.1:8000", "https://127.0.0.1:8000.evil.example"),
        ("127.0.0.1:8000", "null"),
        ("127.0.0.1:8000", ""),
        ("127.0.0.1:8000", "file://"),
        ("127.0.0.1:8000", "http://localhost:8000"),
    ],
)
def test_strangers_do_not(host: str | None, origin: str | None) -> None:
    assert refusal(host, origin, LOOPBACK) is not None


def test_any_name_still_checks_the_page() -> None:
    assert refusal("box.lan:8000", None, None) is None
    assert refusal("box.lan:8000", "http://box.lan:8000", None) is None
    assert refusal("box.lan:8000", "https://evil.example", None) is not None


@pytest.mark.parametrize("host", [None, "", ":8000"])
def test_a_request_without_a_name_is_refused_whatever_is_allowed(host: str | None) -> None:
    assert refusal(host, None, None) is not None


@pytest.mark.parametrize(
    ("site", "is_opened", "comes_in"),
    [
        (None, False, True),  # a program
        ("same-origin", False, True),
        ("none", False, True),
        ("cross-site", False, False),  # an image, a script, a frame
        ("same-site", False, False),  # another port of this machine
        ("cross-site", True, True),  # a link
        ("anything", False, False),
    ],
)
def test_a_foreign_page_without_an_origin_is_told_by_its_site(site: str, is_opened: bool, comes_in: bool) -> None:
    assert (refusal("localhost:8000", None, LOOPBACK, site, is_opened) is None) is comes_in


def test_the_application_never_sees_what_is_refused() -> None:
    seen: list[str] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])

    async def send(message: Any) -> None:
        sent.append(message)

    def ask(path: str, *headers: tuple[bytes, bytes], method: str = "GET") -> None:
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        asyncio.run(OriginCheck(app, LOOPBACK)(scope, None, send))  # type: ignore[arg-type]

    ask("/in", (b"host", b"localhost:8000"))
    assert sent == []
    ask("/out", (b"host", b"evil.example"))
    ask("/out", (b"Host", b"localhost:8000"), (b"Origin", b"https://evil.example"), (b"content-type", b"text/plain"))
    assert seen == ["/in"]
    assert [message["status"] for message in sent if "status" in message] == [403, 403]
    assert b"--allowed-host" in sent[1]["body"]
    here, foreign = (b"host", b"localhost:8000"), (b"sec-fetch-site", b"cross-site")
    navigated = (b"sec-fetch-mode", b"navigate")
    ask("/link", here, foreign, navigated, (b"sec-fetch-dest", b"document"))
    ask("/frame", here, foreign, navigated, (b"sec-fetch-dest", b"iframe"))
    ask("/form", here, foreign, navigated, (b"sec-fetch-dest", b"document"), method="POST")
    assert seen == ["/in", "/link"]


def test_half_a_body_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain_plugins.serve import app
    from posttrain_plugins.serve.fields import ApiError
    from posttrain_plugins.web import body

    class Half:
        headers: ClassVar[dict[str, str]] = {"content-length": "100"}

        async def stream(self) -> AsyncIterator[bytes]:
            yield b'{"model":'
            await asyncio.Event().wait()

    monkeypatch.setattr(body, "BODY_S", 0.01)
    with pytest.raises(ApiError, match="did not come within") as refused:
        asyncio.run(app._body(Half(), 1000))  # type: ignore[arg-type]
    assert refused.value.status == 408


@pytest.mark.slow
def test_a_real_server_turns_strangers_away(tiny_model: Path) -> None:
    command = [sys.executable, "-m", "posttrain_plugins", "serve", f"m={tiny_model}", "--port", "0"]
    process = subprocess.Popen([*command, "--allowed-host", "box.lan"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        port = int(next(found[1] for line in process.stderr if (found := re.search(r"at http://\S+:(\d+)/v1", line))))

        def status(host: str, **headers: str) -> int:
            return httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"Host": host, **headers}).status_code

        assert [status(f"{name}:{port}") for name in ("127.0.0.1", "localhost", "box.lan")] == [200, 200, 200]
        assert status("evil.example") == 403
        assert status(f"localhost:{port}", Origin="https://evil.example") == 403
        assert status(f"localhost:{port}", Origin=f"http://localhost:{port}") == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)
