"""The checks on data sets against data sets with one fault each."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest
from planted import Planted

from posttrain_plugins import testing

PLANTED = Planted("dataset")


def rows(count: int = 8, seed: int = 0, first: int = 0) -> Any:
    import datasets

    numbers = random.Random(seed).sample(range(100), count)
    return datasets.Dataset.from_list([{"prompt": f"{first + n}+1=?", "solution": str(first + n + 1)} for n in numbers])


@PLANTED.fails("check_gives_a_dataset")
def a_list() -> Any:
    """Rows in a list."""
    return [{"prompt": "2+2=?"}]


@PLANTED.fails("check_trl_format")
def questions() -> Any:
    """Columns of its own."""
    return rows().rename_columns({"prompt": "question", "solution": "answer"})


@PLANTED.fails("check_columns_as_declared")
def undeclared_columns() -> Any:
    """Declares a column that is not there."""
    return rows()


undeclared_columns.columns = ("prompt", "solution", "level")  # type: ignore[attr-defined]

NUMBERS = iter(range(10_000))


@PLANTED.fails("check_same_seed_same_rows")
def never_again() -> Any:
    """Other rows at each call."""
    return rows(seed=next(NUMBERS))


@PLANTED.fails("check_other_seed_other_rows")
def one_seed(seed: int = 0) -> Any:
    """Does not look at its seed."""
    return rows()


@PLANTED.fails("check_splits_disjoint")
def overlapping(split: Literal["train", "test"] = "train") -> Any:
    """Two splits that share rows."""
    return rows(seed=3) if split == "train" else rows(8, seed=3)


@PLANTED.fails("check_global_rng_untouched")
def shuffling() -> Any:
    """Draws from the global generator."""
    random.random()
    return rows()


@pytest.mark.parametrize("check", PLANTED.plugins)
def test_a_planted_fault_fails_its_check_and_no_other(check: str) -> None:
    PLANTED.assert_fails_alone(check)


def test_every_check_has_a_planted_fault() -> None:
    PLANTED.assert_every_check_has_one()


def test_a_sound_plugin_passes() -> None:
    PLANTED.assert_passes(rows)


def test_an_expected_failure_may_be_given_to_the_call() -> None:
    testing.check_dataset(overlapping, {"check_splits_disjoint": "they are one split under two names"})
