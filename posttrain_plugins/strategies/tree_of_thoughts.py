"""`tree_of_thoughts`: search over partial solutions that the model proposes and judges itself.

Paper: Yao et al., 2023 (https://huggingface.co/papers/2305.10601), section 3: thoughts are sampled or proposed, states
are valued one by one or voted on, and the tree is walked breadth first (algorithm 1) or depth first (algorithm 2).

1. Sampled thoughts are the model's own continuations up to a separator; a thought at which the model stops finishes the
   state. Finished states stay in the breadth and compete. A proposed thought finishes it by a marked answer
   (`<answer>`, `\\boxed`, "answer is").
2. Equal thoughts of one wave are one state with its true value.
3. A verdict that cannot be read abstains; a state's value is the mean of the others. Votes are shares.
4. A scorer, where there is one, takes the place of values and votes.
5. Depth-first search ends at the first solution, unless `num_solutions` asks for more.
6. Where the best state has no answer, the model completes it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from posttrain_plugins import search
from posttrain_plugins.search import VALUE_PROMPT, Expander, PartialCompletion, PathAggregate, Waves
from posttrain_plugins.text import replace_question
from posttrain_plugins.text.answers import extract, sortable
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Completion, Generate, Problem, Result, RewardRef

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
    aggregate: PathAggregate = "last"
    propose_prompt: str = PROPOSE_PROMPT
    value_prompt: str = VALUE_PROMPT
    vote_prompt: str = VOTE_PROMPT
    verdicts: dict[str, float] = field(default_factory=lambda: {"sure": 20.0, "likely": 1.0, "impossible": 0.001})

    def __post_init__(self) -> None:
        counts = ("branches", "breadth", "max_steps", "num_evaluations", "max_expansions", "num_solutions")
        search.check_fields("tree_of_thoughts", self, *counts)

    def __call__(self, problem: Problem) -> Waves[Result]:
        expander = Expander(problem, self.max_steps, self.separator)
        found: list[PartialCompletion] = []
        with search.stop_when_spent(found):
            found = yield from (self._bfs if self.search == "bfs" else self._dfs)(expander, found)
        return search.select_answer(found, "best")

    def _bfs(self, expander: Expander, found: list[PartialCompletion]) -> Waves[list[PartialCompletion]]:
        """Return the last states, the best first and finished; `found` is filled with all on the way."""
        # Algorithm 1: S_0 = {x}, the empty path. All states of a depth are expanded in one wave, and judged in one.
        states = [PartialCompletion()]
        while live := [state for state in states if self._may_grow(state)]:
            thoughts = yield from self._thoughts(expander, live)  # S'_t, the states with each of their k thoughts
            if not thoughts:
                break
            finished = [state for state in states if not self._may_grow(state)]
            judged = yield from self._judged(expander.problem, [*finished, *thoughts])  # V_t = V(p, S'_t)
            found += judged
            # S_t, the b states of the largest sum of values, which are the b best ones. A finished state stays among
            # them only as long as fewer than b live ones are worth more (deviation 1); the paper's all have T thoughts.
            states = search.sort_by_score(judged)[: self.breadth]
        # The paper returns G(p, argmax of V_T, 1): one more thought from the best state, which holds the answer.
        return [*(yield from self._finished(expander, states[0])), *states[1:]]

    def _dfs(self, expander: Expander, found: list[PartialCompletion]) -> Waves[list[PartialCompletion]]:
        """Return the solutions; where all branches were pruned, the best state, finished."""
        solutions: list[PartialCompletion] = []
        # Algorithm 2 with a stack in place of its recursion, so that a generator need not go T levels deep.
        stack, num_expanded = [PartialCompletion()], 0
        while stack and len(solutions) < self.num_solutions and num_expanded < self.max_expansions:
            state = stack.pop()
            if not self._may_grow(state):  # "if t > T then record output"
                solutions += yield from self._finished(expander, state)
                continue
            num_expanded += 1
            thoughts = yield from self._thoughts(expander, [state])
            judged = yield from self._judged(expander.problem, thoughts)
            found += judged
            # "for s' in G(p, s, k), sorted: if V(p, {s'}) > v_th then DFS(s', t + 1)". The best one has to be popped
            # first, so it is pushed last; below it on the stack lies where the search backtracks to.
            stack += [path for path in reversed(search.sort_by_score(judged)) if sortable(path.score) > self.threshold]
        if solutions:
            return solutions
        return (yield from self._finished(expander, search.sort_by_score([*found, PartialCompletion()])[0]))

    def _may_grow(self, state: PartialCompletion) -> bool:
        return state.ended is None and state.num_steps < self.max_steps

    def _finished(self, expander: Expander, state: PartialCompletion) -> Waves[list[PartialCompletion]]:
        """Return the state with an answer; as it is, where the sample fails."""
        if state.ended:
            return [state]
        [ends] = yield from expander.expand([state], to_end=True)
        # The completion keeps the state's score: it was chosen for that, and is not judged again.
        return [replace(end, score=state.score, step_scores=state.step_scores) for end in ends] or [state]

    # Generate

    def _thoughts(self, expander: Expander, states: Sequence[PartialCompletion]) -> Waves[list[PartialCompletion]]:
        """Return the different next states, drawn in one wave."""
        if self.generate == "sample":  # section 3, G (a): i.i.d. thoughts
            return search.deduplicate(search.flatten((yield from expander.expand(states, self.branches))))
        # G (b): several thoughts in one prompt, which avoids duplicates where thoughts are short
        problem, k = expander.problem, str(self.branches)
        prompts = [replace_question(problem.prompt, self.propose_prompt, path=state.text, k=k) for state in states]
        params = replace(problem.params, stop=())
        drawn = yield [Generate(prompt, params=params, purpose="thought") for prompt in prompts]
        children: list[PartialCompletion] = []
        for state, [completion] in zip(states, drawn, strict=True):
            lines = [_BULLET.sub("", line, count=1).strip() for line in completion.text.splitlines()]
            proposals = list(dict.fromkeys(line for line in lines if line))[: self.branches]
            children += [self._extended(expander, state, completion, line) for line in proposals]
        return search.deduplicate(children)

    def _extended(
        self, expander: Expander, state: PartialCompletion, completion: Completion, line: str
    ) -> PartialCompletion:
        # A proposal is not a completion of its own: it is given its share of the tokens that the proposals took, so
        # that `max_tokens` holds for a path of proposals too.
        share = len(line) / len(completion.text)
        num_tokens = state.num_tokens + max(round(share * completion.usage.completion_tokens), 1)
        is_answer = extract(line, "marked") is not None  # a thought without a mark is no answer
        is_cut = num_tokens >= expander.problem.params.max_tokens
        ended: Literal["stop", "length"] | None = "stop" if is_answer else "length" if is_cut else None
        text = state.text + line + ("" if is_answer else self.separator)
        return PartialCompletion(text, state.num_steps + 1, num_tokens, ended, logprob=None)

    # Evaluate

    def _judged(self, problem: Problem, states: Sequence[PartialCompletion]) -> Waves[list[PartialCompletion]]:
        """Return the states with their values, in one wave; only a vote judges again what is known."""
        if self.scorer is None and self.evaluate == "vote":  # section 3, V (b): of all states that compete
            return (yield from self._voted(problem, states))
        # V (a) values each state by itself, so a finished one that competes again keeps its value.
        known = [state for state in states if state.score is not None]
        fresh = [state for state in states if state.score is None]
        if self.scorer is not None:
            values = yield from search.judge_paths(problem, fresh, self.scorer, self.aggregate, self.separator)
        else:
            values = yield from search.self_judge_paths(
                problem, fresh, self.value_prompt, self.verdicts, self.num_evaluations
            )
        return [*known, *values]

    def _voted(self, problem: Problem, states: Sequence[PartialCompletion]) -> Waves[list[PartialCompletion]]:
        if not states:
            return []
        choices = "\n\n".join(f"Choice {i}:\n{state.text}" for i, state in enumerate(states, 1))
        [ballots] = yield [
            search.request_judgement(problem, self.vote_prompt, "vote", self.num_evaluations, choices=choices)
        ]
        votes = Counter(int(found[-1]) for ballot in ballots if (found := _CHOICE.findall(ballot.text)))
        # shares, not counts, so that the threshold of `dfs` means the same whatever `num_evaluations` is
        return [replace(state, score=votes[i] / max(len(ballots), 1)) for i, state in enumerate(states, 1)]
