"""The recipe `graph`: its lists, its errors, and that its demonstrations are what its graph of thoughts asks."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from recipe_files import load

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError
from posttrain_plugins.recipe.read import document
from posttrain_plugins.testing.scripted import ScriptedModel
from posttrain_plugins.text import last_user_text
from posttrain_plugins.tiny_world import tokenizer
from posttrain_plugins.types import Completion, Generate, ResolvedReward, Result

RECIPES = Path(__file__).parent.parent / "recipes"


merging = load("merging")
RECIPE = document._read(RECIPES / "graph.yaml").data
OPERATIONS: list[dict[str, Any]] = RECIPE["datasets"]["demos"]["operations"]


def make(part: str, split: str = "train", **params: Any) -> list[dict[str, Any]]:
    more = {"operations": OPERATIONS} if part == "demonstrations" else {}
    return list(merging.Lists(split, part, **{**more, **params})().to_list())


def questions(split: str, seed: int = 0) -> set[str]:
    rows = make("problems", split, size=200, seed=seed, count=16)
    return {"".join(sorted(last_user_text(row["prompt"]).removeprefix("sort "))) for row in rows}


def solve(model: Any, size: int = 4) -> tuple[list[Result], list[dict[str, Any]]]:
    rows = make("problems", "development", size=size)
    results = pp.solve(
        pp.load("strategy", "graph_of_thoughts", operations=OPERATIONS, scorer="errors"),
        [row["prompt"] for row in rows],
        backend=model,
        scorers={"errors": ResolvedReward("errors", merging.Sorted("share"))},
    )
    return results, rows


# --- Lists -----------------------------------------------------------------------------------------------------------


def test_no_list_is_in_two_splits_whatever_its_order_and_seed() -> None:
    found = {split: questions(split) | questions(split, 1) for split in ("train", "development", "exam")}
    assert all(len(of) > 300 for of in found.values())
    assert not found["train"] & found["development"]
    assert not found["train"] & found["exam"]
    assert not found["development"] & found["exam"]
    assert merging.split_of("abc") == merging.split_of("cab")


@pytest.mark.parametrize("part", ["problems", "corpus", "demonstrations"])
def test_same_seed_same_rows_other_seed_others(part: str) -> None:
    first, again, other = (make(part, size=10, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert all(tuple(row) == merging.Lists("train", part, operations=OPERATIONS).columns for row in first)


def test_solutions_are_the_lists_in_order() -> None:
    for row in make("problems", size=20):
        letters = last_user_text(row["prompt"]).removeprefix("sort ").replace(" ", "")
        runs = re.findall(r"([a-l])([0-9])", row["solution"])
        assert "".join(letter * int(times) for letter, times in runs) == "".join(sorted(letters))
        assert "".join(letter for letter, _ in runs) == merging.LETTERS
        assert len(letters) == 72


def test_the_corpus_sorts_no_list_longer_than_a_part() -> None:
    texts = [row["text"] for row in make("corpus", size=200)]
    assert all(text.startswith("<eos>") and text.endswith("<eos>") for text in texts)
    asked = [text.removeprefix("<eos>").partition("\n")[0] for text in texts]
    assert {text.partition(" ")[0] for text in asked} == {"sort", "merge"}
    assert max(len(text) for text in asked if text.startswith("sort")) <= len("sort ") + 18


def test_all_texts_are_of_the_tokenizers_characters_and_fit() -> None:
    tok = tokenizer()
    texts = [row["text"] for row in make("corpus", size=100)]
    chats = [[*row["prompt"], *row["completion"]] for row in make("demonstrations", size=20)]
    for ids in [*tok(texts)["input_ids"], *(tok.apply_chat_template(chat, return_dict=False) for chat in chats)]:
        assert tok.unk_token_id not in ids
    stages = (RECIPE["model"], RECIPE["stages"]["sft"])
    longest = [max(len(tok(text)["input_ids"]) for text in texts)]
    longest.append(max(len(tok.apply_chat_template(chat, return_dict=False)) for chat in chats))
    assert all(n <= stage["args"]["max_length"] <= 256 for n, stage in zip(longest, stages, strict=True))


@pytest.mark.parametrize(
    "params",
    [
        {"size": 0},
        {"count": 70},
        {"count": 4},
        {"count": 256},
        {"parts": 1},
        {"parts": 0},
        {"part": "demonstrations"},
    ],
)
def test_sizes_that_make_no_data_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="lists cannot use") as caught:
        merging.Lists("train", **params)
    assert caught.value.hint


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "written", "share"),
    [
        ("sort caba", "a2b1c1d0e0f0g0h0i0j0k0l0", 1.0),
        ("sort ca ba", "a2b1c1d0e0f0g0h0i0j0k0l0", 1.0),
        ("merge a1b0c1 a1b1c0", "a2b1c1d0e0f0g0h0i0j0k0l0", 1.0),
        ("sort caba", "a1b1c1d0e0f0g0h0i0j0k0l0", 0.75),  # one is missing
        ("sort caba", "a3b1c1d0e0f0g0h0i0j0k0l0", 0.75),  # one is too many
        ("sort caba", "a1b2c1d0e0f0g0h0i0j0k0l0", 0.5),  # one is another
        ("sort caba", "b1a2c1d0e0f0g0h0i0j0k0l0", 0.75),  # one is in the wrong order
        ("sort caba", "a1a1b1c1d0e0f0g0h0i0j0k0l0", 0.0),
        ("sort caba", "a2b1c1", 0.0),
        ("sort caba", "caba", 0.0),
        ("sort caba", "a2b1c1d0e0f0g0h0i0j0k0l", 0.0),
        ("sort caba", "a2b1c1d0e0f0g0h0i0j0k0l0 so", 0.0),
        ("sort caba", "a2b1c1d0e0f0g0h0i0j0k0l99", 0.0),
        ("sort caba", "I cannot.", 0.0),
        ("sort caba", "", 0.0),
        ("merge  ", "", 0.0),
        ("merge so so", "a1b0c0d0e0f0g0h0i0j0k0l0", 0.0),
    ],
)
def test_errors_are_told_from_what_was_asked_alone(asked: str, written: str, share: float) -> None:
    prompt = merging.message("user", asked)
    for completion in (written, merging.message("assistant", written)):
        assert merging.Sorted("share")(prompts=[prompt], completions=[completion]) == [share]
        assert merging.Sorted()(prompts=[prompt], completions=[completion]) == [float(share == 1.0)]


def test_every_demonstration_has_no_errors() -> None:
    rows = make("demonstrations", size=20)
    assert set(merging.Sorted("share")([r["prompt"] for r in rows], [r["completion"] for r in rows])) == {1.0}


# --- The graph -------------------------------------------------------------------------------------------------------


def right(request: Generate, seed: int) -> Completion:
    return Completion(merging.answer(last_user_text(request.prompt)))


def sloppy(request: Generate, seed: int) -> Completion:
    """Miscount a letter in three of ten draws of a part, and in all of a list as long as the question."""
    asked = last_user_text(request.prompt)
    written = merging.answer(asked)
    is_whole = asked.startswith("sort") and len(asked) > 32
    is_wrong = is_whole or random.Random(seed).random() < 0.3
    return Completion(re.sub("[0-9]", lambda times: str(int(times[0]) + 1), written, count=1) if is_wrong else written)


def test_the_recipe_measures_the_graph_that_its_demonstrations_are_of() -> None:
    [asked] = [one for one in RECIPE["stages"]["eval"]["strategies"] if "operations" in one]
    assert asked["operations"] == OPERATIONS


def test_demonstrations_are_what_the_graph_asks() -> None:
    model = ScriptedModel(right)
    _, problems = solve(model)
    asked = {last_user_text(request.prompt) for request in model.asked}
    asked |= {last_user_text(row["prompt"]) for row in problems}
    lists = merging.Lists("development", "demonstrations", operations=OPERATIONS)
    shown = {text for row in problems for text in lists.prompts(last_user_text(row["prompt"]))}
    assert shown == asked
    kinds = [text.partition(" ")[0] for text in shown]
    assert (kinds.count("sort"), kinds.count("merge")) == (4 * 5, 4 * 3)


def test_a_model_without_mistakes_sorts_by_the_graph() -> None:
    results, rows = solve(ScriptedModel(right))
    assert [result.text for result in results] == [row["solution"] for row in rows]


def test_the_best_of_several_parts_mends_what_a_sloppy_model_miscounts() -> None:
    results, rows = solve(ScriptedModel(sloppy), size=8)
    assert sum(result.text == row["solution"] for result, row in zip(results, rows, strict=True)) >= 5
    prompts = [row["prompt"] for row in rows]
    at_once = [sloppy(Generate(prompt), seed).text for prompt in prompts for seed in range(8)]
    assert not any(merging.Sorted()([one for one in prompts for _ in range(8)], at_once))


def test_the_graph_has_a_short_name_in_tables() -> None:
    plan = pp.plan("graph")
    names = [getattr(source, "name", "") for _, source in plan["eval"].spec.sources()]
    [name] = [name for name in names if name.startswith("graph_of_thoughts")]
    assert re.fullmatch(r"graph_of_thoughts\(scorer=errors, operations=\[26 of them, [0-9a-f]{4}\]\)", name)
