"""Puts tables made from `benchmarks/results/*.json` into README.md and docs/*.md: no figure there is typed by hand.

A table stands between `<!-- results:NAME -->` and `<!-- /results -->`, NAME being a results file; a marker whose file
is missing is left alone; `overview`, what stands of which recipe and seed, is made of all of them. The header of each
recipe gets its figures too, behind the line that names their file.
`--check` changes nothing and exits 1 where a figure is not what its results give; it tells how many have none yet.

    python benchmarks/render.py
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from result_tables import learning, machine, overview, real, recipes, strategies
from result_tables.text import Json, source

__all__ = ["TABLES", "render", "render_recipe"]

ROOT = Path(__file__).resolve().parent.parent
HEADER = re.compile(r"(# Results: benchmarks/results/(?P<name>\w+)\.json\n)(?P<body>(?:#   .*\n)*)")
OVERVIEW = "overview"
"""The block that is made of all results files, and not of one of its name."""
BLOCK = re.compile(r"(<!-- results:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(<!-- /results -->)", re.DOTALL)


def main() -> int:
    options = _options()
    pages, headers = sorted((ROOT / "docs").rglob("*.md")), sorted((ROOT / "recipes").glob("[!_]*.yaml"))
    files = options.file or [ROOT / "README.md", *pages, *headers]
    return max(fill(file, options.results, options.check) for file in files)


def fill(file: Path, results: Path, check: bool) -> int:
    """Fills one file, or says with exit code 1 that it is stale."""
    page = file.read_text(encoding="utf-8")
    is_recipe = file.suffix == ".yaml"
    if lost := _unread(page, HEADER if is_recipe else BLOCK):
        print(f"error: {file}: {lost}", file=sys.stderr)
        return 1
    up = "../" if file.resolve().parent == ROOT / "docs" else ""  # links on a page start from its folder
    rendered = render_recipe(page, results) if is_recipe else render(page, results, up)
    if rendered == page:
        found = list((HEADER if is_recipe else BLOCK).finditer(page))
        unmade = sum(one["name"] != OVERVIEW and not (results / f"{one['name']}.json").is_file() for one in found)
        print(f"{file.name}: {_told(len(found) - unmade, unmade)}")
        return 0
    if check:
        print(
            f"error: {file} is stale: a figure is not what benchmarks/results gives\n\n"
            "hint: python benchmarks/render.py",
            file=sys.stderr,
        )
        return 1
    file.write_text(rendered, encoding="utf-8")
    print(f"{file.name}: tables written")
    return 0


def _unread(page: str, pattern: re.Pattern[str]) -> str:
    """What looks like the place of figures and is none, so that what stands there would never be checked."""
    marks = r"# *Results *:.*" if pattern is HEADER else r"<!-- *results? *:.*?-->"
    found, read = len(re.findall(marks, page)), len(pattern.findall(page))
    opened = "`# Results: benchmarks/results/NAME.json`, and nothing behind it"
    expected = opened if pattern is HEADER else "`<!-- results:NAME -->` on a line, later `<!-- /results -->`"
    return f"{found - read} of {found} places for figures cannot be read, expected {expected}" if found != read else ""


def _told(made: int, unmade: int) -> str:
    """What stands in a file; that figures are not made yet is no fault."""
    parts = [f"{made} table{'s' * (made != 1)}, up to date"] if made or not unmade else []
    return "; ".join([*parts, *([f"{unmade} without figures: no results file yet"] if unmade else [])])


def render(page: str, results: Path, up: str = "") -> str:
    """The page with every block filled from its results file, links to which start with `up`."""

    def fill(block: re.Match[str]) -> str:
        if block["name"] == OVERVIEW and not any(overview.standings(results)):
            return block[0]
        if block["name"] == OVERVIEW:
            return f"{block[1]}\n{overview.overview_table(ROOT / 'recipes', results)}\n\n{block[4]}"
        file = results / f"{block['name']}.json"
        if not file.is_file():
            return block[0]
        content = json.loads(file.read_text(encoding="utf-8"))
        table = _renderer(block["name"])(content["results"])
        return (
            f"{block[1]}\n{table}\n\n{source(content['environment'], content['results'], file.name, up)}\n\n{block[4]}"
        )

    return BLOCK.sub(fill, page)


def render_recipe(page: str, results: Path) -> str:
    """A recipe with the figures in its header from the results file that it names."""

    def fill(header: re.Match[str]) -> str:
        file = results / f"{header['name']}.json"
        if not file.is_file():
            return header[1]
        content = json.loads(file.read_text(encoding="utf-8"))
        lines = recipes.recipe_header(content["results"], content["environment"])
        return header[1] + "".join(f"#   {line}\n" for line in lines)

    return HEADER.sub(fill, page)


TABLES: dict[str, Callable[[Json], str]] = {
    "critic": learning.critic_table,
    "value": learning.value_table,
    "search": strategies.search_table,
    "tree": strategies.search_table,
    "graph": strategies.search_table,
    "process_rewards": learning.process_rewards_table,
    "faults": machine.faults_table,
    "launch": machine.launch_table,
    "store_kills": machine.store_kills_table,
    "adapters": recipes.adapters_table,
    "kills": machine.kills_table,
    "quickstart_seeds": recipes.quickstart_table,
    "gradient_checkpointing": real.gradient_checkpointing_table,
    "grpo_real": real.grpo_real_table,
    "overhead": machine.overhead_table,
    "memory_plan": machine.memory_plan_table,
    "ppo_memory": machine.ppo_memory_table,
    "share_prompts": machine.share_prompts_table,
    "gpu_qwen3_0.6b": machine.gpu_table,
    "methods": recipes.methods_table,
    "real": real.real_table,
    "real_forgetting": real.forgetting_table,
    "real_kills": real.real_kills_table,
    "real_strategies": real.real_table,
    "test_time": strategies.test_time_table,
}


def _renderer(name: str) -> Callable[[Json], str]:
    return recipes.recipe_table if name.startswith("recipe_") else TABLES[name]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where the file is stale")
    parser.add_argument("--file", type=Path, nargs="+", help="files with markers (README.md, docs/*.md, recipes)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of results")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
