"""`graph_of_thoughts`: whole solutions that are generated, scored, merged and improved along a graph of operations.

Paper: Besta et al., 2023 (https://huggingface.co/papers/2308.09687), section 4: the graph of operations is written down
beforehand; what a tree lacks is aggregation, a thought with several parents.

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

import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, TypeAlias

from posttrain_plugins.errors import BudgetExhausted
from posttrain_plugins.search import Path, asking, check_fields, fill, refuse, settle
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

Wave: TypeAlias = Generator[list[Request], Any, list["_Thought"]]


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
        check_fields("graph_of_thoughts", self, "num_evaluations")
        _graph(self.operations)

    def __call__(self, problem: Problem) -> Generator[list[Request], Any, Result]:
        made: list[_Thought] = []
        try:
            final = yield from self._run_all(problem, made)
        except BudgetExhausted:
            final = [thought for thought in made if thought.score is not None]
            if not final:
                raise
        paths = [Path(t.text, ended=t.ended, score=t.score) for t in final or made]
        return settle(paths, "best" if any(path.score is not None for path in paths) else "majority")

    def _run_all(self, problem: Problem, made: list[_Thought]) -> Wave:
        """What the last operation leaves; `made` is filled with every thought on the way."""
        waiting = _graph(self.operations)
        last = waiting[-1].name
        done: dict[str, list[_Thought]] = {}
        running: dict[str, tuple[Wave, list[Request]]] = {}

        def advance(name: str, work: Wave, responses: Any) -> None:
            try:
                running[name] = (work, work.send(responses))
            except StopIteration as stop:
                running.pop(name, None)
                done[name] = stop.value
                made.extend(stop.value)

        while waiting or running:
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

    def _run(self, problem: Problem, operation: _Operation, inputs: list[_Thought]) -> Wave:
        match operation.op:
            case "generate":
                return (yield from self._generate(problem, operation, inputs))
            case "score":
                return (yield from self._score(problem, operation, inputs))
            case "keep_best":
                return sorted(inputs, key=_rank, reverse=True)[: operation.k]
            case "aggregate":
                return (yield from self._aggregate(problem, operation, inputs))
            case "improve":
                return (yield from self._each(problem, operation.prompt or self.improve_prompt, operation.k, inputs))
            case "validate":
                return (yield from self._validate(problem, operation, inputs))
            case _:
                return [inputs[i] for i in operation.indices if -len(inputs) <= i < len(inputs)]

    def _generate(self, problem: Problem, operation: _Operation, inputs: list[_Thought]) -> Wave:
        if operation.inputs:
            return (yield from self._each(problem, operation.prompt or self.extend_prompt, operation.k, inputs))
        prompt = fill(problem.prompt, operation.prompt) if operation.prompt else problem.prompt
        [drawn] = yield [Generate(prompt, n=operation.k, params=problem.params)]
        return _thoughts(drawn, ())

    def _each(self, problem: Problem, template: str, k: int, inputs: list[_Thought]) -> Wave:
        """`k` new thoughts of each input."""
        if not inputs:
            return []
        prompts = [fill(problem.prompt, template, thought=thought.text) for thought in inputs]
        drawn = yield [Generate(prompt, n=k, params=problem.params) for prompt in prompts]
        pairs = zip(inputs, drawn, strict=True)
        return [thought for parent, completions in pairs for thought in _thoughts(completions, (parent,))]

    def _aggregate(self, problem: Problem, operation: _Operation, inputs: list[_Thought]) -> Wave:
        if not inputs:
            return []
        texts = "\n\n".join(f"Solution {i}:\n{thought.text}" for i, thought in enumerate(inputs, 1))
        prompt = fill(problem.prompt, operation.prompt or self.aggregate_prompt, thoughts=texts)
        [drawn] = yield [Generate(prompt, n=operation.k, params=problem.params)]
        return _thoughts(drawn, tuple(inputs))

    def _score(self, problem: Problem, operation: _Operation, inputs: list[_Thought]) -> Wave:
        """The inputs with scores, equal texts asked once; what has a score keeps it."""
        texts = list(dict.fromkeys(thought.text for thought in inputs if thought.score is None))
        if not texts:
            return inputs
        if self.scorer is not None:
            [scores] = yield [Score(problem.prompt, tuple(texts), self.scorer)]
        else:
            template = operation.prompt or self.score_prompt
            drawn = yield [asking(problem, template, "value", self.num_evaluations, thought=text) for text in texts]
            scores = [_mean_grade(replies) for replies in drawn]
        known = dict(zip(texts, scores, strict=True))
        return [replace(t, score=known[t.text]) if t.score is None else t for t in inputs]

    def _validate(self, problem: Problem, operation: _Operation, inputs: list[_Thought]) -> Wave:
        thoughts = yield from self._score(problem, operation, inputs)
        for _ in range(operation.retries):
            bad = [thought for thought in thoughts if _rank(thought) < operation.threshold]
            better = yield from self._each(problem, self.improve_prompt, 1, bad)
            better = yield from self._score(problem, operation, better)
            mended = {thought.parents[0]: thought for thought in better}
            thoughts = [mended.get(thought, thought) for thought in thoughts]
        return [thought for thought in thoughts if _rank(thought) >= operation.threshold] or thoughts


# --- Thoughts and operations -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Thought:
    """A solution, and the thoughts that it was made of."""

    text: str
    ended: Any
    parents: tuple[_Thought, ...] = ()
    score: float | None = None


def _thoughts(completions: Sequence[Completion], parents: tuple[_Thought, ...]) -> list[_Thought]:
    kept = [completion for completion in completions if completion.finish_reason != "error"]
    return [_Thought(c.text, "length" if c.finish_reason == "length" else "stop", parents) for c in kept]


def _rank(thought: _Thought) -> float:
    return -math.inf if thought.score is None or math.isnan(thought.score) else thought.score


def _mean_grade(replies: Sequence[Completion]) -> float | None:
    last = [found[-1] for reply in replies if (found := _NUMBER.findall(reply.text))]
    return fmean(min(float(number) / 10, 1.0) for number in last) if last else None


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


def _graph(rows: Sequence[Mapping[str, Any]]) -> list[_Operation]:
    """The operations, each after those that it reads.

    Raises:
        InputError: for the first row that cannot be used.
    """
    if not rows:
        refuse("graph_of_thoughts", "operations", rows, "at least one")
    graph: list[_Operation] = []
    for i, row in enumerate(rows):
        graph.append(_operation(f"operations[{i}]", row, [operation.name for operation in graph]))
    return graph


def _operation(where: str, row: Mapping[str, Any], before: list[str]) -> _Operation:
    if not isinstance(row, Mapping) or "op" not in row:
        refuse("graph_of_thoughts", where, row, "a mapping with 'op'")
    allowed = ("op", "name", "inputs", *_OWN_KEYS.get(str(row["op"]), ()))
    for key, value in row.items():
        if row["op"] in _OWN_KEYS and key not in allowed:
            refuse("graph_of_thoughts", where, key, f"one of {', '.join(allowed)}")
        is_right, expected = _EXPECTED.get(key, (lambda _: True, ""))
        if not is_right(value):
            refuse("graph_of_thoughts", f"{where}.{key}", value, expected)
    name, inputs = row.get("name", str(len(before))), tuple(row.get("inputs", before[-1:]))
    if name in before:
        refuse("graph_of_thoughts", f"{where}.name", name, "a name of its own")
    if not set(inputs) <= set(before):
        refuse(
            "graph_of_thoughts", f"{where}.inputs", [*inputs], f"operations before it: {', '.join(before) or 'none'}"
        )
    if not inputs and row["op"] != "generate":
        refuse("graph_of_thoughts", f"{where}.op", row["op"], "'generate', since it reads no other operation")
    return _Operation(**{**row, "name": name, "inputs": inputs, "indices": tuple(row.get("indices", ()))})
