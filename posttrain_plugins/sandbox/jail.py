"""Locks itself into namespaces of its own and runs a program there; started as a script, by path, with a JSON file.

A new root (a small tmpfs with the interpreter bound into it, read-only), no network, processes of its own, which all
end with the first of them, and an unprivileged user: root becomes a user that nobody else is, anybody else keeps to
a user namespace. The kernel refuses it what only who breaks out needs: namespaces and mounts of its own, files that no
limit counts, keyrings, `bpf`, `io_uring`, `ptrace`. `namespaces(7)`, `seccomp(2)`, `pivot_root(2)`; no paper.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
NOATIME, RELATIME, DETACH = 1024, 1 << 21, 2
SET_PDEATHSIG, SET_NO_NEW_PRIVS = 1, 38
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
SET_SECCOMP, FILTER = 22, 2
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}
"""Machine -> its number in audit.h, and which of the two columns below has its system calls."""
FORBIDDEN = {
    **{"unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41)},
    **{"chroot": (161, 51), "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430)},
    **{"fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442)},
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447)},  # files in memory that no limit counts
    **{"keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218)},  # keyrings are not in a namespace
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "ptrace": (101, 117)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kexec_load": (246, 104)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
}
"""System calls that no program needs which computes, and by which kernels were broken: x86_64, and the others."""
CLONE, CLONE3 = (56, 220), 435
NEW_NAMESPACES = 0x7E020000
FIRST_UID, UIDS = 1_900_000_000, 1_000_000  # far from any account

libc = ctypes.CDLL(None, use_errno=True)


def main(file: str) -> None:
    """Lock this process in and run the program.

    Args:
        file: the JSON that `run.py` writes.
    """
    with open(file, encoding="utf-8") as stream:  # noqa: PTH123 (pathlib doubles the start)
        config = json.load(stream)
    os.umask(0o022)  # not the caller's: a stranger has to enter what is made here
    libc.prctl(SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)  # who waits for us keeps the time, and may be killed
    if config["parent"] is not None and os.getppid() != config["parent"]:  # it died before
        os._exit(125)
    if config["kind"] == "namespaces":
        _enter(config)
        child = os.fork()  # only a child is in the new namespace of processes: its first, with which all others end
        if child:
            signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, signal.SIGKILL))
            _exit_as(child)  # comes back when all of the namespace are gone
        if os.geteuid() == 0:
            uid = FIRST_UID + int.from_bytes(os.urandom(4), "little") % UIDS
            os.setgroups([])
            try:
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            except OSError:  # a container that maps few users
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
        libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # no program with a set-user-id bit makes it root again
        libc.prctl(SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)  # a fork and a change of user forget it
    for name, value in config["limits"].items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (value, value))
    child = 0 if config["kind"] == "none" else os.fork()  # not the first, which the kernel shields from signals
    if child:
        _exit_as(child)
    if config["kind"] != "none":
        _forbid_calls()
    os.execve(config["python"], [config["python"], "-I", "-B", config["main"]], config["environment"])


def _enter(config: dict[str, Any]) -> None:
    """Enter new namespaces, and make a root in which only the interpreter can be seen."""
    uid, gid, root = os.geteuid(), os.getegid(), config["root"]
    libc.unshare(NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET | (NEWUSER if uid else 0))
    if uid:  # `deny` comes first: without it the kernel takes no map of groups from a plain user
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as stream:  # noqa: PTH123
                stream.write(text)
    libc.mount(None, b"/", None, REC | PRIVATE, b"")  # what is mounted here is not mounted outside, too
    options = f"size={config['disk_bytes']},nr_inodes=4096,mode=755"
    libc.mount(b"tmpfs", os.fsencode(root), b"tmpfs", NOSUID | NODEV, options.encode())
    os.mkdir(f"{root}/tmp")  # noqa: PTH102 (before the interpreter, which may lie below it)
    os.chmod(f"{root}/tmp", 0o1777)  # noqa: PTH101
    for path in (*config["readable"], *DEVICES):
        target = root + path
        if os.path.isdir(path):  # noqa: PTH112
            os.makedirs(target, exist_ok=True)  # noqa: PTH103
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
            open(target, "a").close()  # noqa: PTH123
        libc.mount(os.fsencode(path), os.fsencode(target), None, BIND | REC, b"")
        if path not in DEVICES:  # a bind takes no flags of its own; a second mount sets them
            has = os.statvfs(target).f_flag  # what is set already a user namespace may not take away
            kept = {NODEV: NODEV, NOEXEC: NOEXEC, NOATIME: NOATIME, 4096: RELATIME}
            flags = sum(flag for bit, flag in kept.items() if has & bit)
            libc.mount(None, os.fsencode(target), None, BIND | REMOUNT | RDONLY | NOSUID | flags, b"")
    with open(root + config["main"], "w", encoding="utf-8") as stream:  # noqa: PTH123
        stream.write(config["program"])
    os.chdir(root)
    libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b".")  # the old root now lies over the new one
    libc.umount2(b".", DETACH)
    os.chdir("/tmp")


def _forbid_calls() -> None:
    """Let the kernel refuse system calls that only who breaks out needs; `seccomp(2)`, `bpf` as in linux/filter.h."""
    audit, column = MACHINES[os.uname().machine]
    load, equals, is_at_least, has_bits, done = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse, allow, unknown = 0x00050000 | errno.EPERM, 0x7FFF0000, 0x00050000 | errno.ENOSYS
    program = [(load, 0, 0, 4), (equals, 1, 0, audit), (done, 0, 0, refuse), (load, 0, 0, 0)]
    program += [(is_at_least, 0, 1, 0x40000000), (done, 0, 0, refuse)]  # x32, a second table of the same calls
    for numbers in FORBIDDEN.values():
        program += [(equals, 0, 1, numbers[column]), (done, 0, 0, refuse)]
    program += [(equals, 0, 1, CLONE3), (done, 0, 0, unknown)]  # its flags lie in memory; glibc then takes `clone`
    program += [(equals, 0, 3, CLONE[column]), (load, 0, 0, 16), (has_bits, 0, 1, NEW_NAMESPACES), (done, 0, 0, refuse)]
    program += [(done, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    given = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(SET_SECCOMP, FILTER, ctypes.c_void_p(ctypes.addressof(given)), 0, 0)


def _exit_as(child: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(128 - code if code < 0 else code)


def _raise_if_failed(result: int, function: Any, arguments: tuple[Any, ...]) -> int:
    if result != 0:
        number, words = ctypes.get_errno(), [os.fsdecode(word) for word in arguments if isinstance(word, bytes)]
        raise OSError(number, f"{' '.join([function.__name__, *words])}: {os.strerror(number)}")
    return result


if __name__ == "__main__":
    for name in ("prctl", "unshare", "mount", "umount2", "syscall"):
        getattr(libc, name).errcheck = _raise_if_failed
    libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
    try:
        main(sys.argv[1])
    except Exception as problem:
        os.write(2, f"sandbox: {problem}\n".encode())
        os._exit(125)
