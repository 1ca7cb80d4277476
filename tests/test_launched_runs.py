"""`posttrain run --launch` in two processes: what they train, and what is left when one, or the run, is killed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins
from posttrain_plugins.checkpoints import newest_checkpoint
from posttrain_plugins.cli.options import with_launch
from posttrain_plugins.errors import StageFailed
from posttrain_plugins.launch import hang
from posttrain_plugins.launch.hang import Silence
from posttrain_plugins.launch.processes import workers_here
from posttrain_plugins.recipe.run import launched
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.figures import read_figures

STEPS = 60
LIMIT_S = 900  # of a run that should take half a minute, on a machine that is busy
RECIPE = """
name: two
seed: 5
model: {model}
datasets: {demos: {path: {data}/demos.jsonl}, problems: {path: {data}/problems.jsonl, limit: 16}}
rewards: {digits: "./reward.py:digits"}
stages:
  sft: {use: sft, model: base, dataset: demos,
        args: {max_steps: 3, per_device_train_batch_size: 4, learning_rate: 1e-2, gradient_checkpointing: false}}
  ppo: {use: ppo, model: base, dataset: problems, rewards: [digits],
        args: {max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1e-2, max_completion_length: 8,
               gradient_checkpointing: false}}
"""
REWARD = """
def digits(completions, **columns):
    return [sum(x.isdigit() for x in str(c)) / 8 for c in completions]
"""


@pytest.fixture
def recipe(tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path]) -> Path:
    file = write_recipe(RECIPE, model=tiny_model, data=tiny_data)
    (file.parent / "reward.py").write_text(REWARD)
    return file


def command(recipe: Path, *words: str) -> list[str]:
    runs = recipe.parent / "runs"
    return [sys.executable, "-m", "posttrain_plugins", "run", str(recipe), "--runs-dir", str(runs), *words]


def launch(recipe: Path, engine: str, *words: str) -> str:
    """Run it in two processes; its messages."""
    asked = command(recipe, "--launch", engine, "--num-processes", "2", *words)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def losses(recipe: Path, stage: str) -> list[float]:
    return [line.figures["loss"] for line in read_figures(recipe.parent / "runs/two/latest" / stage)]


def manifest(recipe: Path, stage: str) -> dict[str, Any]:
    text = (recipe.parent / "runs/two/latest" / stage / "manifest.json").read_text("utf-8")
    return dict(json.loads(text))


@pytest.mark.launch
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="pip install --no-build-isolation deepspeed")
@pytest.mark.skipif(" " in sys.prefix, reason="DeepSpeed's operator cannot be linked below a folder with a space")
def test_sft_and_ppo_under_ddp_and_zero2_are_one_training(recipe: Path) -> None:
    """SFT's losses are also those of one process, and the artifacts load in this one."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    found, weights = {}, {}
    for engine in ("ddp", "zero2"):
        launch(recipe, engine)
        for stage in ("sft", "ppo"):
            folder = recipe.parent / "runs/two/latest" / stage
            found[engine, stage] = losses(recipe, stage)
            weights[engine, stage] = load_file(folder / "model/model.safetensors")
            parts = manifest(recipe, stage)["parts"]
            assert (parts["world_size"], parts["launch"]) == ("2", engine)
            assert not (folder / "launch").exists(), "nothing that passed between the processes is published"
            _, told = AutoModelForCausalLM.from_pretrained(folder / "model", output_loading_info=True)
            assert not told["missing_keys"]
            assert not told["unexpected_keys"]
    for stage in ("sft", "ppo"):
        assert len(found["ddp", stage]) > 1
        assert found["zero2", stage] == pytest.approx(found["ddp", stage], abs=1e-4), stage
        expected, made = weights["ddp", stage], weights["zero2", stage]
        # DeepSpeed writes a tied head beside the embedding that it is
        assert made.keys() - expected.keys() <= {"lm_head.weight"}
        assert made.get("lm_head.weight", words := made["model.embed_tokens.weight"]).equal(words)
        assert all(made[name].allclose(tensor, atol=1e-4) for name, tensor in expected.items()), stage

    alone = command(recipe, "--only", "sft", "-o", "stages.sft.args.per_device_train_batch_size=8")
    subprocess.run(alone, check=True, capture_output=True, timeout=LIMIT_S)
    assert manifest(recipe, "sft")["parts"]["world_size"] == "1"
    assert found["ddp", "sft"] == pytest.approx(losses(recipe, "sft"), abs=1e-4)


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="pip install --no-build-isolation deepspeed")
@pytest.mark.skipif(" " in sys.prefix, reason="DeepSpeed's operator cannot be linked below a folder with a space")
def test_a_critic_starts_from_a_reward_model_that_zero3_has_in_pieces(recipe: Path) -> None:
    """Under DDP and ZeRO-3 PPO is the same training, which it is not from another start."""
    text = recipe.read_text(encoding="utf-8")
    pairs = recipe.parent / "pairs.jsonl"
    rows = [{"prompt": f"{i}+1=", "chosen": f"<answer>{i}</answer>", "rejected": "<answer>"} for i in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rm = f"""  rm: {{use: reward, model: base, dataset: {{path: {pairs}}}, launch: none,
       args: {{max_steps: 3, per_device_train_batch_size: 4, learning_rate: 1e-2, gradient_checkpointing: false}}}}
"""
    found = {}
    for engine, critic in (("ddp", "rm"), ("zero3", "rm"), ("ddp", "")):
        start = f"critic: {{kind: separate, from: {critic}}}, " if critic else "critic: {kind: separate}, "
        head, ppo = text.split("  ppo: {use: ppo, model: base, ")
        recipe.write_text(f"{head}{rm}  ppo: {{use: ppo, model: base, {start}{ppo}", encoding="utf-8")
        launch(recipe, engine, "--only", "rm", "--only", "ppo")
        found[engine, critic] = losses(recipe, "ppo")
    assert found["zero3", "rm"] == pytest.approx(found["ddp", "rm"], abs=1e-4)
    assert found["ddp", ""] != pytest.approx(found["ddp", "rm"], abs=1e-3)


@pytest.mark.launch
@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="pip install --no-build-isolation deepspeed")
@pytest.mark.skipif(" " in sys.prefix, reason="DeepSpeed's operator cannot be linked below a folder with a space")
def test_the_recipe_for_deepspeed_trains_all_of_a_model_in_two_ways(tmp_path: Path) -> None:
    """ZeRO-3 keeps a share of the weights too, and comes to the same model."""
    small = {"model.args.max_steps": 4, "datasets.corpus.size": 128, "datasets.demos.size": 64}
    small |= {f"stages.zero{n}.args.max_steps": 3 for n in (2, 3)}
    small |= {"datasets.heldout.size": 4, "stages.eval.num_generations": 2}
    words = [word for key, value in small.items() for word in ("-o", f"{key}={value}")]
    asked = [sys.executable, "-m", "posttrain_plugins", "run", "full_deepspeed", "--num-processes", "2", *words]
    done = subprocess.run([*asked, "--runs-dir", str(tmp_path)], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    latest = tmp_path / "full_deepspeed/latest"
    two, three = ([line.figures["loss"] for line in read_figures(latest / f"zero{n}")] for n in (2, 3))
    assert len(two) == 3
    assert three == pytest.approx(two, abs=1e-4)
    assert (latest / "eval/summary.json").is_file()


# --- hangs and kills -------------------------------------------------------------------------------------------------

LONG = ("--only", "sft", "-o", f"stages.sft.args={{max_steps: {STEPS}, save_steps: 2, save_total_limit: 2}}")


@pytest.mark.launch
def test_a_process_that_hangs_ends_the_stage_and_its_checkpoint_stands(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other waits for it in a collective of gloo's, which is C++."""
    watching: list[Silence] = []

    class Observed(Silence):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            watching.append(self)

    class Stops(Observer):
        def progress(self, stage: Any, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
            if done == 4:
                os.kill(workers_here(watching[0].folder)[1], signal.SIGSTOP)
                # only now, since to load takes longer than this on a machine that is busy
                watching[0].hang_after_s, watching[0].every_s = 2.0, 0.2

    monkeypatch.setattr(launched, "Silence", Observed)
    overrides = [*with_launch([], "ddp", 2), LONG[-1]]
    with pytest.raises(StageFailed) as told:
        posttrain_plugins.run(recipe, overrides, runs_dir=recipe.parent / "runs", only=["sft"], observer=Stops())
    assert told.value.message.startswith("process 1 of stage 'sft' hangs: nothing for 2 s, process 1: step ")
    assert "next run goes on" in str(told.value.hint)
    folder = watching[0].folder
    assert hang.WAITING.search((folder / "stack-0.txt").read_text())
    assert not workers_here(folder)
    found = newest_checkpoint(folder.parent)
    assert found is not None
    assert int(found.name.rpartition("-")[2]) >= 2


class Run:
    """A run in two processes that is about to be killed."""

    def __init__(self, recipe: Path) -> None:
        words = command(recipe, "--launch", "ddp", "--num-processes", "2", *LONG)
        self.log = recipe.parent / "run.log"
        with self.log.open("w") as stream:
            self.process = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
        self.folder = recipe.parent / "runs/two"

    def workers(self) -> dict[int, int]:
        """Rank -> process id, once both are there and a checkpoint that was not there before stands."""
        before = {*self.folder.glob(".sft-*.partial/checkpoints/checkpoint-*/complete")}
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()
            now = {*self.folder.glob(".sft-*.partial/checkpoints/checkpoint-*/complete")}
            found = {}
            for file in self.folder.glob(".sft-*.partial/launch/rank-*.json"):
                with contextlib.suppress(OSError, ValueError):
                    found[int(file.stem.partition("-")[2])] = int(json.loads(file.read_text())["pid"])
            if len(found) == 2 and now - before:
                return found
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def left(self) -> list[str]:
        """Command lines of this run's processes that live."""
        lines = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                text = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.folder) in text and "posttrain_plugins.launch.worker" in text:
                    lines.append(text)
        return lines

    def is_empty(self, within_s: float) -> bool:
        until = time.monotonic() + within_s
        while self.left() and time.monotonic() < until:
            time.sleep(0.1)
        return not self.left()


@pytest.mark.slow
def test_a_kill_of_a_process_or_of_the_run_leaves_no_process_and_loses_nothing(recipe: Path) -> None:
    """One error, and the next run goes on from the newest checkpoint to the weights of a run that nobody disturbed."""
    first = Run(recipe)
    os.kill(first.workers()[1], signal.SIGKILL)
    assert first.process.wait(60) == 1
    assert first.is_empty(0), first.left()
    told = first.log.read_text()
    assert told.count("error: ") == 1
    assert "process 1 of stage 'sft' was ended by SIGKILL" in told

    second = Run(recipe)
    second.workers()
    second.process.kill()
    second.process.wait()
    assert second.is_empty(10), second.left()

    third = Run(recipe)
    third.workers()
    third.process.send_signal(signal.SIGTERM)
    assert third.process.wait(LIMIT_S) == 143
    assert third.is_empty(0), third.left()
    assert "a checkpoint stands" in third.log.read_text()

    launch(recipe, "ddp", *LONG)
    assert manifest(recipe, "sft")["resumed_from"]
    made = (recipe.parent / "runs/two/latest/sft/model/model.safetensors").read_bytes()
    launch(recipe, "ddp", *LONG, "--force", "sft")
    assert manifest(recipe, "sft")["resumed_from"] is None
    assert (recipe.parent / "runs/two/latest/sft/model/model.safetensors").read_bytes() == made
