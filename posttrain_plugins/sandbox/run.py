"""Runs a Python program in a sandbox, and finds out which kind of sandbox works on this machine.

| kind         | is                                                                                                |
|--------------|---------------------------------------------------------------------------------------------------|
| `namespaces` | Linux namespaces, entered by a process of ours (`jail.py`); as root, or where users may have them |
| `bubblewrap` | the program `bwrap`, which some distributions allow what they forbid others                       |
| `none`       | limits on memory, time and files alone: the program can do what you can do                        |

What a program may use is limited for each of its processes, but for the disk and the number of processes, which are
limits for all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain_plugins.errors import InputError
from posttrain_plugins.sandbox import jail

__all__ = ["Limits", "Ran", "Sandbox", "run", "working"]

Sandbox: TypeAlias = Literal["auto", "namespaces", "bubblewrap", "none"]
KINDS: tuple[Sandbox, ...] = ("namespaces", "bubblewrap")
END_S = 5.0
MAX_OUTPUT_BYTES = 4 << 20
SYSTEM = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/alternatives")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
SHARED = ("/", "/tmp", "/dev")  # where the sandbox has something of its own: of these, never the whole folder
PARTS = ("bin", "lib", "lib64", "pyvenv.cfg")  # of an interpreter that was installed into one of them
NOBODY = 65534


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Args:
        time_s: seconds on the wall; half of it more, and one second, is the limit of CPU time.
        memory_mib: address space of each process.
        disk_mib: all files together, in a folder of the program's own that is in memory, and gone afterwards.
        processes: at once, threads among them.
    """

    time_s: float = 6.0
    memory_mib: int = 1024
    disk_mib: int = 64
    processes: int = 32

    def rlimits(self) -> dict[str, int]:
        """By the names of the module `resource`."""
        return {
            "RLIMIT_CPU": ceil(1.5 * self.time_s) + 1,
            "RLIMIT_AS": self.memory_mib << 20,
            "RLIMIT_FSIZE": self.disk_mib << 20,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": 128,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Args:
        code: its exit code, 128 and more for a signal; None where its time was over.
        stdout: what it wrote, cut at 4 MiB.
        stderr: the same.
    """

    code: int | None
    stdout: str
    stderr: str


def run(program: str, stdin: str = "", limits: Limits | None = None, sandbox: Sandbox = "auto") -> Ran:
    """Runs a Python program to its end, or to that of its time; what it started ends with it.

    Args:
        program: its source.
        stdin: what it reads.
        limits: what it may use.
        sandbox: which kind; `auto` takes the first that works here.

    Raises:
        InputError: no sandbox works here.
    """
    kind = working() if sandbox == "auto" else sandbox
    return _run(program, stdin, limits or Limits(), kind)


@cache
def working() -> Sandbox:
    """The first kind of sandbox that works here: a harmless program was run in it.

    Raises:
        InputError: none does.
    """
    told = []
    for kind in KINDS:
        try:
            problem = _probe(kind)
        except OSError as error:
            problem = str(error)
        if not problem:
            return kind
        told.append(f"{kind}: {problem}")
    raise InputError(
        f"no sandbox works here: {'; '.join(told)}",
        hint="install bubblewrap, allow user namespaces, or run untrusted code as yourself with sandbox: none",
    )


def _probe(kind: Sandbox) -> str:
    """What is wrong with this kind; nothing where a program runs in it and does not see what it must not see."""
    with tempfile.NamedTemporaryFile() as outside:
        program = f"import os\nprint(os.path.exists({outside.name!r}), os.getuid() == 0, 6 * 7)"
        ran = _run(program, "", Limits(), kind)
    return "" if ran.stdout == "False False 42\n" else (ran.stderr.strip() or ran.stdout.strip() or f"exit {ran.code}")


def _run(program: str, stdin: str, limits: Limits, kind: Sandbox) -> Ran:
    with _folder() as folder:
        command, options = _command(program, limits, kind, folder)
        files = {name: (folder / name).open("w+b") for name in ("stdin", "stdout", "stderr")}
        try:
            files["stdin"].write(stdin.encode("utf-8", "surrogatepass"))
            files["stdin"].seek(0)
            options |= {**files, "start_new_session": True, "env": ENVIRONMENT}
            process: subprocess.Popen[bytes] = subprocess.Popen(command, **options)
            code = _wait(process, limits)
            texts = [_read(files[name]) for name in ("stdout", "stderr")]
        finally:
            for file in files.values():
                file.close()
    return Ran(code, *texts)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder that another user can look into, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="posttrain-sandbox-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "root").mkdir()
        yield folder


def _command(program: str, limits: Limits, kind: Sandbox, folder: Path) -> tuple[list[str], dict[str, Any]]:
    main = folder / "main.py"
    main.write_text(program, encoding="utf-8", errors="surrogatepass")
    readable = _readable()
    config = {
        "kind": kind,
        "parent": None if kind == "bubblewrap" else os.getpid(),  # bwrap stands between, and dies with us
        "root": str(folder / "root"),
        "program": program,
        "main": str(main) if kind == "none" else _free("main.py", readable),
        "python": sys.executable,
        "readable": readable,
        "disk_bytes": limits.disk_mib << 20,
        "limits": {k: v for k, v in limits.rlimits().items() if (kind, k) != ("none", "RLIMIT_NPROC")},  # all yours
        "environment": {**ENVIRONMENT, "HOME": str(folder)} if kind == "none" else ENVIRONMENT,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if kind == "bubblewrap":
        return _bubblewrap(config, limits, folder)
    return [sys.executable, "-I", "-S", jail.__file__, str(folder / "config.json")], {"cwd": folder}


def _bubblewrap(config: dict[str, Any], limits: Limits, folder: Path) -> tuple[list[str], dict[str, Any]]:
    found = shutil.which("bwrap")
    if found is None:
        raise OSError("bwrap is not installed")
    seen = {path: path for path in config["readable"]}
    seen |= {
        jail.__file__: (inner := _free("jail.py", config["readable"])),
        str(folder / "config.json"): (inner_config := _free("config.json", config["readable"])),
        str(folder / "main.py"): config["main"],
    }
    command = [found, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--size", str(limits.disk_mib << 20), "--tmpfs", "/tmp"]  # first: it hides what was below it
    command += [word for source, target in seen.items() for word in ("--ro-bind", source, target)]
    command += [word for path in jail.DEVICES for word in ("--dev-bind", path, path)]
    command += ["--remount-ro", "/", "--chdir", "/tmp"]
    command += ["--", sys.executable, "-I", "-S", inner, inner_config]
    is_root = os.geteuid() == 0  # whose processes are not counted
    return command, {"user": NOBODY, "group": NOBODY, "extra_groups": []} if is_root else {}


@cache
def _readable() -> list[str]:
    """The interpreter, its libraries, and the packages beside it; none of them is a folder that the sandbox fills."""
    executable = Path(sys.executable).resolve()
    paths = [*SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, str(executable.parent)]
    paths += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sys.executable, str(executable)]
    paths += [os.path.join(path, part) for path in paths if path in SHARED for part in PARTS]  # noqa: PTH118
    own = {path for path in paths if path not in SHARED}
    found = sorted(path for path in own if os.path.exists(path))  # noqa: PTH110 (false where it may not look)
    return [path for path in found if not any(path.startswith(f"{other}/") for other in found)]


def _free(name: str, readable: list[str]) -> str:
    """A path in the sandbox's root that neither is the interpreter's nor leads to it."""
    while any(path == f"/{name}" or path.startswith(f"/{name}/") for path in readable):
        name = f"_{name}"
    return f"/{name}"


def _wait(process: subprocess.Popen[bytes], limits: Limits) -> int | None:
    """The exit code; None where its time was over. Either way nothing that it started is left.

    A jail that is asked to end takes its namespace with it first, and is killed where it does not. Where this process
    is killed meanwhile, the jail dies with it (of kind `none` the program itself, not what that started); the folder
    of its files, a few KiB, stays.
    """
    try:
        code = process.wait(timeout=limits.time_s)
    except subprocess.TimeoutExpired:
        code = None
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=END_S)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return code if code is None or code >= 0 else 128 - code


def _read(file: Any) -> str:
    file.seek(0)
    return file.read(MAX_OUTPUT_BYTES).decode("utf-8", "replace")  # type: ignore[no-any-return]
