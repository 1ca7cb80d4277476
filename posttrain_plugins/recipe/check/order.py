"""The stages in an order in which they can run, each after what it needs."""

from __future__ import annotations

from collections.abc import Mapping

from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.check.loops import RawStages
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import FromStage, StageSpec

__all__ = ["in_order"]


def in_order(checker: Checker, stages: RawStages, specs: Mapping[str, StageSpec]) -> tuple[StageSpec, ...]:
    """Depth first, from the top of the recipe; a circle is told at the field that closes it."""
    # From the top: stages that need nothing of each other run as they are written, and a gate guards what is below it.
    order: list[str] = []
    state: dict[str, str] = {}

    def visit(id: str, trail: tuple[str, ...]) -> None:
        state[id] = "open"
        for parent in specs[id].parents():
            if state.get(parent) == "open":
                circle = [*trail[trail.index(parent) :], parent] if parent in trail else [id, parent]
                path = _edge(stages, specs[id], parent)
                checker.error(path, f"cycle: {' -> '.join(circle)}", "a stage cannot need itself")
            elif parent in specs and parent not in state:
                visit(parent, (*trail, parent))
        state[id] = "done"
        order.append(id)

    for id in specs:
        if id not in state:
            visit(id, (id,))
    return tuple(specs[id] for id in order)


def _edge(stages: RawStages, spec: StageSpec, parent: str) -> Keys:
    """The path of the field that names `parent`."""
    path = stages.by_id[spec.id].path
    for name, source in spec.sources():
        if isinstance(source, FromStage) and source.stage == parent:
            return (*path, *name.split("."))
    return path
