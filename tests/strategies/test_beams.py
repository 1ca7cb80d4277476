"""Searches that keep beams: by a process reward model, by likelihood, by value, and in subtrees apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from table_model import (
    PROBLEM,
    QUESTION,
    TableModel,
    TableScorer,
    candidate_texts,
    completion,
    paths_and_counts,
    paths_of_calls,
    solve_one,
)

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import InputError
from posttrain_plugins.strategies.beam_search import BeamSearch
from posttrain_plugins.strategies.dvts import DVTS
from posttrain_plugins.strategies.prm_beam_search import PRMBeamSearch
from posttrain_plugins.strategies.value_guided_search import ValueGuidedSearch
from posttrain_plugins.types import Completion, Generate, ResolvedReward, Score

# --- prm_beam_search --------------------------------------------------------------------------------------------------

BEAM = {
    "": ["a;", "b;", "c;", "a;"],
    "a;": ["d;", "answer is 1"],
    "b;": ["e;", "f;"],
    "c;": ["g;"],
    "a;d;": ["answer is 2", "answer is 3"],
    "b;e;": ["answer is 2", "answer is 2"],
}
BEAM_SCORES = {"a;": 0.5, "b;": 0.9, "c;": 0.1, "a;d;": 0.6, "a;answer is 1": 0.2, "b;e;": 0.4, "b;f;": 0.3}
BEAM_SCORES |= {"a;d;answer is 2": 0.5, "a;d;answer is 3": 0.8, "b;e;answer is 2": 0.4}


def test_prm_beam_search_keeps_the_best_and_pools_the_finished() -> None:
    backend, table = TableModel(BEAM), TableScorer(BEAM_SCORES)
    strategy = PRMBeamSearch("prm", n=4, beam_width=2, separator=";")
    [result] = solve(strategy, [PROBLEM], backend=backend, scorers={"prm": ResolvedReward("prm", table)})
    assert paths_of_calls(backend) == [
        [("", 4)],
        [("b;", 2), ("a;", 2)],  # c; is pruned, the second a; is merged
        [("a;d;", 2), ("b;e;", 2)],  # "a;answer is 1" is in the pool, b;f; is pruned
    ]
    assert len(table.asked) == len(set(table.asked))
    assert candidate_texts(result) == [
        "a;answer is 1",
        "a;d;answer is 2",
        "a;d;answer is 3",
        "b;e;answer is 2",
        "b;e;answer is 2",
    ]
    assert result.answer == "2"  # .5 + .4 + .4 against .8 and .2
    assert [c.step_scores for c in result.candidates][2] == [0.5, 0.6, 0.8]


def test_prm_beam_search_best_and_majority() -> None:
    strategy = PRMBeamSearch("prm", n=4, beam_width=2, separator=";", select="best")
    assert solve_one(strategy, TableModel(BEAM), BEAM_SCORES).answer == "3"
    assert solve_one(replace(strategy, select="majority"), TableModel(BEAM), BEAM_SCORES).answer == "2"


def test_prm_beam_search_aggregate_ranks_the_beams() -> None:
    def kept(aggregate: Any) -> list[tuple[str, int]]:
        backend = TableModel({"": ["a;", "b;"], "a;": ["c;"], "b;": ["d;"], "a;c;": ["1"], "b;d;": ["2"]})
        strategy = PRMBeamSearch("prm", n=2, beam_width=1, separator=";", aggregate=aggregate, max_steps=3)
        result = solve_one(strategy, backend, {"a;": 0.1, "b;": 0.5, "a;c;": 0.9, "b;d;": 0.6})
        return paths_of_calls(backend)[2] if result else []

    assert [path for path, _ in kept("last")] == ["a;c;", "b;d;"]
    assert [path for path, _ in kept("min")] == ["b;d;", "a;c;"]
    assert [path for path, _ in kept("mean")] == ["b;d;", "a;c;"]  # .55 over .5
    assert [path for path, _ in kept("whole")] == ["a;c;", "b;d;"]


def test_prm_beam_search_lookahead_changes_the_choice() -> None:
    table = {"": ["a;", "b;"], "a;": ["c;"], "b;": ["d;"], "a;c;": ["answer is 1"], "b;d;": ["answer is 2"]}
    scores = {"a;": 0.9, "b;": 0.1, "a;c;": 0.2, "b;d;": 0.8, "a;c;answer is 1": 0.2, "b;d;answer is 2": 0.8}
    strategy = PRMBeamSearch("prm", n=2, beam_width=2, separator=";", max_steps=3)
    assert solve_one(strategy, TableModel(table), scores).answer == "1"
    backend = TableModel(table)
    assert solve_one(replace(strategy, lookahead=1), backend, scores).answer == "2"
    assert paths_of_calls(backend)[1] == [("a;", 1), ("b;", 1)]  # the rollouts
    assert {request.params.temperature for request in backend.calls[1]} == {0.0}
    assert paths_of_calls(backend)[2] == [("b;", 2)]  # goes on from the step, not from its rollout


def test_prm_beam_search_stops_when_the_pool_is_full() -> None:
    backend = TableModel({"": ["answer is 1", "a;"], "a;": ["answer is 2", "b;"]})
    solve_one(PRMBeamSearch("prm", n=2, beam_width=1, separator=";"), backend, {})
    assert paths_of_calls(backend) == [[("", 2)], [("a;", 2)]]  # then one beam is still live, and two are in the pool


# --- dvts -------------------------------------------------------------------------------------------------------------

FOREST = {
    "": ["a;", "b;", "c;", "d;"],
    **{f"{x};": [f"{x}1;", f"{x}2;"] for x in "abcd"},
    **{f"{x};{x}{i};": [f"answer is {x}{i}"] for x in "abcd" for i in (1, 2)},
}
FOREST_SCORES = {"a;": 0.9, "b;": 0.8, "c;": 0.1, "d;": 0.2, "a;a1;": 0.9, "a;a2;": 0.8, "d;d1;": 0.1, "d;d2;": 0.3}
FOREST_SCORES |= {"b;b1;": 0.1, "b;b2;": 0.1}


def test_dvts_never_mixes_subtrees_whereas_a_beam_search_does() -> None:
    trees, beams = TableModel(FOREST), TableModel(FOREST)
    solve_one(DVTS("prm", n=4, beam_width=2, separator=";"), trees, FOREST_SCORES)
    solve_one(PRMBeamSearch("prm", n=4, beam_width=2, separator=";"), beams, FOREST_SCORES)
    assert paths_of_calls(trees) == [[("", 2), ("", 2)], [("a;", 2), ("d;", 2)], [("a;a1;", 2), ("d;d2;", 2)]]
    assert paths_of_calls(beams) == [[("", 4)], [("a;", 2), ("b;", 2)], [("a;a1;", 2), ("a;a2;", 2)]]


def test_dvts_votes_with_the_leaves_of_each_subtrees_last_expansion() -> None:
    table = {"": ["a;", "answer is 9", "answer is 1", "answer is 2"], "a;": ["answer is 2", "answer is 2"]}
    scores = {"a;": 0.9, "answer is 9": 0.8, "answer is 1": 0.7, "answer is 2": 0.3, "a;answer is 2": 0.3}
    backend = TableModel(table)
    result = solve_one(DVTS("prm", n=4, beam_width=2, separator=";"), backend, scores)
    assert paths_of_calls(backend) == [[("", 2), ("", 2)], [("a;", 2)]]  # the second subtree is finished
    assert sorted(candidate_texts(result)) == ["a;answer is 2", "a;answer is 2", "answer is 1", "answer is 2"]
    assert result.answer == "2"  # .3 * 3 against .7; 9 was outscored by a;
    assert (
        solve_one(
            replace(DVTS("prm", n=4, beam_width=2, separator=";"), select="best"), TableModel(table), scores
        ).answer
        == "1"
    )


# --- beam_search ------------------------------------------------------------------------------------------------------


def test_beam_search_keeps_the_likeliest_and_merges_what_is_drawn_twice() -> None:
    table = {"": ["a;", "b;", "a;", "c;"], "a;": ["answer is 1"], "b;": ["answer is 2"]}
    logprobs = {"a;": -1.0, "b;": -2.0, "c;": -3.0, "a;answer is 1": -4.0, "b;answer is 2": -1.0}
    backend = TableModel(table, logprobs=logprobs)
    result = solve_one(BeamSearch(beam_width=2, branches=4, separator=";", length_penalty=0.0), backend)
    assert paths_of_calls(backend) == [[("", 4)], [("a;", 4), ("b;", 4)]]
    assert [(c.text, c.score) for c in result.candidates] == [("b;answer is 2", -3.0), ("a;answer is 1", -5.0)]
    assert result.answer == "2"


def test_beam_search_length_penalty_is_the_exponent_of_the_length() -> None:
    table = {"": ["answer is 1", "a;"], "a;": ["bbbbbbbbbb answer is 2"]}
    logprobs = {"answer is 1": -5.0, "a;": -1.0, "a;bbbbbbbbbb answer is 2": -8.0}
    for penalty, answer, score in ((0.0, "1", -5.0), (1.0, "2", -9.0 / 24)):
        strategy = BeamSearch(beam_width=2, branches=2, separator=";", length_penalty=penalty)
        result = solve_one(strategy, TableModel(table, logprobs=logprobs))
        assert (result.answer, result.candidates[0].score) == (answer, score)


def test_beam_search_finished_beams_compete_and_end_the_search() -> None:
    table = {"": ["answer is 1", "a;", "b;"]}
    logprobs = {"answer is 1": -1.0, "a;": -2.0, "b;": -3.0}
    backend = TableModel(table, logprobs=logprobs)
    strategy = BeamSearch(beam_width=1, branches=3, separator=";", length_penalty=0.0)
    assert solve_one(strategy, backend).answer == "1"
    assert len(backend.calls) == 1


def test_beam_search_by_blocks() -> None:
    table = {"": ["abcdanswer is 1"], "abcd": ["answer is 1"], "abcdansw": ["er is 1"], "abcdanswer i": ["s 1"]}
    backend = TableModel(table)
    assert solve_one(BeamSearch(beam_width=1, branches=2, block_tokens=4), backend).answer == "1"
    assert [path for call in paths_of_calls(backend) for path, _ in call] == list(table)
    assert [call[0].params.stop for call in backend.calls] == [()] * 4


def test_beam_search_without_log_probabilities_is_a_clear_error() -> None:
    steps = BeamSearch(separator=";")(PROBLEM)
    next(steps)
    with pytest.raises(InputError, match="no log-probabilities"):
        steps.send([[completion("a", ";")]])


# --- value_guided_search ----------------------------------------------------------------------------------------------

BLOCKS = {
    "": ["aaaa....", "bbbb....", "cccc....", "dddd...."],
    "aaaa": ["1 is wrong", "answer is 1"],
    "bbbb": ["\nanswer is 2", "\nanswer is 3"],
    "cccc": ["\nanswer is 4"],
    "aaaa1 is": [" so answer is 1"],
    "aaaaansw": ["er is 1"],
    "bbbb\nans": ["wer is 2", "wer is 3"],
}
VALUES = {"aaaa": 0.8, "bbbb": 0.9, "cccc": 0.1, "aaaa1 is": 0.1, "aaaaansw": 0.5, "bbbb\nans": 0.7}


def test_value_guided_search_keeps_the_most_valuable_blocks() -> None:
    backend = TableModel(BLOCKS, values=VALUES)
    steps = ValueGuidedSearch(n=4, beam_width=2, block_tokens=4)(PROBLEM)
    [request] = next(steps)
    assert (request.n, request.params.max_tokens, request.params.values) == (4, 4, True)
    blocks = [replace(c, finish_reason="length") for c in (backend.complete(request) for _ in range(4))]
    second = steps.send([blocks])
    assert paths_and_counts(second) == [("bbbb", 2), ("aaaa", 2)]


def test_value_guided_search_ends_with_a_vote_of_its_beams() -> None:
    table = {
        "": ["aaaa", "bbbb", "cccc", "dddd"],
        "aaaa": ["answer is 1"],
        "bbbb": ["answer is 2"],
        "cccc": ["answer is 2"],
    }

    class Blocks(TableModel):
        def cut(self, request: Generate, begun: str, text: str) -> Completion:
            done = super().cut(request, begun, text)
            return replace(done, finish_reason="length") if len(done.text) == 4 else done

    values = {"aaaa": 0.9, "bbbb": 0.8, "cccc": 0.7, "dddd": 0.1}
    values |= {"aaaaanswer is 1": 0.5, "bbbbanswer is 2": 0.3, "ccccanswer is 2": 0.4}
    strategy = ValueGuidedSearch(n=6, beam_width=2, block_tokens=16)
    for select, answer in (("best", "1"), ("weighted_vote", "2")):
        backend = Blocks(table, values=values)
        result = solve_one(replace(strategy, select=select, block_tokens=4, max_steps=2), backend)
        assert paths_of_calls(backend) == [[("", 6)], [("aaaa", 2), ("bbbb", 2), ("cccc", 2)]]
        assert len(result.candidates) == 3  # n / beam_width; identical blocks are merged
        assert result.answer == answer


def test_value_guided_search_a_finished_beam_keeps_its_slot() -> None:
    table = {"": ["answer is 1", "a;", "b;"], "a;": ["answer is 2"], "b;": ["answer is 3"]}
    steps = ValueGuidedSearch("vm", n=4, beam_width=2, block_tokens=8)(PROBLEM)
    [request] = next(steps)
    assert not request.params.values
    long = [completion(text, finish_reason="length", tokens=8) for text in ("a", "b", "b")]
    [score] = steps.send([[completion("answer is 1"), *long]])
    assert score == Score(QUESTION, ("answer is 1", "a", "b"), "vm")
    second = steps.send([[0.9, 0.2, 0.6]])
    assert paths_and_counts(second) == [("b", 2)]  # one slot is taken
    assert table


def test_value_guided_search_without_values_is_a_clear_error() -> None:
    steps = ValueGuidedSearch()(PROBLEM)
    next(steps)
    with pytest.raises(InputError, match="no values"):
        steps.send([[completion("a")]])
