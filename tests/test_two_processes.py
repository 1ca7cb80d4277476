"""On two processes every process ends with the same weights: SFT, GRPO and PPO with each critic, under DDP and ZeRO."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.record.figures import read_figures

WORKER = Path(__file__).with_name("on_two_processes.py")
DDP = (
    "sft",
    "prm",
    "grpo",
    "grpo_fast",
    "adapter",
    "adapter_fast",
    "adapter_checkpointed",
    "adapter_resumed",
    "shared",
    "shared_checkpointed",
    "separate",
    "separate_checkpointed",
    "remax",
    "reinforce_pp_baseline",
)
KINDS = ("adapter", "shared", "separate")
ZERO = (*KINDS, "adapter_resumed")
pytestmark = pytest.mark.slow


def on_two(model: Path, data: Path, out: Path, cases: Sequence[str], zero: int = 0) -> dict[str, list[dict[str, Any]]]:
    """What both processes tell of each case; all cases in one pair of processes, since their imports cost the most."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += ["--log-dir", str(out / "torchrun"), str(WORKER)]  # else it leaves a folder in the system's
    given = [model, data / "problems.jsonl", data / "demos.jsonl", out, zero, *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}  # an abort says where it was
    done = subprocess.run([*command, *map(str, given)], capture_output=True, text=True, env=environment)
    told = sorted(file.name for file in out.glob("*.json"))
    assert done.returncode == 0, f"after {told}:\n{done.stderr[-6000:]}"
    return {case: [json.loads((out / f"{case}.{rank}.json").read_text("utf-8")) for rank in (0, 1)] for case in cases}


def test_ddp(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """The gradients are the mean of those that both found, which differ; checkpointing changes no bit of the result."""
    told = on_two(tiny_model, tiny_data, tmp_path, DDP)
    for case, (first, second) in told.items():
        assert first == second, case
        assert first["world_size"] == 2
        assert (first["differed"], first["averaged"]) == (True, True), case
        assert first["has_critic"] == case.startswith(("adapter", "shared", "separate")), case
        assert (tmp_path / case / "model/critic/critic.json").is_file() == first["has_critic"], case
        assert (tmp_path / case / "figures.jsonl").is_file()
        assert first["digest"] == first["whole"], f"{case}: from its checkpoint it ends elsewhere"
    digests = {case: of[0]["digest"] for case, of in told.items()}
    for kind in KINDS:
        assert digests[kind] == digests[f"{kind}_checkpointed"], kind
    assert len(set(digests.values())) == len(DDP) - len(KINDS)


def test_a_process_reward_model_is_the_same_as_on_one(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, load_script: Callable[[Path], Any]
) -> None:
    """Rows of uneven steps: the loss is over all ends of an optimizer step, not a mean of processes' means."""
    import torch
    from safetensors.torch import load_file

    (two, _) = on_two(tiny_model, tiny_data, tmp_path, ["prm"])["prm"]
    load_script(WORKER).call("prm_alone", str(tiny_model), {}, tmp_path, zero=0)
    log = [line.figures["loss"] for line in read_figures(tmp_path / "prm_alone")]
    assert two["losses"] == pytest.approx(log, abs=1e-6)
    one, both = (load_file(tmp_path / case / "model/model.safetensors") for case in ("prm_alone", "prm"))
    assert all(torch.allclose(value, both[name], atol=1e-6) for name, value in one.items())


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="pip install --no-build-isolation deepspeed")
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(tiny_model: Path, tiny_data: Path, tmp_path: Path, stage: int) -> None:
    """ZeRO-2, and ZeRO-3 that has every parameter in two pieces, train as DDP does and save whole weights."""
    import torch
    from safetensors.torch import load_file

    cases = ZERO if stage == 3 else (*ZERO, "adapter_fast")  # which sharded weights refuse
    ddp = on_two(tiny_model, tiny_data, tmp_path / "ddp", cases)
    for case, (first, second) in on_two(tiny_model, tiny_data, tmp_path / "zero", cases, stage).items():
        assert first == second, case
        assert first["has_critic"], case
        assert first["digest"] == first["whole"], f"{case}: from its checkpoint it ends elsewhere"
        assert first["losses"] == pytest.approx(ddp[case][0]["losses"], abs=1e-4), case
        model = tmp_path / "ddp" / case / "model"
        files = [file.relative_to(model) for file in model.rglob("*.safetensors")]
        assert len(files) >= 2
        for file in files:
            expected, saved = load_file(model / file), load_file(tmp_path / "zero" / case / "model" / file)
            assert all(torch.allclose(saved[n], t, atol=1e-5) for n, t in expected.items()), (case, file)
