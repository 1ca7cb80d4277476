r"""Read the answer of a completion: one reader, with a name, for rewards, votes, `evaluate` and `serve`.

What a model thinks before it answers is no answer: a closed thought is passed over, and a completion whose thought
never ended has none. Behind the thought, the reader `auto` takes the first of these that is there: `<answer>`, a box or
a labelled answer (whichever stands last), and what the text shows without a label (`text/prose.py`). No paper; the
styles that it is measured on are in `tests/corpus`.

Example:
    >>> read("12 + 7 = 19. **Final Answer:** 19"), read("<think>the answer is 3</think>4"), read("Let me see")
    ('19', '4', None)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

from posttrain_plugins.errors import InputError

__all__ = [
    "READERS",
    "THOUGHT_MARKS",
    "Reading",
    "check_reader",
    "current_reading",
    "opens_thought",
    "read",
    "read_behind",
    "read_reference",
    "reading",
    "template_opens_thought",
    "without_thought",
]

THOUGHT_MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
"""How thoughts of chat models begin and end; a text that a server split into thought and answer has none."""


class Reading(NamedTuple):
    """How the completions at hand are read, where a caller does not say it.

    Args:
        reader: the name of a reader.
        is_thinking: whether the chat template opens a thought behind each conversational prompt.
    """

    reader: str = "auto"
    is_thinking: bool = False


# Strategies and rewards read completions without knowing which stage asks: what it says is laid around their calls.
_USUAL = Reading()
_READING: ContextVar[Reading] = ContextVar("reading", default=_USUAL)
_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
MAX_SPACE = 16  # of a run of white space: patterns that look for it twice take the square of its length
_LONG_SPACE = re.compile(rf"\s{{{MAX_SPACE},}}")
_PARTS_OF_MARKS = ("hink", "HINK", "easoning>", "_thought")  # what a text without a mark does not have
_BRACE = re.compile(r"[{}]")
_NUMBER_ALONE = re.compile(r"\s*-?\d+\s*")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s{$\\]))")


@contextmanager
def reading(reader: str | None = None, is_thinking: bool = False) -> Iterator[None]:
    """Read completions in this way within the block, whoever reads them; threads begun in it by asyncio follow.

    Raises:
        InputError: no such reader.

    Example:
        >>> with reading("boxed"):
        ...     print(read("\\\\boxed{4}"), read("4"))
        4 None
    """
    token = _READING.set(Reading(check_reader(_READING.get().reader if reader is None else reader), is_thinking))
    try:
        yield
    finally:
        _READING.reset(token)


def read_behind(is_thinking: bool) -> Token[Reading]:
    """Do as `reading(is_thinking=...)`, at a lower price; `token.var.reset(token)` ends it."""
    return _READING.set(Reading(_READING.get().reader, is_thinking))


def current_reading() -> Reading:
    """Return what `reading` has set, for a process that goes on with it."""
    return _READING.get()


def read(text: str, reader: str | None = None, prompt: object = None) -> str | None:
    r"""Read the answer of a completion.

    Args:
        text: the completion; nothing makes it raise.
        reader: by default that of `reading`; `auto`; `marked`, the same without what no tag, box or label names;
            `tag`, the last `<answer>...</answer>`; `boxed`, the last `\boxed{...}`; `last_number`; `whole`, the text
            behind the thought; or `regex:PATTERN`, the first group of the pattern's last match, else the match.
        prompt: what the completion follows, as text or messages; a thought that it opens goes on in the completion.

    Returns:
        The answer as it is written; None where none can be read.

    Raises:
        InputError: no such reader.

    Example:
        >>> read(r"so \boxed{\frac{1}{2}}, not 3"), read("13*5 = 65", prompt="<user>13*5?<assistant><think>\n")
        ('\\frac{1}{2}', None)
        >>> read("a: 3 b: 4", reader=r"regex:a: (\d+)")
        '3'
    """
    visible = without_thought(text, prompt)
    if visible is None:
        return None
    visible = _LONG_SPACE.sub(lambda space: space[0][:MAX_SPACE], visible)
    reader = _READING.get().reader if reader is None else reader
    if reader == "auto":
        return _auto(visible)
    return (_reader(reader)(visible) or "").strip() or None


def check_reader(reader: str) -> str:
    """Return a reader's name if it is one.

    Raises:
        InputError: it is none, or its pattern is no regular expression.
    """
    _reader(reader)
    return reader


def read_reference(solution: object) -> str:
    r"""Return the answer of a reference: where it is a worked solution with an answer marked, this; else all of it.

    Example:
        >>> read_reference(r"so $x=18$, thus \boxed{18}"), read_reference("17*4 = 68\n#### 68"), read_reference(7)
        ('18', '68', '7')
    """
    text = str(solution)
    if "\\" not in text and "<" not in text and "####" not in text:
        return text
    if (tagged := _tagged(text)) is not None:
        return tagged
    boxed = _boxed(text)
    if boxed is not None:
        return boxed[1]
    return text.rpartition("####")[2].strip() if "####" in text else text


def without_thought(text: str, prompt: object = None) -> str | None:
    """Return what stands behind the thought of a completion: all of it without one, None where the thought never ended.

    Example:
        >>> without_thought("<think>3</think> 4"), without_thought("<think>3"), without_thought("4")
        (' 4', None, '4')
    """
    is_opened = opens_thought(prompt)
    if not any(part in text for part in _PARTS_OF_MARKS):
        return None if is_opened else text
    for opening, closing in THOUGHT_MARKS:
        end = text.rfind(closing)
        if end >= 0:
            text = text[end + len(closing) :]
            is_opened = False
        if opening in text:
            return None
    return None if is_opened else text


def opens_thought(prompt: object) -> bool:
    """Return whether a prompt ends inside a thought.

    Args:
        prompt: text; messages, whose last may be the assistant's, and behind which the chat template may open one; None
            where it is not known.
    """
    if not isinstance(prompt, str):
        last = prompt[-1] if isinstance(prompt, Sequence) and prompt else None
        begun = last.get("content") if isinstance(last, dict) and last.get("role") == "assistant" else None
        if not isinstance(begun, str):
            return _READING.get().is_thinking
        prompt = begun
    tail = prompt[-2000:]
    return any(tail.rfind(opening) > tail.rfind(closing) for opening, closing in THOUGHT_MARKS)


def template_opens_thought(tokenizer: Any, **options: Any) -> bool:
    """Return whether a chat template opens a thought behind a question, which the model goes on with.

    Args:
        tokenizer: with a `chat_template`, or without.
        options: for the template, such as `enable_thinking`.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        return False
    question = [{"role": "user", "content": "?"}]
    try:
        rendered = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True, **options)
    except Exception:  # a template that wants more than a question, such as documents
        return False
    return opens_thought(str(rendered))


# --- Readers of what is behind the thought ---------------------------------------------------------------------------


def _tagged(text: str) -> str | None:
    found = _TAG.findall(text)
    return found[-1].strip() if found else None


def _boxed(text: str) -> tuple[int, str] | None:
    """Find the last box that closes: where it begins, and what is in it."""
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    # All braces in one pass: a model that babbles opens thousands of boxes, and closes none.
    closing: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text, boxes[0].start()):
        if brace[0] == "{":
            opened.append(brace.end())
        elif opened:
            closing[opened.pop()] = brace.start()
    for match in reversed(boxes):
        if match[1]:  # `\\boxed 5`: TeX takes one token
            return match.start(), match[1]
        if match.end() in closing:
            return match.start(), text[match.end() : closing[match.end()]].strip()
    return None


READERS: dict[str, Callable[[str], str | None]] = {
    "auto": lambda text: _auto(text),
    "marked": lambda text: _named(text)[1],
    "tag": _tagged,
    "boxed": lambda text: (_boxed(text) or (0, None))[1],
    "last_number": lambda text: _prose().last_number(text),
    "whole": lambda text: text,
}


@lru_cache(maxsize=64)
def _reader(name: str) -> Callable[[str], str | None]:
    if name in READERS:
        return READERS[name]
    hint = f"reader: one of {', '.join(READERS)}, regex:PATTERN"
    if not isinstance(name, str) or not name.startswith("regex:"):
        raise InputError(f"there is no reader {name!r}", hint=hint)
    try:
        pattern = re.compile(name.removeprefix("regex:"), re.MULTILINE)
    except re.error as error:
        raise InputError(f"the pattern of the reader {name!r} cannot be used: {error}", hint=hint) from None

    def by_pattern(text: str) -> str | None:
        found = list(pattern.finditer(text))
        return found[-1][1 if pattern.groups else 0] if found else None

    return by_pattern


def _prose() -> ModuleType:
    # with the first completion: its patterns take long to compile, and a check of a reader's name reads nothing
    from posttrain_plugins.text import prose

    return prose


def _auto(text: str) -> str | None:
    if _NUMBER_ALONE.fullmatch(text):  # most often
        return text.strip()
    is_named, answer = _named(text)
    return answer if is_named else _prose().read_unlabelled(text)


def _named(text: str) -> tuple[bool, str | None]:
    """Return whether a tag, a label or a box names an answer, and the answer, None for an empty one."""
    if "</" in text and (tagged := _tagged(text)) is not None:
        return True, (_prose().read_labelled(tagged) if " is " in tagged else None) or tagged or None
    box = _boxed(text) if "boxed" in text or "fbox" in text else None
    label = _prose().read_labelled(text, box[0] if box else 0)
    if label is not None:
        return True, label
    is_cut = box is None and r"\boxed" in text
    return (True, box[1] or None) if box is not None else (is_cut, None)
