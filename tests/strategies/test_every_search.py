"""What every search must survive: models, scorers, budgets, kills."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as File
from typing import Any

import pytest
from table_model import PROBLEM, QUESTION, begun_path, completion

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.strategies.beam_search import BeamSearch
from posttrain_plugins.strategies.dvts import DVTS
from posttrain_plugins.strategies.graph_of_thoughts import GraphOfThoughts
from posttrain_plugins.strategies.mcts import MCTS
from posttrain_plugins.strategies.particle_filtering import ParticleFiltering
from posttrain_plugins.strategies.prm_beam_search import PRMBeamSearch
from posttrain_plugins.strategies.tree_of_thoughts import TreeOfThoughts
from posttrain_plugins.strategies.value_guided_search import ValueGuidedSearch
from posttrain_plugins.types import (
    Budget,
    Completion,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    SamplingParams,
    Score,
    ScoreSteps,
    Strategy,
    Usage,
)

ALL: dict[str, Strategy] = {
    "tree_of_thoughts": TreeOfThoughts(branches=3, breadth=2, separator=";", max_steps=4),
    "tree_of_thoughts_dfs": TreeOfThoughts(search="dfs", scorer="prm", branches=3, separator=";", max_steps=4),
    "tree_of_thoughts_propose": TreeOfThoughts(generate="propose", evaluate="vote", branches=2, max_steps=3),
    "graph_of_thoughts": GraphOfThoughts(),
    "graph_of_thoughts_scorer": GraphOfThoughts(scorer="prm"),
    "beam_search": BeamSearch(beam_width=2, branches=3, separator=";", max_steps=4),
    "beam_search_blocks": BeamSearch(beam_width=2, branches=2, block_tokens=3, max_steps=6),
    "prm_beam_search": PRMBeamSearch("prm", n=4, beam_width=2, separator=";", max_steps=4),
    "prm_beam_search_lookahead": PRMBeamSearch("prm", n=4, beam_width=2, separator=";", max_steps=4, lookahead=2),
    "dvts": DVTS("prm", n=4, beam_width=2, separator=";", max_steps=4),
    "particle_filtering": ParticleFiltering("prm", num_particles=4, separator=";", max_steps=4),
    "particle_filtering_systematic": ParticleFiltering(
        "prm", num_particles=4, separator=";", max_steps=4, resampling="systematic", ess_threshold=0.5
    ),
    "mcts": MCTS("prm", branches=2, separator=";", max_steps=4, num_simulations=8),
    "mcts_rollout": MCTS(
        "prm", rollout=True, branches=2, separator=";", max_steps=4, select="visits", aggregate="whole"
    ),
    "mcts_self": MCTS(rule="puct", prior="logprob", branches=2, separator=";", max_steps=4, num_simulations=8),
    "value_guided_search": ValueGuidedSearch(n=4, beam_width=2, block_tokens=3, max_steps=6),
    "value_guided_search_scorer": ValueGuidedSearch("prm", n=4, beam_width=2, block_tokens=3, max_steps=6),
}


@dataclass
class NoisyModel:
    """A model with a mind of its own: what it writes is a function of the request and its seed."""

    kind: str = "mixed"
    identity: str = "noisy"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(values=True))
    calls: int = 0
    asked: list[Generate] = field(default_factory=list)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        self.calls += 1
        self.asked += batch
        for i, (request, of_request) in enumerate(zip(batch, seeds, strict=True)):
            for j, seed in enumerate(of_request):
                yield i, j, self._complete(request, random.Random(f"{self.kind}{seed}"))

    def _complete(self, request: Generate, rng: random.Random) -> Completion:
        if self.kind == "failed" or (self.kind == "flaky" and rng.random() < 0.5):
            return Completion("", finish_reason="error", error="scripted")
        if request.purpose not in ("step", "answer"):
            words = ["sure", "likely", "impossible", "The best choice is 1", "so the answer is 3", "x\ny\nz", "8", ""]
            return Completion(rng.choice(words), usage=Usage(completion_tokens=2))
        text, stop_reason = self._write(request, rng)
        room = request.params.max_tokens
        is_cut = self.kind == "cut" or len(text) > room
        text = text[:room]
        return Completion(
            text,
            finish_reason="length" if is_cut else "stop",
            stop_reason=None if is_cut else stop_reason,
            usage=Usage(1, max(len(text), 1)),
            logprobs=[-rng.random() for _ in text] if request.params.logprobs else None,
            value=rng.random() if request.params.values else None,
        )

    def _write(self, request: Generate, rng: random.Random) -> tuple[str, str | None]:
        if self.kind == "empty":
            return "", None
        if self.kind == "same":
            return ("a", ";") if ";" in request.params.stop else ("answer is 1", None)
        if self.kind == "bare" and ";" in request.params.stop:
            return "", ";"
        if ";" in request.params.stop and rng.random() < 0.6:
            return rng.choice("abc"), ";"
        return f"answer is {rng.randrange(3)}", None


@dataclass
class FaultyScorer:
    """A scorer; `kind` says what is wrong with it."""

    kind: str = "sound"

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [self._score(str(text)) for text in completions]

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        scores = [[self._score("".join(of[: i + 1])) for i in range(len(of))] for of in steps]
        return [[score for score in row if score is not None] for row in scores]

    def _score(self, text: str) -> float | None:
        value = random.Random(text).random()
        match self.kind:
            case "none":
                return None
            case "some":
                return value if value > 0.5 else None
            case "nan":
                return math.nan if value > 0.5 else value
            case "logits":
                return 8 * value - 4
            case _:
                return value


def solve_with_noise(
    name: str,
    backend: Any,
    count: int = 3,
    mood: str = "sound",
    max_tokens: int = 60,
    chat: bool = False,
    **options: Any,
) -> list[Result]:
    def prompt(i: int) -> Any:
        return [{"role": "user", "content": f"{i} {QUESTION}"}] if chat else f"{i} {QUESTION}"

    params = SamplingParams(max_tokens=max_tokens)
    problems = [Problem(prompt(i), params, id=str(i)) for i in range(count)]
    scorers = {"prm": ResolvedReward("prm", FaultyScorer(mood))}
    return solve(ALL[name], problems, backend=backend, scorers=scorers, **options)


def as_json(result: Result) -> Any:
    return json.dumps([result.answer, result.text, [[c.text, c.answer, c.score] for c in result.candidates]])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("chat", [False, True])
def test_every_strategy_answers(name: str, chat: bool) -> None:
    for result in solve_with_noise(name, NoisyModel(), chat=chat):
        assert result.error is None
        assert result.answer is not None
        assert result.answer in result.text
        assert all(candidate.text for candidate in result.candidates)
        assert result.stopped_by is None


@pytest.mark.parametrize("name", ALL)
def test_the_number_of_waves_does_not_grow_with_the_number_of_problems(name: str) -> None:
    together = NoisyModel()
    results = solve_with_noise(name, together, count=20)
    rounds = [1 + max(event["round"] for event in result.trace) for result in results]  # of drawing or scoring
    assert together.calls <= max(rounds)
    assert together.calls < sum(rounds) / 5


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["failed", "flaky", "empty", "same", "bare", "cut"])
def test_every_strategy_survives_what_models_do(name: str, kind: str) -> None:
    for result in solve_with_noise(name, NoisyModel(kind)):
        assert result.error is None
        if kind == "failed":
            assert (result.answer, result.text, result.candidates) == (None, "", [])
        if kind in ("same", "bare"):
            assert result.text


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mood", ["none", "some", "nan", "logits"])
def test_every_strategy_survives_what_scorers_do(name: str, mood: str) -> None:
    for result in solve_with_noise(name, NoisyModel(), mood=mood):
        assert result.error is None
        assert result.answer is not None


@pytest.mark.parametrize("name", ALL)
def test_no_path_is_longer_than_max_tokens(name: str) -> None:
    backend = NoisyModel()
    for result in solve_with_noise(name, backend, max_tokens=7):
        assert result.error is None
        if "propose" not in name:  # whose tokens are a share of the proposals'
            assert all(len(candidate.text.replace(";", "")) <= 7 for candidate in result.candidates)
    for request in backend.asked:
        if request.purpose == "step":
            assert len(begun_path(request).replace(";", "")) + request.params.max_tokens <= 7


@pytest.mark.parametrize("name", ALL)
def test_every_budget_ends_in_a_result(name: str) -> None:
    [whole] = solve_with_noise(name, NoisyModel(), count=1)
    calls = 0
    while True:
        [result] = solve_with_noise(name, NoisyModel(), count=1, budget=Budget(calls=calls))
        assert result.error is None
        if result.stopped_by is None:
            break
        assert result.stopped_by == "calls"
        if any(candidate.answer is not None for candidate in result.candidates):
            assert result.answer is not None
        calls += 1
    assert calls > 1
    assert as_json(result) == as_json(whole)
    for tokens in (1, 10, 40):
        assert solve_with_noise(name, NoisyModel(), count=1, budget=Budget(tokens=tokens))[0].error is None


@pytest.mark.parametrize("name", ALL)
def test_a_budget_thrown_at_any_yield_is_a_result_or_goes_through(name: str) -> None:
    strategy, backend, scorer = ALL[name], NoisyModel(), FaultyScorer()
    results = []
    for stop_at in range(40):
        steps = strategy(Problem(QUESTION, SamplingParams(max_tokens=60)))
        requests = next(steps)
        try:
            for _ in range(stop_at):
                requests = steps.send([answer_request(request, backend, scorer) for request in requests])
        except StopIteration:
            assert all(result.text for result in results)
            return
        with pytest.raises((StopIteration, BudgetExhausted)) as thrown:
            steps.throw(BudgetExhausted("spent"))
        if isinstance(thrown.value, StopIteration):
            results.append(thrown.value.value)
    raise AssertionError("it never ends")


SEARCHES = [
    TreeOfThoughts(scorer="prm", branches=2, separator=";"),
    BeamSearch(branches=2, separator=";"),
    PRMBeamSearch("prm", n=2, beam_width=1, separator=";"),
    DVTS("prm", n=2, beam_width=1, separator=";"),
    ParticleFiltering("prm", num_particles=2, separator=";", resampling="systematic", ess_threshold=0.1),
    MCTS("prm", branches=2, separator=";"),
    ValueGuidedSearch("prm", n=2, beam_width=1, block_tokens=20),
]


@pytest.mark.parametrize("strategy", SEARCHES, ids=lambda strategy: type(strategy).__name__)
def test_a_spent_budget_does_not_lose_what_is_finished(strategy: Strategy) -> None:
    """One path is finished, another one live, when the second wave of drawing is refused."""
    steps = strategy(PROBLEM)
    live = replace(completion("a", ";", tokens=20), logprobs=[-9.0])
    if isinstance(strategy, ValueGuidedSearch):
        live = replace(live, finish_reason="length", stop_reason=None)
    first = [replace(completion("answer is 1"), logprobs=[-1.0]), live]
    requests = next(steps)
    requests = steps.send([[first.pop(0) for _ in range(request.n)] for request in requests])
    while not isinstance(requests[0], Generate):
        requests = steps.send([[[0.5]] * 2 if isinstance(request, ScoreSteps) else [0.5] * 2 for request in requests])
    with pytest.raises(StopIteration) as stop:
        steps.throw(BudgetExhausted("spent"))
    assert stop.value.value.answer == "1"


def answer_request(request: Any, backend: NoisyModel, scorer: FaultyScorer) -> Any:
    if isinstance(request, Generate):
        seeds = [len(str(request.prompt)) * 100 + j for j in range(request.n)]
        return [completion for _, _, completion in backend.generate([request], [seeds])]
    if isinstance(request, Score):
        return scorer([], request.completions)
    return scorer.step_scores([], [], steps=request.steps)


@pytest.mark.parametrize("name", ALL)
def test_replay_from_the_log_is_exact_and_asks_nobody(name: str, tmp_path: File) -> None:
    log = tmp_path / "log.jsonl"
    first = solve_with_noise(name, NoisyModel(), log=log)
    again = NoisyModel()
    assert [*map(as_json, solve_with_noise(name, again, log=log))] == [*map(as_json, first)]
    assert again.calls == 0
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert [*map(as_json, solve_with_noise(name, NoisyModel(), log=log))] == [*map(as_json, first)]


@pytest.mark.parametrize("name", ALL)
def test_what_else_is_solved_changes_nothing(name: str) -> None:
    assert as_json(solve_with_noise(name, NoisyModel(), count=1)[0]) == as_json(
        solve_with_noise(name, NoisyModel(), count=5)[0]
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PRMBeamSearch("prm", n=8, beam_width=3), "beam_width: 3, expected a divisor of n (8)"),
        (lambda: DVTS("prm", n=8, beam_width=0), "beam_width: 0, expected at least 1"),
        (lambda: PRMBeamSearch("prm", lookahead=-1), "lookahead: -1, expected at least 0"),
        (lambda: PRMBeamSearch("prm", aggregate="median"), "aggregate: 'median', expected 'last' or 'min'"),
        (lambda: ParticleFiltering("prm", temperature=0), "temperature: 0, expected a number above 0"),
        (lambda: ParticleFiltering("prm", ess_threshold=2), "ess_threshold: 2, expected a share"),
        (lambda: ParticleFiltering("prm", resampling="best"), "'best', expected 'multinomial' or 'systematic'"),
        (lambda: ValueGuidedSearch(n=5), "beam_width: 2, expected a divisor of n (5)"),
        (lambda: BeamSearch(block_tokens=0), "block_tokens: 0, expected at least 1"),
        (lambda: MCTS(rule="ucb"), "rule: 'ucb', expected 'uct' or 'puct'"),
        (lambda: TreeOfThoughts(separator=""), "separator: '', expected what ends a step"),
    ],
)
def test_what_cannot_be_used_is_said(build: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(InputError) as error:
        build()
    assert message in str(error.value)
    assert "hint: change" in str(error.value)
