"""Compute-optimal: difficulty, the pilot's draws, calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from by_hand import FAILED, PLAIN, PROBLEM, ScriptedModel, answers, completions, play_by_hand, user_text

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.strategies.chain_of_thought import ChainOfThought
from posttrain_plugins.strategies.compute_optimal import ComputeOptimal, calibrate, vote_entropy
from posttrain_plugins.strategies.episodic_memory import EpisodicMemory
from posttrain_plugins.strategies.greedy import Greedy
from posttrain_plugins.strategies.react import ReAct
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.types import Completion, Generate, Problem, Result, Score


def add(a: int, b: int = 0) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


def test_vote_entropy() -> None:
    assert vote_entropy(["4", "4.0", "4", None]) == pytest.approx((0.75 * math.log2(4 / 3) + 0.25 * 2) / 2)
    assert vote_entropy([None, None]) == 1.0
    assert vote_entropy([]) == math.inf
    assert (vote_entropy(["4"]), vote_entropy([None])) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("pilot", "asks"),
    [
        (answers(4, 4), "greedy"),
        (answers(4, 5), "self_consistency"),
        ([FAILED, FAILED], "self_consistency"),
        ([FAILED, *answers(4)], "greedy"),
    ],
)
def test_compute_optimal_by_the_entropy_of_votes(pilot: list[Completion], asks: str) -> None:
    strategy = ComputeOptimal([Greedy(), SelfConsistency(n=6)], [0.5], n0=2)
    asked, result = play_by_hand(strategy, [pilot, [answers(7)] if asks == "greedy" else [answers(7, 7, 7, 7)]])
    assert asked[0] == Generate(PROBLEM.prompt, n=2, params=PROBLEM.params)
    [request] = asked[1]
    assert (request.params.temperature, request.n) == ((0.0, 1) if asks == "greedy" else (0.7, 4))
    assert result.answer == "7"


@pytest.mark.parametrize(
    ("scores", "asks"), [([0.9, 0.7], ["2+2=?"]), ([0.5, None], ["think"]), ([0.1, 0.1], []), ([None, None], [])]
)
def test_compute_optimal_by_a_scorer(scores: list[float | None], asks: list[str]) -> None:
    """The hardest get two samples, which the pilot has drawn already."""
    strategies = [Greedy(), ChainOfThought(trigger="think"), SelfConsistency(n=2)]
    strategy = ComputeOptimal(strategies, [0.4, 0.6], n0=2, scorer="rm")
    asked, _ = play_by_hand(strategy, [answers(4, 5), scores, *([answers(7)] for _ in asks)])
    assert asked[1] == Score(PROBLEM.prompt, ("so the answer is 4", "so the answer is 5"), "rm")
    assert [user_text(wave[0]).splitlines()[-1] for wave in asked[2:]] == asks


def test_compute_optimal_shares_the_pilots_draws() -> None:
    """The chosen strategy sees the very completions that it would have drawn alone."""
    backend = ScriptedModel(lambda request, draw: f"answer is {draw % 7}")
    alone = solve(SelfConsistency(n=8), [PLAIN], backend=backend)[0]
    other = ScriptedModel(backend.reply)
    [result] = solve(ComputeOptimal([Greedy(), SelfConsistency(n=8)], [0.1], n0=3), [PLAIN], backend=other)
    assert [c.text for c in result.candidates] == [c.text for c in alone.candidates]
    assert len(other.asked) == 8


def test_compute_optimal_hands_on_lists_budgets_and_ends() -> None:
    @dataclass
    class Wide:
        """The pilot's request twice, and another one, in one wave; then it takes the news of the budget."""

        def __call__(self, problem: Problem) -> Any:
            same = Generate(problem.prompt, n=2, params=problem.params)
            [one, two, [other]] = yield [same, same, Generate("other")]
            nothing = yield []
            try:
                yield Generate("more")
            except BudgetExhausted:
                return Result(answer=[c.text for c in (*one, *two, other)], text=str(nothing))

    steps = ComputeOptimal([Wide()], [], n0=3)(PLAIN)
    next(steps)
    [rest, other] = steps.send(completions("a", "b", "c"))
    assert (rest.n, other.prompt) == (1, "other")
    assert steps.send([completions("d"), completions("e")]) == [Generate("more")]
    with pytest.raises(StopIteration) as stop:
        steps.throw(BudgetExhausted("spent"))
    assert (stop.value.value.answer, stop.value.value.text) == (["a", "b", "c", "d", "e"], "[]")


def test_compute_optimal_refuses_and_hands_on_tools() -> None:
    with pytest.raises(InputError, match="2 strategies and 0 thresholds"):
        ComputeOptimal([Greedy(), Greedy()], [])
    with pytest.raises(InputError, match="ascend"):
        ComputeOptimal([Greedy(), Greedy(), Greedy()], [0.5, 0.1])
    memory = EpisodicMemory()
    memory._memory["a", "b"] = None
    strategy = ComputeOptimal([ReAct(tools=[add]), memory], [0.5])
    assert sorted(strategy.tools) == ["add", "recall_reflections"]
    strategy.begin_run()
    assert not memory._memory


def test_calibrate() -> None:
    difficulties = [0.9, 0.1, 0.5, 0.1, 0.5, 0.9]
    accuracies = {"cheap": [0, 1, 0, 1, 1, 0], "wide": [0, 1, 1, 1, 1, 0], "deep": [1, 0, 1, 0, 0, 0]}
    assert calibrate(difficulties, accuracies, bins=3) == (["cheap", "wide", "deep"], [0.5, 0.9])
    assert calibrate(difficulties, {"wide": accuracies["wide"]}) == (["wide"], [])
    assert calibrate([0.3] * 4, {"a": [0] * 4, "b": [1] * 4}) == (["b"], [])  # one difficulty cannot be parted
    strategies, thresholds = calibrate(difficulties, accuracies, bins=3)
    ComputeOptimal(list(strategies), thresholds)
    with pytest.raises(InputError, match="2 of a"):
        calibrate([0.1], {"a": [1, 1]})
