"""Rewards as scorers, what they cost, and tools with their schemas."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from scripted_backend import Dead, Recorded, Scripted, problems, texts

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.engine.tools import schema_of, use
from posttrain_plugins.errors import InputError, PluginBroken
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.types import (
    CallTool,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    Score,
    ScoreSteps,
    Usage,
)


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


def find(query: str, limit: int | None = None, kind: Literal["page", "file"] = "page", tags: list[str] = None) -> str:  # type: ignore[assignment]  # noqa: RUF013
    return f"{query} {limit} {kind} {tags}"


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ({"query": "x"}, "x None page None"),
        ({"query": "x", "limit": None, "tags": None}, "x None page None"),
        ({"query": "x", "limit": 2, "kind": "file", "tags": ["a"]}, "x 2 file ['a']"),
        ({}, "error: find: query is missing"),
        ({"query": 7}, "error: find: query is 7, expected str"),
        ({"query": "x", "limit": "2"}, "error: find: limit is '2', expected int | None"),
        ({"query": "x", "kind": "book"}, "error: find: kind is 'book', expected 'page' | 'file'"),
        ({"query": "x", "tags": [1]}, "error: find: tags is [1], expected list[str]"),
        (
            {"queries": "x"},
            "error: find: query is missing; no argument 'queries', expected one of: query, ",
        ),
    ],
)
def test_a_tool_is_called_with_what_it_declares(arguments: dict[str, Any], answer: str) -> None:
    assert use({"find": find}, CallTool("find", arguments)).startswith(answer)


def test_a_tool_may_take_anything_or_say_nothing() -> None:
    tools: dict[str, Any] = {
        "open": lambda **given: sorted(given),
        "plain": lambda a: a,
        "number": partial(float),
        "later": Later(),
    }
    calls = [("open", {"x": 1}), ("plain", {"a": "1"}), ("plain", {"b": 1}), ("number", {}), ("later", {"day": 1})]
    answers = [use(tools, CallTool(name, arguments)) for name, arguments in calls]
    assert answers == [
        "['x']",
        "1",
        "error: plain: a is missing; no argument 'b', expected one of: a",
        "0.0",
        "1",
    ]


class Later:
    def __call__(self, day: NotThere) -> Any:  # type: ignore[name-defined]  # noqa: F821
        return day


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
