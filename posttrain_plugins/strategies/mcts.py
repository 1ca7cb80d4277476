"""`mcts`: Monte Carlo tree search over steps, with several leaves in every wave.

Papers: Kocsis and Szepesvari, 2006 (UCT); Silver et al., 2017 (https://www.nature.com/articles/nature24270), PUCT and
virtual loss; for language models Hao et al., 2023 (https://huggingface.co/papers/2305.14992, RAP), Feng et al., 2023
(https://huggingface.co/papers/2309.17179, TS-LLM), Qi et al., 2024 (https://huggingface.co/papers/2408.06195, rStar).

A simulation goes from the root to a leaf, always to the child with the largest

    UCT:   Q + c * sqrt(ln N_parent / N_child)
    PUCT:  Q + c * P * sqrt(N_parent) / (1 + N_child)

where Q is the mean (or largest) value seen below the child and N counts the values seen there. The leaf is expanded by
`branches` sampled steps, each of them is valued, and each value goes up to the root.

1. All children of a leaf are valued at once, not one per simulation: steps cost tokens, values cost little. So every
   child has been visited when it is first compared.
2. `leaves_per_wave` leaves are chosen before any is expanded. Each one on its way counts as a visit with the lowest
   value (virtual loss), and none is chosen twice. So one tree fills a batch; the larger its waves, the less it knows
   when it chooses.
3. A finished leaf that is chosen has its value counted again at once, and costs nothing.
4. Q is used as it is while all values lie in [0, 1]; values outside widen these bounds, and Q is scaled by them, much
   as in MuZero (https://huggingface.co/papers/1911.08265, equation 5). What cannot be judged has the lowest value.
5. Identical steps of one parent are merged. Where the search ends with nothing finished, its best leaf is completed.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from posttrain_plugins.search import (
    VALUE_PROMPT,
    Aggregate,
    Growth,
    Path,
    check_fields,
    distinct,
    flat,
    judged,
    rank,
    self_judged,
    settle,
    until_spent,
)
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Request, Result, RewardRef

__all__ = ["MCTS"]


@dataclass
class MCTS:
    """A tree of steps, grown where it promises most.

    Args:
        scorer: a reward that values begun or finished paths, best in [0, 1]; None lets the model judge its own paths.
        num_simulations: leaves chosen in all.
        branches: steps drawn of a leaf.
        exploration_constant: the c of the rule, in units of the value.
        rule: `uct` or `puct`.
        prior: PUCT's P, among the children of one parent: `uniform`, or the softmax of their steps' log-probabilities.
        rollout: value a step by a sampled completion of it, not by itself.
        backup: what Q is, of the values seen below: their `mean`, or the `max`.
        leaves_per_wave: leaves chosen and expanded together.
        max_steps: steps of a path at most; the last one runs to the end.
        separator: ends a step.
        aggregate: how step scores become one; `whole` scores the text as it stands.
        select: `value` takes the finished path of the largest value, `visits` goes down by visits, the votes are among
            all finished paths.
        value_prompt: asks the model for a verdict on `$path`, one of `$verdicts`.
        verdicts: word -> value.
        num_evaluations: verdicts on each path.

    Raises:
        InputError: for a field that cannot be used.

    Example:
        >>> wave = next(MCTS(scorer="prm", branches=3, separator=";")(Problem("3|7>2")))
        >>> wave[0].n, wave[0].params.stop
        (3, (';',))
    """

    scorer: RewardRef | None = None
    num_simulations: int = 16
    branches: int = 4
    exploration_constant: float = 1.0
    rule: Literal["uct", "puct"] = "uct"
    prior: Literal["uniform", "logprob"] = "uniform"
    rollout: bool = False
    backup: Literal["mean", "max"] = "mean"
    leaves_per_wave: int = 4
    max_steps: int = 40
    separator: str = SEPARATOR
    aggregate: Aggregate = "last"
    select: Literal["value", "visits", "weighted_vote", "majority"] = "weighted_vote"
    value_prompt: str = VALUE_PROMPT
    verdicts: dict[str, float] = field(default_factory=lambda: {"sure": 1.0, "likely": 0.5, "impossible": 0.0})
    num_evaluations: int = 1

    def __post_init__(self) -> None:
        counts = ("num_simulations", "branches", "leaves_per_wave", "max_steps", "num_evaluations")
        check_fields("mcts", self, *counts)

    def __call__(self, problem: Problem) -> Generator[list[Request], Any, Result]:
        found: list[Path] = []
        tree = _Tree(self)
        growth = Growth(problem, self.max_steps, self.separator, logprobs=self.prior == "logprob")
        with until_spent(found):
            yield from self._search(growth, tree, found)
            yield from self._complete(growth, tree, found)
        if self.select == "visits":
            return _standing_on(tree.most_visited().path, settle(found, "best"))
        return settle(found, "best" if self.select == "value" else self.select)

    def _search(self, growth: Growth, tree: _Tree, found: list[Path]) -> Generator[list[Request], Any, None]:
        left = self.num_simulations
        while wave := tree.chosen(min(self.leaves_per_wave, left)):
            left -= len(wave)
            live = [leaf for leaf in wave if leaf.path.ended is None]
            offspring = yield from self._drawn(growth, live)
            valued = iter((yield from self._valued(growth, flat(offspring), found)))
            for leaf, children in zip(live, offspring, strict=True):
                tree.expand(leaf, [next(valued) for _ in children])

    def _drawn(self, growth: Growth, live: Sequence[_Node]) -> Generator[list[Request], Any, list[list[Path]]]:
        drawn = yield from growth.grow([leaf.path for leaf in live], self.branches)
        return [distinct(children) for children in drawn]

    def _valued(
        self, growth: Growth, children: Sequence[Path], found: list[Path]
    ) -> Generator[list[Request], Any, list[Path]]:
        """The children with the values of themselves, or of rollouts from them."""
        ends = list(children)
        if self.rollout:
            live = [i for i, child in enumerate(children) if child.ended is None]
            runs = yield from growth.grow([children[i] for i in live], 1, to_end=True)
            for i, run in zip(live, runs, strict=True):
                ends[i : i + 1] = run or ends[i : i + 1]
        ends = yield from self._judged(growth.problem, ends)
        found += ends
        return [replace(child, score=end.score) for child, end in zip(children, ends, strict=True)]

    def _judged(self, problem: Problem, paths: Sequence[Path]) -> Generator[list[Request], Any, list[Path]]:
        if self.scorer is not None:
            scored = yield from judged(problem, paths, self.scorer, self.aggregate, self.separator)
        else:
            scored = yield from self_judged(problem, paths, self.value_prompt, self.verdicts, self.num_evaluations)
        return list(scored)

    def _complete(self, growth: Growth, tree: _Tree, found: list[Path]) -> Generator[list[Request], Any, None]:
        """Bring the path that the answer would stand on to an end, if it has none."""
        leaf = tree.most_visited()
        if leaf.path.ended or (self.select != "visits" and any(path.ended for path in found)):
            return
        [ends] = yield from growth.grow([leaf.path], 1, to_end=True)
        for end in ends:
            leaf.path = replace(end, score=leaf.path.score)
            found.append(leaf.path)


def _standing_on(path: Path, result: Result) -> Result:
    chosen = settle([path], "best")
    return replace(result, answer=chosen.answer, text=chosen.text) if path.ended else result


# --- The tree --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Node:
    """A state: `visits`, `total` and `best` of the values seen at it and below; `reserved` simulations on their way."""

    path: Path
    parent: _Node | None = None
    prior: float = 1.0
    children: list[_Node] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0
    best: float = -math.inf
    reserved: int = 0

    def line(self) -> Iterator[_Node]:
        """The node and its ancestors."""
        node: _Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def is_free(self) -> bool:
        """Whether a simulation may end at it or below."""
        if self.children:
            return any(child.is_free() for child in self.children)
        return self.reserved == 0


class _Tree:
    """The tree of one problem, with the rule by which it is walked."""

    def __init__(self, rule: MCTS) -> None:
        self.rule = rule
        self.root = _Node(Path())
        self.low = 0.0
        self.high = 1.0

    def chosen(self, count: int) -> list[_Node]:
        """So many leaves, chosen one after the other: the live ones are all different, and reserved until expanded."""
        leaves: list[_Node] = []
        while len(leaves) < count and self.root.is_free():
            leaf = self._descend()
            leaves.append(leaf)
            if leaf.path.ended:
                self._back_up(leaf)
            else:
                _reserve(leaf, 1)
        return leaves

    def _descend(self) -> _Node:
        node = self.root
        while node.children:
            node = max((child for child in node.children if child.is_free()), key=self.urgency)
        return node

    def urgency(self, child: _Node) -> float:
        """What the rule maximises; reserved visits count as visits of the lowest value."""
        assert child.parent is not None
        above = child.parent.visits + child.parent.reserved
        visits = child.visits + child.reserved
        c = self.rule.exploration_constant
        quality = self._quality(child) * child.visits / max(visits, 1)
        if self.rule.rule == "puct":
            return quality + c * child.prior * math.sqrt(above) / (1 + visits)
        return quality + c * math.sqrt(math.log(max(above, 1)) / max(visits, 1))

    def _quality(self, node: _Node) -> float:
        """Q in [0, 1]."""
        if not node.visits:
            return 0.0
        value = node.best if self.rule.backup == "max" else node.total / node.visits
        return (value - self.low) / (self.high - self.low)

    def expand(self, leaf: _Node, children: Sequence[Path]) -> None:
        """Hang the valued children below the leaf; one whose samples all failed stays reserved for good."""
        if not children:
            return
        _reserve(leaf, -1)
        priors = self._priors(leaf.path, children)
        leaf.children = [_Node(child, leaf, prior) for child, prior in zip(children, priors, strict=True)]
        self._widen(children)
        for node in leaf.children:
            self._back_up(node)

    def _back_up(self, leaf: _Node) -> None:
        value = max(rank(leaf.path), self.low)
        for node in leaf.line():
            node.visits += 1
            node.total += value
            node.best = max(node.best, value)

    def most_visited(self) -> _Node:
        """The leaf reached by visits; of equal ones by value."""
        node = self.root
        while node.children:
            node = max(node.children, key=lambda child: (child.visits, self._quality(child)))
        return node

    def _widen(self, children: Sequence[Path]) -> None:
        """[0, 1] holds until a value lies outside; from then on the values seen are the bounds."""
        values = [rank(child) for child in children if rank(child) > -math.inf]
        self.low, self.high = min([self.low, *values]), max([self.high, *values])

    def _priors(self, parent: Path, children: Sequence[Path]) -> list[float]:
        known = [child.logprob for child in children if child.logprob is not None]
        if self.rule.prior == "uniform" or parent.logprob is None or len(known) < len(children):
            return [1 / len(children)] * len(children)
        odds = [math.exp(logprob - max(known)) for logprob in known]
        return [odd / sum(odds) for odd in odds]


def _reserve(leaf: _Node, count: int) -> None:
    for node in leaf.line():
        node.reserved += count
