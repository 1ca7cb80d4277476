"""How much memory training a decoder takes, by formula: weights, gradients, optimizer, activations, logits.

Of a step with N tokens (rows times their length), in a model of H hidden units, I of the MLP, Q of all query heads:
the weights P; of what learns its gradients and AdamW's two moments; N (6H + 5Q + 4I) numbers of activations for every
layer, or with gradient checkpointing for one layer, and N H for each. TRL's SFT and GRPO hold a tile of the logits,
and N H. The peak is the larger of the loss's moment and the end of the backward pass. Measured on SmolLM2, with the
logits of a plain loss, the whole took 1 to 3 % more, and small cases with checkpointing 14 %. No paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = ["SHAPES", "Shape", "Training", "largest_that_fits", "training_bytes"]

Training: TypeAlias = Literal["all parameters", "LoRA", "LoRA in 4 bits"]

TILE = 4096
"""Tokens of which TRL's fused head holds logits at once, over a piece of the vocabulary as wide as that."""
FOUR_BITS = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits, with the constants of its block."""


@dataclass(frozen=True)
class Shape:
    """What a decoder's size follows from.

    Args:
        layers: of attention and MLP.
        hidden: H.
        mlp: I.
        queries: heads times their size.
        keys: key heads times their size.
        vocabulary: tokens.
        is_tied: is the LM head the embedding?
    """

    layers: int
    hidden: int
    mlp: int
    queries: int
    keys: int
    vocabulary: int
    is_tied: bool = True

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """The linear maps of a layer, inputs by outputs."""
        h, i, q, kv = self.hidden, self.mlp, self.queries, self.keys
        return ((h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h))

    @property
    def linear(self) -> int:
        """Parameters of all linear maps but the LM head."""
        return self.layers * sum(a * b for a, b in self.matrices)

    @property
    def parameters(self) -> int:
        """All of them, but for norms (less than 0.1 %)."""
        return self.linear + self.vocabulary * self.hidden * (1 if self.is_tied else 2)

    def adapter(self, rank: int) -> int:
        """Parameters of LoRA on all linear maps but the LM head."""
        return self.layers * sum(rank * (a + b) for a, b in self.matrices)


SHAPES: Mapping[str, Shape] = {
    "SmolLM2-135M": Shape(30, 576, 1536, 576, 192, 49152),
    "Qwen3-0.6B": Shape(28, 1024, 3072, 2048, 1024, 151936),
    "Qwen3-1.7B": Shape(28, 2048, 6144, 2048, 1024, 151936),
    "Qwen3-4B": Shape(36, 2560, 9728, 4096, 1024, 151936),
    "Qwen3-8B": Shape(36, 4096, 12288, 4096, 1024, 151936, is_tied=False),
    "Qwen3-14B": Shape(40, 5120, 17408, 5120, 1024, 151936, is_tied=False),
    "Qwen3-32B": Shape(64, 5120, 25600, 8192, 1024, 151936, is_tied=False),
}
"""Models of well-known sizes, from the smallest up."""


def training_bytes(
    shape: Shape,
    training: Training,
    *,
    tokens: int,
    dtype_bytes: int = 4,
    is_checkpointed: bool = False,
    rank: int = 16,
) -> int:
    """Return the bytes of SFT at its peak.

    Args:
        shape: of the model.
        training: what learns.
        tokens: of the rows that are in one forward pass.
        dtype_bytes: of a weight and an activation: 4, or 2 for bfloat16. What learns is in float32.
        is_checkpointed: gradient checkpointing.
        rank: of LoRA.
    """
    outside = shape.parameters - shape.linear
    packed = FOUR_BITS if training == "LoRA in 4 bits" else dtype_bytes
    learns = shape.parameters if training == "all parameters" else shape.adapter(rank)
    weights = shape.linear * packed + outside * dtype_bytes
    if training != "all parameters":
        weights += 4 * learns
    elif dtype_bytes < 4:
        weights = 4 * learns  # TRL trains all parameters in float32, computing in bfloat16
    of_layer = tokens * dtype_bytes * (6 * shape.hidden + 5 * shape.queries + 4 * shape.mlp)
    kept = shape.layers * (tokens * shape.hidden * dtype_bytes if is_checkpointed else of_layer)
    activations = kept + (of_layer if is_checkpointed else 0)
    head = tokens * shape.hidden * dtype_bytes + min(tokens, TILE) * min(shape.vocabulary, TILE) * 4
    gradients, moments = 4 * learns, 8 * learns
    return int(weights + moments + max(activations + head, gradients + of_layer))


def largest_that_fits(training: Training, memory: int, **how: Any) -> str:
    """Return the name of the largest of `SHAPES` whose training fits into so many bytes; empty if none does.

    Args:
        training: what learns.
        memory: in bytes.
        **how: as `training_bytes` takes it.
    """
    fits = [name for name, shape in SHAPES.items() if training_bytes(shape, training, **how) <= memory]
    return fits[-1] if fits else ""
