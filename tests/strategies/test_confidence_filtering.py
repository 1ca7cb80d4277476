"""DeepConf: confidences by hand, offline and online."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from by_hand import COMPLETIONS, PLAIN, PROBLEM, play_by_hand

from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.strategies.confidence_filtering import ConfidenceFiltering, confidence
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.types import Completion, Generate


def confident(answer: Any, *confidences: float, **more: Any) -> Completion:
    return Completion(f"so the answer is {answer}", confidences=list(confidences), **more)


@pytest.mark.parametrize(
    ("measure", "value"), [("mean", 8.0), ("lowest_group", 2.0), ("bottom_tenth", 3.0), ("tail", 7.0)]
)
def test_confidence_by_hand(measure: Any, value: float) -> None:
    """Groups of two, 11 of them: 9 7 5 2 4 10 12 10 11 10.5 7; the lowest tenth are two, 2 and 4."""
    assert confidence([8, 10, 4, 6, -2, 10, 10, 14, 6, 16, 5, 9], measure, 2) == value
    assert confidence([], measure, 2) == 0.0
    assert confidence([3.0], measure, 2) == 3.0


def test_confidence_filtering_offline_keeps_the_surest_and_weighs_their_votes() -> None:
    drawn = [
        confident(5, 1.0),
        confident(5, 1.0),
        confident(5, 1.0),
        confident(4, 9.0),
        confident(3, 5.0),
        Completion("", confidences=[99.0]),
    ]
    [request], result = play_by_hand(ConfidenceFiltering(n=6, keep=0.4), [drawn])
    assert request == Generate(PROBLEM.prompt, n=6, params=replace(PROBLEM.params, top_logprobs=20))
    assert result.answer == "4"
    assert [candidate.score for candidate in result.candidates] == [1.0, 1.0, 1.0, 9.0, 5.0, 99.0]
    assert play_by_hand(ConfidenceFiltering(keep=1.0), [drawn])[1].answer == "4"  # 3 votes of 1.0 against one of 9.0
    assert play_by_hand(ConfidenceFiltering(keep=1.0), [[*drawn, confident(5, 7.0)]])[1].answer == "5"
    assert play_by_hand(SelfConsistency(n=5), [drawn])[1].answer == "5"


def test_confidence_filtering_measure_decides() -> None:
    drawn = [confident(5, 9.0, 9.0, 1.0, 1.0), confident(4, 4.0, 4.0, 4.0, 4.0)]
    by = {
        m: play_by_hand(ConfidenceFiltering(keep=0.5, measure=m, group_size=2), [drawn])[1].answer
        for m in ("mean", "tail")
    }
    assert by == {"mean": "5", "tail": "4"}


def test_confidence_filtering_online_stops_unsure_traces() -> None:
    """Warm-up: lowest groups 5, 4 and 1, of which two are kept: the floor is 4. Then three traces, group by group."""
    warmup = [confident(5, 5.0, 5.0), confident(4, 4.0, 4.0), confident(4, 1.0, 1.0)]
    strategy = ConfidenceFiltering(n=6, keep=0.5, warmup=3, group_size=2)
    problem = replace(PLAIN, params=replace(PLAIN.params, max_tokens=5))
    unsure = [confident(5, 3.9, 3.9, finish_reason="length")]
    waves = [
        [unsure, [Completion("x", "length", confidences=[7.0, 7.0])], unsure],
        [[Completion("z", "length", confidences=[7.0, 7.0])]],
        [[confident(" 4", 7.0)]],
    ]
    asked, result = play_by_hand(strategy, [warmup, *waves], problem)
    assert asked[0].n == 3
    assert [[(r.prompt, r.params.max_tokens) for r in wave] for wave in asked[1:]] == [
        [("2+2=?", 2)] * 3,
        [("2+2=?x", 2)],
        [("2+2=?xz", 1)],
    ]
    assert [c.text for c in result.candidates[3:]] == [unsure[0].text, "xzso the answer is  4", unsure[0].text]
    assert result.answer == "4"  # 4 and 7 against 5; with the unsure it were 5 and 3.9 and 3.9


def test_confidence_filtering_online_ends_where_the_vote_is_decided_or_the_budget_ends() -> None:
    warmup = [confident(4, 5.0), confident(4, 4.0)]
    assert len(play_by_hand(ConfidenceFiltering(n=9, warmup=2), [warmup])[0]) == 1
    steps = ConfidenceFiltering(n=9, warmup=2)(PROBLEM)
    next(steps)
    assert len(steps.send([confident(4, 5.0), confident(5, 4.0)])) == 2
    with pytest.raises(StopIteration) as stop:
        steps.throw(BudgetExhausted("spent"))
    assert stop.value.value.answer == "4"


def test_confidence_filtering_refuses() -> None:
    with pytest.raises(InputError, match="no confidences"):
        play_by_hand(ConfidenceFiltering(), [COMPLETIONS])
    with pytest.raises(InputError, match="share"):
        ConfidenceFiltering(keep=0)
    with pytest.raises(InputError, match="1 or more"):
        ConfidenceFiltering(warmup=0)
