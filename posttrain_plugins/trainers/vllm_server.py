"""A vLLM server for one stage's rollouts: started before the trainer, waited for, and stopped when the stage ends.

TRL's server mode (`args: {use_vllm: true, vllm_mode: server}`) generates on GPUs of its own and is sent the policy's
weights by NCCL after each step. The server has to be there before the trainer is built, with options that TRL needs
(`trl/generation/vllm_client.py`): its development routes, a weight transfer, log-probabilities as they were sampled.

1. It is started with the base of the policy: before the first rollout TRL sends every weight, adapters merged.
2. Of several processes the first has the server; the others talk to the first.
3. It ends with this process, whatever ends it. What it wrote stands in `vllm_server.log` beside the stage's results.

No paper.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from posttrain_plugins.errors import InputError, Interrupted, StageFailed
from posttrain_plugins.launch.rank import is_first
from posttrain_plugins.models.folder import base_of
from posttrain_plugins.trainers.vllm_rules import FOR_TRL, OURS, START_TIMEOUT_S
from posttrain_plugins.types import ModelArtifact, StageContext

__all__ = ["started"]

HOST = "127.0.0.1"
STOP_TIMEOUT_S = 30.0
POLL_S = 0.5
TAIL_LINES = 15
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextmanager
def started(options: Mapping[str, Any] | None, context: StageContext) -> Iterator[dict[str, Any]]:
    """Give TRL's arguments for the server, which stands within; none where there are no options.

    Args:
        options: `devices`, `start_timeout_s`, and options of `vllm serve` by their names in Python.
        context: of the stage.

    Raises:
        InputError: there is no command `vllm`.
        StageFailed: the server ended, or did not answer in time.
        Interrupted: the user asked to stop while it started.
    """
    if options is None or context.preview or not is_first():
        yield {}
        return
    url = f"http://{HOST}:{_free_port()}"
    artifact: ModelArtifact = context.inputs["model"]
    log = context.folder / "vllm_server.log"
    with log.open("wb") as output, _running(_command(artifact, url, options), options, output) as process:
        context.reporter.note(f"starts a vLLM server at {url}; it writes {log.name}")
        _wait(process, url, float(options.get("start_timeout_s", START_TIMEOUT_S)), context, log)
        try:
            yield {"vllm_server_base_url": url, "vllm_group_port": _free_port()}
        except Exception as error:
            if process.poll() is None:
                raise
            raise StageFailed(
                f"stage '{context.stage}': its vLLM server ended ({process.returncode}): {_tail(log)}"
            ) from error


def _command(artifact: ModelArtifact, url: str, options: Mapping[str, Any]) -> list[str]:
    beside = Path(sys.executable).with_name("vllm")
    program = str(beside) if beside.is_file() else shutil.which("vllm")
    if program is None:
        raise InputError("there is no command `vllm` to start a server with", hint="pip install vllm")
    model, revision = base_of(artifact.path, artifact.loading.get("model_revision"))
    given: dict[str, Any] = {"revision": revision} if revision else {}
    given |= {"trust_remote_code": True} if artifact.loading.get("trust_remote_code") else {}
    given |= {name: value for name, value in options.items() if name not in OURS}
    host, _, port = url.removeprefix("http://").partition(":")
    flags = _flags({"host": host, "port": int(port), **FOR_TRL, **given})
    return [program, "serve", model, *flags]


def _flags(options: Mapping[str, Any]) -> list[str]:
    """Return options as `vllm serve` takes them: `--max-model-len 4096 --no-enable-prefix-caching`."""
    flags: list[str] = []
    for name, value in options.items():
        word = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{word}" if value else f"--no-{word}")
        else:
            flags += [f"--{word}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return flags


@contextmanager
def _running(
    command: Sequence[str], options: Mapping[str, Any], output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own; at the end it and its children are asked to end, then made to."""
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):  # the training's, which vLLM reads
        environment.pop(name, None)
    if options.get("devices") is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(options["devices"])
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # before the fork; there is none on macOS
    # SIGTERM, not SIGKILL: the server then ends its workers, which hold the GPUs' memory
    dies_with_us = (lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)) if prctl else None
    process = subprocess.Popen(
        command, env=environment, stdout=output, stderr=output, start_new_session=True, preexec_fn=dies_with_us
    )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)  # its workers too, which outlive a server that was killed
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)


def _wait(process: subprocess.Popen[bytes], url: str, timeout_s: float, context: StageContext, log: Path) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            message = f"stage '{context.stage}': its vLLM server did not start ({process.returncode}): {_tail(log)}"
            raise StageFailed(message, hint=f"{log.name} has all that it wrote")
        if context.should_stop():
            raise Interrupted(f"stage '{context.stage}' was stopped while its vLLM server started")
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(POLL_S)
    message = f"stage '{context.stage}': its vLLM server did not answer within {timeout_s:g} s: {_tail(log)}"
    raise StageFailed(message, hint="vllm_server: {start_timeout_s: 1800}")


def _tail(log: Path) -> str:
    with suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return "\n".join(lines[-TAIL_LINES:]) or "it wrote nothing"
    return "it wrote nothing"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])
