"""The documentation cannot rot: references are what the source gives, recipes are valid, commands and links exist."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from posttrain_plugins import types
from posttrain_plugins.cli.commands import app
from posttrain_plugins.plugins import registry
from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.read.document import load
from posttrain_plugins.types import KINDS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (
    *("recipes", "datasets", "plugins", "rewards", "strategies", "adapters", "stages", "scaling", "faq"),
    *("first_plugin", "api", "tools", "watching", "real_models"),
)


def blocks(language: str) -> list[Any]:
    found = [
        pytest.param(block, id=f"{file.stem}-{i}")
        for file in sorted(DOCS.glob("*.md"))
        for i, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", file.read_text("utf-8"), re.M | re.S))
    ]
    assert found
    return found


def test_every_page_is_there() -> None:
    assert {*PAGES} <= {file.stem for file in DOCS.glob("*.md")}


def test_the_references_are_what_the_source_gives() -> None:
    done = subprocess.run([sys.executable, str(DOCS / "build.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_stale_reference_is_found_and_mended(load_script: Any) -> None:
    build = load_script(DOCS / "build.py")
    text = (DOCS / "rewards.md").read_text(encoding="utf-8")
    stale = text.replace("up to here a completion scores 1.0.", "up to there.")
    assert stale != text
    assert build.render(stale) == text
    assert build.render(text) == text


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_plugin_has_a_section(kind: Any) -> None:
    text = (DOCS / f"{registry.PLURAL[kind]}.md").read_text(encoding="utf-8")
    ours = [p.name for p in registry.installed(kind) if p.distribution == "posttrain-plugins"]
    assert [name for name in ours if f"\n### `{name}`\n" not in text] == []


def test_every_field_of_what_plugins_are_given_is_explained() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^### |\Z)", text, re.M | re.S))
    named = {*("StageContext", "StageResult", "Generate", "Score", "ScoreSteps", "CallTool", "Completion", "Candidate")}
    named |= {*("Result", "Problem", "SamplingParams", "Budget", "Usage", "ModelArtifact")}
    assert sections.keys() >= named | {"ResolvedReward", "ResolvedAdapter", "ResolvedStrategy"}
    for name, section in sections.items():
        rows = re.findall(r"^\| `(\w+)` \| `.+` \| .+ \| (.*) \|$", section, re.M)
        assert [row[0] for row in rows] == [field.name for field in dataclasses.fields(getattr(types, name))]
        assert all(row[1] for row in rows), name


def test_every_reserved_word_is_explained() -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8").split("<!-- reference:reserved -->")[1]
    rows = re.findall(r"^\| (\w+) \| `(.+?)` \| .* \| (.*) \|$", text.split("<!-- /reference -->")[0], re.M)
    assert {("dataset", "data_files"), ("loop", "repeat"), ("loop", "${prev}")} <= {row[:2] for row in rows}
    assert [row for row in rows if not row[2].strip()] == []


def test_every_type_of_file_that_counts_as_data_can_be_read_and_is_told() -> None:
    from posttrain_plugins.recipe import files
    from posttrain_plugins.recipe.run import data
    from posttrain_plugins.rows.read import TEXT_SUFFIXES

    told = (DOCS / "datasets.md").read_text(encoding="utf-8")
    assert set(data.LOADERS) | TEXT_SUFFIXES == files.SUFFIXES == set(re.findall(r"`x(\.\w+)`", told))


def test_every_strategy_is_measured_or_said_not_to_be() -> None:
    text = (DOCS / "strategies.md").read_text(encoding="utf-8")
    table = text.split("<!-- results:test_time -->")[1].split("<!-- /results -->")[0]
    measured = set(re.findall(r"^\| `(\w+)", table, re.M))
    unmeasured = set(re.findall(r"`(\w+)`", text.split("Not measured there:")[1].partition(". They")[0]))
    ours = {p.name for p in registry.installed("strategy") if p.distribution == "posttrain-plugins"}
    assert unmeasured <= ours <= measured | unmeasured
    assert not measured & unmeasured


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_recipe_is_valid(block: str, tmp_path: Path) -> None:
    data = yaml.safe_load(block)
    if not data or "model" not in data or "stages" not in data:
        pytest.skip("a part of a recipe")
    file = tmp_path / "recipe.yaml"
    file.write_text(block, encoding="utf-8")
    assert check(load(file)).stages


@pytest.mark.parametrize("block", blocks("python"))
def test_python_compiles_and_names_what_exists(block: str) -> None:
    compile(block, "docs", "exec")
    for module, names in re.findall(r"^from (posttrain_plugins[\w.]*) import (.+)$", block, re.M):
        found = importlib.import_module(module)
        assert all(hasattr(found, name.strip()) for name in names.split(",")), block


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands_and_options_exist(block: str) -> None:
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["posttrain"]:
            continue
        command, rest = typer.main.get_command(app), words[1:]
        while hasattr(command, "commands"):
            assert rest[0] in command.commands, line
            command, rest = command.commands[rest[0]], rest[1:]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known, line


def test_links_lead_somewhere() -> None:
    count = 0
    for file in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", file.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (file.parent / target).exists(), f"{file.name}: {target}"
                count += 1
    assert count >= 2
