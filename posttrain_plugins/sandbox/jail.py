"""Locks itself into namespaces of its own and runs a program there; started as a script, by path, with a JSON file.

A new root (a small tmpfs with the interpreter bound into it, read-only), no network, processes of its own, which all
end with the first of them, and an unprivileged user: root becomes a user that nobody else is, anybody else keeps to
a user namespace. `namespaces(7)`, `pivot_root(2)`; no paper.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
NOATIME, RELATIME, DETACH = 1024, 1 << 21, 2
SET_PDEATHSIG, SET_NO_NEW_PRIVS = 1, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
FIRST_UID, UIDS = 1_900_000_000, 1_000_000  # far from any account

libc = ctypes.CDLL(None, use_errno=True)


def main(file: str) -> int:
    with open(file, encoding="utf-8") as stream:  # noqa: PTH123 (pathlib doubles the start)
        config = json.load(stream)
    os.umask(0o022)  # not the caller's: a stranger has to enter what is made here
    _die_with_parent(config["parent"])
    if config["kind"] == "namespaces":
        _enter(config)
        child = os.fork()  # the first process of the new namespace
        if child:
            signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, signal.SIGKILL))
            return _code(os.waitpid(child, 0)[1])  # comes back when all of the namespace are gone
        _drop_privileges()
        _call("prctl", SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    _limit(config["limits"])
    if config["kind"] == "none":
        _execute(config)
    child = os.fork()  # not the first: that one would ignore signals
    if not child:
        _execute(config)
    os._exit(_code(os.waitpid(child, 0)[1]))


def _die_with_parent(parent: int | None) -> None:
    """Whoever waits for us keeps the time; where that one is killed, nobody would."""
    _call("prctl", SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if parent is not None and os.getppid() != parent:  # it died before
        os._exit(125)


def _enter(config: dict[str, Any]) -> None:
    uid, gid, root = os.geteuid(), os.getegid(), config["root"]
    _call("unshare", NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET | (NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as stream:  # noqa: PTH123
                stream.write(text)
    _mount(None, "/", None, REC | PRIVATE)
    _mount("tmpfs", root, "tmpfs", NOSUID | NODEV, f"size={config['disk_bytes']},nr_inodes=4096,mode=755")
    os.mkdir(f"{root}/tmp")  # noqa: PTH102 (before the interpreter, which may lie below it)
    os.chmod(f"{root}/tmp", 0o1777)  # noqa: PTH101
    for path in config["readable"]:
        _bind(path, root + path, is_readonly=True)
    for path in DEVICES:
        _bind(path, root + path, is_readonly=False)
    with open(root + config["main"], "w", encoding="utf-8") as stream:  # noqa: PTH123
        stream.write(config["program"])
    os.chdir(root)
    if libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b".") != 0:
        _fail("pivot_root")
    _call("umount2", b".", DETACH)
    os.chdir("/tmp")


def _bind(source: str, target: str, is_readonly: bool) -> None:
    if os.path.isdir(source):  # noqa: PTH112
        os.makedirs(target, exist_ok=True)  # noqa: PTH103
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
        open(target, "a").close()  # noqa: PTH123
    _mount(source, target, None, BIND | REC)
    if is_readonly:
        _mount(None, target, None, BIND | REMOUNT | RDONLY | NOSUID | _locked(target))


def _locked(path: str) -> int:
    """The flags that a mount has already, which a user namespace may not take away."""
    has = os.statvfs(path).f_flag
    kept = {NODEV: NODEV, NOEXEC: NOEXEC, NOATIME: NOATIME, 4096: RELATIME}
    return sum(flag for bit, flag in kept.items() if has & bit)


def _drop_privileges() -> None:
    if os.geteuid() == 0:
        stranger = FIRST_UID + int.from_bytes(os.urandom(4), "little") % UIDS
        os.setgroups([])
        try:
            os.setresgid(stranger, stranger, stranger)
            os.setresuid(stranger, stranger, stranger)
        except OSError:  # a container that maps few users
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
    _call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _limit(limits: dict[str, int]) -> None:
    import resource

    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))


def _execute(config: dict[str, Any]) -> None:
    try:
        os.execve(config["python"], [config["python"], "-I", "-B", config["main"]], config["environment"])
    except BaseException as error:
        os.write(2, f"sandbox: {error}\n".encode())
        os._exit(125)


def _code(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    if libc.mount(*words, ctypes.c_ulong(flags), options.encode()) != 0:
        _fail(f"mount {target}")


def _call(name: str, *arguments: Any) -> None:
    if getattr(libc, name)(*arguments) != 0:
        _fail(name)


def _fail(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except OSError as problem:
        os.write(2, f"sandbox: {problem}\n".encode())
        os._exit(125)
