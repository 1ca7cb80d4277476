"""One process of a launched stage: `python -m posttrain_plugins.launch.worker JOB.json`, started by accelerate.

It reads the recipe again, comes to the stage's key by itself and refuses another, calls the stage as a run does, and
tells the run by files. When something fails it leaves at once: others may wait for it in a collective for ever.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import HandoffError, Interrupted, StageFailed
from posttrain_plugins.launch import job as jobs
from posttrain_plugins.launch import rank
from posttrain_plugins.launch.hang import Beat, tell_stacks
from posttrain_plugins.launch.job import Job
from posttrain_plugins.launch.processes import die_with_parent
from posttrain_plugins.record.lines import json_line

__all__ = ["main"]


def main(file: Path) -> None:
    """Make the stage of a job, as one of its processes."""
    # Before anything that takes time: a launcher that is killed while torch is imported must not leave this behind.
    die_with_parent()
    job = Job.read(file)
    number = rank.rank()
    log = os.open(job.folder / f"rank-{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    # The descriptors and not `sys.stdout`: libraries in C print past it, and the launcher's own log is for its report.
    for stream in (1, 2):
        os.dup2(log, stream)
    tell_stacks(job.folder, number)
    beat = Beat(job.folder, number)
    jobs.write_presence(job.folder, number)
    os.environ.pop("PYTHONSAFEPATH", None)  # for what this process starts in turn, as the run would
    # A recipe may name modules that only the run's path leads to, such as those of the folder that it was started in.
    sys.path[:] = job.path
    try:
        _make(job, beat)
    except Interrupted as stop:  # all processes come here together, and those that still save are waited for
        jobs.write_failure(job.folder, number, stop)
    except BaseException as error:
        jobs.write_failure(job.folder, number, error)
        _print(error)
        os._exit(1)
    _leave()


def _make(job: Job, beat: Beat) -> None:
    from posttrain_plugins.recipe.check.check import check
    from posttrain_plugins.recipe.plan import keys
    from posttrain_plugins.recipe.plan.plan import HASHES, Plan, PlannedStage
    from posttrain_plugins.recipe.plan.store import Store, read_artifact
    from posttrain_plugins.recipe.read.document import load
    from posttrain_plugins.recipe.run.run import call_stage, context_of
    from posttrain_plugins.recipe.source_hash import sha256_of

    # Here and not at the top: what is wrong with an import is then told by `error-R.json` like anything else.
    if rank.world() != job.world_size:
        raise StageFailed(f"{job.world_size} processes were asked for, {rank.world()} were started")
    recipe = check(load(job.folder / "recipe.yaml"))
    spec = recipe.stage(job.stage)
    artifacts = {id: read_artifact(Path(folder)) for id, folder in job.artifacts.items()}
    known = {id: artifact for id, artifact in artifacts.items() if artifact is not None}
    # Keys of what stands, not of what a plan of this process would come to: decisions of people may have changed since.
    stage_keys = {id: str(artifact.manifest["key"]) for id, artifact in known.items()}
    parts = keys.parts_of(spec, recipe.seed, stage_keys, keys.HashCache(Path(job.runs_dir) / HASHES))
    _refuse_another(job, parts)
    # A plan of this stage alone: nothing else is made here, so nothing else is planned, hashed or looked up.
    planned = PlannedStage(spec, sha256_of(parts), parts, None, (), True, False)
    plan = Plan(recipe, Store(Path(job.runs_dir), recipe.name), (planned,))
    checkpoint = Path(job.checkpoint) if job.checkpoint else None
    reporter, stop = _Reporter(job.folder), job.folder / "stop"
    context = context_of(plan, planned, known, Path(job.partial), checkpoint, reporter, stop.exists, job.engine)
    result = call_stage(plan, planned, replace(context, beat=beat))
    from posttrain_plugins.guard.guarded import figures_of

    result.metrics |= rank.summed(figures_of(context.inputs))  # each process has scored its own completions
    if rank.is_first():
        jobs.write_result(job.folder, result)


def _refuse_another(job: Job, parts: Mapping[str, str]) -> None:
    names = sorted(name for name in {*parts, *job.parts} if parts.get(name) != job.parts.get(name))
    if names:
        raise HandoffError(
            f"process {rank.rank()} of stage '{job.stage}' would make another: {', '.join(names)} "
            f"{'differs' if len(names) == 1 else 'differ'} from the run's",
            hint="the same code, data and packages on every machine, and none changed since the run began",
        )


class _Reporter:
    """Tells the run what the first process says."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "events.jsonl"

    def progress(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        self._write({"done": done, "total": total, "unit": unit, "figures": dict(figures)})

    def note(self, message: str) -> None:
        self._write({"note": message})

    def _write(self, event: Mapping[str, Any]) -> None:
        if rank.is_first():
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(json_line(event))


def _print(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)
    sys.stderr.flush()


def _leave() -> None:
    """End together, with what is printed written."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a thread of a tracker or of a reward that hangs must not keep the others waiting


if __name__ == "__main__":
    main(Path(sys.argv[1]))
