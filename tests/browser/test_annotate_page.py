"""The page of `posttrain annotate` in a real browser: five modes by keyboard, hostile texts, a phone, two tabs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from posttrain_plugins.annotate.app import create_app
from posttrain_plugins.annotate.assign import Assignment
from posttrain_plugins.annotate.desk import Desk
from posttrain_plugins.annotate.door import Door
from posttrain_plugins.annotate.page import About
from posttrain_plugins.annotate.scratch import Scratch
from posttrain_plugins.decisions.item import Decision, items_of
from posttrain_plugins.decisions.ledger import Ledger, read_all, read_ledger
from posttrain_plugins.web.origin import OriginCheck
from posttrain_plugins.web.port import listening, url_of

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why is the sky blue?"}]
GUIDE = "Prefer what is right.\n\nIf all are wrong, press 0."
QUIET_S = 0.2  # longer than the page ignores keys after a new question
ROWS: dict[str, list[dict[str, Any]]] = {
    "pick": [{"prompt": [*CHAT, {"role": "user", "content": f"({i})"}], "completions": list("abc")} for i in range(9)],
    "rank": [{"prompt": f"rank {i}", "completions": [f"text {k}" for k in "abcde"]} for i in range(9)],
    "accept": [{"prompt": f"accept {i}", "completion": f"an answer {i}"} for i in range(9)],
    "first_wrong": [{"prompt": f"steps {i}", "completion": "1+1=2\n\n2+2=5\n\n5+5=10"} for i in range(9)],
    "demonstration": [{"prompt": f"write {i}"} for i in range(9)],
}


class Office:
    """The page's server in a thread, with its ledger."""

    def __init__(self, folder: Path, rows: Sequence[dict[str, Any]], mode: Any, guideline: str = GUIDE) -> None:
        self.path = folder / f"{mode}.jsonl"
        self.items = items_of(rows, mode)[0]
        self.ledger = Ledger.open(self.path)
        self.scratch = Scratch(folder / f"{mode}.scratch")
        self.about = About("questions", mode, guideline)
        self.desk = Desk(self.ledger, self.scratch, Assignment(), self.about.guideline_sha)
        self.desk.offer(self.items)
        self.start(0)

    def start(self, port: int) -> None:
        self.listening = listening("127.0.0.1", port)
        self.socket = self.listening.__enter__()
        self.url = url_of(self.socket)
        door = Door("127.0.0.1", None)
        app = OriginCheck(create_app(self.desk, door, self.about), door.allowed)
        config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=0)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=20)
        self.listening.__exit__(None, None, None)

    def close(self) -> None:
        self.stop()
        self.ledger.close()
        self.scratch.close()

    def wait_for(self, count: int) -> list[Decision]:
        """The decisions that stand, once there are so many lines."""
        until = time.monotonic() + 10
        while len(read_all(self.path)) < count and time.monotonic() < until:
            time.sleep(0.02)
        assert len(read_all(self.path)) == count
        return read_ledger(self.path)


@pytest.fixture
def open_office(tmp_path: Path) -> Iterator[Callable[..., Office]]:
    opened: list[Office] = []

    def open_one(mode: str, rows: Sequence[dict[str, Any]] | None = None, **options: Any) -> Office:
        opened.append(Office(tmp_path, ROWS[mode] if rows is None else rows, mode, **options))
        return opened[-1]

    yield open_one
    for office in opened:
        office.close()


def begin(browser: Any, office: Office, name: str = "anna", **look: Any) -> Any:
    """Open the page, and give a name by keyboard."""
    page = browser.open(office.url, **look)
    page.wait("#start")
    page.call("focus", "#name")
    page.type(name)
    page.press("Enter")
    page.wait("#question")
    time.sleep(QUIET_S)
    return page


def shown(page: Any) -> list[str]:
    """The texts of the answers, in the order on the screen."""
    return list(page.evaluate("() => [...document.querySelectorAll('#answers .text')].map((one) => one.textContent)"))


def press(page: Any, office: Office, *keys: str) -> Decision:
    """Press keys until the next question is there, and return what was decided."""
    count = len(read_all(office.path))
    page.press(*keys)
    found = office.wait_for(count + 1)[-1]
    page.wait_until(
        "(n) => document.getElementById('count').textContent.startsWith(`${n} of`)", len(office.desk.ledger.effective())
    )
    time.sleep(QUIET_S)
    return found


# --- five modes by keyboard alone ------------------------------------------------------------------------------------


def test_pick_is_one_key(browser: Any, open_office: Callable[..., Office]) -> None:
    office = open_office("pick")
    page = begin(browser, office)
    texts = shown(page)
    found = press(page, office, "2")
    item = next(item for item in office.items if item.id == found.item)
    assert item.completions[found.choice] == texts[1]
    assert [item.completions[place] for place in found.shown] == texts
    assert found.seconds is not None
    assert 0.1 < found.seconds < 10
    assert found.guideline_sha == office.about.guideline_sha
    assert press(page, office, "Numpad3").choice == read_ledger(office.path)[-1].shown[2]
    assert press(page, office, "0").none_good
    assert page.problems == []


def test_rank_of_five_is_five_keys_and_ties_one_more(browser: Any, open_office: Callable[..., Office]) -> None:
    office = open_office("rank")
    page = begin(browser, office)
    found = press(page, office, "3", "1", "5", "2", "4")
    assert found.order == tuple((found.shown[place - 1],) for place in (3, 1, 5, 2, 4))
    found = press(page, office, "1", "2", "Backspace", "=", "5", "4", "3", "2")
    on_screen = [[found.shown.index(place) + 1 for place in group] for group in found.order or ()]
    assert on_screen == [[1, 5], [4], [3], [2]]
    assert press(page, office, "0").none_good


def test_accept_and_reject_are_one_key(browser: Any, open_office: Callable[..., Office]) -> None:
    office = open_office("accept")
    page = begin(browser, office)
    assert [press(page, office, key).verdict for key in ("a", "x", "A", "0")] == [True, False, True, False]


@pytest.mark.parametrize(
    ("keys", "first_wrong"),
    [(["2"], 1), (["ArrowDown", "x"], 1), (["x"], 0), (["a"], 3), (["ArrowDown"] * 3 + ["a"], 3), (["0"], 0)],
)
def test_the_first_wrong_step_takes_at_most_one_key_more_than_steps(
    browser: Any, open_office: Callable[..., Office], keys: list[str], first_wrong: int
) -> None:
    office = open_office("first_wrong")
    page = begin(browser, office)
    assert shown(page) == ["1+1=2", "2+2=5", "5+5=10"]
    assert press(page, office, *keys).first_wrong == first_wrong
    assert len(keys) <= 4


def test_a_demonstration_is_written_kept_and_sent(browser: Any, open_office: Callable[..., Office]) -> None:
    office = open_office("demonstration")
    page = begin(browser, office)
    page.type("one 1 f u 0")  # no key of these is one of the page
    page.press("Enter")
    page.type("two")
    page.wait_until("() => document.getElementById('draft-state').textContent === 'Draft kept'")
    page.call("reload")
    page.wait("#answer")
    assert page.call("inputValue", "#answer") == "one 1 f u 0\ntwo"
    time.sleep(QUIET_S)
    assert press(page, office, "Control+Enter").text == "one 1 f u 0\ntwo"
    page.press("Control+Enter")  # nothing is written yet
    time.sleep(0.3)
    page.press("Escape")
    assert press(page, office, "0").none_good
    page.type("by the button")
    page.click("#choices button")
    assert office.wait_for(3)[-1].text == "by the button"


def test_a_models_answer_is_there_to_be_made_good(browser: Any, open_office: Callable[..., Office]) -> None:
    office = open_office("demonstration", [{"prompt": "p", "completion": "</textarea><b>almost"}])
    page = begin(browser, office)
    page.type(" right")
    assert press(page, office, "Control+Enter").text == "</textarea><b>almost right"


# --- keys that are none ----------------------------------------------------------------------------------------------


def test_repeats_compositions_chords_and_early_keys_decide_nothing(
    browser: Any, open_office: Callable[..., Office]
) -> None:
    office = open_office("pick")
    page = begin(browser, office)
    fire = (
        "(init) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key: '1', code: 'Digit1', bubbles: true,"
    )
    fire += " ...init}))"
    for init in ({"repeat": True}, {"isComposing": True}, {"keyCode": 229}, {"ctrlKey": True}, {"altKey": True}):
        page.evaluate(fire, init)
    time.sleep(0.2)
    assert read_all(office.path) == []
    # a held key: the first press counts, its repeats and what comes within 150 ms of the next question do not
    page.evaluate(
        f"""async () => {{
          const fire = {fire}, count = document.getElementById("count"), before = count.textContent;
          const pause = (ms) => new Promise((done) => setTimeout(done, ms));
          fire({{}});
          for (let i = 0; i < 800 && count.textContent === before; i++) {{ fire({{ repeat: true }}); await pause(10); }}
          await pause(30);
          fire({{}});
        }}"""
    )
    time.sleep(0.3)
    assert len(read_all(office.path)) == 1


def test_seconds_stop_while_the_page_is_hidden(browser: Any, open_office: Callable[..., Office]) -> None:
    office = open_office("pick")
    page = begin(browser, office)
    hide = "(is) => { Object.defineProperty(document, 'hidden', {value: is, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(hide, True)
    time.sleep(1.5)
    page.evaluate(hide, False)
    seconds = press(page, office, "1").seconds
    assert seconds is not None
    assert seconds < 1.4


# --- undo, looking back, notes, flags --------------------------------------------------------------------------------


def test_undo_and_looking_back(browser: Any, open_office: Callable[..., Office]) -> None:
    office = open_office("pick")
    page = begin(browser, office)
    first = press(page, office, "1")
    second = press(page, office, "2")
    third = page.text("#prompt")
    page.press("ArrowLeft")
    page.wait("#looking")
    time.sleep(QUIET_S)
    page.press("ArrowLeft")
    page.wait_until("() => document.querySelector('.chosen kbd').textContent === '1'")
    time.sleep(QUIET_S)
    corrected = press(page, office, "3")
    assert (corrected.item, corrected.voids) == (first.item, first.id)
    assert page.text("#prompt") == third  # and goes on where it was
    page.press("u")
    page.wait_until("() => document.getElementById('saved').textContent.startsWith('Undone')")
    standing = {one.item: one for one in read_ledger(office.path)}
    assert standing[first.item].choice == first.choice  # the correction alone is undone
    assert standing[second.item].choice == second.choice
    time.sleep(QUIET_S)
    press(page, office, "2")
    assert page.text("#prompt") == third


def test_a_note_and_a_flag_go_with_the_decision(browser: Any, open_office: Callable[..., Office]) -> None:
    office = open_office("pick")
    page = begin(browser, office)
    page.press("n")
    page.type("1 is long")
    page.press("Escape")
    noted = press(page, office, "1")
    assert (noted.note, noted.flag) == ("1 is long", False)
    page.press("f")
    page.wait("#flag")
    page.type("broken 2")
    flagged = press(page, office, "Enter")
    assert (flagged.flag, flagged.note, flagged.choice) == (True, "broken 2", None)
    assert press(page, office, "1").note == ""


# --- a server that is away, two tabs ---------------------------------------------------------------------------------


def test_a_decision_waits_for_the_server_and_is_written_once(browser: Any, open_office: Callable[..., Office]) -> None:
    office = open_office("pick")
    page = begin(browser, office)
    port = int(office.url.rpartition(":")[2])
    office.stop()
    before = page.text("#prompt")
    page.press("1")
    page.wait("#trouble")
    assert "Not saved yet" in page.text("#trouble")
    assert page.text("#prompt") == before  # it goes on only when the decision is on disk
    page.press("2", "3")  # one question, one decision
    office.start(port)
    office.wait_for(1)
    page.wait("#trouble", "hidden")
    page.wait_until("(text) => document.getElementById('prompt').innerText !== text", before)
    assert len(office.wait_for(1)) == 1


def test_a_decision_outlives_its_tab(browser: Any, open_office: Callable[..., Office]) -> None:
    office = open_office("pick")
    page = begin(browser, office)
    port = int(office.url.rpartition(":")[2])
    office.stop()
    page.press("1")
    page.wait("#trouble")
    office.start(port)
    page.call("reload")
    page.wait("#question")
    assert len(office.wait_for(1)) == 1


def test_two_tabs_have_different_questions_and_the_end_is_told(
    browser: Any, open_office: Callable[..., Office]
) -> None:
    office = open_office("accept", ROWS["accept"][:3])
    pages = [begin(browser, office), begin(browser, office)]
    assert pages[0].text("#prompt") != pages[1].text("#prompt")
    press(pages[0], office, "a")
    pages[1].press("a")
    office.wait_for(2)
    time.sleep(QUIET_S)
    pages[0].press("a")
    office.wait_for(3)
    pages[0].wait("#end")
    assert pages[0].text("#end-title") == "All is decided"
    assert "3 decisions" in pages[0].text("#end-text")
    assert pages[0].problems == []


# --- what a model may write ------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>document.title = 'run'</script>",
    "<img src=x onerror=\"document.title='run'\">",
    "</textarea></pre><svg onload=\"document.title='run'\">",
    "[click](javascript:document.title='run')",
    "![pixel](https://evil.invalid/p.png)",
    "invoice\u202egnp.exe",
    "\x1b[31mred\x1b[0m",
]


@pytest.mark.parametrize("mode", ["pick", "accept", "first_wrong", "demonstration"])
def test_what_a_model_writes_is_text(browser: Any, open_office: Callable[..., Office], mode: str) -> None:
    whole = "\n".join(HOSTILE)
    row: dict[str, Any] = {"prompt": [{"role": "<b>user</b>", "content": whole}, {"role": "user", "content": whole}]}
    row |= {"completions": HOSTILE} if mode == "pick" else {"completion": whole}
    office = open_office(mode, [row], guideline=whole)
    page = begin(browser, office)
    said = page.evaluate("() => document.body.innerText")
    for text in HOSTILE:
        assert text.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b").split("\n")[0] in said
    assert "run" not in page.evaluate("() => document.title")
    assert (
        page.evaluate("() => document.querySelectorAll('main img, main svg, main script, main a, main b').length") == 0
    )
    assert {url.split("/")[2] for url in page.requests} == {office.url.split("/")[2]}
    assert page.problems == []


def test_the_policy_forbids_what_would_parse_text(browser: Any, open_office: Callable[..., Office]) -> None:
    page = begin(browser, open_office("accept"))
    for code in (
        "() => { document.body.innerHTML = '<b>x</b>'; }",
        "() => { const s = document.createElement('script'); s.text = 'document.title = 1'; document.body.append(s); }",
    ):
        with pytest.raises(AssertionError, match=r"TrustedHTML|TrustedScript"):
            page.evaluate(code)
    page.evaluate("() => { const i = new Image(); i.src = 'https://evil.invalid/x.png'; document.body.append(i); }")
    page.evaluate("() => fetch('https://evil.invalid/').catch(() => 0)")
    time.sleep(0.2)
    assert any("img-src" in line for line in page.problems)
    assert any("connect-src" in line for line in page.problems)


@pytest.mark.parametrize("kind", ["one word", "many lines"])
def test_texts_without_end_are_shown_in_pages(browser: Any, open_office: Callable[..., Office], kind: str) -> None:
    text = "w" * 1_000_000 if kind == "one word" else "line\n" * 500_000
    office = open_office("pick", [{"prompt": "p", "completions": [text, f"{text}!", "short"]}])
    page = begin(browser, office)
    size = sum(map(len, shown(page)))
    assert size < 90_000
    page.click(".show-more")
    until = time.monotonic() + 10
    while sum(map(len, shown(page))) <= size:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert page.overflow_px == 0
    assert press(page, office, "1").choice is not None


# --- how it looks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(ROWS))
def test_everybody_can_use_it(
    browser: Any, open_office: Callable[..., Office], look: dict[str, Any], mode: str
) -> None:
    office = open_office(mode)
    page = browser.open(office.url, bypass_csp=True, **look)
    page.wait("#start")
    states = {"start": page.axe()}
    page.call("fill", "#name", "anna")
    page.click("#start button")
    page.wait("#question")
    states["question"] = page.axe()
    small = "() => [...document.querySelectorAll('button, input')].filter((one) => one.offsetParent).map((one) =>"
    small += (
        " [one.textContent || one.id, one.getBoundingClientRect()]).filter(([, r]) => r.height < 44 || r.width < 44)"
    )
    assert page.evaluate(small) == []
    assert page.overflow_px == 0
    for opener, dialog in (("#open-guide", "#guide"), ("#flag-open", "#flag")):
        page.click(opener)
        page.wait(dialog)
        states[dialog] = page.axe()
        page.press("Escape")
    page.click("#note-open")
    states["note"] = page.axe()
    page.press("Escape")
    time.sleep(QUIET_S)
    page.press("Escape")
    page.click("#none")
    office.wait_for(1)
    time.sleep(QUIET_S)
    page.click("#back")
    page.wait("#looking")
    states["looking back"] = page.axe()
    assert page.overflow_px == 0
    assert {name: found for name, found in states.items() if found} == {}
    assert page.problems == []


def test_the_last_screen_can_be_read_by_everybody(
    browser: Any, open_office: Callable[..., Office], look: dict[str, Any]
) -> None:
    office = open_office("accept", ROWS["accept"][:1])
    page = begin(browser, office, bypass_csp=True, **look)
    page.click("#choices button")
    page.wait("#end")
    assert page.axe() == []
    assert page.overflow_px == 0
    assert json.loads(page.evaluate("() => JSON.stringify(document.title)")).startswith("1 of 1")
