"""Rows of well-known data sets, turned into TRL's columns by the name of their form.

- `sharegpt`: `conversations` (or `messages`) of `{from, value}`, perhaps `system`, become `messages`.
- `alpaca`: `instruction`, `input`, `output` become `prompt`, `completion`.
- `openai`: `messages` for fine-tuning stay `messages`; `input`, `preferred_output`, `non_preferred_output` become
  `prompt`, `chosen`, `rejected`.
- `ultrafeedback`: `prompt` as text beside whole conversations in `chosen` and `rejected`, or `instruction` and scored
  `completions`, become `prompt`, `chosen`, `rejected`.
- `hh`: `chosen` and `rejected` as one text with "Human:" and "Assistant:" turns become `prompt`, `chosen`, `rejected`.
- `prm800k`: `question` and `label.steps` with a rating for each completion become `prompt`, `completions`, `labels`.

Each is written after the data set's public card; `tests/rows/test_formats.py` has a fixture with its address.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.rows.read import Row

__all__ = ["FORMATS", "convert"]

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
         "bing": "assistant", "bard": "assistant", "model": "assistant", "system": "system", "tool": "tool",
         "observation": "tool", "function_response": "tool", "function_call": "assistant"}  # fmt: skip


def convert(rows: Sequence[Row], name: str, place: Callable[[int], str]) -> list[Row]:
    """Turn rows of a foreign form into TRL's columns; other columns stay.

    Args:
        rows: as they stand in the file.
        name: one of `FORMATS`.
        place: tells where row i stands, for errors.

    Raises:
        InputError: a row is not of that form: where, what was found, what was expected.
    """
    converted = []
    for index, row in enumerate(rows):
        try:
            new, used = FORMATS[name](row)
        except (KeyError, TypeError, ValueError, IndexError) as cause:
            what = f"no '{cause.args[0]}'" if isinstance(cause, KeyError) else str(cause)
            raise InputError(
                f"{place(index)}: not of the format '{name}': {what}, the row has {', '.join(row)}",
                hint=f"formats: {', '.join(FORMATS)}; or rename: {{old: new}}",
            ) from cause
        if new is not None:
            converted.append({**{key: value for key, value in row.items() if key not in used}, **new})
    return converted


def _sharegpt(row: Row) -> tuple[Row, set[str]]:
    column = "conversations" if "conversations" in row else "messages"
    turns = row[column]
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"'{column}' is {turns!r}, expected a list of turns")
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for turn in turns:
        # refused, not passed on: a chat template writes a role that it does not know as it stands, or drops the turn
        if turn["from"] not in ROLES:
            raise ValueError(f"a turn is from {turn['from']!r}, expected one of {', '.join(ROLES)}")
        messages.append({"role": ROLES[turn["from"]], "content": turn["value"]})
    return {"messages": messages}, {column, "system"}


def _alpaca(row: Row) -> tuple[Row, set[str]]:
    question = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
    answer = {"role": "assistant", "content": row["output"]}
    # `text` goes too: it is the whole in Alpaca's own template, and TRL would take it for what to learn from
    used = {"instruction", "input", "output", "text"}
    return {"prompt": [{"role": "user", "content": question}], "completion": [answer]}, used


def _openai(row: Row) -> tuple[Row, set[str]]:
    if "messages" in row:
        return {"messages": [_openai_message(message) for message in row["messages"]]}, {"messages"}
    prompt = [_openai_message(message) for message in row["input"]["messages"]]
    chosen, rejected = (
        [_openai_message(m) for m in row[name]] for name in ("preferred_output", "non_preferred_output")
    )
    extra = {"tools": row["input"]["tools"]} if row["input"].get("tools") else {}
    new = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **extra}
    return new, {"input", "preferred_output", "non_preferred_output"}


def _openai_message(message: Mapping[str, Any]) -> Row:
    """Write a message as chat templates want it: arguments of calls as objects, and no `weight`, the API's own."""
    kept = {key: value for key, value in message.items() if key != "weight"}
    if isinstance(kept.get("content"), list):
        kept["content"] = "".join(part["text"] for part in kept["content"] if part.get("type") == "text")
    for call in kept.get("tool_calls") or ():
        if isinstance(call["function"]["arguments"], str):
            call["function"] = {**call["function"], "arguments": json.loads(call["function"]["arguments"])}
    return kept


def _ultrafeedback(row: Row) -> tuple[Row | None, set[str]]:
    if "completions" in row:  # one instruction, several models' answers
        scored = []
        for answer in row["completions"]:
            # the fine-grained mean stands in for the overall score, which some answers of the set lack
            overall = answer.get("overall_score")
            score = float(overall if overall is not None else answer["fine-grained_score"])
            scored.append((score, {"role": "assistant", "content": answer["response"]}))
        (low, worst), (high, best) = min(scored, key=lambda s: s[0]), max(scored, key=lambda s: s[0])
        used = {"instruction", "completions"}
        if high == low:  # nobody preferred one
            return None, used
        prompt = [{"role": "user", "content": row["instruction"]}]
        return {"prompt": prompt, "chosen": [best], "rejected": [worst], "margin": high - low}, used
    chosen, rejected = row["chosen"], row["rejected"]
    common = _common_start(chosen, rejected)
    if not common or not chosen[len(common) :] or not rejected[len(common) :]:
        raise ValueError("'chosen' and 'rejected' do not begin with the same messages")
    new = {"prompt": common, "chosen": chosen[len(common) :], "rejected": rejected[len(common) :]}
    return new, {"prompt", "chosen", "rejected", "messages"}


def _common_start(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    """Return what both conversations share, up to the last message of either, which is the answer."""
    shared = []
    for one, other in zip(first[:-1], second[:-1], strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


def _hh(row: Row) -> tuple[Row, set[str]]:
    chosen, rejected = (_turns(row[name]) for name in ("chosen", "rejected"))
    common = _common_start(chosen, rejected)
    # Some pairs part before the last answer: what follows belongs to each side as a whole.
    while common and common[-1]["role"] != "user":
        common.pop()
    if not common:
        raise ValueError("'chosen' and 'rejected' do not begin with the same turn of the human")
    new = {"prompt": common, "chosen": chosen[len(common) :], "rejected": rejected[len(common) :]}
    return new, {"chosen", "rejected"}


def _turns(text: str) -> list[Row]:
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text)
    if parts[0].strip() or len(parts) < 3:
        raise ValueError(f'the text begins {text[:40]!r}, expected "\\n\\nHuman:"')
    names = {"Human": "user", "Assistant": "assistant"}
    return [{"role": names[who], "content": turn.strip()} for who, turn in zip(parts[1::2], parts[2::2], strict=True)]


def _prm800k(row: Row) -> tuple[Row, set[str]]:
    """Follow the solution that the annotators chose; a rating of -1 is wrong, 0 and 1 are right."""
    steps, labels = [], []
    for step in row["label"]["steps"]:
        index = step.get("chosen_completion")
        if index is None and step.get("human_completion"):
            answer: Mapping[str, Any] = {"rating": 1, **step["human_completion"]}
        elif step.get("completions"):
            answer = step["completions"][index or 0]
        else:
            break
        if answer.get("rating") is None:  # nobody judged it, nor what follows
            break
        steps.append(answer["text"])
        labels.append(answer["rating"] >= 0)
        if not labels[-1]:
            break
    if not steps:
        raise ValueError("no step has a rating")
    question = row["question"]
    new = {"prompt": question["problem"], "completions": steps, "labels": labels}
    if question.get("ground_truth_answer") is not None:
        new["solution"] = question["ground_truth_answer"]
    return new, {"question", "label"}


FORMATS: dict[str, Callable[[Row], tuple[Row | None, set[str]]]] = {
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "openai": _openai,
    "ultrafeedback": _ultrafeedback,
    "hh": _hh,
    "prm800k": _prm800k,
}
