"""Measurements of several seeds: what is next, what is refused and marked, what is pooled, and what a stop costs."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.errors import Interrupted

ROOT = Path(__file__).resolve().parent.parent
OWN_SFT = {"full_deepspeed", "human_feedback", "my_own_data", "qlora", "r1", "rlhf_ppo_qlora", "search", "value_guided"}
"""Recipes whose SFT model is another by what they show: processes, people's answers, own data, 4 bits, a cold start,
demonstrations that are mostly wrong."""

OWN_WORLD = {"tree", "graph"}
"""Recipes of other tasks than the quickstart's, with a base of their own."""


@pytest.fixture
def series(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The shared part, on a machine that is quiet and a tree that is clean."""
    module = benchmark("series")
    monkeypatch.setattr(module.os, "getloadavg", lambda: (1.0, 1.0, 1.0))
    monkeypatch.setattr(module.record, "cores", lambda: 2)
    monkeypatch.setattr(module.record, "commit", lambda: "abc")
    return module


def options(out: Path, **more: Any) -> argparse.Namespace:
    given = {"seeds": [0, 1, 2], "next": False, "after": "", "wait_minutes": 0.0, "override": [], "out": out}
    return argparse.Namespace(**{**given, **more})


def one_of(values: list[float], **more: Any) -> dict[str, Any]:
    """A seed's figures of a recipe with a model `it` over `sft`, which has half of its problems right."""
    sft = [0.0, 1.0] * (len(values) // 2)
    gain = {"mean": sum(values) / len(values) - 0.5, "low": 0.0, "high": 1.0}
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    measures = {"measures": {"sampled": interval, "greedy": interval}}
    models = {"sft": {"parent": None, "gain": None, **measures}, "it": {"parent": "sft", "gain": gain, **measures}}
    return {"models": models, "values": {"sft": {"sampled": sft}, "it": {"sampled": values}}, **more}


# --- What is next, and what may run ----------------------------------------------------------------------------------


def test_the_recipe_with_the_fewest_seeds_is_next(series: Any) -> None:
    have: dict[str, list[str]] = {"grpo": ["0", "2"], "star": ["1"], "raft": [], "rest": ["0", "1", "2"], "r1": ["7"]}
    order = list(series.pending(list(have), ["0", "1", "2"], have.__getitem__))
    assert order[:4] == [("raft", "0"), ("r1", "0"), ("star", "0"), ("raft", "1")]
    assert order.count(("grpo", "1")) == 1
    assert len(order) == len(set(order)) == 9
    assert not any(name == "rest" for name, _ in order)


def test_a_busy_machine_is_waited_for_and_then_refused(series: Any) -> None:
    loads, slept = iter([9.0, 6.1, 6.0]), list[float]()
    assert series.quiet(600, load=lambda: next(loads), cores=2, sleep=slept.append) == 6.0
    assert len(slept) == 2
    with pytest.raises(SystemExit, match=r"load 6\.1, expected at most 6, 3 for each core\n\nhint: "):
        series.quiet(0, load=lambda: 6.1, cores=2, sleep=slept.append)


def test_only_a_clean_tree_from_a_commit_on_counts(series: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series.record, "is_ancestor", lambda earlier, later: (earlier, later) == ("b", "c"))
    assert series.stands({"commit": "a-dirty"}), "whatever stands, where no commit is named"
    assert series.stands({"commit": "c"}, after="b")
    assert not any(series.stands({"commit": commit}, after="b") for commit in ("a", "c-dirty", "unknown", ""))
    assert not series.stands({}, after="b")


def test_a_commit_is_its_own_ancestor_and_no_word_is(benchmark: Any) -> None:
    is_ancestor = benchmark("record").is_ancestor
    assert not is_ancestor("HEAD", "no-such-commit")
    assert is_ancestor("HEAD", "HEAD") or not (ROOT / ".git").exists()


# --- The loop --------------------------------------------------------------------------------------------------------


def fake(series: Any, tried: list[tuple[str, int]], fails: Any = lambda name, seed: None) -> dict[str, Any]:
    """Two recipes that run nothing, each with a results file."""

    def alone(name: str) -> Any:
        def one(seed: int, options: argparse.Namespace) -> dict[str, Any]:
            tried.append((name, seed))
            fails(name, seed)
            return one_of([1.0, 1.0])

        over_seeds = partial(importlib.import_module("recipes").over_seeds, name)
        return series.Alone(f"recipe_{name}", one, over_seeds, lambda results: "")

    return {name: alone(name) for name in ("grpo", "star")}


def test_each_seed_is_written_when_it_ends_and_a_stop_costs_the_rest_alone(series: Any, tmp_path: Path) -> None:
    tried: list[tuple[str, int]] = []

    def stops(name: str, seed: int) -> None:
        if (name, seed) == ("star", 1):
            raise Interrupted("stopped before stage 'sft'", signal_number=15)

    with pytest.raises(SystemExit) as stop:
        series.go(fake(series, tried, stops), options(tmp_path))
    assert stop.value.code == 143
    assert tried == [("grpo", 0), ("star", 0), ("grpo", 1), ("star", 1)]
    written = json.loads((tmp_path / "recipe_grpo.json").read_text(encoding="utf-8"))["results"]
    assert written["seeds"].keys() == {"0", "1"}
    assert written["seeds"]["1"]["commit"] == "abc"
    assert written["seeds"]["1"]["load_average"] == [1.0, 1.0]
    assert written["settings"] == {"all": "not recorded"}
    tried.clear()
    assert series.go(fake(series, tried), options(tmp_path)) == 0
    assert tried == [("star", 1), ("grpo", 2), ("star", 2)], "what stands is not run again"
    star = json.loads((tmp_path / "recipe_star.json").read_text(encoding="utf-8"))["results"]
    assert star["settings"] == series.settings_of("star") != {"all": "not recorded"}
    assert [(gain["model"], gain["mean"]) for gain in star["gains"]] == [("it", 0.5)]
    assert star["gains"][0]["by_seed"] == {"0": 0.5, "1": 0.5, "2": 0.5}


def test_rows_share_a_file_that_a_second_call_goes_on_with(series: Any, benchmark: Any, tmp_path: Path) -> None:
    rows = benchmark("trained_rows")
    tried: list[tuple[str, int]] = []
    shown: list[dict[str, Any]] = []

    def one(row: str, seed: int) -> dict[str, Any]:
        tried.append((row, seed))
        return {"curves": {"gold": [float(seed), 1.0, 2.0][: 2 + seed]}}

    def measure(*names: str, **more: Any) -> None:
        table = rows.Rows("it", ("plain", "paid"), ["seed=7"], {"steps": 3}, shown.append)
        assert (
            series.measure(rows.series_of(table, one, tmp_path), names, options(tmp_path, seeds=[0, 1], **more)) == []
        )

    measure("paid", next=True)
    measure("paid", "plain")
    assert tried == [("paid", 0), ("plain", 0), ("paid", 1), ("plain", 1)]
    assert len(shown) == 4, "after each row and seed"
    results = json.loads((tmp_path / "it.json").read_text(encoding="utf-8"))["results"]
    assert list(results["rows"]) == ["plain", "paid"], "in the order of the script, not of the measurement"
    assert {key: results[key] for key in ("overrides", "steps")} == {"overrides": ["seed=7"], "steps": 3}
    assert results["rows"]["paid"]["1"]["commit"] == "abc"
    assert rows.lines(results, "gold") == {"plain": [0.5, 1.0], "paid": [0.5, 1.0]}
    assert rows.lines(results, "proxy") == {}, "a row without the curve has no line"


def test_next_measures_one_and_a_recipe_that_fails_does_not_stand_in_its_way(series: Any, tmp_path: Path) -> None:
    tried: list[tuple[str, int]] = []

    def fails(name: str, seed: int) -> None:
        if name == "grpo":
            raise ValueError("no memory")

    assert series.go(fake(series, tried, fails), options(tmp_path, next=True)) == 1
    assert tried == [("grpo", 0), ("star", 0)]
    assert not (tmp_path / "recipe_grpo.json").exists()


def test_a_tree_that_changed_while_a_seed_ran_is_dirty(
    series: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = iter(["abc", "def-dirty", "def", "def"])  # before, after, and of the file, which is written twice
    monkeypatch.setattr(series.record, "commit", lambda: next(commits))
    series.go(fake(series, []), options(tmp_path, next=True))
    written = json.loads((tmp_path / "recipe_grpo.json").read_text(encoding="utf-8"))["results"]
    assert written["seeds"]["0"]["commit"] == "abc-dirty"


def test_a_summary_that_fails_costs_no_seed_and_stops_no_other(series: Any, tmp_path: Path) -> None:
    """What was measured for a quarter of an hour stands, whatever the figures of older seeds lack."""

    def summary(seeds: Any) -> dict[str, Any]:
        raise KeyError("majority")

    recipes = fake(series, [])
    recipes["grpo"] = dataclasses.replace(recipes["grpo"], over_seeds=summary)
    failed = series.measure(series.of_files(recipes, options(tmp_path)), list(recipes), options(tmp_path, seeds=[0]))
    assert failed == ["grpo, seed 0: KeyError: 'majority'"]
    for name in recipes:
        written = json.loads((tmp_path / f"recipe_{name}.json").read_text(encoding="utf-8"))["results"]
        assert list(written["seeds"]) == ["0"], name


def test_what_a_strategy_did_not_answer_cannot_be_paired(series: Any, tmp_path: Path) -> None:
    rows = [
        {"model": "sft", "measure": name, "problem": problem, "rewards": {"right": 1.0}}
        for name, problems in (("greedy", (0, 1)), ("mcts", (1,)))
        for problem in problems
    ]
    samples = tmp_path / "samples.jsonl"
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(ValueError, match="mcts of sft has no answer to problem 0"):
        series.values_of(samples, "right")


def test_other_overrides_are_refused_before_anything_runs(series: Any, tmp_path: Path) -> None:
    tried: list[tuple[str, int]] = []
    series.go(fake(series, tried), options(tmp_path, next=True))
    with pytest.raises(SystemExit, match="overrides"):
        series.go(fake(series, tried), options(tmp_path, override=["a=1"]))
    assert len(tried) == 1


def test_seeds_of_earlier_files_keep_what_they_were_made_on(
    series: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series.record, "cpu", lambda: "an older one")
    series.record.write("recipe_grpo", {"overrides": [], "seeds": {"0": {"problems": 3}}}, tmp_path)
    standing = series.of_files(fake(series, []), options(tmp_path)).standing("grpo")
    assert standing == {"0": {"commit": "abc", "load_average": 1.0, "cpu": "an older one", "problems": 3}}


def test_a_process_measures_the_commit_that_it_loaded(
    series: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that are committed beside it move HEAD, and not what runs."""
    commits = itertools.chain(["abc"], itertools.repeat("def"))
    monkeypatch.setattr(series.record, "commit", lambda: next(commits))
    series.go(fake(series, []), options(tmp_path, seeds=[0, 1]))
    written = json.loads((tmp_path / "recipe_grpo.json").read_text(encoding="utf-8"))["results"]
    assert [one["commit"] for one in written["seeds"].values()] == ["abc", "abc"]


def test_claims_are_judged_on_what_stands(series: Any, tmp_path: Path) -> None:
    """A file whose summary was never written, or whose claim is newer, is not taken for one that holds."""
    tried: list[tuple[str, int]] = []
    recipes = fake(series, tried)
    assert series.go(recipes, options(tmp_path)) == 0
    tried.clear()
    recipes["star"] = dataclasses.replace(recipes["star"], over_seeds=lambda seeds: {"missed": [f"{len(seeds)} seeds"]})
    assert series.go(recipes, options(tmp_path)) == 1
    assert tried == []


def test_a_gain_that_is_no_number_misses_its_claim(benchmark: Any) -> None:
    methods = benchmark("methods")
    gain = dict.fromkeys(("mean", "low", "high"), float("nan"))
    assert len(list(methods.unmet({methods.MUST_GAIN[0]: {"0": {"gain": gain}}}))) == 1


def test_settings_are_chosen_on_no_seed_that_is_reported(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = benchmark("recipes")
    monkeypatch.setattr("sys.argv", ["recipes.py", "grpo", "--development", "-o", "stages.grpo.args.beta=0.1"])
    chosen = recipes._options()
    assert chosen.seeds == [7]
    assert chosen.override == ["datasets.heldout.seed=5", "stages.grpo.args.beta=0.1"]
    assert ROOT / "runs" / "development" in chosen.out.parents
    monkeypatch.setattr("sys.argv", ["recipes.py", "grpo", "--development", "--seeds", "2", "8"])
    with pytest.raises(SystemExit):
        recipes._options()
    assert "seed 2 is reported" in capsys.readouterr().err


def test_development_problems_are_none_that_are_reported() -> None:
    from posttrain_plugins.datasets.digit_chain import DigitChain

    reported, others = (
        {row["prompt"][0]["content"] for row in DigitChain(split="test", size=300, seed=seed)()} for seed in (0, 5)
    )
    assert not reported & others


# --- What is shared --------------------------------------------------------------------------------------------------


def test_recipes_share_base_and_sft_of_a_seed_but_where_they_must_not(benchmark: Any) -> None:
    from posttrain_plugins.api import plan

    names = benchmark("recipes").NAMES
    assert len(names) >= 20
    keys = {name: {stage.id: stage.key for stage in plan(name, ["seed=1"]).stages} for name in names}
    keys = {name: found for name, found in keys.items() if name not in OWN_WORLD}
    assert len({found["base"] for found in keys.values()}) == 1
    shared = {found["sft"] for name, found in keys.items() if name not in OWN_SFT}
    assert len(shared) == 1
    assert not any(keys[name].get("sft") in shared for name in OWN_SFT), "it can be shared now: take it from OWN_SFT"
    assert keys["qlora"]["sft"] == keys["rlhf_ppo_qlora"]["sft"]
    assert keys["search"]["value"] == keys["value_guided"]["value"]


# --- What is pooled and told -----------------------------------------------------------------------------------------


def test_a_gain_of_every_model_is_pooled_where_all_seeds_have_each_problem(series: Any) -> None:
    seeds = {"0": one_of([1.0] * 40), "1": one_of([0.0, 1.0] * 20)}
    [gain] = series.gains_of(seeds)
    assert (gain["model"], gain["over"]) == ("it", "sft")
    assert gain["by_seed"] == {"0": 0.5, "1": 0.0}
    assert gain["low"] < 0.1 < gain["mean"] == 0.25 < 0.4 < gain["high"], "a draw may take either seed twice"
    earlier = {**seeds["0"]}
    del earlier["values"]
    assert series.gains_of({**seeds, "2": earlier}) == []
    assert series.gains_of({}) == []


def test_the_methods_are_made_of_the_recipes_files(series: Any, benchmark: Any, tmp_path: Path) -> None:
    methods = benchmark("methods")
    told = one_of([1.0] * 4)
    told["models"]["star.3.tuned"] = {**told["models"].pop("it"), "parent": "star.1.tuned"}
    told["values"]["star.3.tuned"] = told["values"].pop("it")
    told |= {"metrics": {"star.1.tuned": {"train_s": 3.0}, "star.3.tuned": {"train_s": 4.0}}, "load_average": [2, 9]}
    settings = {"all": series.TUNED}
    series.record.write("recipe_star", {"overrides": [], "settings": settings, "seeds": {"0": told}}, tmp_path)
    found = methods.of_recipes([], tmp_path)
    assert found["methods"].keys() == {"STaR"}
    assert found["methods"]["STaR"]["0"]["train_s"] == 7.0
    assert found["methods"]["STaR"]["0"]["load_average"] == [2, 9]
    assert found["settings"] == {"STaR": "tuned on what it reports"}
    assert found["gains"]["STaR"]["mean"] == 0.5, "over SFT, though its recipe measures it over the turn before"
    table = benchmark("result_tables.recipes").methods_table(found)
    assert "| STaR (1 seed, **tuned on what it reports**) | +0.50 [+0.00, +1.00] | +0.00 | 7 |" in table


def test_methods_json_is_what_the_recipes_files_give(benchmark: Any) -> None:
    record = benchmark("record")
    written, _ = record.earlier("methods", [])
    assert benchmark("methods").of_recipes([], record.RESULTS) == written, "python benchmarks/methods.py"


@pytest.mark.parametrize(
    ("seeds", "told"),
    [(["0"], "1 seed: 0: means"), (["0", "1"], "2 seeds: 0, 1: means"), (["0", "1", "2"], "Seeds 0, 1, 2: means")],
)
def test_a_table_says_of_how_few_seeds_it_is(series: Any, benchmark: Any, seeds: list[str], told: str) -> None:
    tables = benchmark("result_tables.recipes")
    figures = {seed: one_of([1.0] * 4, seconds={"sft": 60.0}) for seed in seeds}
    results = {"settings": {"it": series.TUNED}, "seeds": figures, "gains": series.gains_of(figures)}
    table = tables.recipe_table(results)
    by_seed = ", ".join(["+0.50"] * len(seeds))
    assert f"| it | 0.50 [0.40, 0.60] | +0.50 [+0.00, +1.00] over sft | {by_seed} | 0.50 |" in table
    assert f"\n{told}" in table
    assert "bootstrap over problems" in table
    assert table.endswith("Settings of it: **tuned on what it reports**.")
    assert "bootstrap" not in tables.recipe_table({"seeds": figures}), "earlier files know the seeds' ends alone"
    machine = {"commit": "abc", "load_average": 1.0, "hardware": {"gpu": None, "cpu": "it", "cores": 2}}
    head = tables.recipe_header(results, machine)
    more = f"; by seed {by_seed}" if len(seeds) > 1 else ""
    assert head[0] == f"Sampled accuracy: sft 0.50, it 0.50 (+0.50 [+0.00, +1.00] over sft{more})."
    assert head[-1] == "Settings of it: tuned on what it reports."
    assert head[1].startswith(f"{told.removesuffix(': means')}; 1 minutes a seed")


def test_marks_are_of_what_was_measured_and_not_of_the_file(benchmark: Any) -> None:
    """A file is written again after each seed: the commit and load of the last one say nothing of the others."""
    text = benchmark("result_tables.text")
    file = {"commit": "c-dirty", "load_average": 9.0, "hardware": {"cores": 2, "cpu": "it", "gpu": None}}
    file |= {"date": "2026-11-30", "versions": {"torch": "2", "trl": "1"}}
    seeds = {"0": {"commit": "a", "load_average": [1.0, 2.0]}, "1": {"commit": "b", "load_average": [2.9, 1.0]}}
    assert text.doubts(file, {"seeds": seeds}) == ""
    assert "commits a, b, 2026-11-30" in text.source(file, {"seeds": seeds}, "x.json", "")
    elsewhere = {"seeds": {**seeds, "2": {"commit": "a", "cpu": "other"}}}
    assert text.source(file, elsewhere, "x.json", "").startswith("<sub>it and other, 2 cores;")
    assert "load 3.1 on 2" in text.doubts(file, {"seeds": {**seeds, "2": {"commit": "a", "load_average": [1, 3.1]}}})
    assert "no commit" in text.doubts(file, {"recipes": {"r": {"seeds": {"0": {"commit": "a-dirty"}}}}})
    assert "no commit" in text.doubts(file, {"cells": {}}), "a file that has no seeds"


def test_a_list_of_numbers_is_one_line_and_reads_the_same(benchmark: Any) -> None:
    content = {"a": [1, -2.5, 3e-7], "b": ["1", "2"], "c": [[0.5, 1.0], []], "d": "[\n 1,\n 2\n]", "e": [1, None]}
    text = benchmark("record").text_of(content)
    assert json.loads(text) == content
    assert '"a": [1, -2.5, 3e-07]' in text
