"""What a SOURCE of the command line means. No paper.

| SOURCE                       | questions                                                                       |
|------------------------------|---------------------------------------------------------------------------------|
| `pairs.jsonl`                | made of its rows                                                                |
| `RUN:STAGE` that waits       | those that the stage `annotate` has written, and its ledger                     |
| `RUN:STAGE` of another kind  | made of its data, its `rollouts.jsonl` or its `samples.jsonl`                   |
| `digit_chain(size=50)`       | made of a data set plugin's or a Hub data set's rows                            |
| `pairs.decisions.jsonl`      | those that were asked before into this ledger                                   |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain_plugins import api
from posttrain_plugins.decisions.item import Item, Mode, default_mode, items_of
from posttrain_plugins.decisions.questions import (
    Questions,
    latest_questions,
    read_questions,
    write_questions,
)
from posttrain_plugins.errors import InputError
from posttrain_plugins.evaluation.truths import truths_of
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.rows.read import TEXT_SUFFIXES, read_rows
from posttrain_plugins.text import is_conversational
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import ResolvedReward

__all__ = ["Found", "keep_questions", "ledger_folder", "look_up", "made_of"]

SAVED = ("rollouts.jsonl", "samples.jsonl")


@dataclass(frozen=True)
class Found:
    """What a SOURCE is.

    Args:
        name: for the default ledger and the title.
        rows: of a data set; empty where there are questions already.
        questions: those of a stage that waits, or of a ledger.
        folder: where the questions stand.
        next_command: what goes on when all is decided.
    """

    name: str
    rows: Sequence[Mapping[str, Any]] = ()
    questions: Questions | None = None
    folder: Path | None = None
    next_command: str = ""


def ledger_folder(ledger: Path) -> Path:
    """Return the folder beside a ledger that holds the questions which are asked into it."""
    return ledger.with_name(f"{ledger.stem}.questions")


def look_up(source: str, runs_dir: Path) -> Found:
    """Find what a SOURCE is.

    Args:
        source: as the user wrote it.
        runs_dir: where `RUN:STAGE` is.

    Raises:
        InputError: there is none of that name, or it has no rows.
    """
    path = Path(source)
    if path.is_file():
        folder = ledger_folder(path)
        if (folder / "about.json").is_file():
            return Found(path.stem, questions=read_questions(folder), folder=folder)
        rows: Sequence[Mapping[str, Any]] = (
            read_rows(path) if path.suffix in TEXT_SUFFIXES else api.rows(source)  # `datasets` takes seconds
        )
        return Found(path.stem, _checked(rows, source))
    run, _, stage = source.partition(":")
    if stage and re.fullmatch(r"[\w.-]+", run) and not Path(run).suffix:
        return _of_stage(runs_dir, run, stage)
    return Found(re.split(r"\W", source)[0] or "data", _checked(api.rows(source), source))


def made_of(
    found: Found,
    mode: Mode | None,
    ledger: Path | None,
    *,
    guideline: str = "",
    annotators_per_item: int = 1,
    needed: int | None = None,
    num_generations: int = 9,
    separator: str = SEPARATOR,
    has_model: bool = False,
    gold: ResolvedReward | None = None,
    gold_share: float = 0.1,
) -> tuple[Questions, int]:
    """Make the questions of a data set's rows, and write them beside the ledger.

    Args:
        found: with rows.
        mode: None takes what the first row suggests.
        ledger: None takes `NAME.decisions.jsonl` in the working directory.
        guideline: tells how to decide.
        annotators_per_item: annotators that each item is asked of.
        needed: items that have to be decided; None for all.
        num_generations: of saved completions of one prompt, the newest so many are asked about.
        separator: ends a step.
        has_model: the completions are still to be made; then there are no items yet.
        gold: a reward that knows what is right.
        gold_share: share of the items by which it measures annotators.

    Returns:
        The questions, and how many prompts leave nothing to ask.

    Raises:
        InputError: the rows lack what the mode judges.
    """
    chosen = mode or ("pick" if has_model else default_mode(found.rows[0]))
    path = (ledger or Path(f"{found.name}.decisions.jsonl")).absolute()
    rows = [] if has_model else _newest(found.rows, chosen, num_generations)
    items, left_out = items_of(rows, chosen, found.name, separator)
    if not items and not has_model:
        raise InputError(f"{found.name} leaves nothing to ask in mode '{chosen}'", hint="--mode accept, or other rows")
    count = len(items) if not has_model else len(found.rows)
    truths = {} if gold is None else truths_of(items, gold, gold_share)
    return Questions(items, chosen, path, annotators_per_item, needed or count, guideline, found.name, truths), left_out


def keep_questions(questions: Questions, folder: Path) -> None:
    """Write the questions beside the ledger, and with them those that were asked into it before."""
    known: dict[str, Item] = {}
    if (folder / "about.json").is_file():
        known = {item.id: item for item in read_questions(folder).items}
    ours = {item.id: item for item in questions.items}
    write_questions(folder, replace(questions, items=list((ours | known).values())))


def _of_stage(runs_dir: Path, run: str, stage: str) -> Found:
    store = Store(runs_dir, run)
    folder = latest_questions(store.folder, stage)
    if folder is not None:
        command = f"posttrain run {run}"
        return Found(f"{run}.{stage}", questions=read_questions(folder), folder=folder, next_command=command)
    artifact = store.latest(stage)
    working = [path for path in store.folder.glob(f".{stage}-*.partial") if path.is_dir()]
    folders = [artifact.folder] if artifact is not None else working
    files = [artifact.data_path] if artifact is not None and artifact.data_path else []
    files += [folder / name for folder in folders for name in SAVED]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        done = ", ".join(sorted(path.name for path in (store.folder / "latest").glob("*")))
        what = "has saved no completions" if folders else f"is not among the stages of run '{run}'"
        hint = f"stages with results: {done}" if done else f"posttrain run {run}"
        raise InputError(f"'{stage}' {what} below {runs_dir}", hint=hint)
    return Found(f"{run}.{stage}", _checked(read_rows(file), str(file)))


def _checked(rows: Sequence[Mapping[str, Any]], where: str) -> Sequence[Mapping[str, Any]]:
    """Turn away what has no prompts, before a model is loaded for them."""
    if not rows:
        raise InputError(f"{where} has no rows")
    for number, row in enumerate(rows, start=1):
        prompt = row.get("prompt")
        if not isinstance(prompt, str) and not (is_conversational(prompt) and prompt):
            names = ", ".join(map(str, row))
            hint = "each row has `prompt`, and `completion` or `completions` where there are some"
            raise InputError(f"{where}: row {number} has {names}, expected a prompt: text or messages", hint=hint)
    return rows


def _newest(rows: Sequence[Mapping[str, Any]], mode: Mode, count: int) -> Sequence[Mapping[str, Any]]:
    """Leave out all but the newest completions of each prompt, where rows hold one each and several are compared."""
    if mode not in ("pick", "rank") or any(row.get("completions") is not None for row in rows):
        return rows
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        texts = found.setdefault(repr(row["prompt"]), {})
        texts.pop(repr(row.get("completion")), None)  # written again it is new
        texts[repr(row.get("completion"))] = row
    return [row for texts in found.values() for row in list(texts.values())[-count:]]
