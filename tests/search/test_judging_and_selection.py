"""How partial completions are judged, and how the answer of a search is selected."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from posttrain_plugins.search import PartialCompletion, judge_paths, select_answer
from posttrain_plugins.text.steps import aggregate
from posttrain_plugins.types import Problem, Result, SamplingParams, ScoreSteps

QUESTION = "Q: "
PARAMS = SamplingParams(temperature=0.7, max_tokens=200)
PROBLEM = Problem(QUESTION, PARAMS)


def test_aggregate() -> None:
    assert [aggregate([0.5, 0.25, 1.0], how) for how in ("last", "min", "prod")] == [1.0, 0.25, 0.125]
    assert aggregate([0.5, 1.0], "mean") == 0.75
    assert aggregate([], "min") is None


@pytest.mark.parametrize("how", ["last", "min", "prod", "mean"])
def test_a_path_with_a_step_score_that_is_no_number_is_not_judged(how: Any) -> None:
    steps = judge_paths(PROBLEM, [PartialCompletion("a;b;"), PartialCompletion("c;d;")], "prm", how, ";")
    next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send([[[0.5, math.nan], [math.nan, 0.5]]])
    assert [path.score for path in stop.value.value] == [None, None]


def test_judged_asks_each_text_once_and_never_the_empty_one() -> None:
    paths = [
        PartialCompletion("a;b;"),
        PartialCompletion("", ended="stop"),
        PartialCompletion("a;b;", ended="stop"),
        PartialCompletion("c"),
    ]
    steps = judge_paths(PROBLEM, paths, "prm", "min", ";")
    assert next(steps) == [ScoreSteps(QUESTION, (("a;", "b;"), ("c",)), "prm")]
    with pytest.raises(StopIteration) as stop:
        steps.send([[[0.5, 0.25], []]])
    assert [path.score for path in stop.value.value] == [0.25, None, 0.25, None]
    with pytest.raises(StopIteration):
        next(judge_paths(PROBLEM, [PartialCompletion()], "prm", "min", ";"))


def finished(answer: str, score: float | None) -> PartialCompletion:
    return PartialCompletion(f"answer is {answer}", ended="stop", score=score)


def test_select_answer_takes_the_best_or_lets_the_scores_vote() -> None:
    paths = [
        finished("3", 0.3),
        finished("5", 0.5),
        finished("3", 0.3),
        finished("4", None),
        PartialCompletion("a;", score=0.9),
    ]
    assert select_answer(paths, "best").answer == "5"
    assert select_answer(paths, "weighted_vote").answer == "3"
    assert select_answer(paths, "majority").answer == "3"
    assert len(select_answer(paths, "best").candidates) == 4  # only what is finished
    same = [replace(finished("3", 0.1), text="3.0\nanswer is 3.0"), finished("3", 0.4)]
    assert (
        select_answer([*same, finished("5", 0.45)], "weighted_vote").text == "answer is 3"
    )  # the best of those that agree
    assert select_answer(paths, "weighted_vote", weights=[0.1, 0.7, 0.1, 0.0, 0.1]).answer == "5"


def test_select_answer_takes_negative_scores_for_logits() -> None:
    paths = [finished("3", 1.0), finished("4", -0.5), finished("4", -0.5)]  # sigmoid: .73 against .38 + .38
    assert select_answer(paths, "weighted_vote").answer == "4"


def test_select_answer_prefers_an_answer_and_ties_go_to_the_first() -> None:
    silent = PartialCompletion("I wonder about that, and about many other things too.", ended="length", score=0.9)
    assert select_answer([silent, finished("4", 0.1), finished("5", 0.1)], "best").answer == "4"
    assert (
        select_answer([silent, finished("4", 0.0), finished("5", 0.0), finished("5", None)], "weighted_vote").answer
        == "5"
    )
    assert select_answer([silent], "majority").text == silent.text


def test_select_answer_without_anything_finished_stands_on_the_best_begun_path() -> None:
    result = select_answer(
        [PartialCompletion(), PartialCompletion("a;", score=0.1), PartialCompletion("b;", score=0.2)], "weighted_vote"
    )
    assert (result.text, [c.finish_reason for c in result.candidates]) == ("b;", ["length"])
    assert select_answer([PartialCompletion()], "best") == select_answer([], "best") == Result(answer=None, text="")
