"""Search over paths: completions that grow step by step, are judged on the way, and answer at the end.

What the strategies that search share (beams, trees, particles): how a path is asked to grow and when it is finished,
how step scores become one, and how finished paths become a result. All that asks is a generator for `yield from`, one
wave each, whatever the number of paths. No paper; each strategy has its own.
"""

from posttrain_plugins.search.answer_selection import Select, check_fields, refuse, settle, until_spent
from posttrain_plugins.search.expansion import Growth, Path, best_first, distinct, flat, rank, shares
from posttrain_plugins.search.judging import VALUE_PROMPT, Aggregate, aggregated, asking, fill, judged, self_judged

__all__ = [
    "VALUE_PROMPT",
    "Aggregate",
    "Growth",
    "Path",
    "Select",
    "aggregated",
    "asking",
    "best_first",
    "check_fields",
    "distinct",
    "fill",
    "flat",
    "judged",
    "rank",
    "refuse",
    "self_judged",
    "settle",
    "shares",
    "until_spent",
]
