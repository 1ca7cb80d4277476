"""A reward that hangs and crashes, under the guard and without it; exit 1 where the guard is slow or loses a row.

1,000 distinct completions: one in a hundred hangs, one in a hundred crashes (segmentation fault), the rest take 20 ms.
With two workers and a limit of one second for each completion, nobody can be faster than (980 x 0.02 + 10 x 1) / 2
seconds; the guard has to be within 1.5 times that, with no row lost and 20 rows counted by cause.

Beside it TRL's own path: one call of the function for all completions, in the process that trains (here a process that
stands for it), with the bad completions and, as the time that its scores take, without them.

    python benchmarks/guard.py
    python benchmarks/guard.py --completions 100
"""

from __future__ import annotations

import argparse
import ctypes
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SLEEP_S = 0.02
TIMEOUT_S = 1.0
WORKERS = 2
MAX_RATIO = 1.5


def troubled(completions: list[str], **columns: Any) -> list[float]:
    """The reward: does what each completion says."""
    return [_score(text) for text in completions]


def _score(text: str) -> float:
    if text.startswith("hang"):
        time.sleep(3600)
    if text.startswith("crash"):
        ctypes.string_at(0)
    time.sleep(SLEEP_S)
    return float(len(text))


def completions_of(count: int, seed: int = 0, is_bad: bool = True) -> list[str]:
    """Distinct completions in a random order; of each hundred one hangs and one crashes."""
    kinds = ["hang" if i % 100 == 0 else "crash" if i % 100 == 50 else "good" for i in range(count)]
    texts = [f"{kind} {i}" for i, kind in enumerate(kinds) if is_bad or kind == "good"]
    random.Random(seed).shuffle(texts)
    return texts


def guarded(texts: list[str]) -> dict[str, Any]:
    """One batch under the guard."""
    from guard import troubled as reward  # by its module's name, not `__main__`, so that a worker finds it

    from posttrain_plugins.guard.guarded import guard
    from posttrain_plugins.guard.settings import GuardSettings

    made = guard(reward, GuardSettings(timeout_s=TIMEOUT_S, num_workers=WORKERS), "troubled")
    began = time.perf_counter()
    scores = made(prompts=["?"] * len(texts), completions=texts)
    seconds = time.perf_counter() - began
    made.close()
    wrong = sum(s != (float(len(t)) if t.startswith("good") else None) for s, t in zip(scores, texts, strict=True))
    bad = {kind: sum(text.startswith(kind) for text in texts) for kind in ("hang", "crash")}
    least = ((len(texts) - sum(bad.values())) * SLEEP_S + bad["hang"] * TIMEOUT_S) / WORKERS
    return {
        "seconds": seconds,
        "least_s": least,
        "ratio": seconds / least,
        "rows_lost": wrong + len(texts) - len(scores),
        "outcomes": dict(made.outcomes),
        "bad": bad,
    }


def trl_path(count: int, is_bad: bool, limit_s: float) -> dict[str, Any]:
    """One call for all completions in a process of its own; how it ended, at the latest at the limit."""
    code = f"import guard; print(len(guard.troubled(guard.completions_of({count}, is_bad={is_bad}))))"
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=limit_s
        )
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
        scored = int(done.stdout or 0)
    except subprocess.TimeoutExpired:
        ended, scored = "still running at the limit", 0
    return {"seconds": time.perf_counter() - began, "ended": ended, "rows_scored": scored, "limit_s": limit_s}


def unmet(results: dict[str, Any]) -> list[str]:
    """What the guard does not keep."""
    found = results["guarded"]
    told = {"timeout": found["bad"]["hang"], "error": found["bad"]["crash"]}
    counted = {kind: found["outcomes"].get(kind, 0) for kind in told}
    return [
        *([f"{found['ratio']:.2f} times the least time, expected {MAX_RATIO}"] if found["ratio"] > MAX_RATIO else []),
        *([f"{found['rows_lost']} rows lost"] if found["rows_lost"] else []),
        *([f"counted {counted}, expected {told}"] if counted != told else []),
    ]


def main() -> int:
    import record  # not above: a worker imports this file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the results file")
    options = parser.parse_args()
    texts = completions_of(options.completions)
    found = guarded(texts)
    limit_s = 2 * found["least_s"] + 30
    results = {
        "completions": len(texts),
        "workers": WORKERS,
        "timeout_s": TIMEOUT_S,
        "guarded": found,
        "trl": trl_path(options.completions, True, limit_s),
        "trl_without_bad": trl_path(options.completions, False, limit_s),
    }
    print(record.write("guard", results, options.out))
    missed = unmet(results)
    print("\n".join(missed) if missed else f"{found['ratio']:.2f} times the least time, {found['outcomes']}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
