"""Particle filtering: weights, the two ways to draw anew, and what finishes."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from table_model import (
    PROBLEM,
    QUESTION,
    TableModel,
    begun_path,
    candidate_texts,
    completion,
    paths_of_calls,
    solve_one,
)

from posttrain_plugins.search import PartialCompletion
from posttrain_plugins.strategies.particle_filtering import ParticleFiltering
from posttrain_plugins.types import Completion, ScoreSteps


def particles(*scores: float | None) -> list[PartialCompletion]:
    return [PartialCompletion(f"{i};", 1, score=score) for i, score in enumerate(scores)]


def test_particle_weights_are_the_softmax_of_logits() -> None:
    weights = ParticleFiltering("prm").weights(particles(0.8, 0.5, None))
    assert weights == pytest.approx([0.8, 0.2, 0.0])  # odds 4 and 1
    assert ParticleFiltering("prm", temperature=2.0).weights(particles(0.8, 0.5)) == pytest.approx([2 / 3, 1 / 3])
    logits = ParticleFiltering("prm").weights(particles(math.log(4), -0.0, -800.0))
    assert logits == pytest.approx([0.8, 0.2, 0.0])
    assert ParticleFiltering("prm").weights(particles(None, None)) == [0.5, 0.5]
    assert ParticleFiltering("prm").weights(particles(1.0, 0.0))[0] > 0.999


def count_draws(strategy: ParticleFiltering, population: Sequence[PartialCompletion], seed: int = 0) -> list[int]:
    drawn = Counter(path.text for path in strategy.resample(population, random.Random(seed)))
    return [drawn[path.text] for path in population]


def test_systematic_resampling_with_a_fixed_number() -> None:
    strategy = ParticleFiltering("prm", resampling="systematic")
    population = particles(0.5, 0.5, 0.6, 2 / 3, 0.0, 0.0, 0.0, 0.0)  # odds 1, 1, 1.5, 2: ends .18, .36, .64, 1
    assert 0.84 < random.Random(0).random() < 0.85  # the points are .1055 + i / 8
    assert count_draws(strategy, population) == [1, 2, 2, 3, 0, 0, 0, 0]
    assert all(2 <= count_draws(strategy, population, seed)[3] <= 3 for seed in range(50))  # 2.9 on average


def test_multinomial_resampling_draws_in_proportion() -> None:
    strategy = ParticleFiltering("prm")
    population = particles(0.8, 0.5)
    total = sum(count_draws(strategy, population, seed)[0] for seed in range(2000))
    assert total / 4000 == pytest.approx(0.8, abs=0.02)
    assert any(count_draws(strategy, population, seed) == [0, 2] for seed in range(200))  # it is not greedy


def test_particles_are_drawn_anew_only_below_the_effective_sample_size() -> None:
    strategy = ParticleFiltering("prm", ess_threshold=0.75)
    even = particles(0.5, 0.6)  # weights .4 and .6: 1.92 of 2
    assert strategy.resample(even, random.Random(0)) == even
    uneven = particles(0.5, 0.99)  # 1.02 of 2
    assert count_draws(strategy, uneven) == [0, 2]


def test_particles_that_are_copies_are_one_request_and_the_weights_vote() -> None:
    table = {"": ["a;", "b;"], "a;": ["answer is 1"], "b;": ["answer is 2", "answer is 3"]}
    scores = {"a;": 0.0, "b;": 1.0, "b;answer is 2": 0.5, "b;answer is 3": 0.9}
    backend = TableModel(table)
    result = solve_one(ParticleFiltering("prm", num_particles=4, separator=";"), backend, scores)
    assert paths_of_calls(backend) == [[("", 4)], [("b;", 4)]]
    assert sorted(candidate_texts(result)) == ["b;answer is 2"] * 2 + ["b;answer is 3"] * 2
    assert result.answer == "3"


def test_a_finished_particle_may_be_drawn_in_place_of_a_live_one() -> None:
    table = {"": ["answer is 1", "a;"], "a;": ["answer is 2"]}
    backend = TableModel(table)
    result = solve_one(
        ParticleFiltering("prm", num_particles=4, separator=";"), backend, {"answer is 1": 1.0, "a;": 0.0}
    )
    assert paths_of_calls(backend) == [[("", 4)]]
    assert candidate_texts(result) == ["answer is 1"] * 4


def test_a_particle_whose_sample_failed_has_no_weight() -> None:
    failed = Completion("", finish_reason="error", error="oh")
    steps = ParticleFiltering("prm", num_particles=3, separator=";")(PROBLEM)
    next(steps)
    assert steps.send([[completion("a", ";"), failed, failed]]) == [ScoreSteps(QUESTION, (("a;",),), "prm")]
    [request] = steps.send([[[0.01]]])
    assert (begun_path(request), request.n) == ("a;", 3)
