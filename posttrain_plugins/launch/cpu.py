"""What DeepSpeed needs on a machine without a GPU: an operator in C++, compiled once before anything is launched.

DeepSpeed compiles it in each process when the first group is made, under a lock file that a killed process leaves
behind and for which every later one waits, for ever and without a word. Here it is compiled by one process under a lock
that the kernel frees, in a folder of our own, in which a lock file that stands is therefore nobody's.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from posttrain_plugins.errors import InputError, StageFailed

__all__ = ["deepspeed_environment"]

BUILD = """
from deepspeed.accelerator import get_accelerator
get_accelerator().create_op_builder("ShareMemCommBuilder").load()
"""
OPERATOR = "deepspeed_shm_comm"
TIMEOUT_S = 1200
INSTALL = (
    "pip install torch setuptools wheel ninja, then pip install --no-build-isolation 'posttrain-plugins[deepspeed]'"
)


def deepspeed_environment(has_accelerator: bool, note: Callable[[str], None]) -> dict[str, str]:
    """Return the variables with which DeepSpeed runs here, after compiling what it lacks.

    Args:
        has_accelerator: is there a GPU or the like?
        note: is told that it compiles.

    Raises:
        InputError: DeepSpeed, a compiler or ninja is missing.
        StageFailed: it does not compile.
    """
    try:
        versions = [importlib.metadata.version(name) for name in ("deepspeed", "torch")]
    except importlib.metadata.PackageNotFoundError as cause:
        raise InputError("ZeRO needs deepspeed, which is not installed", hint=INSTALL) from cause
    if has_accelerator:
        return {}
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    base = Path(os.environ.get("TORCH_EXTENSIONS_DIR", "~/.cache/posttrain-plugins")).expanduser()
    # another environment's DeepSpeed lies elsewhere, for which ninja would compile all of it again, in every process
    folder = str(importlib.metadata.distribution("deepspeed").locate_file(""))
    if " " in folder:  # torch does not quote the folder of its libraries for the linker
        message = (
            f"DeepSpeed compiles an operator on a CPU, which cannot be linked below a folder with a space: {folder}"
        )
        raise InputError(message, hint="make the environment in another folder, or take --launch ddp")
    place = hashlib.sha256(folder.encode()).hexdigest()[:8]
    home = base / "-".join(["posttrain-deepspeed", *versions, python, place])  # of our own, also below the user's
    # the same programs for building and for running: another ninja would compile all of it again, in every process
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # accelerate trains by DDP where it is told of the CPU so; the trainers' `use_cpu` says it to ZeRO
    environment = {
        "ACCELERATE_USE_CPU": "false",
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": str(home),
        "PATH": path,
    }
    _compile_once(home, environment, note)
    return environment


def _compile_once(home: Path, environment: dict[str, str], note: Callable[[str], None]) -> None:
    built = home / OPERATOR / f"{OPERATOR}.so"
    home.mkdir(parents=True, exist_ok=True)
    with (home / ".posttrain.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        # Under our lock nobody else compiles in this folder: this one was left by a process that was killed.
        (home / OPERATOR / "lock").unlink(missing_ok=True)
        if built.is_file():
            return
        for program in ("ninja", "g++"):
            if shutil.which(program, path=environment["PATH"]) is None:
                raise InputError(f"DeepSpeed compiles an operator on a CPU, and {program} is not there", hint=INSTALL)
        note(f"compiles DeepSpeed's operator for CPUs, once, into {home}")
        command = [sys.executable, "-c", BUILD]
        try:
            done = subprocess.run(
                command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired as cause:
            raise StageFailed(f"DeepSpeed's operator was not compiled within {TIMEOUT_S} s") from cause
        if done.returncode != 0 or not built.is_file():
            raise StageFailed(f"DeepSpeed's operator does not compile: {done.stderr[-2000:]}")
