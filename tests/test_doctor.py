"""`posttrain doctor`: what is missing or broken is told with what mends it."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain_plugins import doctor
from posttrain_plugins.cli.commands import app
from posttrain_plugins.models import training_memory
from posttrain_plugins.models.training_memory import SHAPES, training_bytes
from posttrain_plugins.plugins import registry

NEEDED = ("Python", "posttrain-plugins", "torch", "trl", "transformers", "peft", "Hub", "plugins", "[quant]", "[vllm]")


def by_name(findings: list[doctor.Diagnosis]) -> dict[str, doctor.Diagnosis]:
    return {finding.what: finding for finding in findings}


def test_this_environment_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POSTTRAIN_DISABLE_PLUGINS", raising=False)
    done = CliRunner().invoke(app, ["doctor", "--json", "--runs-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = {row["what"]: row for row in json.loads(done.stdout)}
    assert set(NEEDED) <= set(found)
    assert found["trl"]["found"] == importlib.metadata.version("trl")
    assert all(row["hint"] for row in found.values() if row["status"] != "ok")
    assert found["Hub"]["status"] == "note"  # the tests run offline
    assert found["Hub"]["hint"] == "unset HF_HUB_OFFLINE"


def test_the_table_shows_every_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda runs_dir: [doctor.Diagnosis("[quant]", "broken", "gone", "pip it")])
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert all(word in done.stdout for word in ("broken", "[quant]", "gone", "pip it"))


def test_a_package_that_is_missing_or_too_old_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"trl": "1.15.0", "peft": None}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, "99.0"))
    found = by_name(list(doctor._packages()))
    assert found["trl"].status == found["peft"].status == "broken"
    assert found["trl"].found.startswith("1.15.0, expected ")
    assert found["trl"].hint.startswith("pip install 'trl")
    assert found["peft"].found == "not installed"


def test_a_missing_extra_tells_what_will_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    found = by_name(list(doctor._extras()))
    assert found["[vllm]"].status == "note"
    assert "generation with vLLM in this process will not work" in found["[vllm]"].found
    assert found["[quant]"].hint == "pip install 'posttrain-plugins[quant]'"
    assert "[dev]" not in found


def test_a_bitsandbytes_that_does_not_import_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise OSError("libcudart.so is not there")

    monkeypatch.setattr(doctor.importlib, "import_module", refuse)
    found = by_name(list(doctor._extras()))["[quant]"]
    assert (found.status, "libcudart.so" in found.found) == ("broken", True)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(100, 99, 2**30))
    runs, hub = doctor._disk(tmp_path / "not" / "there" / "yet")
    assert (runs.status, runs.found) == ("note", f"1.0 GiB free at {tmp_path}")
    assert (runs.hint, hub.hint) == ("export POSTTRAIN_RUNS_DIR=FOLDER", "export HF_HOME=FOLDER")


def test_a_gpu_that_torch_does_not_see_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    (found,) = doctor._device()
    assert found.status == "broken"
    assert "CUDA build of torch" in found.hint


def test_one_thread_is_not_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 2)
    (found,) = doctor._device()
    assert found.found == "CPU, 2 cores, 1 thread"


@pytest.mark.parametrize(
    ("threads", "cores", "load", "status", "hint"),
    [
        (8, 2, 0.0, "note", "export OMP_NUM_THREADS=2"),
        (2, 2, 9.0, "note", "export OMP_NUM_THREADS=1"),
        (1, 2, 9.0, "ok", ""),
        (2, 2, 1.0, None, ""),
        (1, 1, 5.0, None, ""),
    ],
)
def test_threads_that_wait_for_one_another_are_told(
    monkeypatch: pytest.MonkeyPatch, threads: int, cores: int, load: float, status: str | None, hint: str
) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "usable_cores", lambda: cores)
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (load, load, load))
    found = [(one.status, one.hint) for one in doctor._threads()]
    assert found == ([] if status is None else [(status, hint)])


def test_the_largest_size_is_what_fits_into_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "free_memory", lambda: 24 * 2**30)
    found = doctor._sizes()
    assert found.status == "ok"
    assert re.search(r"24 GiB free: enough to train all parameters of Qwen3-0.6B \(9.3 GiB, \d+ s", found.found)
    assert "LoRA of Qwen3-4B (21.0 GiB" in found.found
    assert "LoRA in 4 bits of Qwen3-8B (15.8 GiB" in found.found
    monkeypatch.setattr(doctor, "free_memory", lambda: 2**29)
    assert doctor._sizes().status == "note"


def test_the_formula_of_training_memory_holds_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2, two rows of 256 tokens: a plain loss holds three times the logits, and then the head's gradient."""
    shape = SHAPES["SmolLM2-135M"]
    assert abs(shape.parameters / 134_515_008 - 1) < 1e-3
    assert abs(SHAPES["Qwen3-8B"].parameters / 8_190_735_360 - 1) < 1e-3
    for training, is_checkpointed, mib in (
        ("all parameters", False, 2705), ("all parameters", True, 2178), ("LoRA", False, 1665), ("LoRA", True, 960),
    ):  # fmt: skip
        own = 4 * shape.vocabulary * shape.hidden if training == "all parameters" else 0
        plain = 3 * 512 * 49152 * 4 - own  # in place of the fused head, whose weights' gradient is there at once
        monkeypatch.setattr(training_memory, "head_bytes", lambda *_, plain=plain: plain)
        found = training_bytes(shape, training, tokens=512, is_checkpointed=is_checkpointed)  # type: ignore[arg-type]
        assert abs(found / (mib * 1e6) - 1) < 0.03


def test_a_broken_plugin_is_told_with_its_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    shaky = (registry.group("reward"), "shaky", "no_such_package.shaky:Shaky", "posttrain-shaky", "0.3")
    rows = (*registry.entry_points(), shaky)
    monkeypatch.setattr(registry, "entry_points", lambda: rows)
    monkeypatch.setenv("POSTTRAIN_DISABLE_PLUGINS", "length")
    registry.installed.cache_clear()
    found = by_name(list(doctor._plugins()))
    registry.installed.cache_clear()
    assert found["reward shaky"].status == "broken"
    assert found["reward shaky"].hint == "mend posttrain-shaky, or export POSTTRAIN_DISABLE_PLUGINS=shaky"
    assert found["plugins switched off"].found == "length"
