"""Several models made one: LoRA adapters over one base by PEFT's `add_weighted_adapter`, whole models by their mean.

A mean of a base and what was fine-tuned from it gives back part of what fine-tuning forgot (WiSE-FT), a mean of several
fine-tunings is a model soup: `models/interpolate.py` has the papers. Of adapters `ties` is TIES-Merging (Yadav et al.,
2023, https://huggingface.co/papers/2306.01708), `dare_*` is DARE (Yu et al., 2023,
https://huggingface.co/papers/2311.03099), `linear` a weighted sum of the factors, `cat` and `svd` that of the products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from posttrain_plugins.errors import HandoffError, InputError
from posttrain_plugins.models.folder import adapter_config, adapters_in, base_of, copy_below, digest
from posttrain_plugins.models.load import load_base, load_tokenizer
from posttrain_plugins.models.merge import save_plain
from posttrain_plugins.types import ModelArtifact, ModelRef, StageContext, StageResult

__all__ = ["Combine"]

Combination: TypeAlias = Literal[
    "svd",
    "linear",
    "cat",
    "ties",
    "ties_svd",
    "dare_ties",
    "dare_linear",
    "dare_ties_svd",
    "dare_linear_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]


@dataclass
class Combine:
    """Combines adapters into one over the same base, or the weights of whole models into those of one.

    Args:
        models: adapters, such as `[tasks+sum, tasks+max]`; or models one of which at least is whole, `[base, sft]`:
            then adapters among them are merged, and the last one's tokenizer and template are taken.
        weights: one for each. Of adapters 1 where they are left out, and `[0.5]` of a single one is half of what it
            learned; of whole models they add up to 1, and are equal where they are left out.
        combination_type: of adapters, by PEFT's names, by default `svd`; the ranks have to be equal for all but `cat`
            and `*svd`. Whole models are combined by `linear` alone, which is their default.
        density: the share of values that is kept, of `ties`, `dare_*` and `magnitude_prune`, which need it.
        majority_sign_method: of `ties` and `dare_ties`.
        svd_rank: of the `*svd` types; by default the largest rank.
    """

    models: list[ModelRef]
    weights: list[float] | None = None
    combination_type: Combination | None = None
    density: float | None = None
    majority_sign_method: Literal["total", "frequency"] = "total"
    svd_rank: int | None = None

    produces: ClassVar[str] = "model"
    example_params: ClassVar[dict[str, Any]] = {"models": ["tiny:adapter", "tiny:adapter"]}

    def __post_init__(self) -> None:
        if self.weights is not None and len(self.weights) != len(self.models):
            raise InputError(
                f"combine has {len(self.weights)} weights, expected {len(self.models)}, one for each model"
            )
        # PEFT ignores a density that its method does not use, and fails deep inside without one that it needs
        prunes = (self.combination_type or "svd").startswith(("ties", "dare", "magnitude"))
        if prunes != (self.density is not None):
            found = f"density: {self.density}"
            hint = "density: 0.5" if prunes else "leave density out, or combination_type: ties"
            raise InputError(f"combine by {self.combination_type or 'svd'} cannot have {found}", hint=hint)
        if self.density is not None and not 0 < self.density <= 1:
            raise InputError(f"density is {self.density}, expected above 0 and at most 1")

    def __call__(self, context: StageContext) -> StageResult:
        artifacts: list[ModelArtifact] = context.inputs["models"]
        is_whole = not all(artifact.is_adapter for artifact in artifacts)
        result = self._interpolate(context, artifacts) if is_whole else self._combine(context, artifacts)
        # what any of them was trained on, so that an evaluation can tell what is not held out
        seen = sorted({line for artifact in artifacts for file in artifact.seen for line in file.read_text().split()})
        (context.folder / "seen.txt").write_text("".join(f"{line}\n" for line in seen), encoding="utf-8")
        return result

    def _interpolate(self, context: StageContext, artifacts: list[ModelArtifact]) -> StageResult:
        """Write the weighted mean of whole models, in the precision that the last one was saved in."""
        from posttrain_plugins.models.interpolate import interpolate

        last, weights = artifacts[-1], self.weights or [1.0 / len(artifacts)] * len(artifacts)
        if self.combination_type not in (None, "linear"):
            whole = next(artifact.name for artifact in artifacts if not artifact.is_adapter)
            message = f"'{whole}' cannot be combined by {self.combination_type}: it is a whole model, expected adapters"
            raise InputError(message, hint="combination_type: linear")
        if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
            message = f"the weights of whole models add up to {sum(weights):g}, expected 1"
            raise InputError(message, hint="weights: [0.5, 0.5]")
        tokenizers = [load_tokenizer(one.path, one.loading, one.chat_template) for one in artifacts]
        for artifact, tokenizer in zip(artifacts, tokenizers, strict=True):
            if tokenizer.get_vocab() != tokenizers[-1].get_vocab():
                message = f"'{artifact.name}' and '{last.name}' cannot be combined: they have different vocabularies"
                raise HandoffError(message, hint="combine models that start from one model")
        folder = context.folder / "model"
        save_plain(interpolate(artifacts, weights), tokenizers[-1], folder)
        return StageResult(model_path=folder, metrics={"models": float(len(artifacts))}, handoff={"quantization": None})

    def _combine(self, context: StageContext, artifacts: list[ModelArtifact]) -> StageResult:
        """Write one adapter that does what PEFT makes of several."""
        from peft import PeftModel
        from transformers import set_seed

        _check(artifacts)
        names = [f"model_{i}" for i in range(len(artifacts))]
        first = artifacts[0]
        revision = {"revision": r} if (r := first.loading.get("model_revision")) else {}
        # in float32 and not as the recipe loads it: sums of small numbers, and SVD has no half precision
        peft = PeftModel.from_pretrained(load_base(first.path, dtype="float32", **revision), first.path, names[0])
        for name, artifact in zip(names[1:], artifacts[1:], strict=True):
            peft.load_adapter(artifact.path, name)
        set_seed(context.seed)  # DARE drops at random
        given = {"svd_rank": self.svd_rank, "density": self.density, "majority_sign_method": self.majority_sign_method}
        weights = self.weights or [1.0] * len(names)
        try:
            how = self.combination_type or "svd"
            peft.add_weighted_adapter(names, weights, "default", combination_type=how, **given)
        except ValueError as cause:
            raise InputError(f"the adapters cannot be combined: {cause}", hint="combination_type: svd") from cause
        folder = context.folder / "model"
        peft.save_pretrained(str(folder), selected_adapters=["default"])
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card says nothing of how it was made
        load_tokenizer(first.path, first.loading).save_pretrained(str(folder))
        if below := adapters_in(first.path)[:-1]:
            copy_below(below, folder)
        return StageResult(model_path=folder, metrics={"rank": float(peft.peft_config["default"].r)})


def _check(artifacts: list[ModelArtifact]) -> None:
    """Refuse what is not the same for all, with both values, before anything is loaded."""
    first, *others = artifacts
    for artifact in artifacts:
        kind = adapter_config(artifact.path).get("peft_type")
        if kind != "LORA":
            raise InputError(f"'{artifact.name}' cannot be combined: {kind}, expected LORA", hint="train it with lora")
        # PEFT combines low-rank factors alone
        full = [n for n in ("modules_to_save", "trainable_token_indices") if adapter_config(artifact.path).get(n)]
        if full:
            raise InputError(f"'{artifact.name}' cannot be combined: it has {full[0]}", hint="merge it instead")
    expected = _common(first)
    for other in others:
        for what, found in _common(other).items():
            if what in expected and found != expected[what]:
                message = f"'{other.name}' and '{first.name}' cannot be combined: {what} is {found}, expected "
                raise HandoffError(f"{message}{expected[what]}", hint="combine adapters that start from one model")


def _common(artifact: ModelArtifact) -> dict[str, Any]:
    base, revision = base_of(artifact.path, artifact.loading.get("model_revision"))
    named = ("tokenizer", "chat_template", "eos_token_id")
    return {
        "base": str(Path(base).resolve()) if Path(base).exists() else f"{base}@{revision or 'main'}",
        "below": [digest(adapter) for adapter in adapters_in(artifact.path)[:-1]],
        **{name: artifact.handoff.get(name) for name in named if artifact.handoff},
    }
