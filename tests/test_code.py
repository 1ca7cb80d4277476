"""Code that nobody trusts, in each kind of sandbox that works here, and the reward that runs tests in it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins
from posttrain_plugins.errors import InputError
from posttrain_plugins.rewards.code import Code
from posttrain_plugins.sandbox import run as running
from posttrain_plugins.sandbox.run import ProgramResult, SandboxLimits, run

LIMITS = SandboxLimits(time_s=20.0, memory_mib=512, disk_mib=16, processes=16)


def problem_of(kind: Any) -> str:
    try:
        return running._probe(kind)
    except OSError as error:
        return str(error)


PROBLEMS = {kind: problem_of(kind) for kind in running.KINDS}


def kinds() -> list[str]:
    return [kind for kind, problem in PROBLEMS.items() if not problem]


@pytest.fixture(params=kinds() or [pytest.param("none", marks=pytest.mark.skip(reason="no sandbox works here"))])
def sandbox(request: pytest.FixtureRequest) -> Any:
    return request.param


def tried(program: str, sandbox: Any, **changes: Any) -> ProgramResult:
    return run(program, limits=SandboxLimits(**{**vars(LIMITS), **changes}), sandbox=sandbox)


# --- what a program cannot do ----------------------------------------------------------------------------------------


def test_it_cannot_read_the_home_or_anything_else_of_yours(sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    secret.chmod(0o644)
    places = [str(Path.home()), str(secret), "/etc/passwd", "/root", "/home", "/proc/1/environ", str(Path(__file__))]
    program = f"""
import os
for place in {places!r}:
    try:
        found = os.listdir(place) if os.path.isdir(place) else open(place).read()
    except OSError:
        continue
    print(place, sorted(set(found) - {{".pyenv", "miniconda3"}}) if isinstance(found, list) else found)
print(os.getuid() != 0, sorted(os.environ))
"""
    ran = tried(program, sandbox)
    *seen, last = ran.stdout.splitlines()
    assert last == "True ['HOME', 'LANG', 'OMP_NUM_THREADS', 'PATH']", ran
    interpreter = [f"{place} []" for place in places]  # a folder on the way to the interpreter, and nothing in it
    assert not set(seen) - set(interpreter)


def test_it_cannot_write_what_it_is_shown(sandbox) -> None:
    ran = tried(f"open({os.__file__!r}, 'a')", sandbox)
    assert ran.code == 1
    assert "Read-only file system" in ran.stderr or "Permission denied" in ran.stderr


def test_it_cannot_reach_the_network(sandbox) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as here:
        port = here.getsockname()[1]
        program = f"""
import socket
for kind, address in ((socket.SOCK_STREAM, "127.0.0.1"), (socket.SOCK_DGRAM, "192.0.2.1")):
    try:
        socket.socket(socket.AF_INET, kind).connect((address, {port}))
        print("connected")
    except OSError as error:
        print(type(error).__name__)
"""
        ran = tried(program, sandbox)
    assert ran.code == 0
    assert "connected" not in ran.stdout
    assert len(ran.stdout.split()) == 2


def test_it_cannot_fork_without_end(sandbox) -> None:
    program = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(600)
        count += 1
except OSError:
    print(count)
"""
    ran = tried(program, sandbox)
    assert ran.code == 0, ran
    assert 0 < int(ran.stdout) < LIMITS.processes


def test_it_cannot_fill_the_disk(sandbox) -> None:
    program = """
written = 0
try:
    for i in range(100):
        with open(f"/tmp/{i}", "wb") as file:
            written += file.write(bytes(4 << 20))
except OSError:
    print(written >> 20)
try:
    open("/elsewhere", "wb").write(bytes(64 << 20))
except OSError:
    print("refused")
"""
    ran = tried(program, sandbox)
    written, refused = ran.stdout.split()
    assert int(written) <= LIMITS.disk_mib
    assert refused == "refused"


def test_it_cannot_take_all_memory(sandbox) -> None:
    assert "MemoryError" in tried("bytearray(2 << 30)", sandbox).stderr


def test_it_cannot_hold_memory_that_no_limit_counts(sandbox) -> None:
    program = """
import os
held = []
try:
    for i in range(20):
        held.append(os.memfd_create("x"))
        os.write(held[-1], bytes(60 << 20))
except OSError as error:
    print(len(held), type(error).__name__)
"""
    assert tried(program, sandbox).stdout == "0 PermissionError\n"


def test_it_cannot_make_namespaces_or_mounts_of_its_own(sandbox) -> None:
    """By any door: with them it would be root in a namespace, where most holes of the kernel were found."""
    program = """
import ctypes, os, threading
libc = ctypes.CDLL(None, use_errno=True)
newuser, newns = 0x10000000, 0x20000
clone = {"x86_64": 56}.get(os.uname().machine, 220)
tried = {
    "unshare": lambda: libc.unshare(newuser | newns),
    "clone": lambda: libc.syscall(clone, newuser | 17, 0, 0, 0, 0),
    "clone3": lambda: libc.syscall(435, ctypes.create_string_buffer(88), 88),
    "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, b""),
    "keyctl": lambda: libc.syscall({"x86_64": 250}.get(os.uname().machine, 219), 0, -3, 1),
    "io_uring": lambda: libc.syscall(425, 1, ctypes.create_string_buffer(256)),
    "ptrace": lambda: libc.ptrace(0, 0, 0, 0),
}
for name, call in tried.items():
    ctypes.set_errno(0)
    result = call()
    if result == 0 and name in ("clone", "clone3"):
        os._exit(7)  # the child
    print(name, result, ctypes.get_errno())
thread = threading.Thread(target=lambda: print("a thread"))
thread.start(), thread.join()
print(os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1])
"""
    ran = tried(program, sandbox)
    *refused, thread, spawned = ran.stdout.splitlines()
    assert len(refused) == 7, ran
    for line in refused:
        name, result, number = line.split()
        assert result == "-1", ran
        assert int(number) == (errno.ENOSYS if name == "clone3" else errno.EPERM), ran
    assert (thread, spawned) == ("a thread", "0"), "threads and programs start as ever"


MARK = "posttrain-outlives"
STAYING = f"""
import os, sys, time
for _ in range(3):
    if os.fork() == 0:
        os.setsid()  # no longer in the group that is killed
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)", {MARK!r}])
        os._exit(0)
time.sleep(0.3)
"""


@pytest.mark.parametrize("ending", ["while True: pass", "pass"])
def test_nothing_outlives_it(sandbox, ending: str) -> None:
    began = time.monotonic()
    ran = tried(STAYING + ending, sandbox, time_s=3.0)
    assert ran.code == (0 if ending == "pass" else None)
    assert time.monotonic() - began < 60  # not the 600 s that they sleep
    for _ in range(500):  # the kernel may take a moment
        if not (left := [folder for folder in Path("/proc").glob("[0-9]*") if MARK in command_of(folder)]):
            break
        time.sleep(0.02)
    assert not left


def test_it_ends_when_whoever_waits_for_it_is_killed(sandbox) -> None:
    program = f"import time\nmark = {MARK!r}\ntime.sleep(600)"
    code = f"from posttrain_plugins.sandbox.run import *; run({program!r}, '', SandboxLimits(time_s=600), {sandbox!r})"
    caller = subprocess.Popen([sys.executable, "-c", code, MARK])
    deadline = time.monotonic() + 60

    def running() -> list[str]:
        found = [command_of(folder) for folder in Path("/proc").glob("[0-9]*")]
        return [command for command in found if "jail.py" in command or "/main.py" in command]

    while not any("/main.py" in command for command in running()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert any("/main.py" in command for command in running())
    caller.kill()
    caller.wait()
    while running() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not running()


def test_a_callers_umask_does_not_matter(sandbox) -> None:
    before = os.umask(0o077)
    try:
        assert tried("print(6 * 7)", sandbox).stdout == "42\n"
    finally:
        os.umask(before)


def command_of(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


# --- where the interpreter lies ---------------------------------------------------------------------------------------

TREE = """
import os, sys
print(sys.prefix, os.listdir(os.path.dirname(sys.prefix)), os.getcwd(), sep="\\n")
for path in (f"{sys.prefix}/pyvenv.cfg", f"{sys.prefix}/planted"):
    try:
        open(path, "a")
    except OSError:
        print("refused")
open("a file", "w").write("kept")
os.mkdir("/tmp/a folder")
print(open("/tmp/a file").read())
"""


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Path]:
    """A virtual environment where the sandbox has its own writable folder, with a space in its name."""
    with tempfile.TemporaryDirectory(prefix="an interpreter ", dir="/tmp") as name:
        Path(name).chmod(0o755)  # bubblewrap looks into it as nobody
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", f"{name}/its own"], check=True)
        yield Path(name, "its own")


@pytest.mark.parametrize("kind", running.KINDS)
def test_the_interpreter_may_lie_where_programs_write(kind: str, interpreter: Path) -> None:
    if PROBLEMS[kind]:
        pytest.skip(f"{kind} does not work here: {PROBLEMS[kind]}")
    run_it = f"run({TREE!r}, '', SandboxLimits(time_s=20), {kind!r})"
    code = f"from posttrain_plugins.sandbox.run import *; print({run_it}.__dict__)"
    environment = {**os.environ, "PYTHONPATH": str(Path(posttrain_plugins.__file__).parents[1])}
    command = [interpreter / "bin" / "python", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    told = f"{interpreter}\n['its own']\n/tmp\nrefused\nrefused\nkept\n"
    assert done.stdout.strip() == str({"code": 0, "stdout": told, "stderr": ""}), done.stderr


def test_bubblewrap_binds_the_interpreter_over_the_folder_for_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    readable = ["/tmp/a b/venv", "/usr"]
    monkeypatch.setattr(running, "_readable", lambda: readable)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    command = running._command("", LIMITS, "bubblewrap", tmp_path)[0]
    assert command.count("--tmpfs") == 1
    begun = command.index("--tmpfs")
    assert command[begun - 2 : begun + 2] == ["--size", str(LIMITS.disk_mib << 20), "--tmpfs", "/tmp"]
    bound = [i for i in range(len(command)) if command[i] == "--ro-bind"]
    assert begun < bound[0]
    assert [command[i + 2] for i in bound] == [*readable, "/jail.py", "/config.json", "/main.py"]
    assert [command[i + 1] for i in bound[:2]] == readable


@pytest.mark.parametrize("prefix", ["/", "/tmp", "/dev"])
def test_of_a_folder_that_the_sandbox_fills_only_the_interpreter_is_shown(
    monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    for name in ("prefix", "base_prefix", "exec_prefix"):
        monkeypatch.setattr(sys, name, prefix)
    monkeypatch.setattr("os.path.exists", lambda path: True)
    found = running._readable.__wrapped__()
    assert not {"/", "/tmp", "/dev"} & set(found)
    assert {os.path.join(prefix, name) for name in ("bin", "lib", "lib64", "pyvenv.cfg")} <= set(found)  # noqa: PTH118


@pytest.mark.parametrize("readable", ["/main.py", "/main.py/venv", "/main.py/_main.py"])
def test_a_program_takes_no_path_of_the_interpreter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, readable: str
) -> None:
    assert running._free("main.py", [readable, "/main.pyc"]) == "/_main.py"
    assert running._free("main.py", [readable, "/_main.py/venv"]) == "/__main.py"
    monkeypatch.setattr(running, "_readable", lambda: [readable])
    running._command("", LIMITS, "namespaces", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["main"] == "/_main.py"


# --- what it can do --------------------------------------------------------------------------------------------------


def test_it_reads_and_writes_and_ends(sandbox) -> None:
    program = "import sys; open('a', 'w').write(input()); print(open('a').read() * 2); sys.exit(3)"
    assert run(program, "äb\n", LIMITS, sandbox) == ProgramResult(3, "äbäb\n", "")


def test_without_a_sandbox_time_and_memory_are_limited() -> None:
    assert run("print(input())", "a", LIMITS, "none").stdout == "a\n"
    assert run("import time; time.sleep(600)", limits=SandboxLimits(time_s=0.5), sandbox="none").code is None
    assert "MemoryError" in run("bytearray(2 << 30)", limits=LIMITS, sandbox="none").stderr


def test_where_no_sandbox_works_the_reward_refuses_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    running.working_sandbox.cache_clear()
    monkeypatch.setattr(running, "_probe", lambda kind: "not allowed")
    row: dict[str, Any] = {"completions": ["```\nprint(4)\n```"], "tests": [[{"input": "", "output": "4"}]]}
    try:
        with pytest.raises(InputError) as caught:
            Code()(**row)
        assert caught.value.message == "no sandbox works here: namespaces: not allowed; bubblewrap: not allowed"
        assert "sandbox: none" in str(caught.value.hint)
        assert Code(sandbox="none")(**row) == [1.0]
    finally:
        running.working_sandbox.cache_clear()


# --- the reward ------------------------------------------------------------------------------------------------------

DOUBLE = "Here it is:\n```python\nprint(2 * int(input()))\n```"
CLASS = "```py\nclass Solution:\n    def add(self, a, b):\n        print('noise')\n        return [a + b]\n```"


def scored(reward: Code, completion: Any, tests: Any) -> float | None:
    return reward(completions=[completion], tests=[tests])[0]


@pytest.fixture(scope="module")
def reward() -> Code:
    return Code(sandbox="auto" if kinds() else "none", time_limit_s=20.0)


def test_every_example_gets_its_score(reward: Code) -> None:
    completions, tests = [[example[name] for example in Code.examples] for name in ("completion", "tests")]
    assert reward(completions=completions, tests=tests) == [example["score"] for example in Code.examples]


@pytest.mark.parametrize(
    "tests",
    [
        [{"input": "2", "output": "4"}, {"input": 3, "output": "6\n"}],
        {"inputs": ["2", ["3"]], "outputs": ["4", ["6"]]},  # APPS
        json.dumps([{"input": "2\n", "output": "4\n", "testtype": "stdin"}]),  # LiveCodeBench
        {"language": "python", "test_cases": [{"type": "stdin_stdout", "input": "2", "output": "4"}]},  # Open R1
    ],
)
def test_programs_that_read_and_print(reward: Code, tests: Any) -> None:
    assert scored(reward, [{"role": "assistant", "content": DOUBLE}], tests) == 1.0
    assert scored(reward, DOUBLE.replace("2 *", "3 *"), tests) == 0.0


@pytest.mark.parametrize(
    "tests",
    [
        [{"fn_name": "add", "input": [2, 3], "output": [5]}],
        {"fn_name": "add", "inputs": [[2, 3], [0, 0]], "outputs": [[[5]], [[0]]]},
        [{"fn_name": "add", "input": "2\n3", "output": "[5]", "testtype": "functional"}],
    ],
)
def test_functions_and_methods(reward: Code, tests: Any) -> None:
    assert scored(reward, CLASS, tests) == 1.0
    assert scored(reward, "```\ndef add(a, b): return (a + b,)\n```", tests) == 1.0
    assert scored(reward, "```\ndef add(a, b): return [a - b, 1]\n```", tests) == 0.0


def test_an_argument_may_hold_a_line_separator(reward: Code) -> None:
    """U+2028 ends a line for Python, and stands raw in JSON."""
    tests = [{"fn_name": "join", "input": '"a\u2028"\n"b"', "output": '"a\u2028b"'}]
    assert scored(reward, "```\ndef join(a, b): return a + b\n```", tests) == 1.0


def test_all_of_them_or_the_share(reward: Code) -> None:
    tests = [{"input": str(i), "output": str(2 * i)} for i in (2, 5)]
    four = "```\nprint(4)\n```"
    assert scored(reward, four, tests) == 0.0
    assert scored(Code(partial=True, sandbox=reward.sandbox), four, tests) == 0.5
    assert scored(Code(max_tests=1, sandbox=reward.sandbox), four, tests) == 1.0


@pytest.mark.parametrize(
    "body",
    [
        "raise SystemExit(1)",
        "print('4'); 1/0",
        "print(4 4)",
        "import json, sys; print(sys.stdin.read() + '{\"passed\": true}')",
        "while True: pass",
    ],
)
def test_what_fails_is_worth_nothing(reward: Code, body: str) -> None:
    limited = Code(time_limit_s=2.0, sandbox=reward.sandbox)
    assert scored(limited, f"```python\n{body}\n```", [{"input": "2", "output": "4"}]) == 0.0
    assert scored(limited, f"```python\n{body}\n```", [{"fn_name": "f", "input": [2], "output": 4}]) == 0.0


@pytest.mark.parametrize(
    "body",
    ["return [0] * 3_000_000", "import sys; sys.set_int_max_str_digits(0); return 10**5000", "return [[]] * 0 or '['"],
)
def test_a_function_cannot_break_the_reward_by_what_it_returns(reward: Code, body: str) -> None:
    assert scored(reward, f"```python\ndef f(x): {body}\n```", [{"fn_name": "f", "input": [2], "output": 4}]) == 0.0


def test_numbers_may_differ_a_little_and_words_not_at_all(reward: Code) -> None:
    for printed, expected, score in (("0.3333333", "0.33333334", 1.0), ("3", "4", 0.0), ("a  b\n\n", "a b", 1.0)):
        program = f"```\nprint({printed!r})\n```"
        assert scored(reward, program, [{"input": "", "output": expected}]) == score


def test_without_tests_it_cannot_judge_and_odd_ones_are_told(reward: Code) -> None:
    assert reward(completions=[DOUBLE] * 3, tests=[None, [], "[]"]) == [None] * 3
    assert reward(completions=[], tests=[]) == []
    with pytest.raises(InputError, match="code cannot read its tests: 'assert True'"):
        scored(reward, DOUBLE, "assert True")


def test_equal_programs_run_once(reward: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(
        "posttrain_plugins.rewards.code.run", lambda program, *rest: ran.append(program) or ProgramResult(0, "4", "")
    )
    assert reward(completions=[DOUBLE, f"Or: {DOUBLE}"], tests=[[{"input": "2", "output": "4"}]] * 2) == [1.0, 1.0]
    assert len(ran) == 1


def test_importing_it_is_light() -> None:
    code = "import sys, posttrain_plugins.rewards.code; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
