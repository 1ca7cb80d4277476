"""What a stage is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from posttrain_plugins.types.plugins import Strategy
from posttrain_plugins.types.references import AdapterMode

__all__ = [
    "CHECKPOINT_MARKER",
    "EXPORT_MARKER",
    "ModelArtifact",
    "Reporter",
    "ResolvedAdapter",
    "ResolvedReward",
    "ResolvedStrategy",
    "StageContext",
    "StageResult",
]

CHECKPOINT_MARKER = "complete"
"""The file that a checkpoint gets after everything else; the store goes on from no checkpoint without it."""

EXPORT_MARKER = "posttrain_export.json"
"""The file in a folder outside the store that says which artifact it is."""


@dataclass(frozen=True)
class ModelArtifact:
    """A model that a stage starts from or measures.

    Args:
        name: its name in the recipe (`base`, or the stage that made it).
        path: a folder, or a Hub id; a folder with `adapter_config.json` is a PEFT adapter over its base.
        loading: TRL `ModelConfig` fields for loading it (dtype, load_in_4bit, model_revision ...).
        handoff: what its maker recorded (tokenizer, template, EOS and pad ids, adapters); empty for a foreign model.
        ancestors: the names of the models it was made from, the nearest first.
        seen: files of prompt fingerprints (one 16-digit hex a line) that it and its ancestors were trained on.
        chat_template: one that the recipe gives it, in place of what lies beside it.
    """

    name: str
    path: str
    loading: Mapping[str, Any] = field(default_factory=dict)
    handoff: Mapping[str, Any] = field(default_factory=dict)
    ancestors: tuple[str, ...] = ()
    seen: tuple[Path, ...] = ()
    chat_template: str | None = None

    @property
    def is_adapter(self) -> bool:
        return (Path(self.path) / "adapter_config.json").is_file()


@dataclass(frozen=True)
class ResolvedReward:
    """A reward by its recipe name.

    Args:
        name: as in the recipe.
        func: the author's own callable, under the guard where the recipe asks for one.
        weight: as in the recipe.
        model_path: the folder of the model that it scores with, of a stage that makes a reward; else None.
    """

    name: str
    func: Callable[..., Any]
    weight: float = 1.0
    model_path: str | None = None

    @property
    def is_oracle(self) -> bool:
        return bool(getattr(self.func, "oracle", False))


@dataclass(frozen=True)
class ResolvedAdapter:
    """An adapter by its recipe name.

    Args:
        name: as in the recipe.
        config: a `peft.PeftConfig`, or None for full fine-tuning.
        identity: the same for the same plugin with the same parameters; empty where nobody knows.
        prepare: sets up the trainer, see `Adapter`.
        plugin: what made it, `package.module:attr` or `file.py:attr`.
    """

    name: str
    config: Any
    identity: str = ""
    prepare: Callable[[Any], Mapping[str, Any] | None] | None = None
    plugin: str = ""


@dataclass(frozen=True)
class ResolvedStrategy:
    """A strategy with a printable label, the rewards that it names as scorers, and the models beside the policy.

    Args:
        label: as the recipe writes it.
        strategy: the object.
        scorers: name -> reward, for `Score` and `ScoreSteps`.
        models: role -> model, for `Generate.model`.
    """

    label: str
    strategy: Strategy
    scorers: Mapping[str, ResolvedReward] = field(default_factory=dict)
    models: Mapping[str, ModelArtifact] = field(default_factory=dict)


class Reporter(Protocol):
    """Where a running stage tells how far it is."""

    def progress(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        """Called often: `done` of `total` `unit`s, and the newest figures (loss, reward, tokens_per_s)."""

    def note(self, message: str) -> None:
        """One line that the user should read."""


@dataclass(frozen=True)
class StageContext:
    """All that a stage may use.

    Args:
        stage: the stage's id in the recipe.
        folder: where to write; it becomes the artifact when the stage returns, and vanishes if it fails for good.
        seed: the recipe's seed, or this stage's own.
        inputs: field name -> resolved input. A model is a `ModelArtifact`, a data set a `datasets.Dataset`, a reward a
            `ResolvedReward`, an adapter a `ResolvedAdapter`, a strategy a `ResolvedStrategy`, an object itself or
            the `Path` of a file; a list of references is a list of these.
        resume_from: newest complete checkpoint of this very stage, or None.
        reporter: `progress(done, total, unit, figures)`, called often, shows how far it is; `note(message)` shows a
            line that the user should read.
        should_stop: becomes true when the user wants to stop; a stage then saves and raises `Interrupted`.
        args: the stage's `args` as the recipe gives them.
        option_path: how `-o` names the stage, for hints.
        adapter_mode: how it goes on from a model that is an adapter, `continue`, `stack` or `merge`; None leaves it to
            `trainers.start`.
        preview: how many rows to show of what the trainer learns from; 0 trains.
    """

    stage: str
    folder: Path
    seed: int
    inputs: Mapping[str, Any]
    resume_from: Path | None
    reporter: Reporter
    should_stop: Callable[[], bool]
    args: Mapping[str, Any] = field(default_factory=dict)
    option_path: str = ""
    adapter_mode: AdapterMode | None = None
    preview: int = 0


@dataclass(slots=True)
class StageResult:
    """What a stage made.

    Args:
        metrics: figures for the manifest and the report.
        model_path: the model's folder, absolute or below `context.folder`.
        data_path: the data set, a JSONL file below `context.folder`.
        handoff: what the next stage must find unchanged (tokenizer, template, EOS, adapter stack).
        details: further JSON values for the manifest.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    model_path: Path | None = None
    data_path: Path | None = None
    handoff: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
