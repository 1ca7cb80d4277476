"""The engine, on scripted backends: waves, replay, shared draws, budgets, failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.answers import candidates, canonical, choose, equivalent, extract, majority
from posttrain_plugins.errors import BudgetExhausted, InputError, Interrupted, PluginBroken
from posttrain_plugins.inference import Capabilities, RequestLog, sample, solve
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.types import (
    Budget,
    CallTool,
    Completion,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    SamplingParams,
    Score,
    ScoreSteps,
    Usage,
)


@dataclass
class Scripted:
    """Answers with `reply(prompt, seed)`, and remembers each call."""

    reply: Callable[[Any, int], str] = lambda prompt, seed: f"<answer>{seed % 1000}</answer>"
    identity: str = "scripted"
    capabilities: Capabilities = field(default_factory=Capabilities)
    calls: list[list[Generate]] = field(default_factory=list)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        self.calls.append(list(batch))
        for i, (request, of_request) in enumerate(zip(batch, seeds, strict=True)):
            assert request.n == len(of_request)
            for j, seed in enumerate(of_request):
                yield i, j, self._complete(request, seed)

    def _complete(self, request: Generate, seed: int) -> Completion:
        text = self.reply(request.prompt, seed)
        if text == "fail":
            return Completion("", finish_reason="error", error="scripted")
        return Completion(text, usage=Usage(prompt_tokens=10, completion_tokens=len(text)))


@dataclass
class Dead:
    """A backend that must not be asked."""

    identity: str = "scripted"
    capabilities: Capabilities = field(default_factory=Capabilities)

    def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
        raise AssertionError("the backend was asked")


@dataclass
class Recorded:
    """A reward that remembers what it was called with; longer is better."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        self.calls.append({"prompts": prompts, "completions": completions, **columns})
        return [float(len(str(completion))) for completion in completions]

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        self.calls.append({"prompts": prompts, "completions": completions, "steps": steps})
        return [[float(len(step)) for step in of_completion] for of_completion in steps]


def problems(count: int = 3, **params: Any) -> list[Problem]:
    return [Problem(f"question {i}", SamplingParams(**params), id=str(i)) for i in range(count)]


def two_waves(problem: Problem) -> Any:
    first = yield Generate(problem.prompt, n=2, params=problem.params)
    second = yield [Generate("again", params=problem.params), Generate(problem.prompt, params=problem.params)]
    among = candidates([*first, *second[0], *second[1]])
    return choose(among, 0)


def texts(results: list[Result]) -> list[list[str]]:
    return [[candidate.text for candidate in result.candidates] for result in results]


# --- Waves -----------------------------------------------------------------------------------------------------------


def test_one_wave_is_one_call_for_all_problems() -> None:
    backend = Scripted()
    solve(SelfConsistency(n=4), problems(50), backend=backend)
    assert [len(call) for call in backend.calls] == [50]
    assert {request.n for request in backend.calls[0]} == {4}


def test_a_list_is_answered_by_a_list_and_two_waves_are_two_calls() -> None:
    backend = Scripted()
    results = solve(two_waves, problems(3), backend=backend)
    assert [len(call) for call in backend.calls] == [3, 6]
    assert [len(row) for row in texts(results)] == [4, 4, 4]


def test_repeated_equal_requests_are_different_draws() -> None:
    row = texts(solve(two_waves, problems(1), backend=Scripted()))[0]
    assert len(set(row)) == 4


def test_an_empty_list_is_answered_by_an_empty_list() -> None:
    def strategy(problem: Problem) -> Any:
        nothing = yield []
        assert nothing == []
        return Result(answer="a", text="a")

    assert solve(strategy, problems(1), backend=Dead())[0].answer == "a"


def test_roles_have_backends_of_their_own() -> None:
    def strategy(problem: Problem) -> Any:
        [[mine], [judged]] = yield [Generate("p"), Generate("p", model="judge")]
        return Result(answer=(mine.text, judged.text), text=mine.text)

    backends = {"policy": Scripted(lambda *_: "me"), "judge": Scripted(lambda *_: "you")}
    result = solve(strategy, problems(1), backend=backends)[0]
    assert result.answer == ("me", "you")
    assert set(result.usage) == {"policy", "judge"}
    with pytest.raises(InputError, match="judge"):
        solve(strategy, problems(1), backend={"policy": Scripted()})


# --- Keys, log, replay -----------------------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    first, again, other = (texts(sample(problems(), 4, backend=Scripted(), seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_params_seed_fixes_the_noise_whatever_the_runs_seed() -> None:
    first, other = (texts(sample(problems(1, seed=5), 4, backend=Scripted(), seed=seed)) for seed in (0, 1))
    assert first == other
    assert len(set(first[0])) == 4


def test_strategies_share_their_draws(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    voted = solve(SelfConsistency(n=8), problems(), backend=Scripted(), log=log)
    scorers = {"rm": ResolvedReward("rm", Recorded())}
    best = solve(BestOfN("rm", n=8), problems(), backend=Dead(), scorers=scorers, log=log)
    assert texts(voted) == texts(best)
    assert best[0].usage["policy"].calls == best[0].usage["policy"].total_tokens == 0
    assert best[0].usage["policy"].cached_tokens == voted[0].usage["policy"].total_tokens


def test_fewer_draws_are_the_first_of_more(tmp_path: Path) -> None:
    four = texts(sample(problems(), 4, backend=Scripted()))
    eight = texts(sample(problems(), 8, backend=Scripted()))
    assert [row[:4] for row in eight] == four


def test_replay_from_the_log_asks_nobody(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    first = solve(two_waves, problems(), backend=Scripted(), log=log)
    size = log.stat().st_size
    again = solve(two_waves, problems(), backend=Dead(), log=log)
    assert texts(first) == texts(again)
    assert log.stat().st_size == size


def test_a_killed_run_goes_on_from_a_torn_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    whole = solve(two_waves, problems(), backend=Scripted(), log=log)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    backend = Scripted()
    again = solve(two_waves, problems(), backend=backend, log=log)
    assert texts(again) == texts(whole)
    assert sum(request.n for call in backend.calls for request in call) == len(lines) - 7
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_a_broken_line_inside_the_log_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"key": "a", "value": 1}\nnonsense\n{"key": "b", "value": 1}\n')
    with pytest.raises(InputError, match=":2"):
        RequestLog(log)


def test_greedy_requests_are_one_draw() -> None:
    backend = Scripted()
    row = texts(sample(problems(1, temperature=0.0), 8, backend=backend))[0]
    assert len(row) == 8
    assert len(set(row)) == 1
    assert backend.calls[0][0].n == 1


def test_two_problems_with_one_id_are_refused() -> None:
    with pytest.raises(InputError, match="same id"):
        sample([Problem("a"), Problem("b")], 1, backend=Scripted())


# --- Scores and tools ------------------------------------------------------------------------------------------------


def test_scores_are_one_call_in_trls_signature_with_the_columns() -> None:
    reward = Recorded()
    chat = [replace(p, prompt=[{"role": "user", "content": p.prompt}]) for p in problems(3)]
    scorers = {"rm": ResolvedReward("rm", reward)}
    backend = Scripted(lambda prompt, seed: f"{seed}")
    results = solve(BestOfN("rm", n=2), chat, backend=backend, scorers=scorers, columns={"solution": ["a", "b", "c"]})
    [call] = reward.calls
    assert call["prompts"] == [p.prompt for p in chat for _ in range(2)]
    assert call["solution"] == ["a", "a", "b", "b", "c", "c"]
    assert call["completions"][0] == [{"role": "assistant", "content": texts(results)[0][0]}]


def test_an_equal_completion_is_scored_once() -> None:
    reward = Recorded()
    scorers = {"rm": ResolvedReward("rm", reward)}
    solve(BestOfN("rm", n=8), problems(2), backend=Scripted(lambda *_: "same"), scorers=scorers)
    assert len(reward.calls[0]["completions"]) == 2


def test_steps_are_scored_joined_and_apart() -> None:
    reward = Recorded()

    def strategy(problem: Problem) -> Any:
        scores = yield ScoreSteps(problem.prompt, (("a;", "bcd"), ("e",)))
        return Result(answer=scores, text="")

    result = solve(strategy, problems(1), backend=Dead(), scorers={"prm": ResolvedReward("prm", reward)})[0]
    assert result.answer == [[2.0, 3.0], [1.0]]
    assert reward.calls[0]["completions"] == ["a;bcd", "e"]


async def patient(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return [None if completion == "a" else float("nan") for completion in completions]


def test_async_rewards_work_and_nan_is_none() -> None:
    def strategy(problem: Problem) -> Any:
        scores = yield Score(problem.prompt, ("a", "b"))
        return Result(answer=scores, text="")

    scorers = {"reward": ResolvedReward("patient", patient)}
    assert solve(strategy, problems(1), backend=Dead(), scorers=scorers)[0].answer == [None, None]


@pytest.mark.parametrize("func", [lambda **_: [1.0, 2.0, 3.0], lambda **_: 1 / 0])
def test_a_broken_reward_stops_the_run(func: Any) -> None:
    with pytest.raises(PluginBroken, match="'rm'"):
        solve(BestOfN("rm", n=2), problems(1), backend=Scripted(), scorers={"rm": ResolvedReward("rm", func)})


def test_an_unknown_scorer_is_named() -> None:
    with pytest.raises(InputError, match="no scorer 'rm'"):
        solve(BestOfN("rm", n=2), problems(1), backend=Scripted())


def test_tools_answer_in_text_even_when_they_fail(tmp_path: Path) -> None:
    def strategy(problem: Problem) -> Any:
        answers = yield [CallTool("add", {"a": 1, "b": 2}), CallTool("add", {"a": "x", "b": 2}), CallTool("nix", {})]
        return Result(answer=answers, text="")

    tools = {"add": lambda a, b: a + b}
    run = solve(strategy, problems(1), backend=Dead(), tools=tools, log=tmp_path / "log")[0]
    assert run.answer[0] == "3"
    assert run.answer[1].startswith("error: TypeError")
    assert "no tool 'nix'" in run.answer[2]
    assert solve(strategy, problems(1), backend=Dead(), log=tmp_path / "log")[0].answer == run.answer


# --- Failures and budgets --------------------------------------------------------------------------------------------


def test_a_failed_sample_is_one_failed_sample_and_is_tried_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    flaky = Scripted(lambda prompt, seed: "fail" if seed % 2 else "<answer>4</answer>")
    result = solve(SelfConsistency(n=8), problems(1), backend=flaky, log=log)[0]
    assert result.answer == "4"
    assert 0 < len(result.candidates) < 8
    again = solve(SelfConsistency(n=8), problems(1), backend=Scripted(lambda *_: "<answer>4</answer>"), log=log)[0]
    assert len(again.candidates) == 8


def test_all_samples_failed_is_an_empty_result() -> None:
    result = solve(SelfConsistency(n=2), problems(1), backend=Scripted(lambda *_: "fail"))[0]
    assert (result.answer, result.text, result.error) == (None, "", None)


def test_a_strategy_that_raises_hurts_its_own_problem_only() -> None:
    def strategy(problem: Problem) -> Any:
        [completion] = yield Generate(problem.prompt)
        if problem.id == "1":
            raise ValueError("oh")
        return Result(answer="ok", text=completion.text)

    results = solve(strategy, problems(3), backend=Scripted())
    assert [result.answer for result in results] == ["ok", None, "ok"]
    assert results[1].error == "ValueError: oh"


@pytest.mark.parametrize("wrong", ["text", None, [1]])
def test_what_is_no_request_is_an_error_of_that_problem(wrong: Any) -> None:
    def strategy(problem: Problem) -> Any:
        yield wrong

    assert "expected a request" in str(solve(strategy, problems(1), backend=Dead())[0].error)


def test_errors_of_a_backend_surface() -> None:
    with pytest.raises(AssertionError, match="was asked"):
        solve(SelfConsistency(), problems(1), backend=Dead())


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


def test_usage_is_counted_by_role() -> None:
    scorers = {"rm": ResolvedReward("rm", Recorded())}
    result = solve(BestOfN("rm", n=3), problems(1), backend=Scripted(lambda *_: "four"), scorers=scorers)[0]
    assert result.usage == {"policy": Usage(10, 12, 0, 1), "rm": Usage(0, 0, 0, 1)}


def test_should_stop_interrupts_between_completions_and_the_log_keeps_them(tmp_path: Path) -> None:
    log = tmp_path / "log"
    backend = Scripted()
    asked = iter(range(100))
    with pytest.raises(Interrupted):
        sample(problems(4), 2, backend=backend, log=log, should_stop=lambda: next(asked) >= 3)
    assert len(log.read_text().splitlines()) == 3
    again = Scripted()
    assert texts(sample(problems(4), 2, backend=again, log=log)) == texts(sample(problems(4), 2, backend=Scripted()))
    assert sum(request.n for request in again.calls[0]) == 5


def test_progress_ends_with_all_problems() -> None:
    told: list[tuple[int, int | None, str]] = []
    solve(two_waves, problems(3), backend=Scripted(), progress=lambda *args: told.append(args[:3]))
    assert told[0] == (0, 3, "problem")
    assert told[-1] == (3, 3, "problem")


def test_rng_is_the_problems_own_and_the_same_in_a_replay() -> None:
    def strategy(problem: Problem) -> Any:
        yield []
        return Result(answer=problem.rng.random(), text="")

    first, again = ([r.answer for r in solve(strategy, problems(2), backend=Dead())] for _ in range(2))
    assert first == again
    assert first[0] != first[1]


# --- Answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> no, <answer> 2 </answer>", "2"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{x_{1}}", "x_{1}"),
        ("The answer is 42.", "42"),
        ("I think\nFinal Answer: 3/4\nDone?", "3/4"),
        ("reason\n#### 1,234", "1,234"),
        ("3|7=4;4>2=4\n4", "4"),
        ("7", "7"),
        ("-3.5", "-3.5"),
        ("3|7=4;4>", None),
        (r"\boxed{1", None),
        ("<answer></answer>", None),
        ("", None),
        ("\n\n", None),
        ("I went to the shop and then I went home again, which took a while.", None),
    ],
)
def test_extract(text: str, answer: str | None) -> None:
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("0.5", r"\frac{1}{2}", True),
        ("1,000", "1000.0", True),
        ("$7$", "+7", True),
        (r"\text{Paris}", "paris.", True),
        ("4", "5", False),
        ("1/0", "0", False),
        ("1e3", "1000", True),
        ("9" * 5000, "1", False),
    ],
)
def test_equivalent(a: str, b: str, same: bool) -> None:
    assert equivalent(a, b) is equivalent(b, a) is same
    assert canonical(canonical(a)) == canonical(a)


def test_majority() -> None:
    assert majority(["1", "2", "2.0", None]) == 1
    assert majority(["1", "2"]) == 0  # the first seen wins a tie
    assert majority(["1", "2", "2"], weights=[5.0, 1.0, 1.0]) == 0
    assert majority([None, None]) is majority([]) is None
