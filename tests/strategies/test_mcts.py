"""Monte Carlo tree search: its rules by hand, virtual loss, and how the answer is chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from table_model import PROBLEM, TableModel, TableScorer, begun_path, paths_of_calls, solve_one

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.strategies.mcts import MCTS
from posttrain_plugins.types import Completion, Generate, ResolvedReward


def make_tree(depth: int, branches: str = "abc") -> dict[str, list[str]]:
    """Every path of `branches`, `depth` steps deep, then an answer."""
    table: dict[str, list[str]] = {}
    level = [""]
    for _ in range(depth):
        table |= {path: [f"{x};" for x in branches] for path in level}
        level = [f"{path}{x};" for path in level for x in branches]
    return table | {path: [f"answer is {path[0]}"] for path in level}


def expanded_leaves(
    strategy: MCTS, scores: Mapping[str, float | None], depth: int = 4, **script: Any
) -> list[list[str]]:
    """The leaves that each wave expands."""
    backend = TableModel(make_tree(depth), **script)
    solve_one(replace(strategy, scorer="prm", branches=3, separator=";"), backend, scores)
    return [[path for path, _ in call] for call in paths_of_calls(backend)]


UCT_SCORES = {"a;": 0.9, "b;": 0.5, "c;": 0.1, **{f"a;{x};": 0.2 for x in "abc"}, **{f"b;{x};": 0.4 for x in "abc"}}


def test_uct_goes_where_the_bound_is_largest() -> None:
    # Root: N = 3. After a: Q(a) = (.9 + .2 * 3) / 4 = .375, N(a) = 4, N = 6.
    # c = 1: a .375 + sqrt(ln 6 / 4) = 1.04, b .5 + sqrt(ln 6) = 1.84, c .1 + 1.34 = 1.44: b.
    # After b: Q(b) = (.5 + .4 * 3) / 4 = .425, N = 9: a 1.12, b 1.17, c .1 + sqrt(ln 9) = 1.58: c.
    strategy = MCTS(num_simulations=4, leaves_per_wave=1, exploration_constant=1.0)
    assert expanded_leaves(strategy, UCT_SCORES)[:4] == [[""], ["a;"], ["b;"], ["c;"]]
    # c = .1: a .375 + .07, b .5 + .13: b. Then a .375 + .07, b .425 + .07, c .1 + .15: below b.
    greedy = replace(strategy, exploration_constant=0.1)
    assert expanded_leaves(greedy, UCT_SCORES)[:4] == [[""], ["a;"], ["b;"], ["b;a;"]]


def test_max_backup_holds_on_to_the_best_value_seen() -> None:
    strategy = MCTS(num_simulations=3, leaves_per_wave=1, exploration_constant=0.3, backup="max")
    # a .9 + .3 * sqrt(ln 6 / 4) = 1.10, b .5 + .3 * sqrt(ln 6) = .90: below a.
    assert expanded_leaves(strategy, UCT_SCORES)[:3] == [[""], ["a;"], ["a;a;"]]
    assert expanded_leaves(replace(strategy, backup="mean"), UCT_SCORES)[:3] == [[""], ["a;"], ["b;"]]


def test_puct_follows_the_prior_and_the_visits() -> None:
    paths = ("a;", "b;", "c;", *(f"{above}{x};" for above in ("b;", "b;a;") for x in "abc"))
    scores = dict.fromkeys(paths, 0.5)
    logprobs = {"a;": math.log(0.2), "b;": math.log(0.7), "c;": math.log(0.1)}
    strategy = MCTS(num_simulations=4, leaves_per_wave=1, exploration_constant=1.0, rule="puct", prior="logprob")
    # All Q are .5, so P / (1 + N) decides: b .7 / 2, a .2 / 2. Then N(b) = 4: b .7 / 5 = .14, a .1. Then N(b) = 7:
    # b .7 / 8 = .09, a .1.
    assert expanded_leaves(strategy, scores, logprobs=logprobs)[:4] == [[""], ["b;"], ["b;a;"], ["a;"]]
    uniform = replace(strategy, prior="uniform")
    assert expanded_leaves(uniform, scores, logprobs=logprobs)[:3] == [[""], ["a;"], ["b;"]]


def test_virtual_loss_gives_different_leaves_in_one_wave() -> None:
    strategy = MCTS(num_simulations=4, leaves_per_wave=3, exploration_constant=1.0)
    assert expanded_leaves(strategy, UCT_SCORES)[:2] == [[""], ["a;", "b;", "c;"]]
    one_by_one = replace(strategy, leaves_per_wave=1)
    assert [len(call) for call in expanded_leaves(one_by_one, UCT_SCORES)[:4]] == [1, 1, 1, 1]


def test_virtual_loss_leaves_a_subtree_that_is_being_searched() -> None:
    scores = {"a;": 0.8, "b;": 0.65, "c;": 0.0, **{f"a;{x};": 0.8 for x in "abc"}, **{f"b;{x};": 0.65 for x in "abc"}}
    strategy = MCTS(num_simulations=5, leaves_per_wave=2, exploration_constant=0.2)
    # Root 9, a and b 4 visits. a .8 + .2 * sqrt(ln 9 / 4) = .95, b .65 + .15: a;a; is chosen, and a is reserved once.
    # Then a .8 * 4 / 5 + .2 * sqrt(ln 10 / 5) = .78, b .65 + .2 * sqrt(ln 10 / 4) = .80: so b;a;, though a is better.
    assert expanded_leaves(strategy, scores)[:3] == [[""], ["a;", "b;"], ["a;a;", "b;a;"]]
    assert expanded_leaves(replace(strategy, leaves_per_wave=1), scores)[1:3] == [["a;"], ["a;a;"]]


def test_a_finished_leaf_costs_nothing_when_it_is_chosen_again() -> None:
    backend = TableModel({"": ["answer is 1", "answer is 2"]})
    scores = {"answer is 1": 0.2, "answer is 2": 0.9}
    for select in ("value", "visits", "weighted_vote"):
        strategy = MCTS("prm", branches=2, separator=";", num_simulations=20, select=select)
        assert solve_one(strategy, backend, scores).answer == "2"
    assert [len(call) for call in backend.calls] == [1, 1, 1]


def test_visits_gather_at_the_best_leaf_however_many_are_chosen_in_a_wave() -> None:
    table = {"": ["a;", "b;"], "a;": ["answer is 1"], "b;": ["answer is 2", "answer is 3", "answer is 4"]}
    scores = {"a;": 0.9, "a;answer is 1": 0.9} | {"b;": 0.4, **{f"b;answer is {i}": 0.4 for i in (2, 3, 4)}}
    for width in (1, 4, 8):
        strategy = MCTS("prm", branches=3, separator=";", num_simulations=40, leaves_per_wave=width, select="visits")
        assert solve_one(strategy, TableModel(table), scores).answer == "1"


def test_mcts_selects_by_value_by_visits_or_by_vote() -> None:
    table = {"": ["a;", "b;"], "a;": ["answer is 1", "answer is 2"], "b;": ["answer is 3", "x answer is 3"]}
    scores = {"a;": 0.9, "b;": 0.5, "a;answer is 1": 0.6, "a;answer is 2": 0.65}
    scores |= {"b;answer is 3": 0.7, "b;x answer is 3": 0.1}
    strategy = MCTS("prm", branches=2, separator=";", num_simulations=3, leaves_per_wave=1, exploration_constant=1.0)
    by = {
        select: solve_one(replace(strategy, select=select), TableModel(table), scores)
        for select in ("value", "weighted_vote")
    }
    assert by["value"].answer == "3"
    assert by["weighted_vote"].answer == "3"  # .8 against .65 and .6
    more = replace(strategy, num_simulations=40, exploration_constant=0.1, select="visits")
    assert (
        solve_one(more, TableModel(table), {**scores, "b;x answer is 3": 0.0}).answer == "2"
    )  # the best of the better subtree


def test_mcts_rollouts_give_the_value_and_are_candidates() -> None:
    table = {"": ["a;", "b;"], "a;": ["c;"], "b;": ["d;"], "a;c;": ["answer is 1"], "b;d;": ["answer is 2"]}
    backend, judge = TableModel(table), TableScorer({"a;c;answer is 1": 0.1, "b;d;answer is 2": 0.9})
    strategy = MCTS("orm", branches=2, separator=";", rollout=True, aggregate="whole", num_simulations=2)
    [result] = solve(strategy, [PROBLEM], backend=backend, scorers={"orm": ResolvedReward("orm", judge)})
    assert paths_of_calls(backend)[:3] == [[("", 2)], [("a;", 1), ("b;", 1)], [("b;", 2)]]
    assert [request.params.stop for request in backend.calls[1]] == [(), ()]
    assert set(judge.asked) == {"a;c;answer is 1", "b;d;answer is 2"}
    assert result.answer == "2"


def test_mcts_judges_itself_without_a_scorer() -> None:
    def judge(request: Generate) -> str:
        assert (request.n, request.params.stop) == (1, ())
        return "Impossible.\nsure" if "b;" in str(request.prompt) else "sure? no:\nImpossible."

    table = {"": ["a;", "b;"], "a;": ["answer is 1"], "b;": ["answer is 2"]}
    result = solve_one(MCTS(branches=2, separator=";", select="value", num_simulations=3), TableModel(table, judge))
    assert (result.answer, result.candidates[0].score) == ("2", 1.0)


def test_mcts_scales_values_that_leave_the_unit_interval() -> None:
    large = {path: None if score is None else 100 * score - 50 for path, score in UCT_SCORES.items()}
    large |= {"a;": 50.0, "c;": -50.0}
    strategy = MCTS(num_simulations=4, leaves_per_wave=1, exploration_constant=1.0)
    assert expanded_leaves(strategy, large)[:4] == [[""], ["a;"], ["b;"], ["c;"]]


def test_mcts_turns_away_from_a_leaf_whose_samples_all_failed() -> None:
    class Holed(TableModel):
        def complete(self, request: Generate) -> Completion:
            done = super().complete(request)
            return replace(done, finish_reason="error") if begun_path(request).startswith("a;") else done

    backend = Holed({"": ["a;", "b;"], "a;": ["answer is 1"], "b;": ["answer is 2"]})
    strategy = MCTS("prm", branches=2, separator=";", leaves_per_wave=1, exploration_constant=0.1, num_simulations=9)
    assert solve_one(strategy, backend, {"a;": 0.9, "b;": 0.6, "b;answer is 2": 0.6}).answer == "2"
    assert paths_of_calls(backend) == [[("", 2)], [("a;", 2)], [("b;", 2)]]


def test_mcts_completes_its_best_leaf_where_nothing_is_finished() -> None:
    backend = TableModel(make_tree(4))
    result = solve_one(MCTS("prm", branches=3, separator=";", num_simulations=2), backend, UCT_SCORES)
    assert paths_of_calls(backend)[-1][0][1] == 1
    assert backend.calls[-1][0].params.stop == ()
    assert result.answer in ("a", "b")
