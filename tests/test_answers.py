"""Votes, and equality that comes back in time: the process that compares, its limit, its death and its absence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.answers import equivalent, majority, tally
from posttrain_plugins.text import equivalence
from posttrain_plugins.text.equivalence import is_mathematically_equal

IMPOSTOR = '''
"""Stands in for sympy: `hang` never ends, `die` kills the process, `fail` raises; else sorted letters decide."""
import os

print("noise on standard output, where the answers go")
pi = E = I = None

class Symbol:
    def __init__(self, name):
        self.name = name

    def __sub__(self, other):
        return Difference(self.name, other.name)

class Difference:
    def __init__(self, first, second):
        self.first, self.second = first, second

    def equals(self, number):
        while self.first == "hang":
            pass
        if self.first == "die":
            os._exit(1)
        if self.first == "fail":
            raise RecursionError
        return sorted(self.first) == sorted(self.second)

def simplify(difference):
    return difference
'''


@pytest.fixture
def impostor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[equivalence._AlgebraProcesses]:
    """Processes of its own, whose `sympy` is the one above: the same with and without the real one."""
    (tmp_path / "sympy.py").write_text(IMPOSTOR)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(equivalence, "_has_algebra", lambda: True)
    processes = equivalence._AlgebraProcesses()
    monkeypatch.setattr(equivalence, "_processes", processes)
    yield processes
    processes.close()


def pids(processes: equivalence._AlgebraProcesses) -> list[int]:
    return [pid for pool in processes.pools.values() for pid in pool.pids]


def in_thread(function: Any, *arguments: Any) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


# --- The vote --------------------------------------------------------------------------------------------------------


def test_tally_counts_classes_by_their_first_member() -> None:
    answers = ["1/2", "0.5", None, "x", r"\frac{1}{2}", "X"]
    assert tally(answers) == {0: 3.0, 3: 2.0}
    assert tally(answers, [1.0, 1.0, 9.0, 2.0, 1.0, 2.0]) == {0: 3.0, 3: 4.0}
    assert majority(answers, [1.0, 1.0, 9.0, 2.0, 1.0, 2.0]) == 3
    assert tally([None]) == tally([]) == {}


# --- Equality in time ------------------------------------------------------------------------------------------------


def test_a_hanging_comparison_comes_back_within_its_limit_from_any_thread(
    impostor: equivalence._AlgebraProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **options: begun.append(start(*args, **options)) or begun[-1]
    )
    for ask in (is_mathematically_equal, lambda *args: in_thread(is_mathematically_equal, *args)):
        assert is_mathematically_equal("ab", "ba")  # the process is there, for the second time a new one
        started = time.monotonic()
        assert ask("hang", "x", 0.3) is False
        assert 0.3 <= time.monotonic() - started < 3
        assert pids(impostor) == []
    assert len(begun) == 2  # a question that took too long is not asked again
    assert all(process.returncode is not None for process in begun)  # killed, and waited for


def test_what_took_too_long_is_not_asked_again(
    impostor: equivalence._AlgebraProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, Any]] = []

    def ask(a: Any, b: Any) -> bool:
        asked.append((a, b))
        return is_mathematically_equal("hang", "once", 0.2)

    monkeypatch.setattr(equivalence, "is_mathematically_equal", ask)
    first, second = r"\sqrt{2} + 1", r"\sqrt{3 + 2\sqrt{2}}"
    assert [equivalent(first, second), equivalent(first, second), equivalent(second, first)] == [False] * 3
    assert len(asked) == 1


def test_the_process_is_started_by_the_first_question_and_kept(impostor: equivalence._AlgebraProcesses) -> None:
    assert pids(impostor) == []
    assert not equivalent("1/3", "0.3")  # plain numbers need no algebra
    assert pids(impostor) == []
    is_mathematically_equal("ab", "ba")
    (first,) = pids(impostor)
    assert not is_mathematically_equal("ab", "bc")
    assert pids(impostor) == [first]


@pytest.mark.parametrize(("word", "is_replaced"), [("die", True), ("fail", False)])
def test_a_comparison_that_fails_is_not_equal(
    impostor: equivalence._AlgebraProcesses, word: str, is_replaced: bool
) -> None:
    is_mathematically_equal("ab", "ba")
    first = pids(impostor)
    assert not is_mathematically_equal(word, word)
    assert is_mathematically_equal("ab", "ba")
    assert len(pids(impostor)) == 1
    assert (pids(impostor) != first) is is_replaced


def test_a_process_that_died_meanwhile_is_replaced(impostor: equivalence._AlgebraProcesses) -> None:
    is_mathematically_equal("ab", "ba")
    (first,) = pids(impostor)
    (pool,) = impostor.pools.values()
    killed = next(iter(pool._state.processes)).process
    os.kill(first, signal.SIGKILL)
    killed.wait(timeout=10)  # on a busy machine it might answer once more
    assert is_mathematically_equal("ab", "ba")
    assert pids(impostor) != [first]


def test_many_threads_get_their_own_answers(impostor: equivalence._AlgebraProcesses) -> None:
    pairs = [(f"x{i}", f"{i}x" if i % 3 else "no") for i in range(10, 90)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: is_mathematically_equal(*pair), pairs))
    assert found == [i % 3 > 0 for i in range(10, 90)]


def test_an_interrupted_question_does_not_answer_the_next(
    impostor: equivalence._AlgebraProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_mathematically_equal("ab", "ba")

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(Future, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            is_mathematically_equal("ab", "ba")
    assert not is_mathematically_equal("ab", "xy")


def test_a_library_that_cannot_be_imported_is_none(impostor: equivalence._AlgebraProcesses, tmp_path: Path) -> None:
    (tmp_path / "sympy.py").write_text("import no_such_module_anywhere")
    assert not is_mathematically_equal("ab", "ba")
    assert impostor.is_broken
    assert not is_mathematically_equal("ab", "ba")
    assert pids(impostor) == []


def test_a_process_that_does_not_start_is_told(impostor: equivalence._AlgebraProcesses, tmp_path: Path) -> None:
    (tmp_path / "sympy.py").write_text("import os; os._exit(1)")
    with pytest.raises(OSError, match="has not started"):
        is_mathematically_equal("ab", "ba")


def test_without_the_library_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = equivalence._AlgebraProcesses()
    monkeypatch.setattr(equivalence, "_processes", processes)
    monkeypatch.setattr(equivalence, "_has_algebra", lambda: False)
    assert not is_mathematically_equal("x+1", "1+x")
    assert processes.pools == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # of Python 3.12, and our point
def test_a_forked_child_starts_its_own(impostor: equivalence._AlgebraProcesses) -> None:
    is_mathematically_equal("ab", "ba")
    theirs = pids(impostor)
    (pool,) = impostor.pools.values()
    with pool._state.lock:  # as if another thread were asking
        child = os.fork()
        if child == 0:
            is_mine = pids(impostor) == [] and is_mathematically_equal("abc", "cba")
            impostor.close()
            os._exit(0 if is_mine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert is_mathematically_equal("ab", "ba")
    assert pids(impostor) == theirs


def test_the_process_ends_with_its_parent(impostor: equivalence._AlgebraProcesses) -> None:
    code = (
        "from posttrain_plugins.text import equivalence as e\n"
        "e._has_algebra = lambda: True\n"
        "assert e.is_mathematically_equal('ab', 'ba')\n"
        "print(*(pid for pool in e._processes.pools.values() for pid in pool.pids))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
    assert done.stderr == ""


def test_importing_answers_starts_nothing_and_imports_no_algebra() -> None:
    code = (
        "import sys, posttrain_plugins.answers as a, posttrain_plugins.text.equivalence as e\n"
        "assert a.equivalent('1/2', '0.5') and not e._processes.pools\n"
        "assert not {'sympy', 'math_verify', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_real_library() -> None:
    assert equivalent("x+1", "1+x")
    assert equivalent(r"\sqrt{2}", "2^{1/2}")
    assert not equivalent("x+1", "x+2")
    started = time.monotonic()
    towers = [("^", Fraction(base), ("^", Fraction(9), Fraction(9))) for base in (9, 8)]
    assert not in_thread(is_mathematically_equal, *towers, 0.5)  # digits by the hundred million
    assert time.monotonic() - started < 10
    assert threading.active_count() < 20
    assert in_thread(equivalent, "x+3", "3+x")
