"""`confidence_filtering`: leave out completions of which the model was unsure, and let the others vote.

Paper: DeepConf, Fu et al., 2025 (https://huggingface.co/papers/2508.15260), section 3: the confidence of a token, of a
group (a sliding window), of the lowest tenth of groups, of the lowest group and of the tail; offline the filter and the
weighted vote (algorithm 1), online the threshold from a warm-up (algorithm 2). The backend must give `top_logprobs`.

1. Online, an unsure trace is stopped at the end of a group, not at the very token: each group is one request, which
   goes on from a prefill.
2. Online, the vote is taken after each wave of `warmup` traces; the paper's runs until it is decided.
3. The warm-up's traces below the threshold have no vote either.
4. Completions without an answer are left out before the share to keep is counted.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from statistics import fmean
from typing import Literal, TypeAlias

from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.text import prefill
from posttrain_plugins.text.answers import choose, extract, majority, tally
from posttrain_plugins.types import Candidate, Completion, Generate, Problem, RequestGenerator, Result

__all__ = ["ConfidenceFiltering", "confidence", "group_confidences"]

ConfidenceMeasure: TypeAlias = Literal["mean", "bottom_tenth", "lowest_group", "tail"]


@dataclass
class ConfidenceFiltering:
    """Let the share of `n` completions in which the model was surest vote, weighted by its confidence.

    Args:
        n: completions per problem at most, drawn at the problem's own temperature.
        keep: the share that votes; the paper has 0.9, and 0.1 for the surest only.
        measure: a completion's confidence: `mean` of its tokens, `bottom_tenth` (mean) or `lowest_group` of its groups,
            or of its `tail`.
        group_size: tokens of a group, and of the tail; the paper's 2048. Shorter completions are one group.
        top_logprobs: tokens that a position's confidence is taken over; the paper's 20.
        warmup: online: so many traces are drawn whole; of those that follow, any with a group less sure than the
            least sure of the warm-up's kept ones is stopped there.
        tau: online: no more traces once an answer has this share of the vote; the paper's 0.95.

    Raises:
        InputError: for a share outside (0, 1], or a backend that gives no confidences.

    Example:
        >>> steps = ConfidenceFiltering(n=3, keep=0.4)(Problem("2+2=?"))
        >>> next(steps).params.top_logprobs
        20
        >>> drawn = [("5", [1.0]), ("5", [2.0]), ("4", [9.0])]
        >>> try:
        ...     steps.send([Completion(f"answer is {a}", confidences=c) for a, c in drawn])
        ... except StopIteration as stop:
        ...     print(stop.value.answer)
        4
    """

    n: int = 16
    keep: float = 0.9
    measure: ConfidenceMeasure = "bottom_tenth"
    group_size: int = 2048
    top_logprobs: int = 20
    warmup: int | None = None
    tau: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(f"confidence_filtering cannot keep a share of {self.keep}", hint="set keep in (0, 1]")
        if self.group_size < 1 or (self.warmup is not None and self.warmup < 1):
            found = f"group_size {self.group_size} and warmup {self.warmup}"
            raise InputError(f"confidence_filtering has {found}, expected 1 or more", hint="change them")

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        problem = replace(problem, params=replace(problem.params, top_logprobs=self.top_logprobs))
        first = self.n if self.warmup is None else min(self.warmup, self.n)
        drawn: list[Completion] = yield Generate(problem.prompt, n=first, params=problem.params)
        traces = [_ReasoningTrace().add(completion) for completion in drawn]
        # Algorithm 1, "filter traces": the top eta percent by the measure. Online it is by the lowest group, since that
        # is what later traces are stopped by: a threshold is only comparable with its own measure.
        measure = self.measure if self.warmup is None else "lowest_group"
        voters = [trace for trace in traces if trace.answer is not None]
        voters.sort(key=lambda trace: -confidence(trace.confidences, measure, self.group_size))
        for trace in voters[: math.ceil(self.keep * len(voters))]:
            trace.is_kept = True
        if self.warmup is not None:
            with suppress(BudgetExhausted):  # then what has been drawn votes
                yield from self._draw_online(problem, traces, self.warmup)
        # Algorithm 1, "V(a) += C_t" for the answer of each kept trace; all traces are candidates, some without a vote.
        drawn_well = [trace for trace in traces if trace.finish_reason != "error"]
        weights = [confidence(trace.confidences, self.measure, self.group_size) for trace in drawn_well]
        answers = [trace.answer if trace.is_kept else None for trace in drawn_well]
        among = [
            Candidate(trace.text, trace.answer, weight, finish_reason=trace.finish_reason)
            for trace, weight in zip(drawn_well, weights, strict=True)
        ]
        return choose(among, majority(answers, weights))

    # Online

    def _draw_online(self, problem: Problem, traces: list[_ReasoningTrace], wave: int) -> RequestGenerator[None]:
        """Add waves of traces until the vote is decided; one that falls below the warm-up's kept ones is stopped."""
        # Algorithm 2, the threshold s: the lowest confidence that the filter lets through, percentile 100 - eta.
        floor = min((self._lowest(trace) for trace in traces if trace.is_kept), default=-math.inf)
        while len(traces) < self.n:  # the paper's budget B
            # "if beta >= tau then stop", beta being the share of the vote that the leading answer has
            kept = [trace for trace in traces if trace.is_kept]
            weights = [confidence(trace.confidences, self.measure, self.group_size) for trace in kept]
            votes = tally([trace.answer for trace in kept], weights)
            if votes and max(votes.values()) >= self.tau * sum(votes.values()):
                return
            new = [_ReasoningTrace() for _ in range(min(wave, self.n - len(traces)))]
            yield from self._draw_by_groups(problem, new, floor)
            # Only whole waves are added: the budget may end one in the middle, and unfinished traces have no answer.
            traces += new
            for trace in new:
                trace.is_kept = trace.answer is not None and self._lowest(trace) >= floor

    def _draw_by_groups(self, problem: Problem, traces: list[_ReasoningTrace], floor: float) -> RequestGenerator[None]:
        """Draw group by group, all traces in one wave."""
        limit = problem.params.max_tokens
        while traces:
            # Algorithm 2 looks at C_G after each token and stops the trace at once. A request cannot be stopped by what
            # its tokens are like, so each group is a request of its own, which goes on from all groups before it.
            sizes = [min(self.group_size, limit - len(trace.confidences)) for trace in traces]
            drawn = yield [
                Generate(
                    prefill(problem.prompt, trace.text), params=replace(problem.params, max_tokens=size), purpose="step"
                )
                for trace, size in zip(traces, sizes, strict=True)
            ]
            for trace, completions in zip(traces, drawn, strict=True):
                trace.add(completions[0])
            traces = [
                trace
                for trace in traces
                if trace.finish_reason == "length" and len(trace.confidences) < limit and self._lowest(trace) >= floor
            ]

    def _lowest(self, trace: _ReasoningTrace) -> float:
        return confidence(trace.confidences, "lowest_group", self.group_size)


@dataclass
class _ReasoningTrace:
    """A completion, drawn by one or by several requests; `is_kept` if it votes."""

    text: str = ""
    confidences: list[float] = field(default_factory=list)  # (T,)
    finish_reason: str = "length"
    is_kept: bool = False

    def add(self, drawn: Completion) -> _ReasoningTrace:
        if drawn.finish_reason != "error" and drawn.confidences is None:
            message = "confidence_filtering cannot tell sure from unsure: the backend gave no confidences"
            raise InputError(message, hint="use a backend with top_logprobs, or self_consistency")
        self.text += drawn.text
        self.confidences += drawn.confidences or []
        self.finish_reason = drawn.finish_reason
        return self

    @property
    def answer(self) -> Hashable | None:
        return None if self.finish_reason == "error" else extract(self.text)


# --- Confidence ------------------------------------------------------------------------------------------------------


def confidence(tokens: Sequence[float], measure: ConfidenceMeasure, group_size: int) -> float:
    """Measure how sure the model was of a completion.

    Args:
        tokens: `Completion.confidences`, T of them; none is 0.
        measure: as in `ConfidenceFiltering`.
        group_size: tokens of a group, and of the tail.

    Example:
        >>> tokens = [9.0, 1.0, 3.0, 7.0]
        >>> [confidence(tokens, measure, 2) for measure in ("mean", "lowest_group", "bottom_tenth", "tail")]
        [5.0, 2.0, 2.0, 5.0]
    """
    if not tokens:
        return 0.0
    if measure == "mean":
        return fmean(tokens)
    if measure == "tail":
        return fmean(tokens[-group_size:])
    groups = sorted(group_confidences(tokens, group_size))
    return groups[0] if measure == "lowest_group" else fmean(groups[: math.ceil(len(groups) / 10)])


def group_confidences(tokens: Sequence[float], group_size: int) -> list[float]:
    """Return the means of all `group_size` neighbouring tokens, T - group_size + 1 of them; of fewer their mean.

    Example:
        >>> group_confidences([9.0, 1.0, 3.0, 7.0], 2)
        [5.0, 2.0, 5.0]
    """
    size = min(group_size, len(tokens))
    sums = [0.0, *accumulate(tokens)]  # (T + 1,), so that each group costs one subtraction and not `group_size` sums
    return [(end - start) / size for start, end in zip(sums, sums[size:], strict=False)]
