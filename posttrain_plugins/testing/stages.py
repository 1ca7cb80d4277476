"""Checks on stages: what the plan reads of them, and one step on a tiny model with tiny data.

What each reference field is given follows from its annotation: a `ModelRef` the tiny model, a `DataRef` eight rows with
the columns that `requires_columns` names, a `RewardRef` the length of the text, a `StrategyRef` a greedy answer. `args`
get what makes any TRL config small. `example_params` adds to that, or replaces it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import SkipTest

from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.plugins.schema import Field
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.check.loops import PRODUCTS
from posttrain_plugins.recipe.check.references import is_list
from posttrain_plugins.testing import tiny
from posttrain_plugins.testing.subject import Subject, subject
from posttrain_plugins.text import to_text
from posttrain_plugins.types import (
    Generate,
    ModelArtifact,
    ResolvedAdapter,
    ResolvedReward,
    ResolvedStrategy,
    StageContext,
    StageResult,
)

__all__ = ["CHECKS"]

NAMES = {
    "model": "model", "models": "model", "teacher": "model", "dataset": "dataset", "eval_dataset": "dataset",
    "rewards": "reward", "adapter": "adapter", "strategies": "strategy",
}  # fmt: skip
"""What a field of this name refers to in every stage of ours."""

SMALL: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "num_generations": 2,
    "max_length": 64,
    "max_completion_length": 6,
    "max_new_tokens": 6,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "report_to": "none",
}
PLAIN = {"num_generations": 2, "max_tokens": 6}  # of a stage's own fields


def check_references_are_annotated(stage: Any) -> None:
    """It is a dataclass, and a field that names a model, data, rewards or an adapter is annotated as a reference.

    The annotations (`ModelRef`, `DataRef` ...) are the edges of the plan: with `model: str` the stage would run before
    the model is there, and its key would not change with it.
    """
    source = subject("stage", stage).source
    assert dataclasses.is_dataclass(source), "it is no dataclass"
    fields = subject("stage", stage).schema.fields
    for name, kind in NAMES.items():
        ref = fields[name].ref if name in fields else None
        assert name not in fields or (ref is not None and ref.kind == kind), f"'{name}' is no reference to a {kind}"


def check_says_what_it_produces(stage: Any) -> None:
    """Its class says `produces`: model, dataset, reward or figures.

    It decides where the stage's name may stand in a recipe.
    """
    made = subject("stage", stage).declares("produces")
    assert made in PRODUCTS, f"produces is {made!r}, expected one of {', '.join(PRODUCTS)}"


def check_args_have_a_class(stage: Any) -> None:
    """A field `args` says whose options it takes: `Annotated[dict, ConfigOf("trl:SFTConfig")]`, a class that is there.

    Then a misspelt option is told at line and column before the model is loaded, and not by a TypeError after it.
    """
    fields = subject("stage", stage).schema.fields
    configs = [f for f in fields.values() if f.config is not None]
    assert "args" not in fields or fields["args"].config is not None, "'args' has no ConfigOf"
    for one in configs:
        assert one.config is not None
        try:
            of_config(one.config.target)
        except LookupError as cause:
            raise AssertionError(f"'{one.name}': {cause}") from cause


def check_columns_belong_to_its_data(stage: Any) -> None:
    """`requires_columns` maps its data-set fields to the groups of columns that each may have.

    A mapping to a field that is not there checks nothing.
    """
    tried = _dataclass(stage)
    columns = _columns(tried)
    data = {name for name, f in tried.schema.fields.items() if f.ref is not None and f.ref.kind == "dataset"}
    assert isinstance(columns, Mapping), f"requires_columns is {columns!r}, expected field -> groups of columns"
    unknown = sorted(set(columns) - data)
    assert not unknown, f"requires_columns names {', '.join(unknown)}, which is no field with a data set"
    for name, groups in columns.items():
        is_groups = all(isinstance(g, tuple | list) and all(isinstance(c, str) for c in g) for g in groups)
        assert is_groups, f"requires_columns['{name}'] is {groups!r}, expected groups such as (('prompt',),)"


def check_picklable(stage: Any) -> None:
    """Configured, it goes through `pickle`.

    Launched on several GPUs or in a process of its own, it is made there again.
    """
    made = _made(_dataclass(stage))
    try:
        pickle.loads(pickle.dumps(made))
    except Exception as cause:
        raise AssertionError(f"it cannot be pickled: {type(cause).__name__}: {cause}") from cause


def check_runs_one_step(stage: Any) -> None:
    """Called with its context it returns a `StageResult`.

    One step on a tiny model costs a second, and is the first thing to do before a night on a large one.
    """
    result = _run(_dataclass(stage)).result
    if isinstance(result, Exception):
        raise AssertionError(f"it raised {type(result).__name__}: {result}") from result
    assert isinstance(result, StageResult), f"it returned {type(result).__name__}, expected a StageResult"


def check_makes_what_it_says(stage: Any) -> None:
    """What it says that it produces is there: a model's folder, a JSONL file, figures.

    The next stage loads it from there, perhaps hours later.
    """
    tried = _dataclass(stage)
    ran = _run(tried)
    if not isinstance(ran.result, StageResult):
        raise SkipTest("it does not run")
    made = tried.declares("produces")
    if made in ("model", "reward"):
        path = ran.absolute(ran.result.model_path)
        has_model = path is not None and any(path.glob("*config.json"))
        assert has_model, f"it produces a {made}, but model_path is {ran.result.model_path} and holds none"
    if made == "dataset":
        path = ran.absolute(ran.result.data_path)
        lines = path.read_text(encoding="utf-8").split("\n") if path is not None and path.is_file() else None
        assert lines is not None, f"it produces a dataset, but data_path is {ran.result.data_path}"
        rows = [json.loads(line) for line in lines if line.strip()]
        assert all(isinstance(row, dict) for row in rows), "a line of data_path is no JSON object"
    if made == "figures":
        assert ran.result.metrics or ran.result.details, "it produces figures, but there are none"


def check_writes_into_its_folder(stage: Any) -> None:
    """What it made lies below `context.folder`, and the working directory is as it was.

    That folder becomes the artifact by one rename; what lies elsewhere is lost, or in the way of another run.
    """
    ran = _run(_dataclass(stage))
    if not isinstance(ran.result, StageResult):
        raise SkipTest("it does not run")
    assert not ran.strays, f"it wrote {', '.join(ran.strays)} into the working directory"
    for path in (ran.result.model_path, ran.result.data_path):
        made = ran.absolute(path)
        is_meant = made is not None and made in ran.meant
        assert made is None or is_meant or made.is_relative_to(ran.folder), f"{path} is not below context.folder"


def check_figures_are_numbers(stage: Any) -> None:
    """`metrics` are numbers by name, and `details` JSON values.

    They go into the manifest and the report; a tensor there fails after the training is done.
    """
    ran = _run(_dataclass(stage))
    if not isinstance(ran.result, StageResult):
        raise SkipTest("it does not run")
    for name, value in ran.result.metrics.items():
        is_number = isinstance(value, int | float)
        assert is_number, f"metrics['{name}'] is {type(value).__name__}, expected a number"
    try:
        json.dumps(ran.result.details)
    except (TypeError, ValueError) as cause:
        raise AssertionError(f"details are no JSON: {cause}") from cause


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_references_are_annotated,
    check_says_what_it_produces,
    check_args_have_a_class,
    check_columns_belong_to_its_data,
    check_picklable,
    check_runs_one_step,
    check_makes_what_it_says,
    check_writes_into_its_folder,
    check_figures_are_numbers,
)

RUNNING = (check_runs_one_step, check_makes_what_it_says, check_writes_into_its_folder, check_figures_are_numbers)
"""Those that run the stage; the run is shared."""


# --- making and running ----------------------------------------------------------------------------------------------


@dataclass
class Ran:
    """One run of a stage: what it returned or raised, its folder, and what else appeared in the working directory.

    `meant` are the folders that its `outputs` name.
    """

    result: Any
    folder: Path
    strays: list[str] = field(default_factory=list)
    meant: frozenset[Path] = frozenset()

    def absolute(self, path: Path | None) -> Path | None:
        return None if path is None else (self.folder / path).resolve()


class Silent:
    """A reporter that tells nobody."""

    def progress(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        """Nothing is told."""

    def note(self, message: str) -> None:
        """Nothing is told."""


@dataclass
class Greedy:
    """One answer."""

    def __call__(self, problem: Any) -> Any:
        from posttrain_plugins.text.answers import candidates, choose

        among = candidates((yield Generate(problem.prompt, params=problem.params)))
        return choose(among, 0 if among else None)


def text_length(completions: list[Any], **columns: Any) -> list[float]:
    """The length of each completion, the reward that stages are tried with."""
    return [float(len(to_text(completion))) for completion in completions]


def _dataclass(stage: Any) -> Subject:
    tried = subject("stage", stage)
    if not dataclasses.is_dataclass(tried.source):
        raise SkipTest("it is no dataclass")
    return tried


def _columns(tried: Subject) -> Any:
    """Of the configured object, where its parameters decide."""
    found = declared(_made(tried), "requires_columns")
    return {} if found is None else found


def _args(tried: Subject, name: str, given: Field) -> dict[str, Any]:
    assert given.config is not None
    try:
        known = of_config(given.config.target).fields
    except LookupError as cause:
        raise SkipTest("its args have no class") from cause
    return {**{k: v for k, v in SMALL.items() if k in known}, **tried.params.get(name, {})}


def _made(tried: Subject) -> Any:
    """The stage with small parameters."""
    if not isinstance(tried.definition, type):
        return tried.definition
    fields = tried.schema.fields
    small = {name: value for name, value in PLAIN.items() if name in fields and name not in tried.params}
    args = {name: _args(tried, name, f) for name, f in fields.items() if f.config is not None}
    return tried.make(**small, **args)


@functools.cache
def _run(tried: Subject) -> Ran:
    """One run for all checks of this subject; its folder goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="stage-", dir=tiny.folder())).resolve()
    aside = folder / "elsewhere"
    aside.mkdir()
    made = _made(tried)
    before = Path.cwd()
    os.chdir(aside)
    try:
        result = made(_context(tried, made, folder / "stage"))
    except Exception as cause:  # the plugin boundary
        result = cause
    finally:
        os.chdir(before)
    meant = frozenset(aside / getattr(made, name) for name in declared(made, "outputs"))
    strays = sorted(path.name for path in aside.iterdir() if path not in meant)
    return Ran(result, folder / "stage", strays, meant)


def _context(tried: Subject, made: Any, folder: Path) -> StageContext:
    folder.mkdir()
    inputs = {
        name: _inputs(tried, made, name, f)
        for name, f in tried.schema.fields.items()
        if f.ref is not None and getattr(made, name) is not None
    }
    return StageContext(
        stage="tiny",
        folder=folder,
        seed=0,
        inputs=inputs,
        resume_from=None,
        reporter=Silent(),
        should_stop=lambda: False,
        args=getattr(made, "args", {}),
    )


def _inputs(tried: Subject, made: Any, name: str, given: Field) -> Any:
    value = getattr(made, name)
    if is_list(given.type):
        return [_input(tried, made, name, given, item) for item in value]
    return _input(tried, made, name, given, value)


def _input(tried: Subject, made: Any, name: str, given: Field, value: Any) -> Any:
    """What a recipe would have resolved the reference to."""
    assert given.ref is not None
    match given.ref.kind:
        case "model":
            path = value if Path(value).is_dir() else str(tiny.model())  # `tiny:adapter` is a folder
            return ModelArtifact("tiny", path, {"dtype": "float32"})
        case "dataset":
            return _rows(made, name, value)
        case "reward":
            return ResolvedReward("text_length", text_length)
        case "strategy":
            return ResolvedStrategy("greedy", Greedy())
        case "adapter":
            from peft import LoraConfig

            return ResolvedAdapter("lora", LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        case _:
            return registry.import_object(value) if ":" in value else Path(value)


def _rows(made: Any, name: str, value: Any) -> Any:
    """The rows of `example_params`, else those of the first group of required columns that the kit has."""
    import datasets

    if isinstance(value, list):
        return datasets.Dataset.from_list(value)
    groups = (declared(made, "requires_columns") or {}).get(name, (("prompt",),))
    found = next((rows for group in groups if (rows := tiny.data(group)) is not None), None)
    if found is None:
        message = f"no tiny rows with {groups[0]}: give example_params = {{'{name}': [{{...}}, ...]}}"
        raise LookupError(message)
    return found
