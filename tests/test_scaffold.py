"""`posttrain plugins new` and `check`: what is written works at once, and nothing is overwritten."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain_plugins import api
from posttrain_plugins.cli.commands import app
from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.scaffold import new_plugin
from posttrain_plugins.testing import run_checks, stages
from posttrain_plugins.types import KINDS

NAMES = {kind: f"tried_{kind}" for kind in KINDS}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Installs a package without pip, as its pyproject.toml says."""

    def put(folder: Path) -> None:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        info = folder / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
        groups = project["entry-points"].items()
        lines = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for g, names in groups]
        (info / "entry_points.txt").write_text("".join(lines))
        monkeypatch.syspath_prepend(str(folder / "src"))
        forget()

    def forget() -> None:
        registry.entry_points.cache_clear()
        registry.installed.cache_clear()

    yield put
    monkeypatch.undo()
    forget()
    for module in [name for name in sys.modules if name.startswith("posttrain_tried_")]:
        del sys.modules[module]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_checks_and_its_recipe_is_valid(kind: Any, tmp_path: Path, install: Any) -> None:
    name = NAMES[kind]
    written = new_plugin(kind, name, tmp_path)
    folder = tmp_path / f"posttrain-tried-{kind}"
    assert folder / "pyproject.toml" in written
    assert not [f for f in written if any(word in f.read_text("utf-8") for word in ("my_plugin", "MyPlugin", "KIND"))]
    install(folder)
    assert registry.find(kind, name).distribution == f"posttrain-tried-{kind}"
    failed = [outcome for outcome in run_checks(kind, name, without=stages.RUNNING) if outcome.status == "failed"]
    assert failed == []
    checked = api.validate(name)  # by its packaged name
    assert name in (folder / "src" / f"posttrain_{name}" / "recipes" / f"{name}.yaml").read_text("utf-8")
    assert checked.name == name


def test_the_conformance_test_has_three_lines(tmp_path: Path) -> None:
    new_plugin("reward", "tried_reward", tmp_path)
    text = (tmp_path / "posttrain-tried-reward" / "tests" / "test_tried_reward.py").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith(("from", "import"))]
    assert lines == [
        '@parametrize_with_checks("reward", ["tried_reward"])',
        "def test_tried_reward(plugin, check):",
        "    check(plugin)",
    ]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "posttrain-tried-reward"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        new_plugin("reward", "tried_reward", tmp_path)
    assert [file.name for file in folder.rglob("*")] == ["notes.txt"]
    with pytest.raises(InputError, match="no folder"):
        new_plugin("reward", "tried_reward", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Short-Answers", "short_answers"),
        ("class", "class_reward"),
        ("2fast", "fast"),
        ("a" * 50, "a" * 40),
        ("../evil", "evil"),
        ("", "for instance short_answers"),
        ("length", "my_length"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        new_plugin("reward", name, tmp_path)
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(hint)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no kind 'rewrd'") as caught:
        new_plugin("rewrd", "tried", tmp_path)
    assert caught.value.hint == "did you mean 'reward'?"


# --- the commands ----------------------------------------------------------------------------------------------------


def test_new_prints_files_and_the_next_commands(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plugins", "new", "strategy", "tried_strategy", "--into", str(tmp_path)])
    assert done.exit_code == 0, done.output
    files = done.stdout.splitlines()
    assert len(files) == 6
    assert all(Path(file).is_file() for file in files)
    assert "posttrain plugins check tried_strategy" in done.stderr


def test_check_prints_a_table_and_exits_1_on_a_failure(tmp_path: Path) -> None:
    good = CliRunner().invoke(app, ["plugins", "check", "length"])
    assert good.exit_code == 0, good.output
    assert "passed    check_finite" in good.stdout
    file = tmp_path / "r.py"
    file.write_text('def noisy(completions, **_):\n    """Two."""\n    return [2.0 for _ in completions] + [0.0]\n')
    bad = CliRunner().invoke(app, ["plugins", "check", f"{file}:noisy", "--kind", "reward", "--json"])
    assert bad.exit_code == 1
    (row,) = json.loads(bad.stdout)
    failed = {check["check"]: check["reason"] for check in row["checks"] if check["status"] == "failed"}
    assert "values for" in failed["check_one_value_per_completion"]
    assert "check_empty_batch" in failed


def test_check_wants_a_name_or_all() -> None:
    done = CliRunner().invoke(app, ["plugins", "check"])
    assert isinstance(done.exception, InputError)


def test_list_tells_status_and_cause(tmp_path: Path, install: Any) -> None:
    new_plugin("reward", "tried_reward", tmp_path)
    folder = tmp_path / "posttrain-tried-reward"
    shutil.copytree(folder, tmp_path / "other")
    pyproject = tmp_path / "other" / "pyproject.toml"
    pyproject.write_text(pyproject.read_text("utf-8").replace('name = "posttrain-tried-reward"', 'name = "other"'))
    install(folder)
    install(tmp_path / "other")
    (folder / "src" / "posttrain_tried_reward" / "tried_reward.py").write_text("import no_such_package\n")
    (tmp_path / "other" / "src" / "posttrain_tried_reward" / "tried_reward.py").write_text("import no_such_package\n")
    done = CliRunner().invoke(app, ["plugins", "list", "--kind", "reward", "--json"])
    rows = {(row["name"], row["distribution"]): row for row in json.loads(done.stdout)}
    assert rows["length", "posttrain-plugins"]["status"] == "ok"
    broken = rows["tried_reward", "posttrain-tried-reward"]
    assert (broken["status"], "no_such_package" in broken["cause"]) == ("broken", True)


def test_list_tells_a_name_that_two_packages_give(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain_plugins.recipe.describe import catalogue

    rows = registry.entry_points()
    target = "posttrain_plugins.rewards.length:Length"
    twice = (*rows, (registry.group("reward"), "length", target, "another", "0.1"))
    monkeypatch.setattr(registry, "entry_points", lambda: twice)
    registry.installed.cache_clear()
    found = {row["distribution"]: row for row in catalogue.listing("reward") if row["name"] == "length"}
    registry.installed.cache_clear()
    assert found["another"]["status"] == found["posttrain-plugins"]["status"] == "conflict"
    assert found["another"]["cause"] == "also given by posttrain-plugins: write another:length"


def test_show_tells_every_kind_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = registry.entry_points()
    twice = (
        *rows,
        (registry.group("dataset"), "length", "posttrain_plugins.datasets.digit_chain:DigitChain", "b", "1"),
    )
    monkeypatch.setattr(registry, "entry_points", lambda: twice)
    registry.installed.cache_clear()
    shown = json.loads(CliRunner().invoke(app, ["plugins", "show", "length", "--json"]).stdout)
    text = CliRunner().invoke(app, ["plugins", "show", "length"]).stdout
    one = json.loads(CliRunner().invoke(app, ["plugins", "show", "length", "--kind", "reward", "--json"]).stdout)
    registry.installed.cache_clear()
    assert [(found["kind"], found["distribution"]) for found in shown] == [
        ("reward", "posttrain-plugins"),
        ("dataset", "b"),
    ]
    assert ("max_chars" in text, "digit_chain" in text) == (True, True)
    assert one == shown[0]


def test_show_tells_references_and_options() -> None:
    done = CliRunner().invoke(app, ["plugins", "show", "evaluate", "--json"])
    found = json.loads(done.stdout)
    types = {field["name"]: field["type"] for field in found["parameters"]}
    assert (types["models"], types["dataset"], types["strategies"]) == (
        "list of models",
        "dataset",
        "list of strategies",
    )
    assert found["produces"] == "figures"
    args = json.loads(CliRunner().invoke(app, ["plugins", "show", "dpo", "--json"]).stdout)["parameters"][-1]
    assert args["type"] == "options of trl:DPOConfig"
