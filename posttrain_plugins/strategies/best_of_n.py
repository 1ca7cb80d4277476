"""`best_of_n`: sample several completions and keep the one that a scorer or judge likes best, or let the scores vote.

Papers: Stiennon et al., 2020 (https://huggingface.co/papers/2009.01325), best of N by a reward model; Cobbe et al.,
2021 (https://huggingface.co/papers/2110.14168), by a verifier, and with a vote among the highest ranked; Lightman et
al., 2023 (https://huggingface.co/papers/2305.20050), by a process reward model; Zheng et al., 2023
(https://huggingface.co/papers/2306.05685), a language model as the judge, of one or of two completions.

1. The weighted vote sums over all completions, not over the highest ranked ones; of the winning answer's completions
   the one with the best score stands for it.
2. Scores of which one is below zero are taken for logits and go through a sigmoid before they vote.
3. Pairs meet in a knockout: N-1 matches, all of a round at once; of a draw the completion drawn earlier goes on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar, Literal

from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.text import ask_about
from posttrain_plugins.text.answers import candidates, choose, equivalent, majority, sortable, vote_weights
from posttrain_plugins.text.steps import Aggregate, aggregate, split_steps
from posttrain_plugins.types import (
    Candidate,
    Generate,
    ModelRef,
    Problem,
    RequestGenerator,
    Result,
    RewardRef,
    Score,
    ScoreSteps,
)

__all__ = ["BestOfN"]

# The last one of a text counts, since both prompts ask for an explanation first; a verdict has to end its text or stand
# in the brackets that were asked for, or else the "A" of a sentence would be one.
_RATING = re.compile(r"(?:rating|^)\W*(\d+(?:\.\d+)?)", re.IGNORECASE)
_VERDICT = re.compile(r"\b([AB])\b(?=\]\]|\W*$)")

RATING_PROMPT = """Question: $question

Response: $completion

Is this response correct, and is every step of it sound? Explain briefly, then rate it from 1 (wrong) to 10 (perfect).
End with "Rating: X"."""

PAIR_PROMPT = """Question: $question

Response A: $first

Response B: $second

Which response is better? Look at the correctness of the answer first, then at the steps. Their order means nothing.
Explain briefly, then end with [[A]] or [[B]]."""


@dataclass
class BestOfN:
    """Draw `n` completions and keep the best; one that the scorer cannot judge never wins over one that it can.

    Args:
        scorer: a reward: a rule, a reward model, with `step_separator` a process reward model.
        n: completions per problem, drawn at the problem's own temperature.
        weighted: answer with the class of equivalent answers whose scores have the largest sum.
        step_separator: what ends a step; given, the scorer is asked for the worth of every step.
        aggregate: what the scores of the steps come down to.
        judge: the role of a model that judges in the scorer's place; `policy` judges itself.
        judging: `pointwise` rates each completion, `pairwise` lets them meet two by two.
        ratings: per completion, of which the mean counts; several are drawn at the problem's own temperature.
        max_rating: a higher number is no rating.
        swap: ask about each pair in both orders, since judges favour the first; against each other they are a draw.
        rating_prompt: `$question` and `$completion` are filled in; the last `Rating: X` counts.
        pair_prompt: `$question`, `$first` and `$second` are filled in; the last `[[A]]` or `[[B]]` counts.

    Raises:
        InputError: not exactly one of scorer and judge is given, or options of one are given to the other.

    Example:
        >>> steps = BestOfN(scorer="rm", n=2)(Problem("2+2=?"))
        >>> next(steps).n
        2
        >>> steps.send([Completion("4"), Completion("5")])
        Score(prompt='2+2=?', completions=('4', '5'), scorer='rm')
    """

    example_params: ClassVar[dict[str, Any]] = {"scorer": "score"}

    scorer: RewardRef | None = None
    n: int = 8
    weighted: bool = False
    step_separator: str | None = None
    aggregate: Aggregate = "last"
    judge: ModelRef | None = None
    judging: Literal["pointwise", "pairwise"] = "pointwise"
    ratings: int = 1
    max_rating: float = 10.0
    swap: bool = True
    rating_prompt: str = RATING_PROMPT
    pair_prompt: str = PAIR_PROMPT

    def __post_init__(self) -> None:
        if (self.scorer is None) == (self.judge is None):
            found = "neither" if self.scorer is None else "both"
            raise InputError(f"best_of_n needs one of scorer and judge, found {found}", hint="name one of them")
        if self.step_separator is not None and (self.judge is not None or not self.step_separator):
            found = f"step_separator {self.step_separator!r} and judge {self.judge!r}"
            message = f"best_of_n cannot score steps with {found}, expected a scorer and a separator that is not empty"
            raise InputError(message, hint="name a process reward model as scorer")
        if self.judge is not None and self.judging == "pairwise" and self.weighted:
            raise InputError("best_of_n cannot weigh a vote by pairs, which give an order", hint="judging: pointwise")

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        among = candidates((yield Generate(problem.prompt, n=self.n, params=problem.params)))
        if not among:
            return choose(among, None)
        if self.judge is None:
            yield from self._score(problem, among)
        elif self.judging == "pointwise":
            yield from self._rate(problem, among)
        else:
            yield from self._knock_out(problem, among)
        best = max(among, key=lambda candidate: sortable(candidate.score))  # of equal ones the first drawn
        if self.weighted:
            # What could not be judged does not vote; of the winning class the member with the best score is the answer.
            answers = [None if candidate.score is None else candidate.answer for candidate in among]
            winner = majority(answers, vote_weights([candidate.score for candidate in among]))
            if winner is not None:
                wanted = str(answers[winner])
                agreeing = [
                    c for c, a in zip(among, answers, strict=True) if a is not None and equivalent(str(a), wanted)
                ]
                best = max(agreeing, key=lambda candidate: sortable(candidate.score))
        return choose(among, among.index(best))

    # A scorer

    def _score(self, problem: Problem, among: list[Candidate]) -> RequestGenerator[None]:
        assert self.scorer is not None
        if self.step_separator is None:
            scores = yield Score(problem.prompt, tuple(candidate.text for candidate in among), self.scorer)
            for candidate, score in zip(among, scores, strict=True):
                candidate.score = score
            return
        split = [(candidate, tuple(split_steps(candidate.text, self.step_separator))) for candidate in among]
        written = [(candidate, steps) for candidate, steps in split if steps]  # an empty completion has none to judge
        if not written:
            return
        step_scores = yield ScoreSteps(problem.prompt, tuple(steps for _, steps in written), self.scorer)
        for (candidate, _), scores in zip(written, step_scores, strict=True):
            candidate.step_scores = scores
            candidate.score = aggregate(scores, self.aggregate)

    # A judge

    def _rate(self, problem: Problem, among: list[Candidate]) -> RequestGenerator[None]:
        """Ask about every text once, all in one wave."""
        texts = list(dict.fromkeys(candidate.text for candidate in among))
        # One rating is read at temperature 0; several would be the same there, and their mean nothing more than one.
        temperature = problem.params.temperature if self.ratings > 1 else 0.0
        asked = [self._ask(problem, self.rating_prompt, self.ratings, temperature, completion=text) for text in texts]
        replies = yield [*asked]  # (texts, ratings)
        ratings: dict[str, float | None] = {}
        for text, drawn in zip(texts, replies, strict=True):
            numbers = [[float(number) for number in _RATING.findall(one.text.strip())] for one in drawn]
            known = [found[-1] for found in numbers if found and found[-1] <= self.max_rating]
            ratings[text] = fmean(known) if known else None
        for candidate in among:
            candidate.score = ratings[candidate.text]

    def _knock_out(self, problem: Problem, among: list[Candidate]) -> RequestGenerator[None]:
        """Let the completions meet in rounds; the score is the round that a completion reached."""
        # Equal texts are one competitor, the first drawn. The scores are written after each round, not at the end: so
        # the best one is known whenever the budget ends.
        first = {candidate.text: i for i, candidate in reversed(list(enumerate(among)))}
        alive = sorted(first.values())
        reached = 0
        while len(alive) > 1:
            try:
                alive = yield from self._play_round(problem, among, alive)
            except BudgetExhausted:
                if reached:
                    return
                raise
            reached += 1
            for i in alive:
                among[i].score = float(reached)

    def _play_round(self, problem: Problem, among: list[Candidate], alive: list[int]) -> RequestGenerator[list[int]]:
        """Return who goes on: the winner of each pair in its place, and an odd one at the end."""
        pairs = list(zip(alive[::2], alive[1::2], strict=False))
        orders = [order for a, b in pairs for order in ([(a, b), (b, a)] if self.swap else [(a, b)])]
        replies = yield [
            self._ask(problem, self.pair_prompt, 1, 0.0, first=among[a].text, second=among[b].text) for a, b in orders
        ]
        wins = dict.fromkeys(alive, 0)
        for order, drawn in zip(orders, replies, strict=True):
            verdict = _VERDICT.findall("".join(completion.text for completion in drawn).strip())
            if verdict:
                wins[order["AB".index(verdict[-1])]] += 1
        # A judge that names the first both times has shown its bias and no preference: a draw, which the earlier wins.
        return [b if wins[b] > wins[a] else a for a, b in pairs] + alive[2 * len(pairs) :]

    def _ask(self, problem: Problem, template: str, n: int, temperature: float, **texts: str) -> Generate:
        params = replace(problem.params, temperature=temperature, stop=())  # a stop string would cut the explanation
        prompt = ask_about(problem.prompt, template, **texts)
        return Generate(prompt, n=n, params=params, model=self.judge or "policy", purpose="judgement")
