"""A real Chromium for the tests of this folder, all of which are marked `browser`.

    def test_the_page(browser: Browser, tmp_path: Path) -> None:
        page = browser.open((tmp_path / "report.html").as_uri(), width=390, dark=True)
        page.press("Tab", "Enter")
        assert page.text("h1") == "quickstart"
        assert page.problems == []

Chromium is Debian's, driven by `driver.mjs` (Playwright); `make test-browser` installs the two packages that it needs.
Where one of them is missing the tests are skipped, and where `CI` is set they fail.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.browser)


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


def missing() -> list[str]:
    """What the tests lack, each with what installs it."""
    modules = HERE / "node_modules"
    return [
        *([] if chromium() else ["no Chromium: apt-get install chromium"]),
        *([] if shutil.which("node") else ["no node: apt-get install nodejs npm"]),
        *(
            f"no {name}: npm install --no-package-lock --prefix tests/browser"
            for name in ("playwright-core", "axe-core")
            if not (modules / name).is_dir()
        ),
    ]


class Page:
    """A tab, in a browser context of its own: no cookie and no storage is shared with another."""

    def __init__(self, driver: Driver, number: int) -> None:
        self.driver = driver
        self.number = number

    def _ask(self, command: str, **arguments: Any) -> Any:
        return self.driver.ask(command, page=self.number, **arguments)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of Playwright's Page: `call("keyboard.press", "Enter")`, `call("reload")`."""
        return self._ask("call", method=method, args=args)

    def evaluate(self, code: str, arg: Any = None) -> Any:
        """Call a JavaScript function in the page: `evaluate("(x) => x + 1", 1)`."""
        return self._ask("evaluate", code=code, arg=arg)

    def press(self, *keys: str) -> None:
        """Press keys one by one, where the focus is."""
        for key in keys:
            self.call("keyboard.press", key)

    def type(self, text: str) -> None:
        self.call("keyboard.type", text)

    def click(self, selector: str) -> None:
        self.call("click", selector)

    def wait(self, selector: str, state: str = "visible") -> None:
        """Wait until an element is `visible`, `hidden`, `attached` or `detached`."""
        self.call("waitForSelector", selector, {"state": state})

    def wait_until(self, code: str, arg: Any = None, timeout_s: float = 10.0) -> None:
        """Wait until a JavaScript function returns something true. Asked each 50 ms."""
        # not Playwright's waitForFunction, which evaluates within the page, where a policy may forbid it
        until = time.monotonic() + timeout_s
        while not self.evaluate(code, arg):
            assert time.monotonic() < until, f"not true within {timeout_s:g} s: {code}"
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """What a reader sees of the first element that a selector finds."""
        return str(self.call("innerText", selector))

    def axe(self) -> list[str]:
        """Violations that axe-core finds. A page with a policy has to be opened with `bypass_csp`."""
        return list(self._ask("axe"))

    @property
    def problems(self) -> list[str]:
        """Errors and warnings of the console, and what was thrown and not caught."""
        return list(self._ask("seen")["problems"])

    @property
    def requests(self) -> list[str]:
        """The URLs of all requests, the page itself too."""
        return list(self._ask("seen")["requests"])

    @property
    def overflow_px(self) -> int:
        """By how much the document is wider than the window."""
        code = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.evaluate(code))

    def screenshot(self, file: Path, is_whole: bool = True) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.call("screenshot", {"path": str(file), "fullPage": is_whole})
        return file

    def close(self) -> None:
        self._ask("close")


class Driver:
    """The node process with its Chromium."""

    def __init__(self) -> None:
        command = ["node", str(HERE / "driver.mjs"), str(chromium())]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = self._answer()

    def ask(self, command: str, **arguments: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the driver ended: {self.process.wait()}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # the driver closes Chromium and ends
        self.process.wait(timeout=20)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Browser:
    """Opens pages, and closes them at the end of a test."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.pages: list[Page] = []

    def open(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 800,
        dark: bool = False,
        bypass_csp: bool = False,
        touch: bool = False,
    ) -> Page:
        """Open a URL in a tab.

        Args:
            bypass_csp: lets `axe` and functions that the page's policy forbids run; never for a test of the policy.
            touch: a phone's window, with touch events.
        """
        number = self.driver.ask(
            "open", url=url, width=width, height=height, dark=dark, bypassCSP=bypass_csp, touch=touch
        )
        self.pages.append(Page(self.driver, number))
        return self.pages[-1]


LOOKS: Sequence[tuple[int, bool]] = [(1280, False), (1280, True), (390, False), (390, True)]
"""Width in px and whether dark: a desk and a phone, by day and by night."""


@pytest.fixture(params=LOOKS, ids=lambda look: f"{look[0]}-{'dark' if look[1] else 'light'}")
def look(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The arguments of `Browser.open` for each of `LOOKS`."""
    width, is_dark = request.param
    return {"width": width, "height": 844 if width < 500 else 800, "dark": is_dark, "touch": width < 500}


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    lacking = missing()
    if lacking:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up("; ".join(lacking))
    started = Driver()
    yield started
    started.close()


@pytest.fixture
def browser(driver: Driver) -> Iterator[Browser]:
    opened = Browser(driver)
    yield opened
    for page in opened.pages:
        page.close()
