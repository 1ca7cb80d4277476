"""The artifact store: what bears its final name is complete, always; and what a model hands to the next stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.errors import HandoffError, InputError, StageFailed
from posttrain_plugins.models.folder import digest
from posttrain_plugins.recipe import files, handoff
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.record.storage import changes_of

KEY = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4


def _manifest(key: str = KEY, **more: Any) -> dict[str, Any]:
    return {"key": key, "metrics": {"loss": 1.5}, "details": {"a": [1]}, "finished": "2026-01-01", **more}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs", "recipe")
    store.prepare()
    return store


def _publish(store: Store, stage: str = "sft", key: str = KEY, **more: Any) -> Artifact:
    with store.locked(stage, key) as partial:
        (partial / "model").mkdir(exist_ok=True)
        (partial / "model/weights").write_text(key)
        return store.publish(stage, key, _manifest(key, model_path="model", data_path=None, **more))


# --- publishing ------------------------------------------------------------------------------------------------------


def test_what_is_published_is_found_by_its_key(store: Store) -> None:
    assert store.get("sft", KEY) is None
    made = _publish(store)
    found = store.get("sft", KEY)
    assert found is not None
    assert (found.folder, found.metrics, found.details) == (made.folder, {"loss": 1.5}, {"a": [1]})
    assert found.folder == store.folder / "sft-0123456789ab"
    assert found.model_path == found.folder / "model"
    assert found.data_path is None
    assert (found.folder / "model/weights").read_text() == KEY
    assert store.get("sft", OTHER) is None
    assert sorted(p.name for p in store.folder.iterdir() if p.suffix != ".lock") == ["latest", "sft-0123456789ab"]


def test_a_crash_before_the_rename_leaves_nothing_under_the_final_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        _publish(store)
    monkeypatch.undo()
    assert not store.path("sft", KEY).exists()
    assert store.get("sft", KEY) is None
    assert store.latest("sft") is None
    assert _publish(store).folder.is_dir()


def test_a_crash_while_publishing_leaves_the_checkpoints_as_they_were(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes next goes on from them; they go, unlisted, once the result bears its name."""

    def publish() -> Path:
        with store.locked("sft", KEY) as partial:
            (partial / "model").write_text("weights")
            return store.publish("sft", KEY, _manifest(), ["steps", "note", "merged/complete"]).folder

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with store.locked("sft", KEY) as partial:
        (partial / "steps").mkdir()
        config = json.dumps({"base": str(partial)})
        (partial / "steps/adapter_config.json").write_text(config)
        (partial / "note").touch()
        (partial / "merged").mkdir()
        (partial / "merged/complete").touch()
        (partial / "merged/weights").touch()
    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(KeyboardInterrupt):
        publish()
    monkeypatch.undo()
    assert (partial / "steps/adapter_config.json").read_text() == config
    folder = publish()
    assert sorted(p.name for p in folder.rglob("*")) == ["manifest.json", "merged", "model", "weights"]
    made = store.get("sft", KEY)
    assert made is not None
    assert list(made.manifest["files"]) == ["merged/weights", "model"]
    assert not list(changes_of(folder, made.manifest))
    (folder / "steps").mkdir()  # as a kill leaves it
    store.clear(made)
    assert not (folder / "steps").exists()


def test_a_manifest_names_nothing_outside_to_be_deleted(store: Store, tmp_path: Path) -> None:
    """A runs folder may come from elsewhere."""
    outside = tmp_path / "outside"
    outside.mkdir()
    made = _publish(store)
    (made.folder / "link").symlink_to(tmp_path)
    inside = made.folder / "steps"
    inside.mkdir()
    names = [str(outside), "../../../outside", "link/outside", ".", "", "..", "model/../../../../outside", "steps"]
    store.clear(Artifact(made.folder, {**made.manifest, "scratch": names}))
    assert outside.is_dir()
    assert (made.folder / "model").is_dir()
    assert (made.folder / "manifest.json").is_file()
    assert not inside.exists()


def test_the_manifest_is_written_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with store.locked("sft", KEY) as partial:
        (partial / "adapter_config.json").write_text(json.dumps({"base": str(partial)}))
        at_rename: list[list[str]] = []
        real = Path.rename
        monkeypatch.setattr(
            Path,
            "rename",
            lambda self, target: (at_rename.append(sorted(p.name for p in self.iterdir())), real(self, target))[1],
        )
        store.publish("sft", KEY, _manifest())
    assert at_rename == [["adapter_config.json", "manifest.json"]]


def test_a_result_without_a_whole_manifest_does_not_count(store: Store) -> None:
    folder = _publish(store).folder
    (folder / "manifest.json").write_text('{"key": "torn')
    assert store.get("sft", KEY) is None
    (folder / "manifest.json").unlink()
    assert store.get("sft", KEY) is None


def test_a_result_made_again_replaces_the_old_one(store: Store) -> None:
    folder = _publish(store).folder
    (folder / "old").touch()
    assert _publish(store).folder == folder
    assert not (folder / "old").exists()


def test_paths_in_configs_name_the_final_folder(store: Store) -> None:
    with store.locked("sft", KEY) as partial:
        (partial / "model").mkdir()
        text = json.dumps({"base_model_name_or_path": str(partial / "initial"), "other": "/elsewhere"})
        for name in ("model/adapter_config.json", "config.json", "notes.txt"):
            (partial / name).write_text(text)
        folder = store.publish("sft", KEY, _manifest()).folder
    for name in ("model/adapter_config.json", "config.json"):
        read = json.loads((folder / name).read_text())
        assert read == {"base_model_name_or_path": str(folder / "initial"), "other": "/elsewhere"}
    assert (folder / "notes.txt").read_text() == text


# --- latest ----------------------------------------------------------------------------------------------------------


def test_latest_names_what_was_made_last(store: Store) -> None:
    first, second = _publish(store), _publish(store, key=OTHER)
    link = store.folder / "latest/sft"
    assert link.is_symlink()
    assert not Path(os.readlink(link)).is_absolute()  # noqa: PTH115
    latest = store.latest("sft")
    assert latest is not None
    assert latest.folder == second.folder
    store.point("sft", first.folder)
    latest = store.latest("sft")
    assert latest is not None
    assert latest.folder == first.folder
    assert [path.name for path in (store.folder / "latest").iterdir()] == ["sft"]
    assert store.latest("dpo") is None


def test_latest_survives_a_moved_runs_folder(store: Store, tmp_path: Path) -> None:
    _publish(store)
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert Store(tmp_path / "moved", "recipe").latest("sft") is not None


def test_all_latest_are_in_the_order_in_which_they_were_made(store: Store) -> None:
    _publish(store, "b", finished="2026-01-01")
    _publish(store, "a", OTHER, finished="2026-01-02")
    assert list(store.all_latest()) == ["b", "a"]


# --- locks -----------------------------------------------------------------------------------------------------------

HOLD = """
import sys
from pathlib import Path
from posttrain_plugins.errors import StageFailed
from posttrain_plugins.recipe.plan.store import Store
from posttrain_plugins.record.storage import changes_of
try:
    with Store(Path(sys.argv[1]), "recipe").locked("sft", sys.argv[2]):
        print("held", flush=True)
        sys.stdin.read()
except StageFailed as error:
    print(error)
"""


def _process(store: Store) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", HOLD, str(store.root), KEY]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_second_process_is_refused_while_the_first_is_at_it(store: Store) -> None:
    first = _process(store)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(StageFailed, match="'sft' is being made by another process"), store.locked("sft", KEY):
        pytest.fail("both hold it")
    with store.locked("sft", OTHER), store.locked("dpo", KEY):
        pass  # another stage, and another key of the same one, are free
    first.communicate("")
    with store.locked("sft", KEY) as partial:
        assert partial.is_dir()


def test_what_another_process_is_at_is_not_removed(store: Store) -> None:
    first = _process(store)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    (store.partial("sft", KEY) / "begun").touch()
    with pytest.raises(StageFailed, match="'sft' is being made by another process"):
        store.remove("sft", KEY)
    assert (store.partial("sft", KEY) / "begun").is_file()
    first.communicate("")
    store.remove("sft", KEY)
    assert not store.partial("sft", KEY).exists()


def test_the_lock_of_a_killed_process_is_free(store: Store) -> None:
    first = _process(store)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    first.kill()
    first.communicate()
    with store.locked("sft", KEY) as partial:
        assert partial == store.partial("sft", KEY)


def test_a_lock_is_free_after_an_error(store: Store) -> None:
    with pytest.raises(ValueError, match="x"), store.locked("sft", KEY):
        raise ValueError("x")
    with store.locked("sft", KEY):
        pass


def test_a_runs_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written") as caught:
        Store(tmp_path / "file", "recipe").prepare()
    assert caught.value.hint == "choose another: --runs-dir DIR"


# --- hand-off --------------------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen3"], "eos_token_id": 1, "pad_token_id": 0}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "padding": None}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_a_record_tells_what_the_next_stage_needs(model: Path, tmp_path: Path) -> None:
    record = handoff.record(model, {"load_in_4bit": True, "dtype": "auto"})
    assert (record["eos_token_id"], record["pad_token_id"], record["architecture"]) == (1, 0, "Qwen3")
    assert (record["quantization"], record["adapters"], record["base"]) == ({"load_in_4bit": True}, [], None)
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert handoff.record(model, {})["eos_token_id"] == [1, 2]
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": str(model), "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    record = handoff.record(adapter, {})
    assert (record["adapters"], record["base"], record["architecture"]) == (
        [{"type": "LORA", "weights": digest(adapter)}],
        str(model),
        "Qwen3",
    )


def test_padding_is_each_trainers_own_and_does_not_count(model: Path) -> None:
    before = handoff.record(model, {})
    padded = {"padding": {"x": 1}, "truncation": 3, "model": {"vocab": {"a": 0}}}
    (model / "tokenizer.json").write_text(json.dumps(padded))
    assert handoff.record(model, {}) == before


CHANGES = {
    "tokenizer": ("tokenizer.json", '{"model": {"vocab": {"b": 0}}}'),
    "chat_template": ("chat_template.jinja", "other"),
    "eos_token_id": ("generation_config.json", '{"eos_token_id": 5}'),
    "pad_token_id": ("generation_config.json", '{"pad_token_id": 5}'),
}


def test_an_adapter_whose_base_was_made_in_memory_is_told(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": null}')
    (tmp_path / "adapter_model.safetensors").touch()
    assert "has no base_model_name_or_path" in str(files.model_problem(tmp_path))


@pytest.mark.parametrize("field", CHANGES)
def test_a_model_that_changed_after_it_was_made_is_refused(model: Path, field: str) -> None:
    recorded = handoff.record(model, {})
    handoff.check_unchanged("sft", model, recorded)
    name, text = CHANGES[field]
    (model / name).write_text(text)
    with pytest.raises(HandoffError) as caught:
        handoff.check_unchanged("sft", model, recorded)
    message = caught.value.message
    assert f"model 'sft' changed after it was made: {field} is {handoff.record(model, {})[field]}" in message
    assert str(recorded[field]) in message
    assert caught.value.hint == "make it again: posttrain run RECIPE --force sft"


@pytest.mark.parametrize("field", CHANGES)
def test_a_stage_that_changes_what_it_was_given_is_refused(model: Path, field: str) -> None:
    before = handoff.record(model, {})
    name, text = CHANGES[field]
    (model / name).write_text(text)
    after = handoff.record(model, {})
    with pytest.raises(HandoffError) as caught:
        handoff.check_kept("dpo", before, after, template_given=False)
    assert f"stage 'dpo' changed {field}: {after[field]}, expected {before[field]}" in caught.value.message
    if field == "chat_template":
        handoff.check_kept("dpo", before, after, template_given=True)
        assert caught.value.hint == "set chat_template where the model has none yet"


def test_what_was_not_there_before_may_come(model: Path) -> None:
    after = handoff.record(model, {})
    handoff.check_kept("sft", {**after, "chat_template": None, "pad_token_id": None}, after, template_given=False)
    handoff.check_unchanged("foreign", model, {})
