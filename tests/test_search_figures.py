"""Value functions and searches: what their benchmarks hold against the figures, and the tables that come of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_what_a_value_function_can_explain_is_what_lies_between_states(benchmark: Any) -> None:
    value, tables = benchmark("value"), benchmark("result_tables.learning")
    # by hand: rewards 1 1 0 0 | 1 0 0 0 of four draws from two states, values as right as can be
    found = value.explained([[0.5], [0.25]], [[0.5], [0.25]], rollouts=4)
    total, within = 3 / 8 * 5 / 8, (0.25 + 0.1875) / 2
    assert found["explained"] == pytest.approx(1 - within / total)
    assert found["bound"] == pytest.approx(1 - within * 4 / 3 / total)
    assert value.explained([[0.5], [0.25]], [[0.0], [1.0]], rollouts=4)["explained"] < 0
    found = value.explained([[], [1.0, 0.0]], [[], [0.9, 0.1]], rollouts=4)
    assert found["states"] == 2, "a completion of one step has no state to go on from"
    assert found["explained"] == pytest.approx(1 - 0.01 / 0.25)
    low = {**found, "share": 0.5}
    assert value.unmet({"sft": {"0": low, "1": {**found, "share": 0.9}}, "critic": {"0": low}}) == [
        "sft: 0.700 of the bound, expected 0.80"
    ]
    assert "| sft | 0.96 | 1.00 | 0.960 |" in tables.value_table({"rollouts": 4, "rows": {"sft": {"0": found}}})


def test_what_search_must_show_is_held_against_its_figures(benchmark: Any) -> None:
    search = benchmark("search")
    names = ["sampled", "greedy", *(f"way{i}(n=2)" for i in range(4)), search.FOLLOWS_VALUE, "value_guided_search(n=8)"]

    def one(levels: dict[str, float]) -> dict[str, Any]:
        values = {name: [float(i < 100 * levels.get(name, 0.8)) for i in range(100)] for name in names}
        ways = {
            name: {"mean": sum(of) / 100, "tokens": 9.0, "best_at_its_tokens": {"rm": 0.6, "prm": 0.7}}
            for name, of in values.items()
        }
        ways["majority"] = ways["greedy"]  # has no completions of its own
        return {"problems": 100, "overlap": {"sft": 0}, "ways": ways, "values": {"sft": values}}

    good = {"sampled": 0.4, "greedy": 0.6}
    assert search.over_seeds("search", {"0": one(good), "1": one(good)})["missed"] == []
    bad = {**good, "greedy": 0.9, search.FOLLOWS_VALUE: 0.3, "value_guided_search(n=8)": 0.35}
    missed = " | ".join(search.over_seeds("search", {"0": one(bad)})["missed"])
    for told in ("greedy is 0.900", "0 strategies are above", "the best is -0.100", "scorer=value) is -0.100 over one"):
        assert told in missed
    for told in ("value_guided_search(n=8) is -0.050 over one", "-0.550 over greedy", "by the reward model at as many"):
        assert told in missed
    trained = one(good) | {"overlap": {"sft": 2}}
    assert "sft was trained on 2" in search.over_seeds("search", {"0": trained})["missed"][0]


@pytest.mark.parametrize(("recipe", "name"), [("tree", "mcts(n=2)"), ("graph", "graph_of_thoughts(n=2)")])
def test_a_strategy_of_the_tasks_shape_has_to_be_above_greedy(benchmark: Any, recipe: str, name: str) -> None:
    search = benchmark("search")

    def seeds(level: float) -> dict[str, Any]:
        levels = {"sampled": 0.3, "greedy": 0.5, name: level, "tree_of_thoughts(n=2)": 0.9}
        values = {way: [float(i < 100 * of) for i in range(100)] for way, of in levels.items()}
        ways = {w: {"mean": of, "tokens": 9.0, "best_at_its_tokens": {"x": 0.6}} for w, of in levels.items()}
        return {"0": {"problems": 100, "overlap": {}, "ways": ways, "values": {"sft": values}}}

    assert search.over_seeds(recipe, seeds(0.8))["missed"] == []
    for level in (0.5, 0.6):  # as good as greedy, or above it and no better than best of n
        [missed] = search.over_seeds(recipe, seeds(level))["missed"]
        assert f"{name.partition('(')[0]} is not above greedy and best of n" in missed


def test_a_setting_above_greedy_and_another_above_best_of_n_are_not_one(benchmark: Any) -> None:
    search = benchmark("search")
    dear = {"mean": 0.7, "best_at_its_tokens": {"rule": 0.9}, "over_greedy": {"mean": 0.4, "low": 0.3}}
    cheap = {"mean": 0.4, "best_at_its_tokens": {"rule": 0.2}, "over_greedy": {"mean": 0.1, "low": -0.1}}
    ways = {f"{name}({i})": way for name in ("mcts", "tree_of_thoughts") for i, way in enumerate((dear, cheap))}
    assert len(list(search.unmet("tree", {"seeds": {}, "strategies": ways}))) == 2
    good = {**dear, "best_at_its_tokens": {"rule": 0.5}}
    ways |= {"mcts(2)": good, "tree_of_thoughts(2)": good}
    assert list(search.unmet("tree", {"seeds": {}, "strategies": ways})) == []


def test_best_of_n_is_given_the_best_of_fewer_where_more_makes_it_worse(benchmark: Any) -> None:
    points = [(10.0, 0.3), (20.0, 0.5), (40.0, 0.1)]
    best = benchmark("search").best_up_to
    assert [best(points, tokens) for tokens in (5.0, 15.0, 30.0, 99.0)] == [0.3, 0.4, 0.5, 0.5]


def test_a_value_function_that_is_followed_has_to_be_above_one_sample_of_its_policy(benchmark: Any) -> None:
    recipes, tables = benchmark("recipes"), benchmark("result_tables.recipes")
    [sft, ppo] = recipes.FOLLOWED["value_guided"].values()

    def one(of_sft: float, of_ppo: float) -> dict[str, Any]:
        levels = {"sft": {"sampled": 0.4, "greedy": 0.4, sft: of_sft}, "ppo": {"sampled": 0.6, ppo: of_ppo}}
        values = {
            model: {way: [float(i < 100 * level) for i in range(100)] for way, level in found.items()}
            for model, found in levels.items()
        }
        interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
        models = {
            model: {"parent": None, "gain": None, "measures": {"sampled": interval, "greedy": interval}}
            for model in levels
        }
        return {"models": models, "values": values, "problems": 100}

    good = recipes.over_seeds("value_guided", {"0": one(0.7, 0.9), "1": one(0.6, 0.9)})
    assert good["missed"] == []
    assert good["over_sampled"]["sft"][sft]["by_seed"] == {"0": pytest.approx(0.3), "1": pytest.approx(0.2)}
    [missed] = recipes.over_seeds("value_guided", {"0": one(0.7, 0.5), "1": one(0.7, 0.6)})["missed"]
    assert missed.startswith(f"{ppo} is -0.050 over one sample of ppo, from -0.")
    assert "over_sampled" not in recipes.over_seeds("grpo", {"0": one(0.7, 0.9)})
    table = tables.recipe_table({"seeds": {"0": one(0.7, 0.9)}, **good})
    assert f"| sft | `{sft}` | 0.65 | +0.25 [" in table
