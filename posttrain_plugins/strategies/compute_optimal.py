"""`compute_optimal`: a few samples tell how hard a problem is, and its difficulty decides which strategy it is worth.

Paper: Snell et al., 2024 (https://huggingface.co/papers/2408.03314), section 3.2 and equation 1: the best strategy for
each of five bins of difficulty, found on other problems, without knowing the answer ("model-predicted difficulty").

1. Difficulty is the entropy of the pilot's votes, or what a scorer thinks of the pilot; the paper has the latter alone.
2. The chosen strategy is given the pilot's completions for its own first draws, so the pilot costs nothing extra.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any, ClassVar, cast

from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.text.answers import candidates, tally
from posttrain_plugins.types import (
    Completion,
    Generate,
    Problem,
    Request,
    RequestGenerator,
    Result,
    RewardRef,
    Score,
    Strategy,
    StrategyRef,
)

__all__ = ["ComputeOptimal", "calibrate", "vote_entropy"]


@dataclass
class ComputeOptimal:
    """Solve a problem by the strategy that its difficulty is worth; `calibrate` finds the table.

    Args:
        strategies: from the one for the easiest problems to the one for the hardest.
        thresholds: the difficulties from which the second, the third ... counts, in ascending order.
        n0: completions of the pilot, drawn at the problem's own temperature.
        scorer: a reward whose mean over the pilot, taken from 1, is the difficulty; without one `vote_entropy` is. A
            pilot that it cannot judge, or that failed, is the hardest.

    Raises:
        InputError: thresholds that do not ascend, or that are not one fewer than the strategies.

    Example:
        >>> def easy(problem): yield Generate("easy")
        >>> def hard(problem): yield Generate("hard")
        >>> steps = ComputeOptimal([easy, hard], [0.5], n0=2)(Problem("2+2=?"))
        >>> next(steps).n
        2
        >>> [request.prompt for request in steps.send([Completion("4"), Completion("5")])]
        ['hard']
    """

    example_params: ClassVar[dict[str, Any]] = {"strategies": ["greedy", "self_consistency(n=4)"], "thresholds": [0.3]}

    strategies: list[StrategyRef]
    thresholds: list[float]
    n0: int = 4
    scorer: RewardRef | None = None

    def __post_init__(self) -> None:
        if len(self.thresholds) != len(self.strategies) - 1:
            found = f"{len(self.strategies)} strategies and {len(self.thresholds)} thresholds"
            message = f"compute_optimal has {found}, expected one threshold between each two strategies"
            raise InputError(message, hint="`calibrate` finds strategies and thresholds that fit together")
        if sorted(self.thresholds) != list(self.thresholds):
            raise InputError(f"thresholds do not ascend: {self.thresholds}", hint="sort them")

    def begin_run(self) -> None:
        """Let those of its strategies that remember something forget it."""
        for strategy in self.strategies:
            getattr(strategy, "begin_run", lambda: None)()

    @property
    def tools(self) -> dict[str, Callable[..., Any]]:
        """Those of its strategies."""
        given = [getattr(strategy, "tools", ()) for strategy in self.strategies]
        by_name = [tools if isinstance(tools, Mapping) else {tool.__name__: tool for tool in tools} for tools in given]
        return {name: tool for tools in by_name for name, tool in tools.items()}

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        pilot = Generate(problem.prompt, n=self.n0, params=problem.params)
        drawn = yield pilot
        among = candidates(drawn)
        if self.scorer is None or not among:
            difficulty = vote_entropy([candidate.answer for candidate in among])
        else:  # section 3.2: the mean of the verifier's final scores, which needs no reference answer
            scores = yield Score(problem.prompt, tuple(candidate.text for candidate in among), self.scorer)
            known = [score for score in scores if score is not None]
            difficulty = 1 - fmean(known) if known else math.inf
        # Equation 1's argmax over strategies was taken on other problems (`calibrate`); here its bin is looked up.
        strategy = cast(Strategy, self.strategies[bisect_right(self.thresholds, difficulty)])
        result: Result = yield from _share_pilot(strategy(problem), pilot, drawn)
        return result


def vote_entropy(answers: Sequence[Any]) -> float:
    """Measure how much the answers of one problem disagree: 0 where all are equivalent, 1 where no two are.

    Args:
        answers: one per completion; None, no answer, agrees with nothing.

    Returns:
        The entropy of the classes of equivalent answers over its maximum; infinite for no completions at all.

    Example:
        >>> vote_entropy(["4", "4.0"]), vote_entropy(["4", "5"]), vote_entropy(["4", "4", "5", "5"])
        (0.0, 1.0, 0.5)
    """
    if not answers:
        return math.inf
    votes = [
        *tally(answers).values(),
        *(1.0 for answer in answers if answer is None),
    ]  # each None is a class of its own
    shares = [count / len(answers) for count in votes]
    entropy = math.fsum(share * math.log2(1 / share) for share in shares)
    return entropy / math.log2(len(answers)) if len(answers) > 1 else float(answers[0] is None)


def calibrate(
    difficulties: Sequence[float], accuracies: Mapping[str, Sequence[float]], bins: int = 5
) -> tuple[list[str], list[float]]:
    """Find the best strategy for each bin of difficulty, from problems other than those that it is used on.

    Args:
        difficulties: of P problems, by the same measure as `ComputeOptimal` takes: `vote_entropy` of the answers of n0
            completions, or 1 minus a scorer's mean.
        accuracies: strategy -> what it scores on each of these problems, 0 or 1, or a mean over several runs. Of equal
            strategies the first counts, so name the cheapest first.
        bins: of as many problems each as can be; problems of one difficulty are never parted. The paper's 5.

    Returns:
        `strategies` and `thresholds` for `ComputeOptimal`; neighbouring bins with the same strategy are one.

    Raises:
        InputError: no problems or strategies, or a strategy that is not measured on each problem.

    Example:
        >>> calibrate([0.0, 0.1, 0.8, 0.9], {"greedy": [1, 1, 0, 0], "best_of_n(n=8)": [1, 1, 1, 0]}, bins=2)
        (['greedy', 'best_of_n(n=8)'], [0.8])
    """
    if not (difficulties and accuracies) or any(len(row) != len(difficulties) for row in accuracies.values()):
        found = f"{len(difficulties)} difficulties and " + ", ".join(
            f"{len(row)} of {k}" for k, row in accuracies.items()
        )
        raise InputError(f"compute_optimal cannot be calibrated: {found}", hint="measure each strategy on each problem")
    order = sorted(range(len(difficulties)), key=difficulties.__getitem__)
    # The paper's quantiles of difficulty. A bin is told by the difficulty of its first problem alone, so where many
    # problems are equally difficult (entropy 0 is common), bins that begin alike are one.
    edges = sorted({difficulties[order[len(order) * i // bins]] for i in range(bins)})
    chosen: list[str] = []
    thresholds: list[float] = []
    for i, edge in enumerate(edges):
        members = [j for j in order if bisect_right(edges, difficulties[j]) == i + 1]
        # Equation 1 within the bin: the strategy of the largest mean accuracy; `max` takes the first of equal ones.
        best = max(accuracies, key=lambda name: fmean(accuracies[name][j] for j in members))
        if not chosen or best != chosen[-1]:
            thresholds += [edge] if chosen else []
            chosen.append(best)
    return chosen, thresholds


def _share_pilot(work: RequestGenerator[Any], pilot: Generate, drawn: Sequence[Completion]) -> RequestGenerator[Any]:
    """Hand on a strategy's requests; those that the pilot has made are answered with its completions, each once."""
    spare = list(drawn)
    advance: Callable[[], Any] = partial(next, work)
    while True:
        try:
            yielded = advance()
        except StopIteration as stop:
            return stop.value
        requests = yielded if isinstance(yielded, list) else [yielded]
        known = [_take(spare, request, pilot) for request in requests]
        rest = [replace(r, n=r.n - len(k)) if k else r for r, k in zip(requests, known, strict=True)]
        asked = [r for r in rest if not isinstance(r, Generate) or r.n]
        try:
            # Where the pilot answers all of them, nothing is yielded: an empty wave would be a round of the engine.
            answers = iter((yield asked) if asked else ())
        except BudgetExhausted as error:
            # It belongs at the strategy's own `yield`: the strategy may have a best answer so far, and ask no more.
            advance = partial(work.throw, error)
            continue
        responses = [
            [*k, *(next(answers) if r.n else ())] if k else next(answers) for r, k in zip(rest, known, strict=True)
        ]
        advance = partial(work.send, responses if isinstance(yielded, list) else responses[0])


def _take(spare: list[Completion], request: Request, pilot: Generate) -> list[Completion]:
    """Take as many of the pilot's completions as a request for the same wants."""
    # `n` may differ, and `purpose` is no part of what is drawn; a temperature, a prompt or a stop string is.
    if not isinstance(request, Generate) or replace(request, n=pilot.n, purpose=pilot.purpose) != pilot:
        return []
    taken = spare[: request.n]
    del spare[: request.n]  # each once: a completion that votes twice would be no second opinion
    return taken
