"""What third parties do: `examples/posttrain-haiku` and a newcomer's first plugin, both installed by pip."""

from __future__ import annotations

import ast
import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HAIKU = ROOT / "examples" / "posttrain-haiku"
ALLOWED = {f"posttrain_plugins.{name}" for name in ("types", "errors", "text", "answers")}
TINY = (
    "model.args.max_steps=1",
    "model.args.per_device_train_batch_size=4",
    "datasets.heldout.size=2",
    "stages.sft.args.max_steps=1",
    "stages.grpo.args.max_steps=1",
    "stages.grpo.args.max_completion_length=8",
    "stages.grpo.args.per_device_train_batch_size=4",
    "stages.eval.max_tokens=8",
)


TRIED = f"""
import sys
import posttrain_plugins as pp
import pytest
pp.run("haiku", {list(TINY)!r})
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "posttrain-haiku/tests"]))
"""


@dataclass
class Environment:
    """A fresh environment that sees this one's packages, with `pip` and `posttrain` of its own."""

    folder: Path

    def run(self, command: str, cwd: Path) -> str:
        """Runs a line of shell as a user would type it.

        Raises:
            AssertionError: it fails.
        """
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "HF_HOME": str(self.folder / "hf"), "COLUMNS": "200"}
        environment |= {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # 0: pip's own odd no
        environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        done = subprocess.run(command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (home,) = folder.glob("lib/python*/site-packages")
    seen = [path for path in sys.path if path.endswith("site-packages")] or site.getsitepackages()
    lines = [f"import site; site.addsitedir({path!r})" for path in seen]  # with its own .pth files
    (home / "_seen.pth").write_text("\n".join(lines) + "\n")
    for name, call in (
        ("pip", f'"{sys.executable}" -m pip --python "{python}"'),
        ("posttrain", f'"{python}" -m posttrain_plugins'),
    ):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
        script.chmod(0o755)
    return Environment(folder)


def test_haiku_imports_the_four_public_modules_only() -> None:
    files = list((HAIKU / "src").rglob("*.py"))
    assert len(files) >= 6
    for file in files:
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        found = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert {name for name in found if name.startswith("posttrain_plugins")} <= ALLOWED, file


def test_haiku_has_one_plugin_of_each_kind_and_a_recipe() -> None:
    project = tomllib.loads((HAIKU / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    kinds = {group.partition(".")[2]: len(names) for group, names in project["entry-points"].items()}
    assert kinds == {"rewards": 1, "adapters": 1, "strategies": 1, "datasets": 1, "stages": 1, "recipes": 1}
    readme = (HAIKU / "README.md").read_text(encoding="utf-8")
    named = [name for names in project["entry-points"].values() for name in names]
    assert all(f"`{name}`" in readme or f"run {name}" in readme for name in named)


@pytest.mark.slow
def test_haiku_is_installed_checked_and_run(environment: Environment, tmp_path: Path) -> None:
    package = tmp_path / "posttrain-haiku"
    shutil.copytree(HAIKU, package)
    environment.run("pip install .", package)
    shutil.rmtree(package / "src")  # what runs is what pip installed
    listed = environment.run("posttrain plugins list --kind reward", tmp_path)
    assert re.search(r"haiku_form\W+posttrain-haiku\W+0\.1\.0\W+ok", listed)
    (tmp_path / "tried.py").write_text(TRIED)  # the recipe and its own checks in one process: torch is imported once
    report = environment.run(f'"{environment.folder}/bin/python" tried.py', tmp_path)
    assert (tmp_path / "runs" / "haiku" / "latest" / "eval" / "summary.json").is_file()
    assert "failed" not in report
    assert int(re.findall(r"(\d+) passed", report)[0]) > 50


@pytest.mark.slow
def test_the_commands_of_the_first_plugin_work(environment: Environment, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "first_plugin.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert commands[0] == "posttrain plugins new reward short_answers"
    assert "posttrain run short_answers" in commands
    for command in commands:
        environment.run(command, tmp_path)
    assert (tmp_path / "runs" / "short_answers" / "latest" / "grpo").exists()
