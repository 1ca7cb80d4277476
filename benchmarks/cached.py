"""What a plan and a cached rerun of the quickstart take, beside an earlier commit's, in interleaved pairs.

The earlier commit is checked out beside this one, and each side runs the quickstart once, with few steps, in a runs
folder of its own. Then pairs of processes plan it anew in an empty folder, or run it again where all is cached;
which side goes first alternates. Taken are the time on the clock, and user and system time, which a busy machine
disturbs less. Both sides have their bytecode written and the same libraries.

    python benchmarks/cached.py --before 6a1dfbb --pairs 15
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import record
from startup import timed

ROOT = Path(__file__).resolve().parent.parent
SHORT = {
    # as much as it takes to have right and wrong answers to make pairs of
    "model.args.max_steps": 250,
    "stages.sft.args.max_steps": 60,
    **{f"stages.{stage}.args.max_steps": 1 for stage in ("rm", "dpo", "grpo")},
    "datasets.problems.size": 60,
    "datasets.fresh.size": 30,
    "datasets.heldout.size": 16,
}
COMMANDS = {"plan": ["plan", "quickstart"], "cached rerun": ["run", "quickstart"]}


def main() -> int:
    options = _options()
    print(f"load average {os.getloadavg()[0]:.2f}; quiet is below 0.5", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch, _checkout(options.before, Path(scratch)) as before:
        sides = {"now": ROOT, "before": before}
        overrides = _overrides(options.override)
        results = {name: _compare(name, sides, overrides, Path(scratch), options.pairs) for name in COMMANDS}
    told = {"pairs": options.pairs, "before": options.before, "overrides": overrides, "commands": results}
    print(record.write("cached", told, options.out))
    return 0


def _compare(name: str, sides: dict[str, Path], overrides: Sequence[str], scratch: Path, pairs: int) -> dict[str, Any]:
    """Return the ratios now / before with their intervals, and the times in seconds."""

    def of_side(side: str) -> dict[str, float]:
        # a plan says why each stage runs, and is quicker where none has: always in an empty folder
        runs = Path(tempfile.mkdtemp(dir=scratch)) if name == "plan" else scratch / f"runs-{side}"
        words = [*COMMANDS[name], "--runs-dir", str(runs), *(word for one in overrides for word in ("-o", one))]
        env = {**os.environ, "PYTHONPATH": str(sides[side]), "HF_HUB_OFFLINE": "1"}
        return timed(["-m", "posttrain_plugins", *words], cwd=sides[side], env=env, stderr=subprocess.DEVNULL)

    taken = []
    for number in range(pairs + 1):
        order = ["now", "before"] if number % 2 else ["before", "now"]
        taken.append({side: of_side(side) for side in order})
    taken = taken[1:]  # the first makes what the others find, and the bytecode
    ratios = {
        what: record.median_interval([pair["now"][what] / pair["before"][what] for pair in taken])
        for what in ("wall", "cpu")
    }
    print(
        f"{name}: {ratios['wall']['median']:.2f} x on the clock, {ratios['cpu']['median']:.2f} x CPU", file=sys.stderr
    )
    return {"ratio": ratios, "times_s": taken}


@contextmanager
def _checkout(commit: str, scratch: Path) -> Iterator[Path]:
    """Yield a folder with the files of a commit."""
    folder = scratch / "before"
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder), commit], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True, capture_output=True)


def _overrides(more: Sequence[str]) -> list[str]:
    return [*(f"{key}={value}" for key, value in SHORT.items()), *more]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="6a1dfbb", metavar="COMMIT", help="what it is compared with (6a1dfbb)")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the results file")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
