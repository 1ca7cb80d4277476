"""One call for all problems in each wave; roles, capabilities, failed samples, interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_backend import Dead, Recorded, Scripted, problems, texts, two_waves

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.cli.progress_bar import figures_text
from posttrain_plugins.engine.session import Session
from posttrain_plugins.engine.solve import sample, solve
from posttrain_plugins.errors import InputError, Interrupted
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.types import (
    Completion,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    SamplingParams,
)


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


# --- Failures --------------------------------------------------------------------------------------------------------


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


def test_completions_that_a_backend_leaves_out_are_failed_samples() -> None:
    class Lazy(Scripted):
        def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
            return (drawn for drawn in super().generate(batch, seeds) if drawn[1] != 1)

    result = solve(SelfConsistency(n=4), problems(1), backend=Lazy())[0]
    assert (len(result.candidates), result.stopped_by) == (3, None)
    [event] = result.trace
    assert event["completions"][1]["error"] == "the backend gave no completion"


# --- Progress and interruption ---------------------------------------------------------------------------------------


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


class Telling(Scripted):
    """Tells its tokens as it draws them, long before the first completion is finished."""

    def __init__(self, reply: Any = lambda prompt, seed: "four") -> None:
        super().__init__(reply)
        self.on_tokens: Any = None

    def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
        for _ in "four":
            if self.on_tokens is not None:
                self.on_tokens(sum(map(len, seeds)))
        yield from super().generate(batch, seeds)


class OnAServer:
    """Judges nothing; its being there lets the driver for servers run."""

    identity = "server"
    capabilities = Capabilities()

    async def agenerate(self, request: Generate, seeds: Any) -> list[Completion]:
        return [Completion("yes") for _ in seeds]


@pytest.mark.parametrize("beside", [{}, {"judge": OnAServer()}], ids=["waves", "stream"])
def test_a_pace_is_told_before_the_first_completion(beside: dict[str, Any]) -> None:
    told: list[dict[str, float]] = []
    backend = Telling()
    solve(
        SelfConsistency(n=4),
        problems(3),
        backend={"policy": backend, **beside},
        progress=lambda done, total, unit, figures: told.append(dict(figures)),
    )
    assert told[0] == {}, "nothing is drawn yet: no pace is not a pace of 0"
    assert told[-1]["completions"] == 12
    if not beside:  # the other driver tells by its clock
        before = [figures["tokens_per_s"] for figures in told if figures.get("completions") == 0]
        assert len(before) == 4
        assert min(before) > 0
    assert backend.on_tokens is None, "it is left as it was found"


@pytest.mark.parametrize("beside", [{}, {"judge": OnAServer()}], ids=["waves", "stream"])
def test_tokens_are_counted_once(beside: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Session] = []
    monkeypatch.setattr(Session, "__post_init__", _noting(Session.__post_init__, seen))
    for backend in (Telling(), Scripted(lambda prompt, seed: "four")):
        solve(SelfConsistency(n=4), problems(3), backend={"policy": backend, **beside})
    assert [session.tokens for session in seen] == [48, 48]


def _noting(original: Any, seen: list[Session]) -> Any:
    def noted(session: Session) -> None:
        original(session)
        seen.append(session)

    return noted


def test_what_is_drawn_already_has_no_pace(tmp_path: Path) -> None:
    """All stands in the log, and what takes minutes is a reward: 0 tokens/s would say that the model is stuck."""
    told: list[dict[str, float]] = []
    for _ in range(2):
        told.clear()
        solve(
            SelfConsistency(n=4),
            problems(3),
            backend=Scripted(),
            log=tmp_path / "log.jsonl",
            progress=lambda done, total, unit, figures: told.append(dict(figures)),
        )
    assert told
    assert all(figures == {} for figures in told)
    assert figures_text({}) == ""


def test_an_interruption_while_a_wave_is_drawn_ends_it() -> None:
    backend = Telling()
    with pytest.raises(Interrupted):
        solve(SelfConsistency(n=4), problems(3), backend=backend, should_stop=lambda: backend.on_tokens is not None)
    assert backend.calls == [], "in the midst of the first completion"
