"""The report as a reader has it before them: a desk and a phone, by day and by night, by keyboard, printed, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import Made, make

from posttrain_plugins.report.compare_page import compare_page
from posttrain_plugins.report.page import write_whole
from posttrain_plugins.report.run_page import RunPage

HOSTILE = (
    "</script><script>window.PWNED = 1</script><img src='https://example.invalid/x.png' onerror='window.PWNED = 1'>"
    "<!--<script>\u202e\x1b[31m\u2028[x](javascript:alert(1))</textarea></pre>"
)


CONTROLS = ".controls select, .controls input, .controls button"
SHOWN_GROUPS = ".group:not([hidden])"


def told(page: Any, selector: str, what: str) -> list[Any]:
    """Of each element that a selector finds what an expression over `e` gives."""
    return list(page.evaluate(f"(s) => [...document.querySelectorAll(s)].map((e) => {what})", selector))


def click(page: Any, selector: str, label: str) -> None:
    """Click the element of this text."""
    code = "([s, t]) => [...document.querySelectorAll(s)].find((e) => e.textContent === t).click()"
    page.evaluate(code, [selector, label])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """URL of a page of a run, of a hostile one, and of two runs."""
    root = tmp_path_factory.mktemp("reports")
    folders = {
        "run": make(root / "run", Made(steps=60, rollouts=400, spike=17)),
        "other": make(
            root / "other", Made(beta=0.9, scores={"base": [0.0] * 20, "sft": [1.0] * 20, "grpo": [0.0] * 20})
        ),
        "hostile": make(root / "hostile", Made(words=HOSTILE)),
    }
    made = {name: RunPage(folder).html() for name, folder in folders.items()}
    made["both"] = compare_page((folders["run"], folders["other"]), ("run", "other"))
    for name, html in made.items():
        write_whole(root / f"{name}.html", html)
    return {name: (root / f"{name}.html").as_uri() for name in made}


@pytest.mark.parametrize("name", ["run", "hostile", "both"])
def test_a_page_has_no_error_asks_for_nothing_and_fits(
    browser: Any, pages: dict[str, str], look: dict[str, Any], name: str
) -> None:
    page = browser.open(pages[name], **look)
    assert page.problems == []
    assert page.requests == [pages[name]]
    assert page.overflow_px == 0
    assert page.evaluate("() => document.querySelectorAll('.chart canvas').length") == 6
    assert page.evaluate("() => window.PWNED") is None
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 27)" if look["dark"] else "rgb(255, 255, 255)")


@pytest.mark.parametrize("name", ["run", "both"])
def test_axe_finds_nothing(browser: Any, pages: dict[str, str], look: dict[str, Any], name: str) -> None:
    page = browser.open(pages[name], **look, bypass_csp=True)
    assert page.axe() == []
    page.evaluate("() => { for (const one of document.querySelectorAll('details')) one.open = true; }")
    assert page.axe() == []


def test_the_policy_lets_no_planted_script_or_style_work(browser: Any, pages: dict[str, str]) -> None:
    page = browser.open(pages["run"])
    page.evaluate(
        """() => {
        const script = document.createElement('script');
        script.append('window.PWNED = 1');
        try { document.body.append(script); } catch { /* trusted types */ }
        const image = document.createElement('img');
        image.src = 'https://example.invalid/x.png';
        document.body.append(image);
        document.body.setAttribute('style', 'display: none');
    }"""
    )
    assert page.evaluate("() => window.PWNED") is None
    assert page.evaluate("() => getComputedStyle(document.body).display") == "block"
    # Playwright lists what was asked for, also what the policy then forbids
    assert [one for one in page.problems if "Loading the image" in one and "Content Security Policy" in one]
    assert page.evaluate("() => document.querySelector('img').naturalWidth") == 0


def test_a_spike_of_one_step_is_seen_and_told(browser: Any, pages: dict[str, str]) -> None:
    page = browser.open(pages["run"])
    labels = told(page, ".chart canvas", "e.getAttribute('role') + ': ' + e.getAttribute('aria-label')")
    assert [one for one in labels if one.startswith("img: loss of grpo") and "highest 1000 at step 17" in one]


def test_every_filter_is_reached_and_worked_by_keyboard(browser: Any, pages: dict[str, str]) -> None:
    page = browser.open(pages["run"])
    visible = sum(told(page, CONTROLS, "e.offsetParent !== null"))
    reached: set[int] = set()
    for _ in range(400):
        page.press("Tab")
        place = page.evaluate("(s) => [...document.querySelectorAll(s)].indexOf(document.activeElement)", CONTROLS)
        reached |= {place} - {-1}
        if reached and page.evaluate("() => document.activeElement === document.body"):
            break
    assert len(reached) == visible >= 10
    page.evaluate("() => document.querySelector('.controls[data-for=curves] select').focus()")
    page.press("s")  # the stage whose name begins with it
    assert told(page, ".stage-curves:not([hidden])", "e.dataset.stage") == ["sft"]


def test_a_click_on_a_curve_leads_to_the_completions_of_that_step(browser: Any, pages: dict[str, str]) -> None:
    page = browser.open(pages["run"])
    page.evaluate("() => document.querySelector('.chart').scrollIntoView()")
    ((x, y, width, height), *_) = told(
        page, ".chart .u-over", "(({ x, y, width, height }) => [x, y, width, height])(e.getBoundingClientRect())"
    )
    page.call("mouse.move", x + 0.35 * width, y + height / 2)
    page.call("mouse.down")
    page.call("mouse.up")
    page.wait_until("() => document.activeElement.id === 'h-completions'")
    (step,) = set(told(page, SHOWN_GROUPS, "e.dataset.step"))
    assert 15 <= int(step) <= 30
    assert len(told(page, f"{SHOWN_GROUPS}[open] .card", "1")) >= 8


@pytest.mark.parametrize(("kind", "least"), [("best", 2), ("worst", 2), ("changed", 4), ("all", 20)])
def test_completions_are_filtered(browser: Any, pages: dict[str, str], kind: str, least: int) -> None:
    page = browser.open(pages["run"])
    page.call("selectOption", ".controls[data-for=groups] select", kind)
    shown = told(page, SHOWN_GROUPS, "e.dataset.kinds")
    assert len(shown) >= least
    assert kind == "all" or all(kind in one for one in shown)


def test_problems_are_filtered_by_models_and_by_kind(browser: Any, pages: dict[str, str]) -> None:
    page = browser.open(pages["run"])
    shown = ".pairing:not([hidden]) .problem:not([hidden])"
    assert set(told(page, shown, "e.dataset.kind")) == {"broken", "fixed"}
    click(page, ".controls[data-for=problems] button", "fixed")
    assert set(told(page, shown, "e.dataset.kind")) == {"broken"}
    assert len(told(page, ".pairing:not([hidden])", "1")) == 1


def test_curves_are_smoothed_over_the_raw_line_and_have_a_log_axis(browser: Any, pages: dict[str, str]) -> None:
    page = browser.open(pages["run"])
    picture = "() => document.querySelector('.chart canvas').toDataURL()"
    raw = page.evaluate(picture)
    page.call("selectOption", ".controls[data-for=curves] label:nth-of-type(2) select", "0.1")
    smooth = page.evaluate(picture)
    page.evaluate("() => document.querySelectorAll('.controls[data-for=curves] input')[0].click()")
    assert len({raw, smooth, page.evaluate(picture)}) == 3
    assert "have no place on a log axis" in page.text("#curves")  # a KL of 0 is told, not drawn
    page.evaluate("() => document.querySelectorAll('.controls[data-for=curves] input')[1].click()")
    assert page.evaluate("() => document.querySelectorAll('.chart').length") > 6
    assert page.problems == []


def test_colours_follow_the_system_while_the_page_is_open(browser: Any, pages: dict[str, str]) -> None:
    page = browser.open(pages["run"])
    light = page.evaluate("() => document.querySelector('.chart canvas').toDataURL()")
    page.call("emulateMedia", {"colorScheme": "dark"})
    page.wait_until("(light) => document.querySelector('.chart canvas').toDataURL() !== light", light)


def test_both_runs_are_overlaid(browser: Any, pages: dict[str, str]) -> None:
    page = browser.open(pages["both"])
    label = page.evaluate("() => document.querySelector('.chart canvas').getAttribute('aria-label')")
    assert "run: first" in label
    assert "other: first" in label
    assert "One line differs: stages.grpo.args.beta: 0.1 → 0.9." in page.text("header")
    assert page.evaluate("() => document.querySelectorAll('#differences table.diff')[0].rows.length") == 2


def test_printed_it_has_a_light_ground_and_no_controls(browser: Any, pages: dict[str, str], tmp_path: Path) -> None:
    page = browser.open(pages["run"], dark=True)
    page.call("emulateMedia", {"media": "print", "colorScheme": "dark"})
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("() => getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.evaluate("() => getComputedStyle(document.querySelector('.controls')).display") == "none"
    page.call("pdf", {"path": str(tmp_path / "report.pdf"), "format": "A4"})
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
    assert page.problems == []


def test_a_large_report_is_small_enough_and_a_text_of_half_a_million_lines_is_cut(browser: Any, tmp_path: Path) -> None:
    run = make(tmp_path / "large", Made(steps=2_000, figures=10, rollouts=4_000, traces=60))
    rollouts = run / "latest/grpo/rollouts.jsonl"
    row = json.loads(rollouts.read_text().splitlines()[0])
    with rollouts.open("a") as stream:
        for text in ("line\n" * 500_000, "x" * 1_000_000):
            stream.write(json.dumps({**row, "global_step": 9_999, "completion": text}) + "\n")
    html = RunPage(run).html()
    assert len(html.encode()) < 8_000_000
    write_whole(tmp_path / "large.html", html)
    page = browser.open((tmp_path / "large.html").as_uri())
    assert page.problems == []
    assert page.overflow_px == 0
    assert "lines left out" in page.text("#completions")


def test_without_javascript_tables_and_texts_stand(driver: Any, pages: dict[str, str], tmp_path: Path) -> None:
    """The script alone hides; a page whose policy lets none run shows all of it."""
    html = Path(pages["run"].removeprefix("file://")).read_text()
    begin = html.index("script-src ")
    blocked = html[:begin] + "script-src 'none'; " + html[html.index("style-src", begin) :]
    write_whole(tmp_path / "blocked.html", blocked)
    from conftest import Browser  # type: ignore[import-not-found]

    browser = Browser(driver)
    page = browser.open((tmp_path / "blocked.html").as_uri())
    for selector in ("#chain", "#curves table", "#completions .group", "#problems .problem", "#cost table", "#recipe"):
        assert page.evaluate("(s) => document.querySelector(s).checkVisibility()", selector), selector
    assert page.evaluate("() => document.querySelectorAll('[hidden]').length") == 0
    page.close()
