"""A stage in processes of its own: what the run does meanwhile. It starts them, tells what they say, and ends them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from posttrain_plugins.launch import nodes
from posttrain_plugins.launch.cpu import deepspeed_environment
from posttrain_plugins.launch.failures import failure
from posttrain_plugins.launch.hang import Silence
from posttrain_plugins.launch.job import Job, clear, read_result
from posttrain_plugins.launch.processes import command, environment, started
from posttrain_plugins.recipe.plan.plan import Plan, PlannedStage
from posttrain_plugins.recipe.read import document
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.types import Reporter, StageResult

__all__ = ["call_launched", "lend"]

POLL_S = 0.1


def call_launched(
    chosen: Plan,
    stage: PlannedStage,
    artifacts: Mapping[str, Artifact],
    partial: Path,
    checkpoint: Path | None,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> StageResult:
    """Make a stage in as many processes as its `launch` says, and return what it came to.

    Args:
        chosen: the plan.
        stage: one with `spec.launch`.
        artifacts: what stands, by stage.
        partial: the stage's folder, whose lock the run holds.
        checkpoint: to go on from.
        reporter: is told what the first process tells.
        should_stop: becomes true when the user wants to stop.

    Raises:
        PosttrainError: what was raised in the process that failed first; one error, however many processes there are.
        StageFailed: a process hangs.
    """
    launch = stage.spec.launch
    assert launch is not None
    folders = {id: str(artifact.folder) for id, artifact in artifacts.items()}
    going_on = None if checkpoint is None else str(checkpoint)
    job = Job(
        stage.id,
        stage.key,
        dict(stage.parts),
        folders,
        str(chosen.store.root),
        str(partial),
        going_on,
        launch.engine,
        launch.num_processes,
        list(sys.path),
    )
    on_gpu = _has_accelerator()
    is_zero = launch.engine.startswith("zero")
    # Before the launch and in one process: two that compile the same operator wait for each other's lock.
    more = deepspeed_environment(on_gpu, reporter.note) if is_zero else {}
    job.write(document.dump(chosen.recipe.data))
    machines = nodes.nodes()
    nodes.check_divides(machines, launch.num_processes)
    head, port = nodes.address() if machines.count > 1 else ("", 0)
    order = nodes.Order(str(job.file), str(launch.file), _precision(stage, on_gpu), head, port)
    nodes.give(machines, chosen.store.folder, order)
    events = _Events(job.folder / "events.jsonl", reporter)
    around = environment(launch.num_processes // machines.count, on_gpu, more)
    silence = Silence(stage.id, job.folder, job.world_size, launch.hang_after_s)
    with started(job, command(job, order, machines), around) as launcher:
        while launcher.poll() is None:
            # A file and no signal: the first worker asks for it between steps, and all stop at the same one.
            if should_stop():
                (job.folder / "stop").touch()
            events.tell()
            if (hung := silence.look()) is not None:
                raise hung
            time.sleep(POLL_S)
    # Once more: what was told between the last look and the end is the last step's figures.
    events.tell()
    result = read_result(job.folder)
    # A launcher that ended well without a result has workers that stopped as they were asked to.
    if launcher.returncode != 0 or result is None:
        raise failure(stage.id, job.folder, launcher.returncode)
    clear(partial)
    return result


def lend(chosen: Plan) -> bool:
    """Be one of several machines: start what the first orders, until its run has ended.

    Returns:
        Whether this is one that only lends its processes; the first one, and one alone, run the recipe.
    """
    machines = nodes.nodes()
    if machines.index == 0:
        return False

    def start(order: nodes.Order) -> None:
        job, on_gpu = Job.read(Path(order.job)), _has_accelerator()
        more = deepspeed_environment(on_gpu, print) if job.engine.startswith("zero") else {}
        around = environment(job.world_size // machines.count, on_gpu, more)
        with started(job, command(job, order, machines), around, machines) as launcher:
            # how it went, the first machine says; and also that it is over, where a worker here would wait for ever
            while launcher.poll() is None and not job.over.exists():
                time.sleep(POLL_S)

    nodes.follow(machines, chosen.store.folder, start)
    return True


class _Events:
    """Reads what the first worker tells as it comes, and tells it on."""

    def __init__(self, file: Path, reporter: Reporter) -> None:
        self.file, self.reporter = file, reporter
        self.position = 0

    def tell(self) -> None:
        for event in self._new():
            if "note" in event:
                self.reporter.note(event["note"])
                continue
            figures = {name: float("nan") if value is None else value for name, value in event["figures"].items()}
            self.reporter.progress(event["done"], event["total"], event["unit"], figures)

    def _new(self) -> Iterator[dict[str, Any]]:
        if not self.file.is_file():
            return
        with self.file.open("rb") as stream:
            stream.seek(self.position)
            for line in stream:
                if not line.endswith(b"\n"):  # it is being written
                    return
                self.position += len(line)
                yield json.loads(line)


def _precision(stage: PlannedStage, on_gpu: bool) -> str:
    """Return what TRL would come to of the stage's `bf16` and `fp16`: bfloat16 unless they say otherwise."""
    args = next((dict(stage.spec.params.get(name) or {}) for name in stage.spec.configs), {})
    if args.get("fp16"):
        return "fp16"
    bf16 = args.get("bf16")
    return "bf16" if (on_gpu if bf16 is None else bf16) else "no"


def _has_accelerator() -> bool:
    import torch

    return bool(torch.accelerator.is_available())
