r"""Read what an agent's completion asks for: an action in ReAct's grammar, and the arguments of a tool call.

Chat models write more forms than a prompt asks for. Those with one plain meaning are read; all others are refused, so
that the model is told. No paper: the grammar is ReAct's (https://huggingface.co/papers/2210.03629), `Action Input:` and
objects with `action` and `action_input` are LangChain's, `<tool_call>` is Hermes's.

Example:
    >>> read_action('**Action 1:** `search[{"query": "a ] b"}]`. I wait.')[:2]
    ('search', '{"query": "a ] b"}')
    >>> read_action("Action: search\nAction Input: x\nObservation: y").inside
    'x'
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

from posttrain_plugins.text.readers import without_thought

__all__ = ["Action", "read_action", "read_arguments", "read_object", "tool_turn"]

# Lists, headings, quotes, bold, code, numbers. The bound keeps the search linear in a line of a million dashes.
_MARK = r"[ \t>#*_`+•.)\d-]{0,12}"
_COLON = rf"{_MARK}[:\uff1a]\*{{0,3}}"  # the second one is full-width, as in Chinese text
# "Thought:" or a sentence may stand before it on its line: many models write a thought and its action in one line.
_LABEL = re.compile(
    rf"(?:^{_MARK}(?:Thought{_COLON})?|(?<=[.!?]\s)){_MARK}"
    rf"(?:Action{_COLON}|(?P<final>Final[ _]?Answer){_COLON}|(?=Finish\[))|<tool_call>",
    re.MULTILINE | re.IGNORECASE,
)
# between the label and the name: a fence, bold, a name in brackets
_LEAD = re.compile(r"\s*(?:```\w*\s+)?[\s*_`\[]*")
_NAME = re.compile(r"(\w[\w./-]*(?: \w[\w./-]*){0,3})[*_`\]\"' \t]{0,4}")
_INPUT = re.compile(rf"\s*{_MARK}(?:Action[ _]?)?(?:Input|Arguments|Parameters){_COLON}|\s*(?=\{{)", re.IGNORECASE)
_NEXT = re.compile(
    rf"^{_MARK}(?:Thought|Action|Final[ _]?Answer){_COLON}|\bObservation{_COLON}", re.MULTILINE | re.IGNORECASE
)
_INVENTED = re.compile(rf"^{_MARK}Observation{_COLON}", re.MULTILINE | re.IGNORECASE)
_FENCE = re.compile(r"\s*```\w*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_OBJECT = re.compile(r"\{\s*(?:[\"'\u201c\u2018]|\w+\s*[:=])")
_ESCAPE = re.compile(r"(\\[\\'\"abfnrtvxuU0-7\n])|\\")
_MOST_TRIES = 16  # labels that may stand before an action, brackets that may be the closing one: each costs a search


class Action(NamedTuple):
    """Holds what a completion asks for.

    Args:
        name: the tool, as written; `Finish` for an answer; empty where nothing can be read.
        inside: the arguments or the answer, as written.
        end: where it ends, in characters. What the model wrote behind it, it wrote without the observation.
    """

    name: str
    inside: str
    end: int


def read_action(text: str, prompt: object = None) -> Action:
    """Return the first action that can be read, before any observation that the model has invented.

    Args:
        text: a completion. An action within a thought is none.
        prompt: what it follows, as text or messages; it may open a thought.
    """
    rest = without_thought(text, prompt)
    if rest is None:
        return Action("", "", len(text))
    offset = len(text) - len(rest)
    invented = _INVENTED.search(rest)
    rest = rest[: invented.start()] if invented else rest
    for label in islice(_LABEL.finditer(rest), _MOST_TRIES):
        found = _action_at(rest, label.end(), is_answer=bool(label["final"]))
        if found is not None:
            return found._replace(end=offset + found.end)
    return Action("", "", offset + len(rest))


def _action_at(text: str, start: int, is_answer: bool) -> Action | None:
    """Read the action behind its label."""
    if is_answer:
        return Action("Finish", *_rest(text, start))
    lead = _LEAD.match(text, start)
    at = lead.end() if lead else start
    if text.startswith("{", at):  # {"action": name, "action_input": arguments}
        inside, end = _enclosed(text, at)
        found = next(iter((_literals(f"{{{inside}}}") or ([], {}))[0]), None)
        if not isinstance(found, dict):
            return None
        name = next((found[key] for key in ("action", "name", "tool") if key in found), "")
        given = next((found[key] for key in ("action_input", "arguments", "input", "parameters") if key in found), "")
        return Action(str(name), given if isinstance(given, str) else json.dumps(given), end)
    name = _NAME.match(text, at)
    if name and text.startswith(("[", "("), name.end()):
        inside, end = _enclosed(text, name.end())
        return Action(name[1], inside, end) if end else None
    if name and (label := _INPUT.match(text, name.end())):
        return Action(name[1], *_rest(text, label.end()))
    if finish := re.compile(r"Finish\b[*_`:\s]+", re.IGNORECASE).match(text, at):
        line = text[finish.end() :].partition("\n")[0]
        return Action("Finish", line, finish.end() + len(line))
    return None


def _rest(text: str, start: int) -> tuple[str, int]:
    """Return what stands behind a label, without its fence, and where it ends: at the next label."""
    if fence := _FENCE.match(text, start):
        return fence[1], fence.end()
    following = _NEXT.search(text, start)
    end = following.start() if following else len(text)
    at = len(text) - len(text[start:].lstrip())
    if text.startswith("{", at):
        inside, closed = _enclosed(text, at)
        if closed:
            return f"{{{inside}}}", closed
    return text[start:end].strip(), end


def _enclosed(text: str, at: int) -> tuple[str, int]:
    """Return what stands between the bracket at `at` and the one that closes it, and where that ends; 0 if none does.

    The closing one is the first before which literals end, for a text in quotes may hold any bracket; without literals
    the one that matches, else the last on the line ("[0, 1)" has none that matches).
    """
    opening, start = text[at], at + 1
    closing = {"[": "]", "(": ")", "{": "}"}[opening]
    tries = [match.start() for match in re.finditer(re.escape(closing), text[start:])][:_MOST_TRIES]
    for end in (start + n for n in tries):
        inside = text[start:end]
        if _literals(f"{{{inside}}}" if opening == "{" else inside) is not None:
            return inside, end + 1
    depth = 1
    for end in range(start, len(text)):
        depth += {opening: 1, closing: -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end], end + 1
    last = text[start:].partition("\n")[0].rfind(closing)
    return (text[start : start + last], start + last + 1) if last >= 0 else ("", 0)


# --- Arguments -------------------------------------------------------------------------------------------------------


def read_arguments(inside: str, function: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the arguments that stand in an action.

    Read are an object in JSON or Python, `a=1, b="x"`, `a: 1`, values in the order of the parameters, and anything else
    as the text of the first parameter.

    Args:
        inside: what stands between the brackets.
        function: the tool's schema, `{name, description, parameters}`.

    Returns:
        Values by parameter, of whatever type was written; None for an object that cannot be read, which is never passed
        on as a text.

    Example:
        >>> add = {"parameters": {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}}
        >>> [read_arguments(text, add) for text in ('{"a": 1, "b": 2,}', "a=1, b=2", "1, 2")]
        [{'a': 1, 'b': 2}, {'a': 1, 'b': 2}, {'a': 1, 'b': 2}]
    """
    properties: Mapping[str, Any] = function.get("parameters", {}).get("properties", {})
    names = list(properties)
    fence = _FENCE.fullmatch(inside)
    text = (fence[1] if fence else inside).strip().strip("`")
    if not text:
        return {}
    values, named = _literals(text) or ([], {})
    if len(values) == 1 and not named:
        value = values[0]
        known = read_object(value) if isinstance(value, str) else None  # JSON within a text
        if isinstance(value, dict) or (known and known.keys() <= properties.keys()):
            return {str(key): one for key, one in (known or value).items()}
    # `look_up[1984]` is a word to look up, not a number, where the schema asks for a text
    is_text = not names or properties[names[0]].get("type", "string") == "string"
    is_value = bool(values) and len(values) <= len(names) and (isinstance(values[0], str) or not is_text)
    if named or is_value:
        return {**dict(zip(names, values, strict=False)), **named}
    label = re.compile(rf"(?:^|[,\n])\s*({'|'.join(map(re.escape, names))})\s*(?:=|:(?=\s))\s*")
    if names and label.match(text):
        pieces = label.split(text)[1:]
        read = [(_literals(piece) or ([], {}))[0] for piece in pieces[1::2]]
        given = [one[0] if len(one) == 1 else piece.strip() for one, piece in zip(read, pieces[1::2], strict=True)]
        return dict(zip(pieces[::2], given, strict=True))
    if _OBJECT.match(text):
        return None
    return {names[0]: text} if names else {}


def read_object(given: Any) -> dict[str, Any] | None:
    """Return the arguments of a native call, which should be an object or its JSON; None for anything else.

    Nothing at all is an empty object, as some servers send it of a call without arguments, and JSON may stand in JSON.

    Example:
        >>> [read_object(given) for given in ('{"a": 1}', {"a": 1}, None, '"{}"', '{"a": 1,}', "[1]")]
        [{'a': 1}, {'a': 1}, {}, {}, None, None]
    """
    with suppress(ValueError, RecursionError):
        for _ in range(2):
            given = json.loads(given, strict=False) if isinstance(given, str) and given.strip() else given
    if given is None or (isinstance(given, str) and not given.strip()):
        return {}
    return dict(given) if isinstance(given, Mapping) else None


def tool_turn(
    turn: int, text: str, calls: Sequence[tuple[str, Mapping[str, Any]]], answers: Sequence[str]
) -> list[dict[str, Any]]:
    """Return what the model said in a turn, with its calls, and the answers to them, as chat messages.

    Args:
        turn: which it is, from 0.
        text: beside the calls.
        calls: each a name and arguments.
        answers: one for each call; empty where nobody answered.

    Example:
        >>> [message["role"] for message in tool_turn(0, "", [("add", {"a": 1})], ["2"])]
        ['assistant', 'tool']
    """
    # Made up from the turn, not drawn: a replay has to send the same messages. Some servers refuse calls without ids,
    # or tool messages that name none.
    ids = [f"call_{turn}_{i}" for i in range(len(calls))]
    asked = [
        {"id": key, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}
        for key, (name, arguments) in zip(ids, calls, strict=True)
    ]
    said: dict[str, Any] = {"role": "assistant", "content": text}
    told = [
        {"role": "tool", "tool_call_id": key, "name": name, "content": answer}
        for key, (name, _), answer in zip(ids, calls, answers, strict=False)
    ]
    return [{**said, "tool_calls": asked} if asked else said, *told]


def _literals(text: str) -> tuple[list[Any], dict[str, Any]] | None:
    """Return the values and the named values of a call, written as JSON or Python; None for anything else."""
    with suppress(ValueError, RecursionError):
        return [json.loads(text, strict=False)], {}
    # an escape that Python does not know, as in LaTeX, is a backslash; Python would warn of it
    known = _ESCAPE.sub(lambda match: match[1] or "\\\\", text)
    try:
        call = ast.parse(f"f({known})", mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
            return [ast.literal_eval(value) for value in call.args], named
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        pass
    return None
