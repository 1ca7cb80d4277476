"""Marks that a strategy waits for: told where the model's template and vocabulary do not have them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from posttrain_plugins import load
from posttrain_plugins.backends.markers import unknown_markers
from posttrain_plugins.strategies.budget_forcing import BudgetForcing
from posttrain_plugins.strategies.episodic_memory import EpisodicMemory


def model(template: str | None = "{{ messages }}", vocabulary: tuple[str, ...] = ("a",)) -> Any:
    words = SimpleNamespace(chat_template=template, get_vocab=lambda: dict.fromkeys(vocabulary, 0))
    return SimpleNamespace(tokenizer=words, identity="base")


def test_an_end_that_neither_template_nor_vocabulary_has_is_told() -> None:
    [warning] = unknown_markers(BudgetForcing(), model())
    assert warning.startswith("neither chat template nor vocabulary of 'base' has '</think>'")
    assert list(unknown_markers(BudgetForcing(end="[/THINK]"), model(None)))


@pytest.mark.parametrize(
    ("strategy", "backend"),
    [
        (BudgetForcing(), model(template="{{ content.split('</think>')[-1] }}")),
        (BudgetForcing(), model(vocabulary=("a", "</think>"))),
        (BudgetForcing(end="Final Answer:"), model()),
        (load("strategy", "greedy"), model()),
        (BudgetForcing(), SimpleNamespace(identity="a server")),
    ],
)
def test_what_is_known_what_is_a_word_and_what_cannot_be_asked_is_not_told(strategy: Any, backend: Any) -> None:
    assert list(unknown_markers(strategy, backend)) == []


def test_a_strategy_within_another_is_asked_too() -> None:
    assert len(list(unknown_markers(EpisodicMemory(strategy=BudgetForcing()), model()))) == 1
