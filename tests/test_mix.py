"""`mix`: shares to the row, each row of the first once, nothing twice before all were once, and what does not go."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import posttrain_plugins as pp
from posttrain_plugins.datasets.mix import Mix
from posttrain_plugins.errors import InputError, RecipeErrors


def rows(letter: str, count: int, **more: Any) -> Any:
    return Dataset.from_list([{"prompt": f"{letter}{i}", **more} for i in range(count)])


@pytest.mark.parametrize(
    ("shares", "size", "expected"),
    [
        (None, None, {"a": 50, "b": 50}),
        ([0.9, 0.1], None, {"a": 50, "b": 6}),  # 50 / 0.9 = 55.6 rows, of which 56 - 50
        ([0.8, 0.2], None, {"a": 50, "b": 12}),
        ([9, 1], 20, {"a": 18, "b": 2}),
        ([1, 1], 7, {"a": 4, "b": 3}),
        ([1, 3], None, {"a": 50, "b": 150}),  # 150 of 30: each five times
        ([1000, 1], 10, {"a": 9, "b": 1}),  # a data set that is named gives a row
    ],
)
def test_shares_are_kept_to_the_row(shares: list[float] | None, size: int | None, expected: dict[str, int]) -> None:
    mixed = Mix([rows("a", 50), rows("b", 30)], shares, size)()  # type: ignore[list-item]
    found = Counter(mixed["prompt"])
    assert Counter(prompt[0] for prompt in found.elements()) == expected
    for letter in "ab":
        times = [count for prompt, count in found.items() if prompt[0] == letter]
        assert max(times) - min(times) <= 1, "one row is not drawn again before the others"
    if size is None:
        assert all(found[f"a{i}"] == 1 for i in range(50))


def test_the_order_is_drawn_once_and_by_the_seed() -> None:
    def prompts(seed: int) -> list[str]:
        return list(Mix([rows("a", 20), rows("b", 20)], seed=seed)()["prompt"])  # type: ignore[list-item]

    assert prompts(1) == prompts(1) != prompts(2)
    assert prompts(1) != [f"a{i}" for i in range(20)] + [f"b{i}" for i in range(20)]


def test_columns_that_not_all_have_are_left_out() -> None:
    mixed = Mix([rows("a", 3, solution="1", id=7), rows("b", 3, solution="2")])()  # type: ignore[list-item]
    assert mixed.column_names == ["prompt", "solution"]


def test_what_cannot_be_mixed_is_told() -> None:
    chat = Dataset.from_list([{"prompt": [{"role": "user", "content": "x"}]}])
    with pytest.raises(InputError, match="their columns differ in type") as told:
        Mix([rows("a", 3), chat])()  # type: ignore[list-item]
    assert "system_prompt" in str(told.value.hint)
    with pytest.raises(InputError, match="without a column in common: prompt; text"):
        Mix([rows("a", 3), Dataset.from_list([{"text": "x"}])])()  # type: ignore[list-item]


def write(folder: Path, name: str, made: list[dict[str, Any]]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("datasets: [a]", "mix has 1 data set, expected two or more"),
        ("datasets: [a, b], shares: [1.0]", "1 shares, expected 2"),
        ("datasets: [a, b], shares: [1.0, 0.0]", "expected each above 0"),
        ("datasets: [a, b], size: 1", "size: 1, expected a row or more of each"),
        ("datasets: [a, c]", "unknown dataset 'c'"),
        # what no row would have is known before anything is loaded
        ("datasets: [a, t]", r"needs 'messages' or 'prompt' \+ 'completion' or 'text'"),
    ],
)
def test_a_recipe_is_told_before_anything_is_loaded(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path], options: str, message: str
) -> None:
    for name in "ab":
        write(tmp_path, name, [{"prompt": "1", "completion": name}] * 4)
    write(tmp_path, "t", [{"prompt": "1", "solution": "2"}] * 4)
    text = """
    model: {model}
    datasets:
      a: {path: a.jsonl}
      b: {path: b.jsonl}
      t: {path: t.jsonl}
      both: {use: mix, {options}}
    stages:
      sft: {use: sft, model: base, dataset: both}
    """
    with pytest.raises(RecipeErrors, match=message):
        pp.validate(write_recipe(text, model=tiny_model, options=options))


def test_a_mix_depends_on_what_it_is_made_of(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    """Its key changes with a row of any part, and with a stage that makes one."""
    text = """
    model: {model}
    datasets:
      both: {use: mix, datasets: [a.jsonl, drawn], shares: [0.5, 0.5]}
    stages:
      drawn: {use: sample, model: base, dataset: a.jsonl, rewards: ["length(max_chars=9)"], keep: all}
      sft: {use: sft, model: base, dataset: both}
    """
    write(tmp_path, "a", [{"prompt": "1", "completion": "2"}] * 4)
    file = write_recipe(text, model=tiny_model)
    planned = {stage.id: stage for stage in pp.plan(file).stages}
    assert planned["sft"].spec.parents() == ("drawn",)
    write(tmp_path, "a", [{"prompt": "1", "completion": "3"}] * 4)
    again = {stage.id: stage for stage in pp.plan(file).stages}
    assert planned["sft"].key != again["sft"].key
