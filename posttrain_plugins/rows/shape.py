"""What a stage can take of a row: TRL's columns, each of the form that its trainers expect.

TRL finds a wrong row deep inside a `map`, without the row. Here each mistake says where, which column, what was found,
what was expected, and the `format`, `rename` or `types` that mends it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RowMistake", "check_rows"]

MESSAGES_ONLY = ("messages",)
EITHER = ("prompt", "completion", "chosen", "rejected")
ROLES = ("system", "user", "assistant", "tool", "developer", "function")


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
        for column in (*MESSAGES_ONLY, *EITHER):
            if column in wanted and column in row:
                mistake = _value(index, column, row[column], row)
                if mistake is not None:
                    return mistake
        mistake = (
            _labels(index, row, wanted) or _forms_agree(index, row, wanted) or _same_form(index, row, wanted, forms)
        )
        if mistake is not None:
            return mistake
    return None


def _value(index: int, column: str, value: Any, row: Mapping[str, Any]) -> RowMistake | None:
    is_messages = column in MESSAGES_ONLY
    if isinstance(value, str) and not is_messages:
        return None
    if isinstance(value, list):
        return _messages(index, column, value, row)
    expected = "a list of messages" if is_messages else "text or a list of messages"
    if isinstance(value, bool | int | float):
        hint = f'write it as text, "{json.dumps(value)}"'
    elif value is None:
        hint = "fill it or remove the row"
    else:
        hint = (
            "rename: {old: new} on the data set, or format: sharegpt | alpaca | openai | ultrafeedback | hh | prm800k"
        )
    return RowMistake(index, column, _shown(value), expected, hint)


def _messages(index: int, column: str, messages: list[Any], row: Mapping[str, Any]) -> RowMistake | None:
    if not messages:
        return RowMistake(index, column, "an empty list", "at least one message", "remove the row")
    for number, message in enumerate(messages):
        where = f"{column}[{number}]"
        if not isinstance(message, Mapping):
            return RowMistake(
                index,
                where,
                _shown(message),
                'a message, {"role": ..., "content": ...}',
                "format: sharegpt, or mend the row",
            )
        if "role" not in message:
            hint = (
                "format: sharegpt"
                if {"from", "value"} <= set(message)
                else 'each message is {"role": ..., "content": ...}'
            )
            return RowMistake(
                index, where, f"an object with {', '.join(message) or 'no keys'}", "role and content", hint
            )
        content = message.get("content")
        is_call = bool(message.get("tool_calls"))
        if content is None and not is_call:
            hint = "remove the row, or write its text; only a message with tool_calls may have none"
            return RowMistake(index, f"{where}.content", "null", "text", hint)
        if not isinstance(content, str | list) and content is not None:
            return RowMistake(
                index, f"{where}.content", _shown(content), "text", f'write it as text, "{json.dumps(content)}"'
            )
    return None


def _labels(index: int, row: Mapping[str, Any], wanted: set[str]) -> RowMistake | None:
    if "label" in wanted and "label" in row and not isinstance(row["label"], bool) and row["label"] not in (0, 1):
        hint = "write true or false without quotes; for CSV, types: {label: bool}"
        return RowMistake(index, "label", _shown(row["label"]), "true or false", hint)
    if "completions" in wanted and "completions" in row:
        steps = row["completions"]
        if not isinstance(steps, list) or not steps:
            hint = "one text for each, format: prm800k for that set"
            return RowMistake(index, "completions", _shown(steps), "a list of texts", hint)
    if {"completions", "labels"} <= wanted and {"completions", "labels"} <= set(row):
        labels = row["labels"]
        if not isinstance(labels, list) or any(not isinstance(label, bool) and label not in (0, 1) for label in labels):
            return RowMistake(
                index, "labels", _shown(labels), "a list of true and false", "one for each of `completions`"
            )
        if len(labels) != len(row["completions"]):
            found = f"a list of {len(labels)}, with {len(row['completions'])} completions"
            return RowMistake(index, "labels", found, "one for each step", "mend the row")
    return None


def _forms_agree(index: int, row: Mapping[str, Any], wanted: set[str]) -> RowMistake | None:
    """Within a row, prompt and what follows it are both texts or both conversations."""
    if "prompt" not in wanted or "prompt" not in row:
        return None
    form = _form(row["prompt"])
    for column in EITHER[1:]:
        if column in wanted and column in row and _form(row[column]) != form:
            whole = isinstance(row[column], list) and any(message.get("role") == "user" for message in row[column])
            hint = (
                "format: ultrafeedback takes the prompt out of them, or columns: [chosen, rejected]"
                if whole and form == "text"
                else f"give prompt and {column} the same form"
            )
            return RowMistake(index, column, f"{_form(row[column])} beside a prompt that is {form}", form, hint)
    return None


def _same_form(
    index: int, row: Mapping[str, Any], wanted: set[str], forms: dict[str, tuple[int, str]]
) -> RowMistake | None:
    """Over the rows, a column keeps its form: TRL looks at the first row alone."""
    for column in EITHER:
        if column in wanted and column in row:
            first, form = forms.setdefault(column, (index, _form(row[column])))
            if _form(row[column]) != form:
                found = f"{_form(row[column])}, where row {first + 1} has {form}"
                return RowMistake(
                    index, column, found, f"{form} in every row", "split the data set in two, or convert one half"
                )
    return None


def _form(value: Any) -> str:
    return "text" if isinstance(value, str) else "a list of messages"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
