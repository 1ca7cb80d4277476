"""Servers in this process, and adapters for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from scripted_server import PATIENCE_S, LocalServer, ScriptedBackend

from posttrain_plugins.serve.app import RequestGate, create_app
from posttrain_plugins.serve.model_thread import ModelThread
from posttrain_plugins.serve.models import Served
from posttrain_plugins.serve.protocol import RequestLimits
from posttrain_plugins.serve.service import Service
from posttrain_plugins.serve.strategies import Strategies
from posttrain_plugins.types import ResolvedReward


@pytest.fixture
def open_server() -> Iterator[Callable[..., LocalServer]]:
    """Opens servers with scripted models, one named `m` unless told, and closes them."""
    opened: list[ModelThread] = []

    def open_one(
        backends: Mapping[str, Any] | None = None,
        *,
        scorers: Mapping[str, Any] | None = None,
        named: Mapping[str, str] | None = None,
        limits: RequestLimits | None = None,
        **of_gate: Any,
    ) -> LocalServer:
        worker = ModelThread()
        opened.append(worker)
        found = backends or {"m": ScriptedBackend()}
        rewards = {name: ResolvedReward(name, func) for name, func in (scorers or {}).items()}
        strategies = Strategies(list(found), worker, rewards, named or {})
        served = {name: Served(name, name, backend) for name, backend in found.items()}
        request_gate = RequestGate(Service(served, strategies, worker, limits or RequestLimits()), **of_gate)
        return LocalServer(found, request_gate, TestClient(create_app(request_gate), raise_server_exceptions=False))

    yield open_one
    for worker in opened:
        worker.close(PATIENCE_S)


@pytest.fixture(scope="session")
def lora_folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRA adapters of the tiny model that change what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(str(tiny_model))
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        folders.append(tmp_path_factory.mktemp("adapters") / f"lora{seed}")
        model.save_pretrained(str(folders[-1]))
        AutoTokenizer.from_pretrained(str(tiny_model)).save_pretrained(str(folders[-1]))
    return folders
