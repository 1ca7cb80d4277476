"""A request's key is seed, cache entry and log line: shared draws, replay, torn lines, noise."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from scripted_backend import Dead, Recorded, Scripted, problems, texts, two_waves

from posttrain_plugins.engine.keys import draw_key, request_key, seed_of
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.solve import sample, solve
from posttrain_plugins.errors import InputError
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.text.readers import current_reading, reading
from posttrain_plugins.types import (
    Completion,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    SamplingParams,
    Usage,
)


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
                {"top_k": 5},
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
    for ids in ("xx", ("1", "")):  # the second one's place is "1"
        with pytest.raises(InputError, match="same id"):
            sample([Problem("a", id=ids[0]), Problem("b", id=ids[1])], 1, backend=Scripted())


def test_a_problem_without_an_id_is_its_place() -> None:
    def drawn(*ids: str) -> list[list[str]]:
        return texts(sample([Problem("a", id=id) for id in ids], 2, backend=Scripted()))

    assert drawn("", "", "x") == drawn("0", "1", "x")
    assert drawn("", "")[0] != drawn("", "")[1]  # one question twice is two problems


def test_rng_is_the_problems_own_and_the_same_in_a_replay() -> None:
    def strategy(problem: Problem) -> Any:
        yield []
        return Result(answer=problem.rng.random(), text="")

    first, again = ([r.answer for r in solve(strategy, problems(2), backend=Dead())] for _ in range(2))
    assert first == again
    assert first[0] != first[1]


def test_keys_are_the_hashes_of_json_and_the_same_as_ever() -> None:
    prompt = [{"role": "user", "content": "é?"}]
    request = Generate(prompt, params=SamplingParams(temperature=1, stop=("a",)))
    params = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 1024, "stop": ["a"], "seed": None, "logprobs": False}
    parts = ["completion", "policy", "model", prompt, params, "0", 3]
    base = request_key(request, "model", "0", 3)
    assert base == hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    # a log of last month is read by these, and a run of last month drawn again
    assert base == "3748c79d52bca72a07dccd5aacfbefb7fe123eca447fb7a1f1483a2b7255c117"
    assert seed_of(draw_key(base, 2)) == 7886960433115838701


@pytest.mark.parametrize(
    "completion",
    [
        Completion("plain"),
        Completion('"quoted" \\ é \n\t\u2028 \U0001f600', "length", Usage(3, 4, 5, calls=1), stop_reason='";'),
        Completion(
            "all",
            "tool_calls",
            Usage(1, 2),
            token_ids=[1, 2],
            logprobs=[-0.5, -1.25],
            confidences=[0.5, 0.25],
            value=-0.5,
            tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"x": "é"}}}],
        ),
        Completion("", stop_reason=""),
        Completion("a third party's", None, Usage(1, 2)),  # type: ignore[arg-type]
    ],
)
def test_a_line_is_the_json_of_its_entry(completion: Completion, tmp_path: Path) -> None:
    """It is written by hand; a log of last month looks the same."""
    about: dict[str, Any] = {"kind": "completion", "model": 'a "role"', "problem": "é", "id": 7}
    with RequestLog(tmp_path / "log.jsonl") as log:
        log.put("key", completion, Usage(7, 8, calls=9), **about)
    usage = {name: count for name in Usage.__slots__ if (count := getattr(completion.usage, name))}
    value = {"text": completion.text, "finish_reason": completion.finish_reason, "usage": usage}
    names = ("token_ids", "logprobs", "stop_reason", "confidences", "value", "tool_calls")
    value |= {name: found for name in names if (found := getattr(completion, name)) is not None}
    expected = json.dumps({"key": "key", **about, "cost": [7, 8, 9], "value": value}, ensure_ascii=False)
    assert (tmp_path / "log.jsonl").read_text(encoding="utf-8") == f"{expected}\n"
    with RequestLog(tmp_path / "log.jsonl") as log:
        assert log.completion("key") == completion


def test_a_generator_is_seeded_when_it_is_asked_for() -> None:
    """By the same text as ever, and a copy that is asked first has the same noise."""
    expected = random.Random("3:name").random()
    posed = Problem("2+2=", id="name").seeded("3:name")
    assert replace(posed, id="copy").rng.random() == expected
    assert Problem("2+2=").seeded("3:name").rng.random() == expected
    assert copy.deepcopy(Problem("2+2=").seeded("3:name")).rng.random() == expected
    with pytest.raises(AttributeError, match="nothing"):
        posed.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert [one.name for one in fields(Problem)] == ["prompt", "params", "id", "rng", "tools"]


def test_what_a_strategy_lays_around_its_yields_stays_its_own() -> None:
    seen = []

    def boxed(problem: Problem) -> Any:
        with reading("boxed"):
            yield Generate(problem.prompt)
        return Result(answer=None, text="")

    def plain(problem: Problem) -> Any:
        seen.append(current_reading().reader)
        yield Generate(problem.prompt)
        seen.append(current_reading().reader)
        return Result(answer=None, text="")

    def either(problem: Problem) -> Any:
        return (plain if problem.id == "1" else boxed)(problem)

    solve(either, problems(2), backend=Scripted())
    assert seen == ["auto", "auto"]
