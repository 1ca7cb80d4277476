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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import SkipTest

from posttrain_plugins.errors import PLUGIN_FAILURES
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.plugins.schema import is_list
from posttrain_plugins.plugins.source import of_config
from posttrain_plugins.recipe.check.loops import PRODUCTS
from posttrain_plugins.testing import tiny
from posttrain_plugins.testing.subject import Subject, fail_on_error, skip_on_error, subject
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

__all__ = ["CHECKS", "RUNNING", "StageUnderTest"]

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
"""What makes any TRL config small, where the class has the field."""
OWN_SMALL = {"num_generations": 2, "max_tokens": 6}
"""What makes a stage small that has such a field of its own."""


@dataclass(frozen=True)
class StageRun:
    """One run of a stage.

    Args:
        result: what it returned, or the exception that it raised.
        folder: its `context.folder`.
        strays: what else appeared in the working directory.
        meant: the folders that its `outputs` name.
    """

    result: Any
    folder: Path
    strays: tuple[str, ...]
    meant: frozenset[Path]

    def absolute(self, path: Path | None) -> Path | None:
        """Return a path of its result as an absolute one."""
        # resolved, as `folder` is: a temporary folder may lie behind a symbolic link
        return None if path is None else (self.folder / path).resolve()


class StageUnderTest:
    """A stage with small parameters, and one run of it.

    Args:
        stage: what a check was given.

    Raises:
        SkipTest: it is no dataclass, which `check_references_are_annotated` tells.
    """

    def __init__(self, stage: Any) -> None:
        self.subject = subject("stage", stage)
        if not dataclasses.is_dataclass(self.subject.source):
            raise SkipTest("it is no dataclass")

    def made(self) -> Any:
        """Return the stage with small parameters; `example_params` have the last word.

        Raises:
            SkipTest: it cannot be made.
        """
        if not isinstance(self.subject.definition, type):
            return self.subject.definition
        fields, given = self.subject.schema.fields, self.subject.params
        small: dict[str, Any] = {k: v for k, v in OWN_SMALL.items() if k in fields and k not in given}
        for name, config in ((name, one.config) for name, one in fields.items() if one.config is not None):
            with skip_on_error("its args have no class"):  # `check_args_have_a_class` tells it
                known = of_config(config.target).fields
            small[name] = {**{k: v for k, v in SMALL.items() if k in known}, **given.get(name, {})}
        return self.subject.make(**small)

    def run(self) -> StageRun:
        """Return its one run, which all checks of this subject share."""
        return _run(self.subject)

    def finished(self) -> tuple[StageRun, StageResult]:
        """Return its run and what that returned.

        Raises:
            SkipTest: it returned nothing, which `check_runs_one_step` tells.
        """
        ran = self.run()
        if not isinstance(ran.result, StageResult):
            raise SkipTest("it does not run")
        return ran, ran.result


def check_references_are_annotated(stage: Any) -> None:
    """It is a dataclass, and a field that names a model, data, rewards or an adapter is annotated as a reference.

    The annotations (`ModelRef`, `DataRef` ...) are the edges of the plan: with `model: str` the stage would run before
    the model is there, and its key would not change with it.
    """
    source = subject("stage", stage).source
    assert dataclasses.is_dataclass(source), "it is no dataclass"
    fields = subject("stage", stage).schema.fields
    # by the names that all stages of ours use: nothing else tells `model: str` from a parameter
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
    tried = StageUnderTest(stage)
    columns = declared(tried.made(), "requires_columns")  # of the object, where its parameters decide
    columns = {} if columns is None else columns
    data = {name for name, f in tried.subject.schema.fields.items() if f.ref is not None and f.ref.kind == "dataset"}
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
    made = StageUnderTest(stage).made()
    with fail_on_error("it cannot be pickled:"):
        pickle.loads(pickle.dumps(made))


def check_runs_one_step(stage: Any) -> None:
    """Called with its context it returns a `StageResult`.

    One step on a tiny model costs a second, and is the first thing to do before a night on a large one.
    """
    result = StageUnderTest(stage).run().result
    if isinstance(result, Exception):
        raise AssertionError(f"it raised {type(result).__name__}: {result}") from result
    assert isinstance(result, StageResult), f"it returned {type(result).__name__}, expected a StageResult"


def check_makes_what_it_says(stage: Any) -> None:
    """What it says that it produces is there: a model's folder, a JSONL file, figures.

    The next stage loads it from there, perhaps hours later.
    """
    tried = StageUnderTest(stage)
    ran, result = tried.finished()
    made = tried.subject.declares("produces")
    if made in ("model", "reward"):
        path = ran.absolute(result.model_path)
        # `config.json` of a model, `adapter_config.json` of an adapter
        has_model = path is not None and any(path.glob("*config.json"))
        assert has_model, f"it produces a {made}, but model_path is {result.model_path} and holds none"
    if made == "dataset":
        path = ran.absolute(result.data_path)
        # no `splitlines`: it cuts at U+2028 too, which JSON leaves as it is within a completion
        lines = path.read_text(encoding="utf-8").split("\n") if path is not None and path.is_file() else None
        assert lines is not None, f"it produces a dataset, but data_path is {result.data_path}"
        rows = [json.loads(line) for line in lines if line.strip()]
        assert all(isinstance(row, dict) for row in rows), "a line of data_path is no JSON object"
    if made == "figures":
        assert result.metrics or result.details, "it produces figures, but there are none"


def check_writes_into_its_folder(stage: Any) -> None:
    """What it made lies below `context.folder`, and the working directory is as it was.

    That folder becomes the artifact by one rename; what lies elsewhere is lost, or in the way of another run.
    """
    ran, result = StageUnderTest(stage).finished()
    assert not ran.strays, f"it wrote {', '.join(ran.strays)} into the working directory"
    for path in (result.model_path, result.data_path):
        made = ran.absolute(path)
        is_meant = made is not None and made in ran.meant
        assert made is None or is_meant or made.is_relative_to(ran.folder), f"{path} is not below context.folder"


def check_figures_are_numbers(stage: Any) -> None:
    """`metrics` are numbers by name, and `details` JSON values.

    They go into the manifest and the report; a tensor there fails after the training is done.
    """
    _, result = StageUnderTest(stage).finished()
    for name, value in result.metrics.items():
        is_number = isinstance(value, int | float)
        assert is_number, f"metrics['{name}'] is {type(value).__name__}, expected a number"
    try:
        json.dumps(result.details)
    except (TypeError, ValueError) as cause:
        raise AssertionError(f"details are no JSON: {cause}") from cause


# in the order of this file, in which they run; found by name, so that none is forgotten
CHECKS: tuple[Callable[[Any], None], ...] = tuple(one for name, one in globals().items() if name.startswith("check_"))

RUNNING = (check_runs_one_step, check_makes_what_it_says, check_writes_into_its_folder, check_figures_are_numbers)
"""Those that run the stage; the run is shared."""


# --- the run ---------------------------------------------------------------------------------------------------------


class QuietReporter:
    """A reporter that shows nothing."""

    def progress(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        """Show nothing."""

    def note(self, message: str) -> None:
        """Show nothing."""


@dataclass
class OneAnswer:
    """A strategy that asks once."""

    def __call__(self, problem: Any) -> Any:
        from posttrain_plugins.text.answers import candidates, choose

        among = candidates((yield Generate(problem.prompt, params=problem.params)))
        return choose(among, 0 if among else None)


def text_length(completions: list[Any], **columns: Any) -> list[float]:
    """Score each completion by its length: the reward that stages are tried with."""
    # it tells most completions apart: where all of a group are equal, GRPO and RLOO have no gradient
    return [float(len(to_text(completion))) for completion in completions]


@functools.cache
def _run(tried: Subject) -> StageRun:
    folder = Path(tempfile.mkdtemp(prefix="stage-", dir=tiny.folder())).resolve()  # goes with the process
    elsewhere, own = folder / "elsewhere", folder / "stage"
    elsewhere.mkdir()
    own.mkdir()
    made = StageUnderTest(tried).made()
    before = Path.cwd()
    os.chdir(elsewhere)  # an empty one, in which every file that appears is a stray
    try:
        inputs: dict[str, Any] = {}
        for name, given in tried.schema.fields.items():
            if given.ref is not None and (value := getattr(made, name)) is not None:
                values = [
                    _input(made, name, given.ref.kind, one) for one in (value if is_list(given.type) else [value])
                ]
                inputs[name] = values if is_list(given.type) else values[0]
        args = getattr(made, "args", {})  # as the recipe gives them, no config yet
        result = made(StageContext("tiny", own, 0, inputs, None, QuietReporter(), lambda: False, args))
    except PLUGIN_FAILURES as cause:  # the plugin boundary
        result = cause
    finally:
        os.chdir(before)
    meant = frozenset(elsewhere / getattr(made, name) for name in declared(made, "outputs"))
    strays = tuple(sorted(path.name for path in elsewhere.iterdir() if path not in meant))
    return StageRun(result, own, strays, meant)


def _input(made: Any, name: str, kind: str, value: Any) -> Any:
    """Return what a recipe would have resolved one reference of a field to."""
    match kind:
        case "model":
            path = value if Path(value).is_dir() else str(tiny.model())  # `tiny:adapter` is a folder
            return ModelArtifact("tiny", path, {"dtype": "float32"})  # as it was saved
        case "dataset" if isinstance(value, list):  # rows of `example_params`
            from datasets import Dataset

            return Dataset.from_list(value)
        case "dataset":
            # any of the groups will do; the first of which the kit has rows is as good as another
            groups = (declared(made, "requires_columns") or {}).get(name, (("prompt",),))
            found = next((rows for group in groups if (rows := tiny.data(group)) is not None), None)
            if found is None:
                message = f"no tiny rows with {groups[0]}: give example_params = {{'{name}': [{{...}}, ...]}}"
                raise LookupError(message)
            return found
        case "reward":
            return ResolvedReward("text_length", text_length)
        case "strategy":
            return ResolvedStrategy("greedy", OneAnswer())
        case "adapter" | "critic":
            from peft import LoraConfig

            return ResolvedAdapter("lora", LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        case _:
            return registry.import_object(value) if ":" in value else Path(value)
