"""What the page's server knows beside the decisions: who reads what, and texts that are being written. No paper.

It stands in one SQLite file beside the ledger, so that a killed server knows its leases and drafts when it is started
again. What a power cut takes of it, nobody was promised; decisions stand in the ledger alone.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from posttrain_plugins.annotate.assign import Lease
from posttrain_plugins.errors import InputError

__all__ = ["Scratch"]

TABLES = """
create table if not exists leases (item text, session text, annotator text, until real, seen real,
  primary key (item, session));
create table if not exists drafts (item text, annotator text, text text, primary key (item, annotator));
"""


class Scratch:
    """Leases and drafts. Not for several threads at once.

    Args:
        path: the file; what is none is made anew, since nothing in it has to be kept.

    Raises:
        InputError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = self._opened()
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)
            try:
                self._file = self._opened()
            except sqlite3.Error as cause:
                raise InputError(f"cannot write {path}: {cause}", hint="name a ledger in a folder of yours") from cause

    def _opened(self) -> sqlite3.Connection:
        # threads take turns, by the lock of the one who calls
        file = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
        # Alone on the file, as the ledger's lock grants, it needs no shared memory, which network disks lack. With a
        # write-ahead log a commit waits for no disk, and a killed process loses none.
        file.executescript(
            "pragma locking_mode = exclusive; pragma journal_mode = wal; pragma synchronous = normal;" + TABLES
        )
        return file

    def leases(self, now: float) -> Iterator[Lease]:
        """Yield the leases that still run; the others are forgotten."""
        self._file.execute("delete from leases where until <= ?", (now,))
        for row in self._file.execute("select item, session, annotator, until, seen from leases"):
            yield Lease(*row)

    def keep(self, lease: Lease) -> None:
        """Remember a lease."""
        values = (lease.item, lease.session, lease.annotator, lease.until, lease.seen)
        self._file.execute("insert or replace into leases values (?, ?, ?, ?, ?)", values)

    def release(self, session: str, items: Iterable[str]) -> None:
        """Forget leases of a tab."""
        pairs = [(item, session) for item in items]
        self._file.executemany("delete from leases where item = ? and session = ?", pairs)

    def draft(self, item: str, annotator: str) -> str | None:
        """Return what an annotator has begun to write."""
        row = self._file.execute("select text from drafts where item = ? and annotator = ?", (item, annotator))
        return next((str(text) for (text,) in row), None)

    def write_draft(self, item: str, annotator: str, text: str | None) -> None:
        """Keep what an annotator has begun to write; None forgets it."""
        if text is None:
            self._file.execute("delete from drafts where item = ? and annotator = ?", (item, annotator))
        else:
            # half a character of a pair, which JSON may hold, is none that SQLite takes
            whole = text.encode("utf-8", "replace").decode()
            self._file.execute("insert or replace into drafts values (?, ?, ?)", (item, annotator, whole))

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(sqlite3.Error):
            self._file.close()
