"""The harness sees what it has to see: each planted fault of a page is found, and a good page has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title>'
GOOD = (
    f'{HEAD}<meta name="viewport" content="width=device-width"></head><body><main><h1>A page</h1>'
    "<button>go</button></main><script>document.onkeydown = (e) => { document.title += e.key; };</script></body></html>"
)


def write(tmp_path: Path, html: str) -> str:
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    return (tmp_path / "page.html").as_uri()


def test_a_good_page_has_no_problem(browser: Any, look: dict[str, Any], tmp_path: Path) -> None:
    url = write(tmp_path, GOOD)
    page = browser.open(url, **look)
    page.press("a", "Tab", "Enter")
    assert page.evaluate("() => document.title") == "taTabEnter"
    assert page.evaluate("() => innerWidth") == look["width"]
    assert page.evaluate("() => matchMedia('(prefers-color-scheme: dark)').matches") is look["dark"]
    assert page.text("h1") == "A page"
    assert (page.axe(), page.problems, page.overflow_px) == ([], [], 0)
    assert page.requests == [url]
    assert page.screenshot(tmp_path / "shots/page.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ("<script>throw new Error('thrown')</script>", "uncaught: thrown"),
        ("<script>console.error('said')</script>", "error: said"),
        ("<img alt='' src='https://example.invalid/x.png'>", "https://example.invalid/x.png"),
        ("<div style='width: 3000px'>wide</div>", "wide"),
        ("<input>", "label: "),
    ],
)
def test_a_planted_fault_is_seen(browser: Any, tmp_path: Path, fault: str, seen: str) -> None:
    page = browser.open(write(tmp_path, GOOD.replace("</main>", f"{fault}</main>")))
    found = [*page.problems, *page.requests[1:], *page.axe(), *(["wide"] if page.overflow_px else [])]
    assert any(seen in line for line in found), found


def test_a_failing_call_says_why_and_the_next_one_works(browser: Any, tmp_path: Path) -> None:
    page = browser.open(write(tmp_path, GOOD))
    with pytest.raises(AssertionError, match="nothing of this name"):
        page.evaluate("() => { throw new Error('nothing of this name') }")
    page.wait_until("(n) => document.title.length === n", 1)


def test_a_policy_holds_unless_it_is_bypassed(browser: Any, tmp_path: Path) -> None:
    policy = "<meta http-equiv='Content-Security-Policy' content=\"script-src 'none'\">"
    url = write(tmp_path, GOOD.replace("</head>", f"{policy}</head>"))
    page = browser.open(url)
    page.press("a")
    assert page.evaluate("() => document.title") == "t"
    assert any("Content Security Policy" in line for line in page.problems)
    assert browser.open(url, bypass_csp=True).axe() == []


@pytest.mark.parametrize(("in_ci", "outcome"), [(False, "1 skipped"), (True, "1 error")])
def test_a_missing_browser_skips_here_and_fails_in_ci(tmp_path: Path, in_ci: bool, outcome: str) -> None:
    test = f"{__file__}::test_a_failing_call_says_why_and_the_next_one_works"
    environment = {**os.environ, "PATH": str(tmp_path), "CI": "true" if in_ci else ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode != 0) is in_ci
    assert outcome in done.stdout
    assert "apt-get install chromium" in done.stdout
