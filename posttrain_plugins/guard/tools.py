"""A tool under the guard: it cannot hang, cannot take the process down, and cannot fail unseen.

What a tool raises because of its arguments (`REFUSALS`) is the model's mistake and is told to the model; everything
else that goes wrong is the tool's own, is told too, counted, and past a share of the newest calls it stops the run.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError, PluginBroken, PosttrainError, ToolFailed
from posttrain_plugins.guard.isolation import open_tool_pool
from posttrain_plugins.guard.settings import GuardSettings
from posttrain_plugins.guard.tool_caller import CALL_OUTCOMES, CallOutcome, call
from posttrain_plugins.plugins.tools import as_function
from posttrain_plugins.processes.pool import ProcessPool

__all__ = ["CallFailed", "GuardedTool", "guard_tool"]

WINDOW = 32  # newest calls that a share is taken of
FAILED = ("error", "timeout")


class CallFailed(Exception):
    """What a call of a guarded tool raises; its text is told to the model."""


class GuardedTool:
    """A tool with its limits and its counts, called in the author's place.

    Args:
        name: what the model, messages and metrics call it.
        tool: the author's.
        settings: of the guard.
        max_chars: longer answers are cut; None leaves them.
    """

    group: ClassVar[str] = "tools"
    kinds: ClassVar[tuple[str, ...]] = CALL_OUTCOMES

    def __init__(self, name: str, tool: Callable[..., Any], settings: GuardSettings, max_chars: int | None) -> None:
        self.name, self.tool, self.settings, self.max_chars = name, tool, settings, max_chars
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self._recent: deque[str] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()  # a server's strategies call tools from many threads
        self._pool: ProcessPool | None = None
        self._stopped_by: PosttrainError | None = None

    @property
    def is_isolated(self) -> bool:
        """Whether it is called in processes of its own: a function that hangs can be ended in no other way."""
        return self.settings.isolate == "process" or self.settings.timeout_s is not None

    def __call__(self, **arguments: Any) -> Any:
        """Call it.

        Raises:
            CallFailed: for the model to read.
            ToolFailed: it has failed too often.
            InputError: it refuses to work at all, whatever it is given.
            PluginBroken: it cannot be loaded in a process of its own.
        """
        self.check()  # TRL tells the model what a tool raises and goes on: the calls left of a rollout cost no time
        try:
            outcome = self._called(arguments)
        except (InputError, PluginBroken) as refusal:
            self._stopped_by = refusal
            raise
        self._account(outcome, arguments)
        if outcome.kind != "ok":
            raise CallFailed(outcome.detail)
        is_long = self.max_chars is not None and isinstance(outcome.value, str)
        return outcome.value[: self.max_chars] if is_long else outcome.value

    def check(self) -> None:
        """Raise what stopped it.

        Raises:
            ToolFailed: it has failed too often.
            InputError: it refuses to work.
        """
        if self._stopped_by is not None:
            raise self._stopped_by

    def close(self) -> None:
        """End its processes; the next call starts them again."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def counts(self) -> dict[str, Any]:
        """Return what became of the calls so far, as JSON values that a checkpoint keeps."""
        with self._lock:
            return {"outcomes": dict(self.outcomes), "failures": dict(self.failures), "recent": list(self._recent)}

    def restore(self, counts: Mapping[str, Any]) -> None:
        """Go on from what `counts` gave, in place of what was counted since."""
        with self._lock:
            self.outcomes, self.failures = Counter(counts["outcomes"]), dict(counts["failures"])
            self._recent = deque(counts["recent"], maxlen=WINDOW)

    def _called(self, arguments: Mapping[str, Any]) -> CallOutcome:
        if not self.is_isolated:
            return call(self.tool, arguments)
        with self._lock:
            pool = self._pool = self._pool or open_tool_pool(self.tool, self.settings)
        [answer] = pool.submit([dict(arguments)], self.settings.timeout_s)
        outcome: CallOutcome = answer.result()
        return outcome

    def _account(self, outcome: CallOutcome, arguments: Mapping[str, Any]) -> None:
        with self._lock:
            self.outcomes[outcome.kind] += 1
            self._recent.append(outcome.kind)
            if outcome.kind in FAILED:
                self.failures.setdefault(outcome.kind, f"{outcome.detail}, on {dict(arguments)!r:.160}")
            share = sum(kind in FAILED for kind in self._recent) / WINDOW
            if share <= self.settings.max_failure_share:
                return
            details = "; ".join(f"{kind}: {text}" for kind, text in self.failures.items())
            message = (
                f"tool '{self.name}': {share:.0%} of the last {WINDOW} calls failed, more than max_failure_share: "
                f"{self.settings.max_failure_share:g}\n{details}"
            )
            self._stopped_by = ToolFailed(message, hint="mend the tool, or raise max_failure_share on it")
        self.check()


def guard_tool(
    name: str, tool: Callable[..., Any], settings: GuardSettings, max_chars: int | None = None
) -> Callable[..., Any]:
    """Return a tool under the guard, as a function that TRL and the engine take; its `guard` is the `GuardedTool`."""
    guarded = GuardedTool(name, tool, settings, max_chars)
    function = as_function(name, tool, guarded)
    function.guard = guarded  # type: ignore[attr-defined]
    return function
