"""`beam_search`: keep the continuations that the model itself finds most likely.

Papers: Graves, 2012 (https://arxiv.org/abs/1211.3711), beam search over sequence models; Wu et al., 2016
(https://huggingface.co/papers/1609.08144), section 7, hypotheses ranked by length-normalised log-probability.

1. A beam grows by a whole step, or by a block of tokens, and its continuations are sampled, not enumerated: a backend
   need only draw and tell log-probabilities. With `block_tokens: 1` and many branches it comes near the classic search;
   at temperature 0 all branches are the same, and it is greedy decoding.
2. Finished beams stay in the beam and compete with the live ones; the search ends when all that are kept are finished.
3. The normalisation is `transformers`' `length_penalty` (log-probability / tokens ** length_penalty), not the paper's.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.search import Growth, Path, best_first, check_fields, distinct, flat, settle, until_spent
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Request, Result

__all__ = ["BeamSearch"]


@dataclass
class BeamSearch:
    """The likeliest completion that `beam_width` beams find.

    Args:
        beam_width: beams that are kept.
        branches: continuations drawn of each beam, at the problem's own temperature.
        length_penalty: exponent of the length that divides the log-probability; 0 ranks by the sum, which favours
            short completions.
        block_tokens: tokens by which a beam grows; None lets it grow by a step.
        max_steps: steps or blocks of a path at most; the last one runs to the end.
        separator: ends a step.

    Raises:
        InputError: for a field that cannot be used, and where the backend gives no log-probabilities.

    Example:
        >>> wave = next(BeamSearch(branches=3, block_tokens=16)(Problem("3|7>2")))
        >>> wave[0].n, wave[0].params.max_tokens, wave[0].params.logprobs
        (3, 16, True)
    """

    beam_width: int = 4
    branches: int = 4
    length_penalty: float = 1.0
    block_tokens: int | None = None
    max_steps: int = 256
    separator: str = SEPARATOR

    def __post_init__(self) -> None:
        check_fields("beam_search", self, "beam_width", "branches", "block_tokens", "max_steps")

    def __call__(self, problem: Problem) -> Generator[list[Request], Any, Result]:
        growth = Growth(problem, self.max_steps, self.separator, self.block_tokens, logprobs=True)
        beams = [Path()]
        with until_spent(beams):
            while live := [beam for beam in beams if beam.ended is None]:
                grown = flat((yield from growth.grow(live, self.branches)))
                if not grown:
                    break
                among = [*(beam for beam in beams if beam.ended), *map(self._scored, grown)]
                beams[:] = distinct(best_first(among))[: self.beam_width]  # sampled twice is no more likely
        return settle(beams, "best")

    def _scored(self, path: Path) -> Path:
        if path.logprob is None:
            message = "beam_search cannot rank its beams: the backend gave no log-probabilities"
            raise InputError(message, hint="use a backend that does, or prm_beam_search with a scorer")
        return replace(path, score=path.logprob / path.tokens**self.length_penalty)
