"""`posttrain report`: one run's tables and page, two runs compared, for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import Made, make
from typer.testing import CliRunner

from posttrain_plugins.cli.commands import app


def call(*words: object) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, words)])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make(tmp_path / "a")
    make(tmp_path / "b", Made(beta=0.5, scores={"base": [0.0] * 20, "sft": [1.0] * 8 + [0.0] * 12, "grpo": [0.0] * 20}))
    return tmp_path


def test_the_tables_are_printed_and_nothing_is_written(runs: Path) -> None:
    before = sorted(runs.rglob("*"))
    done = call("a", "--runs-dir", runs)
    assert done.exit_code == 0
    assert "0.900" in done.stdout
    assert "no page yet: posttrain report a --html report.html" in done.stderr
    assert sorted(runs.rglob("*")) == before


def test_the_page_is_written_where_it_is_asked_for_and_is_told(runs: Path) -> None:
    file = runs / "new folder/page.html"
    done = call("a", "--runs-dir", runs, "--html", file)
    assert f"page: {file}" in done.stderr
    assert file.read_text().startswith("<!doctype html>")
    (runs / "a/report.html").write_text("x")
    assert f"page: {runs / 'a/report.html'}" in call("a", "--runs-dir", runs).stderr


def test_json_is_whole_and_alone_on_stdout(runs: Path) -> None:
    found = json.loads(call("a", "--runs-dir", runs, "--json").stdout)
    assert found["recipe"] == "a"
    assert Path(found["stages"]["grpo"]["folder"]).is_dir()
    assert [row["stage"] for row in found["rows"]] == ["base", "sft", "grpo", "eval"]


def test_two_runs_are_compared_for_people(runs: Path) -> None:
    done = call("a", "b", "--runs-dir", runs)
    assert done.exit_code == 0
    first, *_ = done.stdout.splitlines()
    assert first.startswith("One line differs: stages.grpo.args.beta: 0.1 → 0.5. grpo is worse, -0.900")
    assert "made from another grpo" in done.stdout
    assert "no difference" in done.stdout


def test_two_runs_are_compared_for_programs_and_as_a_page(runs: Path) -> None:
    file = runs / "both.html"
    done = call(runs / "a", runs / "b", "--json", "--html", file)
    found = json.loads(done.stdout)
    assert [change["path"] for change in found["recipe"]] == ["stages.grpo.args.beta"]
    (grpo,) = [one for one in found["results"] if (one["model"], one["way"]) == ("grpo", "greedy")]
    assert len(grpo["broken"]) == 18
    assert "On the same problems" in file.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "no run 'nothing' below"),
        (["a", "nothing"], "no run 'nothing' below"),
        (["a", "b", "a"], "3 runs are named"),
        (["a", "--html", "/proc/x/page.html"], "the page cannot be written"),
    ],
)
def test_what_cannot_be_read_or_written_is_told_with_a_hint(runs: Path, words: list[str], message: str) -> None:
    done = call(*words, "--runs-dir", runs)
    assert done.exit_code != 0
    assert message in str(done.exception)
    assert done.exception.hint
