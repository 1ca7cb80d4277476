"""Limits for a problem and for all: what is refused, what counts, the best result so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scripted_backend import Dead, Recorded, Scripted, problems, texts, two_waves

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import BudgetExhausted
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.types import (
    Budget,
    Completion,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    SamplingParams,
    Score,
    Usage,
)


def test_the_completion_budget_is_exact_and_ends_with_the_majority() -> None:
    replies = {"n": 0}

    def reply(prompt: Any, seed: int) -> str:
        replies["n"] += 1
        return f"answer is {[1, 2, 2, 3][replies['n'] - 1]}"

    result = solve(SelfConsistency(n=8), problems(1), backend=Scripted(reply), budget=Budget(completions=4))[0]
    assert (result.answer, result.stopped_by, len(result.candidates)) == ("2", "completions", 4)


def test_a_budget_of_n_completions_leaves_room_to_score_them() -> None:
    scorers = {"rm": ResolvedReward("rm", Recorded())}
    result = solve(BestOfN("rm", n=4), problems(1), backend=Scripted(), scorers=scorers, budget=Budget(completions=4))[
        0
    ]
    assert result.stopped_by is None
    assert all(candidate.score for candidate in result.candidates)


def test_calls_and_tokens_stop_the_next_request_and_replay_the_same(tmp_path: Path) -> None:
    for budget in (Budget(calls=1), Budget(tokens=5), Budget(seconds=0.0)):
        log = tmp_path / str(budget)
        result = solve(two_waves, problems(1), backend=Scripted(), budget=budget, log=log)[0]
        again = solve(two_waves, problems(1), backend=Dead(), budget=budget, log=log)[0]
        assert result.stopped_by == again.stopped_by != None  # noqa: E711
        assert texts([result]) == texts([again])
        assert len(result.candidates) == (0 if budget.seconds == 0 else 2)


def test_the_total_budget_is_shared() -> None:
    results = solve(SelfConsistency(n=4), problems(4), backend=Scripted(), total_budget=Budget(completions=10))
    assert [len(result.candidates) for result in results] == [4, 4, 2, 0]
    assert [result.stopped_by for result in results] == [None, None, "completions", "completions"]


def test_a_strategy_may_catch_the_budget_but_not_go_on() -> None:
    def graceful(problem: Problem) -> Any:
        try:
            yield Generate(problem.prompt, n=4)
        except BudgetExhausted:
            return Result(answer="caught", text="mine")

    def stubborn(problem: Problem) -> Any:
        while True:
            try:
                yield Generate(problem.prompt, n=4)
            except BudgetExhausted:
                continue

    caught = solve(graceful, problems(1), backend=Scripted(), budget=Budget(completions=1))[0]
    assert (caught.answer, caught.stopped_by) == ("caught", "completions")
    ended = solve(stubborn, problems(1), backend=Scripted(), budget=Budget(completions=6))[0]
    assert (ended.stopped_by, len(ended.candidates)) == ("completions", 6)


def test_the_best_score_wins_when_the_budget_ends() -> None:
    def strategy(problem: Problem) -> Any:
        drawn = yield Generate(problem.prompt, n=4)
        yield Score(problem.prompt, tuple(completion.text for completion in drawn), "rm")
        yield Generate(problem.prompt)

    scorers = {"rm": ResolvedReward("rm", Recorded())}
    reply: Callable[[Any, int], str] = lambda prompt, seed: "x" * (seed % 50)  # noqa: E731
    result = solve(strategy, problems(1), backend=Scripted(reply), scorers=scorers, budget=Budget(completions=4))[0]
    assert len(result.text) == max(len(candidate.text) for candidate in result.candidates)


def test_a_spent_total_of_tokens_ends_the_wave_and_a_replay_the_same(tmp_path: Path) -> None:
    log = tmp_path / "log"
    options: dict[str, Any] = {"total_budget": Budget(tokens=60), "log": log}
    results = solve(SelfConsistency(n=2), problems(9), backend=Scripted(lambda *_: "answer is 1"), **options)
    spent = sum(result.usage["policy"].total_tokens for result in results)
    assert 60 <= spent < 60 + 21  # one completion more at most
    assert [result.answer for result in results] == ["1", "1", None, None, None, None, None, None, None]
    assert results[8].stopped_by == "tokens"
    again = solve(SelfConsistency(n=2), problems(9), backend=Dead(), **options)
    assert texts(again) == texts(results)
    assert [result.stopped_by for result in again] == [result.stopped_by for result in results]


def test_what_a_round_is_given_from_the_log_does_not_refuse_the_rest_of_it(tmp_path: Path) -> None:
    def strategy(problem: Problem) -> Any:
        drawn = yield [Generate(f"{problem.prompt} {i}", params=problem.params) for i in range(4)]
        yield Generate(problem.prompt)
        return Result(answer=len(drawn), text="all")

    options: dict[str, Any] = {"budget": Budget(tokens=20), "log": tmp_path / "log"}
    first = solve(strategy, problems(1), backend=Scripted(), **options)[0]
    again = solve(strategy, problems(1), backend=Dead(), **options)[0]
    assert len(first.trace[0]["completions"]) == 1
    assert (first.text, first.stopped_by, len(first.trace)) == (again.text, again.stopped_by, len(again.trace))
    assert len(first.trace) == 4
    assert first.trace == again.trace


STEP = SamplingParams(stop=(";",))


@dataclass
class Stepwise(Scripted):
    """Steps that end at the stop string; the last of `count` ends the answer."""

    count: int = 3

    def complete(self, request: Generate, seed: int, j: int) -> Completion:
        done = str(request.prompt).count(";")
        text = "answer is 9" if done + 1 == self.count else f"s{done}"
        reason = None if done + 1 == self.count or not request.params.stop else ";"
        return Completion(text, usage=Usage(1, 1), stop_reason=reason)


def walk(problem: Problem) -> Any:
    path = ""
    while True:
        [completion] = yield Generate(problem.prompt + path, params=STEP)
        path += completion.text + (completion.stop_reason or "")
        if completion.stop_reason is None:
            yield Generate("what next?", purpose="value")
            yield Generate("what next?", model="judge")
            yield Generate("and then?")


@pytest.mark.parametrize(
    ("calls", "text"), [(1, "s0"), (2, "s0;s1"), (3, "s0;s1;answer is 9"), (5, "s0;s1;answer is 9")]
)
def test_best_so_far_is_a_finished_path_else_the_longest(calls: int, text: str) -> None:
    result = solve(walk, problems(1), backend=Stepwise(), budget=Budget(calls=calls))[0]
    assert (result.text, result.stopped_by) == (text, "calls")
    assert len(result.candidates) == 1


def test_a_path_in_messages_begins_with_its_prefill_but_not_with_the_problems_own() -> None:
    def strategy(problem: Problem) -> Any:
        begun = problem.prompt[-1]["content"] + "one;"
        yield Generate([*problem.prompt[:-1], {"role": "assistant", "content": begun}])
        yield Generate(problem.prompt)

    chat = Problem([{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>"}])
    result = solve(strategy, [chat], backend=Scripted(lambda *_: "two"), budget=Budget(calls=1))[0]
    assert result.text == "one;two"


def test_the_problems_own_stop_string_ends_an_answer() -> None:
    class Stops(Scripted):
        def complete(self, request: Generate, seed: int, j: int) -> Completion:
            return Completion(f"answer is {seed % 3}", stop_reason="#")

    result = solve(two_waves, problems(1, stop=("#",)), backend=Stops(), budget=Budget(calls=1))[0]
    assert len(result.candidates) == 2


def test_the_share_of_the_tightest_total_budget_is_told() -> None:
    told: list[float] = []
    solve(
        SelfConsistency(n=2),
        problems(4),
        backend=Scripted(),
        total_budget=Budget(completions=8, tokens=10**6),
        progress=lambda done, total, unit, figures: told.append(figures["budget_spent"]),
    )
    assert told[0] == 0.0
    assert told[-1] == 1.0
