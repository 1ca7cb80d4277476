"""Expand partial completions: ask the model for the next steps or blocks of many of them in one wave.

A partial completion, a path for short, grows by a step, which ends at a separator (`text/steps.py`), or by a block of
tokens. It is finished where the model ends it, and cut where it has used `SamplingParams.max_tokens` up. Its last step
allowed runs to the end. The backend must tell which stop string it met (`Completion.stop_reason`): without that, every
step looks like an end.

Example:
    >>> from posttrain_plugins.types import Completion, Problem
    >>> expander = Expander(Problem("3|7>2"), max_steps=8, separator=";")
    >>> wave = expander.expand([PartialCompletion()], 2)
    >>> next(wave)[0].params.stop
    (';',)
    >>> try:
    ...     wave.send([[Completion("3|7=4", stop_reason=";"), Completion("4")]])
    ... except StopIteration as stop:
    ...     print([(path.text, path.ended) for path in stop.value[0]])
    [('3|7=4;', None), ('4', 'stop')]
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar

from posttrain_plugins.text import prefill
from posttrain_plugins.text.answers import sortable
from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Completion, Generate, Problem, Request

__all__ = [
    "Expander",
    "PartialCompletion",
    "Waves",
    "deduplicate",
    "flatten",
    "sort_by_score",
    "split_draws",
]

T = TypeVar("T")
Waves: TypeAlias = Generator[list[Request], Any, T]
"""A search or a part of one, for `yield from`: each list of requests that it yields is answered as one batch."""

_LOST = "\N{REPLACEMENT CHARACTER}"  # stands where a block ends within a character


@dataclass(frozen=True, slots=True)
class PartialCompletion:
    """A completion that is being written.

    Args:
        text: what is written so far, separators included.
        num_steps: how often it was expanded.
        num_tokens: completion tokens in it, at most the problem's `max_tokens`.
        ended: why it is expanded no more, `stop` or `length`; None while it may be.
        logprob: the sum over its tokens; None where the backend did not tell.
        step_scores: of each step, where they were asked for.
        score: what it is ranked by; None where it was not judged, or could not be.
    """

    text: str = ""
    num_steps: int = 0
    num_tokens: int = 0
    ended: Literal["stop", "length"] | None = None
    logprob: float | None = 0.0
    step_scores: tuple[float, ...] = ()
    score: float | None = None


@dataclass(frozen=True)
class Expander:
    """Expands the paths of one problem.

    Args:
        problem: its sampling parameters hold for every step, and its `max_tokens` for the path.
        max_steps: the last of them runs to the end.
        separator: ends a step.
        block_tokens: tokens of a block; a path then grows by blocks, not by steps.
        logprobs: ask for `PartialCompletion.logprob`.
        values: take the backend's value of the last token for `PartialCompletion.score`.
    """

    problem: Problem
    max_steps: int
    separator: str = SEPARATOR
    block_tokens: int | None = None
    logprobs: bool = False
    values: bool = False

    def expand(
        self,
        paths: Sequence[PartialCompletion],
        counts: int | Sequence[int] = 1,
        *,
        to_end: bool = False,
        greedy: bool = False,
    ) -> Waves[list[list[PartialCompletion]]]:
        """Expand every path once, all in one wave.

        Args:
            paths: P of them, none of them ended.
            counts: continuations to draw, of each path or one number for all.
            to_end: run to the end instead of one step.
            greedy: at temperature 0.

        Returns:
            P lists of children; samples that failed have none.
        """
        each = [counts] * len(paths) if isinstance(counts, int) else counts
        requests = [self._request(path, n, to_end, greedy) for path, n in zip(paths, each, strict=True)]
        # Without paths there is no wave at all, so that a search may call this with whatever is left of its paths.
        drawn = (yield list(requests)) if requests else []  # (P, counts)
        return [
            [self._child(path, request, c) for c in completions if c.finish_reason != "error"]
            for path, request, completions in zip(paths, requests, drawn, strict=True)
        ]

    def _request(self, path: PartialCompletion, n: int, to_end: bool, greedy: bool) -> Generate:
        params, is_by_step = self.problem.params, self.block_tokens is None
        # Some chat templates trim the end of a prefill: the model writes the separator again, and nothing else, at
        # every step. Two separators in a row are the sign of it, and the path then runs to its end.
        is_stuck = is_by_step and path.text.endswith(2 * self.separator)
        to_end = to_end or is_stuck or path.num_steps + 1 >= self.max_steps
        stop, room = params.stop, max(params.max_tokens - path.num_tokens, 1)  # no backend draws 0 tokens
        if not to_end and is_by_step:
            stop = tuple(dict.fromkeys((*stop, self.separator)))
        elif not to_end:
            room = min(room, self.block_tokens or room)
        params = replace(
            params,
            temperature=0.0 if greedy else params.temperature,
            max_tokens=room,
            stop=stop,
            logprobs=params.logprobs or self.logprobs,
            values=params.values or self.values,
        )
        # The engine falls back on pieces of an answer when a budget ends, and has to know which requests make them.
        purpose = "answer" if to_end else "step"
        return Generate(prefill(self.problem.prompt, path.text), n=n, params=params, purpose=purpose)

    def _child(self, path: PartialCompletion, request: Generate, completion: Completion) -> PartialCompletion:
        spent, limit, logprobs = completion.usage.completion_tokens, self.problem.params.max_tokens, completion.logprobs
        num_tokens = path.num_tokens + max(spent, 1)  # not every server counts, and a path has to come to an end
        # A block shorter than was asked for, and yet cut, has filled the model's context: nothing more fits in.
        is_full = num_tokens >= limit or 0 < spent < request.params.max_tokens
        is_block = self.block_tokens is not None and completion.finish_reason == "length" and not is_full
        is_step = self.block_tokens is None and completion.stop_reason == self.separator
        ended: Literal["stop", "length"] | None
        if request.purpose == "step" and (is_block or is_step):
            ended = "length" if num_tokens >= limit else None
        else:
            ended = "length" if completion.finish_reason == "length" else "stop"
        # The text is cut before its stop string. Half a character that ends a block is drawn again by the next one.
        text = completion.text.rstrip(_LOST) if is_block else completion.text + self.separator * is_step
        return replace(
            path,
            text=path.text + text,
            num_steps=path.num_steps + 1,
            num_tokens=num_tokens,
            ended=ended,
            logprob=None if path.logprob is None or logprobs is None else path.logprob + sum(logprobs),
            step_scores=(),  # the parent's scores are not the child's
            score=completion.value if self.values else None,
        )


def flatten(children: Iterable[Iterable[T]]) -> list[T]:
    """Return the children of all paths in one list."""
    return [child for of_path in children for child in of_path]


def deduplicate(paths: Iterable[PartialCompletion], *, are_votes: bool = False) -> list[PartialCompletion]:
    """Keep the first of the paths with one text and one end; all ended ones where each of them is a vote."""
    # by text, not by tokens: two ways to tokenise one text have the same future, as far as a prefill can tell
    first: dict[tuple[Any, ...], PartialCompletion] = {}
    for i, path in enumerate(paths):
        first.setdefault((path.text, path.ended, i if are_votes and path.ended else None), path)
    return list(first.values())


def split_draws(total: int, count: int) -> list[int]:
    """Spread `total` draws over `count` paths; the first ones get what is left over.

    Example:
        >>> split_draws(8, 3)
        [3, 3, 2]
    """
    return [total // count + (i < total % count) for i in range(count)]


def sort_by_score(paths: Iterable[PartialCompletion]) -> list[PartialCompletion]:
    """Sort paths, the best first; of equal ones the first stays first."""
    # `sorted` is stable also in reverse, so a search does not depend on anything but scores and the order of draws
    return sorted(paths, key=lambda path: sortable(path.score), reverse=True)
