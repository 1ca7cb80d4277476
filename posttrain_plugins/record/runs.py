"""A run as its folder tells it: the stages in their order, the state of each, and their files. No paper.

```python
run = read_run(Path("runs/quickstart"))
for stage in run.stages:
    print(stage.id, stage.state, [line.figures["loss"] for line in stage.figures() if "loss" in line.figures])
```
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import yaml

from posttrain_plugins.errors import InputError
from posttrain_plugins.record.artifact import Artifact, read_manifest
from posttrain_plugins.record.events import EVENTS, is_alive
from posttrain_plugins.record.figures import StepFigures, read_figures
from posttrain_plugins.record.lines import read_lines
from posttrain_plugins.text.yaml12 import read_yaml
from posttrain_plugins.types import CHECKPOINT_MARKER

__all__ = ["RunRecord", "StageRecord", "State", "read_run"]

State: TypeAlias = Literal["planned", "running", "done", "cached", "failed", "stopped", "waiting"]
RESOLVED = "resolved.yaml"


@dataclass(frozen=True)
class StageRecord:
    """A stage of a run.

    Args:
        id: in the recipe.
        use: its plugin.
        makes: `model`, `dataset`, `reward`, ...
        state: `planned` (not begun), `running`, `done`, `cached` (done before this run), `failed`, `stopped` (by
            the user, or since its process is gone), or `waiting` for people to decide.
        key: content key, 64 hex digits.
        parents: the stages that it is made from.
        start: the name of the model that it starts from.
        folder: where its files are, the finished one or the one it works in; None where there is none.
        manifest: of the finished stage, else empty.
        is_wanted: False where `--until` or `--only` leave it out.
        reasons: why it runs.
        began: when it began in this run, in seconds since 1970.
        told: when it said something last.
        resumed_from: the checkpoint's name.
        done: how far it is; of a training see `figures`.
        total: of how many; None where it has not said.
        unit: of these.
        shown: the newest figures that it has told.
        message: of the error that ended it.
        hint: what to do.
    """

    id: str
    use: str = ""
    makes: str = ""
    state: State = "planned"
    key: str = ""
    parents: tuple[str, ...] = ()
    start: str | None = None
    folder: Path | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    is_wanted: bool = True
    reasons: tuple[str, ...] = ()
    began: float | None = None
    told: float | None = None
    resumed_from: str | None = None
    done: int = 0
    total: int | None = None
    unit: str = ""
    shown: Mapping[str, float | None] = field(default_factory=dict)
    message: str | None = None
    hint: str | None = None

    def figures(self) -> Iterator[StepFigures]:
        """Yield what each optimizer step came to, also while it trains."""
        return read_figures(self.folder) if self.folder is not None else iter(())

    @property
    def metrics(self) -> dict[str, float]:
        """The figures of its manifest."""
        return dict(self.manifest.get("metrics", {}))

    @property
    def details(self) -> dict[str, Any]:
        """Further values of its manifest."""
        return dict(self.manifest.get("details", {}))

    @property
    def checkpoint(self) -> int | None:
        """The step that the same command would go on from; None where none is saved."""
        if self.folder is None:
            return None
        found = self.folder.glob(f"checkpoints/checkpoint-*/{CHECKPOINT_MARKER}")
        return max((int(marker.parent.name.rpartition("-")[2]) for marker in found), default=None)

    @property
    def rollouts(self) -> Path | None:
        """What a training sampled, with each reward, a JSON line a completion."""
        return self._file("rollouts.jsonl")

    @property
    def samples(self) -> Path | None:
        """What an evaluation sampled, a JSON line a completion."""
        return self._file("samples.jsonl")

    @property
    def artifact(self) -> Artifact | None:
        """The finished stage."""
        return Artifact(self.folder, self.manifest) if self.folder is not None and self.manifest else None

    def _file(self, name: str) -> Path | None:
        return self.folder / name if self.folder is not None and (self.folder / name).is_file() else None


@dataclass(frozen=True)
class RunRecord:
    """A run.

    Args:
        name: of the recipe.
        folder: `runs/<recipe>`.
        stages: in the order in which they run.
        events: as written, see `events.py`; none of a run that an earlier version made.
        resolved: the recipe's values, as `resolved.yaml` has them.
    """

    name: str
    folder: Path
    stages: tuple[StageRecord, ...]
    events: Sequence[Mapping[str, Any]]
    resolved: Mapping[str, Any]

    def __getitem__(self, id: str) -> StageRecord:
        return next(stage for stage in self.stages if stage.id == id)

    @property
    def planned(self) -> Mapping[str, Any]:
        """The first event: who runs it, by which command, since when; empty of a run that an earlier version made."""
        return next((event for event in self.events if event["event"] == "planned"), {})

    @property
    def ended(self) -> Mapping[str, Any] | None:
        """The last event; None while it runs, and after it was killed."""
        return next((event for event in reversed(self.events) if event["event"] == "ended"), None)

    @property
    def state(self) -> State:
        """How it stands as a whole; `stopped` also where its process is gone."""
        if not self.events:
            return "done"
        if self.ended is not None:
            found: State = self.ended["state"]
            return found
        return "running" if is_alive(self.planned) else "stopped"

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """The finished stages, as tables of results take them."""
        return {stage.id: artifact for stage in self.stages if (artifact := stage.artifact) is not None}

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What the user should have read: stage and message."""
        return [(event["stage"], event["message"]) for event in self.events if event["event"] == "note"]


def read_run(folder: Path) -> RunRecord:
    """Read a run, finished, killed or at work. No lock is taken and nothing is written.

    Args:
        folder: `runs/<recipe>`.

    Raises:
        InputError: no run stands there, or a newer version made it.
    """
    events = [event for event in read_lines(folder / EVENTS) if isinstance(event.get("event"), str)]
    resolved = folder / RESOLVED
    stages = tuple(_by_events(folder, events) if events else _by_manifests(folder))
    if not stages and not resolved.is_file():
        raise InputError(f"no run stands in {folder}", hint="posttrain run RECIPE makes one")
    try:
        values = read_yaml(resolved.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # a killed run may have left half of it
        values = {}
    return RunRecord(folder.name, folder, stages, tuple(events), values if isinstance(values, dict) else {})


def _by_events(folder: Path, events: Sequence[Mapping[str, Any]]) -> Iterator[StageRecord]:
    stages = {stage["id"]: _as_planned(stage) for stage in events[0].get("stages", ())}
    folders: dict[str, str | None] = {stage["id"]: stage.get("folder") for stage in events[0].get("stages", ())}
    for event in events[1:]:
        stage = stages.get(event.get("stage", ""))
        if stage is not None:
            stages[stage.id] = _after(stage, event)
            folders[stage.id] = event.get("folder") or folders[stage.id]
    has_ended = any(event["event"] == "ended" for event in events)
    is_over = has_ended or not is_alive(events[0])
    for stage in stages.values():
        if stage.state == "running" and is_over:
            stage = replace(stage, state="stopped")
        yield _with_files(stage, folder, folders[stage.id])


def _as_planned(stage: Mapping[str, Any]) -> StageRecord:
    return StageRecord(
        id=stage["id"],
        use=stage["use"],
        makes=stage["makes"],
        state="cached" if stage["cached"] else "planned",
        key=stage["key"],
        parents=tuple(stage["from"]),
        start=stage["start"],
        is_wanted=stage["wanted"],
        reasons=tuple(stage["reasons"]),
    )


def _after(stage: StageRecord, event: Mapping[str, Any]) -> StageRecord:
    """Return a stage as it stands after an event of its own."""
    stage = replace(stage, told=event["at"])
    match event["event"]:
        case "started":
            # one that uses people's decisions, and what is made from it, has its key when these are known
            now = {"began": event["at"], "resumed_from": event["resumed_from"], "key": event.get("key", stage.key)}
            return replace(stage, state="running", **now)
        case "progress":
            shown = {name: event[name] for name in ("done", "total", "unit")}
            return replace(stage, **shown, shown=event["figures"])
        case "finished":
            return replace(stage, state="cached" if event["cached"] else "done")
        case "failed":
            state: State = "waiting" if event.get("waits") else "stopped" if event["stopped"] else "failed"
            return replace(stage, state=state, message=event["message"], hint=event["hint"])
    return stage


def _with_files(stage: StageRecord, root: Path, told: str | None) -> StageRecord:
    """Add the stage's folder and manifest."""
    name = f"{stage.id}-{stage.key[:12]}"
    final = Path(os.path.normpath(root / told)) if told else root / name
    is_made = stage.state in ("done", "cached")
    manifest = read_manifest(final) if is_made else None
    if manifest is not None:
        return replace(stage, folder=final, manifest=manifest)
    partial = root / f".{name}.partial"
    return replace(stage, folder=partial if partial.is_dir() else None)


def _by_manifests(folder: Path) -> Iterator[StageRecord]:
    """Yield the newest of each stage that stands, by when it was made: what an earlier version left no events of."""
    found = {link.name: (link, manifest) for link in (folder / "latest").glob("*") if (manifest := read_manifest(link))}
    for id, (link, manifest) in sorted(found.items(), key=lambda item: str(item[1][1]["finished"])):
        yield StageRecord(
            id=id,
            use=manifest["use"],
            makes=manifest["makes"],
            state="done",
            key=manifest["key"],
            parents=tuple(manifest["from"]),
            start=manifest.get("start"),
            folder=link.resolve(),
            manifest=manifest,
        )
