"""What a stage can take of a row: TRL's columns, each of the form that its trainers expect.

TRL finds a wrong row deep inside a `map`, without the row. Here each mistake says where, which column, what was found,
what was expected, and the `format`, `rename` or `types` that mends it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Any, TypeAlias

__all__ = ["RowMistake", "check_rows"]

MESSAGES_ONLY = ("messages",)
EITHER = ("prompt", "completion", "chosen", "rejected")

Mistake: TypeAlias = tuple[str, str, str, str]
"""Column, found, expected and hint of a `RowMistake`."""


@dataclass(frozen=True)
class RowMistake:
    """What is wrong with one value.

    Args:
        index: of the row, from 0.
        column: where in the row, such as `messages[1].content`.
        found: the value, shortened.
        expected: what the stage can take.
        hint: one action.
    """

    index: int
    column: str
    found: str
    expected: str
    hint: str

    def __str__(self) -> str:
        return f"'{self.column}' is {self.found}, expected {self.expected}"


def check_rows(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> RowMistake | None:
    """Find the first row that a trainer could not take.

    Args:
        rows: in TRL's columns, after `format`, `columns` and `rename`.
        columns: those that the stage reads.

    Returns:
        The first mistake, or None.
    """
    wanted = set(columns)
    forms: dict[str, tuple[int, str]] = {}  # column -> the row that set its form, and that form
    for index, row in enumerate(rows):
        read = {name: value for name, value in row.items() if name in wanted}
        # one mistake is enough: the rows behind it mostly have the same, and a file may have millions
        for mistake in chain(_in_values(read), _in_labels(read), _in_forms(read, forms, index)):
            return RowMistake(index, *mistake)
    return None


def _in_values(read: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what is neither a text nor a conversation."""
    for column in (*MESSAGES_ONLY, *EITHER):
        if column not in read:
            continue
        value, is_messages = read[column], column in MESSAGES_ONLY
        if isinstance(value, list):
            yield from _in_messages(column, value)
        elif is_messages or not isinstance(value, str):
            if isinstance(value, bool | int | float):
                hint = f'write it as text, "{json.dumps(value)}"'
            elif value is None:
                hint = "fill it or remove the row"
            else:
                formats = "sharegpt | alpaca | openai | ultrafeedback | hh | prm800k"
                hint = f"rename: {{old: new}} on the data set, or format: {formats}"
            expected = "a list of messages" if is_messages else "text or a list of messages"
            yield column, _shown(value), expected, hint


def _in_messages(column: str, messages: list[Any]) -> Iterator[Mistake]:
    if not messages:
        yield column, "an empty list", "at least one message", "remove the row"
    for number, message in enumerate(messages):
        where = f"{column}[{number}]"
        if not isinstance(message, Mapping):
            expected = 'a message, {"role": ..., "content": ...}'
            yield where, _shown(message), expected, "format: sharegpt, or mend the row"
        elif "role" not in message:
            is_sharegpt = {"from", "value"} <= set(message)
            hint = "format: sharegpt" if is_sharegpt else 'each message is {"role": ..., "content": ...}'
            yield where, f"an object with {', '.join(message) or 'no keys'}", "role and content", hint
        elif (content := message.get("content")) is None:
            if not message.get("tool_calls"):
                hint = "remove the row, or write its text; only a message with tool_calls may have none"
                yield f"{where}.content", "null", "text", hint
        elif not isinstance(content, str | list):  # a list of parts is what templates of models with images take
            yield f"{where}.content", _shown(content), "text", f'write it as text, "{json.dumps(content)}"'


def _in_labels(read: Mapping[str, Any]) -> Iterator[Mistake]:
    label, steps, labels = read.get("label", True), read.get("completions"), read.get("labels")
    # `in (0, 1)`: KTO's public sets write numbers, and TRL takes them; "false" as text would be true to Python
    if not isinstance(label, bool) and label not in (0, 1):
        hint = "write true or false without quotes; for CSV, types: {label: bool}"
        yield "label", _shown(label), "true or false", hint
    if "completions" in read and (not isinstance(steps, list) or not steps):
        yield "completions", _shown(steps), "a list of texts", "one text for each, format: prm800k for that set"
    if {"completions", "labels"} <= set(read):
        # shares of right rollouts are labels, too (Math-Shepherd)
        if not isinstance(labels, list) or not all(isinstance(one, int | float) and isfinite(one) for one in labels):
            yield "labels", _shown(labels), "a list of true and false, or of numbers", "one for each of `completions`"
        elif len(labels) != len(read["completions"]):
            found = f"a list of {len(labels)}, with {len(read['completions'])} completions"
            yield "labels", found, "one for each step", "mend the row"


def _in_forms(read: Mapping[str, Any], forms: dict[str, tuple[int, str]], index: int) -> Iterator[Mistake]:
    """Yield a column of another form than the row's prompt, or than rows before: TRL looks at the first alone."""
    form = _form(read.get("prompt"))
    for column in EITHER[1:] if "prompt" in read else ():
        if column in read and (found := _form(read[column])) != form:
            # whole conversations beside a prompt are a known form of data, which holds the prompt twice
            is_whole = isinstance(read[column], list) and any(m.get("role") == "user" for m in read[column])
            hint = f"give prompt and {column} the same form"
            if is_whole and form == "text":
                hint = "format: ultrafeedback takes the prompt out of them, or columns: [chosen, rejected]"
            yield column, f"{found} beside a prompt that is {form}", form, hint
    for column in EITHER:
        if column in read:
            first, form = forms.setdefault(column, (index, _form(read[column])))
            if (found := _form(read[column])) != form:
                hint = "split the data set in two, or convert one half"
                yield column, f"{found}, where row {first + 1} has {form}", f"{form} in every row", hint


def _form(value: Any) -> str:
    return "text" if isinstance(value, str) else "a list of messages"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
