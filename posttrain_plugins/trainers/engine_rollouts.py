"""`rollouts: engine`: our decoding loop draws the completions of a trainer, in place of transformers' `generate`.

A prompt is read once for all of its completions, finished rows leave the batch, and a row's noise is a function of its
own seed alone (`backends/transformers/decode.py`). The distribution is that of `generate` with temperature, top_k and
top_p; the draws are others. No paper.

1. Seeds are of the run's seed, the step, the process, and how often within the step: a run that goes on from a
   checkpoint draws what it would have drawn.
2. What the loop does not know is refused (`stage_rules.speed_concerns`): `min_p`, `repetition_penalty`,
   `generation_kwargs`, images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from posttrain_plugins.backends.transformers.backend import TransformersBackend
from posttrain_plugins.errors import InputError
from posttrain_plugins.trainers import compat
from posttrain_plugins.types import SamplingParams

__all__ = ["draw_with_engine"]


def draw_with_engine(trainer: Any, stage: str) -> None:
    """Let a trainer that samples draw with our loop, from now on.

    Args:
        trainer: GRPO's, RLOO's or ours.
        stage: whose it is, for errors.

    Raises:
        InputError: its weights are sharded.
    """
    if compat.has_sharded_weights(trainer):
        hint = "train with DDP or ZeRO-2, or take rollouts: engine out of the stage"
        raise InputError(f"stage '{stage}': rollouts: engine needs the whole weights on each process", hint=hint)
    calls = _Calls()

    def draw(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        return _draw(trainer, prompts, calls.next(trainer))

    compat.draw_with(trainer, draw)


class _Calls:
    """Counts the rollouts of a step, which a later step, or a run that goes on from here, begins anew."""

    def __init__(self) -> None:
        self.place: tuple[Any, ...] = ()
        self.count = 0

    def next(self, trainer: Any) -> str:
        place = (
            trainer.args.seed,
            trainer.state.global_step,
            trainer.model.training,
            trainer.accelerator.process_index,
        )
        self.count = self.count + 1 if place == self.place else 0
        self.place = place
        return ":".join(map(str, (*place, self.count)))


def _draw(trainer: Any, prompts: Sequence[Sequence[int]], place: str) -> list[list[int]]:
    """Return a completion of each prompt, equal ones among them, as token ids with EOS where there was one."""
    from posttrain_plugins.backends.transformers.decode import Row

    model, config = trainer.accelerator.unwrap_model(trainer.model), trainer.generation_config
    is_training = model.training
    limit = config.max_new_tokens
    temperature = trainer.temperature if config.do_sample else 0.0
    params = SamplingParams(temperature, trainer.top_p, limit, top_k=trainer.top_k or 0)
    rows = [Row((i, 0), tuple(ids), params, _seed(place, i), limit) for i, ids in enumerate(prompts)]
    backend = TransformersBackend(model, trainer.processing_class, identity=place)
    backend.eos_ids = list(trainer.eos_token_ids)
    try:
        drawn = {row.row.name[0]: row.token_ids for row in backend.draw(rows)}
    finally:
        model.train(is_training)  # the backend generates in `eval`
    return [drawn[i] for i in range(len(prompts))]


def _seed(place: str, row: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{place}:{row}".encode()).digest()[:8], "big") >> 1
