"""What of an item reaches the browser: texts in a shuffled order, cut to what a window can lay out, and no more.

1. Blind: no name of a model, no score, no other column of the row, and not where the item comes from.
2. The order is drawn from the seed, the item and the annotator: each annotator has another one, the same one whenever
   they come back to it, and what is asked again is shown in a new one.
3. A browser lays out 1 MB in a word in a second and 500,000 lines in ten: texts are cut by lines and by characters, and
   the rest is asked for in pages.
4. Control characters and marks that turn the direction of a text are written out.

No paper.
"""

from __future__ import annotations

import json
import random
from typing import Any

from posttrain_plugins.decisions.item import Decision, Item
from posttrain_plugins.errors import InputError
from posttrain_plugins.report.page import clean
from posttrain_plugins.text import to_messages, to_text

__all__ = ["MOST_CHARS", "MOST_LINES", "MOST_STEPS", "cut", "order_of", "rest_of", "shown_item"]

MOST_LINES = 400
MOST_CHARS = 40_000
MOST_STEPS = 200


def order_of(item: Item, annotator: str, seed: int, times_asked: int = 0) -> list[int]:
    """Return in which order an annotator sees an item's completions: places in the item's own order."""
    order = list(range(len(item.completions)))
    random.Random(f"{seed}:{item.id}:{annotator}:{times_asked}").shuffle(order)
    return order


def cut(text: str, start: int = 0) -> tuple[str, int | None]:
    """Return the part of a text that is shown at once, and where the next one starts.

    Args:
        text: as a model wrote it.
        start: a place in it.

    Example:
        >>> cut("a\\n" * 401)[1], cut("a" * 40_000)[1], cut("a" * 40_001)[1]
        (800, None, 40000)
    """
    end = start
    for _ in range(MOST_LINES):
        line_end = text.find("\n", end, start + MOST_CHARS)
        if line_end < 0:
            end = start + MOST_CHARS
            break
        end = line_end + 1
    return clean(text[start:end].replace("\r\n", "\n")), end if end < len(text) else None


def shown_item(item: Item, shown: list[int], draft: str | None = None, given: Decision | None = None) -> dict[str, Any]:
    """Return an item as the page draws it.

    Args:
        item: what is asked.
        shown: the order of its completions.
        draft: what the annotator had begun to write.
        given: what the annotator has decided already, where they look back.
    """
    start = draft if draft is not None else to_text(item.completions[0]) if item.completions else ""
    value: dict[str, Any] = {
        "id": item.id,
        "mode": item.mode,
        "prompt": [{"role": role, **_part(text)} for role, text in _turns(item)],
        "shown": shown,
        "given": None,
    }
    if item.mode == "demonstration":
        # not cleaned: this is edited, not looked at, and what was not changed is to stay as it was
        value["text"] = start if given is None or given.text is None else given.text
        value["is_begun"] = bool(item.completions)
    elif item.mode == "first_wrong":
        value["steps"] = list(map(_step, item.steps[:MOST_STEPS]))
        value["step_count"] = len(item.steps)
    else:
        value["completions"] = [_part(to_text(item.completions[place])) for place in shown]
    if given is not None:
        value["given"] = {k: v for k, v in given.to_json().items() if k not in ("source", "session", "version")}
    return value


def rest_of(item: Item, part: str, start: int) -> dict[str, Any]:
    """Return the next page of a text, or of the steps.

    Args:
        item: of the text.
        part: `prompt:0`, `completion:2` (in the item's own order), `step:17`, or `steps`.
        start: where the last page ended.

    Raises:
        InputError: the item has no such part.
    """
    name, _, number = part.partition(":")
    if name == "steps":
        return {"steps": list(map(_step, item.steps[start : start + MOST_STEPS]))}
    texts = {
        "prompt": [text for _, text in _turns(item)],
        "completion": list(map(to_text, item.completions)),
        "step": list(item.steps),
    }.get(name, [])
    if not number.isdecimal() or int(number) >= len(texts):
        raise InputError(f"the item has no part {part!r}")
    text, rest = cut(texts[int(number)], start)
    return {"text": text, "rest": rest}


def _part(text: str) -> dict[str, Any]:
    part, rest = cut(text)
    return {"text": part, "rest": rest, "chars": len(text)}


def _step(step: str) -> dict[str, Any]:
    return _part(step.rstrip("\n"))  # the separator at its end is none of what is judged


def _turns(item: Item) -> list[tuple[str, str]]:
    """Return role and text of each message of the prompt; a text alone has no role to name."""
    if isinstance(item.prompt, str):
        return [("", item.prompt)]
    return [
        # a call of a tool has no text of its own
        (clean(str(message.get("role", "")))[:40], to_text([message]) or json.dumps(message.get("tool_calls", "")))
        for message in to_messages(item.prompt)
    ]
