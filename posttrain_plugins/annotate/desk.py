"""The desk between the pages and the ledger: gives items out, takes decisions in, and knows how far all are. No paper.

Every public method may be called from any thread; they take turns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain_plugins.annotate.assign import Assignment
from posttrain_plugins.annotate.scratch import Scratch
from posttrain_plugins.annotate.shown import order_of, rest_of, shown_item
from posttrain_plugins.decisions.item import Decision, Item, check_decision
from posttrain_plugins.decisions.ledger import Ledger
from posttrain_plugins.errors import InputError

__all__ = ["Desk", "Refusal"]

MOST_NAME_CHARS = 64
OF_THE_PAGE = (
    *("id", "item", "mode", "session", "shown", "choice", "order", "text", "verdict", "first_wrong", "none_good"),
    *("flag", "note", "seconds", "guideline_sha", "voids"),
)
"""Fields of a decision that the page may fill; the others are the server's."""


class Refusal(InputError):
    """A request of a page that cannot be done.

    Args:
        code: one word, by which the page knows what to do.
        message: for the person.
        status: of the HTTP answer; 409 is the page's to mend, 503 passes.
    """

    def __init__(self, code: str, message: str, status: int = 409) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass
class Desk:
    """Serves the pages of all annotators.

    Args:
        ledger: where decisions go.
        scratch: leases and drafts.
        assignment: who is asked what.
        guideline_sha: of the text that the pages show; "" where there is none.
        seed: of the order of completions.
        needed: items that have to be decided; None for all.
        expected: items that there will be, as far as is known.
        clock: seconds since the epoch.
    """

    ledger: Ledger
    scratch: Scratch
    assignment: Assignment
    guideline_sha: str = ""
    seed: int = 0
    needed: int | None = None
    expected: int = 0
    clock: Callable[[], float] = time.time
    items: dict[str, Item] = field(default_factory=dict)
    """By id: those that are asked, and those that a ledger's decisions are about."""
    is_fed: bool = True
    """No more items will come."""
    trouble: str | None = None
    """Why no more items come, for the page."""

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self.is_closing = False
        for decision in self.ledger.effective():
            self.assignment.record(decision)
        for lease in self.scratch.leases(self.clock()):
            self.assignment.leases.setdefault(lease.item, {})[lease.session] = lease

    # --- items -----------------------------------------------------------------------------------------------------

    def know(self, items: Iterable[Item]) -> None:
        """Know items of which decisions may come, though they are not given out (again)."""
        with self._lock:
            self.items |= {item.id: item for item in items if item.id not in self.items}

    def offer(self, items: Sequence[Item]) -> None:
        """Give these items out from now on."""
        with self._changed:
            self.items |= {item.id: item for item in items}
            self.assignment.offer(item.id for item in items)
            self.expected = max(self.expected, len(self.assignment.ids))
            self._changed.notify_all()

    def expect(self, count: int, is_fed: bool, trouble: str | None = None) -> None:
        """Tell how many items there will be, whether these are all, and what went wrong."""
        with self._changed:
            self.expected, self.is_fed, self.trouble = count, is_fed, trouble
            self._changed.notify_all()

    def wait_for_demand(self, ahead: int) -> bool:
        """Wait until fewer than `ahead` items are ready.

        Returns:
            False where the desk closes.
        """
        with self._changed:
            while not self.is_closing and self.assignment.count_ready(self.clock()) >= ahead:
                self._changed.wait(1.0)  # a lease that runs out tells nobody
            return not self.is_closing

    def close(self) -> None:
        """Give nothing out any more."""
        with self._changed:
            self.is_closing = True
            self._changed.notify_all()

    # --- what pages ask for ----------------------------------------------------------------------------------------

    def next(self, who: str, session: str, held: Collection[str] = (), is_more: bool = False) -> dict[str, Any]:
        """Return the next item of a tab, or why there is none.

        Args:
            who: the annotator.
            session: the tab.
            held: items that the tab has already.
            is_more: go on though enough is decided, and with what others read.

        Returns:
            `state`: `item`, `finished`, `enough`, `waiting` (a model writes), `elsewhere` (the last ones are open in
            another tab of theirs) or `leased` (others read them); `item` and `progress`.
        """
        with self._lock:
            now = self.clock()
            self._keep(who, session, held, now)
            is_enough = self.needed is not None and self.assignment.complete >= self.needed
            is_over = is_enough and not is_more
            lease = None if is_over else self.assignment.next(who, session, now, held, is_more)
            if lease is not None:
                self.scratch.keep(lease)
                self._changed.notify_all()  # one ready item fewer
                return {"state": "item", "item": self._drawn(who, self.items[lease.item]), **self.about(who)}
            readers = self.assignment.who_reads(who, session, now)
            states = {
                "enough": is_over,
                "waiting": not self.is_fed,
                "elsewhere": who in readers,
                "leased": bool(readers) and not is_more,
            }
            return {"state": next((name for name, is_so in states.items() if is_so), "finished"), **self.about(who)}

    def decide(self, who: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write a decision, and return when it is on disk.

        Args:
            who: the annotator.
            values: fields of a `Decision`, as the page has them. With `voids` and no answer it takes one back.

        Raises:
            Refusal: it answers no item of this ledger, or nothing of it, or another guideline was shown.
            PosttrainError: the disk is full.
        """
        with self._lock:
            decision = self._read(who, values)
            known = self.ledger.find(decision.id)
            if known is None:
                known = self._write(decision)
            return {"id": known.id, **self.about(who)}

    def undo(self, who: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take an annotator's decision back, and give its item to the tab.

        Args:
            who: the annotator.
            values: `id` of the line to write, `session`, and `voids`.
        """
        with self._lock:
            taken = self.ledger.find(str(values.get("voids")))
            if taken is None:
                raise Refusal("unknown_decision", "the ledger has no such decision")
            item = self._item(taken.item)
            answer = self.decide(who, {key: values.get(key) for key in ("id", "session", "voids")})
            self.scratch.keep(self.assignment.lease(item.id, who, str(values.get("session")), self.clock()))
            return {**answer, "state": "item", "item": self._drawn(who, item)}

    def look_back(self, who: str, before: str = "", step: int = -1) -> dict[str, Any]:
        """Return an item that an annotator has decided, with what they said.

        Args:
            who: the annotator.
            before: the decision to go on from; "" begins at the newest.
            step: -1 for the one before it, 1 for the one after it.

        Returns:
            `item` is None where there is none.
        """
        with self._lock:
            made = self._made(who)
            places = {one.id: place for place, one in enumerate(made)}
            place = places.get(before, len(made) if step < 0 else -1) + step
            if not 0 <= place < len(made):
                return {"item": None, **self.about(who)}
            given = made[place]
            shown = list(given.shown) or list(range(len(self.items[given.item].completions)))
            return {"item": shown_item(self.items[given.item], shown, given=given), **self.about(who)}

    def keep_open(self, who: str, session: str, items: Collection[str]) -> dict[str, Any]:
        """Renew the leases of a tab that is open."""
        with self._lock:
            self._keep(who, session, items, self.clock())
            return self.about(who)

    def leave(self, session: str, items: Collection[str]) -> dict[str, Any]:
        """Free the items of a tab that is closed."""
        with self._changed:
            self.assignment.release(session, items)
            self.scratch.release(session, items)
            return {}

    def write_draft(self, who: str, item: str, text: str) -> dict[str, Any]:
        """Keep what an annotator has begun to write."""
        with self._lock:
            self.scratch.write_draft(self._item(item).id, who, text)
            return {"chars": len(text)}

    def rest(self, item: str, part: str, start: int) -> dict[str, Any]:
        """Return the next page of a text that is too long to be shown at once."""
        return rest_of(self._item(item), part, start)

    def about(self, who: str) -> dict[str, Any]:
        """Return how far all are, and how far one is."""
        with self._lock:
            made = self._made(who)
            progress = {
                "done": min(self.assignment.done, self._wanted()),
                "needed": self._wanted(),
                "own": len(made),
                "last": made[-1].id if made else None,
                "trouble": self.trouble,
            }
            return {"progress": progress}

    # --- within ----------------------------------------------------------------------------------------------------

    def _wanted(self) -> int:
        return min(self.expected, self.needed or self.expected) * self.assignment.per_item

    def _made(self, who: str) -> list[Decision]:
        """Return an annotator's decisions on these items; a ledger may hold those on others."""
        return [one for one in self.assignment.made.get(who, []) if one.item in self.items]

    def _item(self, id: object) -> Item:
        found = self.items.get(str(id))
        if found is None and not self.is_fed:
            raise Refusal("not_ready", "this question is not loaded yet", 503)
        if found is None:
            raise Refusal("unknown_item", "this question is not among those of the server any more")
        return found

    def _drawn(self, who: str, item: Item) -> dict[str, Any]:
        times = len(self.assignment.of_annotator(who, item.id))
        return shown_item(item, order_of(item, who, self.seed, times), self.scratch.draft(item.id, who))

    def _keep(self, who: str, session: str, items: Iterable[str], now: float) -> None:
        for id in items:
            if id in self.items:
                self.scratch.keep(self.assignment.lease(id, who, session, now))

    def _read(self, who: str, values: Mapping[str, Any]) -> Decision:
        given = {name: values[name] for name in OF_THE_PAGE if values.get(name) is not None}
        sha = given.get("guideline_sha", "")
        if sha != self.guideline_sha and "item" in given:
            raise Refusal("guideline_changed", "the guideline has changed: read it, and decide again")
        source = self._item(given["item"]).source if "item" in given else ""
        try:
            return Decision.from_json({**given, "annotator": who, "source": source, "at": self.clock()})
        except InputError as error:
            raise Refusal("no_decision", error.message, 400) from error

    def _write(self, decision: Decision) -> Decision:
        """Append a decision; one on an item that the annotator has decided already corrects that one."""
        before = None if decision.voids is None else self.ledger.find(decision.voids)
        if before is not None and before.annotator != decision.annotator:
            raise Refusal("not_yours", "that decision is another annotator's")
        if decision.voids is not None and (before is None or not before.is_answer):
            raise Refusal("unknown_decision", "the ledger has no such decision")
        if decision.item:
            item = self._item(decision.item)
            try:
                check_decision(decision, item)
            except InputError as error:
                raise Refusal("no_decision", error.message, 400) from error
            who = decision.annotator
            standing = self.assignment.of_annotator(who, decision.item)
            if decision.voids is None and standing and decision.item not in self.assignment.due_again(who):
                # two tabs, of which one seemed to be closed: the later word holds
                decision, before = replace(decision, voids=standing[-1].id), standing[-1]
        elif before is None:
            raise Refusal("no_decision", "neither an answer, nor one that is taken back", 400)
        written = self.ledger.append(decision)
        if before is not None:
            self.assignment.forget(before)
            if not written.is_answer:
                known = {one.id for one in self.assignment.answers.get(before.item, [])}
                for one in self.ledger.effective():  # what it had corrected stands again
                    if one.item == before.item and one.id not in known:
                        self.assignment.record(one)
        if written.is_answer:
            self.assignment.record(written)
            self.scratch.release(written.session, [written.item])
            self.scratch.write_draft(written.item, written.annotator, None)
        self._changed.notify_all()
        return written
