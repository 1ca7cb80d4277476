"""Keys and plans: what makes a stage run again, what does not, and what is said about it. Nothing is trained here."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins
from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins import registry
from posttrain_plugins.recipe import source_hash
from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.plan import keys
from posttrain_plugins.recipe.plan.plan import Plan, plan
from posttrain_plugins.recipe.read import document
from posttrain_plugins.recipe.spec import Recipe

RECIPE = """\
name: p
seed: 1
model: {model_name_or_path: ./base}
adapters:
  policy: {use: lora, r: 4}
datasets:
  demos: {path: demos.jsonl}
  problems: {use: digit_chain, size: 8}
rewards:
  mine: {use: './reward.py:score'}
  short: {use: length, max_chars: 5}
stages:
  sft: {use: sft, model: base, dataset: demos, adapter: policy, args: {max_steps: 2, logging_steps: 1}}
  other: {use: sft, model: base, dataset: demos, args: {max_steps: 7}, chat_template: ./chat.jinja}
  grpo: {use: grpo, model: sft, dataset: problems, rewards: [mine], args: {model_init_kwargs: {x: [./zero.json]}}}
  eval:
    {use: evaluate, models: [base, sft, grpo], dataset: problems, rewards: [short],
     strategies: [best_of_n(scorer=mine)]}
"""
ALL = {"sft", "other", "grpo", "eval"}
REWARD = '"""A reward."""\nfrom scoring import rule\n\ndef score(completions, **_):\n    return rule(completions)\n'
SCORING = "# the rule\ndef rule(completions):\n    return [1.0 for _ in completions]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "base").mkdir(parents=True)
    (home / "base/config.json").write_text("{}")
    (home / "base/model.safetensors").write_text("weights")
    (home / "demos.jsonl").write_text('{"prompt": "1+1", "completion": "2"}\n')
    (home / "reward.py").write_text(REWARD)
    (home / "scoring.py").write_text(SCORING)
    (home / "unused.py").write_text("x = 1\n")
    (home / "chat.jinja").write_text("{{ messages }}")
    (home / "zero.json").write_text("{}")
    (home / "r.yaml").write_text(RECIPE)
    return home


def _recipe(file: Path, overrides: Any = ()) -> Recipe:
    return check(document.load(file, overrides))


def _plan(folder: Path, overrides: Any = (), **choice: Any) -> Plan:
    return plan(_recipe(folder / "r.yaml", overrides), folder.parent / "runs", **choice)


def _keys(folder: Path, overrides: Any = ()) -> dict[str, str]:
    return {stage.id: stage.key for stage in _plan(folder, overrides).stages}


def _changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert set(before) == set(after)
    return {id for id in before if before[id] != after[id]}


def _finish(chosen: Plan, ids: Iterable[str] | None = None) -> None:
    """Pretends that stages ran."""
    chosen.store.prepare()
    for stage in chosen.stages:
        if ids is None or stage.id in ids:
            with chosen.store.locked(stage.id, stage.key):
                manifest = {"key": stage.key, "parts": dict(stage.parts), "finished": "2026"}
                chosen.store.publish(stage.id, stage.key, manifest)


def _append(name: str, text: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return edit


def _replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return edit


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        ("seed=2", ALL),
        ("stages.sft.args.max_steps=3", {"sft", "grpo", "eval"}),
        ("stages.sft.args.learning_rate=1e-3", {"sft", "grpo", "eval"}),
        ("stages.sft.args.seed=5", {"sft", "grpo", "eval"}),
        ("stages.other.args.max_steps=3", {"other"}),
        ("stages.eval.temperature=0.5", {"eval"}),
        ("stages.eval.strategies=['best_of_n(n=4, scorer=mine)']", {"eval"}),
        ("stages.eval.strategies=[best_of_n(scorer=short)]", {"eval"}),
        ("stages.eval.models=[base, sft]", {"eval"}),
        ("adapters.policy.r=8", {"sft", "grpo", "eval"}),
        ("datasets.problems.size=9", {"grpo", "eval"}),
        ("datasets.problems.limit=3", {"grpo", "eval"}),
        ("datasets.demos.limit=1", ALL),
        ("rewards.mine.weight=0.5", {"grpo", "eval"}),
        ("rewards.short.max_chars=6", {"eval"}),
        ("model.dtype=bfloat16", ALL),
        (_append("demos.jsonl", '{"prompt": "1+2", "completion": "3"}\n'), ALL),
        (_append("base/model.safetensors", "more"), ALL),
        (_append("base/tokenizer.json", "{}"), ALL),
        (_replace("reward.py", "rule(completions)", "rule(completions[::-1])"), {"grpo", "eval"}),
        (_replace("scoring.py", "1.0", "0.5"), {"grpo", "eval"}),
        (_append("chat.jinja", "\n"), {"other"}),
        (_replace("zero.json", "{}", "[]"), {"grpo", "eval"}),
    ],
)
def test_what_changes_a_key(folder: Path, edit: Any, changed: set[str]) -> None:
    before = _keys(folder)
    if callable(edit):
        edit(folder)
    assert _changed(before, _keys(folder, [] if callable(edit) else [edit])) == changed


@pytest.mark.parametrize(
    "edit",
    [
        "name=q",
        "description=new words",
        "stages.sft.args.save_steps=5",
        "stages.sft.args.logging_steps=9",
        "stages.sft.args.report_to=tensorboard",
        "stages.sft.args.run_name=x",
        "stages.sft.args.disable_tqdm=false",
        "stages.grpo.args.log_completions=true",
        "stages.grpo.args.dataloader_num_workers=2",
        _append("unused.py", "y = 2\n"),
        _append("r.yaml", "# a comment\n"),
        _append("base/README.md", "words"),
        _replace("reward.py", '"""A reward."""', '"""Other words."""\n# and a comment'),
        _replace("scoring.py", "# the rule\ndef rule(completions):", 'def rule(\n    completions\n):\n    "Says 1."'),
        _replace("r.yaml", "./reward.py:score", "reward.py:score"),
    ],
)
def test_what_does_not_change_a_key(folder: Path, edit: Any) -> None:
    before = _keys(folder)
    if callable(edit):
        edit(folder)
    assert _changed(before, _keys(folder, [] if callable(edit) else [edit])) == set()


@pytest.mark.parametrize("name", ["trl", "transformers", "peft", "torch"])
def test_another_version_changes_every_key(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = _keys(folder)
    real = keys.version
    monkeypatch.setattr(keys, "version", lambda asked: "99.0" if asked == name else real(asked))
    assert _changed(before, _keys(folder)) == ALL


@pytest.mark.parametrize("name", ["posttrain-plugins", "datasets"])
def test_our_own_version_changes_none(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = _keys(folder)
    real = keys.version
    monkeypatch.setattr(keys, "version", lambda asked: "99.0" if asked == name else real(asked))
    assert _changed(before, _keys(folder)) == set()


def test_a_local_label_of_a_version_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys.importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert keys._version.__wrapped__("torch") == "2.13.0"


def test_moving_the_folder_changes_no_key(folder: Path, tmp_path: Path) -> None:
    before = _keys(folder)
    moved = tmp_path / "far" / "away"
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    assert _changed(before, _keys(moved)) == set()


def test_the_resolved_recipe_has_the_same_keys(folder: Path, tmp_path: Path) -> None:
    recipe = _recipe(folder / "r.yaml", ["stages.sft.args.max_steps=3"])
    elsewhere = tmp_path / "runs" / "r.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(document.dump(recipe.data))
    assert _changed(_keys(folder, ["stages.sft.args.max_steps=3"]), _keys(elsewhere.parent)) == set()


def test_renaming_a_stage_changes_only_the_figures_that_carry_its_name(folder: Path) -> None:
    before = _keys(folder)
    text = RECIPE.replace("  sft: {use", "  tuned: {use").replace("model: sft,", "model: tuned,")
    (folder / "r.yaml").write_text(text.replace("[base, sft, grpo]", "[base, tuned, grpo]"))
    after = _keys(folder)
    assert after.pop("tuned") == before.pop("sft")
    assert _changed(before, after) == {"eval"}


def test_a_folder_of_data_counts_with_all_its_files(folder: Path) -> None:
    (folder / "data/train").mkdir(parents=True)
    (folder / "data/train/a.parquet").write_bytes(b"1")
    first = _keys(folder, ["datasets.demos.path=./data"])
    (folder / "data/train/a.parquet").write_bytes(b"2")
    assert _changed(first, _keys(folder, ["datasets.demos.path=./data"])) == ALL


@pytest.mark.parametrize(
    "data",
    [
        {"use": "./my.py:rows", "folder": "./data"},
        {"path": "json", "data_dir": "./data"},
        {"path": "json", "data_files": "./data/train/*.jsonl"},
    ],
)
def test_data_behind_a_folder_or_a_glob_counts(folder: Path, data: dict[str, str]) -> None:
    (folder / "data/train").mkdir(parents=True)
    (folder / "data/train/a.jsonl").write_text('{"prompt": "1", "completion": "1"}\n')
    (folder / "my.py").write_text("def rows(folder: str):\n    return folder\n")
    given = [f"datasets.demos={json.dumps(data)}"]
    first = _keys(folder, given)
    assert _keys(folder, given) == first
    (folder / "data/train/a.jsonl").write_text('{"prompt": "1", "completion": "2"}\n')
    assert _changed(first, _keys(folder, given)) == ALL


def test_an_adapter_counts_with_its_base_wherever_that_lies(folder: Path, tmp_path: Path) -> None:
    def write(name: str, base: Path) -> str:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "r": 8}))
        (folder / name / "adapter_model.safetensors").write_text("adapter")
        return _keys(folder, [f"model.model_name_or_path=./{name}"])["sft"]

    shutil.copytree(folder / "base", tmp_path / "copy")
    before = write("one", folder / "base")
    assert write("two", tmp_path / "copy") == before
    (tmp_path / "copy/model.safetensors").write_text("other")
    assert write("two", tmp_path / "copy") != before


def test_a_hub_model_counts_by_the_commit_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    reference = tmp_path / "hub/models--org--name/refs/main"
    reference.parent.mkdir(parents=True)
    found = set()
    for commit in ("a" * 40, "b" * 40):
        reference.write_text(commit)
        found.add(_keys(folder, ["model.model_name_or_path=org/name"])["sft"])
    found.add(_keys(folder, ["model.model_name_or_path=org/name", "model.model_revision=v1"])["sft"])
    assert len(found) == 3


def test_files_are_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = folder.parent / "runs"
    runs.mkdir()
    before = _keys(folder)
    assert json.loads((runs / ".hashes.json").read_text())
    monkeypatch.setattr(keys.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert _keys(folder) == before
    (runs / ".hashes.json").write_text("torn {")
    with pytest.raises(pytest.fail.Exception):
        _keys(folder)


# --- source ----------------------------------------------------------------------------------------------------------


def _new_process() -> None:
    source_hash._read_once.cache_clear()
    source_hash._visit_once.cache_clear()


def _source(file: Path, package: str = "") -> str:
    _new_process()
    return source_hash.source_hash(file, package)


def test_what_a_package_imports_from_itself_counts(tmp_path: Path) -> None:
    package = tmp_path / "site" / "pkg"
    (package / "sub").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "main.py": "from . import near\nfrom .sub import deep\nimport pkg.whole\ndef f():\n from pkg.late import x\n",
        "near.py": "a = 1\n",
        "whole.py": "a = 1\n",
        "late.py": "x = 1\n",
        "unused.py": "a = 1\n",
        "sub/__init__.py": "",
        "sub/deep.py": "from ..far import b\n",
        "far.py": "b = 1\n",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    (tmp_path / "site" / "stranger.py").write_text("a = 1\n")
    before = _source(package / "main.py", "pkg")
    for name in files:
        (package / name).write_text(files[name] + "z = 2\n")
        assert (_source(package / "main.py", "pkg") != before) == (name != "unused.py"), name
        (package / name).write_text(files[name])


def test_a_single_module_does_not_count_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text("import torch, other\n")
    (tmp_path / "other.py").write_text("a = 1\n")
    installed, in_place = _source(tmp_path / "plugin.py", "plugin"), _source(tmp_path / "plugin.py")
    (tmp_path / "other.py").write_text("a = 2\n")
    assert _source(tmp_path / "plugin.py", "plugin") == installed
    assert _source(tmp_path / "plugin.py") != in_place


@pytest.mark.parametrize(
    ("edited", "counts"),
    [
        ("stages/sft.py", True),
        ("trainers/training.py", True),
        ("text/messages.py", True),
        ("stages/dpo.py", False),
        ("errors.py", False),
        ("types/stage.py", False),
        ("plugins/registry.py", False),
        ("recipe/run/run.py", False),
        ("__init__.py", False),
    ],
)
def test_our_own_core_does_not_count(tmp_path: Path, edited: str, counts: bool) -> None:
    ours = tmp_path / "posttrain_plugins"
    shutil.copytree(Path(posttrain_plugins.__file__).parent, ours)
    before = _source(ours / "stages/sft.py", "posttrain_plugins")
    with (ours / edited).open("a") as file:
        file.write("\nADDED = 1\n")
    assert (_source(ours / "stages/sft.py", "posttrain_plugins") != before) == counts


COUNTED = {
    *("adapters", "datasets", "rewards", "stages", "strategies"),
    *("backends", "decisions", "engine", "evaluation", "guard", "models", "nested_rewards.py", "processes", "publish"),
    *("sandbox", "search", "text", "tiny_world", "tools", "trainers", "training_data"),
}
"""What makes a built-in plugin's result; a new room is put here or into `source_hash.CORE`, by whoever builds it."""


def test_what_a_built_in_plugin_reaches_counts_or_is_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, core = tmp_path / "posttrain_plugins", source_hash.CORE
    shutil.copytree(Path(posttrain_plugins.__file__).parent, ours)
    plugins = [file for kind in registry.PLURAL.values() for file in (ours / kind).glob("*.py")]
    assert len(plugins) > 80
    everything = ours / "everything.py"
    everything.write_text("\n".join(f"import posttrain_plugins.{file.parent.name}.{file.stem}" for file in plugins))

    def rooms() -> set[str]:
        found = source_hash.own_sources(everything, "posttrain_plugins")
        return {Path(name).parts[0] for name in found} - {everything.name}

    assert rooms() == COUNTED
    monkeypatch.setattr(source_hash, "CORE", frozenset())
    assert rooms() == COUNTED | core


def test_what_makes_rows_counts_where_data_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tmp_path / "posttrain_plugins"
    shutil.copytree(Path(posttrain_plugins.__file__).parent, ours)
    assert {f"rows/{file.name}" for file in (ours / "rows").glob("*.py")} - {
        "rows/__init__.py",
        "rows/shape.py",
    } <= set(source_hash.ROWS)

    def after(name: str, text: str) -> str:
        file = ours / name
        before = file.read_text()
        file.write_text(before + text)
        _new_process()
        found = source_hash.rows_hash.__wrapped__(ours)
        file.write_text(before)
        return str(found)

    same = after("rows/read.py", "")
    assert same == after("rows/formats.py", "# a comment\n") == after("rows/shape.py", "MENDED = 1\n")
    for name in source_hash.ROWS:  # a converter, the default types of a file, an option's order
        assert after(name, "MENDED = 1\n") != same, name
    _new_process()

    text = (folder / "r.yaml").read_text().replace("stages:\n", "stages:\n  out: {use: merge, model: sft}\n")
    (folder / "r.yaml").write_text(text)
    before = _plan(folder)
    monkeypatch.setattr(keys, "rows_hash", lambda: "f" * 64)
    now = _plan(folder)
    for stage in before.stages:
        other = {part for part in stage.parts if stage.parts[part] != now[stage.id].parts[part]}
        own = (
            {"model"} & set(stage.parts)
            if stage.id in ("out", "grpo")
            else {"models[1]", "models[2]"} & set(stage.parts)
        )
        assert other - own == ({"dataset.rows"} if stage.id != "out" else set()), stage.id


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_first_plan_runs_everything_in_order_and_writes_nothing(folder: Path) -> None:
    chosen = _plan(folder)
    assert [stage.id for stage in chosen.stages] == ["sft", "other", "grpo", "eval"]
    assert all(stage.must_run and stage.reasons for stage in chosen.stages)
    assert chosen["sft"].reasons == ("never run",)
    assert chosen["grpo"].reasons == ("'sft' runs",)
    assert chosen["eval"].reasons == ("'sft' runs", "'grpo' runs")
    assert not (folder.parent / "runs").exists()
    assert json.loads(json.dumps(chosen["grpo"].to_json()))["from"] == ["sft"]


def test_what_is_done_does_not_run(folder: Path) -> None:
    _finish(_plan(folder))
    chosen = _plan(folder)
    assert [stage.must_run for stage in chosen.stages] == [False] * 4
    assert [stage.reasons for stage in chosen.stages] == [()] * 4
    assert chosen["sft"].artifact is not None


@pytest.mark.parametrize(
    ("edit", "reasons"),
    [
        ("stages.sft.args.max_steps=3", {"sft": ("args.max_steps: 2 -> 3",)}),
        ("stages.sft.args.learning_rate=1e-3", {"sft": ("args.learning_rate: 0.001 is new",)}),
        ("stages.other.args.max_steps=1", {"other": ("args.max_steps: 7 -> 1",)}),
        ("rewards.short.max_chars=6", {"eval": ("rewards[0].max_chars: 5 -> 6",)}),
        ("rewards.mine.weight=2", {"grpo": ("rewards[0].weight: 2 is new",)}),
        ("seed=4", {"sft": ("seed: 1 -> 4",), "other": ("seed: 1 -> 4",)}),
        (_append("demos.jsonl", "{}\n"), {"sft": ("dataset changed",), "other": ("dataset changed",)}),
        (_append("scoring.py", "x = 1\n"), {"grpo": ("rewards[0].source changed",)}),
        (_append("base/model.safetensors", "!"), {"sft": ("model changed",), "other": ("model changed",)}),
    ],
)
def test_reasons_name_what_changed_and_siblings_stay(folder: Path, edit: Any, reasons: dict[str, Any]) -> None:
    _finish(_plan(folder))
    if callable(edit):
        edit(folder)
    chosen = _plan(folder, [] if callable(edit) else [edit])
    follow = {"sft": ("grpo", "eval"), "grpo": ("eval",)}
    assert {stage.id: stage.reasons for stage in chosen.stages if stage.id in reasons} == reasons
    runs = set(reasons) | {child for id in reasons for child in follow.get(id, ())}
    assert {stage.id for stage in chosen.stages if stage.must_run} == runs
    for child in runs - set(reasons):
        assert all(reason.endswith(" runs") for reason in chosen[child].reasons)


def test_reasons_of_a_removed_argument_and_of_many(folder: Path) -> None:
    _finish(_plan(folder, ["stages.sft.args.max_length=64"]))
    assert _plan(folder)["sft"].reasons == ("args.max_length: 64 is gone",)
    many = [f"stages.sft.args.{name}=3" for name in ("max_steps", "warmup_steps", "eval_steps", "max_length")]
    reasons = _plan(folder, [*many, "seed=9"])["sft"].reasons
    assert len(reasons) == 5
    assert reasons[-1] == "and 1 more"


def test_a_result_that_was_removed(folder: Path) -> None:
    chosen = _plan(folder)
    _finish(chosen)
    (folder.parent / "runs/p/latest/other").unlink()
    shutil.rmtree(chosen.store.path("other", chosen["other"].key))
    shutil.rmtree(chosen.store.path("grpo", chosen["grpo"].key))
    again = _plan(folder)
    assert again["other"].reasons == ("never run",)
    assert {stage.id for stage in again.stages if stage.must_run} == {"other", "grpo", "eval"}


def test_back_to_an_earlier_value_is_done_already(folder: Path) -> None:
    _finish(_plan(folder))
    _finish(_plan(folder, ["stages.sft.args.max_steps=3"]))
    assert not any(stage.must_run for stage in _plan(folder).stages)


def test_until_leaves_out_what_is_not_needed(folder: Path) -> None:
    assert {stage.id for stage in _plan(folder, until="grpo").stages if stage.must_run} == {"sft", "grpo"}
    assert {stage.id for stage in _plan(folder, until="other").stages if stage.must_run} == {"other"}


def test_only_runs_the_named_stages_alone(folder: Path) -> None:
    _finish(_plan(folder), ["sft"])
    chosen = _plan(folder, only=["grpo"])
    assert {stage.id for stage in chosen.stages if stage.must_run} == {"grpo"}
    assert chosen["sft"].artifact is not None
    assert chosen["grpo"].reasons == ("never run",)


def test_what_is_left_out_need_not_be_done_for_what_is_done(folder: Path) -> None:
    chosen = _plan(folder)
    _finish(chosen)
    shutil.rmtree(chosen.store.path("sft", chosen["sft"].key))
    again = _plan(folder, only=["grpo"])
    assert (again["sft"].artifact, again["sft"].must_run, again["grpo"].must_run) == (None, False, False)


def test_force_runs_a_stage_and_what_depends_on_it(folder: Path) -> None:
    _finish(_plan(folder))
    chosen = _plan(folder, force=["grpo"])
    assert {stage.id for stage in chosen.stages if stage.must_run} == {"grpo", "eval"}
    assert chosen["grpo"].reasons == ("forced",)
    assert chosen["grpo"].key == _plan(folder)["grpo"].key


def test_a_complete_checkpoint_is_gone_on_from(folder: Path) -> None:
    chosen = _plan(folder)
    chosen.store.prepare()
    checkpoint = chosen.store.partial("sft", chosen["sft"].key) / "checkpoints/checkpoint-2"
    checkpoint.mkdir(parents=True)
    assert not _plan(folder)["sft"].can_resume
    (checkpoint / "complete").touch()
    assert _plan(folder)["sft"].can_resume
    assert not _plan(folder, force=["sft"])["sft"].can_resume
    assert not _plan(folder)["other"].can_resume


@pytest.mark.parametrize("choice", [{"until": "gpro"}, {"only": ["gpro"]}, {"force": ["sft", "gpro"]}])
def test_an_unknown_stage_name(folder: Path, choice: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        _plan(folder, **choice)
    assert caught.value.message == "recipe 'p' has no stage 'gpro'"
    assert caught.value.hint == "did you mean 'grpo'?"


def test_a_loops_name_stands_for_its_stages(folder: Path) -> None:
    (folder / "r.yaml").write_text(
        "name: p\nmodel: ./base\ndatasets: {d: {path: demos.jsonl}}\nstages:\n"
        "  loop: {repeat: 2, stages: {a: {use: sft, model: '${prev}', dataset: d},\n"
        "                             b: {use: sft, model: a, dataset: d}}}\n"
        "  last: {use: sft, model: loop, dataset: d, args: {max_steps: 1}}\n"
    )
    turns = ["loop.1.a", "loop.1.b", "loop.2.a", "loop.2.b"]
    assert [stage.id for stage in _plan(folder, until="loop").stages if stage.must_run] == turns
    assert [stage.id for stage in _plan(folder, until="loop.1").stages if stage.must_run] == turns[:2]
    _finish(_plan(folder))
    forced = _plan(folder, force=["loop.2"])
    assert [stage.id for stage in forced.stages if stage.must_run] == [*turns[2:], "last"]


def test_a_runs_folder_that_cannot_be_written_still_plans(folder: Path) -> None:
    runs = folder.parent / "runs"
    runs.mkdir()
    runs.chmod(0o500)
    try:
        assert _plan(folder)["sft"].must_run
    finally:
        os.chmod(runs, 0o700)  # noqa: PTH101


def test_what_was_begun_is_not_told_as_never_run(folder: Path) -> None:
    """State and reason agree: a stage that goes on has run before, and one that is left out does not go on."""
    from posttrain_plugins.cli.tables import plan_table

    planned = _plan(folder)
    planned.store.partial("sft", planned["sft"].key).mkdir(parents=True)
    assert _plan(folder)["sft"].reasons == ("begun and not finished",)
    checkpoint = planned.store.partial("sft", planned["sft"].key) / "checkpoints/checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "complete").touch()
    table = plan_table(_plan(folder))
    states = dict(zip(*(map(str, table.columns[i].cells) for i in (0, 4)), strict=True))
    assert states["sft"] == "resumes"
    table = plan_table(_plan(folder, only=["other"]))
    states = dict(zip(*(map(str, table.columns[i].cells) for i in (0, 4)), strict=True))
    assert (states["sft"], states["other"]) == ("left out", "runs")
