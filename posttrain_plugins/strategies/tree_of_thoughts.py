"""`tree_of_thoughts`: search over partial solutions that the model proposes and judges itself.

Paper: Yao et al., 2023 (https://huggingface.co/papers/2305.10601), section 3: thoughts are sampled or proposed, states
are valued one by one or voted on, and the tree is walked breadth first (algorithm 1) or depth first (algorithm 2).

1. Sampled thoughts are the model's own continuations up to a separator; a thought at which the model stops finishes the
   state. Finished states stay in the breadth and compete. A proposed thought finishes it by a marked answer
   (`<answer>`, `\\boxed`, "answer is").
2. Equal thoughts of one wave are one state with its true value.
3. A verdict that cannot be read abstains; a state's value is the mean of the others. Votes are shares.
4. A scorer, where there is one, takes the place of values and votes.
5. Depth-first search ends at the first solution, unless told to look for more.
6. Where the best state has no answer, the model completes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from posttrain_plugins.search import (
    VALUE_PROMPT,
    Aggregate,
    Growth,
    Path,
    asking,
    best_first,
    check_fields,
    distinct,
    fill,
    flat,
    judged,
    rank,
    self_judged,
    settle,
    until_spent,
)
from posttrain_plugins.text.answers import extract
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Completion, Generate, Problem, Request, Result, RewardRef

__all__ = ["TreeOfThoughts"]

PROPOSE_PROMPT = """Question: $question

This is how far a solution has come:

$path

Propose up to $k different next steps, one per line and nothing else. A step that completes the solution ends with
"the answer is" and the answer."""

VOTE_PROMPT = """Question: $question

These are different ways to begin a solution:

$choices

Which is the most promising? Compare them. Then end with the line "The best choice is N", where N is its number."""

_BULLET = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+")
_CHOICE = re.compile(r"best choice is\D{0,9}(\d+)", re.IGNORECASE)


@dataclass
class TreeOfThoughts:
    """Expand the states that promise most, judge what comes out, and answer with the best.

    Args:
        search: `bfs` keeps the best states of each depth, `dfs` follows the best thought and backtracks.
        generate: `sample` draws thoughts independently, `propose` asks for several in one prompt.
        evaluate: `value` asks for a verdict on each state, `vote` for the best of those that compete.
        scorer: a reward that judges states in the model's stead.
        branches: thoughts of a state; the paper's k.
        breadth: states kept at each depth of `bfs`; the paper's b.
        max_steps: thoughts of a solution at most; the paper's T.
        num_evaluations: verdicts on each state, or votes of each wave.
        threshold: `dfs` prunes states whose value is not above it.
        max_expansions: states that `dfs` expands at most.
        num_solutions: solutions after which `dfs` stops.
        separator: ends a thought.
        aggregate: how a scorer's step scores become one; `whole` scores the state as it stands.
        propose_prompt: with `$question`, `$path` and `$k`.
        value_prompt: with `$question`, `$path` and `$verdicts`.
        vote_prompt: with `$question` and `$choices`.
        verdicts: word -> value, as in the paper's Game of 24.

    Raises:
        InputError: for a field that cannot be used.

    Example:
        >>> wave = next(TreeOfThoughts(branches=3, separator=";")(Problem("3|7>2")))
        >>> wave[0].n, wave[0].params.stop
        (3, (';',))
    """

    search: Literal["bfs", "dfs"] = "bfs"
    generate: Literal["sample", "propose"] = "sample"
    evaluate: Literal["value", "vote"] = "value"
    scorer: RewardRef | None = None
    branches: int = 5
    breadth: int = 5
    max_steps: int = 10
    num_evaluations: int = 3
    threshold: float = 0.001
    max_expansions: int = 100
    num_solutions: int = 1
    separator: str = SEPARATOR
    aggregate: Aggregate = "last"
    propose_prompt: str = PROPOSE_PROMPT
    value_prompt: str = VALUE_PROMPT
    vote_prompt: str = VOTE_PROMPT
    verdicts: dict[str, float] = field(default_factory=lambda: {"sure": 20.0, "likely": 1.0, "impossible": 0.001})

    def __post_init__(self) -> None:
        counts = ("branches", "breadth", "max_steps", "num_evaluations", "max_expansions", "num_solutions")
        check_fields("tree_of_thoughts", self, *counts)

    def __call__(self, problem: Problem) -> Generator[list[Request], Any, Result]:
        growth = Growth(problem, self.max_steps, self.separator)
        found: list[Path] = []
        with until_spent(found):
            found = yield from (self._bfs if self.search == "bfs" else self._dfs)(growth, found)
        return settle(found, "best")

    def _bfs(self, growth: Growth, found: list[Path]) -> Generator[list[Request], Any, list[Path]]:
        """The last states, the best first and finished; `found` is filled with all on the way."""
        states = [Path()]
        while live := [state for state in states if self._may_grow(state)]:
            thoughts = yield from self._thoughts(growth, live)
            if not thoughts:
                break
            settled = [state for state in states if not self._may_grow(state)]
            among = yield from self._judged(growth.problem, [*settled, *thoughts])
            found += among
            states = best_first(among)[: self.breadth]
        return [*(yield from self._finished(growth, states[0])), *states[1:]]

    def _dfs(self, growth: Growth, found: list[Path]) -> Generator[list[Request], Any, list[Path]]:
        """The solutions; where all branches were pruned, the best state, finished."""
        solutions: list[Path] = []
        stack, expanded = [Path()], 0
        while stack and len(solutions) < self.num_solutions and expanded < self.max_expansions:
            state = stack.pop()
            if not self._may_grow(state):
                solutions += yield from self._finished(growth, state)
                continue
            expanded += 1
            thoughts = yield from self._thoughts(growth, [state])
            judgements = yield from self._judged(growth.problem, thoughts)
            found += judgements
            stack += [child for child in reversed(best_first(judgements)) if rank(child) > self.threshold]
        if solutions:
            return solutions
        return (yield from self._finished(growth, best_first([*found, Path()])[0]))

    def _may_grow(self, state: Path) -> bool:
        return state.ended is None and state.steps < self.max_steps

    def _finished(self, growth: Growth, state: Path) -> Generator[list[Request], Any, list[Path]]:
        """The state with an answer; as it is, where the sample fails."""
        if state.ended:
            return [state]
        [ends] = yield from growth.grow([state], to_end=True)
        return [replace(end, score=state.score, step_scores=state.step_scores) for end in ends] or [state]

    # Generate

    def _thoughts(self, growth: Growth, states: Sequence[Path]) -> Generator[list[Request], Any, list[Path]]:
        """The different next states, in one wave."""
        if self.generate == "sample":
            return distinct(flat((yield from growth.grow(states, self.branches))))
        problem = growth.problem
        prompts = [fill(problem.prompt, self.propose_prompt, path=s.text, k=str(self.branches)) for s in states]
        params = replace(problem.params, stop=())
        drawn = yield [Generate(prompt, params=params, purpose="thought") for prompt in prompts]
        pairs = zip(states, drawn, strict=True)
        return distinct(self._extended(growth, s, c, line) for s, [c] in pairs for line in self._lines(c))

    def _lines(self, completion: Completion) -> list[str]:
        lines = [_BULLET.sub("", line, count=1).strip() for line in completion.text.splitlines()]
        return list(dict.fromkeys(line for line in lines if line))[: self.branches]

    def _extended(self, growth: Growth, state: Path, completion: Completion, line: str) -> Path:
        share = len(line) / len(completion.text)  # of the tokens that the proposals took
        tokens = state.tokens + max(round(share * completion.usage.completion_tokens), 1)
        is_answer = extract(line + "\n?") is not None  # a last line without a word is no answer: only a marked one is
        is_cut = tokens >= growth.problem.params.max_tokens
        text = state.text + line + ("" if is_answer else self.separator)
        ended: Literal["stop", "length"] | None = "stop" if is_answer else "length" if is_cut else None
        return Path(text, state.steps + 1, tokens, ended, logprob=None)

    # Evaluate

    def _judged(self, problem: Problem, states: Sequence[Path]) -> Generator[list[Request], Any, list[Path]]:
        """The states with their values, in one wave; only a vote judges again what is known."""
        if self.scorer is None and self.evaluate == "vote":
            return (yield from self._voted(problem, states))
        known = [state for state in states if state.score is not None]
        fresh = [state for state in states if state.score is None]
        if self.scorer is not None:
            values = yield from judged(problem, fresh, self.scorer, self.aggregate, self.separator)
        else:
            values = yield from self_judged(problem, fresh, self.value_prompt, self.verdicts, self.num_evaluations)
        return [*known, *values]

    def _voted(self, problem: Problem, states: Sequence[Path]) -> Generator[list[Request], Any, list[Path]]:
        if not states:
            return []
        choices = "\n\n".join(f"Choice {i}:\n{state.text}" for i, state in enumerate(states, 1))
        [ballots] = yield [asking(problem, self.vote_prompt, "vote", self.num_evaluations, choices=choices)]
        votes = Counter(int(found[-1]) for ballot in ballots if (found := _CHOICE.findall(ballot.text)))
        return [replace(state, score=votes[i] / max(len(ballots), 1)) for i, state in enumerate(states, 1)]
