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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from posttrain_plugins import search
from posttrain_plugins.search import VALUE_PROMPT, Expander, PartialCompletion, PathAggregate, Waves
from posttrain_plugins.text.answers import sortable
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Problem, Result, RewardRef

__all__ = ["MCTS"]


@dataclass
class MCTS:
    """Grow a tree of steps where it promises most, and answer from its finished paths.

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
    aggregate: PathAggregate = "last"
    select: Literal["value", "visits", "weighted_vote", "majority"] = "weighted_vote"
    value_prompt: str = VALUE_PROMPT
    verdicts: dict[str, float] = field(default_factory=lambda: {"sure": 1.0, "likely": 0.5, "impossible": 0.0})
    num_evaluations: int = 1

    def __post_init__(self) -> None:
        counts = ("num_simulations", "branches", "leaves_per_wave", "max_steps", "num_evaluations")
        search.check_fields("mcts", self, *counts)

    def __call__(self, problem: Problem) -> Waves[Result]:
        found: list[PartialCompletion] = []
        tree = _SearchTree(self)
        expander = Expander(problem, self.max_steps, self.separator, logprobs=self.prior == "logprob")
        with search.stop_when_spent(found):
            yield from self._search(expander, tree, found)
            yield from self._complete(expander, tree, found)
        if self.select in ("weighted_vote", "majority"):
            return search.select_answer(found, self.select)
        result = search.select_answer(found, "best")
        reached = tree.most_visited().path
        if self.select == "visits" and reached.ended:
            chosen = search.select_answer([reached], "best")
            return replace(result, answer=chosen.answer, text=chosen.text)
        return result

    def _search(self, expander: Expander, tree: _SearchTree, found: list[PartialCompletion]) -> Waves[None]:
        left = self.num_simulations
        while leaves := tree.choose_leaves(min(self.leaves_per_wave, left)):  # selection
            left -= len(leaves)
            live = [leaf for leaf in leaves if leaf.path.ended is None]
            # Expansion: all leaves of the wave in one batch. Equal steps of one parent would split its visits.
            drawn = yield from expander.expand([leaf.path for leaf in live], self.branches)
            children = [search.deduplicate(of_leaf) for of_leaf in drawn]
            valued = iter((yield from self._valued(expander, search.flatten(children), found)))  # simulation
            for leaf, of_leaf in zip(live, children, strict=True):
                tree.expand(leaf, [next(valued) for _ in of_leaf])  # backpropagation

    def _valued(
        self, expander: Expander, children: Sequence[PartialCompletion], found: list[PartialCompletion]
    ) -> Waves[list[PartialCompletion]]:
        """Return the children with the values of themselves, or of rollouts from them."""
        ends = list(children)
        if self.rollout:
            live = [i for i, child in enumerate(children) if child.ended is None]
            rollouts = yield from expander.expand([children[i] for i in live], 1, to_end=True)
            for i, drawn in zip(live, rollouts, strict=True):
                ends[i : i + 1] = drawn or ends[i : i + 1]  # a rollout that failed leaves the child as its own end
        problem = expander.problem
        if self.scorer is not None:
            ends = yield from search.judge_paths(problem, ends, self.scorer, self.aggregate, self.separator)
        else:
            ends = yield from search.self_judge_paths(
                problem, ends, self.value_prompt, self.verdicts, self.num_evaluations
            )
        found += ends  # a rollout is a finished path like any other, and may be the answer
        # Only its value comes back: the tree goes on from the child, not from where the rollout went.
        return [replace(child, score=end.score) for child, end in zip(children, ends, strict=True)]

    def _complete(self, expander: Expander, tree: _SearchTree, found: list[PartialCompletion]) -> Waves[None]:
        """Bring the path that the answer would be taken from to an end, if it has none."""
        leaf = tree.most_visited()
        if leaf.path.ended or (self.select != "visits" and any(path.ended for path in found)):
            return
        [ends] = yield from expander.expand([leaf.path], 1, to_end=True)
        for end in ends:
            leaf.path = replace(end, score=leaf.path.score)
            found.append(leaf.path)


# --- The tree --------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _TreeNode:
    """A state: `visits`, `total` and `best` of the values seen at it and below; `reserved` simulations on their way."""

    path: PartialCompletion
    parent: _TreeNode | None = None
    prior: float = 1.0
    children: list[_TreeNode] = field(default_factory=list)
    visits: int = 0
    total: float = 0.0
    best: float = -math.inf
    reserved: int = 0

    def lineage(self) -> Iterator[_TreeNode]:
        """Yield the node and its ancestors."""
        node: _TreeNode | None = self
        while node is not None:
            yield node
            node = node.parent

    def is_free(self) -> bool:
        """Return whether a simulation may end at it or below."""
        return any(child.is_free() for child in self.children) if self.children else self.reserved == 0


class _SearchTree:
    """The tree of one problem, with the rule by which it is walked."""

    def __init__(self, rule: MCTS) -> None:
        self.rule = rule
        self.root = _TreeNode(PartialCompletion())
        # The bounds of Q, as in MuZero; but they begin at [0, 1], which scores of a PRM never leave, so that c means
        # the same in every tree as long as no value lies outside.
        self.low, self.high = 0.0, 1.0

    def choose_leaves(self, count: int) -> list[_TreeNode]:
        """Choose `count` leaves one by one; those to be expanded are all different, and reserved until then."""
        leaves: list[_TreeNode] = []
        while len(leaves) < count and self.root.is_free():
            node = self.root
            while node.children:
                node = max((child for child in node.children if child.is_free()), key=self.urgency)
            leaves.append(node)
            if node.path.ended:  # nothing to draw, so its value counts at once
                self._back_up(node)
                continue
            # The virtual loss has to be there before the next leaf of the wave is chosen: without it, all of the wave
            # would go down the same branch.
            for ancestor in node.lineage():
                ancestor.reserved += 1
        return leaves

    def urgency(self, child: _TreeNode) -> float:
        """Return what the rule maximises; reserved visits count as visits of the lowest value."""
        assert child.parent is not None
        above = child.parent.visits + child.parent.reserved
        visits = child.visits + child.reserved
        c = self.rule.exploration_constant
        quality = self._quality(child) * child.visits / visits  # a reserved visit adds 0 to the sum of values
        if self.rule.rule == "puct":
            return quality + c * child.prior * math.sqrt(above) / (1 + visits)
        # Every child has been visited when it is first compared (deviation 1): neither count is 0, and UCT's infinite
        # urgency of a child without visits never comes up.
        return quality + c * math.sqrt(math.log(above) / visits)

    def _quality(self, node: _TreeNode) -> float:
        """Return Q in [0, 1]."""
        if not node.visits:
            return 0.0
        value = node.best if self.rule.backup == "max" else node.total / node.visits
        return (value - self.low) / (self.high - self.low)

    def expand(self, leaf: _TreeNode, children: Sequence[PartialCompletion]) -> None:
        """Hang the valued children below the leaf; one whose samples all failed stays reserved for good."""
        if not children:
            return
        for node in leaf.lineage():
            node.reserved -= 1
        leaf.children = [
            _TreeNode(child, leaf, prior)
            for child, prior in zip(children, self._priors(leaf.path, children), strict=True)
        ]
        # The bounds are widened before the values go up: a value that cannot be told counts as the lowest one.
        known = [score for child in children if (score := sortable(child.score)) > -math.inf]
        self.low, self.high = min([self.low, *known]), max([self.high, *known])
        for node in leaf.children:
            self._back_up(node)

    def _back_up(self, leaf: _TreeNode) -> None:
        value = max(sortable(leaf.path.score), self.low)
        for node in leaf.lineage():
            node.visits += 1
            node.total += value
            node.best = max(node.best, value)

    def most_visited(self) -> _TreeNode:
        """Return the leaf reached by visits; of equal ones by value."""
        node = self.root
        while node.children:
            node = max(node.children, key=lambda child: (child.visits, self._quality(child)))
        return node

    def _priors(self, parent: PartialCompletion, children: Sequence[PartialCompletion]) -> list[float]:
        known = [child.logprob for child in children if child.logprob is not None]
        if self.rule.prior == "uniform" or parent.logprob is None or len(known) < len(children):
            return [1 / len(children)] * len(children)
        # The parent's log-probability is part of each child's, and falls out of the softmax.
        odds = [math.exp(logprob - max(known)) for logprob in known]
        return [odd / sum(odds) for odd in odds]
