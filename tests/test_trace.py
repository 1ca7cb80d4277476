"""The trace that the engine writes, and the tree that is read from it: paths, refinements, aggregates, tools."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.engine import tools, trace
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.engine.trace import Node, prefill_of, tree
from posttrain_plugins.steps import split_steps
from posttrain_plugins.types import (
    Budget,
    CallTool,
    Completion,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    Score,
    ScoreSteps,
    Usage,
)

USER = {"role": "user", "content": "2+2=?"}


def drawn(prompt: Any, *texts: str, stop: str | None = None, **event: Any) -> dict[str, Any]:
    completions = [{"text": text, "finish_reason": "stop", "tokens": len(text)} for text in texts]
    completions = [c | ({"stop_reason": stop} if stop else {}) for c in completions]
    return {
        "kind": "generate",
        "role": "policy",
        "purpose": "answer",
        "prompt": prompt,
        "completions": completions,
    } | event


def begun(text: str) -> list[dict[str, str]]:
    return [USER, {"role": "assistant", "content": text}]


def edges(root: Node) -> dict[str, list[str]]:
    """Child's text -> its parents' texts."""
    nodes = {node.id: node for node in root.walk()}
    return {node.text: [nodes[parent].text for parent in node.parents] for node in nodes.values() if node.id}


# --- The tree of hand-made events ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_chat", [True, False])
def test_a_beams_paths_are_branches_with_their_scores(is_chat: bool) -> None:
    def at(path: str) -> Any:
        return (begun(path) if path else [USER]) if is_chat else "2+2=?" + path

    def judged(*rows: tuple[list[str], list[float]]) -> dict[str, Any]:
        steps, scores = zip(*rows, strict=True)
        return {"kind": "step_scores", "scorer": "prm", "prompt": at(""), "steps": list(steps), "scores": list(scores)}

    events = [
        drawn(at(""), "a", "b", stop=";"),
        judged((["a;"], [0.9]), (["b;"], [0.1])),
        drawn(at("a;"), "c", "a", stop=";", round=2),
        drawn(at("b;"), "c", stop=";", round=2),
        judged((["a;", "c;"], [0.9, 0.3]), (["a;", "a;"], [0.9, 0.8]), (["b;", "c;"], [0.1, 0.2])),
        drawn(at("a;a;"), "answer is 4"),
        {"kind": "score", "scorer": "rm", "prompt": at(""), "completions": ["a;a;answer is 4"], "scores": [5.0]},
    ]
    root = tree(events)
    assert root.render() == "\n".join(
        [
            "0 root: 2+2=?",
            "  1 answer: a",
            "    3 answer: c",
            "    4 answer: a",
            "      6 answer [5]: answer is 4",
            "  2 answer: b",
            "    5 answer: c",
        ]
    )
    scores = {node.id: node.step_scores for node in root.walk()}
    assert scores == {0: [], 1: [0.9], 2: [0.1], 3: [0.9, 0.3], 4: [0.9, 0.8], 5: [0.1, 0.2], 6: []}
    assert [node.tokens for node in root.walk()] == [0, 1, 1, 1, 1, 1, 11]


def test_the_longest_path_is_the_parent() -> None:
    events = [
        drawn([USER], "one"),
        drawn([USER], "one two"),
        drawn(begun("one two three"), "four"),
        drawn(begun("one"), "more"),
        drawn(begun("on"), "off"),
    ]
    assert edges(tree(events)) == {
        "one": ["2+2=?"],
        "one two": ["2+2=?"],
        "four": ["one two"],
        "more": ["one"],
        "off": ["2+2=?\non"[:5]],
    }


def test_a_refinement_is_a_chain() -> None:
    draft, advice, better = "four, I think", "say it plainly", "it is four"
    asked = f"2+2=? A: {draft} What is wrong?"
    events = [
        drawn([USER], draft),
        {"kind": "score", "scorer": "rm", "prompt": [USER], "completions": [draft], "scores": [0.25]},
        drawn([{"role": "user", "content": asked}], advice, purpose="feedback", role="critic"),
        drawn([USER, {"role": "assistant", "content": draft}, {"role": "user", "content": advice}], better),
        {"kind": "score", "scorer": "rm", "prompt": [USER], "completions": [better], "scores": [None]},
    ]
    root = tree(events)
    assert edges(root) == {draft: ["2+2=?"], advice: [draft], better: [advice]}
    _, first, second, third = root.walk()
    assert (first.score, second.score, third.score) == (0.25, None, None)
    assert (second.kind, second.role) == ("feedback", "critic")


def test_an_aggregate_has_several_parents() -> None:
    events = [
        drawn([USER], "first way: four", "second way: five", "no"),
        drawn([{"role": "user", "content": "Merge: first way: four | second way: five | no"}], "both: four"),
    ]
    root = tree(events)
    assert edges(root)["both: four"] == ["first way: four", "second way: five"]  # "no" is too short to tell
    assert [node.id for node in root.walk()] == [0, 1, 2, 3, 4]
    assert root.render().count("both: four") == 2


def test_a_text_inside_another_one_is_no_parent() -> None:
    events = [
        drawn([USER], "four"),
        drawn([USER], "it is four"),
        drawn([{"role": "user", "content": "Is this right? it is four."}], "yes indeed"),
        drawn([{"role": "user", "content": "four or: it is four"}], "the same"),
    ]
    assert edges(tree(events))["yes indeed"] == ["it is four"]
    assert edges(tree(events))["the same"] == ["four", "it is four"]


def test_what_is_asked_together_is_not_each_others_parent() -> None:
    prompt = [{"role": "user", "content": "it is four?"}]
    together = [drawn([USER], "it is four", round=0), drawn(prompt, "yes", round=0)]
    assert edges(tree(together))["yes"] == ["2+2=?"]
    after = [drawn([USER], "it is four", round=0), drawn(prompt, "yes", round=1)]
    assert edges(tree(after))["yes"] == ["it is four"]


def test_a_tools_answer_lies_between_the_call_and_what_reads_it() -> None:
    call, answer = "Action: add[2, 2]", "the sum is 4"
    chat = [USER, {"role": "assistant", "content": call}, {"role": "user", "content": answer}]
    events = [
        drawn([USER], call, "Action: wait[]"),
        {"kind": "tool", "name": "add", "arguments": {"a": 2}, "answer": answer},
        drawn(chat, "Finish[4]"),
    ]
    root = tree(events)
    assert edges(root) == {call: ["2+2=?"], "Action: wait[]": ["2+2=?"], answer: [call], "Finish[4]": [answer]}
    assert [(node.kind, node.role) for node in root.walk()][3] == ("tool", "add")


def test_a_value_head_scores_by_itself() -> None:
    event = drawn([USER], "four")
    event["completions"][0]["value"] = 0.75
    assert tree([event]).children[0].score == 0.75


def test_nothing_happened() -> None:
    root = tree(Result(answer=None, text=""))
    assert (root.kind, root.text, root.children) == ("root", "", [])


def test_long_traces_are_read_in_reasonable_time() -> None:
    path, events = "", []
    for i in range(400):
        events.append(drawn(begun(path) if path else [USER], *(f"step {i}.{j}" for j in range(4)), stop=";"))
        path += f"step {i}.0;"
    nodes = list(tree(events).walk())
    assert len(nodes) == 1601
    assert nodes[-1].parents == (1 + 4 * 398,)
    depth, node = 0, nodes[-4]
    while node.parents:
        node, depth = nodes[node.parents[0]], depth + 1
    assert depth == 400


@pytest.mark.parametrize(
    ("prompt", "problem", "found"),
    [
        ("2+2=? It is", "2+2=?", " It is"),
        ("Think. 2+2=?", "2+2=?", ""),
        ("2+2=? It", [USER], ""),
        ([USER], "2+2=?", ""),
        (begun("It is"), "2+2=?", "It is"),
        (begun("<think>It is"), begun("<think>"), "It is"),
        ([], [], ""),
    ],
)
def test_prefill(prompt: Any, problem: Any, found: str) -> None:
    assert prefill_of(prompt, problem) == found


# --- The engine's events ---------------------------------------------------------------------------------------------


@dataclass
class Growing:
    """Draws a step, and what it cost."""

    identity: str = "growing"
    capabilities: Capabilities = field(default_factory=Capabilities)
    loses: tuple[int, ...] = ()

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        for i, of_request in enumerate(seeds):
            for j, seed in enumerate(of_request):
                if j in self.loses:
                    yield i, j, Completion("", finish_reason="error", error="lost")
                else:
                    yield i, j, Completion(f"step {seed % 997}", usage=Usage(0 if j else 6, 3), stop_reason=";")


class Judge:
    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [float(len(text)) for text in completions]

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        return [[1.0] * len(row) for row in steps]


def beam(problem: Problem) -> Any:
    paths = [""]
    for _ in range(3):
        rounds = yield [Generate(problem.prompt + path, n=3, params=problem.params) for path in paths]
        paths = [
            path + completion.text + ";"
            for path, completions in zip(paths, rounds, strict=True)
            for completion in completions
            if not completion.error
        ][:3]
        yield [
            Score(problem.prompt, tuple(paths), "rm"),
            ScoreSteps(problem.prompt, tuple(tuple(split_steps(path, ";")) for path in paths), "rm"),
            CallTool("note", {"what": len(paths)}),
        ]
    return Result(answer=None, text=paths[0])


def solved(**options: Any) -> Result:
    scorers = {"rm": ResolvedReward("rm", Judge())}
    tools = {"note": lambda what: f"noted {what}"}
    return solve(beam, [Problem("q")], backend=Growing(), scorers=scorers, tools=tools, **options)[0]


def test_every_strategy_has_a_trace_of_json_values_and_a_tree() -> None:
    result = solved()
    assert json.loads(json.dumps(result.trace)) == result.trace
    kinds = [(event["round"], event["kind"]) for event in result.trace]
    judged = ["score", "step_scores", "tool"]
    assert kinds == [
        (0, "generate"),
        *((1, kind) for kind in judged),
        *((2, "generate") for _ in range(3)),
        *((3, kind) for kind in judged),
        *((4, "generate") for _ in range(3)),
        *((5, kind) for kind in judged),
    ]
    completions = [c for event in result.trace for c in event.get("completions", []) if isinstance(c, Mapping)]
    usage = result.usage["policy"]
    assert sum(completion["tokens"] for completion in completions) == usage.total_tokens
    assert result.trace[3] == {
        "round": 1,
        "kind": "tool",
        "name": "note",
        "arguments": {"what": 3},
        "answer": "noted 3",
    }
    drawn_nodes = [node for node in tree(result).walk() if node.kind == "answer"]
    assert sum(node.tokens for node in drawn_nodes) == usage.total_tokens
    depths = {node.id: 0 for node in tree(result).walk()}
    for node in tree(result).walk():
        depths[node.id] = 1 + max((depths[parent] for parent in node.parents), default=-1)
    assert max(depths[node.id] for node in drawn_nodes) == 3
    scored = [node for node in drawn_nodes if node.score is not None]
    assert len(scored) >= 3 + 3 + 3
    assert all(len(node.step_scores) == depths[node.id] for node in scored)


def test_prompts_are_referred_to_and_not_copied() -> None:
    prompt = [USER]

    def strategy(problem: Problem) -> Any:
        [completion] = yield Generate(prompt)
        return Result(answer=None, text=completion.text)

    [result] = solve(strategy, [Problem("q")], backend=Growing())
    assert result.trace[0]["prompt"] is prompt


def test_errors_and_budgets_leave_a_trace() -> None:
    def breaks(problem: Problem) -> Any:
        yield Generate(problem.prompt, n=5)
        raise ValueError

    [result] = solve(breaks, [Problem("q")], backend=Growing(loses=(1, 4)))
    assert result.error
    assert [event["kind"] for event in result.trace] == ["generate"]
    assert ["error" in completion for completion in result.trace[0]["completions"]] == [False, True, False, False, True]
    stopped = solved(budget=Budget(calls=3))
    assert stopped.stopped_by == "calls"
    assert [event["kind"] for event in stopped.trace] == ["generate", "score", "step_scores"]


@pytest.mark.parametrize("module", [trace, tools])
def test_examples_run(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
