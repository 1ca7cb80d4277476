"""Stage `annotate`: a recipe waits for people, goes on when they have decided, and makes nothing anew without cause."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.decisions.item import Decision, Item
from posttrain_plugins.decisions.ledger import Ledger, read_ledger
from posttrain_plugins.decisions.questions import latest_questions, read_questions
from posttrain_plugins.errors import InputError, RecipeErrors, StageFailed, WaitsForPerson
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.runs import read_run

STAGES = """
import json
from dataclasses import dataclass
from posttrain_plugins.types import DataRef, StageContext, StageResult


@dataclass
class Answers:
    count: int = 4
    dataset: DataRef | None = None
    fails: bool = False
    produces = "dataset"

    def __call__(self, context: StageContext) -> StageResult:
        if self.fails:
            raise RuntimeError("oh no")
        rows = [{"prompt": f"p{i}", "completions": ["right", f"wrong {i}", "bad"], "n": i} for i in range(self.count)]
        path = context.folder / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\\n" for row in rows))
        return StageResult(data_path=path)
"""
RECIPE = """
stages:
  answers: {use: './stages.py:Answers', count: 4}
  picks: {use: annotate, dataset: answers, mode: pick, %s}
  trained: {use: './stages.py:Answers', dataset: picks}
  other: {use: './stages.py:Answers', count: 3}
  last: {use: './stages.py:Answers', dataset: other}
"""


class Told(Observer):
    def __init__(self) -> None:
        self.made: list[str] = []
        self.cached: list[str] = []
        self.notes: list[str] = []
        self.failures: list[str] = []

    def note(self, stage: Any, message: str) -> None:
        self.notes.append(f"{stage.id}: {message}")

    def finished(self, stage: Any, artifact: Any, is_cached: bool) -> None:
        (self.cached if is_cached else self.made).append(stage.id)

    def failed(self, stage: Any, error: BaseException) -> None:
        self.failures.append(stage.id)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that commands are run in: a relative ledger lies there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stages.py").write_text(STAGES)
    return tmp_path


@pytest.fixture
def run(here: Path) -> Callable[..., Told]:
    def run(settings: str = "", recipe: str = RECIPE, **choice: Any) -> Told:
        (here / "r.yaml").write_text(recipe % settings)
        told = Told()
        pp.run(here / "r.yaml", runs_dir=here / "runs", observer=told, **choice)
        return told

    return run


def state(here: Path) -> dict[str, str]:
    """Stage -> whether it is cached, waits or runs, as `plan` says."""
    planned = pp.plan(here / "r.yaml", runs_dir=here / "runs").stages
    return {s.id: "cached" if s.artifact else s.waits or "runs" for s in planned}


def asked(here: Path, stage: str = "picks", run: str = "r") -> Sequence[Item]:
    folder = latest_questions(here / "runs" / run, stage)
    assert folder is not None
    return read_questions(folder).items


def decide(items: Sequence[Item], annotator: str = "ann", number: int = 0, **answer: Any) -> None:
    """Answer through the ledger, as a page does; by default the right one is picked."""
    with Ledger.open(Path("decisions.jsonl")) as ledger:
        for item in items:
            given = answer or {"choice": item.completions.index("right")}
            ledger.append(Decision(f"{item.id[:8]}-{annotator}-{number}", item.id, item.mode, annotator, **given))


def test_a_missing_decision_is_no_failure_and_the_same_command_goes_on(here: Path, run: Callable[..., Told]) -> None:
    told = Told()
    (here / "r.yaml").write_text(RECIPE % "")
    with pytest.raises(WaitsForPerson) as raised:
        pp.run(here / "r.yaml", runs_dir=here / "runs", observer=told)
    assert raised.value.exit_code == 4
    assert raised.value.message == "stage 'picks' waits for a person: 0 of 4"
    assert raised.value.hint == "posttrain annotate r:picks; then the same command goes on"
    assert told.made == ["answers", "other", "last"]  # what does not need it runs
    assert "trained: not run: it needs 'picks', which waits for a person" in told.notes
    assert state(here) == {
        **dict.fromkeys(("answers", "other", "last"), "cached"),
        "picks": "0 of 4",
        "trained": "runs",
    }
    decide(asked(here)[:3])
    with pytest.raises(WaitsForPerson, match="3 of 4"):
        run()
    decide(asked(here)[3:])
    assert run().made == ["picks", "trained"]
    assert run().cached == ["answers", "picks", "trained", "other", "last"]
    artifact = pp.run(here / "r.yaml", runs_dir=here / "runs")["picks"]
    rows = [json.loads(line) for line in artifact.data_path.read_text().splitlines()]
    assert rows[0] == {"prompt": "p0", "n": 0, "chosen": "right", "rejected": "wrong 0"}
    assert len(rows) == artifact.metrics["rows"] == 8


def test_what_waits_leaves_nothing_half_made(here: Path, run: Callable[..., Told]) -> None:
    for _ in range(2):
        with pytest.raises(WaitsForPerson):
            run()
    assert [path.name for path in (here / "runs/r").glob(".*.partial")] == []
    assert len(list((here / "runs/r/questions").iterdir())) == 1


def test_a_decision_that_is_not_used_empties_no_cache(here: Path, run: Callable[..., Told]) -> None:
    with pytest.raises(WaitsForPerson, match="0 of 2"):
        run("min_decisions: 2")
    decide(asked(here)[:2])
    run("min_decisions: 2")
    before = Path("decisions.jsonl").stat().st_size
    decide(asked(here)[2:])  # further clicks: another item, another person, the same person again
    decide(asked(here)[:1], "bob", choice=2)
    decide(asked(here)[:1], "ann", 1, choice=2)
    assert Path("decisions.jsonl").stat().st_size > before
    assert set(state(here).values()) == {"cached"}
    assert run("min_decisions: 2").made == []
    # one that is used, corrected: it and what is made from it is made anew, and nothing else
    with Ledger.open(Path("decisions.jsonl")) as ledger:
        first = ledger.effective()[0]
        ledger.append(Decision("correction", first.item, "pick", "ann", choice=2, voids=first.id))
    assert run("min_decisions: 2").made == ["picks", "trained"]
    with Ledger.open(Path("decisions.jsonl")) as ledger:
        ledger.void("correction")  # and back again: what was made of these decisions still stands
    assert run("min_decisions: 2").made == []
    assert run("min_decisions: 4").made == ["picks", "trained"]


def test_decisions_that_stand_are_found_by_a_run_that_makes_the_questions(here: Path, run: Callable[..., Told]) -> None:
    with pytest.raises(WaitsForPerson):
        run()
    decide(asked(here))
    shutil.rmtree(here / "runs")
    # the plan cannot know them: the texts that they are on are not made yet
    assert state(here)["picks"] == "runs"
    assert run().made == ["answers", "picks", "trained", "other", "last"]
    assert set(state(here).values()) == {"cached"}  # under the very keys that a plan computes
    assert run("", RECIPE.replace("count: 3", "count: 2")).made == ["other", "last"]
    assert run(force=["picks"]).made == ["picks", "trained"]
    shutil.rmtree(here / "runs/r/questions")  # a cache: without it only the plan knows less
    assert run().made in ([], ["picks", "trained"])
    assert set(state(here).values()) == {"cached"}


def test_the_same_texts_are_asked_once_in_whatever_recipe(here: Path, run: Callable[..., Told]) -> None:
    with pytest.raises(WaitsForPerson):
        run()
    decide(asked(here))
    run()
    (here / "second.yaml").write_text((RECIPE % "").replace("count: 4", "count: 6"))
    with pytest.raises(WaitsForPerson, match="4 of 6"):
        pp.run(here / "second.yaml", runs_dir=here / "runs")


def test_a_second_batch_waits_for_its_own_items(here: Path) -> None:
    text = """
stages:
  answers: {use: './stages.py:Answers', count: 3}
  picks: {use: annotate, dataset: answers, mode: pick}
  new: {use: './stages.py:Answers', count: 5, dataset: picks}
  again: {use: annotate, dataset: new, mode: pick}
"""
    (here / "r.yaml").write_text(text)
    with pytest.raises(WaitsForPerson, match="stage 'picks' waits for a person: 0 of 3"):
        pp.run(here / "r.yaml", runs_dir=here / "runs")
    decide(asked(here))
    with pytest.raises(WaitsForPerson, match="stage 'again' waits for a person: 3 of 5"):
        pp.run(here / "r.yaml", runs_dir=here / "runs")
    known = {decision.item for decision in read_ledger(Path("decisions.jsonl"))}
    decide([item for item in asked(here, "again") if item.id not in known])
    done = pp.run(here / "r.yaml", runs_dir=here / "runs")
    assert done["again"].metrics["decided"] == 5
    assert all(s.artifact for s in pp.plan(here / "r.yaml", runs_dir=here / "runs").stages)


def test_a_failure_is_what_a_run_ends_with_though_a_person_is_waited_for(run: Callable[..., Told]) -> None:
    broken = RECIPE.replace(
        "other: {use: './stages.py:Answers', count: 3}", "other: {use: './stages.py:Answers', fails: true}"
    )
    with pytest.raises(StageFailed, match="oh no"):
        run("", broken)


def test_people_are_measured_and_not_named(here: Path, run: Callable[..., Told]) -> None:
    settings = "annotators_per_item: 2, gold: correct, gold_share: 0.999"
    recipe = "rewards: {correct: {use: './stages.py:right'}}" + RECIPE.replace("count: 4", "count: 40")
    (here / "stages.py").write_text(
        STAGES
        + "\n\ndef right(prompts, completions, **columns):\n    return [float(c == 'right') for c in completions]\n"
    )
    with pytest.raises(WaitsForPerson, match="0 of 40"):
        run(settings, recipe)
    for name, seconds in (("ann", 2.0), ("bob", 4.0)):
        with Ledger.open(Path("decisions.jsonl")) as ledger:
            for number, item in enumerate(asked(here)):
                shown = (0, 1, 2) if number % 2 else (2, 1, 0)
                choice = 0 if name == "ann" else shown[0]
                ledger.append(Decision(f"{name}{number}", item.id, "pick", name, "s", shown, choice, seconds=seconds))
    with pytest.raises(StageFailed, match="kept nothing"):  # all of them measure, so none are left to train on
        run(settings.replace("0.999", "0.9999999"), recipe)
    told = run(settings + ", train_on_gold: true", recipe)
    artifact = pp.run(here / "r.yaml", runs_dir=here / "runs")["picks"]
    people = artifact.details["decisions"]
    assert people["gold_by_annotator"] == {"a1": [40, 40], "a2": [20, 40]}
    assert artifact.metrics["gold_accuracy"] == 60 / 80
    assert artifact.metrics["raw_agreement"] == 0.5
    assert artifact.metrics["alpha"] < 0.5
    assert artifact.metrics["median_seconds"] == 3.0
    assert people["preference_by_annotator"]["a2"][0] == 1.0
    assert any("annotator a2 prefers what is shown first" in note for note in told.notes)
    assert not any("annotator a1 prefers" in note for note in told.notes)
    assert 'ann"' not in json.dumps(artifact.manifest)
    assert "bob" not in json.dumps(artifact.manifest)
    assert artifact.metrics["undecided"] == 20  # they disagree there: no pair


def test_gold_is_not_trained_on(here: Path, run: Callable[..., Told]) -> None:
    recipe = "rewards: {correct: {use: './stages.py:right'}}" + RECIPE.replace("count: 4", "count: 40")
    (here / "stages.py").write_text(
        STAGES
        + "\n\ndef right(prompts, completions, **columns):\n    return [float(c == 'right') for c in completions]\n"
    )
    with pytest.raises(WaitsForPerson):
        run("gold: correct, gold_share: 0.25", recipe)
    folder = latest_questions(here / "runs/r", "picks")
    assert folder is not None
    gold = read_questions(folder).gold
    assert 2 < len(gold) < 20
    assert set(map(tuple, gold.values())) == {(True, False, False)}
    decide(asked(here))
    run("gold: correct, gold_share: 0.25", recipe)
    artifact = pp.run(here / "r.yaml", runs_dir=here / "runs")["picks"]
    rows = [json.loads(line) for line in artifact.data_path.read_text().splitlines()]
    measured = {item.prompt for item in asked(here) if item.id in gold}
    assert {row["prompt"] for row in rows} == {f"p{i}" for i in range(40)} - measured
    assert artifact.metrics["gold_decisions"] == len(gold)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("mode: accept, keep: pairs", "in mode 'accept' makes no pairs"),
        ("min_decisions: 0", "min_decisions: 0, expected 1 or more"),
        ("annotators_per_item: 0", "annotators_per_item: 0, expected 1 or more"),
        ("gold_share: 0", "gold_share: 0, expected more than 0"),
        ("mode: vote", "mode"),
        ("resolve: some", "resolve"),
    ],
)
def test_what_does_not_go_together_is_told_by_validate(here: Path, settings: str, message: str) -> None:
    text = RECIPE.replace("mode: pick, %s", settings if "mode" in settings else f"mode: pick, {settings}")
    (here / "r.yaml").write_text(text)
    with pytest.raises(RecipeErrors, match=message):
        pp.validate(here / "r.yaml")


def test_more_decisions_than_there_are_questions_are_no_endless_wait(run: Callable[..., Told]) -> None:
    with pytest.raises(InputError, match="needs 9 decided items, but the data makes 4") as raised:
        run("min_decisions: 9")
    assert "lower min_decisions to 4" in str(raised.value)


def test_a_ledger_that_answers_another_question_is_refused(here: Path, run: Callable[..., Told]) -> None:
    with pytest.raises(WaitsForPerson):
        run()
    with Ledger.open(Path("decisions.jsonl")) as ledger:
        for number, item in enumerate(asked(here)):
            ledger.append(Decision(f"d{number}", item.id, "pick", "ann", choice=7))
    with pytest.raises(InputError, match="expected a choice among the completions"):
        run()


def test_a_data_file_is_asked_as_a_stage_is(here: Path) -> None:
    (here / "data.jsonl").write_text('{"prompt": "2+2?"}\n{"prompt": "1+1?"}\n')
    (here / "r.yaml").write_text("stages: {written: {use: annotate, dataset: data.jsonl, mode: demonstration}}")
    with pytest.raises(WaitsForPerson, match="0 of 2"):
        pp.run(here / "r.yaml", runs_dir=here / "runs")
    decide(asked(here, "written"), text="four")
    done = pp.run(here / "r.yaml", runs_dir=here / "runs")
    assert json.loads(done["written"].data_path.read_text().splitlines()[0]) == {"prompt": "2+2?", "completion": "four"}
    with (here / "data.jsonl").open("a") as file:
        file.write('{"prompt": "3+3?"}\n')
    with pytest.raises(WaitsForPerson, match="2 of 3"):
        pp.run(here / "r.yaml", runs_dir=here / "runs")


def test_the_command_line_says_that_it_waits(here: Path) -> None:
    (here / "r.yaml").write_text(RECIPE % "")

    def posttrain(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "posttrain_plugins", *words]
        return subprocess.run(command, capture_output=True, text=True, cwd=here)

    done = posttrain("run", "r.yaml")
    assert done.returncode == 4
    assert "stage 'picks' waits for a person: 0 of 4\n\nhint: posttrain annotate r:picks" in done.stderr
    assert "error" not in done.stderr
    assert "Traceback" not in done.stderr
    planned = {stage["stage"]: stage for stage in json.loads(posttrain("plan", "r.yaml", "--json").stdout)}
    assert planned["picks"]["waits"] == "0 of 4"
    assert planned["picks"]["reasons"] == ["waits for a person: 0 of 4"]
    assert "waits" not in planned["other"]


def test_the_record_of_a_run_tells_that_it_waits(here: Path, run: Callable[..., Told]) -> None:
    with pytest.raises(WaitsForPerson):
        run()
    record = read_run(here / "runs/r")
    assert record.state == "waiting"
    assert {stage.id: stage.state for stage in record.stages} == {
        "answers": "done",
        "picks": "waiting",
        "trained": "planned",
        "other": "done",
        "last": "done",
    }
    assert record["picks"].message == "stage 'picks' waits for a person: 0 of 4"
    decide(asked(here))
    shutil.rmtree(here / "runs")
    run()
    record = read_run(here / "runs/r")
    assert record.state == "done"
    # their keys were not known when the run was planned
    artifacts = pp.run(here / "r.yaml", runs_dir=here / "runs")
    assert {id: record[id].key for id in artifacts} == {id: one.manifest["key"] for id, one in artifacts.items()}
