"""Validate ten thousand recipes with something wrong: no traceback, none over a second, under 300 MiB.

    python benchmarks/mutated_recipes.py [--number 10000] [--first 0]

The seeds are the names of the recipes: `mutations.mutated(SEED)` in `tests/` gives the text again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from record import RESULTS, write

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import mutations


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of mutated_recipes.json")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds = range(chosen.first, chosen.first + chosen.number)
        outcomes = [mutations.tried(seed, Path(folder)) for seed in seeds]
    seconds = sorted(outcome.seconds for outcome in outcomes)
    results = {
        "recipes": len(outcomes),
        "first_seed": chosen.first,
        "refused": sum(bool(outcome.message) for outcome in outcomes),
        "failures": {outcome.seed: outcome.failure for outcome in outcomes if outcome.failure},
        "seconds": {"median": seconds[len(seconds) // 2], "most": seconds[-1]},
        "peak_mib": mutations.peak_mib(),
    }
    write("mutated_recipes", results, chosen.out)
    print(results)
    return int(bool(results["failures"]) or seconds[-1] > 1 or mutations.peak_mib() > 300)


if __name__ == "__main__":
    sys.exit(main())
