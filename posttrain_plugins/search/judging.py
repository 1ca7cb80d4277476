"""What paths are worth: by a scorer's step scores, or by the model's own verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from string import Template
from typing import Literal, TypeAlias

from posttrain_plugins.search.expansion import Path, Wave
from posttrain_plugins.text import last_user_text
from posttrain_plugins.text.steps import SEPARATOR, split_steps
from posttrain_plugins.types import Completion, Generate, Problem, Prompt, Score, ScoreSteps

__all__ = ["VALUE_PROMPT", "Aggregate", "aggregated", "asking", "fill", "judged", "self_judged"]

Aggregate: TypeAlias = Literal["last", "min", "prod", "mean", "whole"]
"""How step scores become one; `whole` asks the scorer for one score of the text as it stands instead."""

VALUE_PROMPT = """Question: $question

This is how far a solution has come:

$path

Can it still lead to the right answer? Check it step by step. Then end with a line of one word, one of: $verdicts."""


def judged(
    problem: Problem, paths: Sequence[Path], scorer: str, aggregate: Aggregate, separator: str = SEPARATOR
) -> Wave:
    """The paths with their scores, in one wave in which equal texts are asked once.

    Args:
        problem: the scorer is shown its prompt.
        paths: the empty one is not asked, and has no score.
        scorer: a reward; it needs `step_scores` unless `aggregate` is `whole`.
        aggregate: how step scores become one.
        separator: ends a step.
    """
    texts = list(dict.fromkeys(path.text for path in paths if path.text))
    if not texts:
        return list(paths)
    if aggregate == "whole":
        [scores] = yield [Score(problem.prompt, tuple(texts), scorer)]
        found = {text: ((), score) for text, score in zip(texts, scores, strict=True)}
    else:
        steps = tuple(tuple(split_steps(text, separator)) for text in texts)
        [scores] = yield [ScoreSteps(problem.prompt, steps, scorer)]
        found = {text: (tuple(row), aggregated(row, aggregate)) for text, row in zip(texts, scores, strict=True)}
    none: tuple[tuple[float, ...], float | None] = ((), None)
    by_path = [found.get(path.text, none) for path in paths]
    return [replace(p, step_scores=rows, score=score) for p, (rows, score) in zip(paths, by_path, strict=True)]


def aggregated(scores: Sequence[float], how: Aggregate) -> float | None:
    """One score out of step scores; None without any, or where one is not a number.

    Example:
        >>> [aggregated([0.5, 0.8, 0.5], how) for how in ("last", "min", "prod", "mean")]
        [0.5, 0.5, 0.2, 0.6]
    """
    if not scores or any(math.isnan(score) for score in scores):
        return None
    return float({"last": scores[-1], "min": min(scores), "prod": math.prod(scores), "mean": fmean(scores)}[how])


def self_judged(problem: Problem, paths: Sequence[Path], prompt: str, verdicts: Mapping[str, float], n: int) -> Wave:
    """The paths with scores that the model gives itself: the mean value of `n` verdicts on each, in one wave.

    Args:
        problem: its prompt is shown as `$question`.
        paths: shown as `$path`; equal texts are asked once.
        prompt: the template, with `$verdicts` for the words.
        verdicts: word -> value; the last of them in a completion counts, one without any abstains.
        n: verdicts on each path; several are drawn at the problem's own temperature.
    """
    texts = list(dict.fromkeys(path.text for path in paths))
    words = ", ".join(verdicts)
    asked = [asking(problem, prompt, "value", n, path=text, verdicts=words) for text in texts]
    drawn = (yield list(asked)) if asked else []
    values = {text: _mean_verdict(replies, verdicts) for text, replies in zip(texts, drawn, strict=True)}
    return [replace(path, score=values[path.text]) for path in paths]


def _mean_verdict(completions: Iterable[Completion], verdicts: Mapping[str, float]) -> float | None:
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, verdicts))})\b", re.IGNORECASE)
    last = [found[-1].lower() for completion in completions if (found := pattern.findall(completion.text))]
    value_of = {word.lower(): value for word, value in verdicts.items()}
    return fmean(value_of[word] for word in last) if last else None


def asking(problem: Problem, template: str, purpose: str, n: int, **words: str) -> Generate:
    """`n` judgements, at temperature 0 where one is enough."""
    temperature = problem.params.temperature if n > 1 else 0.0
    params = replace(problem.params, temperature=temperature, stop=())
    return Generate(fill(problem.prompt, template, **words), n=n, params=params, purpose=purpose)


def fill(prompt: Prompt, template: str, **words: str) -> Prompt:
    """A template in the place of the problem: `$question` is the problem's text, other `$words` are as given.

    Example:
        >>> fill([{"role": "user", "content": "2+2=?"}], "$question Is $path right?", path="$4")
        [{'role': 'user', 'content': '2+2=? Is $4 right?'}]
    """
    text = Template(template).safe_substitute(question=last_user_text(prompt), **words)
    if isinstance(prompt, str):
        return text
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=len(prompt))
    return [*prompt[:last], {"role": "user", "content": text}]
