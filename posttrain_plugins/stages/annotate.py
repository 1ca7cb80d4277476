"""`annotate`: training data out of decisions that people make, in every format of TRL. No paper.

The stage writes its questions beside the results and waits: the run ends with exit code 4, `posttrain annotate` asks
them, and the same command goes on. `decisions/item.py` tells what is asked and answered, `decisions/formats.py` how
rows are made of it, `decisions/agreement.py` how far annotators agree.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

from posttrain_plugins.decisions.agreement import agreement
from posttrain_plugins.decisions.bias import position_preference, preferences
from posttrain_plugins.decisions.counted import Counted, counted
from posttrain_plugins.decisions.formats import COLUMNS, FORMS, Form, Resolve, Rows, rows_of
from posttrain_plugins.decisions.gold import gold_accuracy
from posttrain_plugins.decisions.item import Decision, Item, Mode, check_decision, items_of
from posttrain_plugins.decisions.ledger import read_ledger
from posttrain_plugins.decisions.questions import Questions, question_ids, write_questions
from posttrain_plugins.errors import InputError, StageFailed, WaitsForPerson
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import (
    DataRef,
    Decisions,
    ResolvedReward,
    RewardRef,
    StageContext,
    StageResult,
)

__all__ = ["Annotate"]

WAITING = "some are missing"
"""The part of the key while people are waited for: it is none of a result, and the same at every click."""


@dataclass
class Annotate:
    """Make a data set out of what people decide on prompts and completions, and wait until they have.

    Each annotator decides on an item once, and an item is known by its texts: nobody is asked the same question twice,
    in whatever run or recipe it comes. The decisions stand in a ledger, a file of JSON lines that is only appended to.

    Args:
        dataset: with `prompt`; `completion` or `completions` where the mode judges some, as `sample` with
            `keep: unjudged` makes them.
        mode: `demonstration` (write an answer), `pick` (the best of several), `rank` (ties allowed), `accept` (or
            not), `first_wrong` (the first wrong step).
        keep: what is made of it: `demonstrations` (SFT), `pairs` (DPO, reward models), `ranked`, `labelled` (KTO),
            `steps` (process reward models). By default the mode's own: `demonstrations`, `pairs`, `ranked`,
            `labelled` and `steps`, in the order above.
        file: the ledger; a relative one starts where the command is run.
        min_decisions: how many items must be decided; all by default. Those that were decided first are used, so
            that further decisions change nothing that was made.
        annotators_per_item: how many people decide each item.
        resolve: of several people, what more than half of them say (`majority`), what all say (`unanimous`), or each
            one's decision by itself (`all`).
        gold: a reward that knows the answers of some items, such as a checker. It measures the annotators.
        gold_share: the share of the items that measure annotators, in place of being trained on.
        train_on_gold: train on these too.
        gold_threshold: a completion, or a step, is right with this reward or more.
        separator: what ends a step; the rule of `posttrain_plugins.text.steps`.
        guideline: what the page says of how to decide, as text or as a file `./guideline.md`.

    Raises:
        InputError: for fields that do not go together, and data that makes fewer questions than are needed.
        WaitsForPerson: decisions are missing.
        StageFailed: nothing of what was decided can be trained on.
    """

    produces: ClassVar[str] = "dataset"
    not_in_key: ClassVar[tuple[str, ...]] = ("file", "guideline")
    example_params: ClassVar[dict[str, Any]] = {"mode": "demonstration", "file": "no-decisions.jsonl"}
    expected_failures: ClassVar[dict[str, str]] = {"check_runs_one_step": "it waits for a person, who is not there"}

    dataset: DataRef
    mode: Mode
    keep: Form | None = None
    file: str = "decisions.jsonl"
    min_decisions: int | None = None
    annotators_per_item: int = 1
    resolve: Resolve = "majority"
    gold: RewardRef | None = None
    gold_share: float = 0.1
    train_on_gold: bool = False
    gold_threshold: float = 0.5
    separator: str = SEPARATOR
    guideline: str = ""

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep not in FORMS[self.mode]:
            hint = f"keep: one of {', '.join(FORMS[self.mode])}"
            raise InputError(f"annotate in mode '{self.mode}' makes no {self.keep}", hint=hint)
        for name in ("min_decisions", "annotators_per_item"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"annotate cannot use {name}: {value}, expected 1 or more")
        if not 0 < self.gold_share <= 1:
            raise InputError(f"annotate cannot use gold_share: {self.gold_share}, expected more than 0 and at most 1")
        if self.gold is not None and self.mode == "demonstration":
            hint = "a stage `sample` without a model scores what was written"
            raise InputError("annotate has gold, but of a demonstration no answer is known before", hint=hint)
        if self.gold is not None and self.gold_share == 1 and not self.train_on_gold:
            raise InputError("annotate measures by all items and trains on none", hint="lower gold_share")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data set that it makes, before those that it hands through."""
        return COLUMNS[self._form()]

    @property
    def requires_columns(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Of the data set: prompts, and where the mode judges completions, some."""
        if self.mode == "demonstration":
            return {"dataset": (("prompt",),)}
        return {"dataset": (("prompt", "completions"), ("prompt", "completion"))}

    def decisions(self, folder: Path, inputs: Mapping[str, Any] | None = None) -> Decisions | None:
        """Return which decisions are used; with the inputs, write the questions first.

        Args:
            folder: where the questions stand.
            inputs: resolved, by field.
        """
        if inputs is not None:
            source = f"{folder.parent.parent.name}:{folder.name.rpartition('-')[0]}"
            write_questions(folder, self._questions(inputs, source)[0])
        ids = question_ids(folder)
        if ids is None:
            return None
        found = self._counted(ids, read_ledger(self._ledger()))
        return Decisions(found.sha256()) if found.is_enough else Decisions(WAITING, str(found))

    def __call__(self, context: StageContext) -> StageResult:
        asked, left_out = self._questions(context.inputs, context.stage)
        items = {item.id: item for item in asked.items}
        ledger = [decision for decision in read_ledger(asked.ledger) if decision.item in items]
        for decision in ledger:
            check_decision(decision, items[decision.item])  # a ledger is a file, and anybody may have written into it
        used = self._counted(list(items), ledger)
        if not used.is_enough:
            raise WaitsForPerson(context.stage, str(used))
        to_train = [item for item in asked.items if self.train_on_gold or item.id not in asked.gold]
        made = rows_of(to_train, used.answers, self._form(), self.resolve)
        if not made.rows:
            why = f"{made.flagged} flagged, {made.none_good} with nothing good, {made.undecided} undecided"
            raise StageFailed(
                f"stage {context.stage!r} kept nothing of {used.done} decided items: {why}",
                hint="look at the ledger, let more items be decided, or take another `keep` or `resolve`",
            )
        path = context.folder / "data.jsonl"
        # a lone surrogate, which a page may send, is no UTF-8; escaped it is JSON
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in made.rows)
        metrics = {"prompts_without_choice": float(left_out)} if left_out else {}
        metrics |= _count_figures(len(items), used, made)
        people, told = _people(items, asked, ledger)
        for line in (*told, *self._leftovers(used, ledger)):
            context.reporter.note(line)
        details = {"decisions": {**people, "mode": self.mode, "resolve": self.resolve, "sha256": used.sha256()}}
        figures = {name: value for name, value in people.items() if isinstance(value, float)}
        return StageResult(metrics={**metrics, **figures}, data_path=path, details=details)

    def _form(self) -> Form:
        return self.keep or FORMS[self.mode][0]

    def _ledger(self) -> Path:
        return Path(self.file).expanduser().absolute()

    def _counted(self, ids: Sequence[str], decisions: Sequence[Decision]) -> Counted:
        return counted(ids, decisions, self.annotators_per_item, self.min_decisions)

    def _questions(self, inputs: Mapping[str, Any], source: str) -> tuple[Questions, int]:
        """Return what is asked, and how many prompts leave nothing to ask."""
        items, left_out = items_of((dict(row) for row in inputs["dataset"]), self.mode, source, self.separator)
        needed = len(items) if self.min_decisions is None else self.min_decisions
        if not items or needed > len(items):
            without = f", {left_out} prompts leave nothing to choose from" if left_out else ""
            hint = f"lower min_decisions to {len(items)}, or let more be sampled"
            raise InputError(
                f"annotate needs {max(needed, 1)} decided items, but the data makes {len(items)}{without}", hint=hint
            )
        text = self.guideline
        if Path(text).is_absolute() and Path(text).is_file():
            text = Path(text).read_text(encoding="utf-8")
        gold = {} if inputs.get("gold") is None else self._truths(items, inputs["gold"])
        questions = Questions(items, self.mode, self._ledger(), self.annotators_per_item, needed, text, source, gold)
        return questions, left_out

    def _truths(self, items: Sequence[Item], reward: ResolvedReward) -> dict[str, list[bool]]:
        """Return the items that measure annotators, with what is right of each."""
        from posttrain_plugins.evaluation.truths import truths_of

        if self.mode == "first_wrong" and not hasattr(reward.func, "step_scores"):
            hint = "name a reward that has step_scores, such as digit_chain_steps"
            raise InputError(f"gold reward '{reward.name}' cannot judge steps", hint=hint)
        return truths_of(items, reward, self.gold_share, self.gold_threshold)

    def _leftovers(self, used: Counted, ledger: Sequence[Decision]) -> list[str]:
        """Say what of the ledger was not used, and whether people had another guideline."""
        told = []
        if used.unused:
            more = used.done + used.unused
            told.append(f"{used.unused} further decided items are not used; min_decisions: {more} takes them too")
        guidelines = {decision.guideline_sha for decision in ledger}
        if len(guidelines) > 1:
            told.append(f"the decisions were made under {len(guidelines)} different guidelines")
        return told


def _count_figures(items: int, used: Counted, made: Rows) -> dict[str, float]:
    figures = {
        "items": items,
        "decided": used.done,
        "decisions": sum(map(len, used.answers.values())),
        "rows": len(made.rows),
        "flagged": made.flagged,
        "none_good": made.none_good,
        "undecided": made.undecided,
        "unused": used.unused,
    }
    return {name: float(value) for name, value in figures.items()}


def _people(
    items: Mapping[str, Item], asked: Questions, ledger: Sequence[Decision]
) -> tuple[dict[str, Any], list[str]]:
    """Measure who decided: figures by name, tables without names of people, and lines that a user should read."""
    # who they are stays in the ledger: manifests and cards go to others
    alias = {name: f"a{i}" for i, name in enumerate(dict.fromkeys(one.annotator for one in ledger), start=1)}
    found: dict[str, Any] = {"annotators": float(len(alias))}
    agreed, told = _agreement(ledger)
    found |= agreed
    overall = position_preference(ledger)
    if overall is not None:
        found["first_shown_preferred"] = overall.mean
        found["first_shown_interval"] = [overall.low, overall.high]
    by_person = {alias[name]: one for name, one in preferences(ledger).items()}
    found["preference_by_annotator"] = {name: [one.mean, one.low, one.high] for name, one in by_person.items()}
    told += [
        f"annotator {name} prefers what is shown {'first' if one.mean > 0.5 else 'last'}: {one}"
        for name, one in by_person.items()
        if one.is_biased
    ]
    accuracy = {alias[name]: of for name, of in gold_accuracy(items, asked.gold, ledger).items()}
    if accuracy:
        right, count = (sum(of[i] for of in accuracy.values()) for i in (0, 1))
        found |= {"gold_accuracy": right / count, "gold_decisions": float(count)}
        found["gold_by_annotator"] = {name: list(of) for name, of in accuracy.items()}
        told += [f"annotator {name}: {of[0]} of {of[1]} known answers right" for name, of in accuracy.items()]
    seconds = [one.seconds for one in ledger if one.seconds is not None]
    found |= {"median_seconds": float(median(seconds))} if seconds else {}
    found["guidelines"] = sorted({one.guideline_sha for one in ledger} - {""})
    return found, told


def _agreement(ledger: Sequence[Decision]) -> tuple[dict[str, Any], list[str]]:
    """Measure agreement as far as anybody can, and say what is lacking."""
    people = Counter(item for item, _ in {(one.item, one.annotator) for one in ledger})
    is_shared = max(people.values()) > 1
    has_nltk = importlib.util.find_spec("nltk") is not None
    found = agreement(ledger, needs_alpha=is_shared and has_nltk)
    named = {"alpha": found.alpha, "raw_agreement": found.raw, "self_agreement": found.with_themselves}
    told = ["Krippendorff's alpha is not computed: pip install 'posttrain-plugins[annotate]'"]
    known = {name: value for name, value in named.items() if value is not None}
    return {"agreement": str(found), **known}, told if is_shared and not has_nltk else []
