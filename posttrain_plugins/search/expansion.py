"""Paths, and how they grow.

A path grows by a step, which ends at a separator (`text/steps.py`), or by a block of tokens. It is finished where the
model ends it, and cut where it has used `SamplingParams.max_tokens` up. Its last allowed step runs to the end. The
backend must tell which stop string it met (`Completion.stop_reason`): without that, every step looks like an end.

Example:
    >>> from posttrain_plugins.types import Completion, Problem
    >>> growth = Growth(Problem("3|7>2"), max_steps=8, separator=";")
    >>> wave = growth.grow([Path()], 2)
    >>> next(wave)[0].params.stop
    (';',)
    >>> try:
    ...     wave.send([[Completion("3|7=4", stop_reason=";"), Completion("4")]])
    ... except StopIteration as stop:
    ...     print([(path.text, path.ended) for path in stop.value[0]])
    [('3|7=4;', None), ('4', 'stop')]
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from posttrain_plugins.text.steps import SEPARATOR
from posttrain_plugins.types import Completion, Generate, Problem, Prompt, Request, SamplingParams

__all__ = ["Growth", "Path", "Wave", "best_first", "distinct", "flat", "rank", "shares"]

Wave: TypeAlias = Generator[list[Request], Any, Any]
"""Yields once at most; for `yield from`."""

_LOST = "\N{REPLACEMENT CHARACTER}"  # stands where a block ends within a character


@dataclass(frozen=True, slots=True)
class Path:
    """A completion that grows.

    Args:
        text: what is written so far, separators included.
        steps: how often it grew.
        tokens: completion tokens on it, at most the problem's `max_tokens`.
        ended: why it grows no more, `stop` or `length`; None while it may grow.
        logprob: the sum over its tokens; None where the backend did not tell.
        step_scores: of each step, where they were asked for.
        score: what it is ranked by; None where it was not judged, or could not be.
    """

    text: str = ""
    steps: int = 0
    tokens: int = 0
    ended: Literal["stop", "length"] | None = None
    logprob: float | None = 0.0
    step_scores: tuple[float, ...] = ()
    score: float | None = None


@dataclass(frozen=True)
class Growth:
    """How the paths of a problem grow.

    Args:
        problem: its sampling parameters hold for every step, and its `max_tokens` for the path.
        max_steps: the last of them runs to the end.
        separator: ends a step.
        block_tokens: tokens of a block; a path then grows by blocks, not by steps.
        logprobs: ask for `Path.logprob`.
        values: take the backend's value of the last token for `Path.score`.
    """

    problem: Problem
    max_steps: int
    separator: str = SEPARATOR
    block_tokens: int | None = None
    logprobs: bool = False
    values: bool = False

    def grow(
        self, paths: Sequence[Path], counts: int | Sequence[int] = 1, *, to_end: bool = False, greedy: bool = False
    ) -> Wave:
        """One wave that lets every path grow.

        Args:
            paths: none of them ended.
            counts: continuations to draw, of each path or one number for all.
            to_end: run to the end instead of one step.
            greedy: at temperature 0.

        Returns:
            For each path its children; samples that failed have none.
        """
        each = [counts] * len(paths) if isinstance(counts, int) else counts
        requests = [self._request(path, n, to_end, greedy) for path, n in zip(paths, each, strict=True)]
        drawn = (yield list(requests)) if requests else []
        return [
            [self._grown(path, request, c) for c in completions if c.finish_reason != "error"]
            for path, request, completions in zip(paths, requests, drawn, strict=True)
        ]

    def _request(self, path: Path, n: int, to_end: bool, greedy: bool) -> Generate:
        to_end = to_end or path.steps + 1 >= self.max_steps or self._is_stuck(path)
        params = self._params(max(self.problem.params.max_tokens - path.tokens, 1), to_end)
        if greedy:
            params = replace(params, temperature=0.0)
        prompt = _prefilled(self.problem.prompt, path.text)
        return Generate(prompt, n=n, params=params, purpose="answer" if to_end else "step")

    def _params(self, room: int, to_end: bool) -> SamplingParams:
        params = replace(self.problem.params, max_tokens=room)
        params = replace(params, logprobs=params.logprobs or self.logprobs, values=params.values or self.values)
        if to_end:
            return params
        if self.block_tokens is not None:
            return replace(params, max_tokens=min(room, self.block_tokens))
        return replace(params, stop=tuple(dict.fromkeys((*params.stop, self.separator))))

    def _is_stuck(self, path: Path) -> bool:
        """Some chat templates trim the end of a prefill: the model writes that separator again, and nothing else."""
        return self.block_tokens is None and path.text.endswith(2 * self.separator)

    def _grown(self, path: Path, request: Generate, completion: Completion) -> Path:
        spent = completion.usage.completion_tokens
        tokens = path.tokens + max(spent, 1)
        is_cut = tokens >= self.problem.params.max_tokens or 0 < spent < request.params.max_tokens  # by the context
        is_block = self.block_tokens is not None and completion.finish_reason == "length" and not is_cut
        is_step = self.block_tokens is None and completion.stop_reason == self.separator
        is_open = request.purpose == "step" and (is_block or is_step)
        text = completion.text + self.separator * is_step
        return replace(
            path,
            text=path.text + (text.rstrip(_LOST) if is_block else text),
            steps=path.steps + 1,
            tokens=tokens,
            ended=self._ended(completion, is_open, tokens),
            logprob=_sum(path.logprob, completion.logprobs),
            step_scores=(),
            score=completion.value if self.values else None,
        )

    def _ended(self, completion: Completion, is_open: bool, tokens: int) -> Literal["stop", "length"] | None:
        if is_open:
            return "length" if tokens >= self.problem.params.max_tokens else None
        return "length" if completion.finish_reason == "length" else "stop"


def _prefilled(prompt: Prompt, text: str) -> Prompt:
    """The prompt with the path begun; a prefill that the problem brings along comes before it."""
    if not text:
        return prompt
    if isinstance(prompt, str):
        return prompt + text
    if prompt[-1]["role"] == "assistant":
        return [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']}{text}"}]
    return [*prompt, {"role": "assistant", "content": text}]


def _sum(logprob: float | None, more: Sequence[float] | None) -> float | None:
    return None if logprob is None or more is None else logprob + sum(more)


def flat(children: Iterable[Iterable[Path]]) -> list[Path]:
    """The children of all paths in one list."""
    return [child for of_path in children for child in of_path]


def distinct(paths: Iterable[Path], *, are_votes: bool = False) -> list[Path]:
    """Of paths with one text and one end the first; ended ones are all kept where each of them is a vote."""
    first: dict[tuple[Any, ...], Path] = {}
    for i, path in enumerate(paths):
        first.setdefault((path.text, path.ended, i if are_votes and path.ended else None), path)
    return list(first.values())


def shares(total: int, count: int) -> list[int]:
    """`total` draws spread over `count` paths, the first ones get what is over.

    Example:
        >>> shares(8, 3)
        [3, 3, 2]
    """
    return [total // count + (i < total % count) for i in range(count)]


def rank(path: Path) -> float:
    """The path's score; what could not be judged ranks below everything."""
    return -math.inf if path.score is None or math.isnan(path.score) else path.score


def best_first(paths: Iterable[Path]) -> list[Path]:
    """By score; of equal ones the first stays first."""
    return sorted(paths, key=rank, reverse=True)
