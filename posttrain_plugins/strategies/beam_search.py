"""`beam_search`: keep the continuations that the model itself finds most likely.

Papers: Graves, 2012 (https://huggingface.co/papers/1211.3711), beam search over sequence models; Wu et al., 2016
(https://huggingface.co/papers/1609.08144), section 7, hypotheses ranked by length-normalised log-probability.

1. A beam grows by a whole step, or by a block of tokens, and its continuations are sampled, not enumerated: a backend
   need only draw and tell log-probabilities. With `block_tokens: 1` and many branches it comes near the classic search;
   at temperature 0 all branches are the same, and it is greedy decoding.
2. Finished beams stay in the beam and compete with the live ones; the search ends when all that are kept are finished.
3. The normalisation is `transformers`' `length_penalty` (log-probability / tokens ** length_penalty), not the paper's
   ((5 + tokens) ** alpha / 6 ** alpha), and there is no coverage penalty, which needs an attention to a source text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from posttrain_plugins import search
from posttrain_plugins.errors import InputError
from posttrain_plugins.search import Expander, PartialCompletion, Waves
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Result

__all__ = ["BeamSearch"]


@dataclass
class BeamSearch:
    """Find the likeliest completion with `beam_width` beams.

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
        search.check_fields("beam_search", self, "beam_width", "branches", "block_tokens", "max_steps")

    def __call__(self, problem: Problem) -> Waves[Result]:
        expander = Expander(problem, self.max_steps, self.separator, self.block_tokens, logprobs=True)
        beams = [PartialCompletion()]
        with search.stop_when_spent(beams):
            while live := [beam for beam in beams if beam.ended is None]:
                grown = search.flatten((yield from expander.expand(live, self.branches)))
                if not grown:  # every sample failed, and would fail again
                    break
                # Finished beams compete: with a length penalty below 1, a short one may stay ahead of all that follow.
                among = [*(beam for beam in beams if beam.ended), *map(self._scored, grown)]
                # A continuation that is drawn twice is no more likely for it, and would take the place of another one.
                # `beams` is changed in place, since it is the result where the budget ends the search.
                beams[:] = search.deduplicate(search.sort_by_score(among))[: self.beam_width]
        return search.select_answer(beams, "best")

    def _scored(self, path: PartialCompletion) -> PartialCompletion:
        if path.logprob is None:
            message = "beam_search cannot rank its beams: the backend gave no log-probabilities"
            raise InputError(message, hint="use a backend that does, or prm_beam_search with a scorer")
        # Wu et al., section 7, s(Y, X) = log P(Y | X) / lp(Y), with transformers' simpler lp
        return replace(path, score=path.logprob / path.num_tokens**self.length_penalty)
