"""A model written for others: safetensors that plain `transformers` and vLLM load, and a model card. No paper.

Adapters are merged (`trainers/merging`), heads become what `AutoModelForSequenceClassification` (reward models) and
`AutoModelForTokenClassification` (process reward models, critics) read.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.models import merge
from posttrain_plugins.models.folder import Task, adapter_config, adapters_in, base_of, named_adapters, task_of
from posttrain_plugins.models.load import load_tokenizer, options_of
from posttrain_plugins.models.merge import Merged
from posttrain_plugins.types import (
    EXPORT_MARKER,
    ConfigOf,
    ModelArtifact,
    ModelRef,
    RewardRef,
    StageContext,
    StageResult,
)

if TYPE_CHECKING:
    from posttrain_plugins.publish.card import Kind

__all__ = ["Export", "save_adapter"]

KINDS: Mapping[Task, Kind] = {
    "CausalLM": "model",
    "SequenceClassification": "reward model",
    "TokenClassification": "process reward model",
}
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # the Hub's own rules are asked when it is pushed
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
        merge: false writes the adapter alone, for PEFT on its base.
        push_to_hub: a repository of the Hub, `ME/NAME`: weights, configs, tokenizer, card and `resolved.yaml` are put
            there in one commit, and nothing else. The folder stands whatever becomes of that.
        private: whether the repository is private; one that is there and public is refused while this says true.
        push_dry_run: list what would be pushed, and push nothing.
    """

    to: str
    model: ModelRef | None = None
    reward: RewardRef | None = None
    critic: bool = False
    dtype: str | None = None
    max_shard_size: str = "5GB"
    quantization: Annotated[dict[str, Any], ConfigOf("trl:ModelConfig")] = field(default_factory=dict)
    merge: bool = True
    push_to_hub: str | None = None
    private: bool = True
    push_dry_run: bool = False

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
        if not self.merge and (self.quantization or self.critic or self.dtype):
            raise InputError("an adapter alone is written as it was trained", hint="merge: true, or leave out the rest")
        if self.push_to_hub is not None and not REPOSITORY.fullmatch(self.push_to_hub):
            raise InputError(f"push_to_hub is '{self.push_to_hub}', expected ME/NAME", hint="push_to_hub: me/my-model")
        _check_free(Path(self.to))  # while the recipe is checked: not after hours of training

    def __call__(self, context: StageContext) -> StageResult:
        artifact = self._artifact(context)
        target = Path(self.to).absolute()
        _check_free(target, context.artifact_name)  # and again: another stage may have exported to it since
        metrics = _standing(target, context.artifact_name)  # by a run whose push failed
        if metrics is None:
            scratch = context.folder / "export"  # left by a killed run
            shutil.rmtree(scratch, ignore_errors=True)
            metrics = self._write(artifact, scratch, context)
            _mark(scratch, context.artifact_name, metrics)
            _replace(scratch, target)
            context.reporter.note(f"exported to {target}")
        details = self._push(target, context) if self.push_to_hub else {}
        handoff = {"quantization": self.quantization or None}
        return StageResult(metrics, model_path=target, handoff=handoff, details=details)

    def _write(self, artifact: ModelArtifact, folder: Path, context: StageContext) -> dict[str, float]:
        """Write weights, tokenizer, card and recipe, and return the figures."""
        from posttrain_plugins.publish.card import Exported, model_card
        from posttrain_plugins.publish.recipe import write_recipe

        title = self.push_to_hub or Path(self.to).absolute().name
        if self.merge:
            plain, tokenizer = self._plain(artifact, context.seed)
            merge.save_plain(plain.model, tokenizer, folder, max_shard_size=self.max_shard_size)
            if self.quantization:
                # in two steps: adapters are merged into plain weights, and bitsandbytes packs as it loads
                fields = {"dtype": str(plain.model.dtype).removeprefix("torch."), **self.quantization}
                merge.quantize_saved(folder, options_of(fields), max_shard_size=self.max_shard_size)
            merging, name = plain.metrics, type(plain.model).__name__
        else:
            save_adapter(artifact, folder)
            merging, name = {}, str(adapter_config(artifact.path)["peft_type"])
        kind = "critic" if self.critic else KINDS.get(task_of(folder) or "CausalLM", "model")
        exported = Exported(title, name, kind, not self.merge, merging, self.quantization)
        (folder / "README.md").write_text(model_card(artifact, exported), encoding="utf-8")
        write_recipe(context.folder.parent, folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return {**merging, "weights_gib": size / 2**30}

    def _push(self, folder: Path, context: StageContext) -> dict[str, Any]:
        from posttrain_plugins.publish.push import push

        assert self.push_to_hub is not None
        if not self.merge and Path(base_of(folder).path).is_absolute():
            raise InputError(
                f"stage '{context.stage}': the adapter's base {base_of(folder).path} is a folder that nobody else has",
                hint="merge: true writes the whole model",
            )
        pushed = push(folder, self.push_to_hub, is_private=self.private, is_dry=self.push_dry_run)
        context.reporter.note(str(pushed))
        return {"pushed": pushed.as_dict()}

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

    def _plain(self, artifact: ModelArtifact, seed: int) -> tuple[Merged, Any]:
        """Load the model to write, with adapters merged, and its tokenizer."""
        from posttrain_plugins.trainers.ppo.critic_export import critic_as_classifier

        merge.check_mergeable(artifact.name, artifact.path)
        tokenizer = load_tokenizer(artifact.path, artifact.loading, artifact.chat_template)
        if self.critic:
            return merge.Merged(critic_as_classifier(artifact, self.dtype), {}), tokenizer
        # a few texts on which the logits before and after merging are compared, for the card
        ids = merge.random_ids(tokenizer, 8, seed) if artifact.is_adapter else ()
        return merge.load_plain(artifact.path, artifact.loading, dtype=self.dtype, ids=ids), tokenizer


def save_adapter(artifact: ModelArtifact, folder: Path) -> None:
    """Write an adapter with its tokenizer, as PEFT loads it on its base.

    Args:
        artifact: a model that is one adapter on its base.
        folder: where to.

    Raises:
        InputError: it is no adapter, or several.
    """
    adapters = adapters_in(artifact.path)
    if len(adapters) != 1 or named_adapters(artifact.path):
        found = f"{len(adapters) or 'no'} adapters" if not named_adapters(artifact.path) else "several side by side"
        raise InputError(f"'{artifact.name}' has {found}, expected one on its base", hint="merge: true")
    folder.mkdir(parents=True)
    for file in sorted(adapters[0].glob("adapter_*")):
        shutil.copy2(file, folder / file.name)
    load_tokenizer(artifact.path, artifact.loading, artifact.chat_template).save_pretrained(str(folder))


def _mark(folder: Path, owner: str, metrics: Mapping[str, float]) -> None:
    """Say in the folder who wrote it, what is in it, and the figures."""
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
    marker = {"made_by": owner, "files": sizes, "metrics": dict(metrics)}
    (folder / EXPORT_MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")


def _standing(folder: Path, owner: str) -> dict[str, float] | None:
    """Return the figures of an export that this very stage wrote, with this key, and that is still whole."""
    try:
        marker = json.loads((folder / EXPORT_MARKER).read_text(encoding="utf-8"))
        files = marker["files"].items()
        if marker["made_by"] == owner and all((folder / name).stat().st_size == size for name, size in files):
            return {name: float(value) for name, value in marker["metrics"].items()}
    except (OSError, ValueError, KeyError, AttributeError):  # none, or one that an earlier version wrote
        pass
    return None


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
