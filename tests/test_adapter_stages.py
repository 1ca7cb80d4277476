"""One cell of `benchmarks/adapters.py` for every adapter and for every stage, and resuming what sets up the trainer.

The whole table is made by the benchmark; here each adapter trains in one stage and each stage trains one adapter.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain_plugins.errors import Interrupted
from posttrain_plugins.types import ModelArtifact, ResolvedAdapter, StageContext

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TURNS = ("sft", "dpo", "reward", "grpo")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The benchmark as a module, with its models and data."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        script: Any = importlib.import_module("adapters")
    finally:
        sys.path.remove(str(BENCHMARKS))
    script.bench = script.Bench(tmp_path_factory.mktemp("adapters"))
    return script


ADAPTERS = [
    *("full", "freeze", "lora", "rslora", "dora", "pissa", "loftq", "lora_plus", "adalora", "ia3", "prefix", "prompt"),
    *("p_tuning", "oft", "vera", "bottleneck_houlsby", "bottleneck_pfeiffer", "bottleneck_parallel", "loha", "boft"),
]
STAGES = [
    *("sft", "dpo", "kto", "orpo", "cpo", "listwise_dpo", "reward", "ranking", "prm", "grpo", "rloo", "ppo"),
    *("online_dpo", "distill"),
]


def test_every_adapter_and_stage_is_tried(table: Any) -> None:
    assert set(ADAPTERS) == set(table.ADAPTERS)
    assert set(STAGES) == set(table.STAGES)


@pytest.mark.filterwarnings("ignore")  # PEFT's own: of AdaLoRA's rank_pattern, of BOFT's CUDA extension
@pytest.mark.parametrize(("number", "adapter"), list(enumerate(ADAPTERS)))
def test_an_adapter_trains_and_comes_back(table: Any, number: int, adapter: str) -> None:
    stage = "sft" if adapter in ("pissa", "loftq", "prefix", "prompt", "p_tuning") else TURNS[number % len(TURNS)]
    found = table.bench.cell(adapter, stage, with_4bit=False)
    if adapter == "loftq" and not torch.cuda.is_available():
        assert "accelerator" in found["refused"]
        return
    assert found["refused"] is None
    assert found["wrong"] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_a_bottleneck_in_4_bits(table: Any, stage: str) -> None:
    trained = table.bench.in_4bit("bottleneck_pfeiffer", stage, dict(table.STAGES[stage][2]))
    assert trained.get("refused") is None
    assert trained["only_its_weights"]


def test_vera_samples_and_trains_on_packed_weights(table: Any) -> None:
    trained = table.bench.in_4bit("vera", "grpo", dict(table.STAGES["grpo"][2]))
    assert trained.get("refused") is None
    assert trained["only_its_weights"]


@pytest.mark.parametrize(
    ("loading", "args"),
    [
        ({"load_in_8bit": True, "dtype": "float32"}, {}),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "dtype": "float32"}, {"optim": "paged_adamw_8bit"}),
    ],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
def test_8_bits_fp4_and_8_bit_optimizers(table: Any, loading: dict[str, Any], args: dict[str, Any]) -> None:
    table.ADAPTERS["wide"] = {"use": "lora", "r": 128}  # bitsandbytes keeps 8 bits from 4096 values on
    trained = table.bench.train("wide", "sft", {**args, "max_steps": 2}, loading)
    still = table.bench.train("wide", "sft", {**args, "max_steps": 2, "learning_rate": 0.0}, loading)
    assert trained.only_own
    assert trained.losses[0] == still.losses[0], "the same batches"
    assert trained.losses[1] < still.losses[1]
    if args:
        states = trained.optimizer.state.values()
        assert {state["state1"].dtype for state in states} == {torch.uint8}


# --- going on from a checkpoint -----------------------------------------------------------------------


def stage_of(table: Any, adapter: str, folder: Path, stop_at: int | None, resume: Path | None) -> StageContext:
    """SFT for six steps; it stops after some of them where it is told to."""
    from posttrain_plugins.plugins import registry

    parameters = {k: v for k, v in table.ADAPTERS[adapter].items() if k not in ("lr", "use")}
    config = registry.load("adapter", table.ADAPTERS[adapter]["use"])(**parameters)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(0)
        return stop_at is not None and len(asked) >= stop_at

    args = {**table.COMMON, "max_steps": 6, "learning_rate": 0.01, "per_device_train_batch_size": 2}
    inputs = {
        "model": ModelArtifact("base", str(table.bench.base), {"dtype": "float32"}),
        "dataset": table.bench.data["demos"],
        "adapter": ResolvedAdapter("it", config, "it", config.prepare),
    }
    return StageContext("it", folder, 3, inputs, resume, table.Quiet(), should_stop, args)


@pytest.mark.parametrize("adapter", ["adalora", "lora_plus"])
def test_what_sets_up_the_trainer_goes_on_where_it_stopped(table: Any, adapter: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from posttrain_plugins.stages.sft import SFT

    def run(folder: Path, stop_at: int | None = None, resume: Path | None = None) -> dict[str, torch.Tensor]:
        folder.mkdir(exist_ok=True)
        context = stage_of(table, adapter, folder, stop_at, resume)
        result = SFT(model="base", dataset="data", adapter="it", args=dict(context.args))(context)
        assert result.model_path is not None
        return load_file(result.model_path / "adapter_model.safetensors")

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", stop_at=3)
    again = run(tmp_path / "stopped", resume=tmp_path / "stopped" / "checkpoints" / "checkpoint-3")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
