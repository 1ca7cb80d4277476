"""`particle_filtering`: particles that grow step by step, and are drawn anew in proportion to their rewards.

Paper: Puri et al., 2025 (https://huggingface.co/papers/2502.01618), algorithm 1: N particles; after each step their
weights are the softmax of the logits of the process reward model's scores, and N particles are drawn by these weights.
A beam search trusts the scores and keeps the best; this treats them as noisy, so that a low score is only less likely.

1. Systematic resampling (one uniform number for all particles) and resampling only below an effective sample size are
   options; the weight is that of the whole path, so a wave without resampling forgets nothing.
2. The finished particles are weighted but not drawn once more before they vote: that would only add noise.
3. A particle whose sample failed stays where it is, with weight 0.
4. The last step allowed runs to the end, so that every particle can answer.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal

from posttrain_plugins.search import (
    Aggregate,
    Growth,
    Path,
    Select,
    check_fields,
    flat,
    judged,
    refuse,
    settle,
    until_spent,
)
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Request, Result, RewardRef

__all__ = ["ParticleFiltering"]

EDGE = 1e-6
"""Scores are kept so far from 0 and 1, whose logits are infinite."""


@dataclass
class ParticleFiltering:
    """`num_particles` paths, drawn anew after each step by the softmax of their scores' logits.

    Args:
        scorer: a reward that scores steps, as probabilities; scores outside [0, 1] are taken for logits.
        num_particles: the paper's N.
        temperature: divides the logits; above 1 the scores are trusted less.
        resampling: `multinomial` draws each particle by itself, `systematic` all with one number, with less noise.
        ess_threshold: draw anew only where the effective sample size is below this share of the particles; None always.
        max_steps: steps of a path at most.
        separator: ends a step.
        aggregate: how step scores become one; `whole` scores the text as it stands.
        select: how the answer is chosen from the particles; votes count their weights.

    Raises:
        InputError: for a field that cannot be used.

    Example:
        >>> wave = next(ParticleFiltering(scorer="prm", num_particles=4)(Problem("3|7>2")))
        >>> [request.n for request in wave]
        [4]
    """

    example_params: ClassVar[dict[str, Any]] = {"scorer": "score"}

    scorer: RewardRef
    num_particles: int = 8
    temperature: float = 1.0
    resampling: Literal["multinomial", "systematic"] = "multinomial"
    ess_threshold: float | None = None
    max_steps: int = 40
    separator: str = SEPARATOR
    aggregate: Aggregate = "last"
    select: Select = "weighted_vote"

    def __post_init__(self) -> None:
        check_fields("particle_filtering", self, "num_particles", "max_steps")
        if self.temperature <= 0:
            refuse("particle_filtering", "temperature", self.temperature, "a number above 0")
        if self.ess_threshold is not None and not 0 < self.ess_threshold <= 1:
            refuse("particle_filtering", "ess_threshold", self.ess_threshold, "a share in (0, 1]")

    def __call__(self, problem: Problem) -> Generator[list[Request], Any, Result]:
        population = [Path()] * self.num_particles
        with until_spent(population):
            yield from self._filter(Growth(problem, self.max_steps, self.separator), population)
        return settle(population, self.select, self.weights(population))

    def _filter(self, growth: Growth, population: list[Path]) -> Generator[list[Request], Any, None]:
        """Changes the population in place, so that it stands whenever the budget ends."""
        while live := Counter(replace(p, score=None, step_scores=()) for p in population if p.ended is None):
            grown = yield from growth.grow(list(live), list(live.values()))  # copies of a particle are one request
            if not any(grown):
                return
            moved = yield from judged(growth.problem, flat(grown), self.scorer, self.aggregate, self.separator)
            failed = [[path] * (live[path] - len(children)) for path, children in zip(live, grown, strict=True)]
            population[:] = [*(p for p in population if p.ended), *moved, *flat(failed)]
            if any(particle.ended is None for particle in population):
                population[:] = self.resampled(population, growth.problem.rng)

    def weights(self, population: Sequence[Path]) -> list[float]:
        """The normalised weights, 0 for what was not judged; where nothing was, all are equal."""
        logits = [value / self.temperature for value in _logits([particle.score for particle in population])]
        highest = max(logits)
        if highest == -math.inf:
            return [1 / len(population)] * len(population)
        weights = [math.exp(logit - highest) for logit in logits]
        return [weight / sum(weights) for weight in weights]

    def resampled(self, population: Sequence[Path], rng: random.Random) -> list[Path]:
        """As many particles, drawn with replacement by their weights."""
        weights = self.weights(population)
        ess = 1 / sum(weight**2 for weight in weights)
        if self.ess_threshold is not None and ess >= self.ess_threshold * len(population):
            return list(population)
        if self.resampling == "multinomial":
            return rng.choices(population, weights, k=len(population))
        return _systematic(population, weights, rng.random())


def _logits(scores: Sequence[float | None]) -> list[float]:
    known = [score for score in scores if score is not None]
    are_logits = any(not 0 <= score <= 1 for score in known)
    return [-math.inf if s is None else s if are_logits else _logit(min(max(s, EDGE), 1 - EDGE)) for s in scores]


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _systematic(population: Sequence[Path], weights: Sequence[float], start: float) -> list[Path]:
    """The particles under N equally spaced points of the cumulative weights, the first at `start / N`."""
    count = len(population)
    ends = list(accumulate(weights))
    ends[-1] = math.inf  # rounding may leave the last point above the sum
    return [population[next(k for k, end in enumerate(ends) if (start + i) / count < end)] for i in range(count)]
