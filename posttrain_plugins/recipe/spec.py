"""A checked recipe: frozen, with every default filled in and every name resolved to what it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain_plugins.plugins.registry import Plugin
from posttrain_plugins.plugins.schema import Schema
from posttrain_plugins.types import AdapterMode, CriticKind, Issue, Kind

__all__ = [
    "CriticStart",
    "DataFile",
    "External",
    "FromStage",
    "Given",
    "Input",
    "Launch",
    "Object",
    "Policy",
    "Recipe",
    "Source",
    "StageSpec",
    "Use",
    "flat",
]


REWARD_PLUGIN = "reward_model"
"""What a stage that makes a reward is used through, unless its class says `reward_plugin`."""
REWARD_LOADING = (
    "dtype",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_quant_type",
    "use_bnb_nested_quant",
    "attn_implementation",
    "model_revision",
)
"""Fields of TRL's `ModelConfig` that the plugins `reward_model` and `process_reward_model` take too.

An adapter that scores is read on its base as that was loaded for training; a full model needs none of them.
"""


@dataclass(frozen=True)
class Use:
    """A plugin with its parameters.

    Args:
        kind: of the plugin.
        name: what figures and logs call it: its entry's name, or the call as it is written in place.
        plugin: where it is.
        params: plain parameters.
        reserved: words of the recipe beside them, such as a reward's `weight`, that the plugin knows nothing of.
        refs: parameters that are references themselves, such as a strategy's scorer.
        schema: what the plugin takes and declares, as the check has read it; empty if nothing was checked.
    """

    kind: Kind
    name: str
    plugin: Plugin
    params: Mapping[str, Any] = field(default_factory=dict)
    reserved: Mapping[str, Any] = field(default_factory=dict)
    refs: Mapping[str, Input] = field(default_factory=dict)
    schema: Schema = field(default=Schema({}), compare=False, repr=False)  # follows from the plugin


@dataclass(frozen=True)
class DataFile:
    """A data set by file or Hub id, with TRL `DatasetConfig`'s fields and our `limit`, `rename`, `system_prompt`."""

    name: str
    path: str
    is_local: bool
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class External:
    """A model that exists already: a folder or a Hub id, with the fields of TRL's `ModelConfig`.

    `template` is the chat template that the recipe gives it.
    """

    name: str
    path: str
    loading: Mapping[str, Any] = field(default_factory=dict)
    template: Object | None = None


@dataclass(frozen=True)
class FromStage:
    """What another stage of this recipe makes; a reward is used through the plugin `reward_plugin`."""

    stage: str
    produces: str
    reward_plugin: str = ""
    adapter: str = ""

    @property
    def model_name(self) -> str:
        """`tasks+sum` for one of several adapters that a stage makes."""
        return f"{self.stage}+{self.adapter}" if self.adapter else self.stage


@dataclass(frozen=True)
class CriticStart:
    """How a stage's critic begins: on which body, and from whose values; each None where the recipe leaves it open."""

    kind: CriticKind | None = None
    source: FromStage | External | None = None

    @property
    def name(self) -> dict[str, str]:
        """What the stage's own field holds."""
        source = self.source.model_name if isinstance(self.source, FromStage) else getattr(self.source, "name", None)
        return {key: value for key, value in (("kind", self.kind), ("from", source)) if value is not None}


@dataclass(frozen=True)
class Object:
    """`package.module:attr`, `file.py:attr` or a path, absolute where it is a file."""

    target: str


@dataclass(frozen=True)
class Policy:
    """The very model that a strategy is asked of, named by it beside others: no edge of the plan."""

    name: str = "policy"


@dataclass(frozen=True, eq=False)
class Given:
    """Something that stands already, outside of any recipe: a script's function, a server's scorer, a served model."""

    name: str
    value: Any


def option_path(id: str) -> str:
    """Return how `-o` names a stage: `model` for the base, `stages.loop.stages.t` for every turn of stage `t`."""
    if id == "base":
        return "model"
    loop, *rest = id.split(".")
    return f"stages.{loop}.stages.{rest[-1]}" if rest else f"stages.{id}"


Source: TypeAlias = Use | DataFile | External | FromStage | CriticStart | Object | Policy | Given | None
Input: TypeAlias = Source | tuple[Source, ...]
"""What a reference field refers to; several for a field that is a list."""


def flat(inputs: Mapping[str, Input]) -> Iterator[tuple[str, Source]]:
    """Yield every source with its place: `model`, `rewards[0]`, `rewards[1]`."""
    for name, value in inputs.items():
        if isinstance(value, tuple):
            yield from ((f"{name}[{i}]", item) for i, item in enumerate(value))
        else:
            yield name, value


@dataclass(frozen=True)
class Launch:
    """How a training stage is started in processes of its own.

    Args:
        engine: what has to be in force when it trains: `ddp`, `fsdp1`, `fsdp2`, `zero0` to `zero3`.
        file: of `accelerate launch`.
        num_processes: on all machines together.
        below: files that it names in turn, such as DeepSpeed's own.
        hang_after_s: a process that has not got on for so long is taken to hang; no part of the key.
    """

    engine: str
    file: Path
    num_processes: int
    below: tuple[Path, ...] = ()
    hang_after_s: float = 1800.0  # as long as torch lets a collective wait


@dataclass(frozen=True)
class StageSpec:
    """One stage.

    Args:
        id: its name; `loop.2.t` for a stage of a loop's turn.
        plugin: where its class is.
        produces: what it makes.
        params: its plain parameters.
        inputs: what each reference field refers to, a tuple for list fields.
        configs: parameter -> the config class that takes it, such as `args` -> `trl:SFTConfig`.
        loading: TRL `ModelConfig` fields with which the recipe's models are loaded.
        adapter_mode: what the recipe says of a model that is an adapter.
        warnings: what its class warns of.
        reserved: which of the inputs are words of the recipe that the plugin knows nothing of.
        outputs: which parameters say where it writes.
        schema: what the plugin takes and declares, as the check has read it.
        launch: how it is started in processes of its own; None for one that runs in the run's process.
    """

    id: str
    plugin: Plugin
    produces: Literal["model", "dataset", "reward", "figures"]
    params: Mapping[str, Any]
    inputs: Mapping[str, Input]
    configs: Mapping[str, str] = field(default_factory=dict)
    loading: Mapping[str, Any] = field(default_factory=dict)
    adapter_mode: AdapterMode | None = None
    warnings: tuple[Issue, ...] = ()
    reserved: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    schema: Schema = field(default=Schema({}), compare=False, repr=False)
    launch: Launch | None = None

    def sources(self) -> Iterator[tuple[str, Source]]:
        """Yield every source with its field; also those inside strategies, at any depth (`strategies.scorer`)."""
        return _sources(self.inputs)

    def names(self) -> dict[str, Any]:
        """Return what the stage's own reference fields hold: names, as in the recipe."""
        return {name: _name(value) for name, value in self.inputs.items() if name not in self.reserved}

    @property
    def start(self) -> str | None:
        """The name of the model that it starts from: figures are compared along this line."""
        source = self.inputs.get("model")
        return source.stage if isinstance(source, FromStage) else getattr(source, "name", None)

    def parents(self) -> tuple[str, ...]:
        """Return the stages that this one needs, each once, in the order of the fields."""
        found = [source.stage for _, source in self.sources() if isinstance(source, FromStage)]
        return tuple(dict.fromkeys(found))


def _name(value: Input) -> Any:
    if isinstance(value, tuple):
        return [_name(item) for item in value]
    if isinstance(value, FromStage):
        return value.model_name
    return getattr(value, "name", getattr(value, "target", None))


def _sources(inputs: Mapping[str, Input]) -> Iterator[tuple[str, Source]]:
    for place, source in flat(inputs):
        # Without the index: mistakes and files of a stage are told by field, since all of a list share one annotation.
        name = place.partition("[")[0]
        yield name, source
        if isinstance(source, Use):
            yield from ((f"{name}.{inner}", ref) for inner, ref in _sources(source.refs))
        elif isinstance(source, CriticStart) and source.source is not None:
            yield f"{name}.from", source.source


@dataclass(frozen=True)
class Recipe:
    """A recipe that passed every check.

    Args:
        name: names the folder below `runs/`.
        seed: every stage's seed unless its `args` give one.
        file: where it was read; relative paths start from its folder.
        stages: in an order in which they can run.
        data: the resolved plain values, written as `resolved.yaml`.
    """

    name: str
    seed: int
    file: Path
    stages: tuple[StageSpec, ...]
    data: Mapping[str, Any]

    def stage(self, id: str) -> StageSpec:
        """Return a stage by its id."""
        return next(stage for stage in self.stages if stage.id == id)

    @property
    def aliases(self) -> dict[str, str]:
        """Loop name -> id of the stage that is its output."""
        last: dict[str, str] = {}
        for stage in self.stages:
            if "." in stage.id:
                last[stage.id.split(".")[0]] = stage.id
        return last
