"""Writes a trace as one page of HTML: no script, no resource from anywhere, whatever a model wrote shown as text.

Two locks against what a model may write: every text is escaped, and the page's own policy forbids scripts and loading.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from posttrain_plugins.cli.trace_view import TraceView, chains, spent_by_role, view
from posttrain_plugins.engine.trace import Node
from posttrain_plugins.types import Result

__all__ = ["trace_page"]

PREVIEW_CHARS = 110  # one line on a wide screen
OPEN_LEVELS = 2  # deeper ones are opened by a click, except on the path of the answer
# no script, no image, no request: even a text that got past `escape` could do nothing
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --card: #f6f7f9; --line: #d9dce1; --ink: #1c1e21; --dim: #667;
  --chosen: #117a3d; --chosen-ground: #e7f6ec; --kind: #0b5cad; --bar: #c9ced6; --good: #2b9a57; --fair: #c9950c;
  --poor: #c8412f; }
@media (prefers-color-scheme: dark) { :root { --ground: #16181c; --card: #1f2227; --line: #34383f; --ink: #e6e7ea;
  --dim: #9aa0aa; --chosen: #5fd08b; --chosen-ground: #17301f; --kind: #74b4f5; --bar: #3b4048; --good: #46b873;
  --fair: #d9ab35; --poor: #e2695a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.15rem; margin: 0 0 .75rem; }
h2 { font-size: .95rem; margin: 1.5rem 0 .5rem; }
pre { margin: .4rem 0; padding: .6rem .8rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.45 ui-monospace, monospace; }
pre.answer { border-color: var(--chosen); background: var(--chosen-ground); }
table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: right; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
ul { list-style: none; margin: 0; padding: 0 0 0 .55rem; }
ul ul { border-left: 2px solid var(--line); margin-left: .4rem; padding-left: .7rem; }
summary, li > div { padding: .12rem .35rem; border-radius: 5px; overflow-wrap: anywhere; }
summary { cursor: pointer; } summary:hover { background: var(--card); } li > div { padding-left: 1.32rem; }
li.chosen > details > summary, li.chosen > div { background: var(--chosen-ground); }
.mark { color: var(--dim); }
li.chosen > details > summary .mark, li.chosen > div .mark { color: var(--chosen); }
.kind { color: var(--kind); font-weight: 600; } .tokens, .note { color: var(--dim); font-size: 12px; }
.said { font-weight: 600; } .preview { color: var(--dim); font: 12.5px ui-monospace, monospace; }
.ended { color: var(--poor); font-size: 12px; }
.score { font-size: 12px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; width: 3.2rem; height: .55rem; background: var(--bar); border-radius: 3px;
  overflow: hidden; vertical-align: 0; }
.bar i { display: block; height: 100%; } .steps .bar { width: .55rem; height: .8rem; margin-right: 1px; }
.good { background: var(--good); } .fair { background: var(--fair); } .poor { background: var(--poor); }
.legend { color: var(--dim); font-size: 12.5px; }
""".strip()


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
    seen = view(result)
    lines = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_cut(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>",
        f"<h1>{escape(model)} <span class=note>answered by</span> {escape(strategy)}</h1>",
        f"<pre>{escape(seen.root.text)}</pre>",
        f"<pre class=answer>{escape(result.text) or '(no answer)'}</pre>",
    ]
    if result.answer is not None:
        lines.append(f"<p>Answer: <span class=said>{escape(str(result.answer))}</span></p>")
    if result.stopped_by:
        lines.append(f"<p class=ended>{escape(f'Ended by the budget: {result.stopped_by}')}</p>")
    if result.error:
        lines.append(f"<p class=ended>{escape(f'The strategy failed: {result.error}')}</p>")
    head = "role<th>tokens read<th>tokens written<th>from the log<th>calls"
    lines.append(f"<h2>What it took</h2>\n<table><tr><th>{head}</tr>")
    for role, spent, _ in spent_by_role(result.usage):
        figures = (spent.prompt_tokens, spent.completion_tokens, spent.cached_tokens, spent.calls)
        lines.append(f"<tr><td>{escape(role)}" + "".join(f"<td>{figure}" for figure in figures) + "</tr>")
    lines.append("</table>")
    lines.append("<h2>What was asked, and what came back</h2>")
    legend = "● on the path of the answer &nbsp; ○ beside it &nbsp; → the answer that a text gives"
    lines.append(f"<p class=legend>{legend}</p>")
    return "\n".join([*lines, *_list(seen.root, seen, {seen.root.id}, 1), "</body>\n</html>"]) + "\n"


def _list(node: Node, seen: TraceView, placed: set[int], level: int) -> Iterator[str]:
    """Yield the children, each straight line of them at one level; a line opens if it has more to show."""
    lines = list(chains(node, placed))
    if not lines:
        return
    yield "<ul>"
    for link, is_last in ((link, link is chain[-1]) for chain in lines for link in chain):
        # made before the item: one with nothing below it, and no more text than its line, does not open
        below = list(_list(link, seen, placed, level + 1)) if is_last else []
        is_chosen = link.id in seen.chosen
        line = " ".join(_summary(link, seen, is_chosen))
        # opened, it shows the text whole, unless the line has it already
        inside = [] if _cut(link.text) == escape(link.text) else [f"<pre>{escape(link.text)}</pre>"]
        if len(link.parents) > 1:
            parents = ", ".join(f"<a href=#n{parent}>{parent}</a>" for parent in link.parents)
            inside.append(f"<p class=note>made from {parents}</p>")
        yield f"<li{' class=chosen' if is_chosen else ''} id=n{link.id}>"
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
    yield f"<span class=kind>{escape(node.kind if node.kind != 'tool' else node.role + '()')}</span>"
    if node.kind != "tool" and node.role not in ("", "policy"):
        yield f"<span class=note>by {escape(node.role)}</span>"
    if node.score is not None:
        yield f"<span class=score>{_bar(seen.share(node.score))} {node.score:.3g}</span>"
    if node.step_scores:
        bars = "".join(_bar(seen.share(score), f"{score:.3g}", is_upright=True) for score in node.step_scores)
        yield f"<span class='score steps'>{bars}</span>"
    if node.tokens:
        yield f"<span class=tokens>{node.tokens} tokens</span>"
    if node.finish_reason not in ("stop", "tool_calls"):
        yield f"<span class=ended>{escape(node.finish_reason)}</span>"
    if node.id in seen.answers:
        yield f"<span class=said>→ {_cut(seen.answers[node.id], 40)}</span>"
    yield f"<span class=preview>{_cut(node.text)}</span>"


def _bar(share: float, title: str = "", is_upright: bool = False) -> str:
    # thirds and no finer: what a score of 0.6 is worth, only its reward knows
    color = "good" if share >= 2 / 3 else "fair" if share >= 1 / 3 else "poor"
    percent = f"{100 * min(1.0, max(0.0, share)):.0f}%"
    size = f"height:{percent};margin-top:calc(.8rem - .8rem * {share:.2f})" if is_upright else f"width:{percent}"
    return f'<span class=bar title="{title}"><i class={color} style="{size}"></i></span>'


def _cut(text: str, chars: int = PREVIEW_CHARS) -> str:
    line = " ".join(text.split())
    return escape(line if len(line) <= chars else line[: chars - 1] + "…")
