"""What the light commands take over `python -c "import typer, rich, yaml"`, in interleaved pairs.

Each pair starts two processes, the command and the import alone; which of the two goes first alternates. Taken are the
time on the clock, and user and system time, which a busy machine disturbs less. Both sides have their bytecode written.
Where a command's time goes is what `python -X importtime` says of each group of modules; what is left is the start of
Python and the command's work. The option slows imports down, so these are shares, and not seconds to add up.

    python benchmarks/startup.py --pairs 15
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import record

COMMANDS = {"--help": ["--help"], "plugins list": ["plugins", "list"], "validate": ["validate", "quickstart"]}
BASE = ["-c", "import typer, rich, yaml"]
GROUPS = {
    "typer, click, rich": ("typer", "click", "rich", "shellingham"),
    "yaml": ("yaml", "_yaml"),
    "recipe, plugins": ("posttrain_plugins.recipe", "posttrain_plugins.plugins", "posttrain_plugins.types"),
    "the rest of posttrain_plugins": ("posttrain_plugins",),
}
"""Name -> beginnings of module names, the first that fits; what fits none is Python's own library."""


def main() -> int:
    options = _options()
    print(f"load average {os.getloadavg()[0]:.2f}; quiet is below 0.5", file=sys.stderr)
    results = {name: compare(name, words, options.pairs) for name, words in COMMANDS.items()}
    print(record.write("startup", {"pairs": options.pairs, "base": " ".join(BASE), "commands": results}, options.out))
    return 0


def compare(name: str, words: list[str], pairs: int) -> dict[str, Any]:
    """Return the ratios command / import with their intervals, the times in seconds, and where they go."""
    sides = {"command": ["-m", "posttrain_plugins", *words], "base": BASE}
    taken: list[dict[str, dict[str, float]]] = []
    for number in range(pairs + 1):  # the first is the warm-up
        order = ["command", "base"] if number % 2 else ["base", "command"]
        taken.append({side: timed(sides[side]) for side in order})
    taken = taken[1:]
    ratios = {
        what: record.median_interval([pair["command"][what] / pair["base"][what] for pair in taken])
        for what in ("wall", "cpu")
    }
    print(
        f"{name}: {ratios['wall']['median']:.2f} x on the clock, {ratios['cpu']['median']:.2f} x CPU", file=sys.stderr
    )
    return {"ratio": ratios, "times_s": taken, "share": shares(sides["command"])}


def timed(words: list[str], **options: Any) -> dict[str, float]:
    """Run Python, with options of `subprocess.run`, and return the seconds that it took, on the clock and of CPU."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    options = {"env": _environment(), "stdout": subprocess.DEVNULL, **options}
    subprocess.run([sys.executable, *words], check=True, **options)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"wall": wall, "cpu": after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime}


def shares(words: list[str]) -> dict[str, float]:
    """Return group of modules -> its share of a command's time, and `start and work`, what is no import."""
    began = time.perf_counter()
    command = [sys.executable, "-X", "importtime", *words]
    told = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True).stderr
    whole_us = (time.perf_counter() - began) * 1e6
    found: Counter[str] = Counter()
    for own_us, module in re.findall(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)", told, re.MULTILINE):
        names = (group for group, heads in GROUPS.items() if any(f"{module}.".startswith(f"{h}.") for h in heads))
        found[next(names, "Python's library")] += int(own_us)
    return {name: us / whole_us for name, us in found.items()} | {"start and work": 1 - sum(found.values()) / whole_us}


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs of each command")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of startup.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
