"""Draws a trace on the terminal: a tree with scores and tokens, the chosen path marked, texts cut to the width."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from posttrain_plugins.engine.trace import Node
from posttrain_plugins.report.trace_view import TraceView, chains, spent_by_role, view
from posttrain_plugins.types import Result

__all__ = ["trace_tree"]

COLUMNS_PER_LEVEL = 4  # that rich draws
MIN_TEXT_COLUMNS = 24  # in a deep tree a line grows past the terminal before it is empty


def trace_tree(result: Result, width: int) -> RenderableType:
    """Return everything that a strategy asked as a tree, and below it what each role spent.

    Args:
        result: with its trace.
        width: columns of the terminal.
    """
    seen = view(result)
    if not seen.root.children:
        return Text("(nothing was asked)", style="dim")
    trunk = Tree(Text(_cut(seen.root.text, width - COLUMNS_PER_LEVEL), style="bold"), guide_style="dim")
    placed = {seen.root.id}
    waiting = [(trunk, seen.root, 1)]
    while waiting:
        branch, node, depth = waiting.pop()
        for chain in chains(node, placed):
            # a chain of one child each stays at one level: a search of forty steps would leave the terminal
            room = max(MIN_TEXT_COLUMNS, width - COLUMNS_PER_LEVEL * (depth + 1))
            twig = branch
            for link in chain:
                twig = branch.add(_line(link, seen, room))
            waiting.append((twig, chain[-1], depth + 1))
    lines = [f"{role}: {text}" for role, _, text in spent_by_role(result.usage)]
    lines += [f"ended by the budget: {result.stopped_by}"] if result.stopped_by else []
    return Group(trunk, Text("\n".join(lines), style="dim"))


def _line(node: Node, seen: TraceView, columns: int) -> Text:
    """Return `● answer 0.93 12 tok → 7  3|7=4;...`."""
    is_chosen = node.id in seen.chosen
    head = Text("● " if is_chosen else "○ ", style="bold green" if is_chosen else "dim")
    head.append(node.kind if node.kind != "tool" else f"{node.role}()", style="cyan")
    if node.kind != "tool" and node.role not in ("", "policy"):
        head.append(f" by {node.role}", style="magenta")
    if node.score is not None:
        share = seen.share(node.score)
        head.append(f" {node.score:.3g}", style="green" if share >= 2 / 3 else "yellow" if share >= 1 / 3 else "red")
    if node.step_scores:
        head.append(" [" + " ".join(f"{score:.2g}" for score in node.step_scores) + "]", style="yellow")
    head.append(f" {node.tokens} tok" if node.tokens else "", style="dim")
    if node.finish_reason not in ("stop", "tool_calls"):
        head.append(f" {node.finish_reason}", style="red")
    if node.id in seen.answers:
        head.append(f" → {_cut(seen.answers[node.id], 24)}", style="bold")
    head.append("  ")
    head.append(_cut(node.text, max(8, columns - len(head))), style="green" if is_chosen else "")
    head.no_wrap = True  # a node is a line: two would tear the guides of the tree
    return head


def _cut(text: str, columns: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= columns else line[: max(1, columns - 1)] + "…"
