"""`posttrain schema`: every packaged recipe is valid by it, and each planted mistake is not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from posttrain_plugins.cli.commands import app
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.schema import accepts
from posttrain_plugins.recipe.check.check import TOP_LEVEL
from posttrain_plugins.recipe.describe.json_schema import recipe_schema, schema_of
from posttrain_plugins.recipe.read import document
from posttrain_plugins.recipe.read.packaged import packaged_recipes
from posttrain_plugins.types import KINDS

ROOT = Path(__file__).parent.parent
RECIPE: dict[str, Any] = {
    "name": "mine",
    "seed": 7,
    "model": {"model_name_or_path": "Qwen/Qwen3-0.6B", "load_in_4bit": True, "dtype": "bfloat16"},
    "adapters": {"policy": {"use": "lora", "r": 16, "lora_alpha": 32}},
    "datasets": {
        "demos": {"path": "data/demos.jsonl"},
        "problems": {"use": "digit_chain", "size": 100, "limit": 10},
    },
    "rewards": {"correct": "exact_answer", "format": {"use": "regex", "pattern": "a", "weight": 0.2}},
    "stages": {
        "sft": {
            "use": "sft",
            "model": "base",
            "dataset": "demos",
            "adapter": "policy",
            "args": {"learning_rate": 2e-4},
        },
        "grpo": {"use": "grpo", "model": "sft", "dataset": "problems", "rewards": ["correct", "format"]},
        "again": {
            "repeat": 2,
            "init": "sft",
            "stages": {"t": {"use": "sft", "model": "${prev}", "dataset": {"path": "x.jsonl"}}},
        },
        "eval": {
            "use": "evaluate",
            "models": ["sft", "grpo"],
            "dataset": "problems",
            "rewards": ["correct"],
            "strategies": ["greedy", {"use": "best_of_n", "n": 8, "scorer": "correct"}],
        },
    },
}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(json.dumps(recipe_schema()))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def test_every_packaged_recipe_is_valid(validator: Draft202012Validator) -> None:
    files = {*packaged_recipes().values(), *(ROOT / "recipes").rglob("*.yaml")}
    assert len(files) >= 10
    for file in sorted(files):
        written = document._read(file).data  # as an editor sees it: before what it extends
        errors = [f"{list(e.absolute_path)}: {e.message}" for e in validator.iter_errors(written)]
        assert errors == [], file


def test_the_recipe_above_is_valid(validator: Draft202012Validator) -> None:
    assert [e.message for e in validator.iter_errors(RECIPE)] == []
    extended = {"extends": "other.yaml", "stages": {"sft": {"args": {"max_steps": 3}}}}
    assert validator.is_valid(extended)


def at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Plants a value; `...` takes the key out."""

    def plant(recipe: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for key in parents:
            recipe = recipe[key]
        if value is ...:
            del recipe[last]
        else:
            recipe[last] = value

    return plant


MISTAKES: dict[str, Callable[[dict[str, Any]], None]] = {
    "unknown section": at("stage", {}),
    "seed is text": at("seed", "7"),
    "unknown field of the model": at("model/load_in_3bit", True),
    "PEFT in the model": at("model/use_peft", True),
    "model without a name": at("model/model_name_or_path", ...),
    "model made by a stage that makes none": at("model", {"use": "evaluate"}),
    "unknown adapter": at("adapters/policy/use", "lorra"),
    "unknown PEFT option": at("adapters/policy/rank", 4),
    "PEFT option of another type": at("adapters/policy/r", "sixteen"),
    "unknown data set": at("datasets/problems/use", "digit_chains"),
    "parameter of another choice": at("datasets/problems/split", "dev"),
    "parameter of another type": at("datasets/problems/size", 1.5),
    "data option misspelt": at("datasets/demos/limits", 3),
    "neither plugin nor file": at("datasets/demos", {"limit": 3}),
    "unknown reward parameter": at("rewards/format/patern", "a"),
    "required parameter missing": at("rewards/format/pattern", ...),
    "weight is text": at("rewards/format/weight", "high"),
    "unknown stage plugin": at("stages/sft/use", "sftt"),
    "stage without use": at("stages/sft/use", ...),
    "required reference missing": at("stages/grpo/rewards", ...),
    "one reward where a list belongs": at("stages/grpo/rewards", "correct"),
    "unknown field of a stage": at("stages/grpo/datset", "problems"),
    "unknown TRL option": at("stages/sft/args/learning_rat", 1e-4),
    "TRL option of another type": at("stages/sft/args/learning_rate", "fast"),
    "TRL option that is ours": at("stages/sft/args/output_dir", "out"),
    "strategy parameter of another type": at("stages/eval/strategies", [{"use": "best_of_n", "n": "8"}]),
    "unknown strategy": at("stages/eval/strategies", [{"use": "best_of_m"}]),
    "loop repeats never": at("stages/again/repeat", 0),
    "unknown key of a loop": at("stages/again/repeats", 2),
    "mistake inside a loop": at("stages/again/stages/t/args", {"max_step": 1}),
    "a list for a stage": at("stages/sft", ["sft"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_caught(validator: Draft202012Validator, mistake: str) -> None:
    recipe = copy.deepcopy(RECIPE)
    MISTAKES[mistake](recipe)
    assert not validator.is_valid(recipe)


def test_it_knows_every_section_and_every_plugin() -> None:
    schema = recipe_schema()
    assert set(schema["properties"]) == {*TOP_LEVEL, "extends"}
    for kind in KINDS:
        for plugin in registry.installed(kind):
            defined = schema["$defs"][f"{kind}.{plugin.name}"]
            assert defined["properties"]["use"] == {"const": plugin.name}
            assert defined["description"], plugin
    assert "Args" not in json.dumps(schema["$defs"]["stage.sft"])
    assert schema["$defs"]["reward.length"]["properties"]["max_chars"] == {
        "description": "up to here a completion scores 1.0.",
        "default": 800,
        "type": "integer",
    }


VALUES = [None, True, 1, 1.5, "a", [], [1], ["a"], [1, "a"], {}, {"a": 1}, {"a": "b"}]


@pytest.mark.parametrize(
    "annotation",
    [
        int, float, str, bool, None, Any, int | None, list[int], list[str] | None, dict[str, int], dict,
        Literal["a", 1], tuple[int, ...], str | list[str] | dict[str, str],
    ],
    ids=str,
)  # fmt: skip
def test_a_type_takes_what_validate_takes(annotation: Any) -> None:
    validator = Draft202012Validator(schema_of(annotation))
    assert [validator.is_valid(v) for v in VALUES] == [accepts(annotation, v) for v in VALUES]


def test_the_command_writes_a_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.schema.json"
    done = CliRunner().invoke(app, ["schema", "--out", str(file)])
    assert done.exit_code == 0, done.output
    assert "yaml-language-server: $schema=" in done.stderr
    assert json.loads(file.read_text("utf-8")) == json.loads(CliRunner().invoke(app, ["schema"]).stdout)
