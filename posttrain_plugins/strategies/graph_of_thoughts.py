"""`graph_of_thoughts`: whole solutions that are generated, scored, merged and improved along a graph of operations.

Paper: Besta et al., 2023 (https://huggingface.co/papers/2308.09687), sections 3 and 4: the graph of operations is
written down beforehand; what a tree lacks is aggregation, a thought with several parents.

1. The operations are plain mappings, so a recipe can hold them. Each is `{op: ..., name: ..., inputs: [names], ...}`;
   without `inputs` it reads the operation before it, the first one reads the problem.
2. All operations whose inputs are there run in the same wave.
3. A sample that fails leaves no thought; an operation without thoughts to work on passes none on.
4. `validate` passes on what its retries could not mend only where nothing else is left.

| op          | does                                                                    | its own keys           |
|-------------|-------------------------------------------------------------------------|------------------------|
| `generate`  | draws `k` thoughts from the problem, or from each input                 | `k`, `prompt`          |
| `score`     | gives each input a score: the scorer's, or the model's own, in [0, 1]   | `prompt`               |
| `keep_best` | passes on the `k` inputs with the best scores                           | `k`                    |
| `aggregate` | merges all inputs into `k` thoughts                                     | `k`, `prompt`          |
| `improve`   | makes `k` better thoughts of each input                                 | `k`, `prompt`          |
| `validate`  | improves inputs with a score below `threshold`, `retries` times at most | `threshold`, `retries` |
| `select`    | passes on the inputs at `indices`                                       | `indices`              |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, TypeAlias

from posttrain_plugins import search
from posttrain_plugins.errors import BudgetExhausted
from posttrain_plugins.search import PartialCompletion, Waves
from posttrain_plugins.text import replace_question
from posttrain_plugins.text.answers import sortable
from posttrain_plugins.types import Completion, Generate, Problem, Request, Result, RewardRef, Score

__all__ = ["GraphOfThoughts"]

OPERATIONS: tuple[Mapping[str, Any], ...] = (
    {"op": "generate", "k": 4},
    {"op": "score"},
    {"op": "keep_best", "k": 2, "name": "drafts"},
    {"op": "aggregate", "k": 2},
    {"op": "improve"},
    {"op": "score", "name": "merged"},
    {"op": "keep_best", "inputs": ["merged", "drafts"]},
)
"""Answers, the two best merged and improved, and the best of all: the paper's sorting graph for one whole question."""

EXTEND_PROMPT = """Question: $question

This is how far a solution has come:

$thought

Go on and complete it."""

AGGREGATE_PROMPT = """Question: $question

These are different solutions:

$thoughts

Put what is right in them together into one solution of your own, and answer the question."""

IMPROVE_PROMPT = """Question: $question

This is a solution:

$thought

Check it, mend its mistakes, and write the better solution in full, with the answer."""

SCORE_PROMPT = """Question: $question

This is a solution:

$thought

How likely is it right? Check it step by step. Then end with a number from 0 (surely wrong) to 10 (surely right)."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")

Thoughts: TypeAlias = list[PartialCompletion]
"""Solutions of the problem; as partial completions they are all finished, and of no steps."""


@dataclass
class GraphOfThoughts:
    """Run a graph of operations over thoughts; the best thought of the last operation answers.

    Args:
        operations: see the module's table; by default four drafts, of which two are merged and improved.
        scorer: a reward that scores thoughts in the model's stead.
        num_evaluations: how often the model scores a thought; the mean counts.
        extend_prompt: `generate` from a thought; with `$question` and `$thought`.
        aggregate_prompt: with `$question` and `$thoughts`.
        improve_prompt: with `$question` and `$thought`.
        score_prompt: with `$question` and `$thought`; the last number counts, of 10.

    Raises:
        InputError: for an operation that cannot be used.

    Example:
        >>> graph = [{"op": "generate", "k": 3}, {"op": "score"}, {"op": "keep_best", "k": 1}]
        >>> wave = next(GraphOfThoughts(operations=graph, scorer="rm")(Problem("2+2=?")))
        >>> wave[0].n
        3
    """

    operations: list[dict[str, Any]] = field(default_factory=lambda: [dict(row) for row in OPERATIONS])
    scorer: RewardRef | None = None
    num_evaluations: int = 1
    extend_prompt: str = EXTEND_PROMPT
    aggregate_prompt: str = AGGREGATE_PROMPT
    improve_prompt: str = IMPROVE_PROMPT
    score_prompt: str = SCORE_PROMPT

    def __post_init__(self) -> None:
        search.check_fields("graph_of_thoughts", self, "num_evaluations")
        _read_graph(self.operations)

    def __call__(self, problem: Problem) -> Waves[Result]:
        made: Thoughts = []
        try:
            final = yield from self._run_graph(problem, made)
        except BudgetExhausted:
            # Only a thought with a score is better than what the engine would choose: the majority of all of them.
            final = [thought for thought in made if thought.score is not None]
            if not final:
                raise
        thoughts = final or made
        return search.select_answer(thoughts, "best" if any(one.score is not None for one in thoughts) else "majority")

    def _run_graph(self, problem: Problem, made: Thoughts) -> Waves[Thoughts]:
        """Return what the last operation leaves; `made` is filled with every thought on the way."""
        # The paper's controller (section 4) takes the next operation whose inputs are there. Here all of them run at
        # once: each is a generator, and what the running ones wait for goes out as one wave.
        waiting = _read_graph(self.operations)
        last = waiting[-1].name
        done: dict[str, Thoughts] = {}
        running: dict[str, tuple[Waves[Thoughts], list[Request]]] = {}  # with the requests that it waits for

        def advance(name: str, work: Waves[Thoughts], responses: Any) -> None:
            try:
                running[name] = (work, work.send(responses))
            except StopIteration as stop:
                running.pop(name, None)
                done[name] = stop.value
                made.extend(stop.value)

        while waiting or running:
            # An operation may end without a request (`keep_best`), and others may read it at once: so this goes round
            # until nothing more can start.
            while ready := [operation for operation in waiting if done.keys() >= set(operation.inputs)]:
                waiting = [operation for operation in waiting if operation not in ready]
                for operation in ready:
                    inputs = [thought for name in operation.inputs for thought in done[name]]
                    advance(operation.name, self._run(problem, operation, inputs), None)
            if running:
                responses = iter((yield [request for _, wave in running.values() for request in wave]))
                for name, (work, wave) in list(running.items()):
                    advance(name, work, [next(responses) for _ in wave])
        return done[last]

    def _run(self, problem: Problem, operation: _Operation, inputs: Thoughts) -> Waves[Thoughts]:
        k, own = operation.k, operation.prompt
        match operation.op:
            case "generate" if not operation.inputs:
                prompt = replace_question(problem.prompt, own) if own else problem.prompt
            case "aggregate" if inputs:  # the transformation that a tree lacks: several parents
                texts = "\n\n".join(f"Solution {i}:\n{thought.text}" for i, thought in enumerate(inputs, 1))
                prompt = replace_question(problem.prompt, own or self.aggregate_prompt, thoughts=texts)
            case "generate" | "improve":
                template = own or (self.improve_prompt if operation.op == "improve" else self.extend_prompt)
                return search.flatten((yield from self._transform(problem, template, k, inputs)))
            case "score":
                return (yield from self._score(problem, own, inputs))
            case "keep_best":  # the paper's ranking R(G, p, h)
                return sorted(inputs, key=lambda thought: sortable(thought.score), reverse=True)[:k]
            case "validate":
                return (yield from self._validate(problem, operation, inputs))
            case _:  # `select`; an `aggregate` of nothing has no indices
                return [inputs[i] for i in operation.indices if -len(inputs) <= i < len(inputs)]
        [drawn] = yield [Generate(prompt, n=k, params=problem.params)]
        return _finished(drawn)

    def _transform(self, problem: Problem, template: str, k: int, inputs: Thoughts) -> Waves[list[Thoughts]]:
        """Draw `k` new thoughts from each input; failed samples are left out."""
        if not inputs:
            return []
        prompts = [replace_question(problem.prompt, template, thought=thought.text) for thought in inputs]
        drawn = yield [Generate(prompt, n=k, params=problem.params) for prompt in prompts]  # (inputs, k)
        return [_finished(completions) for completions in drawn]

    def _score(self, problem: Problem, prompt: str | None, inputs: Thoughts) -> Waves[Thoughts]:
        """Return the inputs with scores, equal texts asked about once; what has a score keeps it."""
        texts = list(dict.fromkeys(thought.text for thought in inputs if thought.score is None))
        if not texts:
            return inputs
        if self.scorer is not None:  # the paper's evaluator E(v, G, p), a function
            [scores] = yield [Score(problem.prompt, tuple(texts), self.scorer)]
        else:  # or the model itself, which ends its check with a grade out of 10
            n, template = self.num_evaluations, prompt or self.score_prompt
            drawn = yield [search.request_judgement(problem, template, "value", n, thought=text) for text in texts]
            grades = [[found[-1] for one in replies if (found := _NUMBER.findall(one.text))] for replies in drawn]
            scores = [fmean(min(float(x) / 10, 1.0) for x in of_text) if of_text else None for of_text in grades]
        known = dict(zip(texts, scores, strict=True))
        return [replace(t, score=known[t.text]) if t.score is None else t for t in inputs]

    def _validate(self, problem: Problem, operation: _Operation, inputs: Thoughts) -> Waves[Thoughts]:
        thoughts = list((yield from self._score(problem, None, inputs)))  # a copy: others may read the inputs too
        for _ in range(operation.retries):
            bad = [i for i, thought in enumerate(thoughts) if sortable(thought.score) < operation.threshold]
            drawn = yield from self._transform(problem, self.improve_prompt, 1, [thoughts[i] for i in bad])
            better = iter((yield from self._score(problem, None, search.flatten(drawn))))
            for i, of_thought in zip(bad, drawn, strict=True):
                # It takes the place of the thought that it was made from, even if it is worse: the next retry mends it.
                thoughts[i] = next(better) if of_thought else thoughts[i]
        return [thought for thought in thoughts if sortable(thought.score) >= operation.threshold] or thoughts


def _finished(completions: Sequence[Completion]) -> Thoughts:
    """Return the thoughts that completions are; one that fails leaves none, and the graph goes on without it."""
    kept = [completion for completion in completions if completion.finish_reason != "error"]
    return [PartialCompletion(c.text, ended="length" if c.finish_reason == "length" else "stop") for c in kept]


# --- The graph of operations -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Operation:
    op: str
    name: str
    inputs: tuple[str, ...]
    k: int = 1
    prompt: str | None = None
    threshold: float = 0.5
    retries: int = 1
    indices: tuple[int, ...] = ()


_OWN_KEYS: dict[str, tuple[str, ...]] = {
    "generate": ("k", "prompt"),
    "score": ("prompt",),
    "keep_best": ("k",),
    "aggregate": ("k", "prompt"),
    "improve": ("k", "prompt"),
    "validate": ("threshold", "retries"),
    "select": ("indices",),
}
_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "op": (lambda value: value in _OWN_KEYS, " or ".join(map(repr, _OWN_KEYS))),
    "name": (lambda value: isinstance(value, str), "a text"),
    "inputs": (lambda value: isinstance(value, Sequence) and not isinstance(value, str), "a list of names"),
    "k": (lambda value: isinstance(value, int) and value > 0, "at least 1"),
    "prompt": (lambda value: isinstance(value, str), "a text"),
    "threshold": (lambda value: isinstance(value, int | float), "a number"),
    "retries": (lambda value: isinstance(value, int) and value >= 0, "at least 0"),
    "indices": (lambda value: isinstance(value, Sequence) and all(isinstance(i, int) for i in value), "whole numbers"),
}


def _read_graph(rows: Sequence[Mapping[str, Any]]) -> list[_Operation]:
    """Return the operations, each after those that it reads.

    Raises:
        InputError: for the first row that cannot be used.
    """
    if not rows:
        search.refuse_field("graph_of_thoughts", "operations", rows, "at least one")
    graph: list[_Operation] = []
    for i, row in enumerate(rows):
        graph.append(_read_operation(f"operations[{i}]", row, [operation.name for operation in graph]))
    return graph


def _read_operation(where: str, row: Mapping[str, Any], before: list[str]) -> _Operation:
    if not isinstance(row, Mapping) or "op" not in row:
        search.refuse_field("graph_of_thoughts", where, row, "a mapping with 'op'")
    allowed = ("op", "name", "inputs", *_OWN_KEYS.get(str(row["op"]), ()))
    for key, value in row.items():
        if row["op"] in _OWN_KEYS and key not in allowed:  # an unknown `op` is told first, by its own check
            search.refuse_field("graph_of_thoughts", where, key, f"one of {', '.join(allowed)}")
        is_right, expected = _EXPECTED.get(key, (lambda _: True, ""))
        if not is_right(value):
            search.refuse_field("graph_of_thoughts", f"{where}.{key}", value, expected)
    name, inputs = row.get("name", str(len(before))), tuple(row.get("inputs", before[-1:]))
    if name in before:
        search.refuse_field("graph_of_thoughts", f"{where}.name", name, "a name of its own")
    if not set(inputs) <= set(before):  # names of later operations are refused too, so there can be no cycle
        known = f"operations before it: {', '.join(before) or 'none'}"
        search.refuse_field("graph_of_thoughts", f"{where}.inputs", [*inputs], known)
    if not inputs and row["op"] != "generate":
        search.refuse_field(
            "graph_of_thoughts", f"{where}.op", row["op"], "'generate', since it reads no other operation"
        )
    return _Operation(**{**row, "name": name, "inputs": inputs, "indices": tuple(row.get("indices", ()))})
