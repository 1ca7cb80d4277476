"""What happened while a problem was solved: events as JSON values, and the tree that they tell.

The engine notes an event for each request, so that every strategy has a trace without work of its own. `tree` reads
from the events which completion goes on from which. No paper.

1. A completion's parent is the earlier completion whose whole path (prefill and text) is the longest beginning of what
   it goes on from.
2. Where there is none, its parents are the earlier completions whose text stands in its prompt word for word; not those
   that only stand inside another's text, and not the ancestors of other parents. Several parents make a graph.
3. Where there is none either, the parent is the root.

Example:
    >>> step = {"kind": "generate", "prompt": "2+2=?", "completions": [{"text": "two and two", "stop_reason": ";"}]}
    >>> last = {"kind": "generate", "prompt": "2+2=?two and two;", "completions": [{"text": "answer is 4"}]}
    >>> print(tree([step, last]).render())
    0 root: 2+2=?
      1 answer: two and two
        2 answer: answer is 4
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.text import to_text
from posttrain_plugins.types import CallTool, Completion, Generate, Prompt, Request, Result, Score, ScoreSteps

__all__ = ["Node", "event_of", "failures_of", "prefill_of", "tree", "unanswered"]

MIN_QUOTED_CHARS = 4  # shorter texts stand in many prompts by chance


# --- Events ----------------------------------------------------------------------------------------------------------


def event_of(request: Request, response: Any, number: int) -> dict[str, Any]:
    """Return a request with its response; prompts are referred to, not copied.

    Args:
        request: what was asked.
        response: what the strategy is sent.
        number: of the round, counted from 0; what is asked in one list has one number.
    """
    match request:
        case Generate():
            fields: dict[str, Any] = {"role": request.model, "purpose": request.purpose, "prompt": request.prompt}
            drawn = [_drawn(one) for one in response]
            return {"round": number, "kind": "generate", **fields, "completions": drawn}
        case Score():
            fields = {"scorer": request.scorer, "prompt": request.prompt, "completions": list(request.completions)}
            return {"round": number, "kind": "score", **fields, "scores": response}
        case ScoreSteps():
            fields = {"scorer": request.scorer, "prompt": request.prompt, "steps": [list(one) for one in request.steps]}
            return {"round": number, "kind": "step_scores", **fields, "scores": response}
        case CallTool():
            fields = {"name": request.name, "arguments": request.arguments}
            return {"round": number, "kind": "tool", **fields, "answer": response}


def _drawn(completion: Completion) -> dict[str, Any]:
    usage = completion.usage
    found: dict[str, Any] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    if completion.stop_reason is not None:
        found["stop_reason"] = completion.stop_reason
    if completion.value is not None:
        found["value"] = completion.value
    if completion.tool_calls is not None:
        found["tool_calls"] = completion.tool_calls
    if completion.error is not None:
        found["error"] = completion.error
    return found


def prefill_of(prompt: Prompt, problem: Prompt = "") -> str:
    """Return what the completions go on from.

    It is a last message of role `assistant`, or what plain text has after the problem's. A prefill that the problem
    itself begins with is not part of it.

    Example:
        >>> prefill_of([{"role": "user", "content": "2+2=?"}, {"role": "assistant", "content": "It is"}])
        'It is'
        >>> prefill_of("2+2=? It is", problem="2+2=?")
        ' It is'
    """
    if isinstance(prompt, str):
        return prompt.removeprefix(problem) if isinstance(problem, str) and prompt.startswith(problem) else ""
    begun = to_text(prompt[-1:]) if prompt and prompt[-1].get("role") == "assistant" else ""
    return begun if isinstance(problem, str) or not begun else begun.removeprefix(prefill_of(problem))


def failures_of(result: Result) -> list[str]:
    """Return why completions failed while a problem was solved, one reason for each that did."""
    drawn = (one for event in result.trace for one in event.get("completions", ()) if isinstance(one, dict))
    return [str(one["error"]) for one in drawn if one.get("error") is not None]


def unanswered(result: Result) -> str | None:
    """Return why a result is no answer; None where it is one, right or wrong.

    It is none where the strategy raised, or where it ended with nothing after completions that failed. An empty answer
    of a model that was heard is an answer.
    """
    if result.error is not None:
        return result.error
    if result.text or result.candidates:  # what has failed on the way has not kept it from answering
        return None
    return next(iter(failures_of(result)), None)


# --- The tree --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Node:
    """A completion, a tool's answer, or the root.

    Args:
        id: 0 is the root; children have larger ids than their parents.
        kind: `root`, `tool`, or the purpose that the completion was drawn for (`answer`, `value` ...).
        text: the completion without its prefill; the root's is the first prompt.
        role: the model's role, or the tool's name.
        tokens: what it cost, read and written; a prompt that was read for several counts on the first of them.
        finish_reason: the completion's.
        score: the newest that a scorer gave its path or its text; a value head's, where there is one.
        step_scores: the newest of each step.
        parents: their ids; several where it goes back to several completions.
        children: the nodes that name it as a parent.
    """

    id: int
    kind: str
    text: str
    role: str = ""
    tokens: int = 0
    finish_reason: str = "stop"
    score: float | None = None
    step_scores: list[float] = field(default_factory=list)
    parents: tuple[int, ...] = ()
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below it, each once, in the order of their ids."""
        found, new = {self.id: self}, [self]
        while new:
            new = [child for node in new for child in node.children if child.id not in found]
            found |= {child.id: child for child in new}
        yield from (found[i] for i in sorted(found))

    def render(self, max_chars: int = 60, depth: int = 0) -> str:
        """Return the tree as indented lines; a node with several parents stands below each."""
        text = " ".join(self.text.split())
        shown = text if len(text) <= max_chars else text[: max_chars - 3] + "..."
        score = "" if self.score is None else f" [{self.score:.3g}]"
        line = f"{'  ' * depth}{self.id} {self.kind}{score}: {shown}"
        return "\n".join([line, *(child.render(max_chars, depth + 1) for child in self.children)])


def tree(source: Result | Sequence[Mapping[str, Any]]) -> Node:
    """Return the tree, or the graph, of a trace.

    Args:
        source: a result, or its `trace`.

    Returns:
        The root; every other node is below it.
    """
    events = source.trace if isinstance(source, Result) else source
    first = next((event["prompt"] for event in events if "prompt" in event), "")
    growth = _Growth([Node(0, "root", to_text(first))])
    newest: Any = None
    for position, event in enumerate(events):
        # what was asked in one round cannot go on from each other; an event without a round is one by itself
        number = event.get("round", ("alone", position))
        if number != newest:
            growth.end_round()
        newest = number
        growth.add(event)
    growth.end_round()
    return growth.nodes[0]


@dataclass
class _Growth:
    """The tree so far, and where earlier rounds' completions are found: by their paths, and by their own texts."""

    nodes: list[Node]
    paths: dict[tuple[bool, str], list[Node]] = field(default_factory=dict)  # conversational or not, and the path
    lengths: set[tuple[bool, int]] = field(default_factory=set)  # of the paths
    texts: dict[str, list[Node]] = field(default_factory=dict)
    new: list[tuple[Node, tuple[bool, str] | None, str]] = field(default_factory=list)

    def add(self, event: Mapping[str, Any]) -> None:
        match event["kind"]:
            case "generate":
                self._add_completions(event)
            case "tool":
                self._add_tool(event)
            case "score":
                self._note(event, event["completions"], "score")
            case "step_scores":
                self._note(event, ["".join(steps) for steps in event["steps"]], "step_scores")

    def end_round(self) -> None:
        """Let the round's nodes be parents from now on."""
        for node, path, stop in self.new:
            if path is not None:
                # a search puts the stop string back before it goes on; one that has it in the text does not
                for end in dict.fromkeys(("", stop)):
                    self.paths.setdefault((path[0], path[1] + end), []).append(node)
                    self.lengths.add((path[0], len(path[1] + end)))
            self.texts.setdefault(node.text.strip(), []).append(node)
        self.new = []

    def _add_completions(self, event: Mapping[str, Any]) -> None:
        prompt = event["prompt"]
        is_chat = not isinstance(prompt, str)
        begun = prefill_of(prompt)
        # one search for all: completions of one request have the same parents
        parents = self._parents(prompt, is_chat, begun)
        for drawn in event["completions"]:
            node = self._grow(
                parents,
                kind=event.get("purpose", "answer"),
                text=drawn["text"],
                role=event.get("role", "policy"),
                tokens=drawn.get("tokens", 0),
                finish_reason=drawn.get("finish_reason", "stop"),
                score=drawn.get("value"),
            )
            self.new.append((node, (is_chat, begun + drawn["text"]), drawn.get("stop_reason") or ""))

    def _add_tool(self, event: Mapping[str, Any]) -> None:
        """Add a tool's answer below the newest completion that names the tool, else below the newest."""
        earlier = [node for nodes in self.texts.values() for node in nodes if node.kind not in ("root", "tool")]
        naming = [node for node in earlier if event["name"] in node.text]
        parents = [max(naming or earlier or self.nodes[:1], key=lambda node: node.id)]
        node = self._grow(parents, kind="tool", text=str(event["answer"]), role=event["name"])
        self.new.append((node, None, ""))

    def _grow(self, parents: Sequence[Node], **fields: Any) -> Node:
        node = Node(len(self.nodes), **fields, parents=tuple(sorted(parent.id for parent in parents)))
        self.nodes.append(node)
        for parent in parents:
            parent.children.append(node)
        return node

    def _parents(self, prompt: Prompt, is_chat: bool, begun: str) -> list[Node]:
        # By length, the longest first: a look-up for each length instead of a comparison with each earlier path.
        lengths = (length for chat, length in self.lengths if chat == is_chat and 0 < length <= len(begun))
        for length in sorted(lengths, reverse=True):
            if nodes := self.paths.get((is_chat, begun[:length])):
                return nodes[:1]
        # What is found is taken out of the prompt, so that the texts within it are not found too.
        text, quoted = to_text(prompt), []
        for one in sorted(self.texts, key=len, reverse=True):
            if len(one) >= MIN_QUOTED_CHARS and one in text:
                text = text.replace(one, "\0")
                quoted += self.texts[one]
        # An ancestor of another quoted node is quoted because that one's prompt held it: the nearest are the parents.
        above: set[int] = set()
        new = {parent for node in quoted for parent in node.parents}
        while new := new - above:
            above |= new
            new = {parent for i in new for parent in self.nodes[i].parents}
        return [node for node in quoted if node.id not in above] or self.nodes[:1]

    def _note(self, event: Mapping[str, Any], completions: Sequence[str], name: str) -> None:
        """Give scores to the completions with that path, else to those with that text."""
        prompt = event["prompt"]
        is_chat = not isinstance(prompt, str)
        for text, value in zip(completions, event["scores"], strict=True):
            path = text if is_chat else prompt + text
            for node in self.paths.get((is_chat, path)) or self.texts.get(text.strip(), []):
                setattr(node, name, value)
