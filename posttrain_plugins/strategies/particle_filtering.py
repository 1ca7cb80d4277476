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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal

from posttrain_plugins import search
from posttrain_plugins.search import AnswerRule, Expander, PartialCompletion, PathAggregate, Waves
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Result, RewardRef

__all__ = ["ParticleFiltering"]

EDGE = 1e-6
"""Scores are kept so far from 0 and 1, whose logits are infinite."""


@dataclass
class ParticleFiltering:
    """Grow `num_particles` paths, and draw them anew after each step by the softmax of their scores' logits.

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
    aggregate: PathAggregate = "last"
    select: AnswerRule = "weighted_vote"

    def __post_init__(self) -> None:
        search.check_fields("particle_filtering", self, "num_particles", "max_steps")
        if self.temperature <= 0:
            search.refuse_field("particle_filtering", "temperature", self.temperature, "a number above 0")
        if self.ess_threshold is not None and not 0 < self.ess_threshold <= 1:
            search.refuse_field("particle_filtering", "ess_threshold", self.ess_threshold, "a share in (0, 1]")

    def __call__(self, problem: Problem) -> Waves[Result]:
        particles = [PartialCompletion()] * self.num_particles
        with search.stop_when_spent(particles):
            yield from self._filter(Expander(problem, self.max_steps, self.separator), particles)
        return search.select_answer(particles, self.select, self.weights(particles))

    def _filter(self, expander: Expander, particles: list[PartialCompletion]) -> Waves[None]:
        """Run algorithm 1; the particles are changed in place, so that they stand whenever the budget ends."""
        # "while not all particles stop". Copies of a particle are one request with several draws: its prompt is read
        # once. Their scores are left out, so that a particle whose sample fails has none, and weight 0, where it stays.
        while live := Counter(replace(p, score=None, step_scores=()) for p in particles if p.ended is None):
            # "x_{t+1} ~ p_M(. | c, x_{1:t})", the transition. The first wave is the algorithm's initialisation.
            children = yield from expander.expand(list(live), list(live.values()))
            if not any(children):  # every sample failed
                return
            # "w = [r(x^1), ..., r(x^N)]": the reward model sees the path up to its newest step.
            moved = yield from search.judge_paths(
                expander.problem, search.flatten(children), self.scorer, self.aggregate, self.separator
            )
            failed = [[path] * (live[path] - len(drawn)) for path, drawn in zip(live, children, strict=True)]
            # Finished particles stay in the population and are drawn again like the others, as in the paper: a finished
            # one with a high score pushes out live ones with low scores.
            particles[:] = [*(p for p in particles if p.ended), *moved, *search.flatten(failed)]  # (N,)
            if any(particle.ended is None for particle in particles):
                particles[:] = self.resample(particles, expander.problem.rng)

    def weights(self, particles: Sequence[PartialCompletion]) -> list[float]:
        """Return the normalised weights, 0 for what was not judged; where nothing was, all are equal."""
        known = [particle.score for particle in particles if particle.score is not None]
        if not known:
            return [1 / len(particles)] * len(particles)
        are_logits = any(not 0 <= score <= 1 for score in known)
        logits = [-math.inf] * len(particles)
        for i, particle in enumerate(particles):
            if particle.score is not None:
                share = min(max(particle.score, EDGE), 1 - EDGE)
                logits[i] = (particle.score if are_logits else math.log(share / (1 - share))) / self.temperature
        # theta = softmax(w), with the largest logit taken out, so that nothing overflows. A softmax of logits is what
        # makes weights proportional to the odds of the scores, and so to a likelihood.
        odds = [math.exp(logit - max(logits)) for logit in logits]
        return [each / sum(odds) for each in odds]

    def resample(self, particles: Sequence[PartialCompletion], rng: random.Random) -> list[PartialCompletion]:
        """Draw as many particles with replacement by their weights."""
        weights, count = self.weights(particles), len(particles)
        ess = 1 / sum(weight**2 for weight in weights)  # N where all are equal, 1 where one has all the weight
        if self.ess_threshold is not None and ess >= self.ess_threshold * count:
            return list(particles)
        if self.resampling == "multinomial":  # the paper's: j ~ P(j = i) = theta_i, N times
            return rng.choices(particles, weights, k=count)
        # Systematic: the particles under N equally spaced points of the cumulative weights, with one random start. Each
        # is drawn floor(N * weight) or ceil(N * weight) times, where multinomial draws have more variance.
        ends = list(accumulate(weights))
        ends[-1] = math.inf  # rounding may leave the last point above the sum
        start = rng.random()
        return [particles[next(k for k, end in enumerate(ends) if (start + i) / count < end)] for i in range(count)]
