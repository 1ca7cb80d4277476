"""What every strategy that is no search must survive: models, scorers, budgets, replays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from by_hand import FAILED, PLAIN, PROBLEM, ScriptedModel

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.strategies.adaptive_consistency import AdaptiveConsistency
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.budget_forcing import BudgetForcing
from posttrain_plugins.strategies.chain_of_thought import ChainOfThought
from posttrain_plugins.strategies.compute_optimal import ComputeOptimal
from posttrain_plugins.strategies.confidence_filtering import ConfidenceFiltering
from posttrain_plugins.strategies.episodic_memory import EpisodicMemory
from posttrain_plugins.strategies.greedy import Greedy
from posttrain_plugins.strategies.mixture_of_agents import MixtureOfAgents
from posttrain_plugins.strategies.react import ReAct
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.strategies.self_refine import SelfRefine
from posttrain_plugins.strategies.universal_self_consistency import UniversalSelfConsistency
from posttrain_plugins.types import Budget, Completion, Generate, ResolvedReward, Result, Usage


def add(a: int, b: int = 0) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


EASY = SelfConsistency(n=2)
ALL: dict[str, Callable[[], Any]] = {
    "greedy": Greedy,
    "chain_of_thought": ChainOfThought,
    "self_consistency": lambda: SelfConsistency(n=3),
    "self_consistency by logprob": lambda: SelfConsistency(n=3, weights="logprob"),
    "adaptive_consistency": lambda: AdaptiveConsistency(n=6),
    "universal_self_consistency": lambda: UniversalSelfConsistency(n=3),
    "best_of_n": lambda: BestOfN("rm", n=3),
    "best_of_n weighted": lambda: BestOfN("rm", n=3, weighted=True),
    "best_of_n by steps": lambda: BestOfN("rm", n=3, step_separator=";"),
    "best_of_n rated": lambda: BestOfN(judge="policy", n=3, ratings=2),
    "best_of_n in pairs": lambda: BestOfN(judge="policy", n=3, judging="pairwise"),
    "self_refine": SelfRefine,
    "self_refine scored": lambda: SelfRefine(scorer="rm"),
    "react": lambda: ReAct(tools=[add]),
    "react native": lambda: ReAct(tools=[add], mode="native"),
    "episodic_memory": EpisodicMemory,
    "episodic_memory scored": lambda: EpisodicMemory(scorer="rm"),
    "episodic_memory of votes": lambda: EpisodicMemory(scorer="rm", strategy=EASY),
    "budget_forcing": BudgetForcing,
    "confidence_filtering": lambda: ConfidenceFiltering(n=3),
    "confidence_filtering online": lambda: ConfidenceFiltering(n=5, warmup=2, group_size=2),
    "mixture_of_agents": lambda: MixtureOfAgents(n=2),
    "compute_optimal": lambda: ComputeOptimal([Greedy(), EASY], [0.5], n0=2),
    "compute_optimal scored": lambda: ComputeOptimal([Greedy(), EASY], [0.5], n0=2, scorer="rm"),
}
"""By name, those with options of their own as well; each call makes a new one."""

PROBLEMS = [replace(PLAIN, id="plain"), replace(PROBLEM, id="chat")]


def completion(text: str, **more: Any) -> Completion:
    return Completion(text, usage=Usage(1, 1), logprobs=[-1.0], confidences=[2.0], **more)


REPLIES: dict[str, Callable[[Generate, int], Completion]] = {
    "failed": lambda request, draw: FAILED,
    "some failed": lambda request, draw: FAILED if draw % 3 else completion("the answer is 4"),
    "first failed": lambda request, draw: FAILED if draw < 2 else completion("the answer is 4"),
    "empty": lambda request, draw: Completion("", logprobs=[], confidences=[]),
    "identical": lambda request, draw: completion("the answer is 4"),
    "cut off": lambda request, draw: completion("and so on and so forth, until", finish_reason="length"),
    "unparsable": lambda request, draw: completion("$x {y} [[C]] \\boxed{ <answer> [" * 3),
    "different": lambda request, draw: completion(f"step;the answer is {draw}"),
}


def score_every_second(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return [0.5 if i % 2 else None for i in range(len(completions))]


@dataclass
class Half:
    """A scorer that judges every second completion, and no steps at all in every second."""

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return score_every_second(prompts, completions)

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        return [[0.5] * len(of) if i % 2 else [] for i, of in enumerate(steps)]


SCORERS = {"rm": ResolvedReward("rm", Half())}


@pytest.mark.parametrize("replies", REPLIES)
@pytest.mark.parametrize("name", ALL)
def test_nothing_that_a_model_says_is_an_error(name: str, replies: str) -> None:
    backend = ScriptedModel(REPLIES[replies])
    results = solve(ALL[name](), PROBLEMS, backend=backend, scorers=SCORERS)
    assert 0 < len(backend.asked) < 100
    for result in results:
        assert (result.error, result.stopped_by) == (None, None)
        assert result.text in ["", *(candidate.text for candidate in result.candidates)]
        if replies == "failed":
            assert (result.answer, result.text, result.candidates) == (None, "", [])
        if replies == "identical":
            assert result.answer == "4"


@pytest.mark.parametrize("spent", [Budget(calls=i) for i in range(6)] + [Budget(completions=i) for i in (1, 3, 5)])
@pytest.mark.parametrize("name", ALL)
def test_a_budget_may_end_at_any_yield(name: str, spent: Budget) -> None:
    backend = ScriptedModel(REPLIES["different"])
    results = solve(ALL[name](), PROBLEMS, backend=backend, scorers=SCORERS, budget=spent)
    for result in results:
        assert result.error is None
        assert result.stopped_by in (None, "calls", "completions")
        if spent != Budget(calls=0) and not name.startswith(("react", "episodic")):
            assert result.answer is not None


@pytest.mark.parametrize("name", ALL)
def test_strategies_keep_nothing_between_problems_and_replay_from_the_log(name: str, tmp_path: Path) -> None:
    """The same object, asked again, asks the same; the memory is the one that keeps something, and says so."""
    strategy = ALL[name]()

    def run(backend: ScriptedModel) -> list[Result]:
        getattr(strategy, "begin_run", lambda: None)()
        return solve(strategy, PROBLEMS, backend=backend, scorers=SCORERS, log=tmp_path / "log")

    first = run(ScriptedModel(REPLIES["different"]))
    silent = ScriptedModel(REPLIES["failed"])
    again = run(silent)
    assert silent.asked == []
    assert [(r.answer, r.text, r.candidates) for r in again] == [(r.answer, r.text, r.candidates) for r in first]


def test_every_strategy_is_here_or_with_the_searches() -> None:
    import posttrain_plugins.strategies as folder

    files = {file.stem for file in Path(str(folder.__path__[0])).glob("[!_]*.py")}
    searches = {
        "beam_search",
        "dvts",
        "graph_of_thoughts",
        "mcts",
        "particle_filtering",
        "prm_beam_search",
        "tree_of_thoughts",
        "value_guided_search",
    }
    assert files == {name.split()[0] for name in ALL} | searches
