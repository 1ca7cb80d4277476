"""The command line as a user meets it: output, exit codes, and what it must not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "trl", "peft", "datasets", "accelerate")


def posttrain(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "posttrain_plugins", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, check=False)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["plugins", "list"], ["plugins", "show", "lora"], ["validate", "quickstart"]],
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['posttrain', *{arguments!r}]\n"
        "from posttrain_plugins.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_packaged_recipe_is_valid() -> None:
    from posttrain_plugins.recipe.packaged import packaged_recipes

    names = sorted(packaged_recipes())
    assert {"quickstart", "lora", "my_own_data"} <= set(names)
    done = posttrain("validate", *names)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fine") == len(names)


def test_unknown_recipe_is_exit_2_with_a_suggestion() -> None:
    done = posttrain("run", "quikstart")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no recipe 'quikstart'")
    assert "did you mean 'quickstart'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_validate_json_lists_every_mistake(tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(
        "model: ./nowhere\nstages:\n  sft: {use: stf, model: base}\n  dpo: {use: dpo, model: sftt, dataset: d}\n"
    )
    done = posttrain("validate", str(recipe), "--json")
    assert done.returncode == 2
    mistakes = json.loads(done.stdout)["mistakes"]
    assert [m["line"] for m in mistakes] == [1, 3, 4, 4]
    assert "did you mean 'sft'?" in {m["hint"] for m in mistakes}


def test_plan_json_says_what_runs_and_why(tmp_path: Path) -> None:
    done = posttrain("plan", "quickstart", "--runs-dir", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)}
    assert next(iter(stages)) == "base"
    assert stages["grpo"]["from"] == ["sft"]
    assert all(stage["runs"] and stage["reasons"] for stage in stages.values())


def test_plan_table_is_readable(tmp_path: Path) -> None:
    done = posttrain("plan", "lora", "--runs-dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "never run" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 160


def test_plugins_list_json_names_ours_with_version() -> None:
    rows = json.loads(posttrain("plugins", "list", "--json").stdout)
    ours = {(row["kind"], row["name"]) for row in rows if row["distribution"] == "posttrain-plugins"}
    assert {("stage", "grpo"), ("reward", "regex"), ("adapter", "lora"), ("strategy", "best_of_n")} <= ours
    assert all(row["status"] == "ok" and row["summary"] for row in rows)


def test_plugins_show_has_parameters_and_columns() -> None:
    found = json.loads(posttrain("plugins", "show", "exact_answer", "--json").stdout)
    assert found["columns"] == ["solution"]
    assert found["doc"]
    lora = json.loads(posttrain("plugins", "show", "lora", "--json").stdout)
    assert {"r", "lora_alpha", "target_modules"} <= {p["name"] for p in lora["parameters"]}


def test_plugins_show_unknown_suggests() -> None:
    done = posttrain("plugins", "show", "exact_anser")
    assert done.returncode == 2
    assert "did you mean 'exact_answer'?" in done.stderr


def test_unwritable_runs_dir_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    done = posttrain("run", "quickstart", "--runs-dir", str(file / "runs"))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "--runs-dir" in done.stderr


def test_report_of_an_unknown_run_is_exit_2(tmp_path: Path) -> None:
    done = posttrain("report", "nothing", "--runs-dir", str(tmp_path))
    assert done.returncode == 2
    assert "no run 'nothing'" in done.stderr


def test_help_of_every_command_teaches() -> None:
    for command in (
        ["run"],
        ["validate"],
        ["plan"],
        ["report"],
        ["evaluate"],
        ["ask"],
        ["plugins", "list"],
        ["plugins", "show"],
    ):
        done = posttrain(*command, "--help")
        assert done.returncode == 0
        assert len(done.stdout) > 300, command


def test_package_runs_as_a_module_and_as_a_command() -> None:
    command = Path(sys.executable).parent / "posttrain"
    assert command.exists(), "installed by pip as the console script"
    by_command = subprocess.run([str(command), "--help"], capture_output=True, text=True, check=True, env=os.environ)
    assert by_command.stdout.split() == posttrain("--help").stdout.split()
