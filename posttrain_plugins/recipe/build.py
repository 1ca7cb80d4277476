"""A plugin and its parameters -> its object; a strategy's together with all that its fields refer to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError, PluginBroken, PosttrainError
from posttrain_plugins.plugins.signature import of_object
from posttrain_plugins.recipe.spec import Use
from posttrain_plugins.types import ModelArtifact, ResolvedReward, ResolvedStrategy

__all__ = ["assemble", "build", "construct", "gather"]


def build(source: Use, refs: Mapping[str, Any] | None = None) -> Any:
    """Return a plugin's object: of a class, a function as it is, or what it makes if its kind is called once.

    Raises:
        PluginBroken: it cannot be imported, or fails.
        InputError: it refuses its parameters.
    """
    loaded = source.plugin.load()
    params = {**source.params, **(refs or {})}
    makes_something = source.kind in ("adapter", "dataset")
    try:
        # Adapters and data sets are called here, once; a reward or a strategy is what the engine and the trainers call.
        # A function that returns a reward looks like a reward until its arguments are read: it takes no completions.
        if source.kind == "reward" and not isinstance(loaded, type):
            makes_something = of_object(loaded).makes_reward
        if isinstance(loaded, type):
            made = construct(loaded, params)
            return made() if makes_something else made
        return loaded(**params) if makes_something else loaded
    except PosttrainError:
        raise
    except (TypeError, ValueError) as cause:
        raise InputError(
            f"{source.kind} '{source.name}' refuses its parameters: {cause}",
            hint=f"posttrain plugins show {source.plugin.name}",
        ) from cause
    except PLUGIN_FAILURES as cause:  # the plugin boundary
        raise PluginBroken(
            f"{source.kind} '{source.name}' failed: {type(cause).__name__}: {cause}",
            hint="the same command with --debug shows the whole traceback",
        ) from cause


def construct(plugin: type, params: Mapping[str, Any]) -> Any:
    """Return an object of a plugin's class. YAML has lists only; a field that wants a tuple gets one."""
    wanted = getattr(plugin, "__annotations__", {})
    is_tuple = {name for name, annotation in wanted.items() if str(annotation).startswith(("tuple", "Tuple"))}
    return plugin(**{k: tuple(v) if k in is_tuple and isinstance(v, list) else v for k, v in params.items()})


def assemble(source: Use, parts: Mapping[str, Any]) -> ResolvedStrategy:
    """Return a strategy of a recipe or a text; `parts` are what its fields refer to, see `gather`."""
    values, scorers, models = gather(parts)
    return ResolvedStrategy(source.name, build(source, values), scorers, models)


def gather(
    parts: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, ResolvedReward], dict[str, ModelArtifact]]:
    """Sort what a strategy's fields refer to into values, scorers, and models beside the policy.

    Args:
        parts: field -> what it refers to, resolved, or a list of these.

    Returns:
        Field -> the name of a reward or model, or any other object itself; name -> reward; role -> model. A strategy
        inside brings its own scorers and models along.
    """
    scorers: dict[str, ResolvedReward] = {}
    models: dict[str, ModelArtifact] = {}

    def value(part: Any) -> Any:
        if isinstance(part, list):
            return [value(item) for item in part]
        if isinstance(part, ResolvedStrategy):  # by value: a strategy runs another one itself, with `yield from`
            scorers.update(part.scorers)
            models.update(part.models)
            return part.strategy
        if isinstance(part, ResolvedReward):
            scorers[part.name] = part
        if isinstance(part, ModelArtifact):
            models[part.name] = part
        # By name: a strategy yields `Score(scorer="rm")` and holds no reward, so the engine can batch over problems.
        return part.name if isinstance(part, ResolvedReward | ModelArtifact) else part

    return {field: value(part) for field, part in parts.items()}, scorers, models
