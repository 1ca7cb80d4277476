"""What lies in the runs folder: who needs what, what may go, and what is not as it was made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain_plugins.cli.commands import app
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.record.storage import changes_of, stored

KEYS = {name: (name * 64)[:64] for name in "abcdef"}


def publish(root: Path, run: str, stage: str, letter: str, made_from: str = "", base: Path | None = None) -> Path:
    """A finished stage with a file of a hundred bytes, made from others by their letters."""
    store = Store(root, run)
    store.prepare()
    key = KEYS[letter]
    with store.locked(stage, key) as partial:
        (partial / "model").mkdir()
        (partial / "model" / "weights.safetensors").write_bytes(letter.encode() * 100)
        if base is not None:
            config = {"base_model_name_or_path": str(base)}
            (partial / "model" / "adapter_config.json").write_text(json.dumps(config))
        parts = {f"models[{i}]": KEYS[other] for i, other in enumerate(made_from)}
        manifest: dict[str, Any] = {"stage": stage, "key": key, "finished": f"2026-01-0{'abcdef'.index(letter) + 1}"}
        return store.publish(stage, key, {**manifest, "metrics": {}, "details": {}, "parts": parts}).folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two runs: `first` made sft twice, and a dpo of each; `second` stands on the weights of the older dpo."""
    root = tmp_path / "runs"
    publish(root, "first", "base", "a")
    publish(root, "first", "sft", "b", made_from="a")
    publish(root, "first", "dpo", "c", made_from="b")
    publish(root, "first", "sft", "d", made_from="a")
    publish(root, "first", "dpo", "e", made_from="d")
    publish(root, "second", "tuned", "f", base=root / "first" / f"dpo-{KEYS['c'][:12]}" / "model")
    return root


def uses(root: Path) -> dict[str, str]:
    return {one.key[0]: one.use for one in stored(root)}


def test_what_is_kept_needs_all_that_it_was_made_from(root: Path) -> None:
    """Also an older result that another recipe's adapter stands on, and what that was made from."""
    assert uses(root) == {
        "a": "latest",
        "b": "needed",  # of dpo c
        "c": "needed",  # of `second`, whose adapter names its folder
        "d": "latest",
        "e": "latest",
        "f": "latest",
    }
    needed = {one.key[0]: one.needed_by for one in stored(root)}
    assert needed["c"] == ("second/tuned",)
    assert needed["b"] == ("first/dpo",)


def test_what_nothing_needs_goes_and_nothing_else(root: Path) -> None:
    import shutil

    shutil.rmtree(root / "second")
    assert (uses(root)["b"], uses(root)["c"]) == ("unused", "unused")
    before = sorted(path.name for path in (root / "first").iterdir())
    asked = CliRunner().invoke(app, ["runs", "prune", "--runs-dir", str(root)])
    assert asked.exit_code == 0
    assert "2 folders" in asked.output
    assert "would go: --yes" in asked.output
    assert sorted(path.name for path in (root / "first").iterdir()) == before, "asking takes nothing away"
    done = CliRunner().invoke(app, ["runs", "prune", "--yes", "--json", "--runs-dir", str(root)])
    assert {Path(one["folder"]).name[0:5] for one in json.loads(done.output)["folders"]} == {"sft-b", "dpo-c"}
    assert uses(root) == {"a": "latest", "d": "latest", "e": "latest"}


def test_what_was_begun_stays_unless_it_is_asked_for_and_what_is_made_now_stays_always(root: Path) -> None:
    store = Store(root, "first")
    begun = store.partial("rm", KEYS["f"])
    (begun / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    (begun / "checkpoints" / "checkpoint-4" / "complete").write_text("")
    (store.folder / f".sft-{KEYS['b'][:12]}.old").mkdir()
    assert {one.use for one in stored(root) if one.stage == "rm"} == {"begun"}
    CliRunner().invoke(app, ["runs", "prune", "--yes", "--runs-dir", str(root)])
    assert begun.is_dir()
    assert not (store.folder / f".sft-{KEYS['b'][:12]}.old").exists()
    with store.locked("rm", KEYS["f"]):
        done = CliRunner().invoke(app, ["runs", "prune", "--yes", "--begun", "--runs-dir", str(root)])
        assert begun.is_dir(), done.output
    CliRunner().invoke(app, ["runs", "prune", "--yes", "--begun", "--runs-dir", str(root)])
    assert not begun.exists()


def test_what_a_run_at_work_has_planned_stays(root: Path) -> None:
    import shutil

    from posttrain_plugins.record.events import born

    shutil.rmtree(root / "second")
    stages = [{"id": "dpo", "key": KEYS["c"]}]
    planned = {"event": "planned", "at": 0.0, "pid": os.getpid(), "born": born(os.getpid()), "stages": stages}
    import socket

    (root / "other").mkdir()
    (root / "other" / "run.jsonl").write_text(json.dumps({**planned, "host": socket.gethostname()}) + "\n")
    assert (uses(root)["b"], uses(root)["c"]) == ("needed", "needed")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda file: file.write_bytes(b"x" + file.read_bytes()[1:]), "has other bytes"),
        (lambda file: file.write_bytes(file.read_bytes()[:50]), "has 50 bytes, expected 100"),
        (lambda file: file.unlink(), "is gone"),
    ],
)
def test_a_file_that_is_not_as_it_was_made_is_found(root: Path, harm: Any, told: str) -> None:
    whole = CliRunner().invoke(app, ["runs", "verify", "--runs-dir", str(root)])
    assert (whole.exit_code, "6 of 6 stages are as they were made" in whole.output) == (0, True)
    harm(root / "first" / f"sft-{KEYS['d'][:12]}" / "model" / "weights.safetensors")
    (changed,) = [line for one in stored(root) for line in changes_of(one.folder, one.manifest)]
    assert changed.startswith("model/weights.safetensors ")
    assert told in changed
    found = CliRunner().invoke(app, ["runs", "verify", "first", "--runs-dir", str(root)])
    assert found.exit_code == 1
    assert told in found.output
    assert "3 of 5" not in found.output
    assert "4 of 5 stages" in found.output


def test_what_a_kill_while_publishing_leaves_is_no_file_of_the_stage(tmp_path: Path) -> None:
    store, key = Store(tmp_path, "run"), KEYS["a"]
    store.prepare()
    with store.locked("sft", key) as partial:
        (partial / "model").mkdir()
        (partial / "manifest.new").write_text('{"stage": "sf')
        (partial / "model/adapter_config.new").write_text("{")
        (partial / "model/adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(partial)}))
        manifest = {"stage": "sft", "key": key, "finished": "2026-01-01", "metrics": {}, "details": {}, "parts": {}}
        made = store.publish("sft", key, manifest)
    assert list(changes_of(made.folder, made.manifest)) == []


def test_a_moved_runs_folder_is_as_it_was_made(root: Path, tmp_path: Path) -> None:
    """Paths in configs are rewritten when it is read there, which changes no hash that is kept."""
    from posttrain_plugins.recipe.plan.store import read_artifact

    moved = root.rename(tmp_path / "moved runs")
    for one in stored(moved):
        read_artifact(one.folder)
    assert [line for one in stored(moved) for line in changes_of(one.folder, one.manifest)] == []


def test_sizes_are_told_and_names_checked(root: Path) -> None:
    listed = CliRunner().invoke(app, ["runs", "list", "--json", "--runs-dir", str(root)])
    rows = {row["run"]: row for row in json.loads(listed.output)}
    assert (rows["first"]["stages"], rows["first"]["results"]) == (3, 5)
    assert rows["first"]["bytes"] > 500
    shown = CliRunner().invoke(app, ["runs", "show", "second", "--runs-dir", str(root)])
    assert "tuned" in shown.output
    assert "base" not in shown.output
    wrong = CliRunner().invoke(app, ["runs", "show", "third", "--runs-dir", str(root)])
    assert "no run 'third'" in str(wrong.exception)
    none = CliRunner().invoke(app, ["runs", "list", "--runs-dir", str(root / "nowhere")])
    assert "no runs folder" in str(none.exception)
