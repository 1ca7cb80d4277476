"""Are two answers equal as mathematics? `math_verify` is asked in a process of its own, with a time limit.

A computer algebra system may take for ever (`9^{9^9}`), and `math_verify`'s own limit is a signal, which works on the
main thread only. The process is started by the first question, answers one after the other, is killed and replaced when
one takes too long, and ends with this one; who asks from several threads has several of them. It imports nothing of
ours, so it starts in the time of one sympy import. No paper.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import queue
import subprocess
import sys
import threading
from functools import cache, lru_cache
from typing import Any

__all__ = ["LIMIT_S", "is_available", "is_mathematically_equal", "is_right"]

LIMIT_S = 5.0
START_LIMIT_S = 120.0  # importing sympy, on a machine that is busy
MAX_WORKERS = 4  # processes, for questions that are asked at once
MEMORY_GIB = 4  # a power tower takes all there is before the time is over


def is_mathematically_equal(a: str, b: str, limit_s: float = LIMIT_S) -> bool:
    r"""True where `math_verify` finds two expressions equal within the limit; from any thread.

    Args:
        a: LaTeX, without the dollars.
        b: the same.
        limit_s: for the comparison alone; more time than this means "not equal".

    Returns:
        False too where `math_verify` is not installed, or fails on them.

    Raises:
        OSError: the process cannot be started.

    Example:
        >>> is_mathematically_equal("x+1", "1+x")
        True
    """
    return is_available() and _worker.ask(["equal", a, b], limit_s) == b"1\n"


def is_right(completion: str, solution: str, limit_s: float = 2 * LIMIT_S) -> bool | None:
    r"""Whether the last LaTeX answer of a completion is the solution, as TRL's `accuracy_reward` decides it.

    Args:
        completion: text with an answer in LaTeX, in a box before any other.
        solution: LaTeX or a plain expression.
        limit_s: for reading and comparing; more time than this means "not right".

    Returns:
        None where the solution cannot be read.

    Raises:
        OSError: the process cannot be started.

    Example:
        >>> is_right(r"so \boxed{\frac{2}{4}}", "1/2"), is_right("4", "4"), is_right(r"\boxed{4}", "?")
        (True, False, None)
    """
    worker = _free.get()
    try:
        answer = worker.ask(["right", completion, solution], limit_s)
    finally:
        _free.put(worker)
    return None if answer == b"n\n" else answer == b"1\n"


@cache
def is_available() -> bool:
    """Is `math_verify` installed?"""
    return importlib.util.find_spec("math_verify") is not None


class _Worker:
    """The process, and one question at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.is_broken = False  # `math_verify` is there, but cannot be imported

    def ask(self, words: list[str], limit_s: float) -> bytes:
        """The answer as it was written; nothing where there is none in time, or ever."""
        question = json.dumps([*words, limit_s]).encode() + b"\n"
        with self.lock:
            for _ in range(2):  # the process may have died since the last answer
                if self.is_broken:
                    break
                try:
                    answer, is_late = self._exchange(question, limit_s)
                except BaseException:  # interrupted: its answer would be taken for that of the next question
                    self.close()
                    raise
                if answer:
                    return answer
                self.close()
                if is_late:
                    break
        return b""

    def close(self) -> None:
        """Kills the process; the next question starts another."""
        process, self.process = self.process, None
        if process is not None:
            with process:  # waits for it, and closes the pipes
                process.kill()

    def forget(self) -> None:
        """In a forked child: the process is the parent's, and a thread that held the lock is not here."""
        process, self.process, self.lock = self.process, None, threading.Lock()
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.returncode = 0  # not ours to wait for

    def _exchange(self, question: bytes, limit_s: float) -> tuple[bytes, bool]:
        """The answer, empty where the process died; and whether it died of the limit."""
        if self.process is None:
            self.process = _start()
            first, _ = _read(self.process, START_LIMIT_S)
            self.is_broken = first == b"broken\n"
            if not first:
                raise OSError(f"the process that compares answers has not started in {START_LIMIT_S:g} s")
        try:
            self.process.stdin.write(question)  # type: ignore[union-attr]
        except BrokenPipeError:
            return b"", False
        return _read(self.process, limit_s)


def _start() -> subprocess.Popen[bytes]:
    """-P: this file's folder, which has a `types.py`, stays off the path; unbuffered: a fork duplicates no bytes."""
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )


def _read(process: subprocess.Popen[bytes], limit_s: float) -> tuple[bytes, bool]:
    """A line, empty if the process dies; at the limit it is killed, which ends the waiting on every platform."""
    late = threading.Event()

    def kill() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limit_s, kill)
    timer.daemon = True
    timer.start()
    try:
        return process.stdout.readline(), late.is_set()  # type: ignore[union-attr]
    finally:
        timer.cancel()


def _close() -> None:
    for worker in _workers:
        worker.close()


def _forget() -> None:
    for worker in {*_workers, _worker}:
        worker.forget()
    _fill()


def _fill() -> None:
    """The first one on top: who asks one question after the other starts one process."""
    global _free
    _free = queue.LifoQueue()
    for worker in reversed(_workers):
        _free.put(worker)


_workers = [_Worker() for _ in range(min(MAX_WORKERS, os.cpu_count() or 1))]
_worker = _workers[0]
_free: queue.LifoQueue[_Worker]
_fill()
atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# --- In the process --------------------------------------------------------------------------------------------------


def _serve() -> None:
    """Answer questions from standard input until it ends; whatever a library prints goes to standard error."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _limit_memory()
    try:
        import math_verify
    except ImportError:
        channel.write("broken\n")
        return
    set_alarm = getattr(signal, "alarm", lambda seconds: None)
    channel.write("ready\n")
    for line in sys.stdin:
        kind, a, b, limit_s = json.loads(line)
        set_alarm(int(limit_s) + 2)  # should the parent be killed, nobody else ends a question without end
        channel.write(f"{int(_is_equal(math_verify, a, b)) if kind == 'equal' else _is_right(math_verify, a, b)}\n")
        set_alarm(0)


def _is_equal(math_verify: Any, a: str, b: str) -> bool:
    with contextlib.suppress(Exception):  # no expression, too deep, too large: not equal
        first, second = (math_verify.parse(f"${text}$", parsing_timeout=None) for text in (a, b))
        return bool(math_verify.verify(first, second, timeout_seconds=None))
    return False


def _is_right(math_verify: Any, completion: str, solution: str) -> str:
    gold = _solution(math_verify, solution)
    if not gold:
        return "n"
    with contextlib.suppress(Exception):  # no expression, too deep, too large: not right
        answer = math_verify.parse(
            completion, _boxed_first(math_verify), extraction_mode="first_match", parsing_timeout=None
        )
        return str(int(math_verify.verify(gold, answer, timeout_seconds=None)))
    return "0"


@cache
def _boxed_first(math_verify: Any) -> list[Any]:
    """LaTeX with its delimiters, a box before any other, units taken off: as TRL reads a completion."""
    from latex2sympy2_extended import NormalizationConfig

    units = NormalizationConfig(units=True)
    kind = math_verify.LatexExtractionConfig
    return [kind(normalization_config=units, boxed_match_priority=0, try_extract_without_anchor=False)]


@lru_cache(maxsize=4096)
def _solution(math_verify: Any, solution: str) -> Any:
    with contextlib.suppress(Exception):
        return math_verify.parse(solution, parsing_timeout=None)
    return []


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows; or a lower limit is set already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GIB << 30, MEMORY_GIB << 30))


if __name__ == "__main__":
    _serve()
