"""A model that writes answers ahead of the people who judge them. No paper.

It writes while fewer than `ahead` questions are ready, a few prompts at a time. What it has answered stands in a log of
requests, so that a server that is started again asks the same questions, and the model nothing twice.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain_plugins.annotate.desk import Desk
from posttrain_plugins.decisions.item import Item, Mode, items_of
from posttrain_plugins.errors import Interrupted
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, SamplingParams

if TYPE_CHECKING:
    from posttrain_plugins.backends.protocol import AnyBackend
    from posttrain_plugins.engine.log import RequestLog

__all__ = ["ModelFeed"]


@dataclass
class ModelFeed:
    """Offers a desk what a model answers.

    Args:
        desk: is offered the items.
        rows: with `prompt`.
        mode: what is asked.
        backend: the model.
        num_generations: completions of each prompt.
        params: of the completions.
        ahead: questions that are to be ready.
        log: of the model's answers.
        seed: of the draws.
        source: where the items come from.
        separator: ends a step.
        keep: is given the items before the desk is, to write them down.
        tell: is given the lines that a person reads.
    """

    desk: Desk
    rows: Sequence[Mapping[str, Any]]
    mode: Mode
    backend: AnyBackend
    num_generations: int
    params: SamplingParams
    ahead: int
    log: RequestLog
    seed: int = 0
    source: str = ""
    separator: str = SEPARATOR
    keep: Callable[[Sequence[Item]], None] = lambda items: None
    tell: Callable[[str], None] = print

    def start(self) -> threading.Thread:
        """Begin to write, in a thread of its own."""
        thread = threading.Thread(target=self._run, name="answers made ahead", daemon=True)
        self.desk.expect(len(self.rows) * self._items_per_row, is_fed=False)
        thread.start()
        return thread

    @property
    def _items_per_row(self) -> int:
        return self.num_generations if self.mode in ("accept", "first_wrong") else 1

    def _run(self) -> None:
        lost = 0
        count = max(1, self.ahead // 2)  # the other half is read meanwhile
        for start in range(0, len(self.rows), count):
            if not self.desk.wait_for_demand(self.ahead):
                return
            rows = self.rows[start : start + count]
            try:
                items = self._answered(rows, start)
            except Interrupted:
                return
            except Exception as error:  # the boundary of models and servers: the people keep what there is
                message = f"the model answers no more: {type(error).__name__}: {error}"
                self.tell(message)
                self.desk.expect(len(self.desk.assignment.ids), is_fed=True, trouble=message.partition("\n")[0])
                return
            lost += len(rows) * self._items_per_row - len(items)
            self.keep(items)
            self.desk.offer(items)
            self.desk.expect(len(self.rows) * self._items_per_row - lost, is_fed=False)
        if lost:
            self.tell(f"{lost} questions are left out: the model wrote one answer several times, or none")
        self.desk.expect(len(self.desk.assignment.ids), is_fed=True)

    def _answered(self, rows: Sequence[Mapping[str, Any]], start: int) -> list[Item]:
        from posttrain_plugins.engine.solve import sample

        # numbered through all rows: with the same number a prompt that comes twice would be answered alike
        problems = [Problem(row["prompt"], self.params, id=str(start + i)) for i, row in enumerate(rows)]
        results = sample(
            problems,
            self.num_generations,
            backend=self.backend,
            log=self.log,
            seed=self.seed,
            should_stop=lambda: self.desk.is_closing,
        )
        texts = [[candidate.text for candidate in result.candidates] for result in results]
        made = [{**row, "completions": of_row} for row, of_row in zip(rows, texts, strict=True) if of_row]
        return items_of(made, self.mode, self.source, self.separator)[0]
