"""`value_guided_search`: a beam search over blocks of tokens, guided by a value function.

Papers: Wang et al., 2025 (https://huggingface.co/papers/2505.17373), algorithm 1, blocks and the final vote; Liu et
al., 2023 (https://huggingface.co/papers/2309.15028), PPO's critic as the guide; Wang et al., 2024
(https://huggingface.co/papers/2412.16145), the value function of offline RL (OREO).

1. The value is that of the state after the block's last token, as the backend's value head has it; a scorer may take
   its place, asked of the text as it stands.
2. Identical blocks are merged, and their draws go to the others, so that `n` blocks are drawn as long as no beam is
   finished.
3. A block that ends within a character is cut before it.
4. The paper's block of 4,096 tokens is made for chains of thought that long; the default suits short ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain_plugins import search
from posttrain_plugins.errors import InputError
from posttrain_plugins.search import AnswerRule, Expander, PartialCompletion, PathAggregate, Waves
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Result, RewardRef

__all__ = ["ValueGuidedSearch"]


@dataclass
class ValueGuidedSearch:
    """Draw `beam_width` blocks from each of `n / beam_width` beams, keep the most valuable ones, and go on from them.

    Args:
        scorer: a reward that judges begun completions; None takes the value head of the backend's model.
        n: blocks drawn at a time; the paper's N.
        beam_width: continuations of each beam; the paper's w. It divides `n`.
        block_tokens: tokens of a block.
        max_steps: blocks of a path at most; the last one runs to the end.
        aggregate: `whole` asks the scorer for one score; the others for step scores, which become one.
        separator: ends a step, where step scores are asked for.
        select: how the answer is chosen from the `n / beam_width` finished beams.

    Raises:
        InputError: for a field that cannot be used, and where there is neither scorer nor value head.

    Example:
        >>> wave = next(ValueGuidedSearch(n=8, beam_width=2, block_tokens=16)(Problem("3|7>2")))
        >>> wave[0].n, wave[0].params.max_tokens, wave[0].params.values
        (8, 16, True)
    """

    scorer: RewardRef | None = None
    n: int = 8
    beam_width: int = 2
    block_tokens: int = 64
    max_steps: int = 256
    aggregate: PathAggregate = "whole"
    separator: str = SEPARATOR
    select: AnswerRule = "weighted_vote"

    def __post_init__(self) -> None:
        search.check_fields("value_guided_search", self, "n", "beam_width", "block_tokens", "max_steps")

    def __call__(self, problem: Problem) -> Waves[Result]:
        expander = Expander(problem, self.max_steps, self.separator, self.block_tokens, values=self.scorer is None)
        # Algorithm 1, lines 2 and 3: B = N/w beams, all of them the prompt. One beam with all N draws is the same: B
        # equal prompts would be one request anyway.
        finished: list[PartialCompletion] = []
        beams = [PartialCompletion()]
        with search.stop_when_spent(finished):
            while beams:  # line 4: while a beam is not finished
                # Line 5: w blocks of each beam that is not finished. Beams that were merged leave their draws to the
                # others; those that finished take theirs with them, so the last waves are small.
                slots = self.n // self.beam_width - len(finished)
                draws = search.split_draws(slots * self.beam_width, len(beams))
                blocks = search.deduplicate(search.flatten((yield from expander.expand(beams, draws))))
                # Line 6: the continuations with the highest values, over all beams together and not beam by beam.
                kept = search.sort_by_score((yield from self._valued(problem, blocks)))[:slots]
                if not kept:  # every sample failed
                    break
                finished += [beam for beam in kept if beam.ended]
                beams = [beam for beam in kept if beam.ended is None]
        return search.select_answer(
            [*finished, *beams], self.select
        )  # line 8: best of N, or the weighted majority vote

    def _valued(self, problem: Problem, blocks: list[PartialCompletion]) -> Waves[list[PartialCompletion]]:
        if self.scorer is not None:
            return (yield from search.judge_paths(problem, blocks, self.scorer, self.aggregate, self.separator))
        # Told after the first wave, not from the backend's capabilities, of which a strategy knows nothing. Later on a
        # value may be missing for one block alone, which then ranks last.
        if blocks and blocks[0].num_steps == 1 and all(block.score is None for block in blocks):
            message = "value_guided_search has no guide: the backend gave no values"
            raise InputError(message, hint="serve a model with its critic (a ppo stage's), or give a scorer")
        return blocks
