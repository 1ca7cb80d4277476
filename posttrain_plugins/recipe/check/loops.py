"""The stages as they are written, with every loop unrolled into its turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.recipe.check.diagnostics import Checker, listed
from posttrain_plugins.recipe.read.document import PREV, Keys

__all__ = ["RawStage", "RawStages", "unroll"]

MAX_TURNS = 1000  # each is planned, hashed and shown
PRODUCTS = ("model", "dataset", "reward", "figures")


@dataclass(frozen=True)
class RawStage:
    """A stage as written, or one turn of a loop: names that mean something else inside it are in `scope`."""

    id: str
    path: Keys
    body: Mapping[str, Any]
    scope: Mapping[str, str]


@dataclass
class RawStages:
    """All stages of a recipe.

    Args:
        by_id: in the order of the recipe.
        produces: what a stage makes; only of stages whose plugin is known.
        aliases: a loop's name -> the id of the stage that is its output.
    """

    by_id: dict[str, RawStage] = field(default_factory=dict)
    produces: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def put_first(self, raw: RawStage, produces: str | None) -> None:
        self.by_id = {raw.id: raw, **self.by_id}
        if produces is not None:
            self.produces[raw.id] = produces

    def making(self, kind: str) -> list[str]:
        """The ids of the stages that make a model, a data set, a reward."""
        return [id for id, made in self.produces.items() if made == kind]

    def meant(self, name: str, scope: Mapping[str, str]) -> str:
        """What a name stands for where it is written: in a loop's turn, or a loop's name."""
        name = scope.get(name, name)
        return self.aliases.get(name, name)


def unroll(checker: Checker) -> RawStages:
    """Collects the section `stages`."""
    stages = RawStages()
    for name, body in checker.mapping(("stages",)).items():
        path: Keys = ("stages", name)
        checker.check_name(path, name, "stage")
        if name == "base":
            checker.error(path, "'base' is reserved: it is the recipe's model", "rename the stage", True)
        elif not isinstance(body, Mapping):
            checker.error(path, f"a stage is a mapping with 'use', found {body!r}", f"{name}: {{use: ...}}")
        elif "repeat" in body or "stages" in body:
            for raw in _turns(checker, name, path, body):
                _add(checker, stages, raw)
                stages.aliases[name] = raw.id
        else:
            _add(checker, stages, RawStage(name, path, body, {}))
    if not stages.by_id and not checker.mistakes:
        checker.error((), "the recipe has no 'stages'", "stages: {sft: {use: sft, ...}}")
    return stages


def _turns(checker: Checker, name: str, path: Keys, body: Mapping[str, Any]) -> Iterator[RawStage]:
    """A loop is unrolled: turn 2's stage `t` is `loop.2.t`, and `${prev}` is the turn before (first: `init`)."""
    checker.unknown_keys(path, body, ("repeat", "init", "stages"))
    inner, repeat = body.get("stages"), body.get("repeat", 1)
    if not isinstance(inner, Mapping) or not inner or not all(isinstance(b, Mapping) for b in inner.values()):
        checker.error(path, f"loop '{name}' needs 'stages', a mapping of stages")
        return
    if not isinstance(repeat, int) or isinstance(repeat, bool) or repeat < 1:
        checker.error((*path, "repeat"), f"'repeat' is {repeat!r}, expected a number of 1 or more")
        return
    if repeat > MAX_TURNS:
        checker.error(
            (*path, "repeat"), f"'repeat' is {repeat}, expected at most {MAX_TURNS}", "each turn is stages of its own"
        )
        return
    previous = body.get("init", "base")
    for turn in range(1, repeat + 1):
        scope = {inner_name: f"{name}.{turn}.{inner_name}" for inner_name in inner} | {PREV: str(previous)}
        for inner_name, inner_body in inner.items():
            checker.check_name((*path, "stages", inner_name), inner_name, "stage")
            yield RawStage(f"{name}.{turn}.{inner_name}", (*path, "stages", inner_name), inner_body, scope)
        previous = f"{name}.{turn}.{list(inner)[-1]}"


def _add(checker: Checker, stages: RawStages, raw: RawStage) -> None:
    stages.by_id[raw.id] = raw
    looked_up = checker.plugin("stage", raw.body.get("use"), raw.path)
    if looked_up is None:
        return
    _, found = looked_up
    produces = found.declares("produces") or "figures"
    if produces in PRODUCTS:
        stages.produces[raw.id] = produces
        return
    message = f"stage plugin '{raw.body['use']}' produces {produces!r}, expected one of {listed(PRODUCTS)}"
    checker.error((*raw.path, "use"), message)
