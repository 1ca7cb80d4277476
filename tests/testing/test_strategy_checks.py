"""The checks on strategies against strategies with one fault each."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
from planted import Planted

from posttrain_plugins import testing
from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.errors import BudgetExhausted
from posttrain_plugins.testing import run_checks
from posttrain_plugins.types import Generate, Problem

PLANTED = Planted("strategy")


@dataclass
class Once:
    """One answer."""

    def __call__(self, problem: Problem) -> Any:
        among = candidates((yield Generate(problem.prompt, n=2, params=problem.params)))
        return choose(among, 0 if among else None)


@PLANTED.fails("check_returns_a_result")
@dataclass
class Bare(Once):
    """Returns its text."""

    def __call__(self, problem: Problem) -> Any:
        result = yield from super().__call__(problem)
        return result.text


@PLANTED.fails("check_both_prompt_formats")
@dataclass
class ChatOnly(Once):
    """Reads the last message."""

    def __call__(self, problem: Problem) -> Any:
        assert problem.prompt[-1]["content"]  # type: ignore[index]
        return (yield from super().__call__(problem))


@PLANTED.fails("check_budget_kept")
@dataclass
class Greedy(Once):
    """Goes on when the budget has ended."""

    def __call__(self, problem: Problem) -> Any:
        try:
            return (yield from super().__call__(problem))
        except BudgetExhausted:
            return (yield from super().__call__(problem))


@PLANTED.fails("check_never_sees_the_reference")
@dataclass
class Peeking(Once):
    """Looks for the answer in the engine."""

    def __call__(self, problem: Problem) -> Any:
        result = yield from super().__call__(problem)
        frame: Any = sys._getframe()
        while frame is not None and "runs" not in frame.f_locals:
            frame = frame.f_back
        told = {**frame.f_locals["runs"][0].columns} if frame is not None else {}
        return replace(result, answer=told.get("solution", result.answer))


CALLS = iter(range(10_000))


@PLANTED.fails("check_same_seed_same_answer")
@dataclass
class Moody(Once):
    """Chance of its own."""

    is_stateful: ClassVar[bool] = True

    def __call__(self, problem: Problem) -> Any:
        result = yield from super().__call__(problem)
        return replace(result, answer=next(CALLS))


@PLANTED.fails("check_global_rng_untouched")
@dataclass
class Dicing(Once):
    """Draws from the global generator."""

    def __call__(self, problem: Problem) -> Any:
        random.random()
        return (yield from super().__call__(problem))


@PLANTED.fails("check_problem_unchanged")
@dataclass
class Appending(Once):
    """Writes into the problem's messages, and takes it away too late."""

    def __call__(self, problem: Problem) -> Any:
        if isinstance(problem.prompt, list) and len(problem.prompt) < 2:
            problem.prompt.append({"role": "user", "content": "Think."})
        return (yield from super().__call__(problem))


@PLANTED.fails("check_problems_stay_apart")
@dataclass
class Sharing(Once):
    """Keeps the best text on itself."""

    best: str = ""

    def __call__(self, problem: Problem) -> Any:
        self.best = ""
        result = yield from super().__call__(problem)
        self.best = max(self.best, result.text)
        yield Generate(problem.prompt, params=problem.params)
        return replace(result, text=self.best)


@PLANTED.fails("check_empty_completions_survived")
@dataclass
class FirstCharacter(Once):
    """Looks at the first character."""

    def __call__(self, problem: Problem) -> Any:
        among = candidates((yield Generate(problem.prompt, n=2, params=problem.params)))
        return choose(among, int(among[0].text[0] == "x") if among else None)


@PLANTED.fails("check_identical_completions_survived")
@dataclass
class Spread(Once):
    """Divides by how many different answers there are, less one."""

    def __call__(self, problem: Problem) -> Any:
        among = candidates((yield Generate(problem.prompt, n=8, params=problem.params)))
        if any(one.answer == "4" for one in among):
            _ = 1 / (len({one.text for one in among}) - 1)
        return choose(among, 0 if among else None)


@PLANTED.fails("check_cut_off_completions_survived")
@dataclass
class Finished(Once):
    """Wants one that came to its end."""

    def __call__(self, problem: Problem) -> Any:
        drawn = yield Generate(problem.prompt, n=2, params=problem.params)
        among = candidates(drawn)
        if among:
            next(c for c in drawn if c.finish_reason != "length")
        return choose(among, 0 if among else None)


@PLANTED.fails("check_failed_completions_survived")
@dataclass
class Trusting(Once):
    """Takes the first that did not fail."""

    def __call__(self, problem: Problem) -> Any:
        among = candidates((yield Generate(problem.prompt, n=2, params=problem.params)))
        return choose([among[0]], 0)


@PLANTED.fails("check_odd_completions_survived")
@dataclass
class Formatting(Once):
    """Fills in completions with str.format."""

    def __call__(self, problem: Problem) -> Any:
        result = yield from super().__call__(problem)
        str(result.text + "{z}" * ("{" in result.text)).format()
        return result


@PLANTED.fails("check_composes")
@dataclass
class Outermost(Once):
    """Is driven by hand."""

    def __call__(self, problem: Problem) -> Any:
        return _Driven(super().__call__(problem))


class _Driven:
    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def __next__(self) -> Any:
        return next(self.steps)

    def send(self, value: Any) -> Any:
        return self.steps.send(value)

    def throw(self, error: BaseException) -> Any:
        return self.steps.throw(error)

    def close(self) -> None:
        self.steps.close()


@pytest.mark.parametrize("check", PLANTED.plugins)
def test_a_planted_fault_fails_its_check_and_no_other(check: str) -> None:
    PLANTED.assert_fails_alone(check)


def test_every_check_has_a_planted_fault() -> None:
    PLANTED.assert_every_check_has_one()


def test_a_sound_plugin_passes() -> None:
    PLANTED.assert_passes(Once)


def test_an_object_that_was_made_passes() -> None:
    assert not [o for o in run_checks("strategy", Once()) if o.status == "failed"]
    testing.check_strategy(Once)
