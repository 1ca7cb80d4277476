"""What calls a tool, here or in a process of the guard's pool; of ours that process imports this file and `errors`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError

__all__ = ["CALL_OUTCOMES", "REFUSALS", "CallKind", "CallOutcome", "ToolCaller", "call"]

CallKind: TypeAlias = Literal["ok", "refused", "timeout", "error"]
CALL_OUTCOMES: tuple[CallKind, ...] = ("ok", "refused", "timeout", "error")
REFUSALS = (ValueError, TypeError, ArithmeticError, LookupError)
"""What a function raises because of what it is given."""


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What became of a call.

    Args:
        kind: `ok`; `refused`, for its arguments; or how the tool failed.
        value: a text, or content blocks (a list), which TRL hands to models that see.
        detail: what went wrong, for the model and for people.
    """

    kind: CallKind
    value: Any = None
    detail: str = ""


def call(tool: Callable[..., Any], arguments: Mapping[str, Any]) -> CallOutcome:
    """Call a tool; whatever goes wrong is an outcome.

    Raises:
        InputError: the tool refuses to work at all (something is not installed).
    """
    try:
        value = tool(**arguments)
        return CallOutcome("ok", value if isinstance(value, list) else str(value))
    except InputError:
        raise
    except REFUSALS as error:
        return CallOutcome("refused", detail=str(error))
    except PLUGIN_FAILURES as error:
        return CallOutcome("error", detail=f"{type(error).__name__}: {error}")


class ToolCaller:
    """Answers calls one after the other, in a process of the pool.

    Args:
        tool: the author's.
    """

    def __init__(self, tool: Callable[..., Any]) -> None:
        self.tool = tool

    def __call__(
        self, rows: list[Mapping[str, Any]], timeout_s: float | None, reply: Callable[[int, Any], None]
    ) -> None:
        """Reply an outcome for each row, or the `InputError` of a tool that refuses to work."""
        for i, arguments in enumerate(rows):
            try:
                reply(i, call(self.tool, arguments))
            except InputError as error:
                reply(i, InputError(error.message, error.hint))  # a class that the other process knows
