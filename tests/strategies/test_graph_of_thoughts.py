"""Graph of thoughts: operations, waves, and graphs that cannot run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from table_model import TableModel, candidate_texts, solve_one

from posttrain_plugins.engine.trace import tree as trace_tree
from posttrain_plugins.errors import InputError
from posttrain_plugins.strategies.graph_of_thoughts import GraphOfThoughts
from posttrain_plugins.types import Budget, Completion, Generate, Usage


class ThoughtModel(TableModel):
    """Answers whole questions: `reply(request, draw)`."""

    def __init__(self, reply: Callable[[Generate, int], str]) -> None:
        super().__init__()
        self.reply = reply

    def complete(self, request: Generate) -> Completion:
        number = self.draws[str(request.prompt)]
        self.draws[str(request.prompt)] += 1
        return Completion(self.reply(request, number), usage=Usage(completion_tokens=1))


def write_thought(request: Generate, number: int) -> str:
    text = str(request.prompt)
    if "Put what is right" in text:
        return f"merged {number}, answer is 8"
    if "mend its mistakes" in text:
        return "improved, " + text.partition("solution:\n\n")[2].partition("\n\n")[0]
    return f"draft {number}, answer is {number}"


def test_got_default_graph_merges_the_two_best_drafts() -> None:
    scores = {f"draft {i}, answer is {i}": i / 10 for i in range(4)}
    scores |= {"improved, merged 0, answer is 8": 0.9, "improved, merged 1, answer is 8": 0.7}
    backend = ThoughtModel(write_thought)
    result = solve_one(GraphOfThoughts(scorer="prm"), backend, scores)
    assert [[request.n for request in call] for call in backend.calls] == [[4], [2], [1, 1]]
    merging = str(backend.calls[1][0].prompt)
    assert "draft 3" in merging  # two parents
    assert "draft 2" in merging
    assert "draft 1" not in merging
    assert (result.text, result.candidates[0].score) == ("improved, merged 0, answer is 8", 0.9)
    worse = solve_one(
        GraphOfThoughts(scorer="prm"),
        ThoughtModel(write_thought),
        {**scores, result.text: 0.1, "draft 3, answer is 3": 0.8},
    )
    assert worse.answer == "3"  # the drafts take part in the last choice


def test_got_thoughts_have_parents_in_the_trace() -> None:
    scores = {f"draft {i}, answer is {i}": 0.4 - i / 10 for i in range(4)}
    nodes = list(trace_tree(solve_one(GraphOfThoughts(scorer="prm"), ThoughtModel(write_thought), scores)).walk())
    text_of = {node.id: node.text for node in nodes}
    parents = {node.text: [text_of[parent] for parent in node.parents] for node in nodes}
    for i in range(2):
        assert parents[f"merged {i}, answer is 8"] == ["draft 0, answer is 0", "draft 1, answer is 1"]
        assert parents[f"improved, merged {i}, answer is 8"] == [f"merged {i}, answer is 8"]


def test_got_operations_whose_inputs_are_there_run_in_one_wave() -> None:
    graph = [
        {"op": "generate", "name": "start", "k": 2},
        {"op": "select", "name": "left", "inputs": ["start"], "indices": [0]},
        {"op": "select", "name": "right", "inputs": ["start"], "indices": [-1, 5, -5]},
        {"op": "improve", "name": "a", "inputs": ["left"]},
        {"op": "improve", "name": "b", "inputs": ["right"], "k": 2},
        {"op": "generate", "name": "other", "inputs": [], "prompt": "$question Again."},
        {"op": "aggregate", "inputs": ["a", "b", "other"]},
    ]
    backend = ThoughtModel(write_thought)
    result = solve_one(GraphOfThoughts(operations=graph), backend)
    assert [[request.n for request in call] for call in backend.calls] == [[2, 1], [1, 2], [1]]
    merging = str(backend.calls[2][0].prompt)
    assert merging.count("Solution ") == 4
    assert str(backend.calls[0][1].prompt) == "Q:  Again."
    assert result.answer == "8"


def test_got_validates_and_tries_again() -> None:
    def reply(request: Generate, number: int) -> str:
        if request.purpose == "value":
            text = str(request.prompt)
            return "Out of 10 it gets\n" + ("9" if "better better" in text else "7.5" if "draft 1" in text else "2")
        if "mend its mistakes" in str(request.prompt):
            return "better " + str(request.prompt).partition("solution:\n\n")[2].partition("\n\n")[0]
        return f"draft {number}, answer is {number}"

    graph = [{"op": "generate", "k": 2}, {"op": "validate", "threshold": 0.7, "retries": 3}]
    backend = ThoughtModel(reply)
    result = solve_one(GraphOfThoughts(operations=graph), backend)
    assert sorted(candidate_texts(result)) == ["better better draft 0, answer is 0", "draft 1, answer is 1"]
    assert (result.answer, max(c.score or 0 for c in result.candidates)) == ("0", 0.9)
    assert [request.purpose for call in backend.calls for request in call] == [
        "answer", "value", "value", "answer", "value", "answer", "value",
    ]  # fmt: skip
    once = solve_one(GraphOfThoughts(operations=[graph[0], {**graph[1], "retries": 0}]), ThoughtModel(reply))
    assert candidate_texts(once) == ["draft 1, answer is 1"]  # what stays bad is dropped
    never = solve_one(GraphOfThoughts(operations=[graph[0], {**graph[1], "threshold": 2}]), ThoughtModel(reply))
    assert all(
        text.startswith("better better better draft") for text in candidate_texts(never)
    )  # unless nothing else is left
    assert len(candidate_texts(never)) == 2


def test_got_a_spent_budget_returns_the_best_scored_thought() -> None:
    scores = {f"draft {i}, answer is {i}": -((i - 2.0) ** 2) for i in range(4)}
    result = solve_one(GraphOfThoughts(scorer="prm"), ThoughtModel(write_thought), scores, budget=Budget(completions=5))
    assert (result.answer, result.stopped_by) == ("2", "completions")


def test_got_a_spent_budget_knows_the_models_own_scores() -> None:
    def reply(request: Generate, number: int) -> str:
        return (
            ("9" if "draft 2" in str(request.prompt) else "1")
            if request.purpose == "value"
            else write_thought(request, number)
        )

    result = solve_one(GraphOfThoughts(), ThoughtModel(reply), budget=Budget(completions=9))
    assert (result.answer, result.stopped_by) == ("2", "completions")


PARTS = [
    {"op": "generate", "name": "left", "inputs": [], "prompt": "$question Left.", "part": True},
    {"op": "generate", "name": "right", "inputs": [], "prompt": "$question Right.", "k": 2, "part": True},
    {"op": "score", "name": "scored", "inputs": ["left", "right"]},
    {"op": "aggregate", "inputs": ["left", "right"], "prompt": "Merge $thoughts", "separator": " and ", "k": 2},
    {"op": "score"},
    {"op": "keep_best"},
]


@dataclass
class ByPrompt:
    """What is right depends on what was asked."""

    asked: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        self.asked += zip(prompts, completions, strict=True)
        return [
            float(text[-1] == {"Q:  Left.": "0", "Q:  Right.": "1"}.get(prompt, "1"))
            for prompt, text in self.asked[-len(prompts) :]
        ]


def write_part(request: Generate, number: int) -> str:
    return f"{str(request.prompt).split()[-1]} {number}"


def test_got_scores_a_part_by_what_was_asked_for_it() -> None:
    graph = [*PARTS[:3], {"op": "keep_best", "k": 3}]
    reward = ByPrompt()
    result = solve_one(GraphOfThoughts(operations=graph, scorer="prm"), ThoughtModel(write_part), reward)
    assert reward.asked == [("Q:  Left.", "Left. 0"), ("Q:  Right.", "Right. 0"), ("Q:  Right.", "Right. 1")]
    assert [(one.text, one.score) for one in result.candidates] == [
        ("Left. 0", 1.0),
        ("Right. 1", 1.0),
        ("Right. 0", 0.0),
    ]


def test_got_the_model_judges_a_part_by_what_was_asked_for_it() -> None:
    graph = [PARTS[0], {"op": "score"}]
    backend = ThoughtModel(lambda request, number: "7" if request.purpose == "value" else write_part(request, number))
    solve_one(GraphOfThoughts(operations=graph), backend)
    assert str(backend.calls[1][0].prompt).startswith("Question: Q:  Left.\n")


def test_got_a_part_that_is_improved_answers_the_same_part() -> None:
    graph = [PARTS[1], {"op": "validate", "threshold": 1.0}, {"op": "improve", "prompt": "$question $thought, better"}]
    reward, backend = ByPrompt(), ThoughtModel(write_part)
    solve_one(GraphOfThoughts(operations=[*graph, {"op": "score"}], scorer="prm"), backend, reward)
    assert {prompt for prompt, _ in reward.asked} == {"Q:  Right."}
    assert str(backend.calls[1][0].prompt).startswith("Question: Q:  Right.\n")
    assert {request.purpose for call in backend.calls for request in call} == {"part"}


def test_got_merges_bare_thoughts_with_a_separator() -> None:
    backend = ThoughtModel(write_part)
    solve_one(GraphOfThoughts(operations=[*PARTS[:2], PARTS[3]]), backend)
    assert str(backend.calls[1][0].prompt) == "Merge Left. 0 and Right. 0 and Right. 1"


@pytest.mark.parametrize(
    ("key", "parts"),
    [({}, ["1", "2;", "3"]), ({"separator": "; "}, ["1 2", "3"]), ({"separator": ""}, ["1", "2;", "3"])],
)
def test_got_splits_a_thought_into_several(key: dict[str, str], parts: list[str]) -> None:
    graph = [{"op": "generate", "part": True}, {"op": "split", **key}, {"op": "generate", "prompt": "$thought?"}]
    backend = ThoughtModel(lambda request, number: "1 2; 3")
    solve_one(GraphOfThoughts(operations=graph), backend)
    assert [request.prompt for request in backend.calls[1]] == [f"{part}?" for part in parts]


def test_got_splits_the_question_itself() -> None:
    graph = [
        {"op": "split", "separator": ":", "name": "words"},
        {"op": "select", "indices": [0]},
        {"op": "generate", "prompt": "$thought?"},
    ]
    backend = ThoughtModel(write_part)
    assert solve_one(GraphOfThoughts(operations=graph), backend).text == "Q? 0"
    assert [[request.prompt for request in call] for call in backend.calls] == [["Q?"]]


def test_got_a_part_answers_nobody_when_the_budget_ends() -> None:
    spent = solve_one(
        GraphOfThoughts(operations=PARTS, scorer="prm"),
        ThoughtModel(write_part),
        ByPrompt(),
        budget=Budget(completions=3),
    )
    assert (spent.stopped_by, spent.answer, spent.candidates) == ("completions", None, [])
    merged = solve_one(
        GraphOfThoughts(operations=PARTS, scorer="prm"),
        ThoughtModel(write_part),
        ByPrompt(),
        budget=Budget(completions=4),
    )
    assert merged.stopped_by == "completions"
    assert merged.text.startswith("1 ")


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ([], "at least one"),
        ([{"op": "think"}], "expected 'generate' or"),
        ([{"op": "generate", "width": 3}], "'width', expected one of op, name, inputs, k, prompt"),
        ([{"op": "generate"}, {"op": "score", "inputs": ["dratfs"]}], "dratfs"),
        ([{"op": "generate", "name": "a"}, {"op": "score", "name": "a"}], "a name of its own"),
        ([{"op": "score"}], "it reads no other operation"),
        (["generate"], "a mapping with 'op'"),
        ([{"op": "generate", "k": 0}], "operations[0].k: 0, expected at least 1"),
        ([{"op": "generate"}, {"op": "select", "indices": ["a"]}], "whole numbers"),
        ([{"op": "generate", "part": "left"}], "true or false"),
        ([{"op": "generate"}, {"op": "score", "part": True}], "expected one of op, name, inputs, prompt"),
        ([{"op": "generate"}, {"op": "aggregate", "separator": 1}], "a text"),
    ],
)
def test_got_refuses_a_graph_that_cannot_run(graph: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match="graph_of_thoughts cannot use operations") as error:
        GraphOfThoughts(operations=graph)
    assert message in str(error.value)
