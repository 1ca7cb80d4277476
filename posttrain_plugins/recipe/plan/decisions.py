"""Stages that wait for people: which decisions they use is a part of their key, known once their questions are.

The questions stand beside the results, below the key of all other parts. Where none stand yet, since what they are made
of is not there, the part is unknown: the run asks the stage when its inputs are, and what is made from it gets its key
anew. So a decision that is not used empties no cache, and the run that makes the questions and the next one agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from posttrain_plugins.checkpoints import has_checkpoint
from posttrain_plugins.recipe.build import construct
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.recipe.source_hash import sha256_of
from posttrain_plugins.recipe.spec import StageSpec
from posttrain_plugins.types import Decisions

if TYPE_CHECKING:
    from posttrain_plugins.recipe.plan.plan import PlannedStage

__all__ = ["PART", "UNKNOWN", "asks_people", "decisions_of", "rekeyed"]

PART = "decisions"
UNKNOWN = "on questions that are not made yet"


def asks_people(spec: StageSpec) -> bool:
    """Tell whether a stage waits for decisions; a user's file is imported by the run alone, and not asked."""
    return spec.plugin.file is None and hasattr(spec.plugin.load(), "decisions")


def decisions_of(
    spec: StageSpec, parts: Mapping[str, str], store: Store, inputs: Mapping[str, Any] | None = None
) -> Decisions:
    """Ask a stage which decisions it uses.

    Args:
        spec: a stage that asks people.
        parts: of its key.
        store: where its questions stand.
        inputs: resolved, by field; then it writes its questions first. None takes those that stand.
    """
    known = sha256_of({name: value for name, value in parts.items() if name != PART})
    stage = construct(spec.plugin.load(), {**spec.params, **spec.names()})
    found: Decisions | None = stage.decisions(store.questions(spec.id, known), inputs)
    return found if found is not None else Decisions(UNKNOWN)


def rekeyed(
    stage: PlannedStage, renamed: Mapping[str, str], store: Store, decisions: Decisions | None = None
) -> PlannedStage:
    """Return a stage with the keys that its parents have got since it was planned, and with its own decisions.

    Args:
        stage: as it was planned.
        renamed: key as it was planned -> key as it is.
        store: of the run.
        decisions: where it asks people, what they decided.
    """
    # A parent's key stands whole among the parts, and 64 hex digits are no other part's value.
    parts = {name: renamed.get(value, value) for name, value in stage.parts.items()}
    if decisions is not None:
        parts[PART] = decisions.part
    if parts == stage.parts:
        return stage
    key = sha256_of(parts)
    resumes = stage.must_run and not stage.is_forced and has_checkpoint(store.partial(stage.id, key))
    return replace(stage, parts=parts, key=key, can_resume=resumes)
