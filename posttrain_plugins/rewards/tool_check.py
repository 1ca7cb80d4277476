"""`tool_check`: did the completion call the right tools with the right arguments?

Papers: calls are compared as their syntax trees, never run, as the Berkeley Function Calling Leaderboard does
(https://openreview.net/forum?id=2GmDdhBdDk); the share of names, argument names and values is that of ToolRL (Qian et
al., 2025, https://huggingface.co/papers/2504.13958, section 3.3). We differ: the share is in [0, 1], not [-3, 3].
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["ToolCheck"]

ParsedCall: TypeAlias = tuple[str, dict[str, Any]]

_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_FENCE = re.compile(r"```(?:python|tool_code|json)?[ \t]*\n(.*?)```", re.DOTALL)


@dataclass
class ToolCheck:
    """Compare the calls in each completion with those in the column `solution`.

    A call stands in a message's `tool_calls`, or in the text: JSON with `name` and `arguments` between `<tool_call>`
    tags, or Python, `add(a=1, b=2)`, in a fenced block or as the whole text; arguments are literals there.

    Args:
        partial: give the share of names, argument names and values that are right; else 1.0 only where all are.
        is_ordered: the calls come in the order of the reference.

    Example:
        >>> wanted = [{"name": "add", "arguments": {"a": 1, "b": 2}}]
        >>> texts = ["add(b=2, a=1)", '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 3}}</tool_call>']
        >>> ToolCheck()(completions=texts, solution=[wanted] * 2), ToolCheck(partial=True)(texts, [wanted] * 2)
        ([1.0, 0.0], [1.0, 0.75])
    """

    __name__ = "tool_check"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("solution",)
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "prompt": "1+2=?",
            "completion": '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>',
            "solution": [{"name": "add", "arguments": {"a": 1, "b": 2}}],
            "score": 1.0,
        },
        {
            "prompt": "1+2=?",
            "completion": "add(a=1, b=3)",
            "solution": [{"name": "add", "arguments": {"a": 1, "b": 2}}],
            "score": 0.0,
        },
        {
            "prompt": "1+2=?",
            "completion": "",
            "solution": [{"name": "add", "arguments": {"a": 1, "b": 2}}],
            "score": 0.0,
        },
    )

    partial: bool = False
    is_ordered: bool = False

    def __call__(self, completions: Sequence[Prompt], solution: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]; None where there is no reference.

        Args:
            solution: B lists of calls with `name` and `arguments`, or their JSON; None where there is no reference, an
                empty list where no tool should be called.

        Raises:
            InputError: a reference cannot be read.
        """
        return [self._score(text, one) for text, one in zip(completions, solution, strict=True)]

    def _score(self, completion: Prompt, solution: Any) -> float | None:
        if solution is None:
            return None
        try:
            given = json.loads(solution) if isinstance(solution, str) else solution
            wanted = [_named(one) for one in ([given] if isinstance(given, Mapping) else given)]
        except (ValueError, TypeError, KeyError, AttributeError) as cause:
            hint = '[{"name": ..., "arguments": {...}}]'
            raise InputError(f"tool_check cannot read its reference: {solution!r:.120}", hint=hint) from cause
        try:
            found = list(_calls_in(completion))
        except (ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError, MemoryError):
            return 0.0  # a call that cannot be read is a wrong one, and not none
        if self.partial:
            return _share(found, wanted)
        if self.is_ordered:
            return float(found == wanted)
        left = list(wanted)  # no sets: arguments may be lists
        for call in found:
            if call not in left:
                return 0.0
            left.remove(call)
        return float(not left)


def _share(found: Sequence[ParsedCall], wanted: Sequence[ParsedCall]) -> float:
    """Return ToolRL's correctness, of names, argument names and values, as a share of the most there is."""
    if not wanted:  # the right thing was to call none, and there is nothing to have a share of
        return float(not found)
    names, called = Counter(name for name, _ in wanted), Counter(name for name, _ in found)
    right = (names & called).total() / (names | called).total()

    def match(call: ParsedCall, arguments: Mapping[str, Any]) -> float:
        """Return the share of argument names, and one more for each value that is right."""
        both, either = call[1].keys() & arguments.keys(), call[1].keys() | arguments.keys()
        share = len(both) / len(either) if either else 1.0
        return share + sum(float(call[1][name] == arguments[name]) for name in both)

    left = list(found)
    for name, arguments in wanted:
        same = [call for call in left if call[0] == name]
        if same:
            best = max(same, key=lambda call: match(call, arguments))
            left.remove(best)  # used once: one good call does not stand for two
            right += match(best, arguments)
    return right / (1.0 + sum(1 + len(arguments) for _, arguments in wanted))


# --- reading calls ---------------------------------------------------------------------------------------------------


def _calls_in(completion: Prompt) -> Iterator[ParsedCall]:
    """Yield the calls of a completion, none from prose; one that is there and cannot be read raises."""
    if not isinstance(completion, str):
        native = [call for message in completion for call in message.get("tool_calls") or ()]
        if native:  # the chat template has parsed them out of the text, which may quote others
            yield from map(_named, native)
            return
    text = to_text(completion)
    tagged = _TAGGED.findall(text)
    if tagged:
        yield from (_named(json.loads(one)) for one in tagged)
        return
    for block in _FENCE.findall(text) or [text]:
        is_whole_text, block = block == text, block.strip()
        if block.startswith(("{", "[")) and '"name"' in block:
            given = json.loads(block)
            yield from map(_named, [given] if isinstance(given, Mapping) else given)
            continue
        try:
            tree = ast.parse(block)
        except SyntaxError:
            if is_whole_text:  # prose
                continue
            raise
        for statement in tree.body:
            value = statement.value if isinstance(statement, ast.Expr) else None
            for one in value.elts if isinstance(value, ast.List) else [value]:
                if isinstance(one, ast.Call):
                    yield _parsed(one)


def _parsed(call: ast.Call) -> ParsedCall:
    """Read a call as it is written: its arguments are literals, and nothing of it is run."""
    if any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("** has no names")
    by_name = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    # What has no name goes by its place, which no reference has: it is wrong, but counts as an argument.
    return ast.unparse(call.func), {**{f"#{i}": ast.literal_eval(a) for i, a in enumerate(call.args)}, **by_name}


def _named(given: Mapping[str, Any]) -> ParsedCall:
    """Read `{name, arguments}`, alone or under `function` as in OpenAI's messages."""
    inner = given.get("function") if isinstance(given.get("function"), Mapping) else given
    assert inner is not None
    arguments = inner.get("arguments", inner.get("parameters")) or {}
    return str(inner["name"]), dict(json.loads(arguments) if isinstance(arguments, str) else arguments)
