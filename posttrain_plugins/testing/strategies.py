"""Checks on strategies, run by the engine on a model that is a script. The scorer in reach is named `score`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from unittest import SkipTest

from posttrain_plugins.api import resolve_strategy
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import PLUGIN_FAILURES, BudgetExhausted
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.testing import tiny
from posttrain_plugins.testing.noise import assert_untouched
from posttrain_plugins.testing.scripted import CASES, HashScorer, ScriptedModel
from posttrain_plugins.testing.subject import subject
from posttrain_plugins.types import Budget, Problem, ResolvedStrategy, Result, SamplingParams, Score, ScoreSteps

__all__ = ["CHECKS", "StrategyUnderTest"]

REFERENCE = "reference-7f3a"  # stands in no text but the reference column
PARAMS = SamplingParams(temperature=0.7, max_tokens=64)  # above 0, so that each seed has a completion of its own
MOST_ROUNDS = 2000


class StrategyUnderTest:
    """A strategy, and the engine that runs it on scripted models.

    Args:
        strategy: what a check was given.
        works: skip the check for a strategy that fails on ordinary completions, which `check_returns_a_result` tells.
        is_deterministic: skip it for one that declares that it is not.

    Raises:
        SkipTest: the check does not apply.
    """

    def __init__(self, strategy: Any, *, works: bool = True, is_deterministic: bool = False) -> None:
        self.subject = subject("strategy", strategy)
        # on chat messages: a strategy that cannot read plain prompts fails `check_both_prompt_formats` alone
        if works and any(result.error for result in self.solve()):
            raise SkipTest("it fails on ordinary completions")
        if is_deterministic and not self.subject.declares("is_deterministic"):
            raise SkipTest("it declares is_deterministic = False")

    def made(self) -> ResolvedStrategy:
        """Return a new object with what its fields name; the name `score` is a scorer."""
        made = self.subject.make()
        try:
            return resolve_strategy(made, scorers={"score": HashScorer()}, runs_dir=tiny.folder())
        except PLUGIN_FAILURES as cause:
            raise SkipTest(f"what its fields name is not there: {cause}") from cause

    def solve(
        self,
        script: ScriptedModel | None = None,
        problems: Sequence[Problem] | None = None,
        made: ResolvedStrategy | None = None,
        **options: Any,
    ) -> list[Result]:
        """Run the strategy, a new one unless one is given, on the ordinary problems unless others are given."""
        script, made = script or ScriptedModel(), made or self.made()
        backends = {"policy": script, **dict.fromkeys(made.models, script)}
        problems = ordinary_problems() if problems is None else problems
        limit = Budget(calls=MOST_ROUNDS)  # one that never ends must not hang the check
        return solve(made.strategy, problems, backend=backends, scorers=made.scorers, budget=limit, seed=1, **options)

    def answers(self, problems: Sequence[Problem] | None = None, made: ResolvedStrategy | None = None) -> list[Any]:
        """Return answer and text of each problem."""
        return [(result.answer, result.text) for result in self.solve(problems=problems, made=made)]


def ordinary_problems() -> list[Problem]:
    """Return three questions as chat messages, each with a generator of its own."""
    texts = ("2+2=?", "3|7>2", "Name a prime.")
    prompts = [[{"role": "user", "content": text}] for text in texts]
    return [Problem(prompt, PARAMS, id=str(i), rng=Random(i)) for i, prompt in enumerate(prompts)]


def check_returns_a_result(strategy: Any) -> None:
    """It is a generator that yields requests and returns a `Result`.

    The engine gives an exception or another value as an error of that problem: the evaluation counts it as missing, and
    nobody sees a traceback.
    """
    tried = StrategyUnderTest(strategy, works=False)
    made = tried.made()
    steps = made.strategy(ordinary_problems()[0])
    # what is driven like a generator is as good as one, to the engine; `check_composes` asks for more
    assert inspect.isgenerator(steps) or hasattr(steps, "send"), f"calling it gives {type(steps).__name__}"
    for result in tried.solve(made=made):
        assert result.error is None, result.error


def check_both_prompt_formats(strategy: Any) -> None:
    """A plain prompt and chat messages are both answered.

    Base models read text, chat models messages; a strategy that indexes into the prompt works on one of the two.
    """
    tried = StrategyUnderTest(strategy)
    made = tried.made()
    for problem in (Problem("2+2=?", PARAMS), Problem([{"role": "user", "content": "2+2=?"}], PARAMS)):
        (result,) = tried.solve(problems=[problem], made=made)
        form = "a plain prompt" if isinstance(problem.prompt, str) else "messages"
        assert result.error is None, f"with {form}: {result.error}"


def check_budget_kept(strategy: Any) -> None:
    """When the budget ends it returns its best answer so far, or lets `BudgetExhausted` through; it asks no more.

    One strategy that catches it and goes on makes every comparison at equal budgets a lie.
    """
    made = StrategyUnderTest(strategy).made()
    for stop_after in (1, 2, 4):  # in the first round, between rounds, and in a search that is well under way
        steps = made.strategy(ordinary_problems()[0])
        if not _advance(steps, stop_after):
            continue
        try:
            asked = steps.throw(BudgetExhausted("the budget is spent"))
        except (BudgetExhausted, StopIteration):
            continue
        raise AssertionError(f"after BudgetExhausted it asked for {type(asked).__name__}")


def check_never_sees_the_reference(strategy: Any) -> None:
    """The reference answer reaches no request and no result.

    `solution` is for rewards. A strategy that reads it measures nothing, and serves nobody, who has no reference.
    """
    tried = StrategyUnderTest(strategy)
    script, problems = ScriptedModel(), ordinary_problems()
    results = tried.solve(script, problems, columns={"solution": [REFERENCE] * len(problems)})
    # by its text in all that left the strategy, whatever way it found to look
    seen = [repr(request) for request in script.asked] + [repr(result) for result in results]
    assert not any(REFERENCE in text for text in seen), "the column `solution` was in a request or a result"


def check_same_seed_same_answer(strategy: Any) -> None:
    """Twice with one seed: the same answer, the same requests.

    A killed search is replayed from its log by asking the same again. Chance comes from `problem.rng`.
    """
    tried = StrategyUnderTest(strategy, is_deterministic=True)
    first, second = tried.answers(), tried.answers()
    assert first == second, f"first {first}, then {second}"
    # a run makes the object once and uses it for every model of an evaluation
    if not tried.subject.declares("is_stateful"):
        one = tried.made()
        first, second = tried.answers(made=one), tried.answers(made=one)
        assert first == second, f"the same object: first {first}, then {second}"


def check_global_rng_untouched(strategy: Any) -> None:
    """The global generators of random, numpy and torch are where they were.

    In process, sampling draws from them; rollouts inside RL would change with the strategy's own dice.
    """
    tried = StrategyUnderTest(strategy)
    made = tried.made()
    assert_untouched(lambda: tried.solve(made=made))


def check_problem_unchanged(strategy: Any) -> None:
    """The problem's prompt is after the call what it was before it.

    All strategies of an evaluation get the same problems; a message that one appends, the next one reads.
    """
    tried = StrategyUnderTest(strategy)
    problems = ordinary_problems()
    before = copy.deepcopy([p.prompt for p in problems])
    tried.solve(problems=problems)
    assert [p.prompt for p in problems] == before, "it changed the problem's prompt"


def check_problems_stay_apart(strategy: Any) -> None:
    """A problem gets the same answer alone as among others.

    One object serves all problems at once, a step of each in turn: what it keeps on `self` belongs to another problem
    when it comes back. Where memory is the point, declare `is_stateful = True`.
    """
    tried = StrategyUnderTest(strategy, is_deterministic=True)
    if tried.subject.declares("is_stateful"):
        raise SkipTest("it declares is_stateful = True")
    together = tried.answers()  # the engine takes a step of each problem in turn
    alone = [answer for problem in ordinary_problems() for answer in tried.answers([problem])]
    assert together == alone, f"among others {together}, alone {alone}"


def check_empty_completions_survived(strategy: Any) -> None:
    """Nothing but empty completions, and it still returns a `Result`.

    A model that says EOS at once is what a bad step of RL makes.
    """
    _assert_survives(strategy, "empty")


def check_identical_completions_survived(strategy: Any) -> None:
    """All completions alike, and it still returns a `Result`.

    Late in training they are; a division by their spread is a division by zero.
    """
    _assert_survives(strategy, "identical")


def check_cut_off_completions_survived(strategy: Any) -> None:
    """All completions cut off at `max_tokens`, and it still returns a `Result`.

    `finish_reason` is `length` and there is no answer: the usual case with a small limit.
    """
    _assert_survives(strategy, "cut off")


def check_failed_completions_survived(strategy: Any) -> None:
    """All completions failed, and it still returns a `Result`.

    A server that is down for a minute must cost a problem, not the evaluation.
    """
    _assert_survives(strategy, "failed")


def check_odd_completions_survived(strategy: Any) -> None:
    """Unicode, braces and `$names` in completions, and it still returns a `Result`.

    Prompts that are filled in with `str.format` break at the first brace that a model writes.
    """
    _assert_survives(strategy, "unicode")


def check_composes(strategy: Any) -> None:
    """`result = yield from strategy(problem)` works inside another strategy.

    Routing, refinement and mixtures are strategies of strategies; what can only run outermost cannot be a part.
    """
    tried = StrategyUnderTest(strategy)
    inner = tried.made()
    outer = ResolvedStrategy("outer", Outer(tried.made().strategy), inner.scorers, inner.models)
    expected = tried.answers(made=inner)
    results = tried.solve(made=outer)
    errors = [result.error for result in results if result.error]
    assert not errors, f"inside another strategy: {errors[0]}"
    if expected == tried.answers():  # else chance, or what it remembers, may be the reason
        found = [(result.answer, result.text) for result in results]
        assert found == expected, "inside another strategy it answers otherwise"


# in the order of this file, in which they run; found by name, so that none is forgotten
CHECKS: tuple[Callable[[Any], None], ...] = tuple(one for name, one in globals().items() if name.startswith("check_"))


@dataclass
class Outer:
    """Does what the inner strategy does, and checks that it returned a `Result`."""

    inner: Any

    @property
    def tools(self) -> Any:
        """Return the inner strategy's tools: the engine asks the outermost one for them."""
        return declared(self.inner, "tools") or {}

    def __call__(self, problem: Problem) -> Generator[Any, Any, Result]:
        result: Result = yield from self.inner(problem)
        return result


def _assert_survives(strategy: Any, case: str) -> None:
    for result in StrategyUnderTest(strategy).solve(ScriptedModel(CASES[case])):
        assert result.error is None, f"all completions {case}: {result.error}"


def _advance(steps: Any, rounds: int) -> bool:
    """Answer so many rounds by hand; False if it returned before."""
    script, scorer = ScriptedModel(), HashScorer()

    # by hand and not by the engine, which would turn a strategy that goes on into an error of that problem
    def answer(request: Any) -> Any:
        if isinstance(request, Score):
            return scorer(None, request.completions)
        if isinstance(request, ScoreSteps):
            return scorer.step_scores(None, ["".join(one) for one in request.steps], steps=request.steps)
        if hasattr(request, "n"):
            return [c for _, _, c in script.generate([request], [range(request.n)])]
        return "the tool says 4"

    try:
        asked = next(steps)
        for _ in range(rounds - 1):
            asked = steps.send([answer(r) for r in asked] if isinstance(asked, list) else answer(asked))
    except StopIteration:
        return False
    return True
