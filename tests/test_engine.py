"""The engine on scripted backends: waves, replay, shared draws, budgets, failures, tools. `test_stream.py`: servers."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from posttrain_plugins.answers import candidates, canonical, choose, equivalent, extract, majority
from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.engine.keys import request_key
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.solve import sample, solve
from posttrain_plugins.engine.tools import schema_of
from posttrain_plugins.errors import BudgetExhausted, InputError, Interrupted, PluginBroken
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
                yield i, j, self.complete(request, seed, j)

    def complete(self, request: Generate, seed: int, j: int) -> Completion:
        """The prompt is read once for all completions of a request, so it counts on the first."""
        text = self.reply(request.prompt, seed)
        if text == "fail":
            return Completion("", finish_reason="error", error="scripted")
        return Completion(text, usage=Usage(prompt_tokens=0 if j else 10, completion_tokens=len(text)))


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


def test_half_a_character_and_a_cost_come_back_from_the_log(tmp_path: Path) -> None:
    with RequestLog(tmp_path / "log") as log:
        log.put("a", {"text": "\ud83d"}, cost=Usage(3, 4, calls=5), kind="score")
        log.put("b", 1.0)
    with RequestLog(tmp_path / "log") as log:
        assert log["a"] == {"text": "\ud83d"}
        assert (log.cost_of("a"), log.cost_of("b")) == (Usage(3, 4, calls=5), Usage())


def test_the_key_knows_all_but_how_many_and_what_for() -> None:
    def key(**fields: Any) -> str:
        return request_key(replace(Generate("p"), **fields), "model", "0", 0)

    same = [{}, {"n": 5}, {"purpose": "vote"}, {"params": SamplingParams(temperature=1, top_p=1)}]
    assert len({key(**fields) for fields in same}) == 1
    others: list[dict[str, Any]] = [
        {"prompt": "q"},
        {"model": "judge"},
        {"tools": ({"type": "function"},)},
        *(
            {"params": SamplingParams(**params)}
            for params in (
                {"temperature": 0.5},
                {"top_p": 0.5},
                {"max_tokens": 5},
                {"stop": ("a",)},
                {"logprobs": True},
                {"top_logprobs": 5},
                {"values": True},
                {"seed": 1},
            )
        ),
    ]
    assert len({key(**fields) for fields in [{}, *others]}) == 1 + len(others)


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


def greet(name: str, times: int = 1, loud: bool | None = None) -> str:
    """Say hello
    to somebody.

    At length.

    Args:
        name: whom to greet,
            by first name.
        times (int): how often.

    Returns:
        The greeting.
    """
    return f"hello {name} " * times


def test_a_strategys_tools_are_reached_and_shown() -> None:
    class Caller:
        tools = (greet,)

        def __call__(self, problem: Problem) -> Any:
            answers = yield [CallTool("greet", {"name": "Ann"}), CallTool("double", {"x": 2})]
            return Result(answer=(answers, problem.tools), text="")

    result = solve(Caller(), problems(1), backend=Dead(), tools={"double": lambda x: 2 * x})[0]
    answers, schemas = result.answer
    assert answers == ["hello Ann ", "4"]
    assert [schema["function"]["name"] for schema in schemas] == ["greet", "double"]
    assert schemas[0] == {
        "type": "function",
        "function": {
            "name": "greet",
            "description": "Say hello to somebody.",
            "parameters": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "whom to greet, by first name."},
                    "times": {"type": "integer", "description": "how often."},
                    "loud": {"type": "boolean"},
                },
                "required": ["name"],
            },
        },
    }
    json.dumps(schemas)


def test_tools_of_the_call_win_over_the_strategys() -> None:
    class Caller:
        tools: ClassVar[dict[str, Any]] = {"who": lambda: "strategy"}

        def __call__(self, problem: Problem) -> Any:
            answer = yield CallTool("who", {})
            return Result(answer=answer, text="")

    assert solve(Caller(), problems(1), backend=Dead())[0].answer == "strategy"
    assert solve(Caller(), problems(1), backend=Dead(), tools={"who": lambda: "caller"})[0].answer == "caller"
    with pytest.raises(InputError, match="cannot be called"):
        solve(Caller(), problems(1), backend=Dead(), tools={"who": "me"})


class Described:
    def __call__(self, rows: list[dict[str, float]], mode: Literal["a", "b"], x: int | str = 1, **more: Any) -> None:
        """No arguments are described."""


def test_schemas_of_annotations() -> None:
    parameters = schema_of("it", Described())["function"]["parameters"]
    assert parameters["properties"] == {
        "rows": {"type": "array", "items": {"type": "object"}},
        "mode": {"enum": ["a", "b"]},
        "x": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
    }
    assert parameters["required"] == ["rows", "mode"]
    assert schema_of("print", partial(int, base=2))["function"]["name"] == "print"


# --- What a backend must be able to do -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("prefill", Generate([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])),
        ("logprobs", Generate("q", params=SamplingParams(logprobs=True))),
        ("top_logprobs", Generate("q", params=SamplingParams(top_logprobs=5))),
        ("values", Generate("q", params=SamplingParams(values=True))),
        ("tools", Generate("q", tools=({"type": "function"},))),
    ],
)
def test_what_a_backend_cannot_do_is_refused_before_it_is_asked(name: str, request_: Generate) -> None:
    class Wants:
        def __call__(self, problem: Problem) -> Any:
            yield request_

    with pytest.raises(InputError, match=f"Wants asks model role 'policy'.*{name}=False") as caught:
        solve(Wants(), problems(1), backend=replace(Dead(), capabilities=Capabilities(**{name: False})))
    assert caught.value.hint
    able = Scripted(capabilities=Capabilities(**{name: True}))
    assert solve(Wants(), problems(1), backend=able)
    assert len(able.calls) == 1


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


@dataclass
class Judge:
    """A reward that asks an endpoint: it counts what the endpoint counts."""

    spent: Usage = field(default_factory=Usage)

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        for completion in completions:
            self.spent.prompt_tokens += 7 + len(completion)
            self.spent.completion_tokens += 3
            self.spent.calls += 1
        return [1.0] * len(completions)


def test_a_rewards_own_count_is_charged_exactly_and_once(tmp_path: Path) -> None:
    judge, log = Judge(), tmp_path / "log"
    scorers = {"rm": ResolvedReward("rm", judge)}
    backend = Scripted(lambda prompt, seed: "x" * (seed % 9))
    results = solve(BestOfN("rm", n=4), problems(3), backend=backend, scorers=scorers, log=log)
    found = sum((result.usage["rm"] for result in results), Usage())
    assert found == judge.spent
    assert found.calls > 3
    again = solve(BestOfN("rm", n=4), problems(3), backend=Dead(), scorers=scorers, log=log)
    cached = sum((result.usage["rm"] for result in again), Usage())
    assert cached == Usage(cached_tokens=found.total_tokens)
    assert found == judge.spent  # which was not asked again


def test_tokens_that_a_reward_reads_are_counted_per_problem(tmp_path: Path) -> None:
    class Reader(Recorded):
        def count_tokens(self, prompts: Any, completions: Any) -> int:
            return sum(len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True))

    scorers = {"rm": ResolvedReward("rm", Reader())}
    backend = Scripted(lambda prompt, seed: prompt[-1] * (1 + seed % 9))
    results = solve(BestOfN("rm", n=4), problems(3), backend=backend, scorers=scorers)
    for result in results:
        distinct = {candidate.text for candidate in result.candidates}
        assert result.usage["rm"] == Usage(sum(len("question 0") + len(text) for text in distinct), calls=1)


def test_a_greedy_draw_wanted_twice_in_a_round_is_drawn_and_paid_once() -> None:
    def strategy(problem: Problem) -> Any:
        [[a], [b]] = yield [Generate(problem.prompt, params=problem.params)] * 2
        return Result(answer=a.text == b.text, text=a.text)

    backend = Scripted(lambda *_: "four")
    result = solve(strategy, problems(1, temperature=0.0), backend=backend)[0]
    assert [len(call) for call in backend.calls] == [1]
    assert result.answer is True
    assert result.usage["policy"] == Usage(10, 4, cached_tokens=14, calls=1)


def test_completions_that_a_backend_leaves_out_are_failed_samples() -> None:
    class Lazy(Scripted):
        def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
            return (drawn for drawn in super().generate(batch, seeds) if drawn[1] != 1)

    result = solve(SelfConsistency(n=4), problems(1), backend=Lazy())[0]
    assert (len(result.candidates), result.stopped_by) == (3, None)
    [event] = result.trace
    assert event["completions"][1]["error"] == "the backend gave no completion"


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


def test_the_collectors_thresholds_are_as_before_whatever_happens() -> None:
    before, inside = gc.get_threshold(), []

    def strategy(problem: Problem) -> Any:
        inside.append(gc.get_threshold())
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        solve(strategy, problems(1), backend=Dead())
    assert inside[0][0] > before[0]
    assert gc.get_threshold() == before


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


def test_a_step_search_is_refused_where_the_end_of_a_step_cannot_be_told_from_the_end_of_the_answer() -> None:
    from posttrain_plugins.strategies.dvts import DVTS

    [result] = solve(
        SelfConsistency(n=2), [Problem("q")], backend=Scripted(capabilities=Capabilities(stop_reason=False))
    )
    assert result.text
    scorer = ResolvedReward("prm", Recorded())
    with pytest.raises(InputError, match="stop_reason=False") as caught:
        solve(
            DVTS(scorer="prm"),
            [Problem("q")],
            backend=Scripted(capabilities=Capabilities(stop_reason=False)),
            scorers={"prm": scorer},
        )
    assert "value_guided_search" in str(caught.value.hint)
