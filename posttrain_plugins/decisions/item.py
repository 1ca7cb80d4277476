"""What a person is asked, made of a data set's rows, and what they answer. No paper.

| mode            | rows                                        | a decision has                                       |
|-----------------|---------------------------------------------|------------------------------------------------------|
| `demonstration` | `prompt` (and a `completion` to go on from) | `text`, or `none_good`: nobody could write one       |
| `pick`          | `prompt`, `completions`                     | `choice`, or `none_good`                             |
| `rank`          | `prompt`, `completions`                     | `order`: groups of equals, the best first            |
| `accept`        | `prompt`, `completion`                      | `verdict`                                            |
| `first_wrong`   | `prompt`, `completion`                      | `first_wrong`: the number of right steps before it   |

1. An item is known by its content, so that the same texts are asked once, in whatever recipe and order they come.
2. Rows with one prompt are one item in `pick` and `rank`, and equal completions are shown once.
3. Indices of a decision are places in the item's own `completions`; `shown` is the order on the screen.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import is_conversational, to_text
from posttrain_plugins.text.steps import SEPARATOR, split_steps
from posttrain_plugins.types import Prompt

__all__ = [
    "MODES",
    "MOST_COMPLETIONS",
    "Decision",
    "Item",
    "Mode",
    "check_decision",
    "default_mode",
    "items_of",
    "read_items",
    "write_items",
]

Mode: TypeAlias = Literal["demonstration", "pick", "rank", "accept", "first_wrong"]
MODES: tuple[Mode, ...] = get_args(Mode)

MOST_COMPLETIONS = 9
"""Of one item: as many as there are digit keys, and more than a person compares with care."""

FORMAT = 1
"""Of a decision's line; counted up when an older reader would misread it."""

TEXTS = ("prompt", "completion", "completions", "chosen", "rejected", "messages")
VERDICTS = ("reward", "rewards", "scores", "label", "labels")


# --- Questions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One question to a person.

    Args:
        id: sha256, 64 hex digits, of mode, prompt, sorted completions and, where they are judged, steps.
        mode: what is asked.
        prompt: text or messages.
        completions: distinct texts or messages; of a demonstration, none or one to go on from.
        steps: of `first_wrong`, the completion in pieces.
        row: the other columns of the data set's row, which go into the training data; never shown.
        source: where it comes from, such as `RECIPE:STAGE`.
    """

    id: str
    mode: Mode
    prompt: Prompt
    completions: tuple[Any, ...] = ()
    steps: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


def items_of(
    rows: Iterable[Mapping[str, Any]], mode: Mode, source: str = "", separator: str = SEPARATOR
) -> tuple[list[Item], int]:
    """Make questions of a data set's rows.

    Args:
        rows: with `prompt`, and `completion` or `completions` where the mode judges some.
        mode: what is asked.
        source: where they come from.
        separator: ends a step (`posttrain_plugins.steps`).

    Returns:
        The items, each once, in the order of the rows; and how many prompts were left out, since they have fewer than
        two distinct completions to choose from, or an empty one whose steps are asked for.

    Raises:
        InputError: a row lacks a column, or an item has more than nine completions.
    """
    if mode not in MODES:
        raise InputError(f"unknown mode {mode!r}", hint=f"modes: {', '.join(MODES)}")
    found: dict[str, Item] = {}
    left_out = 0
    is_choice = mode in ("pick", "rank")
    for prompt, completions, row in _by_prompt(rows, mode) if is_choice else _one_by_one(rows, mode):
        steps = tuple(split_steps(to_text(completions[0]), separator)) if mode == "first_wrong" else ()
        if (is_choice and len(completions) < 2) or (mode == "first_wrong" and not steps):
            left_out += 1
            continue
        if len(completions) > MOST_COMPLETIONS:
            about = f"{to_text(prompt)[:60]!r} has {len(completions)} completions, expected at most {MOST_COMPLETIONS}"
            raise InputError(f"mode '{mode}': the prompt {about}", hint="sample with num_generations: 9 or fewer")
        id = _id_of(mode, prompt, completions, steps)
        found.setdefault(id, Item(id, mode, prompt, tuple(completions), steps, row, source))
    return list(found.values()), left_out


def default_mode(row: Mapping[str, Any]) -> Mode:
    """Return the mode that a row's columns suggest: several completions are picked from, one is accepted or not."""
    if row.get("completions") is not None:
        return "pick"
    return "accept" if row.get("completion") is not None else "demonstration"


def _one_by_one(rows: Iterable[Mapping[str, Any]], mode: Mode) -> Iterable[tuple[Prompt, list[Any], dict[str, Any]]]:
    """Read rows whose completions are judged apart, or, for a demonstration, gone on from."""
    for number, row in enumerate(rows, start=1):
        prompt, completions, others = _read(row, number)
        if mode == "demonstration":
            yield prompt, completions[:1], others
            continue
        _require(completions, number, row, mode)
        yield from ((prompt, [completion], others) for completion in completions)


def _by_prompt(rows: Iterable[Mapping[str, Any]], mode: Mode) -> Iterable[tuple[Prompt, list[Any], dict[str, Any]]]:
    """Gather the distinct completions of each prompt, as if they had been drawn together."""
    found: dict[str, tuple[Prompt, dict[str, Any], dict[str, Any]]] = {}
    for number, row in enumerate(rows, start=1):
        prompt, completions, others = _read(row, number)
        _require(completions, number, row, mode)
        _, texts, _ = found.setdefault(_canonical(prompt), (prompt, {}, others))
        for completion in completions:
            texts.setdefault(to_text(completion), completion)
    return [(prompt, list(texts.values()), others) for prompt, texts, others in found.values()]


def _read(row: Mapping[str, Any], number: int) -> tuple[Prompt, list[Any], dict[str, Any]]:
    prompt = row.get("prompt")
    if not isinstance(prompt, str) and not (is_conversational(prompt) and prompt):
        found = f"row {number} has the prompt {prompt!r}" if "prompt" in row else f"row {number} has {', '.join(row)}"
        raise InputError(f"{found}, expected text or messages in 'prompt'", hint="rename: {old: prompt}")
    several, one = row.get("completions"), row.get("completion")
    completions = list(several) if several is not None else [one] if one is not None else []
    return prompt, completions, {k: v for k, v in row.items() if k not in (*TEXTS, *VERDICTS)}


def _require(completions: Sequence[Any], number: int, row: Mapping[str, Any], mode: Mode) -> None:
    if not completions:
        found = f"mode '{mode}' judges completions: row {number} has {', '.join(row)}"
        raise InputError(found, hint="a column completion or completions, such as a stage `sample` makes")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)


def _id_of(mode: Mode, prompt: Prompt, completions: Sequence[Any], steps: Sequence[str]) -> str:
    # steps too: with another separator the same number names another step, so the answer is another question's
    content = [mode, prompt, sorted(map(_canonical, completions)), *([list(steps)] if steps else [])]
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write items as JSON lines, by one rename: a page may be reading the file."""
    scratch = path.with_name(f".{path.name}.new")
    with scratch.open("w", encoding="utf-8", errors="surrogatepass") as file:
        file.writelines(json.dumps(asdict(item), ensure_ascii=False, default=str) + "\n" for item in items)
    scratch.replace(path)


def read_items(path: Path) -> list[Item]:
    """Read what `write_items` wrote."""
    with path.open(encoding="utf-8", errors="surrogatepass") as file:
        made = [json.loads(line) for line in file]
    return [Item(**{**one, "completions": tuple(one["completions"]), "steps": tuple(one["steps"])}) for one in made]


# --- Answers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What a person answered, one line of a ledger. Indices are places in the item's own `completions`.

    Args:
        id: made by who asks, once for an answer, however often it is sent.
        item: the item's id.
        mode: the item's.
        annotator: a name, or a pseudonym.
        session: tells the page's tabs apart.
        shown: the order on the screen; `shown[0]` stood first.
        choice: of `pick`.
        order: of `rank`, groups of equals, the best first; every completion once.
        text: of a demonstration.
        verdict: of `accept`.
        first_wrong: of `first_wrong`, the number of right steps before the first wrong one.
        none_good: no completion is good; in `pick` it stands in place of a choice.
        flag: the item is unfit (unclear, offensive, broken) and is to be left out.
        note: what the person wrote about it.
        seconds: spent looking at it, without those in which the page was hidden.
        at: when it was made, seconds since the epoch.
        guideline_sha: of the text that told how to decide.
        source: where the item came from.
        version: of this format.
        voids: the id of a decision that this one takes back; with an answer, it corrects it.
    """

    id: str
    item: str = ""
    mode: str = ""
    annotator: str = ""
    session: str = ""
    shown: tuple[int, ...] = ()
    choice: int | None = None
    order: tuple[tuple[int, ...], ...] | None = None
    text: str | None = None
    verdict: bool | None = None
    first_wrong: int | None = None
    none_good: bool = False
    flag: bool = False
    note: str = ""
    seconds: float | None = None
    at: float = 0.0
    guideline_sha: str = ""
    source: str = ""
    version: int = FORMAT
    voids: str | None = None

    @property
    def is_answer(self) -> bool:
        """Does it decide something, beside taking back another one?"""
        given = (self.choice, self.order, self.text, self.verdict, self.first_wrong)
        return self.flag or self.none_good or any(value is not None for value in given)

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are not as by default, and the format."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {**kept, "version": self.version}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Decision:
        """Read what `to_json` returned; fields that this version does not know are left out.

        Raises:
            InputError: it is no decision, or a newer version wrote it.
        """
        if not isinstance(value, Mapping) or not isinstance(value.get("id"), str) or not value["id"]:
            raise InputError(f"not a decision: {str(value)[:80]}, expected an object with an id")
        if value.get("version", FORMAT) not in range(1, FORMAT + 1):
            found = f"decision {value['id']} has format {value['version']!r}, expected at most {FORMAT}"
            raise InputError(found, hint="pip install --upgrade posttrain-plugins")
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        wrong = next((name for name, found in known.items() if not _FITS[_kind(name)](found)), None)
        if wrong:
            raise InputError(f"decision {value['id']}: {wrong} is {str(known[wrong])[:80]}, expected {_kind(wrong)}")
        known |= {name: tuple(known[name]) for name in ("shown",) if name in known}
        if known.get("order") is not None:
            known["order"] = tuple(map(tuple, known["order"]))
        return cls(**known)


def _is_place(value: object) -> bool:
    return type(value) is int and value >= 0  # not `isinstance`: true and false are integers too


_FITS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "text or null": lambda value: value is None or isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "true, false or null": lambda value: value is None or isinstance(value, bool),
    "a place or null": lambda value: value is None or _is_place(value),
    "a list of places": lambda value: isinstance(value, list | tuple) and all(map(_is_place, value)),
    "a list of groups of places": lambda value: (
        value is None or (isinstance(value, list | tuple) and all(_FITS["a list of places"](group) for group in value))
    ),
    "a number of at least 0": lambda value: (
        value is None or (type(value) in (int, float) and math.isfinite(value) and value >= 0)
    ),
}
"""What a field may hold, in words -> whether a JSON value is that: a page's or a script's line is not trusted."""

_KINDS = {
    "text": "text or null", "voids": "text or null", "verdict": "true, false or null", "none_good": "true or false",
    "flag": "true or false", "choice": "a place or null", "first_wrong": "a place or null", "shown": "a list of places",
    "order": "a list of groups of places", "seconds": "a number of at least 0", "at": "a number of at least 0",
    "version": "a number of at least 0",
}  # fmt: skip


def _kind(name: str) -> str:
    return _KINDS.get(name, "text")


def check_decision(decision: Decision, item: Item) -> None:
    """Check that a decision answers its item, so that nothing which means nothing gets into a ledger.

    Raises:
        InputError: it answers another question, lacks an answer, or names a place that the item has not.
    """
    if decision.item != item.id or decision.mode != item.mode:
        raise InputError(f"decision {decision.id} answers another item than {item.id[:12]}, mode '{item.mode}'")
    places = list(range(len(item.completions)))
    if decision.shown and sorted(decision.shown) != places:
        raise InputError(f"decision {decision.id}: shown is {list(decision.shown)}, expected an order of {places}")
    is_answered, expected = _ANSWERS[item.mode]
    if not decision.flag and not is_answered(decision, item):
        raise InputError(f"decision {decision.id} on an item of mode '{item.mode}': expected {expected}")


def _is_choice(decision: Decision, item: Item) -> bool:
    if decision.none_good:
        return decision.choice is None
    return decision.choice is not None and decision.choice < len(item.completions)


def _is_order(decision: Decision, item: Item) -> bool:
    if decision.order is None:
        return decision.none_good
    found = sorted(place for group in decision.order for place in group)
    return all(decision.order) and found == list(range(len(item.completions)))


_ANSWERS: dict[Mode, tuple[Callable[[Decision, Item], bool], str]] = {
    "demonstration": (
        lambda decision, _: bool((decision.text or "").strip()) or decision.none_good,
        "a text that is not empty, or none_good",
    ),
    "pick": (_is_choice, "a choice among the completions, or none_good"),
    "rank": (_is_order, "an order in which every completion stands once, or none_good"),
    "accept": (lambda decision, _: decision.verdict is not None, "a verdict, true or false"),
    "first_wrong": (
        lambda decision, item: decision.first_wrong is not None and decision.first_wrong <= len(item.steps),
        "first_wrong, from 0 to the number of steps",
    ),
}
"""Mode -> whether a decision holds an answer to an item of it, and what is expected."""
