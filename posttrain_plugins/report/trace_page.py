"""Writes a trace as one page of HTML: no script, no resource from anywhere, whatever a model wrote shown as text.

Two locks against what a model may write: every text is escaped, and the page's own policy forbids scripts and loading.
"""

from __future__ import annotations

from collections.abc import Iterator

from posttrain_plugins.engine.trace import Node
from posttrain_plugins.report.page import page, static, text
from posttrain_plugins.report.trace_view import TraceView, chains, spent_by_role, view
from posttrain_plugins.types import Result

__all__ = ["trace_body", "trace_page"]

PREVIEW_CHARS = 110  # one line on a wide screen
OPEN_LEVELS = 2  # deeper ones are opened by a click, except on the path of the answer


def trace_page(result: Result, *, title: str, model: str, strategy: str) -> str:
    """Return a page that stands alone.

    Args:
        result: with its trace.
        title: the question, in a line.
        model: as the user named it.
        strategy: as the user wrote it.

    Returns:
        HTML.
    """
    head = f"<h1>{text(model)} <span class=note>answered by</span> {text(strategy)}</h1>"
    body = ["<main class=trace>", head, *trace_body(result), "</main>"]
    return page(_line_of(title), body, styles=[static("trace.css")])


def trace_body(result: Result, prefix: str = "n", level: int = 2) -> Iterator[str]:
    """Yield what a page shows of a trace, within an element of class `trace`.

    Args:
        result: with its trace.
        prefix: of the ids, where several traces stand on one page.
        level: of the headings.
    """
    seen = view(result)
    yield f"<pre>{text(seen.root.text)}</pre>"
    yield f"<pre class=answer>{text(result.text) or '(no answer)'}</pre>"
    if result.answer is not None:
        yield f"<p>Answer: <span class=said>{text(result.answer)}</span></p>"
    if result.stopped_by:
        yield f"<p class=ended>{text(f'Ended by the budget: {result.stopped_by}')}</p>"
    if result.error:
        yield f"<p class=ended>{text(f'The strategy failed: {result.error}')}</p>"
    head = "".join(f"<th scope=col>{one}" for one in ("role", *SPENT))
    yield f"<h{level}>What it took</h{level}>\n<table><tr>{head}</tr>"
    for role, spent, _ in spent_by_role(result.usage):
        figures = (spent.prompt_tokens, spent.completion_tokens, spent.cached_tokens, spent.calls)
        yield f"<tr><td>{text(role)}" + "".join(f"<td>{figure}" for figure in figures) + "</tr>"
    yield "</table>"
    yield f"<h{level}>What was asked, and what came back</h{level}>"
    yield "<p class=note>● on the path of the answer &nbsp; ○ beside it &nbsp; → the answer that a text gives</p>"
    yield from _list(seen.root, seen, {seen.root.id}, 1, prefix)


SPENT = ("tokens read", "tokens written", "from the log", "calls")


def _list(node: Node, seen: TraceView, placed: set[int], level: int, prefix: str) -> Iterator[str]:
    """Yield the children, each straight line of them at one level; a line opens if it has more to show."""
    lines = list(chains(node, placed))
    if not lines:
        return
    yield "<ul>"
    for link, is_last in ((link, link is chain[-1]) for chain in lines for link in chain):
        # made before the item: one with nothing below it, and no more text than its line, does not open
        below = list(_list(link, seen, placed, level + 1, prefix)) if is_last else []
        is_chosen = link.id in seen.chosen
        line = " ".join(_summary(link, seen, is_chosen))
        # opened, it shows the text whole, unless the line has it already
        inside = [] if _line_of(link.text) == link.text else [f"<pre>{text(link.text)}</pre>"]
        if len(link.parents) > 1:
            parents = ", ".join(f"<a href=#{prefix}{parent}>{parent}</a>" for parent in link.parents)
            inside.append(f"<p class=note>made from {parents}</p>")
        yield f"<li{' class=chosen' if is_chosen else ''} id={prefix}{link.id}>"
        if inside or below:
            is_open = " open" if below and (level <= OPEN_LEVELS or is_chosen) else ""
            yield f"<details{is_open}><summary>{line}</summary>"
            yield from (*inside, *below)
            yield "</details></li>"
        else:
            yield f"<div>{line}</div></li>"
    yield "</ul>"


def _summary(node: Node, seen: TraceView, is_chosen: bool) -> Iterator[str]:
    yield f"<span class=mark>{'●' if is_chosen else '○'} {node.id}</span>"
    yield f"<span class=kind>{text(node.kind if node.kind != 'tool' else node.role + '()')}</span>"
    if node.kind != "tool" and node.role not in ("", "policy"):
        yield f"<span class=note>by {text(node.role)}</span>"
    if node.score is not None:
        yield f"<span class=score>{_bar(seen.share(node.score))} {node.score:.3g}</span>"
    if node.step_scores:
        bars = "".join(_bar(seen.share(score), f"{score:.3g}", is_upright=True) for score in node.step_scores)
        yield f"<span class='score steps'>{bars}</span>"
    if node.tokens:
        yield f"<span class=note>{node.tokens} tokens</span>"
    if node.finish_reason not in ("stop", "tool_calls"):
        yield f"<span class=ended>{text(node.finish_reason)}</span>"
    if node.id in seen.answers:
        yield f"<span class=said>→ {_cut(seen.answers[node.id], 40)}</span>"
    yield f"<span class=preview>{_cut(node.text)}</span>"


def _bar(share: float, title: str = "", is_upright: bool = False) -> str:
    # thirds and no finer: what a score of 0.6 is worth, only its reward knows
    color = "high" if share >= 2 / 3 else "middle" if share >= 1 / 3 else "low"
    percent = f"{100 * min(1.0, max(0.0, share)):.0f}%"
    # by attributes: the page's policy lets no element have a style of its own
    size = f'y="{100 - int(percent[:-1])}%" width="100%" height="{percent}"' if is_upright else f'width="{percent}"'
    rest = "" if is_upright else ' height="100%"'
    named = f"<title>{title}</title>" if title else ""
    return f'<svg class="score-bar {color}" aria-hidden="true">{named}<rect {size}{rest}/></svg>'


def _cut(value: str, chars: int = PREVIEW_CHARS) -> str:
    return text(_line_of(value, chars))


def _line_of(value: str, chars: int = PREVIEW_CHARS) -> str:
    line = " ".join(value.split())
    return line if len(line) <= chars else line[: chars - 1] + "…"
