"""How much memory training takes: what stays, and what is alive beside it at the moments at which that is most.

    peak = weights + adapters + optimizer + copies (reference, critic, reward model)
           + max(activations + head [the loss], gradients + one layer [the end of the way back])

`peak_of` is this sum, for `posttrain plan`, which traces a step of the very model (`memory_plan`), and for the sizes of
well-known models (`training_bytes`, which `doctor` and `docs/real_models.md` show), where the moments are by formula.

By formula, a step with N tokens (rows times their length), in a model of H hidden units, I of the MLP, Q of all query
heads, V tokens: N (6H + 5Q + 4I) numbers of activations for every layer, or with gradient checkpointing for one layer,
and N H for each. TRL's fused head holds a tile of the logits (on a CPU eight of them), N H, and the gradient of its own
weights, H V, while all activations are still there. No paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = [
    "SHAPES",
    "SHARE",
    "Moments",
    "Shape",
    "Sharding",
    "Training",
    "head_bytes",
    "largest_that_fits",
    "packed_bytes",
    "peak_of",
    "training_bytes",
]

Training: TypeAlias = Literal["all parameters", "LoRA", "LoRA in 4 bits"]

TILE, WIDTH = 4096, 32768
"""Tokens of which TRL's fused head holds logits at once, and how much of the vocabulary: its buffer is as wide."""
TILES = 8.25
"""Such tiles at once where torch's own ops fold them: the buffer, scaled, over the temperature, log-probabilities,
probabilities, the gradient and what is added to it twice over, and a byte for each truth value. On a GPU there is the
buffer alone (`models.fused_head`)."""
FLOAT32 = 4
FOUR_BITS = 0.5 + 4 / 64
"""Bytes of a weight in 4 bits, with the constants of its block."""
SHARE = 0.9
"""Of the memory that is there: the libraries and other programs take some of it."""
BLOCK, NESTED = 64, 256
"""Weights in 4 bits with one constant, and constants with one of their own where they are nested."""


@dataclass(frozen=True)
class Moments:
    """Bytes that a step has alive beside what stays, when they may be most.

    Args:
        activations: when the layers are through.
        loss: from there until the gradient of the last layer's output is there: logits or a tile of them, and the
            gradient of the head's weights.
        last: while the last layer is gone back through: all activations, with gradient checkpointing this layer's anew.
        end: from there on, most while the first layer is gone back through: all gradients.
        kept: when the whole pass forward is through, a critic's too.
        left: when all is done: gradients.
    """

    activations: int
    loss: int
    last: int
    end: int
    kept: int = 0
    left: int = 0

    @property
    def head(self) -> int:
        """What the loss takes beside the activations, a critic's among these."""
        return max(0, self.loss - max(self.activations, self.kept))

    def extended(self, other: Moments, layers: int) -> Moments:
        """Return the moments of a model with so many more layers than this one's.

        Args:
            other: of the model with one layer more.
            layers: how many more.
        """
        # By what each layer leaves, which is exact: a peak also has what nobody needs and Python has not let go of yet,
        # and the difference of two peaks would be multiplied.
        own, all_kept, grads = (getattr(other, name) - getattr(self, name) for name in ("activations", "kept", "left"))

        # A critic's own pass comes after the policy's and goes back before it: at the policy's moments it is not there.
        def grown(moment: str) -> int:
            before, growth = getattr(self, moment), getattr(other, moment) - getattr(self, moment)
            return int(before + layers * min(own, all_kept, key=lambda each: abs(each - growth)))

        activations, kept = self.activations + layers * own, self.kept + layers * all_kept
        loss, last = max(grown("loss"), kept), grown("last")
        return Moments(activations, loss, last, self.end + layers * grads, kept, self.left + layers * grads)


@dataclass(frozen=True)
class Sharding:
    """In how many parts several processes have what stays.

    Args:
        weights: of all models.
        gradients: of what learns.
        optimizer: its state.
    """

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1

    @classmethod
    def of(cls, engine: str | None, processes: int) -> Sharding:
        """Return what an engine shards: `zero1`, `zero2`, `zero3`, `fsdp1` or `fsdp2`; any other, as `ddp`, nothing."""
        number = {"zero1": 1, "zero2": 2, "zero3": 3, "fsdp1": 3, "fsdp2": 3}.get(engine or "", 0)
        return cls(*(processes if number >= least else 1 for least in (3, 2, 1)))


def peak_of(stays: int, moments: Moments, *, gradients: int, accumulates: bool = False) -> int:
    """Return the bytes of an update at its peak.

    Args:
        stays: weights, adapters, optimizer, and further models.
        moments: of a step.
        gradients: of all that learns.
        accumulates: does a step have several passes? Then the gradients of the first are there in the next.
    """
    held = max(moments.loss, moments.last) + (gradients if accumulates else 0)
    return stays + max(held, moments.end, gradients)


TABLE = 4 * 16
"""Bytes of what each value of 4 bits stands for; every matrix has a table of its own."""
TABLE_OF_NESTED = 4 * 256
"""Bytes of what each byte of a packed constant stands for; every matrix has a copy."""


def packed_bytes(weights: int, bits: Literal[4, 8], *, rows: int = 0, is_nested: bool = False) -> int:
    """Return the bytes of a matrix that bitsandbytes has packed, with its constants and its table.

    Args:
        weights: numbers in it.
        bits: of each.
        rows: outputs; each has a constant where there are 8 bits.
        is_nested: are the constants of 4 bits packed too (`use_bnb_nested_quant`)?
    """
    if bits == 8:
        return weights + 4 * rows
    blocks = -(-weights // BLOCK)
    # with their own table, and their mean, which is taken off them before
    constants = blocks + 4 * -(-blocks // NESTED) + TABLE_OF_NESTED + 4 if is_nested else 4 * blocks
    return -(-weights // 2) + constants + TABLE


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
        dtype_bytes: of a weight and an activation: 4 on a CPU, 2 for bfloat16 on a GPU. What learns is in float32.
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
    head = head_bytes(shape.hidden, tokens, dtype_bytes)
    own = 4 * shape.vocabulary * shape.hidden if training == "all parameters" else 0
    gradients, optimizer = 4 * learns, 8 * learns
    again = of_layer if is_checkpointed else 0
    moments = Moments(kept, kept + head + own, kept + again + own, gradients + of_layer)
    return peak_of(int(weights + optimizer), moments, gradients=gradients)


def head_bytes(hidden: int, tokens: int, dtype_bytes: int = 4) -> int:
    """Return what TRL's fused head holds beside the activations, but for the gradient of its own weights.

    Args:
        hidden: H.
        tokens: of the rows that are in one forward pass.
        dtype_bytes: as `training_bytes` takes it.
    """
    tile = min(tokens, TILE) * WIDTH * dtype_bytes
    return int(tokens * hidden * dtype_bytes + tile * (TILES if dtype_bytes == FLOAT32 else 1))


def largest_that_fits(training: Training, memory: int, **how: Any) -> str:
    """Return the name of the largest of `SHAPES` whose training fits into so many bytes; empty if none does.

    Args:
        training: what learns.
        memory: in bytes.
        **how: as `training_bytes` takes it.
    """
    fits = [name for name, shape in SHAPES.items() if training_bytes(shape, training, **how) <= memory]
    return fits[-1] if fits else ""
