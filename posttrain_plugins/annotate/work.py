"""Ask people: a ledger, a port, perhaps a model that writes ahead, and the page. No paper."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain_plugins.annotate.assign import Assignment
from posttrain_plugins.annotate.desk import Desk
from posttrain_plugins.annotate.door import Door
from posttrain_plugins.annotate.feed import ModelFeed
from posttrain_plugins.annotate.page import About
from posttrain_plugins.annotate.scratch import Scratch
from posttrain_plugins.annotate.server import check_installed, run
from posttrain_plugins.annotate.sources import keep_questions, ledger_folder
from posttrain_plugins.annotate.summary import summary, summary_lines
from posttrain_plugins.decisions.item import Item
from posttrain_plugins.decisions.ledger import Ledger
from posttrain_plugins.decisions.questions import Questions, read_questions
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import SamplingParams
from posttrain_plugins.web.port import listening, url_of

__all__ = ["AnswersAhead", "ask_people"]


@dataclass(frozen=True)
class AnswersAhead:
    """A model that writes what is judged.

    Args:
        model: a folder, a Hub id, `RUN:STAGE`, or `URL#MODEL`.
        rows: with `prompt`.
        num_generations: completions of each prompt.
        params: of the completions.
        ahead: questions that are to be ready.
        separator: ends a step.
        runs_dir: where `RUN:STAGE` is.
    """

    model: str
    rows: Sequence[Mapping[str, Any]]
    num_generations: int = 3
    params: SamplingParams = field(default_factory=SamplingParams)
    ahead: int = 8
    separator: str = SEPARATOR
    runs_dir: Path = Path("runs")


def ask_people(
    questions: Questions,
    *,
    folder: Path | None = None,
    title: str = "Annotate",
    next_command: str = "",
    answers: AnswersAhead | None = None,
    annotator: str = "",
    repeat_share: float = 0.0,
    seed: int = 0,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    allowed_hosts: Collection[str] = (),
    tell: Callable[[str], None] = print,
) -> None:
    """Serve the page until SIGINT or SIGTERM, then say what the decisions come to.

    Args:
        questions: what is asked.
        folder: where they stand; None writes them beside the ledger.
        title: in the browser's tab.
        next_command: what the page names when all is decided.
        answers: makes the completions, where the questions have none yet.
        annotator: a name that the page proposes.
        repeat_share: share of each annotator's items that they are asked again.
        seed: of the order on the screen, of the draws, and of what is asked again.
        host: the address to listen at.
        port: 0 takes a free one.
        token: what browsers of other machines must bring.
        allowed_hosts: further names by which the server may be called.
        tell: is given the lines that a person reads.

    Raises:
        LedgerInUse: another process asks into this ledger; it names its address.
        InputError: FastAPI is not installed, the port is taken, `host` is open without a token, no such model.
    """
    check_installed()
    door = Door(host, token, allowed_hosts)
    path = questions.ledger
    about = About(title, questions.mode, questions.guideline, annotator, next_command)
    # the ledger before the port: who comes second is told where the first one is, not that its port is taken
    with Ledger.open(path) as ledger, listening(host, port, 8766) as listener:
        ledger.announce(url_of(listener))
        scratch = Scratch(path.with_name(f"{path.name}.scratch"))
        with contextlib.closing(scratch):
            assignment = Assignment(questions.annotators_per_item, questions.gold, repeat_share, seed)
            is_part = questions.needed < len(answers.rows if answers else questions.items)
            desk = Desk(ledger, scratch, assignment, about.guideline_sha, seed, questions.needed if is_part else None)
            if folder is None:
                folder = ledger_folder(path)
                keep_questions(questions, folder)
                desk.know(read_questions(folder).items)
            desk.offer(questions.items)
            with _written_ahead(desk, answers, questions, folder, seed, tell):
                run(desk, door, about, listener, lambda: _greet(tell, url_of(listener), desk, ledger, token))
        asked = replace(questions, items=list(desk.items.values()))
        for line in summary_lines(summary(asked, ledger.effective())):
            tell(line)
    tell(f"ledger: {path}")
    if next_command:
        tell(f"next: {next_command}")


def _greet(tell: Callable[[str], None], url: str, desk: Desk, ledger: Ledger, token: str | None) -> None:
    if ledger.torn_bytes:
        tell(f"{ledger.path}: {ledger.torn_bytes} bytes of an unfinished line were moved to {ledger.path.name}.torn")
    progress = desk.about("")["progress"]
    tell(f"{progress['done']} of {progress['needed']} decisions are made; decide the others at")
    # not the token: this line may be kept in a log
    tell(f"  {url}/" + ("#token=... (the token that you gave)" if token else ""))
    tell("Ctrl-C ends it; what is decided stays.")


@contextlib.contextmanager
def _written_ahead(
    desk: Desk,
    answers: AnswersAhead | None,
    questions: Questions,
    folder: Path,
    seed: int,
    tell: Callable[[str], None],
) -> Iterator[None]:
    """Let a model write, within."""
    if answers is None:
        yield
        return
    from posttrain_plugins import api
    from posttrain_plugins.engine.log import RequestLog

    made: list[Item] = []

    def keep(items: Sequence[Item]) -> None:
        made.extend(items)
        keep_questions(replace(questions, items=made), folder)

    backend: Any = api.backend(answers.model, runs_dir=answers.runs_dir)
    try:
        with RequestLog(folder / "answers.jsonl") as log:
            feed = ModelFeed(
                desk, answers.rows, questions.mode, backend, answers.num_generations, answers.params, answers.ahead,
                log, seed, questions.source, answers.separator, keep, tell,
            )  # fmt: skip
            thread = feed.start()
            yield
            desk.close()
            thread.join()  # the model stops after the completion that it is at
    finally:
        getattr(backend, "close", lambda: None)()
