"""Asks people on a page in their browser (`posttrain annotate`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from posttrain_plugins.cli.options import RUNS, JsonOption, RunsOption
from posttrain_plugins.cli.output import err, quiet
from posttrain_plugins.errors import InputError

if TYPE_CHECKING:
    from posttrain_plugins.decisions.questions import Questions

__all__ = ["annotate"]

LONGEST_NAME = 255  # of a file; a longer guideline is a text


def annotate(
    source: Annotated[
        str,
        typer.Argument(help="A data file, RUN:STAGE that waits or has completions, a data set plugin, or a ledger."),
    ],
    mode: Annotated[
        str | None, typer.Option(help="demonstration, pick, rank, accept or first_wrong; by default as the rows are.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="The file of decisions; by default SOURCE's name with `.decisions.jsonl`.")
    ] = None,
    guideline: Annotated[
        str | None, typer.Option(metavar="FILE|TEXT", help="How to decide; shown first, its hash in each decision.")
    ] = None,
    per_item: Annotated[
        int | None, typer.Option(min=1, help="Annotators that each item is asked of; by default 1.")
    ] = None,
    needed: Annotated[int | None, typer.Option(min=1, help="Items that have to be decided; by default all.")] = None,
    repeat: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of their items that annotators are asked again.")
    ] = 0.0,
    gold: Annotated[
        str | None, typer.Option(metavar="REWARD", help="Knows what is right: measures annotators on a share of items.")
    ] = None,
    gold_share: Annotated[float, typer.Option(min=0.0, max=1.0, help="That share.")] = 0.1,
    model: Annotated[
        str | None, typer.Option(help="Writes the answers, ahead of you: a folder, a Hub id, RUN:STAGE, URL#MODEL.")
    ] = None,
    num_generations: Annotated[int, typer.Option(min=1, max=9, help="Completions of each prompt.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a completion, at most.")] = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the completions.")] = 1.0,
    ahead: Annotated[int, typer.Option(min=1, help="Questions that the model keeps ready.")] = 8,
    separator: Annotated[str, typer.Option(help="Ends a step, in mode first_wrong.", show_default=False)] = "\n\n",
    name: Annotated[str, typer.Option(help="The annotator's name that the page proposes.")] = "",
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all, with --token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            help="What other machines must bring; better set in the environment.", envvar="POSTTRAIN_ANNOTATE_TOKEN"
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name by which it may be called (repeatable).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order on the screen, and of the completions.")] = 0,
    report: Annotated[bool, typer.Option("--report", help="Ask nothing: say what the decisions come to.")] = False,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ask nothing: write the decisions as training data.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="For --export: demonstrations, pairs, ranked, labelled or steps.")
    ] = None,
    resolve: Annotated[
        str, typer.Option(help="For --export, of several annotators: majority, unanimous, all.")
    ] = "majority",
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Let people decide on a page, by keyboard: write, pick, rank, accept, or find the first wrong step.

    Three answers of a model for each prompt, and you pick the best:

    `posttrain annotate prompts.jsonl --model Qwen/Qwen3-0.6B`

    What a recipe waits for; then `posttrain run human_feedback` goes on:

    `posttrain annotate human_feedback:picks`

    Two annotators for each item, on machines of the same network:

    `posttrain annotate pairs.jsonl --per-item 2 --host 0.0.0.0 --token "$(openssl rand -hex 16)"`

    How far they agree, and the decisions as rows for DPO:

    `posttrain annotate pairs.decisions.jsonl --report --export dpo.jsonl`

    Each decision is on disk before the next question is shown. Needs `pip install 'posttrain-plugins[annotate]'`.
    """
    from posttrain_plugins.annotate import AnswersAhead, ask_people
    from posttrain_plugins.annotate.sources import Found, look_up, made_of
    from posttrain_plugins.decisions.item import MODES
    from posttrain_plugins.recipe.run.ad_hoc import NameResolver
    from posttrain_plugins.types import SamplingParams

    if mode is not None and mode not in MODES:
        raise InputError(f"no mode is called {mode!r}", hint=f"--mode {', '.join(MODES)}")
    found = look_up(source, runs_dir.resolve())
    made: dict[str, object] = {
        "--mode": mode,
        "--guideline": guideline,
        "--per-item": per_item,
        "--needed": needed,
        "--gold": gold,
    }
    made |= {"--model": model, "--ledger": ledger}

    def questions_of(found: Found) -> Questions:
        if found.questions is not None:
            given = [name for name, value in made.items() if value is not None]
            if given:
                what = f"{given[0]} is said of the questions in {source} already"
                raise InputError(
                    what, hint="change the stage's fields in its recipe, or name the rows and a new --ledger"
                )
            return found.questions
        questions, left_out = made_of(
            found,
            mode,  # type: ignore[arg-type]
            ledger,
            guideline=_text_of(guideline),
            annotators_per_item=per_item or 1,
            needed=needed,
            num_generations=num_generations,
            separator=separator,
            has_model=model is not None,
            gold=NameResolver(runs_dir.resolve()).reward(gold) if gold else None,
            gold_share=gold_share,
        )
        if left_out:
            _tell(f"{left_out} prompts are left out: they leave nothing to choose from")
        return questions

    questions = questions_of(found)
    if report or export is not None:
        _show_results(questions, as_json)
        if export is not None:
            _export(questions, export, keep, resolve)
        return
    answers = None
    if model is not None:
        quiet(err())
        count = 1 if questions.mode == "demonstration" else num_generations
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
        answers = AnswersAhead(model, found.rows, count, params, ahead, separator, runs_dir)
    ask_people(
        questions,
        folder=found.folder,
        title=found.name,
        next_command=found.next_command,
        answers=answers,
        annotator=name,
        repeat_share=repeat,
        seed=seed,
        host=host,
        port=port,
        token=token,
        allowed_hosts=allowed_host or (),
        tell=_tell,
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _text_of(guideline: str | None) -> str:
    """Read the guideline, a text or a file's name."""
    if guideline is None or len(guideline) > LONGEST_NAME or not Path(guideline).is_file():
        return guideline or ""
    try:
        return Path(guideline).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise InputError(f"the guideline cannot be read: {guideline}: {cause}") from cause


def _show_results(questions: Questions, as_json: bool) -> None:
    from posttrain_plugins.annotate.summary import summary, summary_lines
    from posttrain_plugins.decisions.ledger import read_ledger

    figures = summary(questions, read_ledger(questions.ledger))
    print(json.dumps(figures, indent=1) if as_json else "\n".join(summary_lines(figures)))


def _export(questions: Questions, file: Path, keep: str | None, resolve: str) -> None:
    from posttrain_plugins.decisions.counted import counted
    from posttrain_plugins.decisions.formats import COLUMNS, Resolve, rows_of
    from posttrain_plugins.decisions.ledger import read_ledger

    if keep is not None and keep not in COLUMNS:
        raise InputError(f"nothing is called {keep!r}", hint=f"--keep {', '.join(COLUMNS)}")
    if resolve not in get_args(Resolve):
        raise InputError(f"no way to resolve is called {resolve!r}", hint=f"--resolve {', '.join(get_args(Resolve))}")
    ids = [item.id for item in questions.items]
    used = counted(ids, read_ledger(questions.ledger), questions.annotators_per_item)
    made = rows_of(questions.items, used.answers, keep, resolve)  # type: ignore[arg-type]
    try:
        with file.open("w", encoding="utf-8", errors="backslashreplace") as lines:
            lines.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in made.rows)
    except OSError as cause:
        raise InputError(f"cannot write {file}: {cause.strerror}", hint="name a file in a folder of yours") from cause
    without = f"{made.flagged} flagged, {made.none_good} with nothing good, {made.undecided} undecided"
    _tell(f"{file}: {len(made.rows)} rows of {used.done} decided items ({without})")
