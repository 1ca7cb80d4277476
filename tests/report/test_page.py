"""What every page holds: a policy by hash, texts that stay texts, JSON that no parser leaves, a file that is whole."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
from html import unescape
from pathlib import Path

import pytest

from posttrain_plugins.report.page import clean, json_script, page, policy, static, text, write_whole

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "]]>--><svg onload=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "</textarea></title></style>",
    "line\u2028sep\u2029end",
    "javascript:alert(1)",
)


def sources(html: str, directive: str) -> list[str]:
    (content,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    (found,) = [part for part in content.split("; ") if part.startswith(f"{directive} ")]
    return found.split()[1:]


def hashed(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def test_the_policy_names_the_very_bytes_that_stand_in_the_page() -> None:
    html = page("t", ["<p>x</p>"], styles=["p { color: red; }\n"], scripts=["\nlet a = 1;", "a += 1;"])
    styles = re.findall(r"<style>(.*?)</style>", html, re.S)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert (len(styles), len(scripts)) == (2, 2)
    assert sources(html, "style-src") == list(map(hashed, styles))
    assert sources(html, "script-src") == list(map(hashed, scripts))


def test_a_page_without_scripts_lets_none_run() -> None:
    html = page("t", [])
    assert "default-src 'none'" in html
    assert "script-src" not in html
    assert "unsafe" not in html + policy(["a"], ["b"])


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_text_is_data_and_nothing_else(attack: str) -> None:
    html = page(attack, [f"<p>{text(attack)}</p>"], scripts=["1;"], data={"d": {attack: [attack]}})
    assert len(re.findall(r"<script", html)) == 2  # the JSON's and ours
    assert len(re.findall(r"</script", html)) == 2
    (body,) = re.findall(r'<script type="application/json" id="d">(.*?)</script>', html, re.S)
    assert not set("<>&\u2028\u2029") & set(body)
    assert json.loads(body) == {attack: [attack]}
    assert unescape(html.split("<p>")[1].split("</p>")[0]) == attack


def test_no_number_that_is_none_reaches_json() -> None:
    found = json_script("d", {"a": float("nan"), "b": [float("inf"), -float("inf"), 1.5], "c": True, "p": Path("x")})
    assert found == '<script type="application/json" id="d">{"a":null,"b":[null,null,1.5],"c":true,"p":"x"}</script>'


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("plain\n\ttext é 日本 🙂", "plain\n\ttext é 日本 🙂"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\rb", "a\\x0db"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("\u2066x\u2069", "\\u2066x\\u2069"),
        ("half \ud83d", "half \\ud83d"),
        ("\x00", "\\x00"),
    ],
)
def test_what_no_reader_could_see_is_written_out(given: str, shown: str) -> None:
    assert clean(given) == shown
    assert json.loads(json_script("d", given).split(">", 1)[1].removesuffix("</script>")) == shown


def test_a_file_is_whole_whoever_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_whole(file, "one")
    before = file.stat().st_ino
    write_whole(file, "two \ud800")
    assert file.read_bytes() == b"two ?"
    assert file.stat().st_ino != before  # another file under the name: the old one is never half written over
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]
    umask = os.umask(0o022)
    os.umask(umask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_leaves_what_stood_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    write_whole(file, "one")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        write_whole(file, "two")
    assert file.read_text() == "one"
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("name", ["page.css", "trace.css", "uPlot.iife.min.js", "uPlot.min.css"])
def test_what_is_vendored_and_ours_loads_nothing(name: str) -> None:
    content = static(name)
    assert content
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", content)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|sendBeacon|WebSocket|new Image", content)
