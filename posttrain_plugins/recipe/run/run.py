"""Runs a plan: stage after stage in one process, each into the store, with what is done already skipped."""

from __future__ import annotations

import contextlib
import gc
import math
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain_plugins.checkpoints import has_checkpoint, newest_checkpoint
from posttrain_plugins.errors import (
    PLUGIN_FAILURES,
    GateNotMet,
    HandoffError,
    InputError,
    Interrupted,
    NonFiniteLoss,
    PosttrainError,
    StageFailed,
    WaitsForPerson,
)
from posttrain_plugins.launch import nodes, rank
from posttrain_plugins.launch.job import FOLDER
from posttrain_plugins.recipe import handoff
from posttrain_plugins.recipe.check.compatibility import check_handoff
from posttrain_plugins.recipe.plan import keys
from posttrain_plugins.recipe.plan.decisions import asks_people, decisions_of, rekeyed
from posttrain_plugins.recipe.plan.lock import BEAT_S
from posttrain_plugins.recipe.plan.plan import HASHES, Plan, PlannedStage
from posttrain_plugins.recipe.read import document
from posttrain_plugins.recipe.run.full_disk import REQUEST_LOG, full_disk, stage_on_full_disk
from posttrain_plugins.recipe.run.inputs import Resolver
from posttrain_plugins.recipe.run.launched import call_launched
from posttrain_plugins.recipe.run.observer import Observer, Recorded
from posttrain_plugins.recipe.run.out_of_memory import stage_out_of_memory
from posttrain_plugins.recipe.spec import option_path
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.record.figures import FIGURES
from posttrain_plugins.record.storage import remove
from posttrain_plugins.types import ModelArtifact, Reporter, StageContext, StageResult

__all__ = ["Run", "call_stage", "context_of", "run_plan"]


ALSO_RECORDED = ("accelerate", "datasets", "posttrain-plugins")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
CAUSES = 20  # that are followed: a chain may bite its tail
GOES_ON = "the same command goes on from there"


@dataclass(frozen=True)
class Run(Mapping[str, Artifact]):
    """A finished run: stage id (or loop name) -> its artifact."""

    plan: Plan
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)

    def __getitem__(self, id: str) -> Artifact:
        return self.artifacts[self.plan.recipe.aliases.get(id, id)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.artifacts)

    def __len__(self) -> int:
        return len(self.artifacts)


def run_plan(chosen: Plan, observer: Observer) -> Run:
    """Run what a plan says must run; `run.jsonl` and who observes are told of it."""
    if rank.world() > 1:
        raise InputError(
            f"this run is process {rank.rank()} of {rank.world()}: each would make all stages",
            hint=f"start it once: posttrain run RECIPE --launch ddp --num-processes {rank.world()}",
        )
    machines = nodes.nodes()
    chosen.store.prepare()
    recorded = Recorded(observer)
    try:
        finished = _run_and_tell(chosen, recorded)
    except BaseException as error:
        recorded.ended(error)
        raise
    finally:
        nodes.end(machines, chosen.store.folder)
    recorded.ended(None)
    return finished


def _run_and_tell(chosen: Plan, observer: Observer) -> Run:
    observer.planned(chosen)
    for stage in chosen.stages:
        for warning in stage.spec.warnings if stage.must_run else ():
            observer.note(stage, str(warning))
    for stage in chosen.stages:
        if stage.is_forced and stage.is_wanted:
            chosen.store.remove(stage.id, stage.key)  # at once, so that the same run without --force goes on
    try:
        # Before anything can fail: of a run that broke, too, there is the recipe that it was, whatever the file is now.
        (chosen.store.folder / "resolved.yaml").write_text(document.dump(chosen.recipe.data), encoding="utf-8")
        return Run(chosen, _run_stages(chosen, observer))
    except KeyboardInterrupt:
        raise Interrupted("stopped at once; the newest complete checkpoint stands", hint=GOES_ON) from None
    except OSError as cause:  # of what is written beside the stages
        full = full_disk(cause, chosen.store.folder)
        if full is None:
            raise
        raise full from cause


def _run_stages(chosen: Plan, observer: Observer) -> dict[str, Artifact]:
    artifacts: dict[str, Artifact] = {}
    failures: dict[str, PosttrainError] = {}  # stage -> why it does not stand: its own error, or one before it
    renamed: dict[str, str] = {}  # key as it was planned -> key with the decisions that were known only now
    if "torch" in sys.modules and any(stage.artifact is None for stage in chosen.stages):
        gc.collect()  # what a program has let go of before: `_memory_given_back` would keep it until the run is over
    with _stop_on_signal() as should_stop:
        for planned in chosen.stages:
            stage = rekeyed(planned, renamed, chosen.store)
            renamed[planned.key] = stage.key
            # Also of a stage that `--only` leaves out: what runs may be made from it.
            if stage.artifact is not None:
                artifacts[stage.id] = stage.artifact
            if not stage.is_wanted:
                continue
            if stage.artifact is not None:
                # It may be another recipe's result, or an older one's of this recipe, that has this key.
                chosen.store.point(stage.id, stage.artifact.folder)
                chosen.store.clear(stage.artifact)
                observer.finished(stage, stage.artifact, True)
            elif (error := _made(chosen, stage, artifacts, failures, renamed, observer, should_stop)) is not None:
                # Who stopped a run wants it stopped; a full disk is full for all; and a gate guards what is written
                # below it: where it could not be asked, nothing passes. Any other failure costs the stages that are
                # made from this one alone.
                is_for_all = isinstance(error, Interrupted) or full_disk(error, chosen.store.folder) is not None
                if is_for_all or stage.spec.params.get("require") or planned is chosen.stages[-1]:
                    raise _first((*failures.values(), error))
                failures[stage.id] = error
                continue
            # Of a cached result too: a gate that was missed yesterday is not passed because nothing changed.
            _check_gate(stage, artifacts[stage.id])
    if failures:
        raise _first(tuple(failures.values()))
    return artifacts


def _first(errors: Sequence[PosttrainError]) -> PosttrainError:
    """The first failure; that a person is waited for is what a run ends with where nothing else is wrong."""
    return next((error for error in errors if not isinstance(error, WaitsForPerson)), errors[0])


def _made(
    chosen: Plan,
    stage: PlannedStage,
    artifacts: dict[str, Artifact],
    failures: Mapping[str, PosttrainError],
    renamed: dict[str, str],
    observer: Observer,
    should_stop: _Flag,
) -> PosttrainError | None:
    """Make a stage and put it among the artifacts, or return what keeps it from being made."""
    lost = next((parent for parent in stage.spec.parents() if parent in failures), None)
    if lost is not None:
        why = "waits for a person" if isinstance(failures[lost], WaitsForPerson) else "failed"
        observer.note(stage, f"not run: it needs '{lost}', which {why}")
        return failures[lost]
    missing = [parent for parent in stage.spec.parents() if parent not in artifacts]
    if missing:
        raise InputError(
            f"stage '{stage.id}' needs {', '.join(map(repr, missing))}, which is not done",
            hint=f"posttrain run RECIPE --until {stage.id}",
        )
    if should_stop():
        raise Interrupted(f"stopped before stage '{stage.id}'", hint=GOES_ON)
    try:
        with _memory_given_back():
            if asks_people(stage.spec):
                stage = _with_decisions(chosen, stage, artifacts, renamed, observer)
            artifacts[stage.id] = _run_stage(chosen, stage, artifacts, observer, should_stop)
    except WaitsForPerson as error:
        return error
    except PosttrainError as error:
        if stage.id != chosen.stages[-1].id:
            observer.note(stage, f"failed: {error.message}")
        return error
    observer.finished(stage, artifacts[stage.id], False)
    return None


def _with_decisions(
    chosen: Plan,
    stage: PlannedStage,
    artifacts: Mapping[str, Artifact],
    renamed: dict[str, str],
    observer: Observer,
) -> PlannedStage:
    """Ask a stage for its questions, now that its inputs are there, and give it the key of the decisions on them.

    Raises:
        WaitsForPerson: some are missing.
    """
    try:
        inputs = Resolver(chosen.recipe, artifacts, _weights_of(chosen, stage)).inputs(stage.spec)
        found = decisions_of(stage.spec, stage.parts, chosen.store, inputs)
        if found.waits:
            is_elsewhere = chosen.store.root != Path("runs").resolve()
            where = f" --runs-dir {shlex.quote(str(chosen.store.root))}" if is_elsewhere else ""
            command = f"posttrain annotate {shlex.quote(f'{chosen.recipe.name}:{stage.id}')}{where}"
            raise WaitsForPerson(stage.id, found.waits, hint=f"{command}; then the same command goes on")
    except PosttrainError as error:
        observer.failed(stage, error)
        raise
    known = rekeyed(stage, renamed, chosen.store, found)
    if stage.is_forced and known.key != stage.key:  # as `run_plan` does with the keys that were planned
        chosen.store.remove(known.id, known.key)
    renamed.update({planned: known.key for planned, key in renamed.items() if key == stage.key})
    return known


def _run_stage(
    chosen: Plan, stage: PlannedStage, artifacts: Mapping[str, Artifact], observer: Observer, should_stop: _Flag
) -> Artifact:
    store = chosen.store
    # Two runs of one recipe must not write into one folder; the key in its name lets two that differ work side by side.
    with store.locked(stage.id, stage.key, lambda message: observer.note(stage, message)) as partial:
        # Planned without the lock: another process may have made the stage while this one made those before it.
        made_meanwhile = store.get(stage.id, stage.key)
        if made_meanwhile is not None and not stage.is_forced:
            shutil.rmtree(partial)
            return made_meanwhile
        checkpoint = newest_checkpoint(partial, lambda message: observer.note(stage, message))
        if checkpoint is not None:  # what an earlier end was refused for is saved again, and leaves nothing behind
            shutil.rmtree(partial / "model", ignore_errors=True)
        observer.started(stage, checkpoint)
        began = time.perf_counter()
        try:
            reporter = _StageReporter(stage, observer, lambda: store.check_held(stage.id, stage.key, BEAT_S))
            if stage.spec.launch is None:
                context = context_of(chosen, stage, artifacts, partial, checkpoint, reporter, should_stop)
                result, inputs = call_stage(chosen, stage, context), context.inputs
                # `plan` and `validate` do without the guard, so it is imported where something runs
                from posttrain_plugins.guard.guarded import figures_of

                result.metrics |= figures_of(inputs)
            else:
                inputs = _parent(chosen, stage, artifacts)
                result = call_launched(chosen, stage, artifacts, partial, checkpoint, reporter, should_stop)
            recorded = _handoff(chosen, stage, result, partial, inputs)
            manifest = _manifest(stage, result, recorded, partial, time.perf_counter() - began)
            manifest["resumed_from"] = checkpoint and checkpoint.name  # `seconds` are those from there on
            scratch = [str(_relative(partial / name, partial)) for name in result.scratch]
            return store.publish(stage.id, stage.key, manifest, scratch)
        except BaseException as error:
            full = None if isinstance(error, Interrupted) else stage_on_full_disk(error, stage.id, partial)
            observer.failed(stage, full or error)
            if not _is_worth_keeping(partial, error):
                _keep_curve(partial)
            if full is not None:
                raise full from error
            raise


def context_of(
    chosen: Plan,
    stage: PlannedStage,
    artifacts: Mapping[str, Artifact],
    partial: Path,
    checkpoint: Path | None,
    reporter: Reporter,
    should_stop: Callable[[], bool],
    engine: str = "",
) -> StageContext:
    """Return all that a stage may use, its inputs resolved; `engine` is that of a process that was launched.

    Raises:
        InputError: an input cannot be used, see `Resolver.inputs`.
    """
    inputs = Resolver(chosen.recipe, artifacts, _weights_of(chosen, stage)).inputs(stage.spec)
    check_handoff(stage.spec, inputs)
    # Options that go to a trainer stand in the field with a config class, whatever a plugin's author has called it.
    args = next((dict(stage.spec.params.get(name) or {}) for name in stage.spec.configs), {})
    # TRL reads the seed of its own arguments, so a recipe that gives one there means the whole stage.
    seed = int(args.get("seed", chosen.recipe.seed))
    path = option_path(stage.id)
    mode = stage.spec.adapter_mode
    return StageContext(
        stage.id, partial, seed, inputs, checkpoint, reporter, should_stop, args, path, mode, engine=engine
    )


def _parent(chosen: Plan, stage: PlannedStage, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Return of a launched stage's inputs what the run itself compares: the model, and whether a template is given.

    The model is looked at here, too, so that one that is not what its maker recorded costs no start of processes.
    """
    source = stage.spec.inputs.get("model")
    found: dict[str, Any] = {"chat_template": stage.spec.inputs.get("chat_template")}
    if source is not None:
        resolver = Resolver(chosen.recipe, artifacts, _weights_of(chosen, stage))
        found["model"] = resolver.resolve(source, stage.spec.loading)
    return found


def call_stage(chosen: Plan, stage: PlannedStage, context: StageContext) -> StageResult:
    """Builds the stage and calls it; whatever a plugin raises comes out with the stage's name on it."""
    spec = stage.spec
    try:
        plugin = spec.plugin.load()
        result = plugin(**{**spec.params, **spec.names()})(context)
    except (PosttrainError, KeyboardInterrupt):
        raise
    except PLUGIN_FAILURES as cause:  # the plugin boundary
        if (failed := stage_out_of_memory(cause, chosen, stage)) is not None:
            raise failed from cause
        # of an asynchronous reward, the trainer has only seen that there was one
        origin = cause.__cause__ if isinstance(cause.__cause__, SystemExit) else cause
        reward = _reward_that_raised(origin, context.inputs)
        where = f"in reward '{reward}' at {_place_of(origin)}" if reward else f"at {_place_of(origin)}"
        is_exit = reward and isinstance(origin, SystemExit)
        raise StageFailed(
            f"stage '{stage.id}' failed {where}: {type(origin).__name__}: {origin}",
            hint="on_error: none on the reward counts such a score as failed, and the run goes on" if is_exit else None,
        ) from cause
    if not isinstance(result, StageResult):
        raise StageFailed(f"stage '{stage.id}' returned {type(result).__name__}, expected StageResult")
    return result


def _reward_that_raised(cause: BaseException, inputs: Mapping[str, Any]) -> str | None:
    """The name of the stage's reward in whose call it was raised: trainers call the author's own callables."""
    given = inputs.get("rewards")
    rewards: dict[str, Any] = {one.name: one.func for one in given} if isinstance(given, list) else {}
    for frame, _ in traceback.walk_tb(cause.__traceback__):
        for name, func in rewards.items():
            code = getattr(func, "__code__", None) or getattr(type(func).__call__, "__code__", None)
            if frame.f_code is code and frame.f_locals.get("self", func) is func:  # two may be of one class
                return name
    return None


def _place_of(cause: BaseException) -> str:
    """The innermost frame, `file.py:12 in name`: a plugin's own line where it raised itself."""
    frame = traceback.extract_tb(cause.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"


def _weights_of(chosen: Plan, stage: PlannedStage) -> Callable[..., str]:
    """The identity of a base's weights, in the stage's revision or else the one that is given.

    Files are read once and remembered beside the runs.
    """
    asked = stage.spec.loading.get("model_revision")

    def identity(model: str, revision: str | None = None) -> str:
        hashes = keys.HashCache(chosen.store.root / HASHES)
        found = keys.weights_identity(model, hashes, asked or revision)
        hashes.save()
        return found

    return identity


def _handoff(
    chosen: Plan, stage: PlannedStage, result: StageResult, partial: Path, inputs: Mapping[str, Any]
) -> dict[str, Any]:
    if result.model_path is None:
        return {}
    # Now, and not on use: only here is it known to be what the stage made, and a later change of a file is told by it.
    recorded = handoff.record(partial / result.model_path, stage.spec.loading)
    base = recorded["base"]
    recorded["base_weights"] = _weights_of(chosen, stage)(base, recorded["base_revision"]) if base else None
    parent = inputs.get("model")
    if isinstance(parent, ModelArtifact) and stage.spec.produces == "model":  # one of ours: a foreign one has no record
        handoff.check_kept(stage.id, parent.handoff, recorded, inputs.get("chat_template") is not None)
    return {**recorded, **result.handoff}


def _manifest(
    stage: PlannedStage, result: StageResult, recorded: Mapping[str, Any], partial: Path, seconds: float
) -> dict[str, Any]:
    return {
        "stage": stage.id,
        "use": stage.spec.plugin.name,
        "plugin": f"{stage.spec.plugin.distribution} {stage.spec.plugin.version}".strip() or stage.spec.plugin.target,
        "makes": stage.spec.produces,
        "from": list(stage.spec.parents()),
        "start": stage.spec.start,
        "key": stage.key,
        "seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": {name: float(v) for name, v in result.metrics.items() if math.isfinite(float(v))},
        "model_path": _relative(result.model_path, partial),
        "data_path": _relative(result.data_path, partial),
        "loading": dict(stage.spec.loading),
        "handoff": dict(recorded),
        "details": result.details,
        "parts": dict(stage.parts),
        "python": sys.version.split()[0],
        "versions": {name: keys.version(name) for name in (*keys.VERSIONS, *ALSO_RECORDED)},
    }


def _relative(path: Path | None, partial: Path) -> str | None:
    if path is None:
        return None
    return str(path.relative_to(partial)) if path.is_absolute() and path.is_relative_to(partial) else str(path)


def _check_gate(stage: PlannedStage, artifact: Artifact) -> None:
    unmet = artifact.manifest["details"].get("unmet")
    if unmet:
        raise GateNotMet(
            f"stage '{stage.id}' does not meet its gate: {'; '.join(unmet)}", hint=f"see {artifact.folder}"
        )


def _is_worth_keeping(partial: Path, error: BaseException) -> bool:
    """Nothing half-written stays but what cost something: a checkpoint, answered requests, a model that was trained."""
    if isinstance(error, NonFiniteLoss):
        return False
    if isinstance(error, InputError) and not isinstance(error, HandoffError):
        # A refusal comes before the first step: what stands then is an empty log, unless a service refused in between.
        log = partial / REQUEST_LOG
        return has_checkpoint(partial) or (log.is_file() and log.stat().st_size > 0)
    return has_checkpoint(partial) or any((partial / n).exists() for n in (REQUEST_LOG, "model"))


def _keep_curve(partial: Path) -> None:
    """Delete what a stage that failed has written, all but the figures of its steps, by which a person sees why."""
    figures = partial / FIGURES
    if not figures.is_file() and not (partial / FOLDER).is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        return
    for path in partial.iterdir():
        if path.name != FOLDER and path != figures:  # what the processes of a launched stage said
            remove(path)


@contextmanager
def _memory_given_back() -> Iterator[None]:
    """Give back what a stage has held, whatever ends it: the next stage has no room beside it.

    A trainer and its model refer to each other, so that only a collection frees them. What is there already, which is
    half a million objects of the libraries, is left out of that: to look through them takes as long as a small stage.
    """
    # else the program that we run in keeps its own out of collections, or another thread may be in a stage of its own
    is_ours = gc.get_freeze_count() == 0 and threading.current_thread() is threading.main_thread()
    if is_ours:
        gc.freeze()
    try:
        yield
    except BaseException as error:
        raised: BaseException | None = error
        for _ in range(CAUSES):  # the frames of a traceback hold the stage's model and data
            if raised is not None:
                traceback.clear_frames(raised.__traceback__)
                raised = raised.__cause__
        raise
    finally:
        gc.collect()
        if is_ours:
            gc.unfreeze()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            # a cached block is not free for the next stage's model; a GPU that has failed says so once more
            with suppress(RuntimeError):
                torch.cuda.empty_cache()


@dataclass(frozen=True)
class _StageReporter:
    stage: PlannedStage
    observer: Observer
    check_held: Callable[[], None]

    def progress(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        self.check_held()
        self.observer.progress(self.stage, done, total, unit, figures)

    def note(self, message: str) -> None:
        self.observer.note(self.stage, message)


class _Flag:
    """Becomes true with the first signal; the second one is a KeyboardInterrupt."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        return self.number is not None

    def handle(self, number: int, frame: Any) -> None:
        if self.number is not None:
            raise KeyboardInterrupt  # what no plugin boundary swallows
        self.number = number


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[_Flag]:
    """Take signals while stages run, and give what they ended the exit code of the first."""
    flag = _Flag()
    # Python lets only the main thread set handlers; a run in a notebook's or a server's thread is stopped by its host.
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    # SIGUSR1 is SLURM's (`--signal=USR1@60`) unless a host program has taken it for something of its own.
    taken = [number for number in STOPPING if number != signal.SIGUSR1 or signal.getsignal(number) == signal.SIG_DFL]
    before = {number: signal.signal(number, flag.handle) for number in taken}
    try:
        yield flag
    except KeyboardInterrupt:
        message = "stopped at once; the newest complete checkpoint stands"
        raise Interrupted(message, hint=GOES_ON, signal_number=flag.number or signal.SIGINT) from None
    except Interrupted as stop:
        raise Interrupted(stop.message, hint=stop.hint, signal_number=flag.number or signal.SIGINT) from stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
