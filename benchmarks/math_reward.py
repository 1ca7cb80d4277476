r"""`math` beside TRL's `accuracy_reward`: the same values, how much sooner.

1,000 completions of 125 problems, eight of each, as a GRPO batch has them; half of them repeat another of their group,
word for word. Answers are integers, fractions, roots, expressions, sets and intervals, right and wrong, in a box inside
and outside of formulas, in a formula alone, and unreadable; a few references cannot be read. Both rewards score all of
them in this process, after one call that warms them up; the order is swapped in every repetition. Exit 1 where a value
differs, or TRL's time is not three times ours.

    python benchmarks/math_reward.py
    python benchmarks/math_reward.py --problems 20 --repetitions 1
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record

GENERATIONS = 8
MIN_RATIO = 3.0


def integer(rng: random.Random) -> tuple[str, list[str], list[str]]:
    """A reference, ways to write it, and what is not it; so are the next."""
    n = rng.randint(2, 999)
    return str(n), [str(n), f"{n}.0"], [str(n + 1), f"-{n}"]


def fraction(rng: random.Random) -> tuple[str, list[str], list[str]]:
    a, b = rng.randint(1, 9), rng.randint(10, 19)
    return rf"\frac{{{a}}}{{{b}}}", [rf"\frac{{{2 * a}}}{{{2 * b}}}", f"{a}/{b}"], [f"{b}/{a}"]


def root(rng: random.Random) -> tuple[str, list[str], list[str]]:
    n = rng.randint(2, 9)
    return rf"${n}\sqrt{{3}}$", [rf"{n}\sqrt{{3}}", rf"\frac{{{3 * n}}}{{\sqrt{{3}}}}"], [rf"\sqrt{{{n}}}"]


def polynomial(rng: random.Random) -> tuple[str, list[str], list[str]]:
    n = rng.randint(1, 9)
    return f"$x^2+{2 * n}x+{n * n}$", [f"(x+{n})^2", f"x^2+{2 * n}x+{n * n}"], [f"(x-{n})^2"]


def couple(rng: random.Random) -> tuple[str, list[str], list[str]]:
    n = rng.randint(1, 9)
    return rf"$\{{{n}, {n + 1}\}}$", [rf"\{{{n + 1}, {n}\}}"], [rf"\{{{n}\}}", str(n)]


def interval(rng: random.Random) -> tuple[str, list[str], list[str]]:
    n = rng.randint(1, 9)
    return f"$[0, {n})$", [f"[0,{n})"], [f"(0,{n})", f"[0,{n}]"]


KINDS = (integer, fraction, integer, root, integer, polynomial, integer, couple, fraction, interval)
LAYOUTS = (
    "We try {i} ways.\nSo the answer is \\boxed{{{a}}}.",
    "Step {i}.\n\\[\n\\boxed{{{a}}}\n\\]",
    "Hence, after {i} steps, $\\boxed{{{a}}}$.",
    "After {i} steps $x = \\boxed{{{a}}}$",
    "So after {i} steps the answer is ${a}$.",
    "I think {i}, then {a}",
)


def problems(count: int, seed: int = 0) -> tuple[list[Any], list[str]]:
    """Completions, conversational, and their references: groups of eight, of which four repeat another."""
    rng = random.Random(seed)
    completions, solutions = [], []
    for i in range(count):
        reference, right, wrong = KINDS[i % len(KINDS)](rng)
        reference = "?" if i % 40 == 39 else reference
        texts = [
            rng.choice(LAYOUTS[:4] if rng.random() < 0.8 else LAYOUTS).format(
                i=g, a=rng.choice(right if g % 2 else wrong)
            )
            for g in range(GENERATIONS // 2)
        ]
        texts += [rng.choice(texts) for _ in range(GENERATIONS - len(texts))]
        completions += [[{"role": "assistant", "content": text}] for text in texts]
        solutions += [reference] * GENERATIONS
    return completions, solutions


def compare(count: int, repetitions: int) -> dict[str, Any]:
    """Both rewards on the same batch; seconds of each repetition, and the rows on which they differ."""
    from trl.rewards import accuracy_reward

    from posttrain_plugins.rewards.math import Math

    completions, solutions = problems(count)
    rewards: dict[str, Callable[[], list[Any]]] = {
        "ours": lambda: Math()(completions=completions, solution=solutions),
        "trl": lambda: accuracy_reward(completions, solutions),
    }
    warm = problems(4 * len(KINDS), seed=1)
    Math()(completions=warm[0], solution=warm[1])
    accuracy_reward(*warm)
    seconds: dict[str, list[float]] = {name: [] for name in rewards}
    found: dict[str, list[Any]] = {}
    for i in range(repetitions):
        for name in sorted(rewards, reverse=bool(i % 2)):
            began = time.perf_counter()
            found[name] = rewards[name]()
            seconds[name].append(time.perf_counter() - began)
    different = [
        {"completion": completions[i][0]["content"], "solution": solutions[i], "ours": ours, "trl": theirs}
        for i, (ours, theirs) in enumerate(zip(found["ours"], found["trl"], strict=True))
        if ours != theirs
    ]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "completions": len(completions),
        "distinct": len({(c[0]["content"], s) for c, s in zip(completions, solutions, strict=True)}),
        "right": sum(value == 1.0 for value in found["trl"]),
        "unreadable": sum(value is None for value in found["trl"]),
        "seconds": seconds,
        "ratio": medians["trl"] / medians["ours"],
        "different": different,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=125)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the results file")
    options = parser.parse_args()
    results = compare(options.problems, options.repetitions)
    print(record.write("math_reward", results, options.out))
    print(f"{results['ratio']:.1f} times as fast, {len(results['different'])} different values")
    return 1 if results["different"] or results["ratio"] < MIN_RATIO else 0


if __name__ == "__main__":
    sys.exit(main())
