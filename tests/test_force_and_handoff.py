"""What a forced, an interrupted or a half-removed run leaves behind, told with stages that only write files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import HandoffError, InputError, Interrupted
from posttrain_plugins.recipe.plan import keys
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.recipe.spec import option_path

STAGES = '''
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from posttrain_plugins.checkpoints import mark_complete
from posttrain_plugins.errors import HandoffError, InputError, Interrupted
from posttrain_plugins.types import DataRef, StageContext, StageResult


@dataclass
class Rows:
    """Writes one row; counts in a file how often it ran; does what the file `{folder}/do` says."""

    folder: str
    dataset: DataRef | None = None
    outputs: ClassVar[tuple[str, ...]] = ("folder",)
    produces: ClassVar[str] = "dataset"
    columns: ClassVar[tuple[str, ...]] = ("prompt",)

    def __call__(self, context: StageContext) -> StageResult:
        with (Path(self.folder) / "ran").open("a") as ran:
            ran.write(context.stage + " ")
        do = Path(self.folder) / "do"
        what = do.read_text() if do.exists() else ""
        if what == "interrupt " + context.stage:
            checkpoint = context.folder / "checkpoints" / "checkpoint-1"
            checkpoint.mkdir(parents=True, exist_ok=True)
            mark_complete(checkpoint)
            raise Interrupted("stopped")
        if what == "quota " + context.stage:
            (context.folder / "log.jsonl").write_text('{"key": "a"}\\n')
            raise InputError("the judge's quota is used up")
        if what == "handoff " + context.stage:
            (context.folder / "model").mkdir()
            raise HandoffError("changed")
        (context.folder / "data.jsonl").write_text('{"prompt": "x"}\\n')
        metrics = {"good": 1.0, "bad": float("nan")}
        return StageResult(metrics=metrics, data_path=context.folder / "data.jsonl")
'''


@pytest.fixture
def recipe(tmp_path: Path, write_recipe: Callable[..., Path]) -> Path:
    (tmp_path / "stages.py").write_text(STAGES)
    return write_recipe(
        """
        stages:
          a: {use: "./stages.py:Rows", folder: {folder}}
          b: {use: "./stages.py:Rows", folder: {folder}, dataset: a}
          c: {use: "./stages.py:Rows", folder: {folder}, dataset: b}
        """,
        folder=tmp_path,
    )


class Resumes(Observer):
    def __init__(self) -> None:
        self.from_checkpoint: dict[str, bool] = {}

    def started(self, stage: Any, resumes_from: Path | None) -> None:
        self.from_checkpoint[stage.id] = resumes_from is not None


def ran(tmp_path: Path) -> list[str]:
    file = tmp_path / "ran"
    stages = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return stages


def test_a_forced_stage_that_was_interrupted_goes_on_without_force(recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    pp.run(recipe, runs_dir=runs)
    ran(tmp_path)
    (tmp_path / "do").write_text("interrupt b")
    with pytest.raises(Interrupted):
        pp.run(recipe, runs_dir=runs, force=["b"])
    assert ran(tmp_path) == ["b"]
    (tmp_path / "do").unlink()
    seen = Resumes()
    pp.run(recipe, runs_dir=runs, observer=seen)
    assert ran(tmp_path) == ["b", "c"], "and what was made from the old b is made again"
    assert seen.from_checkpoint == {"b": True, "c": False}


def test_what_was_answered_stays_when_a_service_refuses_in_the_middle(recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (tmp_path / "do").write_text("quota b")
    with pytest.raises(InputError, match="quota"):
        pp.run(recipe, runs_dir=runs)
    (log,) = runs.glob("*/.b-*.partial/log.jsonl")
    assert log.read_text() == '{"key": "a"}\n'


def test_a_forced_stage_takes_its_descendants_with_it_even_when_it_alone_was_finished(
    recipe: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    pp.run(recipe, runs_dir=runs)
    ran(tmp_path)
    (tmp_path / "do").write_text("interrupt c")
    with pytest.raises(Interrupted):
        pp.run(recipe, runs_dir=runs, force=["b"])
    assert ran(tmp_path) == ["b", "c"]
    plan = pp.plan(recipe, runs_dir=runs)
    assert [stage.id for stage in plan.stages if stage.must_run] == ["c"]


@pytest.mark.parametrize("choice", [{"only": ["c"], "until": "b"}, {"only": ["c"], "force": ["b"]}])
def test_choices_that_contradict_each_other_are_refused(recipe: Path, tmp_path: Path, choice: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        pp.plan(recipe, runs_dir=tmp_path / "runs", **choice)
    assert caught.value.hint


def test_a_model_whose_handoff_is_refused_is_kept_for_its_owner(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "do").write_text("handoff b")
    with pytest.raises(HandoffError):
        pp.run(recipe, runs_dir=tmp_path / "runs")
    assert list((tmp_path / "runs" / "recipe").glob(".b-*.partial/model"))
    assert not list((tmp_path / "runs" / "recipe").glob("b-*"))


def test_metrics_that_are_no_number_do_not_reach_the_manifest(recipe: Path, tmp_path: Path) -> None:
    run = pp.run(recipe, runs_dir=tmp_path / "runs", until="a")
    assert run["a"].metrics == {"good": 1.0}
    assert "NaN" not in (run["a"].folder / "manifest.json").read_text()


def test_publish_over_an_existing_folder_leaves_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path, "r")
    store.prepare()
    key = "k" * 64
    for content in ("first", "second"):
        with store.locked("s", key) as partial:
            (partial / "file").write_text(content)
            artifact = store.publish("s", key, {"stage": "s", "key": key, "metrics": {}, "details": {}})
    assert (artifact.folder / "file").read_text() == "second"
    assert sorted(p.name for p in store.folder.iterdir() if p.suffix != ".lock") == ["latest", f"s-{key[:12]}"]


def test_an_adapter_below_a_folder_with_an_accent_finds_its_base(tmp_path: Path) -> None:
    store = Store(tmp_path / "josé", "r")
    store.prepare()
    key = "k" * 64
    with store.locked("s", key) as partial:
        (partial / "model").mkdir()
        config = partial / "model" / "adapter_config.json"
        config.write_text(json.dumps({"base_model_name_or_path": str(partial / "merged"), "r": 4}))
        artifact = store.publish("s", key, {"stage": "s", "key": key, "metrics": {}, "details": {}})
    found = json.loads((artifact.folder / "model" / "adapter_config.json").read_text())
    assert found == {"base_model_name_or_path": str(artifact.folder / "merged"), "r": 4}


def test_a_hub_model_has_one_identity_before_and_after_its_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(keys, "_commit_on_hub", lambda kind, repository, revision: "abc123")
    before = keys.HashCache(tmp_path / "hashes.json").of_repository("model", "org/name")
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc123\n")
    monkeypatch.setattr(keys, "_commit_on_hub", lambda kind, repository, revision: "not asked")
    after = keys.HashCache(tmp_path / "hashes.json").of_repository("model", "org/name")
    assert after == before == "hub:org/name@abc123"


@pytest.mark.parametrize(
    ("id", "path"), [("base", "model"), ("sft", "stages.sft"), ("loop.2.t", "stages.loop.stages.t")]
)
def test_hints_name_a_stage_as_an_override_does(id: str, path: str) -> None:
    assert option_path(id) == path


def test_a_report_leaves_out_figures_of_a_model_that_was_made_again(tmp_path: Path) -> None:
    from posttrain_plugins.record.artifact import Artifact
    from posttrain_plugins.record.lineage import evaluations

    def made(key: str, **more: Any) -> Artifact:
        return Artifact(tmp_path, {"key": key, "details": {}, **more})

    parts = {"models[0]": "old", "models[0] name": "dpo", "rewards[0] name": "rm", "rewards[0]": "r"}
    figures = made("e", parts=parts, details={"models": {"dpo": {}}})
    rm = made("r")
    assert list(evaluations({"dpo": made("old"), "rm": rm, "eval": figures})) == [figures]
    assert list(evaluations({"dpo": made("new"), "rm": rm, "eval": figures})) == []


@pytest.mark.parametrize(
    ("manifest", "remark"),
    [
        ({"metrics": {"rows": 400.0, "kept": 7.0, "share": 1 / 3, "more": 1.0}}, "rows 400, kept 7, share 0.3333"),
        ({"metrics": {"train_loss": 1.5, "rows": 4.0}}, "loss 1.500"),
        ({"metrics": {"base/sampled": 0.5}, "details": {"models": {}}}, ""),
        ({}, ""),
    ],
)
def test_a_report_shows_what_a_stage_of_somebody_elses_returns(
    tmp_path: Path, manifest: dict[str, Any], remark: str
) -> None:
    from posttrain_plugins.record.artifact import Artifact
    from posttrain_plugins.record.results import rows

    given = {"key": "k", "from": [], "seconds": 1.0, "makes": "dataset", "details": {}, "metrics": {}, **manifest}
    [row] = rows({"mine": Artifact(tmp_path, given)})
    assert row.remark == remark
