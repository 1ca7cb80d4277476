"""Answers questions from the command line, a file or stdin with a model and a strategy (`posttrain ask`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain_plugins.cli.options import (
    RUNS,
    EngineOption,
    JsonOption,
    MaxTokensOption,
    ModelArgument,
    ReaderOption,
    RunsOption,
    ScorerOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    VLLMOption,
    read_budget,
    read_options,
)
from posttrain_plugins.cli.output import err, quiet
from posttrain_plugins.errors import InputError, StageFailed

if TYPE_CHECKING:
    from posttrain_plugins.types import Prompt, Result

__all__ = ["ask"]


def ask(
    model: ModelArgument,
    question: Annotated[
        list[str] | None, typer.Argument(help="One or more prompts; `-` reads one from stdin.", show_default=False)
    ] = None,
    strategy: Annotated[str, typer.Option(help="How to answer, such as `self_consistency(n=8)`.")] = "greedy",
    scorer: ScorerOption = None,
    tool: Annotated[
        list[str] | None, typer.Option(metavar="FILE:FUNCTION", help="A function for `react` (repeatable).")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(metavar="LIMITS", help="Per question: `tokens=500,seconds=10`; also completions, calls."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: MaxTokensOption = 1024,
    temperature: TemperatureOption = None,
    top_p: TopPOption = None,
    top_k: TopKOption = None,
    seed: SeedOption = 0,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Questions, one a line, or JSONL with `prompt` and columns for scorers; `-` is stdin.", allow_dash=True
        ),
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(help="The model's name on the server, where MODEL is a URL.")
    ] = None,
    engine: EngineOption = "transformers",
    vllm: VLLMOption = None,
    reader: ReaderOption = "auto",
    trace: Annotated[bool, typer.Option("--trace", help="Show the tree of all that was asked, on stderr.")] = False,
    trace_html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write that tree as one page; of several questions one each.")
    ] = None,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Answer questions with a model and a strategy.

    `posttrain ask quickstart:grpo "3|7>2<9|4" --strategy "best_of_n(n=8, scorer='quickstart:rm')" --trace`

    The answer goes to stdout, all else to stderr. A server is asked with
    `posttrain ask http://localhost:8000/v1 "2+2=?" --served-model Qwen/Qwen3-0.6B`.
    """
    from posttrain_plugins import api
    from posttrain_plugins.backends.engines import check_engine
    from posttrain_plugins.backends.markers import unknown_markers
    from posttrain_plugins.cli.progress_bar import progress_bar
    from posttrain_plugins.engine.scoring import check_columns
    from posttrain_plugins.engine.solve import solve
    from posttrain_plugins.engine.tools import toolbox
    from posttrain_plugins.engine.trace import unanswered
    from posttrain_plugins.plugins import registry
    from posttrain_plugins.text.readers import check_reader
    from posttrain_plugins.types import Problem, SamplingParams

    check_reader(reader)
    check_engine(engine, for_vllm := read_options(vllm, "vllm"))
    # all that can be wrong in the user's words is found before a model is loaded, which may take minutes
    prompts, columns = _questions(question or [], file, system)
    options: dict[str, Any] = {"tools": toolbox(registry.import_object(target) for target in tool)} if tool else {}
    if budget is not None:
        options["budget"] = read_budget(budget)
    console = err()
    quiet(console)
    resolved = api.resolve_strategy(strategy, scorers=scorer or [], runs_dir=runs_dir)
    for reward in resolved.scorers.values():
        check_columns(reward, columns)
    if top_p == 0.0:
        raise InputError("top_p is 0, which keeps no token", hint="--temperature 0 takes the likeliest")
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    with progress_bar(console) as progress:
        try:
            policy = api.backend(model, model=served_model, engine=engine, options=for_vllm or None, runs_dir=runs_dir)
        except (OSError, ValueError) as cause:  # what transformers raises for a model that is not there
            raise InputError(f"model {model!r} cannot be loaded: {str(cause).partition(chr(10))[0]}") from cause
        drawn = getattr(policy, "sampling_defaults", {}) | {k: v for k, v in given.items() if v is not None}
        if strategy != "greedy" and (said := [f"{k} {v}" for k, v in drawn.items() if given[k] is None]):
            note = f"as the model's generation_config says: {', '.join(said)}"
            console.print(note, style="dim", highlight=False)
        for warning in unknown_markers(resolved.strategy, policy):
            console.print(f"{strategy}: {warning}", style="dim", highlight=False, markup=False)
        problems = [Problem(prompt, SamplingParams(max_tokens=max_tokens, **drawn)) for prompt in prompts]
        options |= {"scorers": resolved.scorers, "columns": columns, "seed": seed, "progress": progress}
        options["reader"] = reader
        with api.backends(policy, resolved.models, runs_dir=runs_dir) as by_role:
            results = solve(resolved.strategy, problems, backend=by_role, **options)
    _print_results(prompts, results, as_json, trace, is_many=file is not None or len(prompts) > 1)
    if trace_html is not None:
        _write_pages(trace_html, results, prompts, model, strategy)
    # last: the answers that there are, and the traces that show why, are worth having all the same
    errors = [why for result in results if (why := unanswered(result)) is not None]
    if errors:
        some = f" on {len(errors)} of {len(results)} questions" if len(results) > 1 else ""
        raise StageFailed(f"strategy '{strategy}' has no answer{some}: {errors[0]}")


# --- questions -------------------------------------------------------------------------------------------------------


def _questions(
    questions: Sequence[str], file: Path | None, system: str | None
) -> tuple[list[Prompt], dict[str, list[Any]]]:
    """Return the prompts, and the columns that every one of them has in the file."""
    rows: list[dict[str, Any]] = [{"prompt": sys.stdin.read().strip("\n") if q == "-" else q} for q in questions]
    rows += _from_file(file) if file is not None else []
    if not rows:
        raise InputError("no question is given", hint='posttrain ask MODEL "2+2=?", or --file questions.txt')
    # a question is a message, of which the backend makes text if the model has no chat template
    before: list[Any] = [] if system is None else [{"role": "system", "content": system}]
    prompts: list[Prompt] = [
        [*before, *([{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"])]
        for row in rows
    ]
    names = [name for name in rows[0] if name != "prompt" and all(name in row for row in rows)]
    return prompts, {name: [row[name] for row in rows] for name in names}


def _from_file(file: Path) -> list[dict[str, Any]]:
    """Read one question a line, or JSONL with `prompt`, text or messages, and further columns."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the questions cannot be read: {file}: {error}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if file.suffix != ".jsonl":
        return [{"prompt": line} for _, line in lines]
    rows: list[dict[str, Any]] = []
    for number, line in lines:
        where = f"{file}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            hint = "each line is one JSON object with 'prompt'"
            raise InputError(f"{where}: not JSON: {error}", hint=hint) from error
        prompt = row.get("prompt") if isinstance(row, dict) else None
        is_chat = isinstance(prompt, list) and prompt and all(isinstance(m, dict) and "role" in m for m in prompt)
        if not (isinstance(prompt, str) or is_chat):
            raise InputError(f"{where}: 'prompt' is {prompt!r}, expected text or messages")
        rows.append(row)
    return rows


# --- answers ---------------------------------------------------------------------------------------------------------


def _print_results(
    prompts: Sequence[Prompt], results: Sequence[Result], as_json: bool, trace: bool, is_many: bool
) -> None:
    from posttrain_plugins.text import last_user_text
    from posttrain_plugins.text.answers import is_vote_empty

    questions = [last_user_text(prompt) for prompt in prompts]
    if trace:
        from posttrain_plugins.report.trace_tree import trace_tree

        console = err()
        for result in results:
            console.print(trace_tree(result, console.width))
    if as_json:
        rows = [{"question": text, **asdict(result)} for text, result in zip(questions, results, strict=True)]
        # one question gives an object, a file a list even of one: a program knows beforehand which it gets
        print(json.dumps(rows if is_many else rows[0], indent=1, default=str))
        return
    for i, (question, result) in enumerate(zip(questions, results, strict=True)):
        if is_many:
            print(("\n" if i else "") + f"# {question}")
        print(result.text)  # not by rich, which would take brackets of a model for markup and wrap its lines
        if is_vote_empty(result):
            count = len(result.candidates)
            err().print(
                f"nothing to vote on: none of {count} completions has an answer that can be read", style="yellow"
            )
        if result.stopped_by:
            err().print(f"ended by the budget: {result.stopped_by}", style="yellow")


def _write_pages(file: Path, results: Sequence[Result], prompts: Sequence[Prompt], model: str, strategy: str) -> None:
    """Write `trace.html`, or `trace-0.html`, `trace-1.html` ... of several."""
    from posttrain_plugins.report.page import write_whole
    from posttrain_plugins.report.trace_page import trace_page
    from posttrain_plugins.text import last_user_text

    for i, (result, prompt) in enumerate(zip(results, prompts, strict=True)):
        page = file if len(results) == 1 else file.with_name(f"{file.stem}-{i}{file.suffix}")
        html = trace_page(result, title=last_user_text(prompt), model=model, strategy=strategy)
        try:
            page.parent.mkdir(parents=True, exist_ok=True)
            write_whole(page, html)
        except OSError as error:
            raise InputError(f"the trace cannot be written: {page}: {error.strerror}") from error
        err().print(f"trace: {page}", style="dim", highlight=False, soft_wrap=True)
