"""Checks on data sets: TRL's formats, declared columns, the same rows from the same seed, splits that share nothing."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal
from unittest import SkipTest

from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.testing.noise import assert_untouched
from posttrain_plugins.testing.subject import Subject, subject
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
MOST_ROWS = 2000


def check_gives_a_dataset(dataset: Any) -> None:
    """It gives a `datasets.Dataset` or `DatasetDict` with rows.

    A trainer on an empty data set ends at once, with a model that nobody trained.
    """
    from datasets import Dataset, DatasetDict

    made = subject("dataset", dataset).make()
    assert isinstance(made, Dataset | DatasetDict), f"it gives {type(made).__name__}"
    for name, rows in _splits(made):
        assert len(rows) > 0, f"{name} has no rows"


def check_trl_format(dataset: Any) -> None:
    """Its columns are those of one of TRL's formats, and their values are texts or messages.

    TRL tells from the columns what to train on: `question` and `answer` train on nothing, and a missing `content` is an
    exception in the first batch, or worse, an empty turn.
    """
    for name, rows in _made(dataset):
        has = set(rows.column_names)
        assert any(set(columns) <= has for columns in FORMATS.values()), (
            f"{name} has the columns {', '.join(rows.column_names)}, none of TRL's formats"
        )
        for column in (c for c in TEXTS if c in has):
            for row, value in enumerate(_column(rows, column)):
                problem = _text_problem(value)
                assert problem is None, f"{name}, row {row}: '{column}' {problem}"


def check_columns_as_declared(dataset: Any) -> None:
    """It has the columns that its `columns` declares, no more and no fewer.

    `posttrain validate` compares them with what stages and rewards need, before anything is made.
    """
    tried = subject("dataset", dataset)
    declared = _declared_columns(tried)
    if declared is None:
        raise SkipTest("it declares no columns")
    for name, rows in _splits(tried.make()):
        assert set(rows.column_names) == set(declared), (
            f"{name} has {', '.join(rows.column_names)}, declared are {', '.join(declared)}"
        )


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
    if "seed" not in tried.schema.fields:
        raise SkipTest("it takes no seed")
    first, second = (_fingerprint(tried.make(seed=seed)) for seed in (1, 2))
    assert first != second, "seeds 1 and 2 give the same rows"


def check_splits_disjoint(dataset: Any) -> None:
    """No prompt of one split stands in another: of a `DatasetDict`, of its `splits`, or of the choices of `split`.

    What was trained on is not held out. Half a percent of overlap is half a percent of free accuracy.
    """
    tried = subject("dataset", dataset)
    made = tried.make()
    splits = dict(_splits(made)) if isinstance(made, Mapping) else {}
    if not splits:
        splits = {name: dict(_splits(tried.make(split=name)))["it"] for name in _split_names(tried)}
    if len(splits) < 2:
        raise SkipTest("it has one split")
    seen: dict[str, str] = {}
    for name, rows in splits.items():
        for prompt in {_prompt(row) for row in _first(rows)}:
            other = seen.setdefault(prompt, name)
            assert other == name, f"{prompt[:60]} stands in {other} and in {name}"


def check_global_rng_untouched(dataset: Any) -> None:
    """The global generators of random, numpy and torch are where they were.

    A cached stage does not make its data again: what follows must not depend on whether it did.
    """
    tried = subject("dataset", dataset)
    tried.make()
    assert_untouched(tried.make)


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_gives_a_dataset,
    check_trl_format,
    check_columns_as_declared,
    check_same_seed_same_rows,
    check_other_seed_other_rows,
    check_splits_disjoint,
    check_global_rng_untouched,
)


def _made(dataset: Any) -> list[tuple[str, Any]]:
    splits = list(_splits(subject("dataset", dataset).make()))
    if not splits or any(len(rows) == 0 for _, rows in splits):
        raise SkipTest("it gives no rows")
    return splits


def _splits(made: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(made, Mapping):
        yield from ((f"split {name}", rows) for name, rows in made.items())
    elif hasattr(made, "column_names"):
        yield "it", made
    else:
        raise SkipTest("it gives no data set")


def _first(rows: Any) -> Any:
    return rows.select(range(min(MOST_ROWS, len(rows))))


def _column(rows: Any, name: str) -> list[Any]:
    return list(_first(rows)[name])


def _text_problem(value: Any) -> str | None:
    if value is None:
        return "is empty"
    if isinstance(value, str):
        return None
    if not is_conversational(value) or not all(isinstance(m, Mapping) for m in value):
        return f"is {type(value).__name__}, expected text or messages"
    bad = next((m for m in value if not m.get("role") or ("content" not in m and "tool_calls" not in m)), None)
    return None if bad is None and value else f"has a message without role or content: {bad}"


def _declared_columns(tried: Subject) -> tuple[str, ...] | None:
    """Of the object, for a property that its parameters decide."""
    if isinstance(tried.definition, type):
        try:
            made = tried.definition(**tried.params)
        except Exception as cause:
            raise SkipTest("it cannot be made: check_can_be_made says why") from cause
        columns = declared(made, "columns")
    else:
        columns = tried.declares("columns")
    return tuple(columns) if columns is not None else None


def _split_names(tried: Subject) -> tuple[str, ...]:
    declared = tried.declares("splits")
    if declared is not None:
        return tuple(declared)
    field = tried.schema.fields.get("split")
    is_choice = field is not None and typing.get_origin(field.type) is Literal
    return tuple(typing.get_args(field.type)) if field is not None and is_choice else ()


def _prompt(row: Mapping[str, Any]) -> str:
    column = next((c for c in ("prompt", "messages", "text", "chosen") if c in row), None)
    if column is None:
        raise SkipTest("it has no prompts to compare")
    return json.dumps(row[column], sort_keys=True, default=str)


def _fingerprint(made: Any) -> str:
    return json.dumps([[name, _first(rows).to_list()] for name, rows in _splits(made)], sort_keys=True, default=str)
