"""The stages as they are written, with every loop unrolled into its turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.plugins.registry import Plugin
from posttrain_plugins.plugins.schema import Schema
from posttrain_plugins.recipe.check.diagnostics import Checker, listed
from posttrain_plugins.recipe.read.document import PREV, Keys

__all__ = ["RawStage", "RawStages", "unroll"]

MAX_TURNS = 1000  # each is planned, hashed and shown
PRODUCTS = ("model", "dataset", "reward", "figures")


@dataclass(frozen=True)
class RawStage:
    """A stage as written, or one turn of a loop.

    Args:
        id: its name; `loop.2.t` in a loop.
        path: where it stands in the document.
        body: what stands there.
        scope: names that mean something else inside a loop's turn.
        plugin: its plugin and what that takes, or None if it cannot be found or read, which is told.
    """

    id: str
    path: Keys
    body: Mapping[str, Any]
    scope: Mapping[str, str]
    plugin: tuple[Plugin, Schema] | None


@dataclass
class RawStages:
    """All stages of a recipe.

    Args:
        by_id: in the order of the recipe.
        produces: what a stage makes; only of stages whose plugin is known, and makes something that there is.
        aliases: a loop's name -> the id of the stage that is its output.
    """

    by_id: dict[str, RawStage] = field(default_factory=dict)
    produces: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def put_first(self, raw: RawStage, produces: str | None) -> None:
        """Add the stage that makes the recipe's own model: others refer to it, and it refers to none of them."""
        self.by_id = {raw.id: raw, **self.by_id}
        if produces is not None:
            self.produces[raw.id] = produces

    def making(self, kind: str) -> list[str]:
        """Return the ids of the stages that make a model, a data set, a reward."""
        return [id for id, made in self.produces.items() if made == kind]

    def meant(self, name: str, scope: Mapping[str, str]) -> str:
        """Return what a name stands for where it is written: in a loop's turn, or a loop's name."""
        name = scope.get(name, name)
        return self.aliases.get(name, name)


def unroll(checker: Checker) -> RawStages:
    """Collect the section `stages`, with `loop.1.t`, `loop.2.t` ... in place of a loop's stage `t`.

    It comes before everything that refers to a stage: a name may stand above the stage that it names.
    """
    stages = RawStages()
    for name, body in checker.mapping(("stages",)).items():
        path: Keys = ("stages", name)
        checker.check_name(path, name, "stage")
        if name == "base":
            checker.error(path, "'base' is reserved: it is the recipe's model", "rename the stage", True)
            continue
        if not isinstance(body, Mapping):
            checker.error(path, f"a stage is a mapping with 'use', found {body!r}", f"{name}: {{use: ...}}")
            continue
        is_loop = "repeat" in body or "stages" in body
        turns = _turns(checker, name, path, body) if is_loop else [(name, path, body, dict[str, str]())]
        for id, place, inner, scope in turns:
            plugin = checker.plugin("stage", inner.get("use"), place)
            stages.by_id[id] = RawStage(id, place, inner, scope, plugin)
            # A loop's name alone means its result, so that the recipe below it need not change with `repeat`.
            if is_loop:
                stages.aliases[name] = id  # the last one wins: the last stage of the last turn
            produces = (plugin[1].declares("produces") or "figures") if plugin is not None else None
            if produces in PRODUCTS:
                stages.produces[id] = produces
            elif plugin is not None:
                message = f"stage plugin '{inner['use']}' produces {produces!r}, expected one of {listed(PRODUCTS)}"
                checker.error((*place, "use"), message)
    if not stages.by_id and not checker.mistakes:
        checker.error((), "the recipe has no 'stages'", "stages: {sft: {use: sft, ...}}")
    return stages


def _turns(
    checker: Checker, name: str, path: Keys, body: Mapping[str, Any]
) -> Iterator[tuple[str, Keys, Mapping[str, Any], dict[str, str]]]:
    """Yield id, path, body and scope of every stage of every turn of a loop.

    `${prev}` is what the turn before made; in the first turn it is `init`.
    """
    checker.unknown_keys(path, body, ("repeat", "init", "stages"))
    inner, repeat = body.get("stages"), body.get("repeat", 1)
    if not isinstance(inner, Mapping) or not inner or not all(isinstance(b, Mapping) for b in inner.values()):
        checker.error(path, f"loop '{name}' needs 'stages', a mapping of stages")
        return
    if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
        checker.error((*path, "repeat"), f"'repeat' is {repeat!r}, expected a number of 1 or more")
        return
    if repeat > MAX_TURNS:
        message = f"'repeat' is {repeat}, expected at most {MAX_TURNS}"
        checker.error((*path, "repeat"), message, "each turn is stages of its own")
        return
    previous = body.get("init", "base")
    for turn in range(1, repeat + 1):
        # A name of the loop means this turn's stage, also above it; the path is the same in all turns, so that a
        # mistake in the loop's text has one place, whichever turn found it.
        scope = {inner_name: f"{name}.{turn}.{inner_name}" for inner_name in inner} | {PREV: str(previous)}
        for inner_name, inner_body in inner.items():
            checker.check_name((*path, "stages", inner_name), inner_name, "stage")
            yield f"{name}.{turn}.{inner_name}", (*path, "stages", inner_name), inner_body, scope
        previous = f"{name}.{turn}.{list(inner)[-1]}"
