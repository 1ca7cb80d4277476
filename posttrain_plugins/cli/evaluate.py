"""Measures strategies at several budgets on a data set, as one cached stage (`posttrain evaluate`)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from posttrain_plugins.cli.options import (
    RUNS,
    BudgetOption,
    EngineOption,
    JsonOption,
    MaxTokensOption,
    ModelArgument,
    RunsOption,
    SeedOption,
    VLLMOption,
    read_budget,
    read_options,
)
from posttrain_plugins.cli.runs import run_and_show

__all__ = ["evaluate"]


def evaluate(
    model: ModelArgument,
    dataset: Annotated[str, typer.Option(help="A file, or a data set plugin: `digit_chain(split=test, size=100)`.")],
    reward: Annotated[
        list[str], typer.Option(help="The first is the metric (repeatable); RUN:STAGE is a reward model.")
    ],
    strategy: Annotated[
        list[str] | None, typer.Option(help="`greedy`, `self_consistency(n=8)` ... (repeatable); by default greedy.")
    ] = None,
    budget: BudgetOption = None,
    verifier: Annotated[
        list[str] | None, typer.Option(help="A reward that chooses among the samples (repeatable).")
    ] = None,
    num_generations: Annotated[
        int, typer.Option(min=0, help="Samples per problem for sampled accuracy and the figures @k; 0 for none.")
    ] = 8,
    max_tokens: MaxTokensOption = 1024,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the samples.")] = 1.0,
    max_missing: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of answers that may be missing; they widen the intervals.")
    ] = 0.01,
    engine: EngineOption = "transformers",
    vllm: VLLMOption = None,
    seed: SeedOption = 0,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Measure a model with strategies on a data set: accuracy with intervals, against what it takes.

    `posttrain evaluate quickstart:sft --dataset "digit_chain(split=test, size=100)" --reward digit_chain_steps
    --strategy greedy --strategy "self_consistency(n=8)" --budget tokens=200 --budget tokens=800 --max-tokens 48`

    Every strategy is measured at every --budget. `*` marks what no other way beats in accuracy for as few tokens;
    `oracle` what has seen the answer. What was measured before is not measured again.
    """
    from posttrain_plugins import api

    settings: dict[str, Any] = {
        "num_generations": num_generations,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "max_missing": max_missing,
    }
    # only what was given: the stage's own defaults hold otherwise
    settings |= {"engine": engine} if engine != "transformers" else {}
    settings |= {"vllm": read_options(vllm, "vllm")} if vllm else {}
    if budget:
        # as a recipe writes them: a limit that is not set is not named
        limits = [asdict(read_budget(text)) for text in budget]
        settings["budgets"] = [{k: v for k, v in one.items() if v is not None} for one in limits]
    chosen = api.plan_evaluation(
        model,
        dataset=dataset,
        rewards=reward,
        strategies=strategy or ["greedy"],
        verifiers=verifier or [],
        seed=seed,
        runs_dir=runs_dir,
        **settings,
    )
    run_and_show(chosen, as_json, measured=model)
