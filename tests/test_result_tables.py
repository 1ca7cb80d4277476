"""The table of what is measured: every recipe and seed, with commit and load, from whatever results files there are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"commit": "a" * 40, "load_average": 1.25, "hardware": {"cores": 2}}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of recipes and an empty one of results."""
    recipes, results = tmp_path / "recipes", tmp_path / "results"
    (recipes / "real").mkdir(parents=True)
    results.mkdir()
    for name in ("_part", "alone", "lacking", "real/chat"):
        (recipes / f"{name}.yaml").write_text("", encoding="utf-8")
    return recipes, results


def keep(results: Path, name: str, found: dict[str, Any]) -> None:
    (results / f"{name}.json").write_text(json.dumps({"environment": ENVIRONMENT, "results": found}), encoding="utf-8")


def test_every_recipe_has_a_row_and_every_seed_its_commit_and_load(benchmark: Any, folders: tuple[Path, Path]) -> None:
    recipes, results = folders
    seeds = {
        "0": {"commit": "b" * 40, "load_average": [1.0, 2.5]},
        "1": {"commit": f"{'c' * 40}-dirty", "load_average": 1.0},
        "2": {"commit": "d" * 40, "load_average": [3.1, 1.0]},
    }
    settings = {"kto": "tuned on what it reports", "others": "seed 10"}
    keep(results, "any_name", {"recipe": "alone", "seeds": seeds, "settings": settings, "missed": ["it is .7"]})
    keep(results, "real", {"recipes": {"chat": {"seeds": {"0": {}}, "settings": {"all": "seed 11"}}}})
    row = {"commit": "e" * 40, "load_average": [0.5, 0.5]}
    keep(results, "trained", {"rows": {"one": {"0": row, "1": row}, "two": {"0": {**row, "commit": "f" * 40}}}})
    table = benchmark("result_tables.overview").overview_table(recipes, results)
    assert (
        "| `alone` | bbbbbbb, 2.50 | **ccccccc-dirty, 1.00** | **ddddddd, 3.10** "
        "| kto: tuned on what it reports; others: seed 10 | 1 missed |"
    ) in table
    assert "| `lacking` | not measured | not measured | not measured |  |  |" in table
    assert "| `real/chat` | aaaaaaa, 1.25 | not measured | not measured | seed 11 |  |" in table, (
        "of the file as a whole"
    )
    assert (
        "| `trained.py` | 2 of 2 rows, eeeeeee, fffffff, 0.50 | 1 of 2 rows, eeeeeee, 0.50 | not measured |  |  |"
        in table
    )
    assert "_part" not in table
    assert "1 of 4 have three whole seeds." in table


@pytest.mark.parametrize(
    "found",
    [{"rows": [{"script": "engine"}]}, {"rows": 4, "cells": {}}, {"seeds": ["0"]}, {"recipes": ["grpo"]}, {}],
    ids=["rows in a list", "a count of rows", "names of seeds", "names of recipes", "nothing"],
)
def test_other_results_files_are_passed_over(benchmark: Any, folders: tuple[Path, Path], found: dict[str, Any]) -> None:
    recipes, results = folders
    keep(results, "other", found)
    assert list(benchmark("result_tables.overview").standings(results)) == []
    assert "0 of 3 have three whole seeds." in benchmark("result_tables.overview").overview_table(recipes, results)


@pytest.mark.parametrize(
    ("file", "message"), [("again", "alone is in two results files"), ("recipe_gone", "no file in")]
)
def test_results_that_would_vanish_are_told(
    benchmark: Any, folders: tuple[Path, Path], file: str, message: str
) -> None:
    recipes, results = folders
    keep(results, "alone", {"seeds": {"0": {}}})
    keep(results, file, {"recipe": "alone", "seeds": {"1": {}}} if file == "again" else {"seeds": {"0": {}}})
    with pytest.raises(ValueError, match=message):
        benchmark("result_tables.overview").overview_table(recipes, results)


def test_a_script_has_three_seeds_where_every_row_has(benchmark: Any, folders: tuple[Path, Path]) -> None:
    recipes, results = folders
    three = {"0": {}, "1": {}, "2": {}}
    keep(results, "trained", {"rows": {"one": three, "two": {"0": {}}}})
    assert "0 of 4 have three whole seeds." in benchmark("result_tables.overview").overview_table(recipes, results)
    keep(results, "trained", {"rows": {"one": three, "two": three}, "missed": []})
    table = benchmark("result_tables.overview").overview_table(recipes, results)
    assert "1 of 4 have three whole seeds." in table
    assert "|  | hold |" in table


def test_a_load_that_nobody_knows_is_no_quiet_machine(benchmark: Any, folders: tuple[Path, Path]) -> None:
    recipes, results = folders
    keep(results, "alone", {"seeds": {"0": {"load_average": None}}})
    table = benchmark("result_tables.overview").overview_table(recipes, results)
    assert "| `alone` | **aaaaaaa, load unknown** |" in table


def test_without_results_a_page_is_left_alone(benchmark: Any, tmp_path: Path) -> None:
    page = "<!-- results:overview -->\nas it was\n<!-- /results -->\n"
    assert benchmark("render").render(page, tmp_path) == page


def test_every_packaged_recipe_is_in_the_page() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    names = [file.stem for file in (ROOT / "recipes").glob("[!_]*.yaml")]
    names += [f"real/{file.stem}" for file in (ROOT / "recipes" / "real").glob("[!_]*.yaml")]
    assert [name for name in names if f"\n| `{name}` | " not in page] == []


def test_a_header_names_the_best_strategies_that_do_not_know_the_answer(benchmark: Any) -> None:
    ways = {"greedy": 0.9, "sampled": 0.6, "majority": 0.95, "best_of_n(n=8, scorer=correct) (oracle)": 0.99}
    ways |= {"dvts(n=8)": 0.92, "beam_search()": 0.7, "self_consistency(n=8)": 0.8, "particle_filtering()": 0.75}
    strategies: dict[str, Any] = {name: {"mean": mean} for name, mean in ways.items()}
    strategies["dvts(n=8)"]["over_greedy"] = {"mean": 0.02, "low": 0.01, "high": 0.03}
    results = {"strategies": strategies, "seeds": {"0": {"seconds": {"sft": 120.0}}}}
    machine = {**ENVIRONMENT, "hardware": {"cores": 2, "cpu": "It", "gpu": None}}
    lines = benchmark("result_tables.recipes").recipe_header(results, machine)
    assert lines == [
        "Accuracy: sampled 0.60, greedy 0.90, dvts 0.92 (+0.02 [+0.01, +0.03]), self_consistency 0.80, "
        "particle_filtering",
        "0.75.",
        "1 seed: 0; 2 minutes a seed with base and SFT, on It, 2 cores.",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.md", "<!-- results: methods -->\n.99\n<!-- /results -->\n"),
        ("page.md", "<!-- results:methods -->\n.99\n<!-- /result -->\n"),
        ("page.md", "<!-- results:methods --> \n.99\n<!-- /results -->\n"),
        ("it.yaml", "# Results: benchmarks/results/methods.json \n#   sft 0.99\n"),
        ("it.yaml", "# Results: results/methods.json\n#   sft 0.99\n"),
    ],
)
def test_a_place_for_figures_that_cannot_be_read_is_an_error(
    benchmark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    """What stands there would never be checked."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert benchmark("render").fill(tmp_path / name, ROOT / "benchmarks" / "results", check=True) == 1
    assert f"{name}: 1 of 1 places for figures cannot be read" in capsys.readouterr().err
