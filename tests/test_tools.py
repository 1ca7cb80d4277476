"""Tools: what a model is told of one, what the built-in ones answer, and what becomes of those that misbehave."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.engine.tools import schema_of, use
from posttrain_plugins.errors import InputError, PluginBroken, ToolFailed
from posttrain_plugins.guard.guarded import figures_of, guarded_in
from posttrain_plugins.guard.settings import GuardSettings
from posttrain_plugins.guard.tools import CallFailed, guard_tool
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.tools import ToolShape, as_function, faults_of, shape_in, shape_of
from posttrain_plugins.sandbox.run import working_sandbox
from posttrain_plugins.tools.calculator import calculator
from posttrain_plugins.tools.python import Python
from posttrain_plugins.types import CallTool

TOOLS = '''
import ctypes, os, time


def shaky(word: str) -> str:
    """Does what it is told.

    Args:
        word: what to do.
    """
    if word == "hang": time.sleep(600)
    if word == "crash": ctypes.string_at(0)
    if word == "exit": os._exit(3)
    if word == "leave": raise SystemExit(3)
    if word == "refuse": raise ValueError("no such word")
    if word == "fail": raise OSError("no network")
    return word * 3


def bare(word):
    """Has no type."""


def silent(word: str) -> str:
    return word


def untold(word: str, times: int = 2) -> str:
    """Says nothing of times.

    Args:
        word: any.
    """


def wide(word: str, **more: int) -> str:
    """Takes anything.

    Args:
        word: any.
    """


async def slow(word: str) -> str:
    """Waits.

    Args:
        word: any.
    """


class Shout:
    """Shouts."""

    def __init__(self, mark: str = "!") -> None:
        self.mark = mark

    def __call__(self, word: str) -> str:
        """Shout a word.

        Args:
            word: any.
        """
        return word + self.mark
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_tools.py"
    path.write_text(TOOLS)
    return path


@pytest.fixture
def shaky(file: Path) -> Callable[..., Any]:
    return registry.load("tool", f"{file}:shaky")  # type: ignore[no-any-return]


# --- what a model is told --------------------------------------------------------------------------------------------

FAULTS = {
    "shaky": [],
    "bare": ["has arguments without a type: word", "does not describe 'word'"],
    "silent": ["has no docstring"],
    "untold": ["does not describe 'times'"],
    "wide": ["takes *args or **kwargs"],
    "slow": ["is async"],
    "Shout": [],
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_missing_of_a_tool_is_told_of_its_source_as_of_itself(name: str, file: Path) -> None:
    written, live = shape_in(file, name), shape_of(registry.load("tool", f"{file}:{name}"))
    assert written == live
    found = [message for message, hint in faults_of(name, live) if hint]
    assert len(found) == len(FAULTS[name])
    assert all(part in message for part, message in zip(FAULTS[name], found, strict=True))


def test_a_name_that_is_made_elsewhere_is_believed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("from os.path import join\nother = join\n")
    assert shape_in(tmp_path / "a.py", "join") is None
    assert shape_in(tmp_path / "a.py", "other") is None


def test_an_object_is_shown_by_its_call(file: Path) -> None:
    shout = registry.load("tool", f"{file}:Shout")("?")
    function = as_function("shout", shout)
    assert inspect.isfunction(function)
    assert function("a") == function(word="a") == "a?"
    from transformers.utils.chat_template_utils import get_json_schema

    schema = get_json_schema(function)
    assert schema["function"]["name"] == "shout"
    assert list(schema["function"]["parameters"]["properties"]) == ["word"]
    assert schema_of("shout", function) == schema
    assert use({"shout": function}, CallTool("shout", {"words": "a"})).startswith("error: shout: word is missing")


def test_a_described_tool_is_shown_as_transformers_shows_it() -> None:
    from transformers.utils.chat_template_utils import get_json_schema

    assert schema_of("calculator", calculator) == get_json_schema(calculator)
    assert schema_of("sums", calculator)["function"]["name"] == "sums"


def test_the_faults_of_a_shape_name_what_mends_them() -> None:
    (fault,) = faults_of("add", ToolShape("Add.\n\nArgs:\n    a: one.", {"a": True, "b": True}))
    assert fault == ("tool 'add' does not describe 'b'", "a line `b: ...` below `Args:` in its docstring")


# --- the built-in ones -----------------------------------------------------------------------------------------------

VALUES = {
    "12 + 7 * 3": "33",
    "(12 + 7) * 3": "57",
    "-3 ** 2": "-9",
    "2 ^ 10": "1024",
    "7 // 2 + 7 % 2": "4",
    "0.1 + 0.2": "0.3",
    "1/3": "0.333333333333",
    "10 / 5": "2",
    "6 \u00d7 7 \u00f7 2 \u2212 1": "20",
    "123456789 * 987654321": "121932631112635269",
    "1e3 + 1": "1001",
}
REFUSED = {
    "1/0": "division by zero",
    "2 +": "no arithmetic expression",
    "": "no arithmetic expression",
    "x + 1": "'x' is no arithmetic",
    "__import__('os')": "is no arithmetic",
    "(1).real": "is no arithmetic",
    "True + 1": "'True' is no arithmetic",
    "1 if 2 else 3": "is no arithmetic",
    "9 ** 9 ** 9": "too large",
    "(-8) ** 0.5": "a root of a negative number",
    "10 ** 400 / 3": "too large",
    "1" * 500: "at most 400",
    "(" * 300: "no arithmetic expression",
    "1j": "is no arithmetic",
    "1_0": None,
}


@pytest.mark.parametrize("expression", VALUES)
def test_the_calculator_calculates(expression: str) -> None:
    assert calculator(expression) == VALUES[expression]


@pytest.mark.parametrize("expression", [one for one, message in REFUSED.items() if message])
def test_the_calculator_refuses_what_is_no_arithmetic(expression: str) -> None:
    with pytest.raises(ValueError, match=str(REFUSED[expression]).replace("(", r"\(")):
        calculator(expression)


def has_sandbox() -> bool:
    try:
        return bool(working_sandbox())
    except InputError:
        return False


@pytest.mark.skipif(not has_sandbox(), reason="no sandbox works here")
def test_python_gives_what_is_printed_or_the_end_of_the_traceback() -> None:
    tool = Python(time_limit_s=2.0, max_chars=40)
    assert tool("print(6 * 7)") == "42"
    assert tool("print(1); 1 / 0") == "1\nZeroDivisionError: division by zero"
    assert len(tool("print('a' * 100)")) == 40
    assert "did not end within 2 s" in tool("while True: pass")
    with pytest.raises(InputError, match="time_limit_s: 0"):
        Python(time_limit_s=0)


# --- the guard -------------------------------------------------------------------------------------------------------

LENIENT = {"max_failure_share": 1.0, "num_workers": 1}


@pytest.mark.parametrize(
    ("word", "kind", "told"),
    [
        ("a", "ok", "aaa"),
        ("refuse", "refused", "no such word"),
        ("fail", "error", "OSError: no network"),
        ("leave", "error", "SystemExit: 3"),
    ],
)
@pytest.mark.parametrize("isolate", [None, "process"])
def test_what_goes_wrong_is_told_and_counted(shaky: Any, word: str, kind: str, told: str, isolate: Any) -> None:
    tool = guard_tool("shaky", shaky, GuardSettings(isolate=isolate, **LENIENT))
    try:
        if kind == "ok":
            assert tool(word=word) == told
        else:
            with pytest.raises(CallFailed, match=told):
                tool(word=word)
        assert tool.guard.outcomes == {kind: 1}
        assert figures_of({"tools": [tool]})[f"tools/shaky/{kind}"] == 1.0
        assert (kind in tool.guard.failures) == (kind == "error")
    finally:
        tool.guard.close()


def test_what_hangs_or_crashes_costs_its_own_call_alone(shaky: Any) -> None:
    tool = guard_tool("shaky", shaky, GuardSettings(timeout_s=1.0, **LENIENT))
    try:
        for word, told in (("hang", "no answer within 1 s"), ("crash", "the process died"), ("exit", "exit code 3")):
            with pytest.raises(CallFailed, match=told):
                tool(word=word)
        assert tool(word="b") == "bbb"
        assert tool.guard.outcomes == {"timeout": 1, "error": 2, "ok": 1}
        assert use({"shaky": tool}, CallTool("shaky", {"word": "exit"})).startswith("error: CallFailed: the process")
    finally:
        tool.guard.close()


def test_too_many_failures_stop_the_run_and_the_models_mistakes_do_not(shaky: Any) -> None:
    tool = guard_tool("shaky", shaky, GuardSettings(max_failure_share=2 / 32))
    for _ in range(40):
        with pytest.raises(CallFailed):
            tool(word="refuse")
    for _ in range(2):
        with pytest.raises(CallFailed):
            tool(word="fail")
    with pytest.raises(ToolFailed, match=r"9% of the last 32 calls failed, more than max_failure_share: 0\.0625"):
        tool(word="fail")
    count = tool.guard.outcomes.total()
    with pytest.raises(ToolFailed):  # at once, without a call
        tool(word="a")
    with pytest.raises(ToolFailed):  # the engine does not tell it to the model
        use({"shaky": tool}, CallTool("shaky", {"word": "a"}))
    assert tool.guard.outcomes.total() == count


def test_what_refuses_to_work_at_all_stops_the_run() -> None:
    def uninstalled(word: str) -> str:
        """Look up."""
        raise InputError("no index is installed", hint="pip install index")

    tool = guard_tool("uninstalled", uninstalled, GuardSettings())
    for _ in range(2):
        with pytest.raises(InputError, match="no index"):
            tool(word="a")
    local = guard_tool("local", uninstalled, GuardSettings(isolate="process"))
    with pytest.raises(InputError, match="does not pickle"):
        local(word="a")
    with pytest.raises((InputError, PluginBroken)):
        local.guard.check()


def test_long_answers_are_cut_and_counts_survive(shaky: Any) -> None:
    tool = guard_tool("shaky", shaky, GuardSettings(), max_chars=4)
    assert tool(word="abc") == "abca"
    (guard,) = guarded_in({"tools": [tool]})
    again = guard_tool("shaky", shaky, GuardSettings()).guard
    again.restore(guard.counts())
    assert again.counts() == guard.counts() == {"outcomes": {"ok": 1}, "failures": {}, "recent": ["ok"]}
