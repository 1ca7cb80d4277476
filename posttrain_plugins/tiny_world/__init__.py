"""The tiny world: a chain of max, min and distance, small enough to learn in minutes on two cores.

| file           | holds                                                                                   |
|----------------|-----------------------------------------------------------------------------------------|
| `task.py`      | problems, the steps that authors write (sloppy ones and right ones), the held-out split |
| `checker.py`   | reads a completion in either layout and judges its answer and every step                |
| `tokenizer.py` | 64 tokens, one per character, with a chat template                                      |

A problem is a digit and 4 to 6 pairs of operator and digit, 8 to 12 where it is hard, stated from left to right: `a>b`
is the larger of the two, `a<b` the smaller, `a|b` the distance `|a-b|`. No paper: the task is ours. Nothing here
imports torch, transformers or datasets when it is imported.

Example:
    >>> evaluate("3|7>2<9|4")
    0
    >>> check("3|7>2", "<think>3|7=4;4>2=4</think><answer>4</answer>").strict
    True
"""

from posttrain_plugins.tiny_world.checker import Check, check, find_expression
from posttrain_plugins.tiny_world.task import evaluate, is_held_out, make_expression
from posttrain_plugins.tiny_world.tokenizer import tokenizer

__all__ = [
    "Check",
    "check",
    "evaluate",
    "find_expression",
    "is_held_out",
    "make_expression",
    "tokenizer",
]
