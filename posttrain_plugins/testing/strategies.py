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
from posttrain_plugins.errors import BudgetExhausted
from posttrain_plugins.testing import tiny
from posttrain_plugins.testing.noise import assert_untouched
from posttrain_plugins.testing.scripted import CASES, Scorer, Script
from posttrain_plugins.testing.subject import Subject, subject
from posttrain_plugins.types import Budget, Problem, ResolvedStrategy, Result, SamplingParams, Score, ScoreSteps

__all__ = ["CHECKS"]

REFERENCE = "reference-7f3a"  # stands in no text but the reference column
PARAMS = SamplingParams(temperature=0.7, max_tokens=64)
MOST_ROUNDS = 2000


def check_returns_a_result(strategy: Any) -> None:
    """It is a generator that yields requests and returns a `Result`.

    The engine gives an exception or another value as an error of that problem: the evaluation counts it as wrong, and
    nobody sees a traceback.
    """
    tried = subject("strategy", strategy)
    made = _resolved(tried)
    steps = made.strategy(_problems()[0])
    assert inspect.isgenerator(steps) or hasattr(steps, "send"), f"calling it gives {type(steps).__name__}"
    for result in _solve(made, Script()):
        assert result.error is None, result.error


def check_both_prompt_formats(strategy: Any) -> None:
    """A plain prompt and chat messages are both answered.

    Base models read text, chat models messages; a strategy that indexes into the prompt works on one of the two.
    """
    made = _working(strategy)
    for problem in (Problem("2+2=?", PARAMS), Problem([{"role": "user", "content": "2+2=?"}], PARAMS)):
        (result,) = _solve(made, Script(), [problem])
        form = "a plain prompt" if isinstance(problem.prompt, str) else "messages"
        assert result.error is None, f"with {form}: {result.error}"


def check_budget_kept(strategy: Any) -> None:
    """When the budget ends it returns its best answer so far, or lets `BudgetExhausted` through; it asks no more.

    One strategy that catches it and goes on makes every comparison at equal budgets a lie.
    """
    made = _working(strategy)
    for stop_after in (1, 2, 4):
        steps = made.strategy(_problems()[0])
        if not _advance(made, steps, stop_after):
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
    made = _working(strategy)
    script = Script()
    problems = _problems()
    results = _solve(made, script, problems, columns={"solution": [REFERENCE] * len(problems)})
    seen = [repr(request) for request in script.asked] + [repr(result) for result in results]
    assert not any(REFERENCE in text for text in seen), "the column `solution` was in a request or a result"


def check_same_seed_same_answer(strategy: Any) -> None:
    """Twice with one seed: the same answer, the same requests.

    A killed search is replayed from its log by asking the same again. Chance comes from `problem.rng`.
    """
    tried = _deterministic(strategy)
    first, second = ([(r.answer, r.text) for r in _solve(_resolved(tried), Script())] for _ in range(2))
    assert first == second, f"first {first}, then {second}"
    one = _resolved(tried)
    if not tried.declares("is_stateful"):
        again = [[(r.answer, r.text) for r in _solve(one, Script())] for _ in range(2)]
        assert again[0] == again[1], f"the same object: first {again[0]}, then {again[1]}"


def check_global_rng_untouched(strategy: Any) -> None:
    """The global generators of random, numpy and torch are where they were.

    In process, sampling draws from them; rollouts inside RL would change with the strategy's own dice.
    """
    made = _working(strategy)
    assert_untouched(lambda: _solve(made, Script()))


def check_problem_unchanged(strategy: Any) -> None:
    """The problem's prompt is after the call what it was before it.

    All strategies of an evaluation get the same problems; a message that one appends, the next one reads.
    """
    made = _working(strategy)
    problems = _problems()
    before = copy.deepcopy([p.prompt for p in problems])
    _solve(made, Script(), problems)
    assert [p.prompt for p in problems] == before, "it changed the problem's prompt"


def check_problems_stay_apart(strategy: Any) -> None:
    """A problem gets the same answer alone as among others.

    One object serves all problems at once, a step of each in turn: what it keeps on `self` belongs to another problem
    when it comes back. Where memory is the point, declare `is_stateful = True`.
    """
    tried = _deterministic(strategy)
    if tried.declares("is_stateful"):
        raise SkipTest("it declares is_stateful = True")
    made = _resolved(tried)
    together = [(r.answer, r.text) for r in _solve(made, Script())]
    alone = [(r.answer, r.text) for p in _problems() for r in _solve(_resolved(tried), Script(), [p])]
    assert together == alone, f"among others {together}, alone {alone}"


def check_empty_completions_survived(strategy: Any) -> None:
    """Nothing but empty completions, and it still returns a `Result`.

    A model that says EOS at once is what a bad step of RL makes.
    """
    _survives(strategy, "empty")


def check_identical_completions_survived(strategy: Any) -> None:
    """All completions alike, and it still returns a `Result`.

    Late in training they are; a division by their spread is a division by zero.
    """
    _survives(strategy, "identical")


def check_cut_off_completions_survived(strategy: Any) -> None:
    """All completions cut off at `max_tokens`, and it still returns a `Result`.

    `finish_reason` is `length` and there is no answer: the usual case with a small limit.
    """
    _survives(strategy, "cut off")


def check_failed_completions_survived(strategy: Any) -> None:
    """All completions failed, and it still returns a `Result`.

    A server that is down for a minute must cost a problem, not the evaluation.
    """
    _survives(strategy, "failed")


def check_odd_completions_survived(strategy: Any) -> None:
    """Unicode, braces and `$names` in completions, and it still returns a `Result`.

    Prompts that are filled in with `str.format` break at the first brace that a model writes.
    """
    _survives(strategy, "unicode")


def check_composes(strategy: Any) -> None:
    """`result = yield from strategy(problem)` works inside another strategy.

    Routing, refinement and mixtures are strategies of strategies; what can only run outermost cannot be a part.
    """
    made = _working(strategy)
    inner = [(r.answer, r.text) for r in _solve(made, Script())]
    outer = ResolvedStrategy("outer", Outer(_again(strategy).strategy), made.scorers, made.models)
    results = _solve(outer, Script())
    errors = [r.error for r in results if r.error]
    assert not errors, f"inside another strategy: {errors[0]}"
    if inner == [(r.answer, r.text) for r in _solve(_again(strategy), Script())]:  # else chance may be the reason
        assert [(r.answer, r.text) for r in results] == inner, "inside another strategy it answers otherwise"


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_returns_a_result,
    check_both_prompt_formats,
    check_budget_kept,
    check_never_sees_the_reference,
    check_same_seed_same_answer,
    check_global_rng_untouched,
    check_problem_unchanged,
    check_problems_stay_apart,
    check_empty_completions_survived,
    check_identical_completions_survived,
    check_cut_off_completions_survived,
    check_failed_completions_survived,
    check_odd_completions_survived,
    check_composes,
)


@dataclass
class Outer:
    """Does what the inner strategy does, and checks that it returned a `Result`."""

    inner: Any

    @property
    def tools(self) -> Any:
        """What `CallTool` reaches is asked of the outermost one."""
        return getattr(self.inner, "tools", {})

    def __call__(self, problem: Problem) -> Generator[Any, Any, Result]:
        result: Result = yield from self.inner(problem)
        return result


# --- running ----------------------------------------------------------------------------------------------------------


def _problems() -> list[Problem]:
    texts = ("2+2=?", "3|7>2", "Name a prime.")
    prompts = [[{"role": "user", "content": text}] for text in texts]
    return [Problem(prompt, PARAMS, id=str(i), rng=Random(i)) for i, prompt in enumerate(prompts)]


def _resolved(tried: Subject) -> ResolvedStrategy:
    """The object with what its fields name; the name `score` is a scorer."""
    made = tried.make()
    try:
        return resolve_strategy(made, scorers={"score": Scorer()}, runs_dir=tiny.folder())
    except Exception as cause:
        raise SkipTest(f"what its fields name is not there: {cause}") from cause


def _solve(
    made: ResolvedStrategy, script: Script, problems: Sequence[Problem] | None = None, **options: Any
) -> list[Result]:
    backends = {"policy": script, **dict.fromkeys(made.models, script)}
    problems = _problems() if problems is None else problems
    limit = Budget(calls=MOST_ROUNDS)  # one that never ends must not hang the check
    return solve(made.strategy, problems, backend=backends, scorers=made.scorers, budget=limit, seed=1, **options)


def _working(strategy: Any) -> ResolvedStrategy:
    """The strategy, if it answers ordinary problems at all; else `check_returns_a_result` says why not."""
    made = _resolved(subject("strategy", strategy))
    chats = [p for p in _problems() if not isinstance(p.prompt, str)]
    if any(result.error for result in _solve(_again(strategy), Script(), chats)):
        raise SkipTest("it fails on ordinary completions")
    return made


def _again(strategy: Any) -> ResolvedStrategy:
    return _resolved(subject("strategy", strategy))


def _deterministic(strategy: Any) -> Subject:
    tried = subject("strategy", strategy)
    _working(tried)
    if not tried.declares("is_deterministic"):
        raise SkipTest("it declares is_deterministic = False")
    return tried


def _survives(strategy: Any, case: str) -> None:
    made = _working(strategy)
    for result in _solve(made, Script(CASES[case])):
        assert result.error is None, f"all completions {case}: {result.error}"


def _advance(made: ResolvedStrategy, steps: Any, rounds: int) -> bool:
    """Answers so many rounds by hand; False where it was done before."""
    script, scorer = Script(), Scorer()

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
