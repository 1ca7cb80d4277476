"""A weighted mean of whole models' weights, which often keeps what each of them knows.

Between a model and what was fine-tuned from it that is WiSE-FT (Wortsman et al., 2021,
https://huggingface.co/papers/2109.01903), among several fine-tunings of one model a model soup (Wortsman et al., 2022,
https://huggingface.co/papers/2203.05482).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from posttrain_plugins.errors import HandoffError
from posttrain_plugins.models.merge import load_plain
from posttrain_plugins.types import ModelArtifact

__all__ = ["interpolate"]


def interpolate(artifacts: Sequence[ModelArtifact], weights: Sequence[float]) -> Any:
    """Return the model whose parameters are the weighted sums of those of several, in the last one's precision.

    The sums are in float32. Two models at most are in memory at once; adapters are merged into their bases first.

    Args:
        artifacts: of one architecture and one size.
        weights: one for each; they add up to 1.

    Raises:
        HandoffError: a parameter of one has another shape, or is not in the other.
        InputError: an adapter that cannot be merged.
    """
    import torch

    first, *others = artifacts
    model = load_plain(first.path, first.loading).model
    dtype, model = model.dtype, model.float()
    total = dict(model.named_parameters())  # tied ones once
    with torch.no_grad():
        for parameter in total.values():
            parameter.mul_(weights[0])
        for artifact, weight in zip(others, weights[1:], strict=True):
            loaded = load_plain(artifact.path, artifact.loading).model
            dtype, other = loaded.dtype, dict(loaded.named_parameters())
            _check_alike(first.name, total, artifact.name, other)
            for name, parameter in total.items():
                parameter.add_(other[name].float(), alpha=weight)
    return model.to(dtype)


def _check_alike(name: str, total: dict[str, Any], other_name: str, other: dict[str, Any]) -> None:
    odd = sorted(total.keys() ^ other.keys()) or [n for n, p in total.items() if p.shape != other[n].shape]
    if odd:
        shapes = [tuple(given[odd[0]].shape) if odd[0] in given else "not there" for given in (other, total)]
        message = f"'{other_name}' and '{name}' cannot be combined: {odd[0]} is {shapes[0]}, expected {shapes[1]}"
        raise HandoffError(message, hint="combine models of one architecture and size, fine-tuned from one base")
