"""A reward's call as rows, one for each distinct (prompt, completion, columns)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

__all__ = ["DistinctRows", "split_rows"]

TRAINERS = ("trainer_state", "log_extra", "log_metric")  # what a trainer gives a reward beside the rows
SIZED_BY = ("completions", "prompts", "completion_ids")
PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class DistinctRows:
    """The distinct rows of a call.

    Args:
        rows: the arguments of a call for one completion, each value in a list of one.
        places: which row each completion of the call is.
        shared: what is the same for all rows.
    """

    rows: list[dict[str, list[Any]]]
    places: list[int]
    shared: dict[str, Any]

    def joint_arguments(self) -> dict[str, Any]:
        """Return the arguments of one call for all distinct rows."""
        log_extra = self.shared.get("log_extra")

        def log_for_all(column: str, values: list[Any]) -> None:
            # The trainer's table has a line for each completion, and the reward saw each distinct one once.
            values = list(values)
            log_extra(column, [values[i] for i in self.places] if len(values) == len(self.rows) else values)  # type: ignore[misc]

        columns = {name: [row[name][0] for row in self.rows] for name in (self.rows[0] if self.rows else ())}
        return {**self.shared, **({"log_extra": log_for_all} if log_extra else {}), **columns}

    def row_arguments(self, i: int) -> dict[str, Any]:
        """Return the arguments of a call for one row in this process; it fills no column of the trainer's table."""
        silent = {"log_extra": lambda column, values: None} if self.shared.get("log_extra") else {}
        return {**self.shared, **silent, **self.rows[i]}

    def sendable_arguments(self, i: int) -> dict[str, Any]:
        """Return the arguments of a call for one row in another process."""
        # `log_extra` and `log_metric` are methods of the trainer, and would take it and its model along; of the state
        # go the plain values, since its log grows with the run and would be sent with every completion.
        shared = {name: value for name, value in self.shared.items() if name not in TRAINERS}
        state = self.shared.get("trainer_state")
        if state is not None:
            plain = {name: value for name, value in vars(state).items() if isinstance(value, PLAIN)}
            shared["trainer_state"] = SimpleNamespace(**plain)
        return {**shared, **self.rows[i]}


def split_rows(arguments: Mapping[str, Any]) -> DistinctRows:
    """Take a call apart; a value that is no list with one entry for each completion is shared."""
    # By what every call has; a list of another length is not of the completions, and goes to all of them.
    count = next((len(arguments[name]) for name in SIZED_BY if arguments.get(name) is not None), 0)
    columns = {
        name: list(value)
        for name, value in arguments.items()
        if name not in TRAINERS and isinstance(value, list | tuple) and len(value) == count
    }
    shared = {name: value for name, value in arguments.items() if name not in columns}
    rows: list[dict[str, list[Any]]] = []
    places: list[int] = []
    known: dict[Any, int] = {}
    for i in range(count):
        row = {name: [values[i]] for name, values in columns.items()}
        place = known.setdefault(_identity(list(row.values())), len(rows))
        if place == len(rows):
            rows.append(row)
        places.append(place)
    return DistinctRows(rows, places, shared)


def _identity(value: Any) -> Any:
    """Return a key that is equal for plain values that are equal; any other object is equal to itself alone."""
    if isinstance(value, PLAIN):
        return type(value), value  # the type, since True == 1 == 1.0
    if isinstance(value, list | tuple):
        return tuple(map(_identity, value))
    if isinstance(value, Mapping):
        return tuple((name, _identity(item)) for name, item in value.items())
    return "object", id(value)
