"""TRL's fused LM head as it is on a GPU, for a step that is gone through without one.

TRL 1.16 (`trl.kernels.chunked_logprob`) computes logits in tiles of 4,096 tokens and 32,768 of the vocabulary, in one
buffer. On a GPU a Triton kernel folds the buffer in place, and products are added to float32 sums as they are made;
elsewhere torch's own ops do it, with eight more of such tiles at once. No paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["NAMES", "folding_in_place"]

NAMES = ("_forward_tile", "_backward_tile", "_addmm_fp32")
"""What stands for the kernels where there is no GPU."""


@contextmanager
def folding_in_place() -> Iterator[None]:
    """Let the fused head allocate what it does on a GPU, and compute nothing: for tensors without storage."""
    from trl.kernels import chunked_logprob

    before = {name: getattr(chunked_logprob, name) for name in NAMES}
    for name in NAMES:
        setattr(chunked_logprob, name, _nothing)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(chunked_logprob, name, function)


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Compute nothing."""
