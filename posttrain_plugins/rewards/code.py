"""`code`: do the tests pass? The program in the completion is run, in a sandbox, on each test's input.

Papers: unit tests as APPS has them (https://huggingface.co/papers/2105.09938) and LiveCodeBench
(https://huggingface.co/papers/2403.07974), whose time limit of 6 s is the default; as a reward in RL, CodeRL
(https://huggingface.co/papers/2207.01780). What is expected never goes into the sandbox: a program can only be right by
computing it. Where no sandbox works the reward refuses, unless the recipe says `sandbox: none`.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isclose
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.sandbox.run import Sandbox, SandboxLimits, run, working_sandbox
from posttrain_plugins.text import to_text
from posttrain_plugins.types import Prompt

__all__ = ["Code"]

_FENCE = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
TOLERANCE = 1e-6

# What is put behind the program to call its function: an empty line first, since what it printed may end without a
# line break; `default` writes what JSON has no form for, such as a set, as a list.
CALL = """
import json as _json, sys as _sys
def _call(name, arguments):
    found = globals().get(name) or getattr(globals()["Solution"](), name)
    return found(*arguments)
_input = _json.loads(_sys.stdin.read())
_given = _call(_input["name"], _input["arguments"])
print()
print(_input["mark"] + _json.dumps(_given, default=list))
"""


@dataclass(frozen=True)
class _Test:
    stdin: str
    expected: Any
    function: str = ""


@dataclass
class Code:
    """Run each completion's last fenced code block on its tests.

    The column `tests` holds a list, or its JSON text, in one of these layouts, or such a list under `test_cases`:
    `{"input": ..., "output": ...}`, with `fn_name` for a function; LiveCodeBench's, with `testtype` and `fn_name`; or
    APPS's `{"inputs": [...], "outputs": [...], "fn_name": ...}`. A function's `input` is the list of its arguments (or
    their JSON, one a line); it is looked for in the program, and in its class `Solution`.

    Args:
        partial: give the share of tests that pass; else 1.0 only where all do, and the first that fails ends it.
        time_limit_s: for each test.
        memory_mib: for each process.
        disk_mib: for all files together.
        max_processes: at once, threads among them.
        max_tests: how many of the tests are run, from the first; None runs all.
        num_workers: completions that are run at once; by default one for each core.
        sandbox: `auto`, `namespaces`, `bubblewrap`, or `none`, which runs the model's code as you.

    Raises:
        InputError: no sandbox works here, or the tests cannot be read.
    """

    __name__ = "code"  # what TRL logs it under
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("tests",)
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {
            "prompt": "Read a number and print its double.",
            "completion": "```python\nprint(2 * int(input()))\n```",
            "tests": [{"input": "2", "output": "4"}, {"input": "-1", "output": "-2"}],
            "score": 1.0,
        },
        {
            "prompt": "Read a number and print its double.",
            "completion": "```python\nprint(4)\n```",
            "tests": [{"input": "2", "output": "4"}, {"input": "-1", "output": "-2"}],
            "score": 0.0,
        },
        {
            "prompt": "Read a number and print its double.",
            "completion": "print(2 * int(input()))",
            "tests": [{"input": "2", "output": "4"}],
            "score": 0.0,
        },
    )

    partial: bool = False
    time_limit_s: float = 6.0  # LiveCodeBench's
    memory_mib: int = 1024
    disk_mib: int = 64
    max_processes: int = 32
    max_tests: int | None = None
    num_workers: int | None = None
    sandbox: Sandbox = "auto"

    def __post_init__(self) -> None:
        for name in ("time_limit_s", "memory_mib", "disk_mib", "max_processes"):
            if getattr(self, name) <= 0:
                raise InputError(f"code cannot use {name}: {getattr(self, name)}, expected more than 0")

    def __call__(self, completions: Sequence[Prompt], tests: Sequence[Any], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]; None where there is no test.

        Args:
            tests: B lists of tests; None where there are none.
        """
        if self.sandbox == "auto" and completions:
            working_sandbox()  # refused here, once, and not by each thread
        asked: list[tuple[str | None, list[_Test]]] = []
        for completion, given in zip(completions, tests, strict=True):
            programs = _FENCE.findall(to_text(completion))
            asked.append((programs[-1] if programs else None, _read_tests(given)))
        # A group of completions often holds the same program again, and each run costs a process.
        keys = [(program, repr(of_one)) for program, of_one in asked]
        distinct = dict(zip(keys, asked, strict=True))
        # Threads are enough: each waits for a process of its own.
        with ThreadPoolExecutor(self.num_workers or os.cpu_count()) as workers:
            scores = dict(zip(distinct, workers.map(lambda one: self._score(*one), distinct.values()), strict=True))
        return [scores[key] for key in keys]

    def _score(self, program: str | None, tests: Sequence[_Test]) -> float | None:
        tests = tests[: self.max_tests]
        if not tests:
            return None
        if program is None:
            return 0.0
        try:
            ast.parse(program)  # no process for what cannot run
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return 0.0
        passed = 0
        for test in tests:
            is_right = self._passes(program, test)
            passed += is_right
            if not (is_right or self.partial):
                return 0.0
        return passed / len(tests)

    def _passes(self, program: str, test: _Test) -> bool:
        limits = SandboxLimits(self.time_limit_s, self.memory_mib, self.disk_mib, self.max_processes)
        if not test.function:
            ran = run(program, test.stdin, limits, self.sandbox)
            return ran.code == 0 and _is_same_text(ran.stdout, str(test.expected))
        # The value is found among what the program prints by a mark that it cannot have written into its source.
        mark = secrets.token_hex(8)
        given = json.dumps({"name": test.function, "arguments": json.loads(test.stdin), "mark": mark})
        ran = run(program + CALL, given, limits, self.sandbox)
        line = ran.stdout.rstrip("\n").rpartition("\n")[2]
        if ran.code != 0 or not line.startswith(mark):
            return False
        try:
            found = json.loads(line.removeprefix(mark))
        except (ValueError, RecursionError):  # cut at the limit of output, or a number of more digits than Python reads
            return False
        # APPS wraps the expected value of a function in a list, other sets do not.
        return _is_same_value(found, test.expected) or _is_same_value([found], test.expected)


# --- the layouts of tests --------------------------------------------------------------------------------------------


def _read_tests(given: Any) -> list[_Test]:
    """Return the tests of one problem.

    Raises:
        InputError: they are in none of the layouts.
    """
    try:
        value = json.loads(given) if isinstance(given, str) else given
        if isinstance(value, Mapping) and value.get("test_cases") is not None:
            value = value["test_cases"]
        if isinstance(value, Mapping):
            name = value.get("fn_name") or ""
            pairs = zip(value["inputs"], value["outputs"], strict=True)
            value = [{"input": i, "output": o, "fn_name": name} for i, o in pairs]
        return [_read_test(one) for one in value or ()]
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise InputError(
            f"code cannot read its tests: {given!r:.120}, {type(cause).__name__}: {cause}",
            hint='a list of {"input": ..., "output": ...}, with fn_name for a function',
        ) from cause


def _read_test(one: Mapping[str, Any]) -> _Test:
    name = str(one.get("fn_name") or one.get("func_name") or "")
    given, expected = one["input"], one["output"]
    if not name:
        texts = ("\n".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for v in (given, expected))
        return _Test(*texts)
    if isinstance(given, str):
        # Not `splitlines`, which also splits at U+2028: that stands raw in JSON.
        given = [json.loads(line) for line in given.split("\n") if line.strip()]
    if isinstance(expected, str):
        with contextlib.suppress(ValueError):  # a text that is no JSON is meant as it is
            expected = json.loads(expected)
    return _Test(json.dumps(given), expected, name)


# --- equality --------------------------------------------------------------------------------------------------------


def _is_same_text(found: str, expected: str) -> bool:
    """Return whether the same words stand on the same lines; numbers with a decimal point may differ a little."""
    first, second = ([line.split() for line in text.strip().splitlines() if line.strip()] for text in (found, expected))
    if [len(words) for words in first] != [len(words) for words in second]:
        return False
    for word, wanted in zip(itertools.chain(*first), itertools.chain(*second), strict=True):
        try:
            # A point in the expected word says that it is measured, not counted: 3 for 4 is never near.
            is_near = "." in wanted and isclose(float(word), float(wanted), rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        except ValueError:
            is_near = False
        if word != wanted and not is_near:
            return False
    return True


def _is_same_value(found: Any, expected: Any) -> bool:
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_is_same_value, found, expected))
    if isinstance(found, dict) and isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_is_same_value(v, expected[key]) for key, v in found.items())
    if isinstance(expected, float) and isinstance(found, int | float) and not isinstance(found, bool):
        return isclose(found, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return type(found) is type(expected) and bool(found == expected)  # True == 1 in Python, and in no other language
