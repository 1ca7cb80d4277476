"""Serves models and strategies behind OpenAI's protocol (`posttrain serve`)."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from posttrain_plugins.cli.options import (
    RUNS,
    EngineOption,
    ReaderOption,
    RunsOption,
    ScorerOption,
    VLLMOption,
    read_budget,
    read_options,
    read_pairs,
)
from posttrain_plugins.cli.output import err, quiet

__all__ = ["serve"]


def serve(
    model: Annotated[
        list[str], typer.Argument(help="MODEL or NAME=MODEL each: a folder, a Hub id, RUN:STAGE, a server's URL#MODEL.")
    ],
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    scorer: ScorerOption = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SPEC", help="A strategy under a name of its own, tools and all (repeatable)."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="What clients must send; better set in the environment.", envvar="POSTTRAIN_API_KEY"),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name by which clients may call it, beside its address (repeatable)."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Per completion, at most.")] = 4096,
    max_n: Annotated[int, typer.Option(min=1, help="Completions of a plain request, at most.")] = 64,
    max_body_kib: Annotated[int, typer.Option(min=1, help="Size of a request, at most.")] = 1024,
    budget: Annotated[
        str,
        typer.Option(metavar="LIMITS", help="For one question, whatever its strategy: `completions=64,seconds=30`."),
    ] = "completions=1024",
    max_concurrent: Annotated[int, typer.Option(min=1, help="Requests at work at once; others wait in line.")] = 64,
    grace_s: Annotated[
        float, typer.Option(min=0.0, help="How long requests may go on after Ctrl-C or SIGTERM.")
    ] = 30.0,
    engine: EngineOption = "transformers",
    vllm: VLLMOption = None,
    reader: ReaderOption = "auto",
    dtype: Annotated[str | None, typer.Option(help="Of the weights, such as bfloat16.")] = None,
    load_in_4bit: Annotated[bool, typer.Option("--load-in-4bit", help="Quantize with bitsandbytes.")] = False,
    runs_dir: RunsOption = RUNS,
) -> None:
    """Serve models, adapters and strategies to any OpenAI client.

    `posttrain serve quickstart:sft small=Qwen/Qwen3-0.6B --scorer rm=quickstart:rm`

    Clients name a model of `/v1/models`, alone or with a strategy: `small@self_consistency(n=8)`,
    `quickstart:sft@best_of_n(n=16, scorer=rm)`. Requests of all clients are answered in common batches; LoRA adapters
    of one base share it in memory. Needs `pip install 'posttrain-plugins[serve]'`.
    """
    console = err()
    quiet(console)  # before the server is imported, and torch with it
    from posttrain_plugins.serve import serve as run_server
    from posttrain_plugins.serve.protocol import RequestLimits
    from posttrain_plugins.text.readers import check_reader

    # only what was given: a model's own dtype holds otherwise
    loading = {name: value for name, value in (("dtype", dtype), ("load_in_4bit", load_in_4bit)) if value}
    has_ended = run_server(
        model,
        host=host,
        port=port,
        scorers=read_pairs(scorer, "scorer"),
        strategies=read_pairs(strategy, "strategy"),
        api_key=api_key or None,
        allowed_hosts=allowed_host or (),
        limits=RequestLimits(max_tokens, max_n, max_body_bytes=max_body_kib * 1024, budget=read_budget(budget)),
        engine=engine,
        vllm=read_options(vllm, "vllm"),
        reader=check_reader(reader),
        threads=max_concurrent,
        grace_s=grace_s,
        runs_dir=runs_dir,
        loading=loading,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )
    if not has_ended:
        sys.stderr.flush()
        # requests are at work still: a daemon thread inside torch may abort the interpreter's own end
        os._exit(0)
