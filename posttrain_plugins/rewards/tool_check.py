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

Call: TypeAlias = tuple[str, dict[str, Any]]

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

    def __post_init__(self) -> None:
        self.__name__ = "tool_check"  # what TRL logs it under

    def __call__(self, completions: Sequence[Prompt], solution: Sequence[Any], **columns: Any) -> list[float | None]:
        """Score each completion.

        Args:
            completions: B completions, plain or conversational.
            solution: B lists of calls with `name` and `arguments`, or their JSON; None where there is no reference, an
                empty list where no tool should be called.

        Returns:
            B scores in [0, 1]; None where there is no reference.

        Raises:
            InputError: a reference cannot be read.
        """
        return [self._score(text, one) for text, one in zip(completions, solution, strict=True)]

    def _score(self, completion: Prompt, solution: Any) -> float | None:
        if solution is None:
            return None
        wanted, found = _reference(solution), _calls(completion)
        if found is None:
            return 0.0
        return _share(found, wanted) if self.partial else float(self._is_same(found, wanted))

    def _is_same(self, found: Sequence[Call], wanted: Sequence[Call]) -> bool:
        if self.is_ordered:
            return list(found) == list(wanted)
        left = list(wanted)
        for call in found:
            if call not in left:
                return False
            left.remove(call)
        return not left


def _share(found: Sequence[Call], wanted: Sequence[Call]) -> float:
    """ToolRL's correctness: names, then for each wanted call the best of the calls made, each of these used once."""
    if not wanted:
        return float(not found)
    names, called = Counter(name for name, _ in wanted), Counter(name for name, _ in found)
    right = (names & called).total() / (names | called).total()
    most = 1.0
    left = list(found)
    for name, arguments in wanted:
        most += 1 + len(arguments)
        best = max(
            (call for call in left if call[0] == name), key=lambda call: _match(call[1], arguments), default=None
        )
        if best is not None:
            left.remove(best)
            right += _match(best[1], arguments)
    return right / most


def _match(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """The share of argument names, and the number of values that are right."""
    both, all_names = found.keys() & wanted.keys(), found.keys() | wanted.keys()
    return (len(both) / len(all_names) if all_names else 1.0) + sum(float(found[name] == wanted[name]) for name in both)


# --- reading calls ---------------------------------------------------------------------------------------------------


def _reference(solution: Any) -> list[Call]:
    try:
        given = json.loads(solution) if isinstance(solution, str) else solution
        return [_call(one) for one in ([given] if isinstance(given, Mapping) else given)]
    except (ValueError, TypeError, KeyError, AttributeError) as cause:
        hint = '[{"name": ..., "arguments": {...}}]'
        raise InputError(f"tool_check cannot read its reference: {solution!r:.120}", hint=hint) from cause


def _calls(completion: Prompt) -> list[Call] | None:
    """The calls of a completion, none in a text without any; None where one is there that cannot be read."""
    try:
        return list(_read(completion))
    except (ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError, MemoryError):
        return None


def _read(completion: Prompt) -> Iterator[Call]:
    if not isinstance(completion, str):
        native = [call for message in completion for call in message.get("tool_calls") or ()]
        if native:
            yield from map(_call, native)
            return
    text = to_text(completion)
    tagged = _TAGGED.findall(text)
    if tagged:
        yield from (_call(json.loads(one)) for one in tagged)
        return
    for block in _FENCE.findall(text) or [text]:
        yield from _from_block(block.strip(), is_all=block == text)


def _from_block(block: str, is_all: bool) -> Iterator[Call]:
    """JSON or Python; prose, which is neither, holds no call."""
    if block.startswith(("{", "[")) and '"name"' in block:
        given = json.loads(block)
        yield from map(_call, [given] if isinstance(given, Mapping) else given)
        return
    try:
        tree = ast.parse(block)
    except SyntaxError:
        if is_all:
            return
        raise
    for statement in tree.body:
        values = statement.value if isinstance(statement, ast.Expr) else None
        for value in values.elts if isinstance(values, ast.List) else [values]:
            if isinstance(value, ast.Call):
                yield _from_tree(value)


def _from_tree(call: ast.Call) -> Call:
    if any(keyword.arg is None for keyword in call.keywords):
        raise ValueError("** has no names")
    by_name = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    return ast.unparse(call.func), {**{f"#{i}": ast.literal_eval(a) for i, a in enumerate(call.args)}, **by_name}


def _call(given: Mapping[str, Any]) -> Call:
    inner = given.get("function") if isinstance(given.get("function"), Mapping) else given
    assert inner is not None
    arguments = inner.get("arguments", inner.get("parameters")) or {}
    return str(inner["name"]), dict(json.loads(arguments) if isinstance(arguments, str) else arguments)
