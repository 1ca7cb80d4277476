"""Ask computer algebra whether two expressions are equal, in a process of its own, with a time limit.

`sympy` compares the trees that `text/expressions.py` has read, so nothing is read in two ways; `math_verify` reads and
compares whole completions for the reward `math`. The first comes with torch, the other with the extra `math`. An
algebra system may take for ever (`9^{9^9}`), and `math_verify`'s own limit is a signal, which works on the main thread
only. The process is started by the first question, answers one after the other, is killed and replaced when one takes
too long, and ends with this one; who asks from several threads has several of them. No paper.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from posttrain_plugins.processes.pool import ProcessPool

__all__ = ["LIMIT_S", "is_available", "is_mathematically_equal", "is_right"]

LIMIT_S = 5.0
MAX_WORKERS = 4  # processes, for questions that are asked at once
MEMORY_GIB = 4  # a power tower takes all there is before the time is over

Question: TypeAlias = tuple[Literal["equal", "right"], Any, Any]


def is_mathematically_equal(a: Any, b: Any, limit_s: float = LIMIT_S) -> bool:
    r"""Return whether two expressions are equal wherever both are defined, as far as computer algebra finds out.

    Args:
        a: a tree of `text/expressions.py`.
        b: the same.
        limit_s: for the comparison alone; more time than this means "not equal".

    Returns:
        False too where sympy is not installed, or the question is open.

    Raises:
        OSError: the process cannot be started.

    Example:
        >>> root_of_8, root_of_2 = (("root", Fraction(n), Fraction(2)) for n in (8, 2))
        >>> is_mathematically_equal(root_of_8, ("*", Fraction(2), root_of_2))
        True
    """
    return _has_algebra() and bool(_processes.ask(("equal", a, b), limit_s))


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
def _has_algebra() -> bool:
    return importlib.util.find_spec("sympy") is not None


@cache
def is_available() -> bool:
    """Return whether `math_verify` is installed."""
    return importlib.util.find_spec("math_verify") is not None


class _AlgebraProcesses:
    """The processes that compare; none before the first question."""

    def __init__(self) -> None:
        self.pools: dict[str, ProcessPool] = {}
        self.is_broken = False  # the library is there, but cannot be imported

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
    """sympy and `math_verify` behind limits of their own."""

    def __init__(self) -> None:
        import resource
        import warnings

        warnings.simplefilter("ignore")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # what a library prints of a text it cannot parse is nobody's issue
            os.dup2(nowhere, stream)
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GIB << 30, MEMORY_GIB << 30))
        import sympy  # noqa: F401  # fails here, before the first question, where it cannot be imported

    def __call__(self, questions: Sequence[Question], limit_s: float, reply: Callable[[int, Any], None]) -> None:
        import signal

        # Should the parent be killed, nobody else ends a question without end: a power is computed in C code, which
        # lets no other thread of the process run.
        signal.alarm(int(limit_s) + 2)
        for i, (kind, a, b) in enumerate(questions):
            reply(i, self.is_equal(a, b) if kind == "equal" else self.is_right(a, b))
        signal.alarm(0)

    def is_equal(self, a: Any, b: Any) -> bool:
        import sympy

        with contextlib.suppress(Exception):  # no function that sympy knows, too deep, too large: not equal
            difference = _as_sympy(a) - _as_sympy(b)
            # `equals` tries figures first, which tells most that differ within a millisecond.
            return difference.equals(0) is True or sympy.simplify(difference) == 0
        return False

    def is_right(self, completion: str, solution: str) -> bool | None:
        import math_verify

        reference = _parsed(solution)
        if not reference:
            return None
        with contextlib.suppress(Exception):  # no expression, too deep, too large: not right
            answer = math_verify.parse(completion, _boxed_first(), extraction_mode="first_match", parsing_timeout=None)
            return bool(math_verify.verify(reference, answer, timeout_seconds=None))
        return False


def _as_sympy(tree: Any) -> Any:
    """Build the expression of a tree; a name is any complex number, so that `\\sqrt{x^2}` is not x."""
    import sympy

    if isinstance(tree, Fraction):
        return sympy.Rational(tree.numerator, tree.denominator)
    if isinstance(tree, str):
        return {"\\pi": sympy.pi, "e": sympy.E, "i": sympy.I}.get(tree) or sympy.Symbol(tree)
    operator, *branches = tree
    first, *rest = map(_as_sympy, branches)
    match operator:
        case "+" | "*" | "/" | "^":
            other = rest[0]
            arithmetic = {"+": first.__add__, "*": first.__mul__, "/": first.__truediv__, "^": first.__pow__}
            return arithmetic[operator](other)
        case "root":  # a negative number has a real root of odd degree
            degree = rest[0]
            is_odd = degree.is_Integer and degree % 2 == 1
            return -((-first) ** (1 / degree)) if first.is_negative and is_odd else first ** (1 / degree)
        case "log":  # without a base it is natural for some and of ten for others: of any base
            return sympy.log(first, rest[0] if rest else sympy.Symbol("base", positive=True))
    names = {"ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "!": "factorial", "abs": "Abs"}
    name = names.get(operator, operator)
    known = {"log", "asin", "acos", "atan", "factorial", "Abs", "binomial", "exp", "sin", "cos", "tan"}
    known |= {"cot", "sec", "csc", "sinh", "cosh", "tanh"}
    return getattr(sympy, name)(first, *rest) if name in known else sympy.Function(operator)(first, *rest)


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
