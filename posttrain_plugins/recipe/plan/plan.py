"""A recipe -> what would run: every stage with its key, what is done already, and why the others are not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain_plugins.checkpoints import has_checkpoint
from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.recipe.lineage import StartingPoint, starting_point
from posttrain_plugins.recipe.plan import keys
from posttrain_plugins.recipe.plan.decisions import PART, asks_people, decisions_of
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.recipe.source_hash import sha256_of
from posttrain_plugins.recipe.spec import Recipe, StageSpec
from posttrain_plugins.record.artifact import Artifact

__all__ = ["HASHES", "Plan", "PlannedStage", "plan"]

HASHES = ".hashes.json"
MAX_REASONS = 4


@dataclass(frozen=True)
class PlannedStage:
    """A stage, its key and the parts of it, and where it stands.

    Args:
        spec: the stage.
        key: sha256 of `parts`.
        parts: name -> value of everything the result depends on.
        artifact: the finished result, or None.
        reasons: why it must run; empty where it need not.
        is_wanted: False where `--until` or `--only` leaves it out.
        can_resume: a complete checkpoint stands.
        is_forced: it, or what it is made from, is to be made again although it stands.
        starting_point: what a training stage stands on and trains; None for other stages.
        waits: how far people are whose decisions are missing, such as `137 of 200`; empty where none are.
    """

    spec: StageSpec
    key: str
    parts: Mapping[str, str]
    artifact: Artifact | None
    reasons: tuple[str, ...]
    is_wanted: bool
    can_resume: bool
    is_forced: bool = False
    starting_point: StartingPoint | None = None
    waits: str = ""

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def must_run(self) -> bool:
        return self.is_wanted and self.artifact is None

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.id,
            "use": self.spec.plugin.name,
            "makes": self.spec.produces,
            "from": list(self.spec.parents()),
            "key": self.key,
            "cached": self.artifact is not None,
            "runs": self.must_run,
            "resumes": self.can_resume,
            "reasons": list(self.reasons),
            **({"waits": self.waits} if self.waits else {}),
            "warnings": list(map(str, self.spec.warnings)),
            **({"starting_point": asdict(self.starting_point)} if self.starting_point else {}),
        }


@dataclass(frozen=True)
class Plan:
    """All stages in the order in which they run."""

    recipe: Recipe
    store: Store
    stages: tuple[PlannedStage, ...]

    def __getitem__(self, id: str) -> PlannedStage:
        return next(stage for stage in self.stages if stage.id == id)


def plan(
    recipe: Recipe,
    runs_dir: Path,
    *,
    until: str | None = None,
    only: Collection[str] = (),
    force: Collection[str] = (),
) -> Plan:
    """Compute keys and compare them with what stands below `runs_dir`.

    Args:
        recipe: a checked recipe.
        runs_dir: the runs folder; it need not exist.
        until: leave out what this stage does not need.
        only: leave out all but these stages; what they need must be done.
        force: run these again.

    A loop's name, and a turn's (`loop.2`), stand for all stages in it.

    Raises:
        InputError: an unknown stage name, choices that contradict each other, or a result of that very key which a
            newer version wrote.
    """
    if until is not None and only:
        raise InputError("--until and --only contradict each other", hint="give one of them")
    forced = {id for name in force for id in _stages(recipe, name)}
    named = only or ([] if until is None else [until])
    wanted = {id for name in named for id in _stages(recipe, name)} or {spec.id for spec in recipe.stages}
    for spec in () if only else reversed(recipe.stages):  # parents stand before, so one pass finds all that is needed
        wanted.update(spec.parents() if spec.id in wanted else ())
    if forced - wanted:
        names = ", ".join(sorted(forced - wanted))
        raise InputError(f"--force names {names}, which --only or --until leave out", hint="name the stage in both")
    store = Store(runs_dir, recipe.name)
    # Beside the runs, not in the user's cache: it names files of this project, and goes when the runs go.
    hashes = keys.HashCache(runs_dir / HASHES)
    done: dict[str, PlannedStage] = {}
    stages = {spec.id: spec for spec in recipe.stages}
    for spec in recipe.stages:
        parts = keys.parts_of(spec, recipe.seed, {id: stage.key for id, stage in done.items()}, hashes)
        waits = ""
        if asks_people(spec):
            found = decisions_of(spec, parts, store)
            parts, waits = {**parts, PART: found.part}, found.waits
        key = sha256_of(parts)
        # A parent that runs again may come out different under the same key (a GPU is not exact), so its old children
        # are not its children. One that is left out and not there is no reason: its child may be done already.
        reruns = [parent for parent in spec.parents() if done[parent].artifact is None and done[parent].is_wanted]
        artifact = None if spec.id in forced or reruns else store.get(spec.id, key)
        # A checkpoint that stands is worth nothing to who wants the stage made anew; `run` removes it.
        is_begun = store.partial(spec.id, key).is_dir()
        reasons = () if artifact else _reasons(store, spec, parts, reruns, spec.id in forced, is_begun)
        waits = "" if artifact or reruns else waits
        reasons = (f"waits for a person: {waits}",) if waits else reasons
        is_forced = spec.id in forced or any(done[parent].is_forced for parent in reruns)
        resumes = artifact is None and not is_forced and has_checkpoint(store.partial(spec.id, key))
        stands_on = starting_point(stages, spec)
        done[spec.id] = PlannedStage(
            spec, key, parts, artifact, reasons, spec.id in wanted, resumes, is_forced, stands_on, waits
        )
    if runs_dir.is_dir():  # `plan` writes nothing where nothing has run
        hashes.save()
    return Plan(recipe, store, tuple(done.values()))


def _reasons(
    store: Store, spec: StageSpec, parts: Mapping[str, str], reruns: list[str], is_forced: bool, is_begun: bool
) -> tuple[str, ...]:
    """Say why a stage has to run, by what is different from its latest result."""
    if is_forced:
        return ("forced",)
    if reruns:
        return tuple(f"'{parent}' runs" for parent in reruns)
    try:
        latest = store.latest(spec.id)
    except InputError as error:
        return (error.message,)
    if store.is_broken(spec.id, sha256_of(parts)):
        return ("its manifest.json cannot be read, so the result does not count",)
    if latest is None:
        return ("begun and not finished" if is_begun else "never run",)
    before = latest.manifest.get("parts", {})
    format_before, format_now = before.get("key format", "1"), parts["key format"]
    names = sorted(name for name in {*before, *parts} - {"key format"} if before.get(name) != parts.get(name))
    reasons = []
    if format_before != format_now:
        reasons = [f"keys have another format ({format_before} -> {format_now}), so what stands is made again once"]
    for name in names[:MAX_REASONS]:
        was, now = before.get(name), parts.get(name)
        if any(value is not None and len(value) >= 60 for value in (was, now)):  # hashes, which tell a reader nothing
            reasons.append(f"{name} changed")
        elif was is None:
            reasons.append(f"{name}: {now} is new")
        else:
            reasons.append(f"{name}: {was} is gone" if now is None else f"{name}: {was} -> {now}")
    if len(names) > MAX_REASONS:
        reasons.append(f"and {len(names) - MAX_REASONS} more")
    return tuple(reasons) or ("its result was removed",)


def _stages(recipe: Recipe, name: str) -> list[str]:
    """Return the ids that a name on the command line stands for."""
    ids = [stage.id for stage in recipe.stages]
    found = [id for id in ids if id == name or id.startswith(f"{name}.")]
    if not found:
        known = "its stages: " + ", ".join(ids)
        raise InputError(f"recipe '{recipe.name}' has no stage '{name}'", hint=suggest(name, ids) or known)
    return found
