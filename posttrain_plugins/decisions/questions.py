"""The questions that a stage asks, in a folder beside its results, for a page to read while the recipe waits. No paper.

`items.jsonl` holds the items, `about.json` what the page and the plan need besides. The folder's name has the key of
the stage without its decisions, so that the questions of another recipe, or of other options, lie elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posttrain_plugins.decisions.item import Item, Mode, read_items, write_items

__all__ = ["Questions", "latest_questions", "question_ids", "read_questions", "write_questions"]

FOLDER = "questions"
"""Below `runs/<recipe>/`."""


@dataclass(frozen=True)
class Questions:
    """What is asked, and how.

    Args:
        items: in the order in which they should be asked.
        mode: of them all.
        ledger: the file of decisions, absolute.
        annotators_per_item: how many annotators decide each item.
        needed: how many items must be decided.
        guideline: the text that tells how to decide.
        source: `RECIPE:STAGE`.
        gold: item -> whether each completion, or step, is right. Never shown.
    """

    items: Sequence[Item]
    mode: Mode
    ledger: Path
    annotators_per_item: int = 1
    needed: int = 0
    guideline: str = ""
    source: str = ""
    gold: Mapping[str, Sequence[bool]] = field(default_factory=dict)


def write_questions(folder: Path, questions: Questions) -> None:
    """Write the questions into a folder, made where it is not there; `about.json` last, by one rename."""
    folder.mkdir(parents=True, exist_ok=True)
    write_items(folder / "items.jsonl", questions.items)
    about = {
        "mode": questions.mode,
        "ledger": str(questions.ledger),
        "annotators_per_item": questions.annotators_per_item,
        "needed": questions.needed,
        "guideline": questions.guideline,
        "source": questions.source,
        "gold": {id: list(truths) for id, truths in questions.gold.items()},
        "ids": [item.id for item in questions.items],
    }
    scratch = folder / ".about.new"
    scratch.write_text(json.dumps(about), encoding="utf-8")
    scratch.replace(folder / "about.json")


def question_ids(folder: Path) -> list[str] | None:
    """Return the ids of the items in a folder; None where no questions stand in it. The items are not read."""
    try:
        return list(map(str, json.loads((folder / "about.json").read_text(encoding="utf-8"))["ids"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_questions(folder: Path) -> Questions:
    """Read what `write_questions` wrote.

    Raises:
        OSError: there is nothing.
    """
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    del about["ids"]
    return Questions(read_items(folder / "items.jsonl"), **{**about, "ledger": Path(about["ledger"])})


def latest_questions(run: Path, stage: str) -> Path | None:
    """Return the folder of the questions that a stage asked last; None where it has asked none.

    Args:
        run: the recipe's folder, `RUNS_DIR/<recipe>`.
        stage: its id, such as `picks` or `loop.2.picks`.
    """
    # twelve digits of the key stand behind the last dash, and no other stage's id can end so
    found = [path for path in (run / FOLDER).glob("*-*/about.json") if path.parent.name.rpartition("-")[0] == stage]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    return newest.parent if newest else None
