"""Judge partial completions: by a scorer's step scores, or by the model's own verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal, TypeAlias

from posttrain_plugins.search.expansion import PartialCompletion, Waves
from posttrain_plugins.text import replace_question
from posttrain_plugins.text.steps import SEPARATOR, aggregate, split_steps
from posttrain_plugins.types import Generate, Problem, Score, ScoreSteps

__all__ = ["VALUE_PROMPT", "PathAggregate", "judge_paths", "request_judgement", "self_judge_paths"]

PathAggregate: TypeAlias = Literal["last", "min", "prod", "mean", "whole"]
"""How step scores become one; `whole` asks the scorer for one score of the text as it stands instead."""

VALUE_PROMPT = """Question: $question

This is how far a solution has come:

$path

Can it still lead to the right answer? Check it step by step. Then end with a line of one word, one of: $verdicts."""


def judge_paths(
    problem: Problem,
    paths: Sequence[PartialCompletion],
    scorer: str,
    how: PathAggregate,
    separator: str = SEPARATOR,
) -> Waves[list[PartialCompletion]]:
    """Return the paths with a scorer's scores, in one wave in which equal texts are asked about once.

    Args:
        problem: the scorer is shown its prompt.
        paths: the empty one is not asked about, and has no score.
        scorer: a reward; it needs `step_scores` unless `how` is `whole`.
        how: how step scores become one; a path has none where a step's score is missing or not a number.
        separator: ends a step.
    """
    # The empty path is the root: no step was written, and a reward model would score the prompt alone.
    texts = list(dict.fromkeys(path.text for path in paths if path.text))
    if not texts:
        return list(paths)
    step_scores: dict[str, tuple[float, ...]] = {}
    scores: dict[str, float | None]
    if how == "whole":
        [found] = yield [Score(problem.prompt, tuple(texts), scorer)]
        scores = dict(zip(texts, found, strict=True))
    else:
        [found] = yield [ScoreSteps(problem.prompt, tuple(tuple(split_steps(t, separator)) for t in texts), scorer)]
        step_scores = dict(zip(texts, map(tuple, found), strict=True))
        scores = {text: aggregate(of_path, how) for text, of_path in step_scores.items()}
        # What is NaN for a reward's guard to count is "not judged" for a search: it ranks below all that was.
        scores = {text: None if score is None or math.isnan(score) else score for text, score in scores.items()}
    return [replace(p, step_scores=step_scores.get(p.text, ()), score=scores.get(p.text)) for p in paths]


def self_judge_paths(
    problem: Problem, paths: Sequence[PartialCompletion], prompt: str, verdicts: Mapping[str, float], n: int
) -> Waves[list[PartialCompletion]]:
    """Return the paths with scores that the model gives itself: the mean value of `n` verdicts on each, in one wave.

    Args:
        problem: its prompt is shown as `$question`.
        paths: shown as `$path`; equal texts are asked about once.
        prompt: the template, with `$verdicts` for the words.
        verdicts: word -> value; the last of them in a completion counts, one without any abstains.
        n: verdicts on each path; several are drawn at the problem's own temperature.
    """
    texts = list(dict.fromkeys(path.text for path in paths))
    listed = ", ".join(verdicts)
    asked = [request_judgement(problem, prompt, "value", n, path=text, verdicts=listed) for text in texts]
    drawn = (yield list(asked)) if asked else []  # (texts, n)
    # The last word counts, since the prompt asks for the check first: "it is not impossible, so: likely".
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, verdicts))})\b", re.IGNORECASE)
    value_of = {word.lower(): value for word, value in verdicts.items()}
    scores: dict[str, float | None] = {}
    for text, replies in zip(texts, drawn, strict=True):
        last = [found[-1].lower() for reply in replies if (found := pattern.findall(reply.text))]
        scores[text] = fmean(value_of[word] for word in last) if last else None
    return [replace(path, score=scores[path.text]) for path in paths]


def request_judgement(problem: Problem, template: str, purpose: str, n: int, **fields: Any) -> Generate:
    """Make the request for `n` judgements: at temperature 0 where one is enough.

    Args:
        problem: its question is filled in as `$question`; a stop string of its steps would cut the judgement short.
        template: the prompt.
        purpose: names the judgements in the trace.
        n: how many.
        fields: fill in the other `$names` of the template.
    """
    temperature = problem.params.temperature if n > 1 else 0.0
    params = replace(problem.params, temperature=temperature, stop=())
    return Generate(replace_question(problem.prompt, template, **fields), n=n, params=params, purpose=purpose)
