"""What each training stage stands on, told before anything runs: its base, what is merged and frozen, what trains.

Papers do not say which adapters the reference of DPO, GRPO or PPO has; here it is the model that the stage starts from,
whole, and it is said.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import abilities, adds_up, moves_base
from posttrain_plugins.models.critic_folder import has_critic, kind_said
from posttrain_plugins.models.folder import adapter_config, adapters_in
from posttrain_plugins.models.stack import choose_mode
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.source_hash import sha256_of
from posttrain_plugins.recipe.spec import CriticStart, External, FromStage, Input, StageSpec, Use
from posttrain_plugins.types import AdapterMode, CriticBody, ValueSource

__all__ = [
    "Layers",
    "Stages",
    "StartingPoint",
    "critic_start",
    "earlier_judge",
    "identity",
    "is_full",
    "layers",
    "mode_of",
    "starting_point",
]

BODIES: Mapping[str, CriticBody] = {"adapter": "adapter", "shared": "shared", "separate": "whole"}
"""A critic's kind -> what its head reads."""

Stages: TypeAlias = Mapping[str, StageSpec]
"""Stages by their ids."""


@dataclass(frozen=True)
class Layers:
    """What a model is made of: full weights, and the adapters on them from the base up, by who made them.

    Args:
        base: the name of the model or stage whose weights these are; `base+sft` where an adapter was merged into it.
        adapters: the names of those that trained the adapters.
        made_of: for each of these the plugin with its parameters, or the folder that it lies in.
    """

    base: str
    adapters: tuple[str, ...] = ()
    made_of: tuple[Use | Path, ...] = ()

    def __str__(self) -> str:
        return " + ".join([self.base, *(f"adapter of {name}" for name in self.adapters)])


@dataclass(frozen=True)
class StartingPoint:
    """What a training stage stands on, in words.

    Args:
        base: the weights below everything, and how they are loaded.
        merged: which adapters are merged into them first.
        frozen: what stays in force and does not learn.
        trains: what learns.
        reference: what the policy is held to; None for a method that has no reference.
        adapter_mode: how it goes on from an adapter; None where the model is none.
        stores: the weights that stay on disk when it is done.
        judges: of each reward that is a stage's model: where it is in memory beside the policy.
    """

    base: str
    merged: str
    frozen: str
    trains: str
    reference: str | None
    adapter_mode: AdapterMode | None
    stores: str = ""
    judges: Mapping[str, str] = field(default_factory=dict)


def is_full(adapter: Input) -> bool:
    """Does a stage's `adapter` train all parameters? None does, and plugins that say `is_full`."""
    return not isinstance(adapter, Use) or bool(adapter.schema.declares("is_full"))


def identity(adapter: Use) -> str:
    """Return what is the same for the same plugin with the same parameters, whatever the recipe calls it."""
    return sha256_of([adapter.plugin.target, adapter.params])[:16]


def layers(stages: Stages, source: Input) -> Layers:
    """Return what a model is made of, as far as the recipe's stages tell."""
    if isinstance(source, External):
        found = adapters_in(source.path)
        below = tuple(f"{source.name}/stack/{number}" for number in range(len(found) - 1))
        base = Path(str(adapter_config(source.path).get("base_model_name_or_path", ""))).name
        return Layers(base, (*below, source.name), tuple(found)) if found else Layers(source.name)
    if not isinstance(source, FromStage) or source.stage not in stages:
        return Layers("")
    spec = stages[source.stage]
    if not spec.configs:  # it trains nothing: what it makes, such as a merged model, is a base of its own
        return Layers(spec.id)
    start, mode, adapter = layers(stages, spec.inputs.get("model")), mode_of(stages, spec), spec.inputs.get("adapter")
    # The adapter that is gone on with is the newest one under another name: the stage that trained it last.
    if mode == "continue":
        return Layers(start.base, (*start.adapters[:-1], spec.id), start.made_of)
    if not isinstance(adapter, Use) or is_full(adapter):
        return Layers(spec.id)
    if mode == "stack":
        return Layers(start.base, (*start.adapters, spec.id), (*start.made_of, adapter))
    return Layers("+".join([start.base, *start.adapters]), (spec.id,), (adapter,))


def starting_point(stages: Stages, spec: StageSpec) -> StartingPoint | None:
    """Return what a stage with a trainer's config stands on; None for one that trains nothing."""
    if not spec.configs or spec.produces not in ("model", "reward"):
        return None
    start, mode = layers(stages, spec.inputs.get("model")), mode_of(stages, spec)
    adapter = spec.inputs.get("adapter")
    named = "" if is_full(adapter) else f" '{adapter.name}' ({adapter.plugin.name})"  # type: ignore[union-attr]
    base = start.base or "new, from config"
    kept = start.adapters[:-1] if mode == "continue" else start.adapters if mode == "stack" else ()
    if mode == "continue":
        trains = f"continues the adapter of {start.adapters[-1]}"
    else:
        trains = f"a new adapter{named}" if named else "all parameters"
    whose = "its head" if earlier_judge(stages, spec) else "a new head"
    head = f" and {whose}" if spec.produces == "reward" else ""
    frozen = ["the base", *(f"adapter of {name}" for name in kept)] if named or mode == "continue" else []
    how = spec.loading
    bits = f" (4-bit {how.get('bnb_4bit_quant_type', 'nf4')})" if how.get("load_in_4bit") else ""
    bits = bits or (" (8-bit)" if how.get("load_in_8bit") else "")
    return StartingPoint(
        base + bits,
        ", ".join(f"adapter of {name}" for name in start.adapters) if mode == "merge" else "nothing",
        " + ".join(frozen) or "nothing",
        trains + head,
        _reference(spec, start),
        mode,
        _stored(mode, is_adapter=bool(named) or mode == "continue", below=len(kept)),
        _judges(stages, spec, mode),
    )


def earlier_judge(stages: Stages, spec: StageSpec) -> FromStage | None:
    """Return the judge that a stage goes on from, whose head it keeps; None where its `model` is no judge."""
    model = spec.inputs.get("model")
    if not isinstance(model, FromStage) or model.stage not in stages:
        return None
    return model if stages[model.stage].produces == "reward" else None


def mode_of(stages: Stages, spec: StageSpec) -> AdapterMode | None:
    """Return how a stage goes on from an adapter, decided as `trainers.start` decides it from the files."""
    start, adapter = layers(stages, spec.inputs.get("model")), spec.inputs.get("adapter")
    if not start.adapters:
        return None
    has_adapter = not is_full(adapter)
    top = start.made_of[-1]
    # A reward model's head is new, so even the same adapter is not gone on with: it learned without that head.
    is_same = (
        spec.produces == "model"
        and has_adapter
        and isinstance(adapter, Use)
        and isinstance(top, Use)
        and (top.plugin.target, top.params) == (adapter.plugin.target, adapter.params)
    )
    return choose_mode(spec.adapter_mode, is_same=is_same, has_adapter=has_adapter)


def _stored(mode: AdapterMode | None, *, is_adapter: bool, below: int) -> str:
    if not is_adapter:
        return "all weights"
    if mode == "merge":
        return "its adapter, and a merged base of its own"
    return "its adapter" + (f", and a copy of the {below} below" if below else "")


def _judges(stages: Stages, spec: StageSpec, mode: AdapterMode | None) -> dict[str, str]:
    """Tell the reward models that are adapters on the policy's base, as `trainers.ppo.shared_reward` tells them."""
    found, rewards = {}, spec.inputs.get("rewards")
    for reward in rewards if isinstance(rewards, list | tuple) else ():
        if isinstance(reward, FromStage) and reward.produces == "reward":
            is_shared = spec.schema.declares("shares_base") and _fits_beside(stages, spec, mode, reward)
            found[reward.stage] = "an adapter on the policy's base" if is_shared else "a model of its own"
    return found


def _fits_beside(stages: Stages, spec: StageSpec, mode: AdapterMode | None, reward: FromStage) -> bool:
    policy = layers(stages, FromStage(spec.id, spec.produces))
    return bool(policy.adapters) and not _misfit(policy, mode, layers(stages, reward))


def _misfit(policy: Layers, mode: AdapterMode | None, judge: Layers) -> str:
    """Say why a judge's adapters cannot stand on the base of a policy that is an adapter; empty where they can."""
    if mode == "merge":
        return f"the policy's base is {policy.base}, merged for it alone, and its own {judge.base}"
    if policy.base != judge.base:
        return f"its base is {judge.base or 'unknown'}, the policy's {policy.base}"
    below, own = policy.adapters[:-1], policy.made_of[-1]
    rest = judge.made_of[len(below) :]
    if not rest or judge.adapters[: len(below)] != below:
        return f"it is {judge}, the policy lies on {Layers(policy.base, below)}"
    type, params = _peft_type(own), [_params(one) for one in rest]
    if other := [_peft_type(one) for one in rest if _peft_type(one) != type]:
        return f"its adapter is {other[0]}, the policy's {type}"
    if moved := next(filter(None, map(moves_base, (*params, _params(own)))), None):
        return f"init_lora_weights {moved} has changed the base for one of both"
    if len(rest) > 1 and not all(adds_up(type, one) for one in params):
        return "it lies on an adapter that the policy's base has not, and does not only add to it"
    return ""


def critic_start(stages: Stages, spec: StageSpec) -> ValueSource | None:
    """Return what a stage's critic starts from, as far as recipe and folders tell; None where it says nothing."""
    given = spec.inputs.get("critic")
    source = given.source if isinstance(given, CriticStart) else None
    if source is None:
        return None
    name = source.model_name if isinstance(source, FromStage) else source.name
    mode, policy = mode_of(stages, spec), layers(stages, FromStage(spec.id, spec.produces))
    body, judge = _body_of(stages, source, (spec.id,)), layers(stages, source)
    # a head on the policy's own body keeps its meaning only where that body is gone on with as it is
    goes_on = mode == "continue" or (mode is None and is_full(spec.inputs.get("adapter")))
    is_policy = goes_on and source == spec.inputs.get("model")
    fits = body != "adapter" or not policy.adapters
    if body == "adapter" and _is_beside_policy(stages, source):
        # what a policy's adapter is on, its critic's is on too; of the critic's own the files tell
        judge = Layers(judge.base, (*judge.adapters[:-1], f"{name}'s critic"), judge.made_of)
    return ValueSource(name, body, is_policy, "" if fits else _misfit(policy, mode, judge))


def _is_beside_policy(stages: Stages, source: FromStage | External) -> bool:
    if isinstance(source, External):
        return has_critic(source.path)
    return source.produces == "model"


def _body_of(stages: Stages, source: FromStage | External, before: tuple[str, ...]) -> CriticBody:
    """Return what the head of a value function reads: an adapter, a model of its own, or the policy beside it."""
    if isinstance(source, External):
        if _is_beside_policy(stages, source):
            # a file of another program is told when it is read
            with contextlib.suppress(InputError):
                return BODIES[kind_said(Path(source.path) / "critic")]
        return "adapter" if adapters_in(source.path) else "whole"
    made = stages[source.stage]
    critic, args = made.inputs.get("critic"), made.params.get("args") or {}
    trains_all = mode_of(stages, made) != "continue" and is_full(made.inputs.get("adapter"))
    if made.produces != "model":
        return "whole" if trains_all else "adapter"
    kind, earlier = args.get("critic"), None
    if isinstance(critic, CriticStart):
        kind, earlier = kind or critic.kind, critic.source
    if kind is None and earlier is not None and source.stage not in before:  # a circle is told later, and ends here
        body = _body_of(stages, earlier, (*before, source.stage))
        kind = ValueSource(source.stage, body).kind_beside(not trains_all)
    is_whole = trains_all or (isinstance(critic, Use) and is_full(critic))
    return BODIES.get(str(kind), "whole" if is_whole else "adapter")


def _peft_type(adapter: Use | Path) -> str:
    if isinstance(adapter, Path):
        return str(adapter_config(adapter).get("peft_type"))
    with contextlib.suppress(LookupError):  # of a class that nobody has, told by the check
        found = abilities(str(adapter.schema.declares("params_of")))
        if found is not None:
            return found.name
    return adapter.plugin.name


def _params(adapter: Use | Path) -> Mapping[str, Any]:
    return adapter_config(adapter) if isinstance(adapter, Path) else adapter.params


def _reference(spec: StageSpec, start: Layers) -> str | None:
    """Name the reference: a stage class says `model`, or the option of its `args` without which there is none."""
    option = spec.schema.declares("reference")
    if not option:
        return None
    if option != "model":
        name, target = next(iter(spec.configs.items()))
        default = of_config(target).fields[option].default
        if not (spec.params.get(name) or {}).get(option, default):
            return f"none ({option} is 0)"
    return f"{start}, as it starts"
