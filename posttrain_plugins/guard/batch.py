"""A reward's call as rows, one for each distinct (prompt, completion, columns)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

__all__ = ["Batch", "split"]

TRAINERS = ("trainer_state", "log_extra", "log_metric")  # what a trainer gives a reward beside the rows
SIZED_BY = ("completions", "prompts", "completion_ids")
PLAIN = (str, int, float, bool, type(None))


@dataclass(frozen=True)
class Batch:
    """The distinct rows of a call.

    Args:
        rows: the arguments of a call for one completion, each value in a list of one.
        places: which row each completion of the call is.
        shared: what is the same for all rows.
    """

    rows: list[dict[str, list[Any]]]
    places: list[int]
    shared: dict[str, Any]

    def whole(self) -> dict[str, Any]:
        """The arguments of one call for all distinct rows; what it logs for each is told of every completion."""
        columns = {name: [row[name][0] for row in self.rows] for name in (self.rows[0] if self.rows else ())}
        return {**self._shared(lambda log_extra: self._spread(log_extra)), **columns}

    def alone(self, i: int) -> dict[str, Any]:
        """The arguments of a call for one row in this process; it has no column of the log to fill by itself."""
        return {**self._shared(lambda log_extra: _silent), **self.rows[i]}

    def sendable(self, i: int) -> dict[str, Any]:
        """The same for another process: no trainer's methods, and of its state the plain values."""
        shared = {name: value for name, value in self.shared.items() if name not in TRAINERS}
        state = self.shared.get("trainer_state")
        if state is not None:
            plain = {name: value for name, value in vars(state).items() if isinstance(value, PLAIN)}
            shared["trainer_state"] = SimpleNamespace(**plain)
        return {**shared, **self.rows[i]}

    def _shared(self, logging: Callable[[Any], Callable[..., None]]) -> dict[str, Any]:
        changed = {"log_extra": logging(self.shared["log_extra"])} if self.shared.get("log_extra") else {}
        return {**self.shared, **changed}

    def _spread(self, log_extra: Callable[[str, list[Any]], None]) -> Callable[[str, list[Any]], None]:
        def log(column: str, values: list[Any]) -> None:
            values = list(values)
            log_extra(column, [values[i] for i in self.places] if len(values) == len(self.rows) else values)

        return log


def split(arguments: Mapping[str, Any]) -> Batch:
    """Takes a call apart; a value that is no list with one entry for each completion is shared."""
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
    return Batch(rows, places, shared)


def _identity(value: Any) -> Any:
    """Equal for plain values that are equal; any other object is equal to itself alone."""
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, list | tuple):
        return tuple(map(_identity, value))
    if isinstance(value, Mapping):
        return tuple((name, _identity(item)) for name, item in value.items())
    return "object", id(value)


def _silent(column: str, values: list[Any]) -> None:
    """In the place of `log_extra`."""
