"""What every benchmark shares: the results file with commit, date, hardware and versions, and interval arithmetic."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "RESULTS",
    "commit",
    "cores",
    "cpu",
    "earlier",
    "environment",
    "is_ancestor",
    "median_interval",
    "text_of",
    "write",
]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("posttrain-plugins", "torch", "trl", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")
DRAWS = 10_000
NUMBERS = re.compile(r"\[\n\s+(-?\d[^\"\[\]{}]*?)\n\s+\]")


def write(name: str, results: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes `<folder>/<name>.json`, whole or not at all: the results and the environment they were measured in."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    content = {"name": name, "environment": environment(), "results": results}
    beside = file.with_suffix(".json.new")
    beside.write_text(text_of(content), encoding="utf-8")
    beside.replace(file)  # whoever is stopped here has the old file or the new one
    return file


def text_of(content: Mapping[str, Any]) -> str:
    """A results file's text; a list of numbers is one line, since hundreds of problems have one each."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    return NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def earlier(name: str, overrides: list[str], folder: Path = RESULTS) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results that the file holds, empty where there is none, and what they were made on: commit, load, processor.

    Raises:
        SystemExit: they were made with other overrides.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        return {}, {}
    found = json.loads(file.read_text(encoding="utf-8"))
    if found["results"]["overrides"] != overrides:
        raise SystemExit(f"error: {file.name} has overrides {found['results']['overrides']}, not {overrides}")
    made_on = {name: found["environment"][name] for name in ("commit", "load_average") if name in found["environment"]}
    return found["results"], {**made_on, "cpu": found["environment"]["hardware"]["cpu"]}


def environment() -> dict[str, Any]:
    """Commit, date, hardware and versions."""
    return {
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": cpu(),
            "cores": cores(),
            "threads": _threads(),
            "memory_gib": _memory_gib(),
            "gpu": _gpu(),
        },
        "load_average": round(os.getloadavg()[0], 2),
        "os": platform.system(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def median_interval(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """The median with its 95 % percentile-bootstrap interval.

    Example:
        >>> median_interval([1.0, 1.0, 1.0])
        {'median': 1.0, 'low': 1.0, 'high': 1.0}
    """
    known = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    draws = np.median(known[rng.integers(len(known), size=(DRAWS, len(known)))], axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"median": statistics.median(values), "low": float(low), "high": float(high)}


def commit() -> str:
    """The commit, with `-dirty` where the tree differs from it (results files do not count)."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results", ":!README.md")
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def is_ancestor(earlier: str, later: str) -> bool:
    """Tell whether a commit is another, or lies before it; False where this checkout lacks one."""
    command = ["git", "merge-base", "--is-ancestor", earlier, later]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _memory_gib() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
