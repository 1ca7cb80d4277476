"""Results of earlier versions are read, or what cannot be read is said: `report`, `RUN:STAGE`, and the plan.

`tests/format_1/store` was written by commit 7623765 from `tests/format_1/month.yaml`, below `/home/someone/runs`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import posttrain_plugins as pp
from posttrain_plugins import api
from posttrain_plugins.cli.commands import app
from posttrain_plugins.errors import InputError
from posttrain_plugins.recipe.plan import keys
from posttrain_plugins.recipe.plan.plan import Plan
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.recipe.run.ad_hoc import NameResolver
from posttrain_plugins.record import results
from posttrain_plugins.record.artifact import MANIFEST_FORMAT

BEFORE = Path(__file__).parent / "format_1"
STAGES = ("base", "sft", "pairs", "rm", "eval")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A runs folder as it was written then; it has been moved here from another place."""
    runs = tmp_path / "runs"
    shutil.copytree(BEFORE / "store", runs)
    latest = runs / "month/latest"
    latest.mkdir()
    for folder in (runs / "month").glob("*-*"):
        (latest / folder.name.rpartition("-")[0]).symlink_to(f"../{folder.name}")
    assert sorted(path.name for path in latest.iterdir()) == sorted(STAGES)
    return runs


def plan(runs: Path, **choice: Any) -> Plan:
    return api.plan(BEFORE / "month.yaml", runs_dir=runs, **choice)


def manifest(runs: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((runs / "month/latest" / stage / "manifest.json").read_text()))


def write_manifest(runs: Path, stage: str, **changes: Any) -> None:
    text = json.dumps({**manifest(runs, stage), **changes})
    (runs / "month/latest" / stage / "manifest.json").write_text(text)


# --- format 1 ---------------------------------------------------------------------------------------------------------


def test_the_fixture_is_of_format_1(runs: Path) -> None:
    assert [manifest(runs, stage)["format"] for stage in STAGES] == [1] * len(STAGES)
    assert not any("folder" in manifest(runs, stage) for stage in STAGES)


def test_report_reads_it(runs: Path) -> None:
    done = CliRunner().invoke(app, ["report", "month", "--runs-dir", str(runs), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["stages"]
    assert set(told) == set(STAGES)
    assert told["sft"]["model_path"] == str(runs / "month/sft-46bcc76b675c/model")
    assert told["sft"]["metrics"]["train_loss"] == 4.173735618591309
    assert set(told["eval"]["details"]["models"]) == {"base", "sft"}


def test_its_rows_are_those_of_then(runs: Path) -> None:
    base, sft, pairs, rm, figures = results.rows(Store(runs, "month").all_latest())
    zero = (0.0, 0.0, 0.0)
    assert (base.stage, base.sampled, base.remark) == ("base", zero, "loss 4.166")
    assert (sft.made_from, sft.seconds, sft.gain, sft.greedy) == ("base", 0.3772851059984532, zero, 0.0)
    assert (pairs.remark, rm.remark) == ("8 rows, 0% of problems solved", "loss 0.693")
    assert figures.made_from == "base, sft"


def test_a_model_of_run_and_stage_finds_its_base(runs: Path) -> None:
    found = NameResolver(runs).model("month:sft")
    assert found.path == str(runs / "month/sft-46bcc76b675c/model")
    config = json.loads((Path(found.path) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(runs / "month/base-e815ee2b6e0b/model")


def test_a_base_that_was_not_moved_stays_where_it_is(runs: Path, tmp_path: Path) -> None:
    base = tmp_path / "elsewhere/runs/month/base-e815ee2b6e0b/model"
    shutil.copytree(runs / "month/base-e815ee2b6e0b/model", base)
    config = runs / "month/sft-46bcc76b675c/model/adapter_config.json"
    config.write_text(config.read_text().replace("/home/someone/runs", str(tmp_path / "elsewhere/runs")))
    write_manifest(runs, "sft", handoff={"base": str(base)})
    before = config.read_text()
    NameResolver(runs).model("month:sft")
    assert config.read_text() == before


def test_a_reward_of_run_and_stage_is_named_as_a_recipe_would(runs: Path) -> None:
    made = runs / "month/rm-7fb815c8c2e1"
    written = NameResolver(runs).as_written("reward", "month:rm")
    assert written == {"use": "reward_model", "model_name_or_path": str(made / "model")}
    config = json.loads((made / "model/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(made / "merged")


def test_its_model_is_evaluated(runs: Path) -> None:
    planned = api.plan_evaluation(
        "month:sft", dataset="digit_chain(size=2)", rewards=["month:rm"], strategies=["greedy"], runs_dir=runs
    )
    assert planned["evaluate"].must_run


@pytest.mark.slow
def test_its_model_answers_and_its_reward_scores(runs: Path) -> None:
    backend = pp.backend("month:sft", runs_dir=runs)
    (result,) = pp.solve("best_of_n(n=2, scorer='month:rm')", ["1>2"], backend=backend, runs_dir=runs)
    assert all(isinstance(candidate.score, float) for candidate in result.candidates)


def test_the_plan_says_why_all_is_made_again(runs: Path) -> None:
    planned = plan(runs)
    assert all(stage.must_run for stage in planned.stages)
    said, *others = planned["base"].reasons
    assert said == "keys have another format (1 -> 2), so what stands is made again once"
    assert "source changed" in others
    assert planned["sft"].reasons == ("'base' runs",)


def test_what_differs_beside_the_format_is_said(runs: Path) -> None:
    parts = {**plan(runs)["base"].parts, "seed": "8"}
    del parts["key format"]
    write_manifest(runs, "base", parts=parts)
    assert plan(runs)["base"].reasons[1:] == ("seed: 8 -> 3",)


# --- formats to come --------------------------------------------------------------------------------------------------


@pytest.fixture
def newer(runs: Path) -> Mapping[str, Any]:
    """The base as a later version may write it."""
    change = {"format": MANIFEST_FORMAT + 1, "versions": {"posttrain-plugins": "9.9"}}
    write_manifest(runs, "base", **change)
    return change


def said(runs: Path, name: str) -> str:
    return (
        f"{runs}/month/{name}/manifest.json has format {MANIFEST_FORMAT + 1}, expected at most {MANIFEST_FORMAT}: "
        "posttrain-plugins 9.9 wrote it"
    )


def test_report_says_what_it_cannot_read(runs: Path, newer: Mapping[str, Any]) -> None:
    done = CliRunner().invoke(app, ["report", "month", "--runs-dir", str(runs)])
    assert isinstance(done.exception, InputError)
    assert done.exception.message == said(runs, "latest/base")
    assert done.exception.hint == "pip install --upgrade posttrain-plugins, or make it again by --force STAGE"


def test_a_name_says_what_it_cannot_read(runs: Path, newer: Mapping[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        NameResolver(runs).model("month:base")
    assert caught.value.message == said(runs, "latest/base")


def test_the_plan_says_what_it_cannot_read(runs: Path, newer: Mapping[str, Any]) -> None:
    assert plan(runs)["base"].reasons == (said(runs, "latest/base"),)


def test_a_result_of_the_same_key_is_not_overwritten_without_force(runs: Path, newer: Mapping[str, Any]) -> None:
    key = plan(runs)["base"].key
    folder = Store(runs, "month").path("base", key)
    shutil.copytree((runs / "month/latest/base").resolve(), folder)
    (folder / "manifest.json").write_text(json.dumps({**newer, "key": key}))
    with pytest.raises(InputError) as caught:
        plan(runs)
    assert caught.value.message == said(runs, folder.name)
    assert plan(runs, force=["base"])["base"].reasons == ("forced",)


@pytest.mark.parametrize("text", ["[]", "3", "null", '{"format": 2}'])
def test_a_file_that_is_no_manifest_is_no_result(runs: Path, text: str) -> None:
    (runs / "month/latest/base/manifest.json").write_text(text)
    assert Store(runs, "month").latest("base") is None


# --- the key's format ---------------------------------------------------------------------------------------------


def test_every_key_has_a_format(runs: Path) -> None:
    assert {stage.parts["key format"] for stage in plan(runs).stages} == {keys.KEY_FORMAT}


def test_another_format_changes_every_key(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage.id: stage.key for stage in plan(runs).stages}
    monkeypatch.setattr(keys, "KEY_FORMAT", "3")
    after = {stage.id: stage.key for stage in plan(runs).stages}
    assert all(before[id] != after[id] for id in before)
