"""No text holds up a reader or a comparison: what a model babbles comes to an end, and raises nothing."""

from __future__ import annotations

import subprocess
import sys

BABBLE = r"""
import random

from posttrain_plugins.answers import canonical, equivalent, extract

PIECES = [
    "3", "1,", "1,000", "$", r"\frac{", "}", "{", "(", ")", "|", "4>2=", "x", "  ", "answer is ", "**",
    r"\boxed{", " and ", "/", ".", "-", "^", r"\text{ cm}", "cm ", "=", "Answer:", "the ", "of ", "\n", "`",
    "#### ", r"\left", "4 5", "a1b2c3", "°", "½", "元", "No, ", "<think>", "</think>", r"\sqrt", "!", "(x+y)",
    "+", r"\ ", "__", "_", "$$", "is ", "So ",
]
for piece in PIECES:
    for times in (30, 200, 3000):
        text = piece * times
        extract(text), extract("Answer: " + text), extract(text + " The answer is 5.")
        canonical(text), canonical("5 " + text), equivalent(text, text + "1")
rng = random.Random(1)
for _ in range(1500):
    text = "".join(rng.choice(PIECES) * rng.choice([1, 1, 2, 5]) for _ in range(rng.choice([5, 20, 60, 200])))
    extract(text), canonical(text[:300]), equivalent(text[:200], text[:199])
"""


def test_babble_comes_to_an_end() -> None:
    # in a process of its own: a pattern that backtracks for ever can be ended in no other way
    subprocess.run([sys.executable, "-c", BABBLE], check=True, timeout=300)
