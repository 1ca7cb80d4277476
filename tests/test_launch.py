"""`launch:` and what stands around the processes: what is read, what counts, what is started, which error is told."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import posttrain_plugins
from posttrain_plugins.cli.options import with_launch
from posttrain_plugins.errors import HandoffError, InputError, Interrupted, NonFiniteLoss, RecipeErrors, StageFailed
from posttrain_plugins.launch import job as jobs
from posttrain_plugins.launch import nodes, processes, rank, worker
from posttrain_plugins.launch.failures import failure
from posttrain_plugins.launch.nodes import Nodes, Order
from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.plan.plan import plan
from posttrain_plugins.recipe.read.document import load
from posttrain_plugins.recipe.run.launched import _Events
from posttrain_plugins.types import StageResult

RECIPE = """
model: {use: random_init, tokenizer: "posttrain_plugins.tiny_world.tokenizer:tokenizer", config: {model_type: qwen3}}
datasets: {demos: {use: digit_chain, part: demonstrations, size: 8}, problems: {use: digit_chain, size: 8}}
stages:
  sft: {use: sft, model: base, dataset: demos, args: {max_steps: 1}}
  drawn: {use: sample, model: sft, dataset: problems, num_generations: 1, rewards: [exact_answer]}
"""


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe(RECIPE)


def launches(recipe: Path, *overrides: str) -> dict[str, Any]:
    found = check(load(recipe, list(overrides)))
    return {stage.id: stage.launch for stage in found.stages}


# --- what is read ----------------------------------------------------------------------------------------------------


def test_a_run_launches_what_trains_and_nothing_else(recipe: Path) -> None:
    found = launches(recipe, *with_launch([], "zero2", 2))
    assert found["base"] is None
    assert found["drawn"] is None
    assert (found["sft"].engine, found["sft"].num_processes) == ("zero2", 2)
    assert found["sft"].file.name == "zero2.yaml"


def test_a_stage_goes_before_the_run_key_by_key(recipe: Path) -> None:
    """So `--num-processes` says how many there are, whatever engine the recipe names."""
    (one, *_), two = launches(recipe, "stages.sft.launch=zero3").values(), with_launch([], None, 2)
    assert one is None
    assert launches(recipe, "stages.sft.launch=zero3")["sft"].num_processes == 8  # as TRL's file says
    found = launches(recipe, "stages.sft.launch=zero3", *two)["sft"]
    assert (found.engine, found.num_processes) == ("zero3", 2)
    own = "stages.sft.launch={config: ddp, num_processes: 4}"
    assert launches(recipe, own, *two)["sft"].num_processes == 4
    assert found.hang_after_s == 1800
    assert launches(recipe, "launch={hang_after_s: 60}", "stages.sft.launch=ddp")["sft"].hang_after_s == 60
    assert launches(recipe, "stages.sft.launch=none", *with_launch([], "ddp", 2))["sft"] is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.sft.launch=zero4", "unknown launch 'zero4'"),
        ("stages.sft.launch=./none.yaml", "none.yaml"),
        ("stages.sft.launch={config: ddp, processes: 2}", "unknown key 'processes'"),
        ("stages.sft.launch={config: ddp, num_processes: 0}", "'num_processes' is 0"),
        ("stages.sft.launch={config: 3}", "'config' is 3"),
        ("stages.sft.launch={config: ddp, hang_after_s: 0}", "'hang_after_s' is 0, expected seconds, more than 0"),
        ("launch={hang_after_s: soon}", "'hang_after_s' is 'soon'"),
        ("stages.sft.launch=[ddp]", "'launch' is ['ddp']"),
        ("launch=zero2", "'launch' of a recipe is 'zero2', expected a mapping"),
        ("launch={config: zero}", "unknown launch 'zero'"),
        ("stages.drawn.launch=ddp", "unknown key 'launch' in stage 'drawn'"),
        ("stages.sft.launch=./tpu.yaml", "starts no engine that is known here: TPU"),
        ("stages.sft.launch=./short.yaml", "does not say how many processes"),
    ],
)
def test_what_cannot_be_launched_is_told_with_its_place(recipe: Path, override: str, message: str) -> None:
    (recipe.parent / "tpu.yaml").write_text("distributed_type: TPU\nnum_processes: 2\n")
    (recipe.parent / "short.yaml").write_text("distributed_type: MULTI_GPU\n")
    with pytest.raises(RecipeErrors) as told:
        launches(recipe, override)
    assert [mistake.message for mistake in told.value.mistakes if message in mistake.message], str(told.value)


@pytest.mark.parametrize(
    ("text", "engine"),
    [
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 2}", "fsdp2"),
        ("distributed_type: FSDP", "fsdp1"),
        ("distributed_type: MULTI_CPU", "ddp"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 1}", "zero1"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: {folder}/ds.json}", "zero3"),
    ],
)
def test_a_file_of_accelerate_says_which_engine_is_meant(recipe: Path, text: str, engine: str) -> None:
    folder = recipe.parent
    (folder / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    (folder / "mine.yaml").write_text(text.replace("{folder}", str(folder)) + "\nnum_processes: 3\n")
    found = launches(recipe, "stages.sft.launch=./mine.yaml")["sft"]
    assert (found.engine, found.num_processes, found.file) == (engine, 3, (folder / "mine.yaml").resolve())
    assert len(found.below) == (engine == "zero3")


def test_the_file_is_written_as_an_absolute_path_for_the_workers(recipe: Path) -> None:
    (recipe.parent / "mine.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 3\n")
    data = check(load(recipe, ["stages.sft.launch=mine.yaml", "launch={config: mine.yaml}"])).data
    file = str((recipe.parent / "mine.yaml").resolve())
    assert data["stages"]["sft"]["launch"] == file
    assert data["launch"]["config"] == file


# --- what counts -----------------------------------------------------------------------------------------------------


def test_engine_number_and_file_are_in_the_key(recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\n")

    def keys(*overrides: str) -> dict[str, str]:
        return {stage.id: stage.key for stage in plan(check(load(recipe, list(overrides))), tmp_path / "runs").stages}

    plain = keys()
    two, four = (keys(*with_launch([], "ddp", count)) for count in (2, 4))
    zero, own = keys(*with_launch([], "zero2", 2)), keys(f"launch={{config: {file}}}")
    assert len({found["sft"] for found in (plain, two, four, zero, own)}) == 5
    assert plain["base"] == two["base"], "what runs in the run's own process stays as it was"
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nmixed_precision: bf16\n")
    assert keys(f"launch={{config: {file}}}")["sft"] != own["sft"]
    parts = plan(check(load(recipe)), tmp_path / "runs")["sft"].parts
    assert parts["world_size"] == "1"
    assert "launch" not in parts


def test_a_worker_refuses_another_key(tmp_path: Path) -> None:
    job = a_job(tmp_path, parts={"seed": "1", "source": "a"})
    worker._refuse_another(job, {"seed": "1", "source": "a"})
    with pytest.raises(HandoffError, match="would make another: source differs from the run's"):
        worker._refuse_another(job, {"seed": "1", "source": "b"})


# --- what is started -------------------------------------------------------------------------------------------------


def a_job(folder: Path, **changed: Any) -> jobs.Job:
    given: dict[str, Any] = {"parts": {}, "artifacts": {}, "checkpoint": None, "engine": "ddp", "world_size": 2}
    given |= {"stage": "sft", "key": "k", "runs_dir": str(folder), "partial": str(folder), "path": ["/a"]}
    return jobs.Job(**{**given, **changed})


def test_a_job_comes_back_as_it_was_written(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    (tmp_path / jobs.FOLDER).mkdir()
    (tmp_path / jobs.FOLDER / "error-0.json").write_text("{}")
    job.write("name: r\n")
    assert jobs.Job.read(job.file) == job
    assert jobs.read_failures(job.folder) == [], "nothing of an earlier start is left"


def test_mixed_precision_and_number_go_before_what_the_file_says(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    words = processes.command(job, Order(str(job.file), "zero2.yaml", "no", "", 0))
    given = dict(zip(words[3::2], words[4::2], strict=False))
    assert given["--mixed_precision"] == "no"
    # else torchrun leaves a folder in the system's for each stage
    assert Path(given["--log_dir"]).parent == tmp_path / "launch"
    assert given["--num_processes"] == "2"
    assert words[-3:] == ["-m", "posttrain_plugins.launch.worker", str(tmp_path / "launch" / "job.json")]


def test_workers_inherit_no_rank_and_know_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("MASTER_PORT", "1")
    found = processes.environment(2, False, {"X": "y"})
    assert not {"RANK", "MASTER_PORT"} & {*found}
    assert (found["ACCELERATE_USE_CPU"], found["X"]) == ("true", "y")
    assert "ACCELERATE_USE_CPU" not in processes.environment(2, True, {})


def test_what_the_first_worker_tells_is_told_once_and_whole(tmp_path: Path) -> None:
    told: list[Any] = []
    reporter = SimpleNamespace(progress=lambda *given: told.append(given), note=told.append)
    file = tmp_path / "events.jsonl"
    events = _Events(file, reporter)  # type: ignore[arg-type]
    events.tell()
    file.write_text('{"note": "a"}\n{"done": 1, "total": 2, "unit": "step", "fig')
    events.tell()
    assert told == ["a"]
    with file.open("a") as stream:
        stream.write('ures": {"loss": 0.5}}\n')
    events.tell()
    events.tell()
    assert told == ["a", (1, 2, "step", {"loss": 0.5})]


# --- what comes back -------------------------------------------------------------------------------------------------


def test_a_result_comes_back_with_its_paths(tmp_path: Path) -> None:
    assert jobs.read_result(tmp_path) is None
    made = StageResult(metrics={"loss": 0.5}, model_path=tmp_path / "model", handoff={"a": 1}, details={"rows": 2})
    jobs.write_result(tmp_path, made)
    assert jobs.read_result(tmp_path) == made


PEER = "stage 'sft' failed at x.py: RuntimeError: [gloo/transport/tcp/pair.cc:547] Connection closed by peer"
REPORT = """
Failures:
[1]:
  time      : 2026-11-29_22:34:09
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 11)  (SIGTERM)
  traceback : Signal 15 (SIGTERM) received by PID 11
-----------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : here
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 12)
"""


def test_of_several_errors_the_cause_is_told(tmp_path: Path) -> None:
    jobs.write_failure(tmp_path, 0, StageFailed(PEER))
    jobs.write_failure(tmp_path, 1, NonFiniteLoss("loss is nan", hint="lower it"))
    found = failure("sft", tmp_path, 1)
    assert isinstance(found, NonFiniteLoss)
    assert (found.message, found.hint) == ("loss is nan", "lower it")


def test_a_process_that_was_killed_is_told_and_not_the_one_that_missed_it(tmp_path: Path) -> None:
    jobs.write_failure(tmp_path, 0, StageFailed(PEER))
    (tmp_path / "launcher.log").write_text(REPORT.format(code=-9))
    found = failure("sft", tmp_path, 1)
    assert found.message == "process 1 of stage 'sft' was ended by SIGKILL"
    assert "next run goes on" in str(found.hint)


def test_one_that_was_killed_is_told_too_where_who_missed_it_ended_in_the_same_moment(tmp_path: Path) -> None:
    jobs.write_failure(tmp_path, 0, StageFailed(PEER))
    report = REPORT.format(code=1).replace("rank      : 1", "rank      : x").replace("rank      : 0", "rank      : 1")
    report = report.replace("rank      : x", "rank      : 0")
    (tmp_path / "launcher.log").write_text(report.replace("-15 (pid: 11)  (SIGTERM)", "-9 (pid: 11)"))
    assert failure("sft", tmp_path, 1).message == "process 1 of stage 'sft' was ended by SIGKILL"
    (tmp_path / "launcher.log").write_text(report)  # ended by the launcher, because of the other
    assert "process 0 lost another" in failure("sft", tmp_path, 1).message


def test_a_process_that_says_nothing_has_its_log_told(tmp_path: Path) -> None:
    (tmp_path / "launcher.log").write_text(REPORT.format(code=3))
    (tmp_path / "rank-1.log").write_text("one\nImportError: no such thing\n")
    found = failure("sft", tmp_path, 1)
    assert found.message == "process 1 of stage 'sft' ended with exit code 3"
    assert "ImportError: no such thing" in str(found.hint)


def test_what_stopped_is_a_wish_and_what_is_none_of_ours_a_failed_stage(tmp_path: Path) -> None:
    jobs.write_failure(tmp_path, 0, Interrupted("stopped at step 3", hint="again"))
    assert isinstance(failure("sft", tmp_path, 0), Interrupted)
    jobs.write_failure(tmp_path, 0, ValueError("x"))
    found = failure("sft", tmp_path, 1)
    assert (type(found), found.message) == (StageFailed, "ValueError: x")


# --- several machines ------------------------------------------------------------------------------------------------


def test_srun_says_which_machine_this_is() -> None:
    step = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "1", "SLURM_JOB_ID": "7"}
    assert nodes.nodes(step) == Nodes(2, 1, "7-0-0")
    assert nodes.nodes({"SLURM_NNODES": "2", "SLURM_NODEID": "0"}) == nodes.ALONE, "a batch script without srun"
    with pytest.raises(InputError, match="started this run 8 times on 2 machines"):
        nodes.nodes({**step, "SLURM_STEP_NUM_TASKS": "8"})
    with pytest.raises(InputError, match="7 processes cannot be divided among 2 machines"):
        nodes.check_divides(Nodes(2), 7)


def test_the_other_machines_start_what_the_first_orders_until_it_ends(tmp_path: Path) -> None:
    first, second, orders = Nodes(2, 0, "7"), Nodes(2, 1, "7"), [Order(name, "f", "no", "h", 1) for name in "ab"]
    nodes.end(Nodes(2, 0, "6"), tmp_path)
    nodes.give(first, tmp_path, orders[0])
    nodes.give(first, tmp_path, orders[1])
    started: list[Order] = []

    def start(order: Order) -> None:
        started.append(order)
        if order == orders[1]:
            nodes.end(first, tmp_path)

    nodes.follow(second, tmp_path, start)
    assert started == orders
    assert [folder.name for folder in tmp_path.iterdir()] == [".nodes-7"], "what an earlier run left is gone"
    words = processes.command(a_job(tmp_path), orders[0], second)
    given = dict(zip(words[3::2], words[4::2], strict=False))
    assert [given[f"--{name}"] for name in ("num_machines", "machine_rank", "main_process_ip")] == ["2", "1", "h"]


# --- ranks -----------------------------------------------------------------------------------------------------------


def a_trainer(known: int, kind: str, distributed: str = "DistributedType.MULTI_CPU") -> Any:
    wrapped = type(kind, (), {"zero_optimization_stage": lambda self: 2, "parameters": lambda self: ()})()
    state = SimpleNamespace(distributed_type=distributed)
    return SimpleNamespace(
        model_wrapped=wrapped, accelerator=SimpleNamespace(num_processes=known, state=state, is_fsdp2=True)
    )


def test_the_engine_in_force_is_the_one_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    rank.check_engine("ddp", a_trainer(2, "DistributedDataParallel"))
    rank.check_engine("zero2", a_trainer(2, "DeepSpeedEngine"))
    rank.check_engine("", a_trainer(2, "DistributedDataParallel"))  # a script of the user's own under torchrun
    with pytest.raises(StageFailed, match="each trains in a group of 1"):
        rank.check_engine("ddp", a_trainer(1, "Qwen3ForCausalLM"))
    with pytest.raises(StageFailed, match="fsdp2 was asked for, and the model is trained by ddp"):
        rank.check_engine("fsdp2", a_trainer(2, "DistributedDataParallel"))
    with pytest.raises(StageFailed, match="zero3 was asked for, and the model is trained by zero2"):
        rank.check_engine("zero3", a_trainer(2, "DeepSpeedEngine"))
    with pytest.raises(StageFailed, match="fsdp2 without a sharded parameter"):
        rank.check_engine("fsdp2", a_trainer(2, "FSDPQwen3", "DistributedType.FSDP"))


def test_a_process_alone_is_the_first_of_one() -> None:
    assert (rank.rank(), rank.world(), rank.is_first()) == (0, 1, True)
    assert rank.summed({"a": 1.0}) == {"a": 1.0}


def test_the_other_processes_wait_for_what_the_first_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain_plugins.trainers.start import make_once

    context: Any = SimpleNamespace(folder=tmp_path)

    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text("w")

    asked, wait_until = threading.Event(), rank.wait_until

    def waits(is_ready: Callable[[], bool]) -> None:
        assert not is_ready()
        asked.set()
        wait_until(is_ready)

    monkeypatch.setattr(rank, "wait_until", waits)
    monkeypatch.setenv("RANK", "1")
    found: list[Path] = []
    waiting = threading.Thread(target=lambda: found.append(make_once(context, "merged", make)))
    waiting.start()
    assert asked.wait(60)
    monkeypatch.setenv("RANK", "0")
    make_once(context, "merged", make)
    waiting.join(10)
    assert found == [tmp_path / "merged"]


def test_no_other_module_asks_for_its_rank() -> None:
    package = Path(posttrain_plugins.__file__).parent
    asking = re.compile(r"environ.*(RANK|WORLD_SIZE)|dist\.get_rank|distributed\.get_rank|get_world_size")
    found = [str(file.relative_to(package)) for file in package.rglob("*.py") if asking.search(file.read_text("utf-8"))]
    assert found == ["launch/rank.py"]
