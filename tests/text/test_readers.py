"""How answers are read: the corpora, the readers by name, and where the thought ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.answers import extract
from posttrain_plugins.errors import InputError
from posttrain_plugins.rewards.cosine import Cosine
from posttrain_plugins.rewards.exact_answer import ExactAnswer
from posttrain_plugins.text import prose
from posttrain_plugins.text.answers import score_answer
from posttrain_plugins.text.readers import (
    READERS,
    THOUGHT_MARKS,
    opens_thought,
    read,
    read_reference,
    without_thought,
)

CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.glob("read_*.jsonl")))
def test_completions_of_chat_models_are_read(name: str) -> None:
    rows = [json.loads(line) for line in (CORPUS / name).read_text(encoding="utf-8").splitlines()]
    scored = [(row, score_answer(row["completion"], row["solution"], prompt=row.get("prompt"))) for row in rows]
    assert [row for row, score in scored if score and row["right"] is not True] == []
    right = [score for row, score in scored if row["right"] is True]
    assert sum(right) >= 0.98 * len(right)
    unreadable = [row for row in rows if row["right"] == "unreadable"]
    read_anyway = [row for row in unreadable if extract(row["completion"], prompt=row.get("prompt")) is not None]
    assert len(read_anyway) <= 0.02 * len(unreadable)


@pytest.mark.parametrize(
    ("reader", "text", "answer"),
    [
        ("auto", "Sorted: 10 44 74 81", "10 44 74 81"),
        ("auto", "He earns $120 in 8 hours.", "$120"),
        ("auto", "ansansanswer is 2", "2"),
        ("marked", "İ" * 30 + "\nThe answer is 2.\nİstanbul lies on both shores.", "2"),  # longer in lower case
        ("marked", "19", None),
        ("marked", "The answer is 19.", "19"),
        ("boxed", r"The answer is 3, no, \boxed 5", "5"),
        ("boxed", "The answer is 3", None),
        ("tag", "<answer>3</answer> \\boxed{4}", "3"),
        ("last_number", "3 of 1,200 or 5%", "5%"),
        ("last_number", "none", None),
        ("whole", " a b \n", "a b"),
        ("whole", "<think>a</think> b", "b"),
        (r"regex:ANS=(\w+)", "ANS=a ANS=b", "b"),
        (r"regex:\d+$", "4\n5 x", "4"),
        (r"regex:z", "4", None),
    ],
)
def test_readers_by_name(reader: str, text: str, answer: str | None) -> None:
    assert read(text, reader) == answer


@pytest.mark.parametrize("reader", ["box", "", "regex", "regex:(", "last number"])
def test_a_reader_that_is_none_is_refused(reader: str) -> None:
    with pytest.raises(InputError, match="reader"):
        read("4", reader)
    with pytest.raises(InputError, match="reader"):
        ExactAnswer(reader=reader)


@pytest.mark.parametrize("reader", sorted(READERS))
@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("<think>4", None),
        ("[THINK]the answer is 4", None),
        ("so <answer>4</answer> and", "Q<think>\n"),
        ("so \\boxed{4} and", [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "<think>"}]),
        ("<think>4</think> no, <think> the answer is 4", None),
    ],
)
def test_a_thought_that_never_ended_has_no_answer(reader: str, text: str, prompt: Any) -> None:
    assert read(text, reader, prompt) is None


def test_where_a_prompt_opens_a_thought() -> None:
    assert opens_thought("a<think>\n")
    assert not opens_thought("a<think>\n\n</think>\n\n")
    assert not opens_thought("a")
    assert not opens_thought([{"role": "user", "content": "write <think>"}])
    assert not opens_thought([])


def test_rewards_read_behind_the_thought_that_the_prompt_opens() -> None:
    prompts, completions = ["Q<think>", "Q<think>"], ["4 is it. 4", "hm</think>\n4"]
    assert ExactAnswer()(prompts=prompts, completions=completions, solution=["4", "4"]) == [0.0, 1.0]
    right, wrong = Cosine(max_len=100, unit="chars")(prompts=prompts, completions=completions, solution=["4", "4"])[
        ::-1
    ]
    assert right is not None
    assert wrong is not None
    assert right > 0 > wrong


def test_a_completion_that_says_what_its_reference_says_is_right() -> None:
    recipe = "Once the water boils, add salt.\n\nThen the pasta: 9 minutes.\n\nIs it done?"
    assert score_answer(recipe, recipe) == 1.0
    assert score_answer(recipe.replace("9", "8"), recipe) == 0.0
    assert score_answer("", "") == 0.0


def test_a_label_is_found_by_its_words_alone() -> None:
    """The words that stand for the pattern miss none of its matches, in any text of the corpora."""
    texts = [
        json.loads(line)["completion"]
        for path in sorted(CORPUS.glob("read_*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    found = [[label.span() for label in prose._labels_from_the_end(text, 0)] for text in texts]
    expected = [[label.span() for label in prose._LABEL.finditer(text)][::-1] for text in texts]
    assert found == expected
    assert sum(map(len, found)) > 300


def test_each_mark_of_a_thought_is_looked_for() -> None:
    for mark in (mark for pair in THOUGHT_MARKS for mark in pair):
        assert without_thought(f"before{mark}after") != f"before{mark}after"


def test_references() -> None:
    assert read_reference(r"Adding gives \boxed{\frac{1}{2}}, of 3") == r"\frac{1}{2}"
    assert read_reference("4*5=20\n#### 20") == "20"
    assert read_reference("<answer>7</answer>") == "7"
    assert read_reference("the answer is 5 or so") == "the answer is 5 or so"  # as somebody has written it
    assert read_reference(7) == "7"
