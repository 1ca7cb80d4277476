"""What a recipe may ask the guard for, as keys beside a reward's own parameters."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, TypeAlias

from posttrain_plugins.errors import InputError

__all__ = ["ISOLATING", "KEYS", "TOOL_KEYS", "GuardSettings", "OnError", "refusal"]

OnError: TypeAlias = Literal["raise", "none"] | float
MAX_WORKERS = 8

KEYS: dict[str, Any] = {
    "timeout_s": float,
    "isolate": Literal["process"],
    "on_error": OnError,
    "max_failure_share": float,
    "max_none_share": float,
    "num_workers": int,
}
"""The reserved keys, with their types; one of them is enough to guard a reward."""

TOOL_KEYS: dict[str, Any] = {
    **{name: KEYS[name] for name in ("timeout_s", "isolate", "max_failure_share", "num_workers")},
    "max_chars": int,
}
"""The reserved keys of a tool."""

ISOLATING = ("isolate", "timeout_s", "num_workers")


@dataclass(frozen=True)
class GuardSettings:
    """How a reward is guarded.

    Args:
        timeout_s: for one completion; a plain function is then run in processes of its own, because nothing else can
            end it, and a coroutine is cancelled.
        isolate: `process` scores each completion in another process, which may crash; no group of completions is seen.
        on_error: what stands for a score that failed: `none` (cannot judge), a number, or `raise`, which stops the run.
        max_failure_share: the run stops when more than this share of the newest scores failed (of 32, or of the batch
            where that is larger).
        max_none_share: the same for completions that the reward could not judge; 1.0 never stops.
        num_workers: processes; by default one for each core, at most 8.

    Raises:
        InputError: for a value out of its range.
    """

    timeout_s: float | None = None
    isolate: Literal["process"] | None = None
    on_error: OnError = "none"
    max_failure_share: float = 0.5
    max_none_share: float = 1.0
    num_workers: int | None = None

    def __post_init__(self) -> None:
        is_number = isinstance(self.on_error, int | float) and not isinstance(self.on_error, bool)
        is_choice = self.on_error in ("raise", "none")
        in_range = {
            "timeout_s, seconds, more than 0": self.timeout_s is None or 0 < self.timeout_s < inf,
            "isolate, 'process'": self.isolate in (None, "process"),
            "on_error, 'raise', 'none' or a finite number": is_choice or (is_number and -inf < self.on_error < inf),  # type: ignore[operator]
            "max_failure_share, a share from 0 to 1": 0 <= self.max_failure_share <= 1,
            "max_none_share, a share from 0 to 1": 0 <= self.max_none_share <= 1,
            "num_workers, 1 or more": self.num_workers is None or self.num_workers >= 1,
        }
        for rule, is_kept in in_range.items():
            name, _, expected = rule.partition(", ")
            if not is_kept:
                message = f"the guard cannot use {name}: {getattr(self, name)!r}, expected {expected}"
                raise InputError(message, hint=f"change {name}")

    @property
    def workers(self) -> int:
        """The number of processes."""
        # Those that this process may use: in a container, or under `taskset`, fewer than the machine has.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.num_workers or min(cores, MAX_WORKERS)


def refusal(name: str) -> InputError:
    """Return the error for a reward that holds a model and should be isolated."""
    return InputError(
        f"reward '{name}' cannot have {', '.join(ISOLATING[:2])}: it holds a model, which every worker process would "
        "load for itself, and lose each time it is killed",
        hint="on_error, max_failure_share and max_none_share work; a server's answers have a time limit of their own",
    )
