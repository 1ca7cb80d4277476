"""Run a Python program in a sandbox, and find out which kind of sandbox works on this machine.

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
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any, Literal, TypeAlias

from posttrain_plugins.errors import InputError
from posttrain_plugins.sandbox import jail

__all__ = ["ProgramResult", "Sandbox", "SandboxLimits", "run", "working_sandbox"]

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
class SandboxLimits:
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
        """Return the limits by the names of the module `resource`."""
        return {
            "RLIMIT_CPU": ceil(1.5 * self.time_s) + 1,
            "RLIMIT_AS": self.memory_mib << 20,
            "RLIMIT_FSIZE": self.disk_mib << 20,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_NOFILE": 128,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended.

    Args:
        code: its exit code, 128 and more for a signal; None where its time was over.
        stdout: what it wrote, cut at 4 MiB.
        stderr: the same.
    """

    code: int | None
    stdout: str
    stderr: str


def run(program: str, stdin: str = "", limits: SandboxLimits | None = None, sandbox: Sandbox = "auto") -> ProgramResult:
    """Run a Python program to its end, or to that of its time; what it started ends with it.

    Args:
        program: its source.
        stdin: what it reads.
        limits: what it may use.
        sandbox: which kind; `auto` takes the first that works here.

    Raises:
        InputError: no sandbox works here.
    """
    kind = working_sandbox() if sandbox == "auto" else sandbox
    limits = limits or SandboxLimits()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="posttrain-sandbox-")))
        folder.chmod(0o755)  # the program runs as another user
        (folder / "root").mkdir()
        command, options = _command(program, limits, kind, folder)
        # Files, not pipes: a program that fills a pipe and is not read stands still until its time is over.
        names = ("stdin", "stdout", "stderr")
        files = {name: stack.enter_context((folder / name).open("w+b")) for name in names}
        files["stdin"].write(stdin.encode("utf-8", "surrogatepass"))
        files["stdin"].seek(0)
        options |= {**files, "start_new_session": True, "env": ENVIRONMENT}
        code = _wait(subprocess.Popen(command, **options), limits.time_s)
        texts = []
        for name in names[1:]:
            files[name].seek(0)
            texts.append(files[name].read(MAX_OUTPUT_BYTES).decode("utf-8", "replace"))
    return ProgramResult(code, *texts)


@cache
def working_sandbox() -> Sandbox:
    """Return the first kind of sandbox that works here, found by running a harmless program in it.

    Raises:
        InputError: none does.
    """
    problems = []
    for kind in KINDS:
        try:
            problem = _probe(kind)
        except OSError as error:
            problem = str(error)
        if not problem:
            return kind
        problems.append(f"{kind}: {problem}")
    raise InputError(
        f"no sandbox works here: {'; '.join(problems)}",
        hint="install bubblewrap, allow user namespaces, or run untrusted code as yourself with sandbox: none",
    )


def _probe(kind: Sandbox) -> str:
    """Return what is wrong with this kind; nothing where a program runs in it, and sees no file of ours."""
    with tempfile.NamedTemporaryFile() as outside:
        # That it starts is not enough: a jail that could not hide the disk or drop root would start as well.
        program = f"import os\nprint(os.path.exists({outside.name!r}), os.getuid() == 0, 6 * 7)"
        ran = run(program, sandbox=kind)
    return "" if ran.stdout == "False False 42\n" else (ran.stderr.strip() or ran.stdout.strip() or f"exit {ran.code}")


def _command(program: str, limits: SandboxLimits, kind: Sandbox, folder: Path) -> tuple[list[str], dict[str, Any]]:
    main = folder / "main.py"
    main.write_text(program, encoding="utf-8", errors="surrogatepass")
    readable = _readable()
    config: dict[str, Any] = {
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
    if kind != "bubblewrap":
        return [sys.executable, "-I", "-S", jail.__file__, str(folder / "config.json")], {"cwd": folder}
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise OSError("bwrap is not installed")
    inner = {name: _free(name, readable) for name in ("jail.py", "config.json")}
    shown = {path: path for path in readable}
    shown |= {jail.__file__: inner["jail.py"], str(folder / "config.json"): inner["config.json"]}
    shown[str(main)] = config["main"]
    command = [bubblewrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--size", str(limits.disk_mib << 20), "--tmpfs", "/tmp"]  # first: it hides what was below it
    command += [word for source, target in shown.items() for word in ("--ro-bind", source, target)]
    command += [word for path in jail.DEVICES for word in ("--dev-bind", path, path)]
    command += ["--remount-ro", "/", "--chdir", "/tmp"]
    command += ["--", sys.executable, "-I", "-S", inner["jail.py"], inner["config.json"]]
    # The kernel does not count root's processes, so root would have no limit on them.
    is_root = os.geteuid() == 0
    return command, {"user": NOBODY, "group": NOBODY, "extra_groups": []} if is_root else {}


@cache
def _readable() -> list[str]:
    """Return the interpreter, its libraries and the packages beside it; none is a folder that the sandbox fills."""
    executable = Path(sys.executable).resolve()
    paths = [*SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, str(executable.parent)]
    paths += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sys.executable, str(executable)]
    paths += [os.path.join(path, part) for path in paths if path in SHARED for part in PARTS]  # noqa: PTH118
    own = {path for path in paths if path not in SHARED}
    found = sorted(path for path in own if os.path.exists(path))  # noqa: PTH110 (false where it may not look)
    return [path for path in found if not any(path.startswith(f"{other}/") for other in found)]


def _free(name: str, readable: list[str]) -> str:
    """Return a path in the sandbox's root that neither is the interpreter's nor leads to it."""
    while any(path == f"/{name}" or path.startswith(f"/{name}/") for path in readable):
        name = f"_{name}"
    return f"/{name}"


def _wait(process: subprocess.Popen[bytes], time_s: float) -> int | None:
    """Return the exit code, or None where its time was over. Either way nothing that it started is left.

    Where this process is killed meanwhile, the jail dies with it (of kind `none` the program itself, not what that
    started); the folder of its files, a few KiB, stays.
    """
    try:
        code = process.wait(timeout=time_s)
    except subprocess.TimeoutExpired:
        code = None
        process.terminate()  # not killed at once: a jail that is asked takes its namespace with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=END_S)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return code if code is None or code >= 0 else 128 - code
