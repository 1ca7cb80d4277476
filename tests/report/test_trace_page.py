"""A trace as people see it: the tree of the terminal and the page, from hand-written traces."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from posttrain_plugins.report.trace_page import trace_page
from posttrain_plugins.report.trace_tree import trace_tree
from posttrain_plugins.report.trace_view import chains, view
from posttrain_plugins.types import Candidate, Result, Usage

QUESTION = [{"role": "user", "content": "2+3=?"}]


def generate(*texts: str, prefill: str = "", number: int = 0, **about: Any) -> dict[str, Any]:
    prompt = [*QUESTION, {"role": "assistant", "content": prefill}] if prefill else QUESTION
    completions = [
        {"text": text, "finish_reason": "stop", "tokens": 7, "stop_reason": about.get("stop")} for text in texts
    ]
    event = {"round": number, "kind": "generate", "role": "policy", "purpose": "answer", "prompt": prompt}
    return {**event, "completions": completions, **{k: v for k, v in about.items() if k != "stop"}}


def score(*pairs: tuple[str, float | None], number: int = 1) -> dict[str, Any]:
    completions, scores = zip(*pairs, strict=True)
    return {
        "round": number, "kind": "score", "scorer": "rm", "prompt": QUESTION,
        "completions": list(completions), "scores": list(scores),
    }  # fmt: skip


@pytest.fixture
def best_of_three() -> Result:
    texts = ("answer is 6", "answer is 5", "I cannot tell what this is")
    trace = [generate(*texts), score(*zip(texts, (-3.0, 4.0, None), strict=True))]
    usage = {"policy": Usage(9, 21, 0, 1), "rm": Usage(60, 0, 3, 1)}
    return Result("5", "answer is 5", [Candidate(text) for text in texts], usage, None, trace)


@pytest.fixture
def beam() -> Result:
    """Two steps, of which the second goes on from one of the first."""
    first = generate("2+3=5", "2+3=6", stop=";", purpose="step")
    second = generate("answer is 5", prefill="2+3=5;", number=1)
    return Result("5", "2+3=5;answer is 5", [], {"policy": Usage(10, 20, 0, 2)}, "tokens", [first, second])


def rendered(result: Result, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(trace_tree(result, width))
    return console.file.getvalue()  # type: ignore[attr-defined]


class Reader(HTMLParser):
    """What a browser would see: tags, attributes, text; unbalanced tags are an error."""

    VOID = ("meta", "br")
    LOOSE = ("td", "th")  # HTML lets these be closed by what follows

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID + self.LOOSE:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(result: Result, **about: str) -> Reader:
    reader = Reader()
    reader.feed(trace_page(result, **{"title": "2+3=?", "model": "m", "strategy": "best_of_n", **about}))
    reader.close()
    assert reader.open == []
    return reader


# --- which path is the answer's --------------------------------------------------------------------------------------


def test_the_chosen_completion_is_marked(best_of_three: Result) -> None:
    seen = view(best_of_three)
    assert {node.text for node in seen.root.walk() if node.id in seen.chosen and node.id} == {"answer is 5"}
    assert seen.answers == {1: "6", 2: "5"}


def test_the_whole_path_of_steps_is_marked(beam: Result) -> None:
    seen = view(beam)
    assert [node.text for node in seen.root.walk() if node.id in seen.chosen] == ["2+3=?", "2+3=5", "answer is 5"]


def test_an_answer_that_nobody_wrote_marks_nothing(best_of_three: Result) -> None:
    best_of_three.text = "something else"
    assert view(best_of_three).chosen == frozenset()
    best_of_three.text = ""
    assert view(best_of_three).chosen == frozenset()


def test_scores_are_shares_of_their_range(best_of_three: Result) -> None:
    seen = view(best_of_three)
    assert (seen.share(-3.0), seen.share(4.0), seen.share(0.5)) == (0.0, 1.0, 0.5)
    best_of_three.trace[1]["scores"] = [0.2, 0.9, None]
    assert view(best_of_three).share(0.2) == 0.2  # within 0 and 1 as it is


def test_a_straight_line_is_one_chain(beam: Result) -> None:
    root = view(beam).root
    assert [[node.text for node in chain] for chain in chains(root, {0})] == [["2+3=5", "answer is 5"], ["2+3=6"]]


# --- the terminal ----------------------------------------------------------------------------------------------------


def test_the_tree_shows_scores_answers_tokens_and_the_choice(best_of_three: Result) -> None:
    lines = rendered(best_of_three).splitlines()
    assert lines[0] == "2+3=?"
    assert lines[1].startswith("├── ○ answer -3 7 tok → 6")
    assert lines[2].startswith("├── ● answer 4 7 tok → 5")
    assert lines[3] == "└── ○ answer 7 tok  I cannot tell what this is"
    assert lines[4:] == ["policy: 9 read, 21 written, 1 calls", "rm: 60 read, 0 written, 1 calls, 3 from the log"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_of_the_tree_is_wider_than_the_terminal(width: int) -> None:
    long = "word " * 400
    lines = rendered(Result("x", long, [], {}, None, [generate(long, long + "2\n\n3")]), width).splitlines()
    assert len(lines) <= 4, lines
    assert max(map(len, lines)) <= width
    assert "…" in lines[1]


def test_a_budget_and_a_judge_are_told(beam: Result) -> None:
    beam.trace.append(generate("sure", number=2, role="judge", purpose="value"))
    text = rendered(beam)
    assert "value by judge" in text
    assert "ended by the budget: tokens" in text


def test_tools_are_shown_by_name() -> None:
    trace = [
        generate("Action: add[2, 3]"),
        {"round": 1, "kind": "tool", "name": "add", "arguments": {"a": 2}, "answer": "5"},
    ]
    assert "○ add()  5" in rendered(Result("5", "", [], {}, None, trace))


def test_an_empty_trace_is_no_error() -> None:
    assert rendered(Result(None, "", [], {}, None, [])).strip() == "(nothing was asked)"
    assert "(no answer)" in "".join(read(Result(None, "", [], {}, None, [])).text)


# --- the page --------------------------------------------------------------------------------------------------------

ATTACKS = (
    "<script>alert(1)</script>",
    "</pre></details><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "<!-- -->]]></style><style>*{display:none}</style>",
    "&lt;script&gt;",
)


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_a_model_writes_stays_text(attack: str) -> None:
    trace = [generate(attack), score((attack, 1.0))]
    trace += [{"round": 2, "kind": "tool", "name": attack, "arguments": {}, "answer": attack}]
    trace[0]["role"] = trace[0]["purpose"] = trace[0]["completions"][0]["finish_reason"] = attack
    result = Result(attack, attack, [], {attack: Usage(1, 1)}, attack, trace, error=attack)
    page = read(result, title=attack, model=attack, strategy=attack)
    assert {tag for tag, _ in page.tags} <= ALLOWED_TAGS
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(attack) >= 5  # as the reader sees it, whole and unchanged
    plain = [tag for tag, _ in read(Result("x", "x", [], {"x": Usage(1, 1)}, "x", [generate("x")])).tags]
    assert page.tags.count(("style", {})) == plain.count("style") == 2


ALLOWED_TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "pre", "span", "table", "tr", "th", "td",
    "ul", "li", "details", "summary", "div", "a", "main", "svg", "rect",
}  # fmt: skip


def test_the_page_loads_nothing_and_forbids_scripts(best_of_three: Result) -> None:
    page = read(best_of_three)
    policy = next(attributes for tag, attributes in page.tags if attributes.get("http-equiv"))
    directives = [part.strip() for part in str(policy["content"]).split(";")]
    styled = [part for part in directives if part.startswith("style-src ")]
    assert directives[0] == "default-src 'none'"
    assert "script-src" not in str(policy["content"])
    assert re.fullmatch(r"style-src( 'sha256-[A-Za-z0-9+/=]{44}')+", styled[0])
    text = trace_page(best_of_three, title="t", model="m", strategy="s")
    assert not re.search(r"https?:|url\(|@import|<script|<link|src=", text)
    assert not [
        attributes for tag, attributes in page.tags if tag == "a" and not str(attributes["href"]).startswith("#")
    ]


def test_the_page_has_scores_as_bars_and_the_totals(best_of_three: Result) -> None:
    page = read(best_of_three)
    bars = [attributes["width"] for tag, attributes in page.tags if tag == "rect"]
    assert bars == ["0%", "100%"]
    assert [attributes for tag, attributes in page.tags if tag == "li"][1]["class"] == "chosen"
    text = " ".join("".join(page.text).split())
    for told in ("m answered by best_of_n", "policy", "60", "→ 5", "2+3=?"):
        assert told in text


def test_steps_have_a_bar_each_and_the_graph_its_links() -> None:
    draws = [generate("first idea", "second idea"), generate("both", number=1)]
    draws[1]["prompt"] = [{"role": "user", "content": "join first idea and second idea"}]
    steps = {"round": 2, "kind": "step_scores", "scorer": "prm", "prompt": QUESTION, "steps": [["first ", "idea"]],
             "scores": [[0.9, 0.1]]}  # fmt: skip
    page = read(Result("x", "both", [], {}, None, [*draws, steps]))
    bars = [a for tag, a in page.tags if tag == "svg"]
    assert [str(a["class"]).split()[-1] for a in bars] == ["high", "low"]
    assert [a["height"] for tag, a in page.tags if tag == "rect"] == ["90%", "10%"]
    assert [a["href"] for tag, a in page.tags if tag == "a"] == ["#n1", "#n2"]
    chosen = [a["id"] for tag, a in page.tags if tag == "li" and a.get("class") == "chosen"]
    assert sorted(chosen) == ["n1", "n2", "n3"]


def test_long_texts_open_and_short_ones_stand_in_their_line() -> None:
    long = "first line\nsecond line"
    page = read(Result("x", "", [], {}, None, [generate("short", long)]))
    assert [tag for tag, _ in page.tags if tag in ("details", "div")] == ["div", "details"]
    assert long in page.text


def test_dark_and_light_have_the_same_colors_defined() -> None:
    page = trace_page(Result("x", "x", [], {}, None, [generate("x")]), title="t", model="m", strategy="s")
    light, dark, printed = re.findall(r":root \{([^}]*)\}", page)
    for other in (dark, printed):
        assert set(re.findall(r"--[\w-]+(?=:)", other)) == set(re.findall(r"--[\w-]+(?=:)", light))
    used = set(re.findall(r"var\((--[\w-]+)\)", page))
    assert used <= set(re.findall(r"--[\w-]+(?=:)", light))


def test_a_long_search_makes_a_page_that_is_not_nested_deeply() -> None:
    """A line of 300 steps is one list: browsers give up at 512 levels."""
    events, path = [], ""
    for number in range(300):
        events.append(generate(f"step {number}", prefill=path, number=number, stop=";"))
        path += f"step {number};"
    page = trace_page(Result("x", path, [], {}, None, events), title="t", model="m", strategy="s")
    assert page.count("<ul>") == 1
    assert page.count("<li class=chosen") == 300
