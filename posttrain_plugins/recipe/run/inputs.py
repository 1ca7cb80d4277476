"""What a recipe names -> the objects that a stage is given, just before it runs."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from posttrain_plugins.errors import InputError
from posttrain_plugins.guard.settings import KEYS, TOOL_KEYS, GuardSettings
from posttrain_plugins.models.folder import ALLOW_PICKLE, choose_adapter
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.recipe import files, handoff
from posttrain_plugins.recipe.build import assemble, build
from posttrain_plugins.recipe.lineage import identity
from posttrain_plugins.recipe.plan.store import read_artifact
from posttrain_plugins.recipe.plugin_schema import required_columns
from posttrain_plugins.recipe.run.data import check_dataset, dataset_of, read_jsonl
from posttrain_plugins.recipe.spec import (
    REWARD_LOADING,
    REWARD_PLUGIN,
    CriticStart,
    DataFile,
    External,
    FromStage,
    Given,
    Input,
    Object,
    Policy,
    Recipe,
    Source,
    StageSpec,
    Use,
)
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.types import ModelArtifact, ResolvedAdapter, ResolvedCritic, ResolvedReward

if TYPE_CHECKING:
    pass

__all__ = [
    "Resolver",
    "object_of",
    "template_of",
]


class Resolver:
    """Resolve what names stand for: inputs of a recipe's stages, or what a command names outside of any recipe.

    Args:
        recipe: whose stages are resolved; None where nothing refers to a stage.
        artifacts: those that stand so far, by stage.
        weights_of: the identity of a base's weights, by its path.
    """

    def __init__(
        self,
        recipe: Recipe | None = None,
        artifacts: Mapping[str, Artifact] = MappingProxyType({}),
        weights_of: Callable[..., str] | None = None,
    ) -> None:
        self.recipe = recipe
        self.artifacts = artifacts
        self.weights_of = weights_of
        self._rewards: list[tuple[Source, ResolvedReward]] = []  # each once: it may hold a model

    def inputs(self, spec: StageSpec) -> dict[str, Any]:
        """Return the object of every reference field of a stage.

        Raises:
            InputError: a data set is empty or lacks a column, a model has no weights, a plugin refuses its parameters.
            HandoffError: a model is not what its maker recorded.
        """
        resolved: dict[str, Any] = {}
        required = required_columns(spec)
        for name, value in spec.inputs.items():
            resolved[name] = self.resolve(value, spec.loading)
            if name in required:
                pairs = (
                    zip(resolved[name], value, strict=True) if isinstance(value, tuple) else [(resolved[name], value)]
                )
                for data, source in pairs:
                    check_dataset(data, required[name], source)
        return resolved

    def dataset(self, spec: StageSpec, name: str) -> Any:
        """The data set of one field alone."""
        return self.resolve(spec.inputs[name], spec.loading)

    def model(self, source: Source, loading: Mapping[str, Any]) -> ModelArtifact:
        """A model that exists, with its record checked and its ancestors' prompts at hand."""
        if isinstance(source, External):
            for folder in (Path(source.path), Path(source.path).parent):
                found = None
                with contextlib.suppress(InputError):  # a newer version's manifest does not matter: the model is named
                    found = read_artifact(folder)  # of a run that was moved, an adapter gets the path of its base
                if found is not None:
                    handoff.check_whole(source.name, found, Path(source.path))
            problem = (
                files.model_problem(Path(source.path), bool(source.loading.get(ALLOW_PICKLE)))
                if Path(source.path).is_absolute()
                else None
            )
            if problem:
                raise InputError(problem, hint="save_pretrained() writes such a folder")
            return ModelArtifact(source.name, source.path, source.loading, chat_template=template_of(source.template))
        assert isinstance(source, FromStage)
        artifact = self.artifacts[source.stage]
        assert artifact.model_path is not None
        recorded = artifact.manifest["handoff"]
        path = choose_adapter(source.stage, artifact.model_path, source.adapter)
        if source.adapter:
            recorded = {**recorded, **recorded["several"][source.adapter]}
        handoff.check_unchanged(source.stage, Path(path), recorded, self.weights_of)
        handoff.check_whole(source.stage, artifact, artifact.model_path)
        # What it was trained on travels with it: `evaluate` says how many of its problems were among that.
        ancestors, seen = self._lineage(source.stage)
        return ModelArtifact(source.model_name, path, loading, recorded, ancestors, seen)

    def _lineage(self, stage: str) -> tuple[tuple[str, ...], tuple[Path, ...]]:
        """The models it was made from, and the files of prompts that it and they were trained on.

        With `only`, a model further back need not stand any more: its name is known, its prompts are not.
        """
        artifact = self.artifacts.get(stage)
        own = tuple(artifact.folder.glob("seen.txt")) if artifact else ()
        assert self.recipe is not None
        inputs = self.recipe.stage(stage).inputs
        several = inputs.get("models")
        # of what several models were combined into, the line of the last: a mean of base and SFT is nearest to SFT
        source = inputs.get("model") or (several[-1] if isinstance(several, tuple) and several else None)
        if isinstance(source, FromStage):
            ancestors, seen = self._lineage(source.stage)
            return (source.model_name, *ancestors), (*own, *seen)
        return ((source.name,) if isinstance(source, External) else ()), own

    def resolve(self, value: Input, loading: Mapping[str, Any]) -> Any:
        """Return the object that a source stands for; a list for several.

        Args:
            value: a source of a recipe, or several.
            loading: TRL `ModelConfig` fields for the recipe's own models.
        """
        if isinstance(value, tuple):
            return [self._one(item, loading) for item in value]
        return self._one(value, loading)

    def _one(self, source: Source, loading: Mapping[str, Any]) -> Any:
        if source is None:
            return None
        if isinstance(source, Given):
            return source.value
        if isinstance(source, Policy):
            return source.name
        if isinstance(source, Object):
            return object_of(source.target)
        if isinstance(source, CriticStart):
            return ResolvedCritic(source.kind, self.model(source.source, loading) if source.source else None)
        if isinstance(source, DataFile):
            return dataset_of(source)
        if isinstance(source, External) or (isinstance(source, FromStage) and source.produces == "model"):
            return self.model(source, loading)
        if isinstance(source, FromStage) and source.produces == "dataset":
            data = self.artifacts[source.stage].data_path
            assert data is not None
            handoff.check_whole(source.stage, self.artifacts[source.stage], data)
            return read_jsonl(data)
        if isinstance(source, FromStage) or source.kind == "reward":
            return self._reward(source, loading)
        if source.kind == "strategy":
            return assemble(source, {field: self.resolve(value, loading) for field, value in source.refs.items()})
        if source.kind == "dataset":
            return dataset_of(source, {field: self.resolve(value, loading) for field, value in source.refs.items()})
        return _tool(source) if source.kind == "tool" else _adapter(source)

    def _reward(self, source: FromStage | Use, loading: Mapping[str, Any]) -> ResolvedReward:
        # By equality, in a list: a source holds mappings and has no hash, and there are a handful.
        for known, reward in self._rewards:
            if known == source:
                return reward
        made = self._trained(source, loading) if isinstance(source, FromStage) else self._plain(source, loading)
        self._rewards.append((source, made))
        return made

    def _plain(self, source: Use, loading: Mapping[str, Any]) -> ResolvedReward:
        """What its fields refer to it is given resolved: an ensemble its rewards, a judge its model."""
        parts = {field: self.resolve(value, loading) for field, value in source.refs.items()}
        func = build(source, parts)
        asked = {key: value for key, value in source.reserved.items() if key in KEYS}
        if asked:
            from posttrain_plugins.guard.guarded import guard

            func = guard(func, GuardSettings(**asked), source.name)
        return ResolvedReward(source.name, func, float(source.reserved.get("weight", 1.0)))

    def _trained(self, source: FromStage, loading: Mapping[str, Any]) -> ResolvedReward:
        model = self.model(source, loading)
        how = {k: v for k, v in loading.items() if k in REWARD_LOADING} if model.is_adapter else {}
        parameters = {**model.handoff.get("reward", {}), **how}
        reward = registry.load("reward", source.reward_plugin)(model_name_or_path=model.path, **parameters)
        # TRL reads a folder as a plain classifier: an adapter would silently lose its trained head, a PRM its steps
        is_classifier = source.reward_plugin.rpartition(":")[2] == REWARD_PLUGIN and not model.is_adapter
        return ResolvedReward(source.stage, reward, 1.0, model.path if is_classifier else None)


def object_of(target: str) -> Any:
    """What `package.module:attr` names, imported; the `Path` of a file or folder; else the text, a Hub id."""
    head, colon, _ = target.rpartition(":")
    if colon and (head.endswith(".py") or "/" not in head):
        return registry.import_object(target)
    return Path(target) if Path(target).exists() else target


def _adapter(source: Use) -> ResolvedAdapter:
    """What is not a PEFT config and not None trains all parameters, and sets up the trainer."""
    made = build(source)
    config = made if hasattr(made, "peft_type") else None
    can_merge = bool(declared(source.plugin.load(), "can_merge"))
    prepare = getattr(made, "prepare", None)
    return ResolvedAdapter(source.name, config, identity(source), prepare, source.plugin.target, can_merge)


def _tool(source: Use) -> Callable[..., Any]:
    """The author's own function, or one around what is no function or is under the guard."""
    tool = build(source)
    is_function = inspect.isfunction(tool)
    asked = {key: value for key, value in source.reserved.items() if key in TOOL_KEYS}
    if is_function and not asked:
        return tool  # type: ignore[no-any-return]
    from posttrain_plugins.guard.tools import guard_tool

    max_chars = asked.pop("max_chars", None)
    if not asked:  # nobody asked for a limit; that it refuses to work at all must be seen none the less
        asked["max_failure_share"] = 1.0
    name = tool.__name__ if is_function else source.plugin.name
    return guard_tool(name, tool, GuardSettings(**asked), max_chars)


def template_of(template: Object | None) -> str | None:
    """The text of a chat template, None for none."""
    if template is None:
        return None
    found = object_of(template.target)
    return found.read_text(encoding="utf-8") if isinstance(found, Path) else str(found)
