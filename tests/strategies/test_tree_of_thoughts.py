"""Tree of thoughts: both searches, both generators, both evaluators."""

from __future__ import annotations

from dataclasses import replace

from table_model import TableModel, candidate_texts, paths_and_counts, solve_one

from posttrain_plugins.strategies.tree_of_thoughts import TreeOfThoughts
from posttrain_plugins.types import Generate

THOUGHTS = {
    "": ["a;", "b;", "a;"],
    "a;": ["c;", "answer is 1"],
    "b;": ["d;"],
    "a;c;": ["answer is 2"],
    "b;d;": ["answer is 3"],
}
VERDICTS = {
    "a;": "likely",
    "b;": "sure",
    "a;c;": "impossible",
    "b;d;": "likely",
    "a;answer is 1": "likely",
    "a;so the answer is 1": "likely",
}


def write_verdict(request: Generate) -> str:
    path = str(request.prompt).partition("come:\n\n")[2].partition("\n\nCan it")[0]
    return f"It could be sure or not.\n{VERDICTS.get(path, 'sure')}"


def test_tot_bfs_keeps_the_best_states_of_each_depth() -> None:
    backend = TableModel(THOUGHTS, write_verdict)
    strategy = TreeOfThoughts(branches=3, breadth=2, num_evaluations=2, separator=";")
    result = solve_one(strategy, backend)
    steps = [[(path, n) for path, n in paths_and_counts(call)] for call in backend.calls if call[0].purpose == "step"]
    assert steps == [[("", 3)], [("b;", 3), ("a;", 3)], [("b;d;", 3)]]
    verdicts = [call for call in backend.calls if call[0].purpose == "value"]
    assert [len(call) for call in verdicts] == [
        2,
        3,
        1,
    ]  # a; once, though it came twice; what is finished is not asked again
    assert {request.n for call in verdicts for request in call} == {2}
    assert (result.answer, result.candidates[0].score) == ("3", 20.0)  # duplicates keep their true value


def test_tot_dfs_backtracks_at_the_threshold() -> None:
    table = {
        "": ["a;", "b;"],
        "a;": ["c;", "d;"],
        "b;": ["answer is 2"],
        "a;c;": ["answer is 1"],
        "a;d;": ["answer is 1"],
    }
    verdicts = {"a;": "sure", "b;": "likely", "a;c;": "impossible", "a;d;": "impossible", "b;answer is 2": "likely"}
    asked: list[str] = []

    def judge(request: Generate) -> str:
        asked.append(str(request.prompt).partition("come:\n\n")[2].partition("\n\nCan it")[0])
        return verdicts[asked[-1]]

    backend = TableModel(table, judge)
    strategy = TreeOfThoughts(search="dfs", branches=2, num_evaluations=1, separator=";")
    assert solve_one(strategy, backend).answer == "2"
    steps = [path for call in backend.calls for path, _ in paths_and_counts(call) if call[0].purpose == "step"]
    assert steps == ["", "a;", "b;"]  # both children of a; are pruned
    lenient = replace(strategy, threshold=0.0)
    backend = TableModel(
        table, lambda r: verdicts.get(str(r.prompt).partition("come:\n\n")[2].partition("\n\n")[0], "sure")
    )
    assert solve_one(lenient, backend).answer == "1"


def test_tot_dfs_stops_at_its_limits() -> None:
    strategy = TreeOfThoughts(search="dfs", scorer="prm", branches=2, separator=";", max_expansions=2)
    backend = TableModel(THOUGHTS)
    scores = {"a;": 0.5, "b;": 0.9, "b;d;": 0.8, "a;answer is 1": 0.9, "b;d;answer is 3": 0.1, "a;c;": 0.2}
    assert solve_one(strategy, backend, scores).answer == "3"  # b; and root were expanded, then b; is completed
    assert [call[0].purpose for call in backend.calls] == ["step", "step", "answer"]
    both = solve_one(replace(strategy, max_expansions=9, num_solutions=2), TableModel(THOUGHTS), scores)
    assert {candidate.answer for candidate in both.candidates} == {"3", "1"}
    assert both.answer == "1"


def test_tot_proposes_several_thoughts_in_one_prompt() -> None:
    def reply(request: Generate) -> str:
        if request.purpose == "value":
            return write_verdict(request)
        assert (request.purpose, request.n) == ("thought", 1)
        path = str(request.prompt).partition("come:\n\n")[2].partition("\n\nPropose up to 2 ")[0]
        return {"": "1. a\n- b\n\n* b\n2) z", "a;": "so the answer is 1", "b;": "d"}.get(path, "the answer is 3\nx")

    strategy = TreeOfThoughts(generate="propose", branches=2, breadth=2, num_evaluations=1, separator=";", max_steps=3)
    backend = TableModel({"b;d;": ["answer is 4"]}, reply)
    result = solve_one(strategy, backend)
    assert [len(call) for call in backend.calls if call[0].purpose == "thought"] == [1, 2, 1]
    assert candidate_texts(result) == ["b;d;the answer is 3"]  # beside b;d;x; in the breadth
    assert result.answer == "3"
    short = solve_one(replace(strategy, max_steps=2, breadth=1), TableModel({"b;d;": ["answer is 4"]}, reply))
    assert short.text == "b;d;answer is 4"  # the best state has no answer, so it is completed


def test_tot_votes_among_the_states_that_compete() -> None:
    def judge(request: Generate) -> str:
        assert (request.purpose, request.n) == ("vote", 3)
        return "Both are fine.\nThe best choice is **2**." if "Choice 2:\nb;" in str(request.prompt) else "no idea"

    backend = TableModel(THOUGHTS, judge)
    result = solve_one(TreeOfThoughts(evaluate="vote", branches=2, breadth=1, separator=";"), backend)
    assert [len(call) for call in backend.calls if call[0].purpose == "vote"] == [1, 1, 1]
    assert [path for call in backend.calls for path, _ in paths_and_counts(call) if call[0].purpose == "step"] == [
        "",
        "b;",
        "b;d;",
    ]
    assert result.answer == "3"
