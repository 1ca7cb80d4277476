"""Packages that misbehave as they are imported, or take a built-in's name: they hurt their own names only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins import doctor
from posttrain_plugins.errors import InputError
from posttrain_plugins.plugins import registry
from posttrain_plugins.recipe.read.packaged import owner_of

HOSTILE = {
    "exits": "import sys\nsys.exit(0)\n",
    "exits_with_words": "raise SystemExit('bye')\n",
    "raises_above_exception": "class Odd(BaseException): ...\nraise Odd('no')\n",
    "is_not_python": "def score(:\n",
    "has_no_such_name": "VALUE = 1\n",
}
PRINTS = 'print(\'hello from a plugin\')\ndef score(completions, **columns):\n    """Zero."""\n    return [0.0]\n'
NO_PLUGIN = "class Odd:\n    def __get__(self, *a): raise RuntimeError('odd')\n    __call__ = 3\nscore = 7\n"
RIVALS = {"reward": "exact_answer digit_chain_steps reward_model", "strategy": "greedy self_consistency best_of_n",
          "stage": "sft grpo evaluate pretrain", "dataset": "digit_chain", "adapter": "lora"}  # fmt: skip


def install(site: Path, package: str, source: str, points: dict[str, str]) -> None:
    """What pip leaves of a package: a module, and its metadata with entry points (kind -> names, each of `score`)."""
    module = package.replace("-", "_")
    info = site / f"{module}-0.1.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
    sections = (
        f"[{registry.group(kind)}]\n" + "".join(f"{name} = {module}:score\n" for name in names.split())
        for kind, names in points.items()
    )
    (info / "entry_points.txt").write_text("\n".join(sections))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    for name, source in HOSTILE.items():
        install(folder, f"posttrain-{name.replace('_', '-')}", source, {"reward": name})
    install(folder, "posttrain-prints", PRINTS, {"reward": "prints"})
    install(folder, "posttrain-no-plugin", NO_PLUGIN, {"strategy": "no_plugin"})
    return folder


def posttrain(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "posttrain_plugins", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


def test_listing_tells_each_and_lists_all_the_others(site: Path, tmp_path: Path) -> None:
    done = posttrain(site, "plugins", "list", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert {name: rows[name]["status"] for name in HOSTILE} == dict.fromkeys(HOSTILE, "broken")
    assert rows["exits"]["cause"] == "SystemExit: 0"
    assert (rows["prints"]["status"], rows["prints"]["summary"]) == ("ok", "Zero.")
    assert done.stderr == "hello from a plugin\n"
    assert sum(row["status"] == "ok" for row in rows.values()) > 60


def test_schema_show_and_validate_do_without_them(site: Path, tmp_path: Path) -> None:
    schema = json.loads(posttrain(site, "schema", cwd=tmp_path).stdout)
    assert {"reward.length", "reward.prints", "strategy.greedy"} <= set(schema["$defs"])
    assert not {f"reward.{name}" for name in HOSTILE} & set(schema["$defs"])
    shown = posttrain(site, "plugins", "show", "prints", "--json", cwd=tmp_path)
    assert json.loads(shown.stdout)["distribution"] == "posttrain-prints"
    assert json.loads(posttrain(site, "validate", "quickstart", "--json", cwd=tmp_path).stdout)["mistakes"] == []
    broken = posttrain(site, "plugins", "show", "exits", cwd=tmp_path)
    assert (broken.returncode, "SystemExit: 0" in broken.stderr) == (1, True)


def test_doctor_names_them(site: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.syspath_prepend(str(site))
    remembered = (registry.installed, registry.entry_points)
    for one in remembered:
        one.cache_clear()
    found = {row.what: row for row in doctor._plugins()}
    for one in remembered:
        one.cache_clear()
    assert {found[f"reward {name}"].status for name in HOSTILE} == {"broken"}
    assert capsys.readouterr().out == ""


# --- names that are taken ---------------------------------------------------------------------------------------------


@pytest.fixture
def rival(tmp_path: Path) -> Path:
    folder = tmp_path / "rival"
    install(folder, "posttrain-rival", "def score(**anything): raise RuntimeError('the rival')\n", RIVALS)
    return folder


def test_a_packaged_recipe_means_its_own_package(rival: Path, tmp_path: Path) -> None:
    for recipe in ("quickstart", "rlhf_ppo", "process_reward"):
        done = posttrain(rival, "validate", recipe, "-o", "stages.eval.strategies=[greedy]", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), recipe


def test_a_recipe_of_the_users_has_to_say_which_but_for_defaults(rival: Path, tmp_path: Path) -> None:
    text = "model: Qwen/Qwen3-0.6B\nstages: {e: {use: posttrain-plugins:evaluate, models: [base], dataset: rows.jsonl, "
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1", "solution": "1"}\n')
    (tmp_path / "plain.yaml").write_text(text + "rewards: [exact_answer]}}\n")
    (tmp_path / "owned.yaml").write_text(text + "rewards: ['posttrain-plugins:exact_answer']}}\n")
    plain = posttrain(rival, "validate", "plain.yaml", cwd=tmp_path)
    assert plain.returncode == 2
    assert "plain.yaml:2:" in plain.stderr
    assert (
        f"reward 'exact_answer' is given by posttrain-plugins {version('posttrain-plugins')} and posttrain-rival 0.1"
        in plain.stderr
    )
    assert posttrain(rival, "validate", "owned.yaml", cwd=tmp_path).stdout == "owned.yaml: fine, 1 stage: e\n"


def test_a_resolved_recipe_names_packages_and_keeps_its_labels() -> None:
    from posttrain_plugins import api

    recipe = api.validate("quickstart", {"stages.eval.strategies": ["greedy", "best_of_n(n=4, scorer=rm)"]})
    stages = recipe.data["stages"]
    assert recipe.data["model"]["use"] == "posttrain-plugins:pretrain"
    assert recipe.data["rewards"]["answer"] == {"use": "posttrain-plugins:exact_answer"}
    assert stages["sft"]["use"] == "posttrain-plugins:sft"
    assert stages["eval"]["strategies"] == [
        "posttrain-plugins:greedy",
        {"use": "posttrain-plugins:best_of_n", "n": 4, "scorer": "rm"},
    ]
    labels = [source.name for source in recipe.stage("eval").inputs["strategies"]]  # type: ignore[union-attr]
    assert labels == ["greedy", "best_of_n(n=4, scorer=rm)"]


def test_only_files_below_a_package_have_an_owner(tmp_path: Path) -> None:
    from posttrain_plugins.recipe.read.packaged import find_recipe

    assert owner_of(find_recipe("quickstart").resolve()) == "posttrain-plugins"
    assert owner_of(tmp_path / "mine.yaml") == ""


@pytest.mark.parametrize("name", ["../recipes/quickstart", "_tiny_base", "{folder}/quickstart", "gpu/../quickstart"])
def test_a_packaged_name_is_one_that_is_listed(name: str) -> None:
    from posttrain_plugins.recipe.read.packaged import find_recipe, packaged_recipes

    folder = find_recipe("quickstart").parent
    assert all(find_recipe(known) == file for known, file in packaged_recipes().items())
    with pytest.raises(InputError, match="neither a file nor a packaged one"):
        find_recipe(name.format(folder=folder))
