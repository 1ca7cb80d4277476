"""Every check on tools finds the fault that is planted for it, and passes what has none."""

from __future__ import annotations

import random
import sys
from typing import Any

import pytest

from posttrain_plugins import testing
from posttrain_plugins.testing import CHECKS
from tests.testing.planted import GENERAL, Planted

PLANTED = Planted("tool")


def good(word: str) -> str:
    """Shout a word.

    Args:
        word: what to shout.
    """
    return word.upper()


good.examples = ({"arguments": {"word": "a"}, "answer": "A"},)  # type: ignore[attr-defined]


@PLANTED.fails("check_tells_the_model")
def untold(word: str) -> str:
    """Shout a word."""
    return word.upper()


@PLANTED.fails("check_schema_is_transformers")
def of_a_class(word: PLANTED) -> str:  # type: ignore[valid-type]
    """Shout a word.

    Args:
        word: of a type that no JSON has.
    """
    return str(word)


@PLANTED.fails("check_examples")
def boasting(word: str) -> str:
    """Shout a word.

    Args:
        word: what to shout.
    """
    return word


boasting.examples = ({"arguments": {"word": "a"}, "answer": "A"},)  # type: ignore[attr-defined]

COUNT = iter(range(1000))


@PLANTED.fails("check_same_call_same_answer")
def counting(word: str) -> Any:
    """Count.

    Args:
        word: anything.
    """
    return Same(next(COUNT))


class Same:
    """Is what an example says it is, and another each time."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __str__(self) -> str:
        return Text(self.number)


class Text(str):
    """Equal to the example's text, and to no other of its kind."""

    number: int

    def __new__(cls, number: int) -> Text:
        made = super().__new__(cls, "A")
        made.number = number
        return made

    def __eq__(self, other: object) -> bool:
        return self.number == other.number if isinstance(other, Text) else str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


counting.examples = ({"arguments": {"word": "a"}, "answer": "A"},)  # type: ignore[attr-defined]


@PLANTED.fails("check_wrong_arguments_are_refused")
def leaving(word: str) -> str:
    """Look a word up.

    Args:
        word: one that is known.
    """
    return word if word == "a" else sys.exit(2)


@PLANTED.fails("check_global_rng_untouched")
def drawing(word: str) -> str:
    """Draw, and forget it.

    Args:
        word: what to give back.
    """
    random.random()
    return word


drawing.examples = ({"arguments": {"word": "a"}, "answer": "a"},)  # type: ignore[attr-defined]


@pytest.mark.parametrize("check", list(PLANTED.plugins))
def test_a_planted_fault_fails_its_check_alone(check: str) -> None:
    PLANTED.assert_fails_alone(check)


def test_every_check_has_a_planted_fault() -> None:
    names = {check.__name__ for check in CHECKS["tool"]} - GENERAL
    assert names - {"check_name_is_its_own"} == set(PLANTED.plugins)  # that one is of installed names alone


def test_what_has_no_fault_passes() -> None:
    testing.check_tool(good)


def test_a_function_of_another_name_than_its_plugin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain_plugins.plugins import registry

    monkeypatch.setattr(registry, "load", lambda kind, name, folder=None: good)
    with pytest.raises(AssertionError, match="check_name_is_its_own: the function is called good"):
        testing.check_tool("other")
