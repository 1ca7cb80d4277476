"""Several LoRA adapters over one base made one, by PEFT's `add_weighted_adapter`.

`ties` is TIES-Merging (Yadav et al., 2023, https://huggingface.co/papers/2306.01708), `dare_*` is DARE (Yu et al.,
2023, https://huggingface.co/papers/2311.03099), `linear` a weighted sum of the factors, `cat` and `svd` that of the
products.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

from posttrain_plugins.errors import HandoffError, InputError
from posttrain_plugins.models.folder import adapter_config, adapters_in, base_of, copy_below, digest
from posttrain_plugins.models.load import load_base, load_tokenizer
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
    """Combines adapters into one over the same base, by PEFT's names.

    Args:
        models: adapters, such as `[tasks+sum, tasks+max]`.
        weights: one for each; 1 where they are left out.
        combination_type: how; the ranks have to be equal for all but `cat` and `*svd`.
        density: the share of values that is kept, of `ties`, `dare_*` and `magnitude_prune`, which need it.
        majority_sign_method: of `ties` and `dare_ties`.
        svd_rank: of the `*svd` types; by default the largest rank.
    """

    models: list[ModelRef]
    weights: list[float] | None = None
    combination_type: Combination = "svd"
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
        prunes = self.combination_type.startswith(("ties", "dare", "magnitude"))
        if prunes != (self.density is not None):
            found = f"density: {self.density}"
            hint = "density: 0.5" if prunes else "leave density out, or combination_type: ties"
            raise InputError(f"combine by {self.combination_type} cannot have {found}", hint=hint)
        if self.density is not None and not 0 < self.density <= 1:
            raise InputError(f"density is {self.density}, expected above 0 and at most 1")

    def __call__(self, context: StageContext) -> StageResult:
        from peft import PeftModel
        from transformers import set_seed

        artifacts: list[ModelArtifact] = context.inputs["models"]
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
            peft.add_weighted_adapter(names, weights, "default", combination_type=self.combination_type, **given)
        except ValueError as cause:
            raise InputError(f"the adapters cannot be combined: {cause}", hint="combination_type: svd") from cause
        folder = context.folder / "model"
        peft.save_pretrained(str(folder), selected_adapters=["default"])
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's card says nothing of how it was made
        load_tokenizer(first.path, first.loading).save_pretrained(str(folder))
        if below := adapters_in(first.path)[:-1]:
            copy_below(below, folder)
        # what any of them was trained on, so that an evaluation can tell what is not held out
        seen = sorted({line for artifact in artifacts for file in artifact.seen for line in file.read_text().split()})
        (context.folder / "seen.txt").write_text("".join(f"{line}\n" for line in seen), encoding="utf-8")
        return StageResult(model_path=folder, metrics={"rank": float(peft.peft_config["default"].r)})


def _check(artifacts: list[ModelArtifact]) -> None:
    """Refuse what is not the same for all, with both values, before anything is loaded."""
    first, *others = artifacts
    for artifact in artifacts:
        kind = adapter_config(artifact.path).get("peft_type")
        if kind != "LORA":
            found = kind or "a full model"
            raise InputError(f"'{artifact.name}' cannot be combined: {found}, expected LORA", hint="train it with lora")
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
