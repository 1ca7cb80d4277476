"""Decide whether two answers are equal as mathematics, by `math_verify` in a process of its own, with a time limit.

A computer algebra system may take for ever (`9^{9^9}`), and `math_verify`'s own limit is a signal, which works on the
main thread only. The process is started by the first question, answers one after the other, is killed and replaced when
one takes too long, and ends with this one; who asks from several threads has several of them. No paper.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from posttrain_plugins.processes.pool import ProcessPool

__all__ = ["LIMIT_S", "is_available", "is_mathematically_equal", "is_right"]

LIMIT_S = 5.0
MAX_WORKERS = 4  # processes, for questions that are asked at once
MEMORY_GIB = 4  # a power tower takes all there is before the time is over

Question: TypeAlias = tuple[Literal["equal", "right"], str, str]


def is_mathematically_equal(a: str, b: str, limit_s: float = LIMIT_S) -> bool:
    r"""Return whether `math_verify` finds two expressions equal within the limit, from any thread.

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
    return is_available() and bool(_processes.ask(("equal", a, b), limit_s))


def is_right(completion: str, solution: str, limit_s: float = 2 * LIMIT_S) -> bool | None:
    r"""Return whether the last LaTeX answer of a completion is the solution, as TRL's `accuracy_reward` decides it.

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
    return _processes.ask(("right", completion, solution), limit_s)


@cache
def is_available() -> bool:
    """Return whether `math_verify` is installed."""
    return importlib.util.find_spec("math_verify") is not None


class _AlgebraProcesses:
    """The processes that compare; none before the first question."""

    def __init__(self) -> None:
        self.pools: dict[str, ProcessPool] = {}
        self.is_broken = False  # `math_verify` is there, but cannot be imported

    def ask(self, question: Question, limit_s: float) -> bool | None:
        """Return the answer of a process; False where there is none in time, or ever."""
        from posttrain_plugins.processes.pool import ProcessFailure  # not above: most who compare need no algebra

        for _ in range(2):  # the system may have killed the process, for memory or because it was idle
            if self.is_broken:
                break
            answer = self._pool().submit([question], limit_s)[0].result()
            if not isinstance(answer, ProcessFailure):
                return None if answer is None else bool(answer)
            if answer.kind == "late":  # it would be so again
                break
            self.is_broken = answer.detail.startswith(("ImportError", "ModuleNotFoundError"))
            if answer.kind in ("silent", "broken") and not self.is_broken:
                raise OSError(f"the process that compares answers has not started: {answer.detail}")
        return False

    def close(self) -> None:
        """End the processes; the next question starts others."""
        for pool in self.pools.values():
            pool.close()
        self.pools.clear()

    def _pool(self) -> ProcessPool:
        import pickle

        from posttrain_plugins.processes.pool import ProcessPool

        # `setdefault` is atomic: threads that come at once share a pool, and no lock can be held during a fork.
        num_workers = min(MAX_WORKERS, os.cpu_count() or 1)
        return self.pools.get("") or self.pools.setdefault("", ProcessPool(pickle.dumps(_Algebra), num_workers))


_processes = _AlgebraProcesses()


# --- In the process --------------------------------------------------------------------------------------------------


class _Algebra:
    """`math_verify` behind limits of its own."""

    def __init__(self) -> None:
        import resource
        import warnings

        warnings.simplefilter("ignore")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # what a library prints of a text it cannot parse is nobody's issue
            os.dup2(nowhere, stream)
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GIB << 30, MEMORY_GIB << 30))
        import math_verify

        self.library = math_verify

    def __call__(self, questions: Sequence[Question], limit_s: float, reply: Callable[[int, Any], None]) -> None:
        import signal

        # Should the parent be killed, nobody else ends a question without end: a power is computed in C code, which
        # lets no other thread of the process run.
        signal.alarm(int(limit_s) + 2)
        for i, (kind, a, b) in enumerate(questions):
            reply(i, self.is_equal(a, b) if kind == "equal" else self.is_right(a, b))
        signal.alarm(0)

    def is_equal(self, a: str, b: str) -> bool:
        with contextlib.suppress(Exception):  # no expression, too deep, too large: not equal
            first, second = (self.library.parse(f"${text}$", parsing_timeout=None) for text in (a, b))
            return bool(self.library.verify(first, second, timeout_seconds=None))
        return False

    def is_right(self, completion: str, solution: str) -> bool | None:
        reference = _parsed(solution)
        if not reference:
            return None
        with contextlib.suppress(Exception):  # no expression, too deep, too large: not right
            answer = self.library.parse(completion, _boxed_first(), extraction_mode="first_match", parsing_timeout=None)
            return bool(self.library.verify(reference, answer, timeout_seconds=None))
        return False


@cache
def _boxed_first() -> list[Any]:
    """Return how TRL reads a completion: LaTeX with its delimiters, a box before any other, units taken off."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig

    units = NormalizationConfig(units=True)
    return [LatexExtractionConfig(normalization_config=units, boxed_match_priority=0, try_extract_without_anchor=False)]


@lru_cache(maxsize=4096)
def _parsed(solution: str) -> Any:
    """Return a reference as math_verify reads it; a batch of completions shares it."""
    import math_verify

    with contextlib.suppress(Exception):
        return math_verify.parse(solution, parsing_timeout=None)
    return []
