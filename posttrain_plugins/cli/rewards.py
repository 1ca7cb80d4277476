"""Tries, stresses, replays and audits a reward (`posttrain rewards`), without the model that it trains.

A reward that holds a model of its own (`RUN:STAGE`, a judge) loads that one.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain_plugins.cli.lazy import CommandGroup
from posttrain_plugins.cli.options import RUNS, JsonOption, RunsOption
from posttrain_plugins.cli.output import err, out, quiet

if TYPE_CHECKING:
    from posttrain_plugins.auditing.trial import TriedCompletion
    from posttrain_plugins.types import ResolvedReward

__all__ = ["audit", "replay", "rewards_app", "stress", "try_out"]

ODD = "odd completions"

rewards_app = CommandGroup(
    {"test": "rewards:try_out", "stress": "rewards:stress", "replay": "rewards:replay", "audit": "rewards:audit"},
    name="rewards",
    help="Try a reward before it trains, and look at what it did afterwards.\n\n"
    "Before: test, stress. After: replay, audit, on the rollouts that grpo, rloo and ppo save.",
    no_args_is_help=True,
)

RewardArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", help="`regex(pattern='...')`, `./file.py:attr`, or RUN:STAGE of a reward model."),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="RUN:STAGE such as `grpo:grpo`, RUN, or a JSONL file of completions.")
]
DataOption = Annotated[
    str | None, typer.Option(help="Rows with a reference: `digit_chain(split=test, size=50)`, or a JSONL file.")
]


def try_out(
    name: RewardArgument,
    dataset: DataOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of the data set at most.")] = 50,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Score a reward's own examples, good and bad, then each row's reference of a data set against another row's.

    `posttrain rewards test exact_answer --dataset "digit_chain(split=test, size=50)"`

    Exit 1 where an example gets another score than it says, or a reference scores no higher than a foreign one.
    """
    from posttrain_plugins import api
    from posttrain_plugins.auditing import trial
    from posttrain_plugins.plugins.declarations import declared

    quiet()
    reward = api.reward(name, runs_dir=runs_dir)
    data = dataset or declared(reward.func, "dataset")
    found = {}
    # a reward without examples may still be tried on data; without either, `on_examples` says what is missing
    if dataset is None or declared(reward.func, "examples"):
        found["its examples"] = trial.on_examples(reward)
    if isinstance(data, str):
        found[data] = trial.on_data(reward, api.rows(data, limit=limit))
    _show(reward, found, as_json)


def stress(name: RewardArgument, runs_dir: RunsOption = RUNS, as_json: JsonOption = False) -> None:
    """Score what no one wants: nothing, spam, the prompt again, all answers at once, 100,000 characters, half a box.

    `posttrain rewards stress "regex(pattern='<answer>.*</answer>')"`

    Exit 1 where one raises, or pays more than the reward's best example (for a reward that reads the reference answer:
    as much). Of a reward without examples, only that nothing raises is checked.
    """
    from posttrain_plugins import api
    from posttrain_plugins.auditing import trial

    reward = api.reward(name, runs_dir=runs_dir)
    _show(reward, {ODD: trial.stress(reward)}, as_json)


def replay(
    run: RunArgument,
    reward: Annotated[list[str], typer.Option(help="What to score with (repeatable); NAME=REWARD names it.")],
    to: Annotated[Path | None, typer.Option("--out", help="Write the rows with the new scores to this file.")] = None,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Score saved rollouts again, with another reward or a changed one, without any model.

    `posttrain rewards replay grpo:grpo --reward "length(max_chars=20)" --out rescored.jsonl`

    The file that --out writes is a data set: stage `sample` keeps the good ones of it, `dpo` learns from its pairs.
    """
    from posttrain_plugins import api
    from posttrain_plugins.auditing import saved
    from posttrain_plugins.auditing.scoring import scores_of
    from posttrain_plugins.cli.progress_bar import progress_bar

    if to is not None:
        saved.check_free(to)  # before anything is scored: a judge takes hours and money
    named = {name: api.reward(text, runs_dir=runs_dir) for name, text in map(_named, reward)}
    found = [saved.read(name, file) for name, file in saved.find(run, runs_dir.resolve()).items()]
    shown: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for rollouts in found:
        scores = {}
        for name, resolved in named.items():
            with progress_bar(err()) as progress:
                scores[name] = scores_of(resolved, rollouts.rows, progress)
        shown += [_replayed(rollouts.name, name, rollouts.rows, values) for name, values in scores.items()]
        # beside the scores that the run saved: those of other rewards stay with the completion
        rows += [
            {**row, "rewards": {**(row.get("rewards") or {}), **{name: scores[name][i] for name in scores}}}
            for i, row in enumerate(rollouts.rows)
        ]
    if to is not None:
        saved.write(to, rows)
    if as_json:
        print(json.dumps(shown, indent=1))
        return
    from posttrain_plugins.cli.reward_tables import replay_table

    out().print(replay_table(shown))
    if to is not None:
        err().print(f"{len(rows)} rows: {to}", style="dim", highlight=False)


def audit(
    run: RunArgument,
    against: Annotated[str, typer.Option(help="An independent reward: one that was not trained.")],
    trained: Annotated[str | None, typer.Option(help="A reward that was; by default their weighted sum.")] = None,
    parts: Annotated[int, typer.Option(min=2, help="How many parts training is cut into.")] = 10,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder of the plot; by default RUNS_DIR/<run>/audit.")
    ] = None,
    runs_dir: RunsOption = RUNS,
    as_json: JsonOption = False,
) -> None:
    """Does an independent reward rise with the one that is trained? A table over training, and a plot.

    `posttrain rewards audit grpo:grpo --against exact_answer`

    It tells what has happened to the completions that were sampled. It is no early warning of reward hacking.
    """
    from posttrain_plugins import api
    from posttrain_plugins.auditing import plot, saved
    from posttrain_plugins.auditing.audit import audit as compare
    from posttrain_plugins.auditing.scoring import scores_of
    from posttrain_plugins.cli.progress_bar import progress_bar

    name, text = _named(against)
    rollouts = saved.read_one(run, runs_dir.resolve())
    with progress_bar(err()) as progress:
        scores = scores_of(api.reward(text, runs_dir=runs_dir), rollouts.rows, progress)
    found = compare(rollouts, scores, name, trained, parts)
    if as_json:
        print(json.dumps(found.to_json(), indent=1))
        return
    from posttrain_plugins.cli.reward_tables import audit_table

    out().print(audit_table(found, rollouts.name))
    stem = re.sub(r"[^A-Za-z0-9]+", "-", f"{Path(rollouts.name).stem} {found.independent}").strip("-")
    folder = to or rollouts.file.parent.parent / "audit"  # in the run's folder, beside the stage's
    try:
        files = plot.draw(found, folder / stem, rollouts.name)
    except ImportError:  # the table has been printed: the plot is an extra
        err().print("no plot: pip install 'posttrain-plugins[plot]'", style="dim", highlight=False)
        return
    for file in files:
        err().print(str(file), style="dim", highlight=False, soft_wrap=True)


def _named(text: str) -> tuple[str, str]:
    """Return name and reward of `NAME=REWARD`, or a reward under its own name."""
    name, equals, value = text.partition("=")  # `regex(pattern='a=b')` has a `=` as well, and no name before it
    return (name, value) if equals and name.isidentifier() else (text, text)


def _replayed(run: str, name: str, rows: list[dict[str, Any]], scores: list[float | None]) -> dict[str, Any]:
    before = [(row.get("rewards") or {}).get(name) for row in rows]
    # means over what was judged, as the run itself logs them
    known = [value for value in scores if value is not None]
    was = [value for value in before if value is not None]
    return {
        "run": run,
        "reward": name,
        "completions": len(rows),
        "judged": len(known),
        "mean": sum(known) / len(known) if known else None,
        "saved_mean": sum(was) / len(was) if was else None,
        "changed": sum(a != b for a, b in zip(before, scores, strict=True)) if was else None,
    }


def _show(reward: ResolvedReward, found: dict[str, list[TriedCompletion]], as_json: bool) -> None:
    problems = sum(bool(one.problem) for rows in found.values() for one in rows)
    if as_json:
        tried = {name: [asdict(one) for one in rows] for name, rows in found.items()}
        print(json.dumps({"reward": reward.name, "problems": problems, "tried": tried}, indent=1))
    else:
        from posttrain_plugins.cli.reward_tables import trial_table
        from posttrain_plugins.plugins.declarations import declared

        for name, rows in found.items():
            # the bound of odd completions is the best example's score
            is_compared = name != ODD or bool(declared(reward.func, "examples"))
            out().print(trial_table(rows, f"{reward.name}: {name}", is_compared))
    if problems:
        raise typer.Exit(1)
