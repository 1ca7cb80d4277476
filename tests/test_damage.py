"""What a disk, a clock or a folder can do to a run: each is told with what to do, and nothing that stood is lost."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import HandoffError, InputError, StageFailed
from posttrain_plugins.recipe.run.ad_hoc import NameResolver
from posttrain_plugins.recipe.run.observer import Observer

STAGES = """
from dataclasses import dataclass
from pathlib import Path

from posttrain_plugins.types import DataRef, ModelRef, StageResult

@dataclass
class Rows:
    dataset: DataRef | None = None
    produces = "dataset"
    columns = ("prompt",)

    def __call__(self, context):
        (context.folder / "data.jsonl").write_text('{"prompt": "x"}\\n')
        return StageResult(data_path=context.folder / "data.jsonl")

@dataclass
class Copies:
    model: ModelRef
    produces = "model"

    def __call__(self, context):
        import shutil
        shutil.copytree(context.inputs["model"].path, context.folder / "model")
        return StageResult(model_path=context.folder / "model")

@dataclass
class Large:
    mib: int = 8
    produces = "figures"

    def __call__(self, context):
        with (context.folder / "large.bin").open("wb") as file:
            for _ in range(self.mib):
                file.write(bytes(1 << 20))
        return StageResult()
"""


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    (tmp_path / "mine.py").write_text(STAGES, encoding="utf-8")
    a_model(tmp_path / "base")
    return lambda stages: write_recipe(f"name: damage\nmodel: {tmp_path}/base\nstages:\n{stages}")


DATA = "  first: {use: './mine.py:Rows'}\n  second: {use: './mine.py:Rows', dataset: first}\n"
MODELS = "  first: {use: './mine.py:Copies', model: base}\n  second: {use: './mine.py:Copies', model: first}\n"


def a_model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Qwen3ForCausalLM"]}', encoding="utf-8")
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 16)


def flip_a_bit(file: Path) -> None:
    """As a disk does: another byte, at the same size and the same time."""
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


# --- artifacts -------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_in_weights_is_found_when_they_are_read(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    done = pp.run(recipe(MODELS), runs_dir=tmp_path / "runs", until="first")
    weights = done["first"].folder / "model/model.safetensors"
    whole = weights.read_bytes()
    flip_a_bit(weights)
    with pytest.raises(
        HandoffError, match=r"'first' is damaged, it is not as it was made: .*model/model\.safe"
    ) as told:
        pp.run(recipe(MODELS), runs_dir=tmp_path / "runs")
    assert "has other bytes: sha256" in told.value.message
    assert told.value.hint == "put the file back, or make it again: posttrain run RECIPE --force first"
    with pytest.raises(HandoffError, match="'damage:first' is damaged"):
        NameResolver(tmp_path / "runs").model("damage:first")
    weights.write_bytes(whole)
    assert pp.run(recipe(MODELS), runs_dir=tmp_path / "runs")["second"].model_path is not None


def test_the_command_that_is_told_makes_it_again(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    done = pp.run(recipe(MODELS), runs_dir=tmp_path / "runs")
    flip_a_bit(done["first"].folder / "model/model.safetensors")
    again = pp.run(recipe(MODELS), runs_dir=tmp_path / "runs", force=["first"])
    assert (again["second"].folder / "model/model.safetensors").read_bytes() == bytes(range(256)) * 16


def test_data_that_was_cut_is_found_when_it_is_read(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    done = pp.run(recipe(DATA), runs_dir=tmp_path / "runs", until="first")
    (done["first"].folder / "data.jsonl").write_text('{"prompt": ', encoding="utf-8")
    with pytest.raises(HandoffError, match=r"'first' is damaged.*data\.jsonl has 11 bytes, expected 16"):
        pp.run(recipe(DATA), runs_dir=tmp_path / "runs")


@pytest.mark.parametrize("harm", ["cut", "emptied", "another's", "gone"])
def test_a_manifest_that_is_not_whole_makes_the_stage_run_again(
    harm: str, recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    done = pp.run(recipe(DATA), runs_dir=tmp_path / "runs")
    manifest = done["first"].folder / "manifest.json"
    text = manifest.read_text(encoding="utf-8")
    if harm == "gone":
        manifest.unlink()
    else:
        manifest.write_text({"cut": text[: len(text) // 2], "emptied": "", "another's": "[1]"}[harm], encoding="utf-8")
    planned = pp.plan(recipe(DATA), runs_dir=tmp_path / "runs").stages
    assert planned[0].reasons == ("its manifest.json cannot be read, so the result does not count",)
    again = pp.run(recipe(DATA), runs_dir=tmp_path / "runs")
    assert json.loads(manifest.read_text(encoding="utf-8"))["key"] == again["first"].manifest["key"]


# --- clocks ----------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_back_changes_nothing(
    recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a day at every look: what is newest is known by links and by numbers of steps, never by a time."""
    now = [time.time()]

    def back() -> float:
        now[0] -= 86_400
        return now[0]

    monkeypatch.setattr(time, "time", back)
    first = pp.run(recipe(DATA), runs_dir=tmp_path / "runs")
    changed = DATA.replace("first: {use: './mine.py:Rows'}", "first: {use: './mine.py:Large', mib: 1}").splitlines()[0]
    second = pp.run(recipe(changed), runs_dir=tmp_path / "runs")
    assert (tmp_path / "runs/damage/latest/first").resolve() == second["first"].folder
    back_again = pp.run(recipe(DATA), runs_dir=tmp_path / "runs")
    assert (tmp_path / "runs/damage/latest/first").resolve() == first["first"].folder
    assert back_again["second"].folder == first["second"].folder, "and nothing ran twice"


# --- folders and disks -----------------------------------------------------------------------------------------------


def test_a_recipes_folder_that_is_a_file(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    """Root may write anywhere, so a missing permission is no test; a file where the folder should be is."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/damage").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"runs folder .*/runs/damage cannot be written: ") as told:
        pp.run(recipe(DATA), runs_dir=tmp_path / "runs")
    assert told.value.hint == "choose another: --runs-dir DIR"
    assert (tmp_path / "runs/damage").read_text(encoding="utf-8") == "mine"


def test_a_read_only_runs_folder(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    """What is finished there is still read; what would be written is refused before anything runs."""
    done = pp.run(recipe(DATA), runs_dir=tmp_path / "runs")
    script = f"""
mount --bind {tmp_path}/runs {tmp_path}/runs && mount -o remount,bind,ro {tmp_path}/runs || exit 77
exec {sys.executable} -m posttrain_plugins run {tmp_path}/recipe.yaml --runs-dir {tmp_path}/runs
"""
    ran = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    if ran.returncode == 77 or "unshare:" in ran.stderr:
        pytest.skip(f"no mount of one's own here: {ran.stderr.strip()}")
    assert ran.returncode == 2, ran.stderr
    assert "cannot be written: Read-only file system" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert done["second"].folder.is_dir()


def test_a_disk_that_fills_while_a_stage_writes(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    """A tmpfs of two MiB: no space is left in the middle of a file. What stood before stands, and room goes on."""
    recipe("  first: {use: './mine.py:Rows'}\n  large: {use: './mine.py:Large'}\n")
    script = f"""
mkdir -p {tmp_path}/runs && mount -t tmpfs -o size=2m none {tmp_path}/runs || exit 77
{sys.executable} -m posttrain_plugins run {tmp_path}/recipe.yaml --runs-dir {tmp_path}/runs; echo "exit $?"
{sys.executable} -m posttrain_plugins runs verify --runs-dir {tmp_path}/runs
mount -o remount,size=32m {tmp_path}/runs
{sys.executable} -m posttrain_plugins run {tmp_path}/recipe.yaml --runs-dir {tmp_path}/runs; echo "exit $?"
"""
    ran = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    if ran.returncode == 77 or "unshare:" in ran.stderr:
        pytest.skip(f"no mount of one's own here: {ran.stderr.strip()}")
    assert "error: stage 'large': the disk is full" in ran.stderr, ran.stderr
    assert "hint: free some space, then give the same command again" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "1 of 1 stages are as they were made" in ran.stdout
    assert [line for line in ran.stdout.splitlines() if line.startswith("exit")] == ["exit 1", "exit 0"]


def test_a_limit_on_the_size_of_files(recipe: Callable[[str], Path], tmp_path: Path) -> None:
    """As `ulimit -f`, a quota of a scheduler: Python tells it as EFBIG."""
    recipe("  large: {use: './mine.py:Large'}\n")
    command = [sys.executable, "-m", "posttrain_plugins", "run", str(tmp_path / "recipe.yaml")]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    ran = subprocess.run(command, cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "stage 'large': a file may not grow any further" in ran.stderr, ran.stderr
    assert "ulimit -f" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert list((tmp_path / "runs/damage").glob("large-*")) == []


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_stage_and_nothing_before_it(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    args = "{max_steps: 6, per_device_train_batch_size: 4, gradient_checkpointing: false, learning_rate: LR}"
    stage = f'{{use: sft, model: MODEL, dataset: {{path: "{tiny_data}/demos.jsonl"}}, args: {args}}}'
    first = stage.replace("MODEL", "base").replace("LR", "1e-3")
    second = stage.replace("MODEL", "first").replace("LR", "1e30").replace("1e30", "1.0e+30")
    recipe = write_recipe(f"name: nan\nmodel: {tiny_model}\nstages:\n  first: {first}\n  second: {second}\n")
    notes: list[str] = []

    class Told(Observer):
        def note(self, stage: Any, message: str) -> None:
            notes.append(message)

    with pytest.raises(StageFailed, match=r"loss is (nan|inf) at step \d of stage 'second'") as told:
        pp.run(recipe, runs_dir=tmp_path / "runs", observer=Told())
    assert told.value.hint is not None
    assert "learning_rate" in told.value.hint
    (made,) = (tmp_path / "runs/nan").glob("first-*")
    files = json.loads((made / "manifest.json").read_text(encoding="utf-8"))["files"]
    for name, (_, expected) in files.items():
        assert hashlib.sha256((made / name).read_bytes()).hexdigest() == expected
    assert list((tmp_path / "runs/nan").glob("second-*")) == []
