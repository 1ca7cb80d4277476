"""The options that several commands take, and how their values are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from posttrain_plugins.errors import InputError

if TYPE_CHECKING:
    from posttrain_plugins.types import Budget

__all__ = [
    "RUNS",
    "BudgetOption",
    "EngineOption",
    "JsonOption",
    "LaunchOption",
    "MaxTokensOption",
    "ModelArgument",
    "OverrideOption",
    "ProcessesOption",
    "ReaderOption",
    "RecipeArgument",
    "RunsOption",
    "ScorerOption",
    "SeedOption",
    "TemperatureOption",
    "TopKOption",
    "TopPOption",
    "VLLMOption",
    "read_budget",
    "read_options",
    "read_pairs",
    "run_folder",
    "with_launch",
]


RUNS = Path("runs")  # relative: a run belongs to the project in whose folder it was started

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a packaged one such as `quickstart`.")
]
ModelArgument = Annotated[
    str, typer.Argument(help="A folder, a Hub id, RUN:STAGE such as `quickstart:grpo`, or a server's URL.")
]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY=VALUE", help="For instance `-o stages.dpo.args.beta=0.1`."),
]
RunsOption = Annotated[Path, typer.Option("--runs-dir", help="Where results go.", envvar="POSTTRAIN_RUNS_DIR")]
LaunchOption = Annotated[
    str | None,
    typer.Option(
        metavar="ENGINE",
        help="Train in processes of their own: ddp, fsdp2, zero1, zero2, zero3, or a file of `accelerate config`.",
    ),
]
ProcessesOption = Annotated[
    int | None, typer.Option(min=1, help="How many, on all machines together; by default as the file says (TRL's: 8).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
ScorerOption = Annotated[
    list[str] | None,
    typer.Option("--scorer", metavar="NAME=REWARD", help="A reward that a strategy asks for (repeatable)."),
]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget", metavar="LIMITS", help="Per problem: `tokens=500`, `completions=8,seconds=10`; also `calls`."
    ),
]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="Completion tokens at most.")]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        min=0.0, help="Of samples; by default what the model's generation_config says, else 1. `greedy` is always 0."
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(min=0.0, max=1.0, help="Share of the likeliest tokens' mass; by default as the model says, else 1."),
]
TopKOption = Annotated[
    int | None,
    typer.Option(min=0, help="Number of the likeliest tokens, 0 for all; by default as the model says, else 0."),
]
ReaderOption = Annotated[
    str,
    typer.Option(
        metavar="READER",
        help="How answers are read: auto, marked, boxed, tag, last_number, whole, regex:PATTERN.",
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(metavar="ENGINE", help="What runs the model: transformers, vllm, or the URL of a server that has it."),
]
VLLMOption = Annotated[
    list[str] | None,
    typer.Option("--vllm", metavar="KEY=VALUE", help="Of vLLM's engine: `max_model_len=4096` (repeatable)."),
]
SeedOption = Annotated[int, typer.Option(help="The same seed gives the same answers.")]


def read_budget(text: str) -> Budget:
    """Read a budget: `tokens=500,seconds=10`.

    Raises:
        InputError: another limit, or no number above 0.

    Example:
        >>> read_budget("tokens=500,seconds=1.5")
        Budget(tokens=500, completions=None, calls=None, seconds=1.5)
    """
    from dataclasses import fields

    from posttrain_plugins.types import Budget  # not at the top: it is a tenth of the time that --help takes

    # the limits are the fields of `Budget`, one list for Python, recipes and the command line
    known = [field.name for field in fields(Budget)]
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            hint = f"limits: {', '.join(known)}; for instance tokens=500"
            raise InputError(f"the budget cannot be read: {part.strip()!r} in {text!r}", hint=hint)
        try:
            limits[name] = float(value) if name == "seconds" else int(value)
        except ValueError:
            limits[name] = 0
        if not 0 < limits[name] < math.inf:  # `float` reads "inf" and "nan" as well
            raise InputError(f"the budget cannot be read: {name} is {value!r}", hint=f"{name} is a number above 0")
    return Budget(**limits)  # type: ignore[arg-type]


def read_pairs(texts: Sequence[str] | None, what: str) -> dict[str, str]:
    """Read `NAME=VALUE` options, one for each name.

    Raises:
        InputError: one without a name, or a name twice.
    """
    pairs: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        # an identifier, since strategies name scorers by it: `best_of_n(scorer=rm)`
        if not (equals and name.isidentifier() and value):
            raise InputError(f"{what} {text!r} cannot be read", hint="write NAME=VALUE, for instance rm=quickstart:rm")
        if name in pairs:
            raise InputError(f"two values for {what} {name!r}: {pairs[name]} and {value}")
        pairs[name] = value
    return pairs


def with_launch(overrides: Sequence[str], launch: str | None, num_processes: int | None) -> list[str]:
    """Return overrides with what `--launch` and `--num-processes` say of all stages, which a stage's own goes before.

    Example:
        >>> with_launch(["seed=1"], "zero2", 8)
        ['seed=1', 'launch={config: "zero2", num_processes: 8}']
    """
    if launch is None and num_processes is None:
        return list(overrides)
    if launch is not None and Path(launch).suffix:  # from where the command is given, not from the recipe's folder
        launch = str(Path(launch).expanduser().absolute())
    given = [] if launch is None else [f"config: {json.dumps(launch)}"]
    given += [] if num_processes is None else [f"num_processes: {num_processes}"]
    return [*overrides, f"launch={{{', '.join(given)}}}"]


def read_options(texts: Sequence[str] | None, what: str) -> dict[str, Any]:
    """Read `KEY=VALUE` options whose values are YAML, as in a recipe.

    Raises:
        InputError: one without a name, or a value that is no YAML.
    """
    from posttrain_plugins.recipe.read.document import parse_value

    options: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier() and value):
            raise InputError(f"{what} {text!r} cannot be read", hint="write KEY=VALUE, for instance max_model_len=4096")
        options[name] = parse_value(value)
    return options


def run_folder(name: str, runs_dir: Path) -> Path:
    """Return the folder of a run.

    Args:
        name: of the run, below `runs_dir`; or its folder; or its recipe, by name or file.
        runs_dir: where results go.

    Raises:
        InputError: there is none; the hint names those that are.
    """
    parts = ("run.jsonl", "resolved.yaml", "latest")
    candidates = [runs_dir / name, Path(name)]
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        # `name:` of a recipe is its own, or else its file's; read as text, since what it extends may not be here
        found = re.search(r"^name: *['\"]?([\w.-]+)", Path(name).read_text(encoding="utf-8", errors="replace"), re.M)
        candidates.insert(0, runs_dir / (found[1] if found else Path(name).stem))
    for folder in candidates:
        if any((folder / part).exists() for part in parts):
            return folder.resolve()
    known = sorted({file.parent.name for part in parts for file in runs_dir.glob(f"*/{part}")})
    raise InputError(f"no run '{name}' below {runs_dir}", hint=f"runs there: {', '.join(known) or 'none'}")
