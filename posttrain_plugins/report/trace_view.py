"""Reads a trace for the tree and the page: the path that the answer stands on, what each completion answered, costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain_plugins.engine.trace import Node, prefill_of, tree
from posttrain_plugins.text.answers import extract
from posttrain_plugins.types import Result, Usage

__all__ = ["TraceView", "chains", "spent_by_role", "view"]


@dataclass(frozen=True)
class TraceView:
    """A trace as the tree of the terminal and the page both show it.

    Args:
        root: the tree.
        chosen: the ids on the path that the answer stands on.
        answers: id -> the answer extracted from a completion's whole path.
        low: the lowest score in the tree.
        high: the highest.
    """

    root: Node
    chosen: frozenset[int]
    answers: Mapping[int, str]
    low: float
    high: float

    def share(self, score: float) -> float:
        """Return a score as it is if all lie within 0 and 1, else its place between the lowest and the highest."""
        if self.low >= 0 and self.high <= 1:
            return score
        return (score - self.low) / (self.high - self.low) if self.high > self.low else 1.0


def view(result: Result) -> TraceView:
    """Read a result's trace."""
    root = tree(result)
    nodes = {node.id: node for node in root.walk()}
    paths = dict(zip(sorted(nodes)[1:], _paths(result.trace), strict=True))
    # by text: a result says what it answers, and not which request it came from
    end = _end(nodes, paths, result.text)
    scores = [s for node in nodes.values() for s in (node.score, *node.step_scores) if s is not None]
    # of the whole path: a last step alone rarely says what it answers
    answers = {i: extract(paths[i][0]) for i, node in nodes.items() if i and node.kind in ("answer", "step")}
    chosen, new = set[int](), {end} if end else set()
    while new:  # a node may have several parents (a text made of others): the path is then no line
        chosen |= new
        new = {parent for i in new for parent in nodes[i].parents}
    return TraceView(
        root=root,
        chosen=frozenset(chosen),
        answers={i: answer for i, answer in answers.items() if answer is not None},
        low=min(scores, default=0.0),
        high=max(scores, default=1.0),
    )


def chains(node: Node, placed: set[int]) -> Iterator[list[Node]]:
    """Yield the node's children, each with what follows it in a straight line.

    Args:
        node: the parent.
        placed: ids of nodes that have their place already; what has several parents is placed once.
    """
    for child in node.children:
        chain: list[Node] = []
        following: Node | None = child
        while following is not None and following.id not in placed:
            placed.add(following.id)
            chain.append(following)
            # one that is placed already belongs to another line, and is no fork of this one
            after = [new for new in following.children if new.id not in placed]
            following = after[0] if len(after) == 1 else None
        if chain:
            yield chain


def spent_by_role(usage: Mapping[str, Usage]) -> Iterator[tuple[str, Usage, str]]:
    """Yield each role, what it spent, and that in words."""
    for role, spent in usage.items():
        text = f"{spent.prompt_tokens} read, {spent.completion_tokens} written, {spent.calls} calls"
        yield role, spent, text + (f", {spent.cached_tokens} from the log" if spent.cached_tokens else "")


def _paths(trace: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the whole text so far of every node but the root, and that with the stop string which ended it."""
    for event in trace:
        if event["kind"] == "generate":
            begun = prefill_of(event["prompt"])
            for drawn in event["completions"]:
                path = begun + drawn["text"]
                # a search goes on behind the stop string, which the engine has cut off
                yield path, path + (drawn.get("stop_reason") or "")
        elif event["kind"] == "tool":
            yield str(event["answer"]), str(event["answer"])


def _end(nodes: Mapping[int, Node], paths: Mapping[int, tuple[str, str]], text: str) -> int | None:
    """Return the completion with which the answer's text ends: one that is this text, else the longest end of it."""
    if not text:
        return None
    able = [i for i in paths if nodes[i].kind != "tool"]
    same = [i for i in able if text in (*paths[i], nodes[i].text)]
    if same:  # the first of equal ones: which of them a strategy meant makes no difference to its text
        return same[0]
    # a strategy may put text of its own before the completion that it ends with
    ends = [i for i in able if nodes[i].text.strip() and text.rstrip().endswith(nodes[i].text.rstrip())]
    return max(ends, key=lambda i: len(nodes[i].text), default=None)
