"""`vllm_server:` of a stage, against a stand-in for `vllm serve`: started, waited for, stopped, told when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError, Interrupted, RecipeErrors, StageFailed
from posttrain_plugins.trainers import vllm_server
from posttrain_plugins.types import ModelArtifact, StageContext

PATIENCE_S = 60
PYTHON = sys.executable  # which the fixture points elsewhere, so that no `vllm` stands beside it
PROGRAM = """
    #!{python}
    import json, os, signal, sys, time
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from pathlib import Path

    here = Path(__file__).parent
    mode = (here / "mode").read_text()
    names = ("CUDA_VISIBLE_DEVICES", "VLLM_SERVER_DEV_MODE", "RANK")
    told = {"argv": sys.argv[1:], "env": {name: os.environ.get(name) for name in names}}
    (here / "told.json").write_text(json.dumps({**told, "pid": os.getpid()}))
    print("loads the weights", flush=True)
    if mode == "dies":
        sys.exit("CUDA out of memory")
    worker = os.fork()
    if worker == 0:
        (here / "worker").write_text(str(os.getpid()))
        time.sleep(600)
    signal.signal(signal.SIGTERM, lambda *_: (os.kill(worker, signal.SIGTERM), os._exit(0)))
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            is_ready = mode == "ready" and len(asked) > 2
            self.send_response(200 if is_ready else 503)
            self.end_headers()

        def log_message(self, *args):
            pass

    port = int(sys.argv[sys.argv.index("--port") + 1])
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Program:
    """The stand-in's folder: what it is to do, and what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mode = "ready"

    @property
    def mode(self) -> str:
        return (self.folder / "mode").read_text()

    @mode.setter
    def mode(self, mode: str) -> None:
        (self.folder / "mode").write_text(mode)

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "told.json").read_text())
        return found

    def is_gone(self) -> bool:
        """Wait until neither the server nor its worker is there."""
        pids = [self.told["pid"], int((self.folder / "worker").read_text())]
        deadline = time.monotonic() + PATIENCE_S
        while any(map(is_running, pids)):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """A command `vllm` that is found before any other."""
    folder = tmp_path / "bin"
    folder.mkdir()
    file = folder / "vllm"
    file.write_text(textwrap.dedent(PROGRAM).lstrip().replace("{python}", sys.executable))
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(vllm_server.sys, "executable", str(folder / "python"))
    monkeypatch.setattr(vllm_server, "POLL_S", 0.05)
    yield Program(folder)
    if (folder / "told.json").is_file() and is_running(pid := json.loads((folder / "told.json").read_text())["pid"]):
        os.killpg(pid, signal.SIGKILL)


class Notes(list[str]):
    def note(self, message: str) -> None:
        self.append(message)

    def progress(self, *args: Any) -> None:
        pass


def context_in(folder: Path, stop: Callable[[], bool] = lambda: False, model: str = "org/base") -> StageContext:
    return StageContext("grpo", folder, 0, {"model": ModelArtifact("base", model)}, None, Notes(), stop)


# --- what it is started with -----------------------------------------------------------------------------------------


def test_it_is_started_with_what_trl_needs_and_stopped_with_its_workers(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    options = {"devices": "6,7", "tensor_parallel_size": 2, "enable_prefix_caching": False, "enforce_eager": True}
    with vllm_server.started({**options, "hf_overrides": {"a": 1}}, context_in(tmp_path)) as told:
        url = told["vllm_server_base_url"]
        port = url.rpartition(":")[2]
        assert program.told["argv"] == [
            *("serve", "org/base", "--host", "127.0.0.1", "--port", port),
            *("--weight-transfer-config", '{"backend": "nccl"}', "--logprobs-mode", "processed_logprobs"),
            *("--max-logprobs", "-1", "--tensor-parallel-size", "2", "--no-enable-prefix-caching", "--enforce-eager"),
            *("--hf-overrides", '{"a": 1}'),
        ]
        assert program.told["env"] == {"CUDA_VISIBLE_DEVICES": "6,7", "VLLM_SERVER_DEV_MODE": "1", "RANK": None}
        assert is_running(program.told["pid"])
        assert told["vllm_group_port"] not in (51216, int(port))
    assert program.is_gone()
    assert "loads the weights" in (tmp_path / "vllm_server.log").read_text()


def test_an_adapter_is_started_from_its_base(program: Program, tmp_path: Path, lora: Path, tiny_model: Path) -> None:
    with vllm_server.started({}, context_in(tmp_path, model=str(lora))):
        assert program.told["argv"][:2] == ["serve", str(tiny_model)]


@pytest.fixture
def lora(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "lora"
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_model), "r": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_none_is_started_where_none_is_asked_for(program: Program, tmp_path: Path, monkeypatch: Any) -> None:
    with vllm_server.started(None, context_in(tmp_path)) as told:
        assert told == {}
    monkeypatch.setenv("RANK", "1")  # the first process has it
    with vllm_server.started({}, context_in(tmp_path)) as told:
        assert told == {}
    assert not (program.folder / "told.json").exists()


# --- what may go wrong -----------------------------------------------------------------------------------------------


def test_a_missing_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(vllm_server.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(InputError, match="no command `vllm`"), vllm_server.started({}, context_in(tmp_path)):
        pass


def test_a_server_that_ends_while_it_starts_is_told_with_its_last_words(program: Program, tmp_path: Path) -> None:
    program.mode = "dies"
    with (
        pytest.raises(StageFailed, match=r"(?s)did not start \(1\): loads the weights\nCUDA out of memory"),
        vllm_server.started({}, context_in(tmp_path)),
    ):
        pass


def test_a_server_that_never_answers_is_given_up(program: Program, tmp_path: Path) -> None:
    program.mode = "silent"
    with (
        pytest.raises(StageFailed, match=r"did not answer within 2 s"),
        vllm_server.started({"start_timeout_s": 2}, context_in(tmp_path)),
    ):
        pass
    assert program.is_gone()


def test_stopping_while_it_starts_is_an_interrupt(program: Program, tmp_path: Path) -> None:
    program.mode = "silent"
    with (
        pytest.raises(Interrupted),
        vllm_server.started({}, context_in(tmp_path, lambda: (program.folder / "worker").exists())),
    ):
        pass
    assert program.is_gone()


def test_a_server_that_dies_in_training_is_the_stages_failure(program: Program, tmp_path: Path) -> None:
    def train() -> None:
        with vllm_server.started({}, context_in(tmp_path)):
            os.kill(program.told["pid"], signal.SIGKILL)
            while is_running(program.told["pid"]):
                time.sleep(0.01)
            raise ConnectionError("what TRL's client says")

    with pytest.raises(StageFailed, match=r"its vLLM server ended \(-9\)"):
        train()
    assert program.is_gone()
    with pytest.raises(ZeroDivisionError), vllm_server.started({}, context_in(tmp_path)):
        _ = 1 / 0  # the stage's own, and the server was there
    assert program.is_gone()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_it_ends_with_a_run_that_is_killed(program: Program, tmp_path: Path) -> None:
    code = (
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"sys.executable = {str(program.folder / 'python')!r}\n"
        "from pathlib import Path\nfrom posttrain_plugins.trainers import vllm_server\n"
        "from test_vllm_server import context_in\n"
        f"with vllm_server.started({{}}, context_in(Path({str(tmp_path)!r}))):\n"
        "    print('stands', flush=True)\n    input()\n"
    )
    with subprocess.Popen([PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "stands\n"
        run.kill()
    assert program.is_gone()


# --- in a recipe -----------------------------------------------------------------------------------------------------

RECIPE = """
    name: served
    model: {model_name_or_path: {base}}
    adapters: {small: {use: lora, r: 2}}
    datasets: {problems: {path: {data}, limit: 8}}
    rewards: {right: exact_answer}
    stages:
      rl:
        use: {kind}
        model: base
        dataset: problems
        rewards: [right]
        adapter: small
        vllm_server: {options}
        args: {max_steps: 1, per_device_train_batch_size: 4, num_generations: 2, max_completion_length: 4, {args}}
"""
SERVER = "use_vllm: true, vllm_mode: server"


@pytest.mark.parametrize(
    ("options", "args", "said"),
    [
        ("{}", "beta: 0.0", "vllm_server starts a server, which args do not use"),
        ("{}", "use_vllm: true", "vllm_server starts a server, which args do not use"),
        ("{}", f"{SERVER}, vllm_server_base_url: 'http://x:1'", "args name one that is there already"),
        ("{port: 9}", SERVER, "vllm_server cannot be given 'port': it is set here"),
        ("{max_logprobs: 9}", SERVER, "vllm_server cannot be given 'max_logprobs'"),
        ("{max_model_length: 9}", SERVER, "has no option 'max_model_length'"),
        ("{start_timeout_s: 0}", SERVER, "start_timeout_s is 0, expected seconds"),
    ],
)
@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_what_validate_tells(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, kind: str, options: str, args: str, said: str
) -> None:
    values = {"base": tiny_model, "data": tiny_data / "problems.jsonl", "kind": kind, "options": options, "args": args}
    with pytest.raises(RecipeErrors, match=said):
        pp.validate(write_recipe(RECIPE, **values))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "rloo", "ppo"])
def test_a_stage_trains_beside_its_server(
    write_recipe: Callable[..., Path],
    tiny_model: Path,
    tiny_data: Path,
    tmp_path: Path,
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """TRL's client is a stand-in: the weights go by NCCL. It finds the server, and the server is gone afterwards."""
    import importlib
    import urllib.request

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    module = importlib.import_module(f"trl.trainer.{'rloo' if kind == 'rloo' else 'grpo'}_trainer")
    seen: list[int] = []

    class Engine(module.VLLMGeneration):  # type: ignore[misc, name-defined]
        def __init__(self, model: Any, accelerator: Any, **options: Any) -> None:
            self.model, self.accelerator, self.mode = model, accelerator, options["mode"]
            with urllib.request.urlopen(f"{options['server_base_url']}/health", timeout=5) as answer:
                seen.append(answer.status)
            self.temperature = 1.0
            info = {"model_config": {"logprobs_mode": "processed_logprobs"}}
            self.vllm_client = SimpleNamespace(get_server_info=lambda: info)

        def sync_weights(self) -> None:
            pass

        def generate(self, prompts: list[Any], num_generations: int = 1, **options: Any) -> tuple[Any, Any, Any, Any]:
            ids = [tokenizer()("1234"[: 1 + i % 4])["input_ids"] for i in range(len(prompts))]
            return prompts, ids, [[[-1.0]] * len(row) for row in ids], None

    monkeypatch.setattr(module, "VLLMGeneration", Engine)
    values = {"base": tiny_model, "data": tiny_data / "problems.jsonl", "kind": kind, "options": "{}", "args": SERVER}
    run = pp.run(write_recipe(RECIPE, **values), runs_dir=tmp_path / "runs")
    assert seen == [200]
    assert run["rl"].metrics["steps"] == 1.0
    assert program.told["argv"][1] == str(tiny_model)
    assert program.is_gone()
    assert (run["rl"].folder / "vllm_server.log").is_file()
