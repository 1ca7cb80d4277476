"""The checks on stages against stages with one fault each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from planted import Planted

from posttrain_plugins.types import DataRef, StageContext, StageResult

PLANTED = Planted("stage")


@dataclass
class Copying:
    """Writes its data again."""

    dataset: DataRef
    produces: ClassVar[str] = "dataset"
    requires_columns: ClassVar[Any] = {"dataset": (("prompt",),)}

    def __call__(self, context: StageContext) -> Any:
        file = context.folder / "rows.jsonl"
        context.inputs["dataset"].to_json(str(file))
        return StageResult(metrics={"rows": float(len(context.inputs["dataset"]))}, data_path=file)


@PLANTED.fails("check_references_are_annotated")
@dataclass
class Loose(Copying):
    """Names its model by a text."""

    model: str = "base"


@PLANTED.fails("check_says_what_it_produces")
@dataclass
class Vague(Copying):
    """Makes rows."""

    produces: ClassVar[str] = "rows"


@PLANTED.fails("check_args_have_a_class")
@dataclass
class Optional(Copying):
    """Takes any options."""

    args: dict[str, Any] = field(default_factory=dict)


@PLANTED.fails("check_columns_belong_to_its_data")
@dataclass
class Elsewhere(Copying):
    """Needs columns of a field that it does not have."""

    requires_columns: ClassVar[Any] = {"dataset": (("prompt",),), "data": (("prompt",),)}


@PLANTED.fails("check_picklable")
@dataclass
class Holding(Copying):
    """Holds a lambda."""

    key: Any = field(default_factory=lambda: lambda row: row)


@PLANTED.fails("check_runs_one_step")
@dataclass
class Stumbling(Copying):
    """Reads a column that it does not ask for."""

    def __call__(self, context: StageContext) -> Any:
        return context.inputs["dataset"]["no_such_column"]


@PLANTED.fails("check_makes_what_it_says")
@dataclass
class Forgetting(Copying):
    """Says nothing of its file."""

    def __call__(self, context: StageContext) -> Any:
        return replace(super().__call__(context), data_path=None)


@PLANTED.fails("check_writes_into_its_folder")
@dataclass
class Littering(Copying):
    """Leaves a file in the working directory."""

    def __call__(self, context: StageContext) -> Any:
        Path("notes.txt").write_text("done", encoding="utf-8")
        return super().__call__(context)


@PLANTED.fails("check_figures_are_numbers")
@dataclass
class Wordy(Copying):
    """Reports in words."""

    def __call__(self, context: StageContext) -> Any:
        return replace(super().__call__(context), metrics={"rows": "many"})


@pytest.mark.parametrize("check", PLANTED.plugins)
def test_a_planted_fault_fails_its_check_and_no_other(check: str) -> None:
    PLANTED.assert_fails_alone(check)


def test_every_check_has_a_planted_fault() -> None:
    PLANTED.assert_every_check_has_one()


def test_a_sound_plugin_passes() -> None:
    PLANTED.assert_passes(Copying)
