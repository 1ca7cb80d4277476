"""Who is asked what: each item by as many annotators as are wanted, no item in two tabs, and never nothing to do.

1. Who is asked an item holds a lease on it, which the page renews while it is open. An item counts as asked for while
   the lease runs, so nobody answers what somebody is reading.
2. A lease is no wall: where nothing else is left, a person may take what another reads, and the second answer counts as
   overlap.
3. A tab that was closed has no way to say so for sure; its items are its annotator's again after `STALE_S`.
4. A share of the items is asked twice of the same annotator: how far they agree with themselves.

No paper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from posttrain_plugins.decisions.item import Decision

__all__ = ["LEASE_S", "REPEAT_AFTER", "STALE_S", "Assignment", "Lease", "is_chosen"]

LEASE_S = 600.0
STALE_S = 90.0
"""Three renewals that did not come: browsers slow the timers of hidden tabs down to one a minute."""
REPEAT_AFTER = 20
"""Decisions between a question and its repetition: enough not to remember the answer."""


@dataclass(frozen=True)
class Lease:
    """An item that is being read.

    Args:
        item: its id.
        session: the tab.
        annotator: who reads it.
        until: seconds since the epoch.
        seen: when the tab was last heard of.
    """

    item: str
    session: str
    annotator: str
    until: float
    seen: float


def is_chosen(share: float, *of: object) -> bool:
    """Choose a share of things by a hash of their names, the same ones in every process.

    Example:
        >>> [is_chosen(share, "seed", 7) for share in (0.0, 1.0)]
        [False, True]
    """
    digest = hashlib.sha256(":".join(map(str, of)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


@dataclass
class Assignment:
    """Knows all items, answers and leases. Not for several threads at once.

    Args:
        per_item: annotators that each item is asked of.
        everyone: items that are asked of all annotators, such as gold questions.
        repeat_share: share of an annotator's items that they are asked again.
        seed: of that choice.
    """

    per_item: int = 1
    everyone: Collection[str] = ()
    repeat_share: float = 0.0
    seed: int = 0
    ids: list[str] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)
    answers: dict[str, list[Decision]] = field(default_factory=dict)
    """Item -> the decisions that stand, in their order."""
    made: dict[str, list[Decision]] = field(default_factory=dict)
    """Annotator -> the same."""
    leases: dict[str, dict[str, Lease]] = field(default_factory=dict)
    """Item -> session -> lease."""
    done: int = 0
    """Decisions that were asked for and are made; of a flagged item all, since nobody is asked any more."""
    complete: int = 0
    """Items on which all of them are made."""
    first_open: int = 0
    """What stands before it in `ids` is decided."""

    def offer(self, ids: Iterable[str]) -> None:
        """Add items that can be asked from now on."""
        for id in ids:
            if id not in self.places:
                self.places[id] = len(self.ids)
                self.ids.append(id)
                self._count(id, 0)  # a ledger may know answers to what a model writes again only now

    def record(self, decision: Decision) -> None:
        """Add a decision that stands, and end the lease under which it was made."""
        before = self.count_done(decision.item)
        self.answers.setdefault(decision.item, []).append(decision)
        self.made.setdefault(decision.annotator, []).append(decision)
        self._count(decision.item, before)
        self.release(decision.session, [decision.item])

    def forget(self, decision: Decision) -> None:
        """Take a decision back: its item is open again."""
        before = self.count_done(decision.item)
        for known in (self.answers.get(decision.item, []), self.made.get(decision.annotator, [])):
            known[:] = [one for one in known if one.id != decision.id]
        self._count(decision.item, before)
        self.first_open = min(self.first_open, self.places.get(decision.item, self.first_open))

    def next(
        self, annotator: str, session: str, now: float, held: Collection[str] = (), takes_leased: bool = False
    ) -> Lease | None:
        """Lease the next item to a tab.

        Args:
            annotator: who asks.
            session: the tab.
            now: seconds since the epoch.
            held: items that the tab has already.
            takes_leased: where nothing else is left, what others read is given out, too.

        Returns:
            The lease, or None: nothing is left for this annotator, or what is left is open in other tabs.
        """
        again = (
            id
            for id in self.due_again(annotator, held)
            if all(one.until <= now for tab, one in self.leases.get(id, {}).items() if tab != session)
        )
        free, leased = self._first(annotator, session, now, held)
        chosen = next(again, None) or free or (leased if takes_leased else None)
        return None if chosen is None else self.lease(chosen, annotator, session, now)

    def lease(self, id: str, annotator: str, session: str, now: float) -> Lease:
        """Give a tab an item, or keep it for it."""
        found = Lease(id, session, annotator, now + LEASE_S, now)
        self.leases.setdefault(id, {})[session] = found
        return found

    def release(self, session: str, items: Iterable[str]) -> None:
        """End leases of a tab."""
        for id in items:
            self.leases.get(id, {}).pop(session, None)

    def who_reads(self, annotator: str, session: str, now: float) -> set[str]:
        """Return who has items open, in other tabs, that an annotator could decide."""
        open_items = (id for id in self._open() if not self.of_annotator(annotator, id))
        return {lease.annotator for id in open_items for lease in self._readers(id, now) if lease.session != session}

    def count_ready(self, now: float) -> int:
        """Count the items that somebody could be given and nobody reads."""
        return sum(id not in self.everyone and not self._readers(id, now) for id in self._open())

    def count_done(self, id: str) -> int:
        """Count the decisions on an item that were asked for."""
        answers = self.answers.get(id, ()) if id in self.places else ()
        is_out = any(decision.flag for decision in answers)
        return self.per_item if is_out else min(self.per_item, len({decision.annotator for decision in answers}))

    def of_annotator(self, annotator: str, id: str) -> list[Decision]:
        """Return what an annotator has decided of an item: two decisions where they were asked again."""
        return [decision for decision in self.answers.get(id, ()) if decision.annotator == annotator]

    def due_again(self, annotator: str, held: Collection[str] = ()) -> Iterator[str]:
        """Yield the items that an annotator has decided once, long enough ago, and is to be asked again."""
        if self.repeat_share > 0:
            for decision in self.made.get(annotator, [])[:-REPEAT_AFTER]:
                id = decision.item
                is_due = is_chosen(self.repeat_share, self.seed, annotator, id) and id not in held and not decision.flag
                if is_due and len(self.of_annotator(annotator, id)) == 1:
                    yield id

    def _count(self, id: str, before: int) -> None:
        after = self.count_done(id)
        self.done += after - before
        self.complete += (after == self.per_item) - (before == self.per_item)

    def _open(self) -> Iterator[str]:
        """Yield the items that are not decided, or that everyone is asked."""
        while self.first_open < len(self.ids) and self._is_closed(self.ids[self.first_open]):
            self.first_open += 1
        for place in range(self.first_open, len(self.ids)):
            if not self._is_closed(self.ids[place]):
                yield self.ids[place]

    def _is_closed(self, id: str) -> bool:
        return self.count_done(id) == self.per_item and (
            id not in self.everyone or any(decision.flag for decision in self.answers[id])
        )

    def _readers(self, id: str, now: float) -> list[Lease]:
        """Return who reads an item that they have not decided; a killed server leaves leases of those who have."""
        return [
            lease
            for lease in self.leases.get(id, {}).values()
            if lease.until > now and not self.of_annotator(lease.annotator, id)
        ]

    def _first(self, annotator: str, session: str, now: float, held: Collection[str]) -> tuple[str | None, str | None]:
        """Return the first item that is free, and the first that others read."""
        stale: str | None = None
        leased: str | None = None
        for id in self._open():
            if id in held or self.of_annotator(annotator, id):
                continue
            others = [lease for lease in self._readers(id, now) if lease.session != session]
            own = [lease for lease in others if lease.annotator == annotator]
            if not own and (id in self.everyone or self.count_done(id) + len(others) < self.per_item):
                return id, None
            if not own:
                leased = leased or id
            elif all(now - lease.seen > STALE_S for lease in own):
                stale = stale or id
        return stale, leased
