"""The engine on servers: the same results as in waves, no barrier, desks for scorers, cuts, kills, exact usage."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.backends.protocol import AsyncBackend, Backend, Capabilities
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import InputError, Interrupted, PluginBroken
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
    Score,
    ScoreSteps,
    Usage,
)

PATIENCE_S = 20.0  # a test that waits so long has failed

Reply = Callable[[Any, int], str]


@dataclass
class Counted:
    """What a server would say it has done; `words` draws."""

    words: Reply = lambda prompt, seed: f"<answer>{seed % 7}</answer>"
    identity: str = "model"
    capabilities: Capabilities = field(default_factory=Capabilities)
    served: Usage = field(default_factory=Usage)
    asked: list[Generate] = field(default_factory=list)

    def draw(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
        self.asked.append(request)
        self.served.calls += 1
        return [self._complete(request, seed, j) for j, seed in enumerate(seeds)]

    def _complete(self, request: Generate, seed: int, j: int) -> Completion:
        text = self.words(request.prompt, seed)
        read = 0 if j else len(str(request.prompt))
        self.served.prompt_tokens += read
        self.served.completion_tokens += len(text)
        if text == "fail":
            return Completion("", finish_reason="error", error="scripted", usage=Usage(read, len(text)))
        return Completion(text, usage=Usage(read, len(text)))


class Batched(Counted):
    """In this process: whole waves."""

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        for i, (request, of_request) in enumerate(zip(batch, seeds, strict=True)):
            for j, completion in enumerate(self.draw(request, of_request)):
                yield i, j, completion


@dataclass
class Served(Counted):
    """On a server: one request at a time, answered after some turns of the event loop, in any order."""

    closed: int = 0

    async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
        assert request.n == len(seeds)
        for _ in range(seeds[0] % 5):
            await asyncio.sleep(0)
        return self.draw(request, seeds)

    async def aclose(self) -> None:
        self.closed += 1


DRIVERS = pytest.mark.parametrize("kind", [Batched, Served])


@dataclass
class Judge:
    """A reward that asks an endpoint of its own; longer is better."""

    spent: Usage = field(default_factory=Usage)

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        self.spent.prompt_tokens += sum(map(len, completions))
        self.spent.completion_tokens += 3 * len(completions)
        self.spent.calls += len(completions)
        return [float(len(completion)) for completion in completions]


class Steps:
    """A process reward model in this process."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [0.0] * len(completions)

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        self.read += sum(map(len, completions))
        return [[len(step) / 9 for step in of_completion] for of_completion in steps]

    def count_tokens(self, prompts: Any, completions: Any) -> int:
        return sum(map(len, completions))


def scorers() -> dict[str, ResolvedReward]:
    return {"judge": ResolvedReward("judge", Judge()), "prm": ResolvedReward("prm", Steps())}


def problems(count: int = 5) -> list[Problem]:
    return [Problem(f"question {i}", id=str(i)) for i in range(count)]


def search(problem: Problem) -> Any:
    """Several rounds of everything: a list, a role, both kinds of scores, a tool; the number of rounds differs."""
    among = []
    for step in range(2 + int(problem.id) % 3):
        drawn, [comment] = yield [
            Generate(problem.prompt, n=3, params=problem.params),
            Generate(f"comment {step}: {problem.prompt}", model="critic", purpose="feedback"),
        ]
        among += candidates(drawn)
        answers = yield [
            Score(problem.prompt, tuple(candidate.text for candidate in among), "judge"),
            ScoreSteps(problem.prompt, tuple((c.text[:3], c.text[3:]) for c in among), "prm"),
            CallTool("shout", {"text": comment.text}),
        ]
        for candidate, score in zip(among, answers[0], strict=True):
            candidate.score = score
    return choose(among, max(range(len(among)), key=lambda i: (among[i].score, i)))


TOOLS: dict[str, Callable[..., Any]] = {"shout": lambda text: text.upper()}


def run(kind: type[Counted], strategy: Any = search, **options: Any) -> list[Result]:
    return solve(strategy, problems(), **{"backend": kind(), "scorers": scorers(), "tools": TOOLS, **options})


# --- Two drivers, one result -----------------------------------------------------------------------------------------


def test_the_protocols_tell_the_backends_apart() -> None:
    assert isinstance(Served(), AsyncBackend)
    assert not isinstance(Served(), Backend)
    assert isinstance(Batched(), Backend)


@pytest.mark.parametrize("strategy", [search, SelfConsistency(n=4), BestOfN("judge", n=3)])
@pytest.mark.parametrize("budget", [None, Budget(tokens=150), Budget(calls=4), Budget(completions=5)])
def test_both_drivers_give_the_same(tmp_path: Path, strategy: Any, budget: Budget | None) -> None:
    told: dict[type[Counted], list[tuple[Any, ...]]] = {Batched: [], Served: []}
    waves, stream = (
        run(kind, strategy, budget=budget, log=tmp_path / kind.__name__, progress=lambda *a, k=kind: told[k].append(a))
        for kind in (Batched, Served)
    )
    assert waves == stream  # answers, candidates, usage, trace
    assert any(result.candidates for result in waves)
    logs = [sorted((tmp_path / kind.__name__).read_text().splitlines()) for kind in (Batched, Served)]
    assert logs[0] == logs[1]
    for calls in told.values():
        assert calls[0][:3] == (0, 5, "problem")
        assert calls[-1][:3] == (5, 5, "problem")
    assert told[Batched][-1][3]["completions"] == told[Served][-1][3]["completions"] > 0


def test_either_drivers_log_replays_in_the_other(tmp_path: Path) -> None:
    first = run(Served, log=tmp_path / "log")
    nobody = Batched(words=lambda *_: pytest.fail("the backend was asked"))
    again = run(Batched, backend=nobody, log=tmp_path / "log")
    assert [(r.answer, r.text, r.trace) for r in again] == [(r.answer, r.text, r.trace) for r in first]
    spent = sum((usage for result in again for usage in result.usage.values()), Usage())
    paid = sum((usage for result in first for usage in result.usage.values()), Usage())
    assert (spent.total_tokens, spent.calls) == (0, 0)
    assert spent.cached_tokens == paid.total_tokens + paid.cached_tokens


def test_a_server_and_a_model_in_this_process_work_together() -> None:
    policy, critic = Served(), Batched(identity="critic")
    mixed = run(Served, backend={"policy": policy, "critic": critic})
    alone = run(Batched, backend={"policy": Batched(), "critic": Batched(identity="critic")})
    assert mixed == alone
    assert {request.model for request in policy.asked} == {"policy"}
    assert {request.model for request in critic.asked} == {"critic"}


@DRIVERS
def test_it_works_inside_a_running_event_loop(kind: type[Counted]) -> None:
    async def notebook() -> list[Result]:
        return run(kind)

    assert asyncio.run(notebook()) == run(kind)


def test_ctrl_c_in_a_notebook_ends_the_run_in_its_thread() -> None:
    class Struck(Served):
        async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            self.asked.append(request)
            if len(self.asked) == 1:
                await asyncio.sleep(0.1)  # by now the notebook's thread waits
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(PATIENCE_S)
            raise AssertionError("not ended")

    async def notebook() -> None:
        try:
            run(Served, backend=Struck())
        except KeyboardInterrupt:
            raise Interrupted("by hand") from None

    loop = asyncio.new_event_loop()  # not `asyncio.run`, which takes Ctrl-C for itself; notebooks leave it to Python
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        with closing(loop), pytest.raises(Interrupted, match="by hand"):
            loop.run_until_complete(notebook())
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_backend_is_closed_in_its_own_loop_once_for_each_solve() -> None:
    backend = Served()
    for count in (1, 2):
        run(Served, backend={"policy": backend, "critic": backend})
        assert backend.closed == count


# --- No barrier ------------------------------------------------------------------------------------------------------


def test_a_quick_problem_does_not_wait_for_a_slow_one() -> None:
    """The slow one's first request is answered only after the quick one's last, which a barrier would never ask."""

    class Uneven(Served):
        async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            if request.prompt == "slow":
                await asyncio.wait_for(quick_is_done.wait(), PATIENCE_S)
            completions = self.draw(request, seeds)
            if sum(asked.prompt == "quick" for asked in self.asked) == 5:
                quick_is_done.set()
            return completions

    def five_rounds(problem: Problem) -> Any:
        for _ in range(5):
            [completion] = yield Generate(problem.prompt)
        return Result(answer=1, text=completion.text)

    quick_is_done = asyncio.Event()
    backend = Uneven()
    results = solve(five_rounds, [Problem("slow", id="0"), Problem("quick", id="1")], backend=backend)
    assert [result.answer for result in results] == [1, 1]
    assert [request.prompt for request in backend.asked] == ["quick"] * 5 + ["slow"] * 5


def test_what_queues_while_a_scorer_is_busy_is_its_next_call_and_servers_go_on_meanwhile() -> None:
    is_busy, may_end = threading.Event(), threading.Event()
    sizes: list[int] = []

    def slow_reward(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        sizes.append(len(completions))
        is_busy.set()
        assert may_end.wait(PATIENCE_S), "nothing was drawn while the scorer was at work"
        return [1.0] * len(completions)

    class AfterTheFirst(Served):
        async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            if request.prompt != "question 0":
                while not is_busy.is_set():
                    await asyncio.sleep(0.001)
            completions = self.draw(request, seeds)
            if len(self.asked) == 6:
                loop = asyncio.get_running_loop()
                loop.call_soon(may_end.set)  # in the loop's next turn this request, too, has come to the scorer
            return completions

    reward = {"judge": ResolvedReward("judge", slow_reward)}
    backend = AfterTheFirst(words=lambda prompt, seed: "a" * (1 + seed % 3))
    solve(BestOfN("judge", n=1), problems(6), backend=backend, scorers=reward)
    assert sizes == [1, 5]


def test_what_queues_while_a_model_in_this_process_is_busy_is_its_next_call() -> None:
    sizes: list[int] = []
    may_end = threading.Event()

    class Slow(Batched):
        def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
            sizes.append(len(batch))
            assert may_end.wait(PATIENCE_S)
            return super().generate(batch, seeds)

    class Policy(Served):
        async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            while request.prompt != "question 0" and not sizes:
                await asyncio.sleep(0.001)
            completions = self.draw(request, seeds)
            if len(self.asked) == 4:
                asyncio.get_running_loop().call_soon(may_end.set)
            return completions

    def judged(problem: Problem) -> Any:
        [completion] = yield Generate(problem.prompt)
        [verdict] = yield Generate(completion.text, model="judge", purpose="verdict")
        return Result(answer=verdict.text, text=completion.text)

    solve(judged, problems(4), backend={"policy": Policy(), "judge": Slow()})
    assert sizes == [1, 3]


def test_an_async_reward_is_awaited_in_the_servers_loop() -> None:
    loops = set()

    class Here(Served):
        async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            loops.add(asyncio.get_running_loop())
            return self.draw(request, seeds)

    async def reward(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        loops.add(asyncio.get_running_loop())
        return [float(len(completion)) for completion in completions]

    given = {"judge": ResolvedReward("judge", reward)}
    result = solve(BestOfN("judge", n=2), problems(1), backend=Here(), scorers=given)[0]
    assert all(candidate.score for candidate in result.candidates)
    assert len(loops) == 1


# --- Failures --------------------------------------------------------------------------------------------------------


@DRIVERS
def test_one_failed_sample_is_one_failed_sample(kind: type[Counted], tmp_path: Path) -> None:
    flaky = kind(words=lambda prompt, seed: "fail" if seed % 2 else f"answer is {seed % 3}")
    results = solve(SelfConsistency(n=8), problems(), backend=flaky, log=tmp_path / "log")
    counts = [len(result.candidates) for result in results]
    assert all(0 < count < 8 for count in counts)
    assert all(result.error is None for result in results)
    assert sum((result.usage["policy"] for result in results), Usage()) == flaky.served
    again = kind()
    more = solve(SelfConsistency(n=8), problems(), backend=again, log=tmp_path / "log")
    assert [len(result.candidates) for result in more] == [8] * 5
    assert sum(request.n for request in again.asked) == 40 - sum(counts)


def test_a_server_that_gives_too_few_or_too_many() -> None:
    class Wrong(Served):
        async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            drawn = self.draw(request, seeds)
            return drawn[:-1] if request.prompt == "question 0" else [*drawn, *drawn]

    few, many = solve(SelfConsistency(n=3), problems(2), backend=Wrong())
    assert (len(few.candidates), len(many.candidates)) == (2, 3)


def test_an_error_of_a_backend_surfaces_as_it_is_and_cancels_the_rest() -> None:
    cancelled: list[Any] = []

    class Broken(Served):
        async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            if request.prompt == "question 3":
                raise InputError("no such model", hint="name another")
            try:
                await asyncio.sleep(PATIENCE_S)
            except asyncio.CancelledError:
                cancelled.append(request.prompt)
                raise
            raise AssertionError("not cancelled")

    backend = Broken()
    with pytest.raises(InputError, match="no such model"):
        run(Served, SelfConsistency(n=2), backend=backend)
    assert len(cancelled) == 4
    assert backend.closed == 1


class Raises:
    """A reward, or a model in this process, that fails."""

    identity = "broken"
    capabilities = Capabilities()

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        raise ZeroDivisionError("of the reward")

    def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
        yield 0, 0, Completion("one")
        raise ZeroDivisionError("of the model")


def test_errors_at_desks_surface_as_they_are() -> None:
    with pytest.raises(PluginBroken, match="ZeroDivisionError: of the reward") as caught:
        run(Served, BestOfN("judge", n=2), scorers={"judge": ResolvedReward("judge", Raises())})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError, match="of the model"):
        run(Served, backend={"policy": Served(), "critic": Raises()})
    with pytest.raises(InputError, match="cannot score steps"):
        run(Served, scorers={"judge": ResolvedReward("judge", Judge()), "prm": ResolvedReward("prm", Judge())})
    with pytest.raises(InputError, match="no scorer"):
        run(Served, BestOfN("other", n=2))


def test_a_timeout_of_the_backends_own_is_no_budget() -> None:
    class Late(Served):
        async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            raise TimeoutError("of the server")

    with pytest.raises(TimeoutError, match="of the server"):
        run(Served, backend=Late(), budget=Budget(seconds=PATIENCE_S))


# --- Budgets ---------------------------------------------------------------------------------------------------------


def endless(problem: Problem) -> Any:
    while True:
        yield [Generate(problem.prompt, n=2, params=replace(problem.params, max_tokens=9)) for _ in range(3)]


IN_FLIGHT = 3 * 2 * 9 + 3 * len("question 0")  # tokens of one problem's round at most


def written(prompt: Any, seed: int) -> str:
    return "7" * (3 + seed % 7)  # numbers, which are compared without a computer algebra system


@DRIVERS
@pytest.mark.parametrize("limit", [1, 50, 333, 1000])
def test_tokens_are_never_exceeded_by_more_than_one_round(kind: type[Counted], limit: int) -> None:
    backend = kind(words=written)
    results = solve(endless, problems(), backend=backend, budget=Budget(tokens=limit))
    for result in results:
        assert limit <= result.usage["policy"].total_tokens < limit + IN_FLIGHT
        assert result.text
        assert result.stopped_by == "tokens"
    assert sum((result.usage["policy"] for result in results), Usage()) == backend.served


@DRIVERS
@pytest.mark.parametrize("limit", [1, 50, 333, 1000, 3000])
def test_a_total_of_tokens_is_never_exceeded_by_more_than_one_wave(kind: type[Counted], limit: int) -> None:
    backend = kind(words=written)
    results = solve(endless, problems(), backend=backend, total_budget=Budget(tokens=limit))
    spent = sum(result.usage.get("policy", Usage()).total_tokens for result in results)
    assert limit <= spent < limit + 5 * IN_FLIGHT
    assert {result.stopped_by for result in results} == {"tokens"}
    assert any(result.text for result in results)


@DRIVERS
@pytest.mark.parametrize("limit", [1, 7, 40])
def test_calls_and_completions_are_exact(kind: type[Counted], limit: int) -> None:
    calls = solve(endless, problems(), backend=kind(), total_budget=Budget(calls=limit))
    assert sum(result.usage.get("policy", Usage()).calls for result in calls) == limit
    drawn = solve(endless, problems(), backend=kind(), total_budget=Budget(completions=limit))
    assert sum(len(result.candidates) for result in drawn) == limit
    each = solve(endless, problems(), backend=kind(), budget=Budget(completions=limit))
    assert [len(result.candidates) for result in each] == [limit] * 5


class Hangs(Served):
    """Answers each problem's first request, then never again."""

    async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
        if sum(asked.prompt == request.prompt for asked in self.asked):
            await asyncio.sleep(PATIENCE_S)
            raise AssertionError("not cut")
        return self.draw(request, seeds)


def one_by_one(problem: Problem) -> Any:
    for _ in range(3):
        yield Generate(problem.prompt, n=2)


@pytest.mark.parametrize("options", [{"budget": Budget(seconds=0.1)}, {"total_budget": Budget(seconds=0.1)}])
def test_seconds_end_what_is_in_flight(options: dict[str, Any]) -> None:
    results = solve(one_by_one, problems(), backend=Hangs(), **options)
    assert {result.stopped_by for result in results} == {"seconds"}
    assert [len(result.candidates) for result in results] == [2] * 5
    assert all(result.answer for result in results)


def test_a_spent_total_of_tokens_ends_what_is_in_flight() -> None:
    def strategy(problem: Problem) -> Any:
        yield Generate(problem.prompt)
        while True:
            yield Generate(f"{problem.prompt} again" if problem.id == "0" else problem.prompt)

    class Only(Hangs):
        async def agenerate(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            await asyncio.sleep(0)
            if str(request.prompt).endswith("again"):
                return self.draw(request, seeds)
            return await super().agenerate(request, seeds)

    results = solve(strategy, problems(), backend=Only(), total_budget=Budget(tokens=2000))
    assert {result.stopped_by for result in results} == {"tokens"}
    assert [len(result.candidates) for result in results][1:] == [1] * 4
    assert len(results[0].candidates) > 10


def test_an_async_reward_that_hangs_is_cut_by_the_total_of_seconds() -> None:
    async def hangs(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        await asyncio.sleep(PATIENCE_S)
        raise AssertionError("not cut")

    given = {"judge": ResolvedReward("judge", hangs)}
    options: dict[str, Any] = {"scorers": given, "total_budget": Budget(seconds=0.1)}
    results = solve(BestOfN("judge", n=2), problems(2), backend=Served(), **options)
    assert [(result.stopped_by, len(result.candidates)) for result in results] == [("seconds", 2)] * 2


def test_a_model_in_this_process_is_cut_between_two_completions() -> None:
    class Unending(Batched):
        def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
            for drawn in super().generate(batch, seeds):
                yield drawn
                pause.wait(0.1)

    def strategy(problem: Problem) -> Any:
        yield [Generate(problem.prompt), Generate(problem.prompt, n=200, model="critic")]

    pause = threading.Event()
    backends = {"policy": Served(), "critic": Unending()}
    [result] = solve(strategy, problems(1), backend=backends, total_budget=Budget(seconds=1.0))
    assert result.stopped_by == "seconds"
    assert result.text
    assert 0 < len(result.trace[1]["completions"]) < 200


@DRIVERS
def test_should_stop_interrupts_and_the_log_keeps_what_was_answered(kind: type[Counted], tmp_path: Path) -> None:
    asked = iter(range(10**6))
    options: dict[str, Any] = {"log": tmp_path / "log"}
    with pytest.raises(Interrupted):
        run(kind, should_stop=lambda: next(asked) >= 12, **options)
    stood = len((tmp_path / "log").read_text().splitlines())
    assert stood > 0
    again = kind()
    assert outcome(run(kind, backend=again, **options)) == outcome(run(kind))
    drawn = sum(request.n for request in again.asked)
    assert drawn == sum(4 * (2 + i % 3) for i in range(5)) - stood_completions(tmp_path / "log", stood)


def test_should_stop_is_asked_while_a_server_is_silent() -> None:
    backend = Hangs()
    with pytest.raises(Interrupted):
        solve(one_by_one, problems(), backend=backend, should_stop=lambda: len(backend.asked) == 5)


def stood_completions(log: Path, lines: int) -> int:
    return sum(json.loads(line)["kind"] == "completion" for line in log.read_text().splitlines()[:lines])


def outcome(results: list[Result]) -> list[Any]:
    """All but what was paid and what was known."""
    return [(r.answer, r.text, r.candidates, r.trace, r.stopped_by) for r in results]


# --- Usage -----------------------------------------------------------------------------------------------------------


@DRIVERS
def test_usage_is_what_the_servers_counted(kind: type[Counted]) -> None:
    policy, critic, given = kind(), kind(identity="critic"), scorers()
    results = run(kind, backend={"policy": policy, "critic": critic}, scorers=given)
    found: dict[str, Usage] = {}
    for result in results:
        for role, usage in result.usage.items():
            found[role] = found.get(role, Usage()) + usage
    judge, prm = given["judge"].func, given["prm"].func
    paid = {role: replace(usage, cached_tokens=0) for role, usage in found.items()}
    assert paid["policy"] == policy.served
    assert paid["critic"] == critic.served
    assert paid["judge"] == judge.spent  # type: ignore[attr-defined]
    assert paid["prm"].prompt_tokens == prm.read > 0  # type: ignore[attr-defined]
    assert found["judge"].cached_tokens > 0  # candidates of earlier rounds are scored again, for nothing
    assert set(found) == {"policy", "critic", "judge", "prm", "shout"}


@DRIVERS
def test_a_backend_may_count_its_calls_itself(kind: type[Counted]) -> None:
    """One without native `n` makes a call for each completion."""

    class Single(kind):  # type: ignore[valid-type, misc]
        def draw(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            return [Completion("a", usage=Usage(5, 1, calls=1)) for _ in seeds]

    result = solve(SelfConsistency(n=4), problems(1), backend=Single())[0]
    assert result.usage["policy"] == Usage(20, 4, calls=4)


# --- Kills -----------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_stream as t

backend = t.struck(t.{kind}, Path({bill!r}), lambda: os._exit(9))
t.run(t.{kind}, backend=backend, log=Path({log!r}))
"""


def struck(kind: type[Counted], bill: Path, strike: Callable[[], Any]) -> Counted:
    """A backend that writes down what it draws, and is struck in the middle of the search."""

    class Struck(kind):  # type: ignore[valid-type, misc]
        def draw(self, request: Generate, seeds: Sequence[int]) -> list[Completion]:
            if len(self.asked) == 17:
                strike()
            with bill.open("a") as file:
                file.write(f"{request.n}\n")
            return super().draw(request, seeds)

    return Struck()


def interrupt() -> None:
    raise KeyboardInterrupt


@DRIVERS
@pytest.mark.parametrize("how", ["interrupt", "exit"])
def test_a_killed_search_goes_on_where_it_stood(kind: type[Counted], how: str, tmp_path: Path) -> None:
    log, bill = tmp_path / "log", tmp_path / "bill"
    whole, rest = kind(), kind()
    expected = outcome(run(kind, backend=whole))
    if how == "exit":
        names = {"tests": str(Path(__file__).parent), "kind": kind.__name__, "bill": str(bill), "log": str(log)}
        done = subprocess.run(
            [sys.executable, "-c", KILLED.format(**names)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 9, done.stderr
    else:
        with pytest.raises(KeyboardInterrupt):
            run(kind, backend=struck(kind, bill, interrupt), log=log)
    assert stood_completions(log, 10**6) > ONE_WAVE, "killed in the first wave, not in the middle"
    assert outcome(run(kind, backend=rest, log=log)) == expected
    paid = sum(map(int, bill.read_text().split())) + sum(request.n for request in rest.asked)
    assert 0 <= paid - sum(request.n for request in whole.asked) <= ONE_WAVE


ONE_WAVE = 5 * (3 + 1)  # completions that the five problems ask for at once


def test_the_stream_is_imported_only_for_servers() -> None:
    code = "import sys\nimport posttrain_plugins.engine.solve\nassert 'asyncio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
