"""A model written for others: safetensors that plain `transformers` and vLLM load, and a model card. No paper.

Adapters are merged (`trainers/merging`), heads become what `AutoModelForSequenceClassification` (reward models) and
`AutoModelForTokenClassification` (process reward models, critics) read.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.models import merge
from posttrain_plugins.models.load import load_tokenizer, options_of
from posttrain_plugins.types import (
    EXPORT_MARKER,
    ConfigOf,
    ModelArtifact,
    ModelRef,
    RewardRef,
    StageContext,
    StageResult,
)

__all__ = ["Export"]

LOADING = ("dtype", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "model_revision")


@dataclass
class Export:
    """Writes a model, or a stage's reward model, to a folder of your own, with a card of how it was made.

    The folder is replaced by one rename, and only if this very stage wrote it; where it was removed or another run
    overwrote it, the next run writes it again.

    Args:
        to: the folder; a relative one starts where the command is run.
        model: what to export; adapters are merged.
        reward: in its place a reward-model or process-reward-model stage.
        critic: the value function of a `ppo` stage's model instead of its policy, as a token classifier of one label.
        dtype: of the weights; by default as they are trained.
        max_shard_size: of one file, in the words of `save_pretrained`.
        quantization: save bitsandbytes' 4-bit or 8-bit weights: fields of TRL's `ModelConfig`, `{load_in_4bit: true}`.
    """

    to: str
    model: ModelRef | None = None
    reward: RewardRef | None = None
    critic: bool = False
    dtype: str | None = None
    max_shard_size: str = "5GB"
    quantization: Annotated[dict[str, Any], ConfigOf("trl:ModelConfig")] = field(default_factory=dict)

    produces: ClassVar[str] = "model"
    outputs: ClassVar[tuple[str, ...]] = ("to",)
    example_params: ClassVar[dict[str, Any]] = {"to": "exported", "model": "tiny"}
    merges: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.model is None) == (self.reward is None):
            raise InputError("export takes one of 'model' and 'reward'", hint="model: STAGE")
        if self.critic and self.model is None:
            raise InputError("export of a critic takes the 'model' of a ppo stage", hint="model: STAGE")
        if self.quantization and not (self.quantization.get("load_in_4bit") or self.quantization.get("load_in_8bit")):
            raise InputError("quantization says nothing of bits", hint="quantization: {load_in_4bit: true}")
        _check_free(Path(self.to))  # while the recipe is checked: not after hours of training

    def __call__(self, context: StageContext) -> StageResult:
        from posttrain_plugins.trainers.model_card import model_card

        artifact = self._artifact(context)
        target = Path(self.to).absolute()
        _check_free(target, context.artifact_name)  # and again: another stage may have exported to it since
        plain, tokenizer = self._plain(artifact, context.seed)
        scratch = context.folder / "export"  # left by a killed run
        shutil.rmtree(scratch, ignore_errors=True)
        merge.save_plain(plain.model, tokenizer, scratch, max_shard_size=self.max_shard_size)
        if self.quantization:
            # in two steps: adapters are merged into plain weights, and bitsandbytes packs as it loads
            fields = {"dtype": str(plain.model.dtype).removeprefix("torch."), **self.quantization}
            merge.quantize_saved(scratch, options_of(fields), max_shard_size=self.max_shard_size)
        card = model_card(artifact, target.name, type(plain.model).__name__, plain.metrics, self.quantization)
        (scratch / "README.md").write_text(card, encoding="utf-8")
        (scratch / EXPORT_MARKER).write_text(json.dumps({"made_by": context.artifact_name}) + "\n", encoding="utf-8")
        _replace(scratch, target)
        context.reporter.note(f"exported to {target}")
        size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
        handoff = {"quantization": self.quantization or None}
        return StageResult({**plain.metrics, "weights_gib": size / 2**30}, model_path=target, handoff=handoff)

    def _artifact(self, context: StageContext) -> ModelArtifact:
        if self.model is not None:
            found: ModelArtifact = context.inputs["model"]
            return found
        # the plugin that stands for a reward-model stage knows its folder, and how it is loaded
        reward = context.inputs["reward"]
        path = getattr(reward.func, "model_name_or_path", None)
        if path is None:
            raise InputError(
                f"reward '{reward.name}' holds no model to export", hint="name a stage that trains a reward model"
            )
        loading = {k: v for k, v in vars(reward.func).items() if k in LOADING and v and v != "auto"}
        return ModelArtifact(reward.name, path, loading)

    def _plain(self, artifact: ModelArtifact, seed: int) -> tuple[merge.Merged, Any]:
        """Load the model to write, with adapters merged, and its tokenizer."""
        from posttrain_plugins.trainers.ppo.critic_export import critic_as_classifier

        merge.check_mergeable(artifact.name, artifact.path)
        tokenizer = load_tokenizer(artifact.path, artifact.loading, artifact.chat_template)
        if self.critic:
            return merge.Merged(critic_as_classifier(artifact, self.dtype), {}), tokenizer
        # a few texts on which the logits before and after merging are compared, for the card
        ids = merge.random_ids(tokenizer, 8, seed) if artifact.is_adapter else ()
        return merge.load_plain(artifact.path, artifact.loading, dtype=self.dtype, ids=ids), tokenizer


def _check_free(target: Path, owner: str | None = None) -> None:
    """Refuse a folder with anything in it that this stage did not write; which stage that was, only a run knows."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    marker = target / EXPORT_MARKER
    found = json.loads(marker.read_text(encoding="utf-8"))["made_by"] if marker.is_file() else None
    # without the key: the same stage of the same recipe, run with other arguments, replaces what it wrote
    if found is not None and (owner is None or found.rpartition("-")[0] == owner.rpartition("-")[0]):
        return
    holds = "files that no export wrote" if found is None else f"what {found} exported"
    raise InputError(
        f"cannot export to {target}: it holds {holds}", hint="choose another folder with `to`, or empty it"
    )


def _replace(made: Path, target: Path) -> None:
    """Move a folder to where another may stand; what bears the name is complete at any moment."""
    # first beside the target: the run's folder may be on another disk, from which a move is a copy
    beside, old = (target.with_name(f".{target.name}.{end}") for end in ("partial", "old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    for folder in (beside, old):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.move(made, beside)
    if target.exists():
        target.rename(old)
    beside.rename(target)
    shutil.rmtree(old, ignore_errors=True)
