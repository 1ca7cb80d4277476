"""What searches over partial completions share: beams, trees and particles that grow step by step.

A search checks its fields, expands its paths, judges what comes out, and at the end selects an answer among those that
are finished. All that asks is a generator for `yield from`, one wave each, whatever the number of paths. No paper; each
strategy has its own.

| file                  | holds                                                                               |
|-----------------------|-------------------------------------------------------------------------------------|
| `fields.py`           | the check of a strategy's fields                                                    |
| `expansion.py`        | `PartialCompletion`, and how many of them are asked to grow in one wave             |
| `judging.py`          | scores of paths, by a scorer's step scores or by the model's own verdicts           |
| `answer_selection.py` | the result of a search, by score or by vote, also where the budget ends it          |
"""

from posttrain_plugins.search.answer_selection import AnswerRule, select_answer, stop_when_spent
from posttrain_plugins.search.expansion import (
    Expander,
    PartialCompletion,
    Waves,
    deduplicate,
    flatten,
    sort_by_score,
    split_draws,
)
from posttrain_plugins.search.fields import check_fields, refuse_field
from posttrain_plugins.search.judging import (
    VALUE_PROMPT,
    PathAggregate,
    judge_paths,
    request_judgement,
    self_judge_paths,
)

__all__ = [
    "VALUE_PROMPT",
    "AnswerRule",
    "Expander",
    "PartialCompletion",
    "PathAggregate",
    "Waves",
    "check_fields",
    "deduplicate",
    "flatten",
    "judge_paths",
    "refuse_field",
    "request_judgement",
    "select_answer",
    "self_judge_paths",
    "sort_by_score",
    "split_draws",
    "stop_when_spent",
]
