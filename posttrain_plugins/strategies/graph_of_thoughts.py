"""`graph_of_thoughts`: solutions, whole or of parts, that are drawn, scored, merged and improved along a graph.

Paper: Besta et al., 2023 (https://huggingface.co/papers/2308.09687), sections 3 and 4: the graph of operations is
written down beforehand; what a tree lacks is aggregation, a thought with several parents.

1. The operations are plain mappings, so a recipe can hold them. Each is `{op: ..., name: ..., inputs: [names], ...}`;
   without `inputs` it reads the operation before it, the first one reads the problem.
2. All operations whose inputs are there run in the same wave.
3. A sample that fails leaves no thought; an operation without thoughts to work on passes none on.
4. `validate` passes on what its retries could not mend only where nothing else is left.
5. With `part: true` an operation draws what answers a part of the question: it is scored by the prompt that asked for
   it, as the paper's sorted parts are (section 5.1), and is nobody's answer when a budget ends. The scorer is given the
   whole problem's columns for it too, so one that compares with `solution` does not judge a part.

| op          | does                                                              | its own keys                       |
|-------------|-------------------------------------------------------------------|------------------------------------|
| `generate`  | draws `k` thoughts from the problem, or from each input           | `k`, `prompt`, `part`              |
| `split`     | cuts the question, or each input, at `separator` or white space   | `separator`                        |
| `score`     | scores each input: by the scorer, or the model itself in [0, 1]   | `prompt`                           |
| `keep_best` | passes on the `k` inputs with the best scores                     | `k`                                |
| `aggregate` | merges all inputs, numbered or with `separator` between, into `k` | `k`, `prompt`, `part`, `separator` |
| `improve`   | makes `k` better thoughts of each input                           | `k`, `prompt`                      |
| `validate`  | improves what scores below `threshold`, `retries` times at most   | `threshold`, `retries`             |
| `select`    | passes on the inputs at `indices`                                 | `indices`                          |
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
from posttrain_plugins.text import last_user_text, replace_question
from posttrain_plugins.text.answers import sortable
from posttrain_plugins.types import Generate, Problem, Prompt, Request, Result, RewardRef, Score

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


@dataclass(frozen=True, slots=True)
class Thought(PartialCompletion):
    """A solution of the problem, or of a part of it; as a partial completion it is finished, and of no steps.

    Args:
        part: the prompt that asked for it, where it answers a part of the question.
    """

    part: Prompt | None = None


Thoughts: TypeAlias = list[Thought]


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
            final = [thought for thought in made if thought.score is not None and thought.part is None]
            if not final:
                raise
        thoughts = final or [thought for thought in made if thought.part is None]
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
                prompts = [replace_question(problem.prompt, own) if own else problem.prompt]
            case "generate":
                template = own or self.extend_prompt
                prompts = [replace_question(problem.prompt, template, thought=thought.text) for thought in inputs]
            case "aggregate" if inputs:  # the transformation that a tree lacks: several parents
                texts = _joined(inputs, operation.separator)
                prompts = [replace_question(problem.prompt, own or self.aggregate_prompt, thoughts=texts)]
            case "improve":
                return search.flatten((yield from self._improve(problem, own, k, inputs)))
            case "split" if not operation.inputs:
                words = last_user_text(problem.prompt).split(operation.separator or None)
                return [Thought(word, ended="stop", part=problem.prompt) for word in words]
            case "split":  # the paper's parser: one completion holds several thoughts
                texts_of = [thought.text.split(operation.separator or None) for thought in inputs]
                return [
                    replace(t, text=text, score=None, part=t.part or problem.prompt)  # a piece answers nobody
                    for t, of in zip(inputs, texts_of, strict=True)
                    for text in of
                ]
            case "score":
                return (yield from self._score(problem, inputs, own))
            case "keep_best":  # the paper's ranking R(G, p, h)
                return sorted(inputs, key=lambda thought: sortable(thought.score), reverse=True)[:k]
            case "validate":
                return (yield from self._validate(problem, operation, inputs))
            case _:  # `select`; an `aggregate` of nothing has no indices
                return [inputs[i] for i in operation.indices if -len(inputs) <= i < len(inputs)]
        parts = prompts if operation.part else [None] * len(prompts)
        return search.flatten((yield from self._draw(problem, prompts, k, parts)))

    def _improve(self, problem: Problem, own: str | None, k: int, inputs: Thoughts) -> Waves[list[Thoughts]]:
        """Draw `k` better thoughts of each input; what is made of a part answers the same part."""
        template, parts = own or self.improve_prompt, [thought.part for thought in inputs]
        asked = [problem.prompt if part is None else part for part in parts]
        prompts = [replace_question(q, template, thought=one.text) for q, one in zip(asked, inputs, strict=True)]
        return (yield from self._draw(problem, prompts, k, parts))

    def _draw(
        self, problem: Problem, prompts: Sequence[Prompt], k: int, parts: Sequence[Prompt | None]
    ) -> Waves[list[Thoughts]]:
        """Draw `k` thoughts for each prompt; a sample that fails leaves none, and the graph goes on without it."""
        if not prompts:
            return []
        purposes = ["answer" if part is None else "part" for part in parts]
        drawn = yield [
            Generate(prompt, n=k, params=problem.params, purpose=purpose)
            for prompt, purpose in zip(prompts, purposes, strict=True)
        ]  # (prompts, k)
        kept = [[one for one in completions if one.finish_reason != "error"] for completions in drawn]
        return [
            [Thought(c.text, ended="length" if c.finish_reason == "length" else "stop", part=part) for c in completions]
            for completions, part in zip(kept, parts, strict=True)
        ]

    def _score(self, problem: Problem, inputs: Thoughts, template: str | None = None) -> Waves[Thoughts]:
        """Return the inputs with scores, equal texts asked about once; what has a score keeps it."""
        about = [problem if thought.part is None else replace(problem, prompt=thought.part) for thought in inputs]
        keys = [(str(of.prompt), thought.text) for of, thought in zip(about, inputs, strict=True)]
        asked = {
            key: (of, thought.text)
            for key, of, thought in zip(keys, about, inputs, strict=True)
            if thought.score is None
        }
        if not asked:
            return inputs
        known: dict[tuple[str, str], float | None]
        if self.scorer is not None:  # the paper's evaluator E(v, G, p), a function
            by_prompt: dict[str, tuple[Problem, list[str]]] = {}
            for (prompt, text), (of, _) in asked.items():
                by_prompt.setdefault(prompt, (of, []))[1].append(text)
            given = yield [Score(of.prompt, tuple(texts), self.scorer) for of, texts in by_prompt.values()]
            known = {
                (prompt, text): score
                for (prompt, (_, texts)), scores in zip(by_prompt.items(), given, strict=True)
                for text, score in zip(texts, scores, strict=True)
            }
        else:  # or the model itself, which ends its check with a grade out of 10
            n, own = self.num_evaluations, template or self.score_prompt
            drawn = yield [search.request_judgement(of, own, "value", n, thought=text) for of, text in asked.values()]
            grades = [[found[-1] for one in replies if (found := _NUMBER.findall(one.text))] for replies in drawn]
            means = [fmean(min(float(x) / 10, 1.0) for x in of_text) if of_text else None for of_text in grades]
            known = dict(zip(asked, means, strict=True))
        return [
            replace(thought, score=known[key]) if thought.score is None else thought
            for key, thought in zip(keys, inputs, strict=True)
        ]

    def _validate(self, problem: Problem, operation: _Operation, inputs: Thoughts) -> Waves[Thoughts]:
        thoughts = list((yield from self._score(problem, inputs)))  # a copy: others may read the inputs too
        for _ in range(operation.retries):
            bad = [i for i, thought in enumerate(thoughts) if sortable(thought.score) < operation.threshold]
            drawn = yield from self._improve(problem, None, 1, [thoughts[i] for i in bad])
            better = iter((yield from self._score(problem, search.flatten(drawn))))
            for i, of_thought in zip(bad, drawn, strict=True):
                # It takes the place of the thought that it was made from, even if it is worse: the next retry mends it.
                thoughts[i] = next(better) if of_thought else thoughts[i]
        return [thought for thought in thoughts if sortable(thought.score) >= operation.threshold] or thoughts


def _joined(inputs: Thoughts, separator: str | None) -> str:
    if separator is not None:
        return separator.join(thought.text for thought in inputs)
    return "\n\n".join(f"Solution {i}:\n{thought.text}" for i, thought in enumerate(inputs, 1))


# --- The graph of operations -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Operation:
    op: str
    name: str
    inputs: tuple[str, ...]
    k: int = 1
    prompt: str | None = None
    separator: str | None = None
    part: bool = False
    threshold: float = 0.5
    retries: int = 1
    indices: tuple[int, ...] = ()


_OWN_KEYS: dict[str, tuple[str, ...]] = {
    "generate": ("k", "prompt", "part"),
    "split": ("separator",),
    "score": ("prompt",),
    "keep_best": ("k",),
    "aggregate": ("k", "prompt", "part", "separator"),
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
    "separator": (lambda value: isinstance(value, str), "a text"),
    "part": (lambda value: isinstance(value, bool), "true or false"),
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
    if not inputs and row["op"] not in ("generate", "split"):
        expected = "'generate' or 'split', since it reads no other operation"
        search.refuse_field("graph_of_thoughts", f"{where}.op", row["op"], expected)
    return _Operation(**{**row, "name": name, "inputs": inputs, "indices": tuple(row.get("indices", ()))})
