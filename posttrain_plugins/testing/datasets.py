"""Checks on data sets: TRL's formats, declared columns, the same rows from the same seed, splits that share nothing."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal
from unittest import SkipTest

from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.testing.noise import assert_untouched
from posttrain_plugins.testing.subject import UNMADE, skip_on_error, subject
from posttrain_plugins.text import is_conversational

__all__ = ["CHECKS", "FORMATS"]

FORMATS: dict[str, tuple[str, ...]] = {
    "language modeling": ("text",),
    "conversations": ("messages",),
    "stepwise supervision": ("prompt", "completions", "labels"),
    "unpaired preference": ("prompt", "completion", "label"),
    "preference": ("chosen", "rejected"),
    "ranking": ("prompt", "completions"),
    "prompt-completion": ("prompt", "completion"),
    "prompt-only": ("prompt",),
}
"""TRL's formats (https://huggingface.co/docs/trl/dataset_formats), and rankings."""

TEXTS = ("text", "messages", "prompt", "completion", "chosen", "rejected")
MOST_ROWS = 2000  # that a check looks at


def check_gives_a_dataset(dataset: Any) -> None:
    """It gives a `datasets.Dataset` or `DatasetDict` with rows.

    A trainer on an empty data set ends at once, with a model that nobody trained.
    """
    from datasets import Dataset, DatasetDict

    made = subject("dataset", dataset).make()
    assert isinstance(made, Dataset | DatasetDict), f"it gives {type(made).__name__}"
    for name, rows in _splits(made).items():
        assert len(rows) > 0, f"{name} has no rows"


def check_trl_format(dataset: Any) -> None:
    """Its columns are those of one of TRL's formats, and their values are texts or messages.

    TRL tells from the columns what to train on: `question` and `answer` train on nothing, and a missing `content` is an
    exception in the first batch, or worse, an empty turn.
    """
    splits = _splits(subject("dataset", dataset).make())
    if not splits or any(len(rows) == 0 for rows in splits.values()):
        raise SkipTest("it gives no rows")
    for name, rows in splits.items():
        has = set(rows.column_names)
        assert any(set(columns) <= has for columns in FORMATS.values()), (
            f"{name} has the columns {', '.join(rows.column_names)}, none of TRL's formats"
        )
        for column in (c for c in TEXTS if c in has):
            for row, value in enumerate(rows[column]):
                problem = _text_problem(value)
                assert problem is None, f"{name}, row {row}: '{column}' {problem}"


def check_columns_as_declared(dataset: Any) -> None:
    """It has the columns that its `columns` declares, no more and no fewer.

    `posttrain validate` compares them with what stages and rewards need, before anything is made.
    """
    tried = subject("dataset", dataset)
    declaring = tried.definition
    if isinstance(declaring, type):
        with skip_on_error(UNMADE):
            declaring = declaring(**tried.params)  # its parameters may decide, then `columns` is a property
    columns = declared(declaring, "columns")
    if columns is None:
        raise SkipTest("it declares no columns")
    for name, rows in _splits(tried.make()).items():
        has = f"{name} has {', '.join(rows.column_names)}, declared are {', '.join(columns)}"
        assert set(rows.column_names) == set(columns), has


def check_same_seed_same_rows(dataset: Any) -> None:
    """Made twice, it has the same rows in the same order.

    A run that was killed goes on from a checkpoint by skipping the rows that were seen: they must be those rows.
    """
    tried = subject("dataset", dataset)
    first, second = (_fingerprint(tried.make()) for _ in range(2))
    assert first == second, "made twice, its rows differ"


def check_other_seed_other_rows(dataset: Any) -> None:
    """Another `seed` gives other rows, where it takes one.

    Three seeds of a run measure the spread; on the same data they measure nothing.
    """
    tried = subject("dataset", dataset)
    if "seed" not in tried.schema.fields:  # a data set of fixed rows needs none
        raise SkipTest("it takes no seed")
    first, second = (_fingerprint(tried.make(seed=seed)) for seed in (1, 2))
    assert first != second, "seeds 1 and 2 give the same rows"


def check_splits_disjoint(dataset: Any) -> None:
    """No prompt of one split stands in another: of a `DatasetDict`, of its `splits`, or of the choices of `split`.

    What was trained on is not held out. Half a percent of overlap is half a percent of free accuracy.
    """
    tried = subject("dataset", dataset)
    made = tried.make()
    splits = _splits(made) if isinstance(made, Mapping) else {}
    if not splits:
        names = tried.declares("splits")
        if names is None and (field := tried.schema.fields.get("split")) is not None:
            names = typing.get_args(field.type) if typing.get_origin(field.type) is Literal else ()
        splits = {name: _splits(tried.make(split=name))["it"] for name in names or ()}
    if len(splits) < 2:
        raise SkipTest("it has one split")
    seen: dict[str, str] = {}
    for name, rows in splits.items():
        column = next((c for c in ("prompt", "messages", "text", "chosen") if c in rows.column_names), None)
        if column is None:
            raise SkipTest("it has no prompts to compare")
        # a split may repeat a prompt of its own, for instance with another completion
        for prompt in {json.dumps(value, sort_keys=True, default=str) for value in rows[column]}:
            other = seen.setdefault(prompt, name)
            assert other == name, f"{prompt[:60]} stands in {other} and in {name}"


def check_global_rng_untouched(dataset: Any) -> None:
    """The global generators of random, numpy and torch are where they were.

    A cached stage does not make its data again: what follows must not depend on whether it did.
    """
    tried = subject("dataset", dataset)
    tried.make()  # first, so that what it downloads or imports once is no draw of the call that is watched
    assert_untouched(tried.make)


# in the order of this file, in which they run; found by name, so that none is forgotten
CHECKS: tuple[Callable[[Any], None], ...] = tuple(one for name, one in globals().items() if name.startswith("check_"))


def _splits(made: Any) -> dict[str, Any]:
    """Return the first rows of each split by its name, of a data set without splits as `it`."""
    splits = {f"split {name}": rows for name, rows in made.items()} if isinstance(made, Mapping) else {"it": made}
    if not all(hasattr(rows, "select") for rows in splits.values()):
        raise SkipTest("it gives no data set")
    return {name: rows.select(range(min(MOST_ROWS, len(rows)))) for name, rows in splits.items()}


def _text_problem(value: Any) -> str | None:
    # what templates do with these differs: some raise in the first batch, others write "None" into the text
    if value is None:
        return "is empty"
    if isinstance(value, str):
        return None
    if not is_conversational(value) or not all(isinstance(m, Mapping) for m in value):
        return f"is {type(value).__name__}, expected text or messages"
    bad = next((m for m in value if not m.get("role") or ("content" not in m and "tool_calls" not in m)), None)
    return None if bad is None and value else f"has a message without role or content: {bad}"


def _fingerprint(made: Any) -> str:
    rows = [[name, rows.to_list()] for name, rows in _splits(made).items()]
    return json.dumps(rows, sort_keys=True, default=str)
