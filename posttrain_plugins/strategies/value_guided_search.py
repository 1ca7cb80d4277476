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

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.search import (
    Aggregate,
    Growth,
    Path,
    Select,
    best_first,
    check_fields,
    distinct,
    flat,
    judged,
    refuse,
    settle,
    shares,
    until_spent,
)
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Request, Result, RewardRef

__all__ = ["ValueGuidedSearch"]


@dataclass
class ValueGuidedSearch:
    """`n / beam_width` beams; each block, `beam_width` continuations of each are drawn and the most valuable are kept.

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
    aggregate: Aggregate = "whole"
    separator: str = SEPARATOR
    select: Select = "weighted_vote"

    def __post_init__(self) -> None:
        check_fields("value_guided_search", self, "n", "beam_width", "block_tokens", "max_steps")
        if self.n % self.beam_width:
            refuse("value_guided_search", "beam_width", self.beam_width, f"a divisor of n ({self.n})")

    def __call__(self, problem: Problem) -> Generator[list[Request], Any, Result]:
        growth = Growth(problem, self.max_steps, self.separator, self.block_tokens, values=self.scorer is None)
        done: list[Path] = []
        beams = [Path()]
        with until_spent(done):
            while beams:
                slots = self.n // self.beam_width - len(done)
                grown = flat((yield from growth.grow(beams, shares(slots * self.beam_width, len(beams)))))
                valued = yield from self._valued(problem, distinct(grown))
                kept = best_first(valued)[:slots]
                if not kept:
                    break
                done += [beam for beam in kept if beam.ended]
                beams = [beam for beam in kept if beam.ended is None]
        return settle([*done, *beams], self.select)

    def _valued(self, problem: Problem, blocks: list[Path]) -> Generator[list[Request], Any, list[Path]]:
        if self.scorer is not None:
            scored = yield from judged(problem, blocks, self.scorer, self.aggregate, self.separator)
            return list(scored)
        if blocks and blocks[0].steps == 1 and all(block.score is None for block in blocks):
            message = "value_guided_search has no guide: the backend gave no values"
            raise InputError(message, hint="serve a model with its critic (a ppo stage's), or give a scorer")
        return blocks
