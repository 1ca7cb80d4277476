"""What a stage is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from posttrain_plugins.types.plugins import Strategy
from posttrain_plugins.types.references import AdapterMode

__all__ = [
    "CHECKPOINT_MARKER",
    "EXPORT_MARKER",
    "CriticBody",
    "CriticKind",
    "Decisions",
    "Issue",
    "ModelArtifact",
    "Reporter",
    "ResolvedAdapter",
    "ResolvedCritic",
    "ResolvedReward",
    "ResolvedStrategy",
    "Stage",
    "StageContext",
    "StageFacts",
    "StageResult",
    "ValueSource",
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
    seen: tuple[Path, ...] = ()  # files and not sets: only `evaluate` opens them, and they may have millions of lines
    chat_template: str | None = None

    @property
    def is_adapter(self) -> bool:
        """Does the folder hold a PEFT adapter? Asked of the disk, since a model from elsewhere has no record of it."""
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

    # TRL is handed `func` itself, not this: it logs by the function's name and looks whether it is a coroutine
    name: str
    func: Callable[..., Any]
    weight: float = 1.0
    model_path: str | None = None

    @property
    def is_oracle(self) -> bool:
        """Does it read the reference answer?"""
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
        can_merge: what its plugin declares.
    """

    name: str
    config: Any
    identity: str = ""  # by which a stage knows that it names the very adapter that its model already is
    prepare: Callable[[Any], Mapping[str, Any] | None] | None = None
    plugin: str = ""
    can_merge: bool = True


CriticKind: TypeAlias = Literal["adapter", "shared", "separate"]
"""On which body a critic's value head is: the table in `trainers/ppo/critic.py`."""
CriticBody: TypeAlias = Literal["adapter", "whole", "shared"]
"""What a saved value function reads: an adapter on a base, a model of its own, or the policy that it was trained in."""


@dataclass(frozen=True)
class ResolvedCritic:
    """How a critic begins.

    Args:
        kind: `adapter`, `shared` or `separate`; None leaves it to the trainer.
        start: what has the values that it starts with; None starts at 0.
    """

    kind: CriticKind | None = None
    start: ModelArtifact | None = None


@dataclass(frozen=True)
class ResolvedStrategy:
    """A strategy with a printable label, the rewards that it names as scorers, and the models beside the policy.

    Args:
        label: as the recipe writes it.
        strategy: the object.
        scorers: name -> reward, for `Score` and `ScoreSteps`.
        models: role -> model, for `Generate.model`.
    """

    # beside the strategy, which knows both by name alone: what it asks for can be logged and replayed
    label: str
    strategy: Strategy
    scorers: Mapping[str, ResolvedReward] = field(default_factory=dict)
    models: Mapping[str, ModelArtifact] = field(default_factory=dict)


class Reporter(Protocol):
    """Shows how far a running stage is; the terminal's is one, and a test's list another."""

    def progress(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        """Show `done` of `total` `unit`s, and the newest figures (loss, reward, tokens_per_s); called often."""

    def note(self, message: str) -> None:
        """Show one line that the user should read."""


def _not_followed(step: int) -> None:
    """Do nothing: a stage in the run's own process is seen by who has started it."""


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
        engine: what trains in the several processes of a launched stage: `ddp`, `fsdp2`, `zero3`; empty in the run's
            own process.
        beat: to be called with the step, from the main thread, wherever a stage gets on; a process of a launched stage
            that has not called it for `launch.hang_after_s` is taken to hang.
    """

    stage: str
    folder: Path
    seed: int
    inputs: Mapping[str, Any]  # models as folders, not loaded: TRL seeds before it makes a random head
    resume_from: Path | None
    reporter: Reporter
    should_stop: Callable[[], bool]
    args: Mapping[str, Any] = field(default_factory=dict)
    option_path: str = ""
    adapter_mode: AdapterMode | None = None
    preview: int = 0
    engine: str = ""
    beat: Callable[[int], None] = _not_followed

    @property
    def artifact_name(self) -> str:
        """What the artifact will be called, `recipe/stage-key12`."""
        return f"{self.folder.parent.name}/{self.folder.name.removeprefix('.').removesuffix('.partial')}"


@dataclass(slots=True)
class StageResult:
    """What a stage made.

    Args:
        metrics: figures for the manifest and the report.
        model_path: the model's folder, absolute or below `context.folder`.
        data_path: the data set, a JSONL file below `context.folder`.
        handoff: what the next stage must find unchanged (tokenizer, template, EOS, adapter stack).
        details: further JSON values for the manifest.
        scratch: what lies below `context.folder` for a run that goes on, such as checkpoints; it goes once the result
            is published.
    """

    # paths below `context.folder` are recorded relative to it, since publishing renames the folder
    metrics: dict[str, float] = field(default_factory=dict)
    model_path: Path | None = None
    data_path: Path | None = None
    handoff: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    scratch: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Decisions:
    """What a stage that waits for people knows of their decisions.

    Args:
        part: a part of the stage's key: a hash of the decisions that are used.
        waits: how far they are where some are missing, such as `137 of 200`; empty where none is.
    """

    part: str
    waits: str = ""


@runtime_checkable
class Stage(Protocol):
    """How to update, or to measure? Called once with its context.

    A stage's class may have a method `issues(facts: StageFacts) -> Iterable[Issue]`: what is wrong, or unwise, with
    its settings. A recipe's check asks it of the stage whose reference fields hold names, so it must import nothing
    heavy; mistakes are told with all others of the recipe, warnings by `plan` and `run`. A stage in a file of the
    user's, which is never imported by the check, is not asked.

    It may have a method `decisions(folder: Path, inputs: Mapping | None) -> Decisions | None`, where it waits for
    people. Given its inputs, it writes its questions into the folder; without them it reads them there, and returns
    None where there are none. The plan asks it without, a run with its inputs, just before it calls the stage. Nor is
    a stage in a file of the user's asked for this.
    """

    def __call__(self, context: StageContext) -> StageResult: ...


@dataclass(frozen=True)
class Issue:
    """What a stage says of its settings before anything is loaded.

    Args:
        message: `<what>: <found>, expected <what>`.
        hint: one action.
        field: the stage's field that it is about, such as `adapter` or `args.kl_coef`.
        is_warning: it may work none the less.
    """

    # an object and no exception: a recipe's mistakes are told all at once
    message: str
    hint: str | None = None
    field: str = ""
    is_warning: bool = False

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


@dataclass(frozen=True)
class ValueSource:
    """What a critic is to start from, as it stands to the policy of the stage.

    Args:
        name: as in the recipe.
        body: what its head reads.
        is_policy: is what it reads the very model that the stage goes on training?
        misfit: why an adapter of it cannot stand on the policy's base; empty where it can, or nobody knows yet.
    """

    name: str
    body: CriticBody
    is_policy: bool = False
    misfit: str = ""

    def kind_beside(self, has_room: bool) -> CriticKind:
        """Return the kind of a critic that starts from it, where nobody asks for one.

        Args:
            has_room: is the policy an adapter that allows a second on its base?
        """
        if self.body == "shared" and self.is_policy:
            return "shared"
        return "adapter" if self.body == "adapter" and has_room else "separate"


@dataclass(frozen=True)
class StageFacts:
    """What is known of a stage before anything is loaded.

    Args:
        args: the fields of its config class, as the recipe or else the class sets them.
        trains_all: does it train all parameters, and no adapter?
        parameters: how many the model has that it starts from; None where it cannot be told.
        loading: TRL `ModelConfig` fields for loading it.
        judges_steps: the stage's rewards by name, and whether each has `step_scores`.
        memory_bytes: returns the memory in bytes of the first GPU, or of the machine if there is none.
        columns: of its `dataset`; None where they cannot be told.
        chat_template: the text of the template that its model is trained with; None where it cannot be told.
        rows: the first rows of its `dataset`, where that is a file of text.
        has_all_rows: are these all of it?
        is_adapter: is its `model` an adapter? None where that cannot be told.
        is_made_conversational: does the recipe put a system message before the prompts of its `dataset`?
        critic_start: what its `critic` starts from; None where that says nothing.
        engine: what trains in several processes, such as `ddp` or `zero3`; empty in one.
    """

    args: Any
    trains_all: bool
    parameters: int | None
    loading: Mapping[str, Any]
    judges_steps: Mapping[str, bool]
    memory_bytes: Callable[[], int]  # a function: most stages have no use for it, and finding out takes time
    columns: tuple[str, ...] | None = None
    chat_template: str | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    has_all_rows: bool = False
    is_adapter: bool | None = None
    is_made_conversational: bool = False
    critic_start: ValueSource | None = None
    engine: str = ""
