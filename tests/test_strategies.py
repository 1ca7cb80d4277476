"""The strategies, worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.chain_of_thought import ChainOfThought
from posttrain_plugins.strategies.greedy import Greedy
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.types import Completion, Generate, Problem, Result, SamplingParams, Score, Strategy

PROBLEM = Problem([{"role": "user", "content": "2+2=?"}], SamplingParams(temperature=0.7, max_tokens=9))
COMPLETIONS = [Completion(f"so the answer is {answer}") for answer in ("5", "4", "4.0", "3")]


def play(strategy: Strategy, responses: Sequence[Any], problem: Problem = PROBLEM) -> tuple[list[Any], Result]:
    """Run a strategy by hand: what it asks for, and its result."""
    steps = strategy(problem)
    asked: list[Any] = [next(steps)]
    for response in responses:
        try:
            asked.append(steps.send(response))
        except StopIteration as stop:
            return asked, stop.value
    raise AssertionError("the strategy wants more")


def test_greedy_asks_once_at_temperature_zero() -> None:
    [request], result = play(Greedy(), [COMPLETIONS[:1]])
    assert request == Generate(PROBLEM.prompt, params=SamplingParams(temperature=0.0, max_tokens=9))
    assert (result.answer, result.text) == ("5", "so the answer is 5")


def test_self_consistency_takes_the_largest_class_of_equivalent_answers() -> None:
    [request], result = play(SelfConsistency(n=4), [COMPLETIONS])
    assert request == Generate(PROBLEM.prompt, n=4, params=PROBLEM.params)
    assert (result.answer, result.text) == ("4", COMPLETIONS[1].text)
    assert len(result.candidates) == 4


def test_self_consistency_ties_go_to_the_first_and_the_unparsable_abstain() -> None:
    unparsable = Completion("I wonder about that, and about many other things too.")
    result = play(SelfConsistency(n=4), [[unparsable, unparsable, COMPLETIONS[3], COMPLETIONS[0]]])[1]
    assert result.answer == "3"
    assert play(SelfConsistency(n=1), [[unparsable]])[1].answer is None


def test_best_of_n_takes_the_best_score() -> None:
    asked, result = play(BestOfN("rm", n=4), [COMPLETIONS, [0.1, -2.0, 3.0, None]])
    assert asked[1] == Score(PROBLEM.prompt, tuple(completion.text for completion in COMPLETIONS), "rm")
    assert (result.answer, [candidate.score for candidate in result.candidates]) == ("4.0", [0.1, -2.0, 3.0, None])


def test_best_of_n_weighted_sums_scores_of_equivalent_answers() -> None:
    scores = [0.6, 0.4, 0.3, 0.1]
    assert play(BestOfN("rm", n=4), [COMPLETIONS, scores])[1].answer == "5"
    assert play(BestOfN("rm", n=4, weighted=True), [COMPLETIONS, scores])[1].answer == "4"


def test_best_of_n_weighted_takes_negative_scores_for_logits() -> None:
    logits = [1.0, -0.5, -0.5, -1000.0]  # sigmoid: .73 against .38 + .38
    assert play(BestOfN("rm", n=4, weighted=True), [COMPLETIONS, logits])[1].answer == "4"


def test_best_of_n_without_any_judgement_takes_the_first() -> None:
    for weighted in (False, True):
        result = play(BestOfN("rm", n=4, weighted=weighted), [COMPLETIONS, [None] * 4])[1]
        assert result.text == COMPLETIONS[0].text


@pytest.mark.parametrize("strategy", [Greedy(), SelfConsistency(n=2), BestOfN("rm", n=2), ChainOfThought()])
def test_all_samples_failed_is_an_empty_result(strategy: Strategy) -> None:
    failed = [Completion("", finish_reason="error", error="oh")] * 2
    assert play(strategy, [failed])[1] == Result(answer=None, text="")


def test_chain_of_thought_zero_shot() -> None:
    [request], _ = play(ChainOfThought(), [COMPLETIONS[:1]])
    assert request.prompt == [{"role": "user", "content": "2+2=?\nLet's think step by step."}]
    assert request.params.temperature == 0.0
    assert PROBLEM.prompt == [{"role": "user", "content": "2+2=?"}]


def test_chain_of_thought_few_shot_keeps_the_system_message_first() -> None:
    chat = Problem([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2=?"}])
    strategy = ChainOfThought(shots=[{"prompt": "1+1=?", "completion": "2"}])
    [request], _ = play(strategy, [COMPLETIONS[:1]], chat)
    assert [m["content"] for m in request.prompt] == ["Be brief.", "1+1=?", "2", "2+2=?"]
    assert [m["role"] for m in request.prompt] == ["system", "user", "assistant", "user"]


def test_chain_of_thought_plain() -> None:
    strategy = ChainOfThought(shots=[{"prompt": "1+1=?", "completion": "2"}], trigger="Think.")
    [request], _ = play(strategy, [COMPLETIONS[:1]], Problem("2+2=?"))
    assert request.prompt == "1+1=?\n2\n\n2+2=?\nThink."
