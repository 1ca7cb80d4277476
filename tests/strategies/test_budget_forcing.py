"""Budget forcing: how often a model waits, and where its thinking is cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
from by_hand import FAILED, PLAIN, PROBLEM, ScriptedModel, answers, completions, play_by_hand

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.strategies.budget_forcing import BudgetForcing
from posttrain_plugins.types import Budget, Completion, Usage


def thinking(text: str, tokens: int = 4, ended: bool = True) -> list[Completion]:
    """A piece of thinking: ended by its tag, or cut off."""
    if ended:
        return completions(text, stop_reason="</think>", usage=Usage(completion_tokens=tokens))
    return completions(text, finish_reason="length", usage=Usage(completion_tokens=tokens))


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_budget_forcing_says_wait_exactly_so_often(waits: int) -> None:
    replies = [thinking(f"t{i}") for i in range(waits + 1)]
    asked, result = play_by_hand(
        BudgetForcing(waits=waits, max_tokens=99), [*replies, completions("answer is 4")], PLAIN
    )
    assert [request.prompt.count("\nWait") for request in asked] == [*range(waits + 1), waits]
    assert [request.params.max_tokens for request in asked] == [*(99 - 4 * i for i in range(waits + 1)), 9]
    assert asked[-1].prompt.endswith(f"t{waits}</think>")
    assert "Final Answer" not in result.text
    assert (result.text.count("Wait"), result.answer) == (waits, "4")
    assert result.text == asked[-1].prompt.removeprefix(PLAIN.prompt) + "answer is 4"


def test_budget_forcing_waits_only_below_the_least_length() -> None:
    strategy = BudgetForcing(waits=5, min_tokens=8, max_tokens=99)
    asked, _ = play_by_hand(strategy, [thinking("a"), thinking("b"), answers(4)])
    assert len(asked) == 3
    assert asked[2].prompt[-1] == {"role": "assistant", "content": "a\nWaitb</think>"}


def test_budget_forcing_ends_thinking_that_is_too_long() -> None:
    strategy = BudgetForcing(start="<think>", waits=2, max_tokens=10)
    asked, result = play_by_hand(strategy, [thinking("a", 4), thinking("b", 6, ended=False), completions(" 4")], PLAIN)
    assert [request.params.max_tokens for request in asked] == [10, 6, 9]
    assert asked[2].prompt == "2+2=?<think>a\nWaitb</think>\nFinal Answer:"
    assert (result.answer, result.text) == ("4", "<think>a\nWaitb</think>\nFinal Answer: 4")
    assert [request.purpose for request in asked] == ["step", "step", "answer"]


def test_budget_forcing_takes_an_answer_without_the_tag() -> None:
    asked, result = play_by_hand(BudgetForcing(waits=1), [answers(5), answers(4)])
    assert len(asked) == 2
    assert (result.answer, result.text) == ("4", "so the answer is 5\nWaitso the answer is 4")


def test_budget_forcing_goes_on_from_a_prefill_of_the_problem() -> None:
    begun = replace(PROBLEM, prompt=[*PROBLEM.prompt, {"role": "assistant", "content": "<think>"}])
    asked, result = play_by_hand(BudgetForcing(waits=0), [thinking("a"), answers(4)], begun)
    assert asked[1].prompt[1:] == [{"role": "assistant", "content": "<think>a</think>"}]
    assert result.text == "a</think>so the answer is 4"


def test_budget_forcing_keeps_what_was_thought() -> None:
    result = play_by_hand(BudgetForcing(waits=0), [thinking("2+2 is 4\n4"), [FAILED]])[1]
    assert (result.text, result.answer) == ("2+2 is 4\n4", "4")
    replies = [Completion("2+2 is 4\n4", stop_reason="</think>", usage=Usage(1, 1))]
    backend = ScriptedModel(lambda _, draw: replies[draw])
    [result] = solve(BudgetForcing(), [PLAIN], backend=backend, budget=Budget(completions=1))
    assert (result.answer, result.stopped_by) == ("4", "completions")
