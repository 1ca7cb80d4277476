"""The README is run: its recipe is checked, its reward scored, its Python executed, its tree compared with the disk."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

import pytest

from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.read.document import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no {language} block"
    return [str(block) for block in found]


def test_the_recipe_is_valid(tmp_path: Path) -> None:
    (recipe,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(recipe, encoding="utf-8")
    shutil.copytree(ROOT / "recipes" / "data", tmp_path / "data")
    checked = check(load(tmp_path / "mine.yaml"))
    assert [stage.id for stage in checked.stages] == ["sft", "pairs", "rm", "grpo", "eval"]
    assert len(recipe.splitlines()) <= 20


def test_the_reward_works_from_a_file_and_in_twenty_lines(tmp_path: Path) -> None:
    import posttrain_plugins as pp

    reward = blocks("python")[0]
    assert len(reward.splitlines()) <= 20
    file = tmp_path / "posttrain_brevity.py"
    file.write_text(reward, encoding="utf-8")
    brevity = pp.load("reward", f"{file}:Brevity", max_chars=4)
    assert brevity(["abcd", "abcdef", "abcdefgh"]) == [1.0, 0.5, 0.0]
    assert brevity([[{"role": "assistant", "content": "abcdef"}]]) == [0.5]


@pytest.mark.parametrize("number", [1, 2])
def test_the_python_compiles_and_names_what_exists(number: int) -> None:
    import posttrain_plugins as pp

    block = blocks("python")[number]
    compile(block, "README.md", "exec")
    for name in re.findall(r"\bpp\.(\w+)", block):
        assert name in pp.__all__
        assert callable(getattr(pp, name))


def test_the_bare_trl_block_gives_trl_what_it_takes() -> None:
    import posttrain_plugins as pp

    assert pp.load("reward", "length", max_chars=200)(completions=["x"]) == [1.0]
    assert set(pp.load("dataset", "digit_chain", size=10).column_names) == {"prompt", "solution"}
    assert pp.load("adapter", "lora", r=16).r == 16


def test_the_plugins_that_it_shows_and_checks_exist() -> None:
    from posttrain_plugins.recipe.describe import catalogue

    names = re.findall(r"posttrain plugins (?:show|check) (\w+)", README)
    assert len(names) >= 2
    assert all(catalogue.chosen(name) for name in names)


def test_the_tree_is_the_disk() -> None:
    tree = textwrap.dedent(README.split("## Layout of the source")[1].split("```")[1])
    inside = [line.strip().split("  ")[0] for line in tree.splitlines() if line.startswith("  ")]
    named = {name.rstrip("/") for line in inside for name in line.split()}
    package = ROOT / "posttrain_plugins"
    hidden = {"__init__.py", "__main__.py", "py.typed"}
    on_disk = {path.name for path in package.iterdir() if path.suffix == ".py" or any(path.rglob("*.py"))}
    assert named == on_disk - hidden
    outside = {line.split("/")[0] for line in tree.splitlines() if line and not line.startswith(" ")}
    assert all((ROOT / name).is_dir() for name in outside)


def test_every_packaged_recipe_is_in_the_tour() -> None:
    from posttrain_plugins.recipe.read.packaged import packaged_recipes

    written = re.sub(r"<!-- results:.*?<!-- /results -->", "", README, flags=re.DOTALL)  # by hand
    tour = set(re.findall(r"^\| `([\w/]+)` \|", written, re.MULTILINE))
    assert tour == {name for name in packaged_recipes() if "/" not in name}
