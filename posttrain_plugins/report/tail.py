"""Reads what was appended to a file of JSON lines since it was read last, so that a page costs what is new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["Tail"]


class Tail:
    """A file of JSON lines that grows.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self.inode = 0

    def is_new(self) -> bool:
        """Tell whether the file is another one, or shorter, than the one that was read: then it is read from its head.

        A training that goes on from a checkpoint cuts off the steps after it.
        """
        try:
            status = self.path.stat()
        except OSError:
            return False
        is_other = self.inode not in (0, status.st_ino) or status.st_size < self.end
        if is_other:
            self.end = 0
        self.inode = status.st_ino
        return is_other

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the place and the object of each new whole line; one that is no object is passed over."""
        try:
            stream = self.path.open("rb")
        except OSError:
            return
        with stream:
            stream.seek(self.end)
            for line in stream:
                if not line.endswith(b"\n"):  # it is being written
                    return
                place, self.end = self.end, self.end + len(line)
                try:
                    row = json.loads(line)
                except ValueError:  # of UTF-8, too
                    continue
                if isinstance(row, dict):
                    yield place, row
