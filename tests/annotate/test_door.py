"""Who may come in, through the whole server: pages of other sites write nothing, whatever they try."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from posttrain_plugins.annotate.app import create_app
from posttrain_plugins.annotate.door import Door
from posttrain_plugins.annotate.page import About
from posttrain_plugins.decisions.ledger import read_all
from posttrain_plugins.errors import InputError
from posttrain_plugins.web.origin import OriginCheck

ROWS = [{"prompt": "p", "completions": ["a", "b"]}]
TOKEN = "a-long-token"


@pytest.fixture
def open_page(open_table: Callable[..., Any]) -> Iterator[Callable[..., TestClient]]:
    """Opens the whole application, as a browser of this machine reaches it."""
    with contextlib.ExitStack() as stack:

        def open_one(host: str = "127.0.0.1", token: str | None = None) -> TestClient:
            table, door = open_table(ROWS), Door(host, token)
            app = OriginCheck(create_app(table.desk, door, About("t", "pick")), door.allowed)
            return stack.enter_context(TestClient(app, base_url="http://127.0.0.1:8765"))

        yield open_one


@pytest.fixture
def page(open_page: Callable[..., TestClient]) -> TestClient:
    return open_page()


def decision(page: TestClient) -> dict[str, Any]:
    asked = {"annotator": "anna", "session": "s"}
    item = page.post("/api/next", json=asked).json()["item"]
    return {**asked, "id": "d", "item": item["id"], "mode": "pick", "shown": item["shown"], "choice": 0}


def raw(port: int, *lines: str) -> int:
    """The status of a request whose headers are written by hand."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        return int(connection.recv(100).split()[1])


def test_strangers_write_nothing_and_programs_do(page: TestClient, tmp_path: Path) -> None:
    values = decision(page)
    attacks: dict[str, dict[str, str]] = {
        "a page of another site": {"Origin": "https://evil.example"},
        "a file, or a frame in a sandbox": {"Origin": "null"},
        "another port": {"Origin": "http://127.0.0.1:1"},
        "a foreign name": {"Host": "evil.example"},
        "a name that begins like ours": {"Host": "127.evil.com"},
        "a name whose server answers with 127.0.0.1": {"Host": "evil.example", "Origin": "http://evil.example"},
        "without an Origin": {"Sec-Fetch-Site": "cross-site"},
        "a form": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    }
    for name, headers in attacks.items():
        answer = page.post("/api/decide", json=values, headers=headers)
        assert answer.status_code == 403, name
    body = json.dumps(values)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):  # no preflight
        answer = page.post("/api/decide", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 415, kind
    frame = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
    assert page.get("/", headers=frame).status_code == 403
    assert read_all(tmp_path / "decisions.jsonl") == []
    own = {"Origin": "http://127.0.0.1:8765", "Sec-Fetch-Site": "same-origin"}
    assert page.post("/api/decide", json=values, headers=own).status_code == 200
    assert len(read_all(tmp_path / "decisions.jsonl")) == 1


@pytest.mark.slow
def test_a_request_without_a_name_is_refused(
    start_annotate: Callable[..., Any], write_rows: Callable[..., Path]
) -> None:
    write_rows(ROWS)
    server = start_annotate("rows.jsonl")
    for version in ("1.0", "1.1"):
        assert raw(server.port, f"GET / HTTP/{version}") in (400, 403)
    assert raw(server.port, "GET / HTTP/1.0", f"Host: 127.0.0.1:{server.port}") == 200


def test_the_page_may_run_its_own_script_alone_and_stand_in_no_frame(page: TestClient) -> None:
    shown = page.get("/")
    policy = shown.headers["content-security-policy"]
    for rule in (
        "default-src 'none'", "script-src 'sha256-", "require-trusted-types-for 'script'", "connect-src 'self'",
        "img-src 'none'", "frame-ancestors 'none'", "form-action 'none'", "base-uri 'none'",
    ):  # fmt: skip
        assert rule in policy
    assert "unsafe" not in policy
    assert shown.headers["x-frame-options"] == "DENY"
    assert shown.headers["cache-control"] == "no-store"
    assert "innerHTML" not in shown.text
    assert "insertAdjacentHTML" not in shown.text


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("next", {}),
        ("next", {"annotator": "", "session": "s"}),
        ("next", {"annotator": "x" * 65, "session": "s"}),
        ("next", {"annotator": "a\u202eb", "session": "s"}),
        ("next", {"annotator": "a", "session": 1}),
        ("next", {"annotator": "a", "session": "s", "held": "all"}),
        ("next", {"annotator": "a", "session": "s", "held": ["x"] * 17}),
        ("decide", {"annotator": "a", "id": "d"}),
        ("decide", {"annotator": "a", "id": 7, "item": "x"}),
        ("decide", {"annotator": "a", "id": "d", "voids": ["x"]}),
        ("undo", {"annotator": "a", "id": "d"}),
        ("rest", {"item": "x", "part": "prompt:0", "start": -1}),
        ("rest", {"item": "x", "part": "prompt:0", "start": 0}),
        ("draft", {"annotator": "a", "item": "x"}),
        ("draft", {"annotator": "a", "item": "x", "text": "t"}),
    ],
)
def test_what_means_nothing_is_refused_with_a_word(page: TestClient, path: str, values: dict[str, Any]) -> None:
    answer = page.post(f"/api/{path}", json=values)
    assert answer.status_code in (400, 409), answer.text
    assert answer.json()["error"]["message"]


def test_bodies_that_are_no_object_or_too_large_are_refused(page: TestClient) -> None:
    kind = {"Content-Type": "application/json"}
    for body in (b"", b"[1]", b"{", b"[" * 100_000, b"\xff"):
        assert page.post("/api/next", content=body, headers=kind).status_code == 400
    assert page.post("/api/next", content=b" " * 9_000_000, headers=kind).status_code == 413
    assert page.get("/api/next").status_code == 405
    assert page.get("/static/annotate.js").status_code == 404


@pytest.mark.parametrize("arguments", [("--host", "0.0.0.0"), ("--host", "::", "--token", "short")])
def test_other_machines_need_a_token_before_anything_is_opened(
    tmp_path: Path, write_rows: Callable[..., Path], arguments: tuple[str, ...]
) -> None:
    write_rows(ROWS)
    command = [sys.executable, "-m", "posttrain_plugins", "annotate", "rows.jsonl", "--port", "0", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "token" in done.stderr
    assert not (tmp_path / "rows.decisions.jsonl").exists()


@pytest.mark.slow
def test_the_token_opens_the_door_by_header_and_cookie_and_is_in_no_line(
    tmp_path: Path, start_annotate: Callable[..., Any], write_rows: Callable[..., Path]
) -> None:
    write_rows(ROWS)
    server = start_annotate("rows.jsonl", "--host", "0.0.0.0", "--token", TOKEN)
    asked = {"annotator": "anna", "session": "s"}
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/").status_code == 200  # the page itself holds nothing
        assert client.post("/api/next", json=asked).status_code == 401
        assert client.post("/api/enter", json={"token": "wrong"}).status_code == 401
        assert client.post("/api/next", json=asked, headers={"Authorization": "Bearer wrong"}).status_code == 401
        right = client.post("/api/next", json=asked, headers={"Authorization": f"Bearer {TOKEN}"})
        assert right.json()["state"] == "item"
        entered = client.post("/api/enter", json={"token": TOKEN})
        cookie = entered.headers["set-cookie"].lower()
        assert all(word in cookie for word in ("httponly", "samesite=strict", f"annotate_{server.port}="))
        assert client.post("/api/next", json=asked).status_code == 200
        # by any name, since nobody can list those of a network; pages of other sites stay out
        named = {"Host": f"box.lan:{server.port}", "Cookie": f"posttrain_annotate_{server.port}={TOKEN}"}
        assert client.post("/api/next", json=asked, headers=named).status_code == 200
        foreign = {**named, "Origin": "https://evil.example"}
        assert client.post("/api/next", json=asked, headers=foreign).status_code == 403
    assert TOKEN not in server.stop()
    assert not any(TOKEN.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


@pytest.mark.slow
def test_who_comes_second_is_told_where_the_first_one_is(
    tmp_path: Path, start_annotate: Callable[..., Any], write_rows: Callable[..., Path]
) -> None:
    write_rows(ROWS)
    server = start_annotate("rows.jsonl")
    command = [sys.executable, "-m", "posttrain_plugins", "annotate", "rows.jsonl", "--port", str(server.port)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert server.url in done.stderr
    assert "is being written by" in done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_this_machine_no_token_is_needed(host: str) -> None:
    door = Door(host, None)
    assert door.is_open_to({}, 1)
    assert door.allowed is not None
    assert "127.0.0.1" in door.allowed


@pytest.mark.parametrize(
    "cookie", ["", "a=b", "posttrain_annotate_2=a-long-token", '"', "posttrain_annotate_1=", "\x00"]
)
def test_other_cookies_open_nothing(cookie: str) -> None:
    assert not Door("0.0.0.0", TOKEN).is_open_to({"cookie": cookie}, 1)


def test_a_bare_address_of_the_network_is_refused() -> None:
    with pytest.raises(InputError, match="could read the questions"):
        Door("192.168.1.5", None)
