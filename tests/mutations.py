"""Recipes with something wrong: packaged ones, changed by a seed, as text or as values. `benchmarks/mutated_recipes.py`
tries ten thousand; `tests/test_mutated_recipes.py` three hundred."""

from __future__ import annotations

import copy
import os
import random
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from posttrain_plugins import api
from posttrain_plugins.errors import PosttrainError

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))

ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1e308, float("nan"), float("inf"), "", " ", "\x00", "a\x00b", "x" * 5000, "/" * 5000,
    "../" * 3000 + "x", "\U0001f600", "\ud7ff", "${prev}", "${nothing}", "base", "self_consistency(n=8",
    "greedy(", "a(b)(c)", "best_of_n(n=[1,2)", [], {}, [[]], [None], {"use": None}, {"use": "no_such"},
    {"use": []}, {"use": "sft"}, {"": ""}, {"a": {"b": {"c": []}}}, "1" * 5000, 10**400, -(10**30),
    "2024-01-01", "!!python/name:os.system", "./nothing.py:f", "os:system", ":", "a:b:c", "/dev/zero",
    "/dev/random", "/dev/stdin", "/proc/self/mem", "/", ".", "~", "~nobody/x", "http://", "http://[::1",
    "s3://b/k", "C:\\x", "nul\x00.jsonl", "*.jsonl", "a" * 255 + ".jsonl", ["greedy", ["greedy"]], 1, 100_000,
    "1e5", ">=0.8", "<", "%s%n",
)  # fmt: skip

SNIPPETS = (
    "\n", " ", "\t", ":", ": ", "- ", "{", "}", "[", "]", "&a ", "*a", "<<: *a\n", "!!str ", "!!set ", "'", '"',
    "|", ">", "#", "%", "---\n", "...\n", "? ", "\\", "\x00", "\ufeff", "\u2028", "0x", "1_000", "${prev}",
    "&b [*b]", "\x85", "@", "`",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one recipe: its seed, the seconds, an exception that was no error of ours, and our message."""

    seed: int
    seconds: float
    failure: str | None
    message: str


def mutated(seed: int) -> str:
    """Return a recipe's text with one to four changes."""
    rng = random.Random(seed)
    text = rng.choice(RECIPES).read_text(encoding="utf-8")
    if rng.random() < 0.5:
        for _ in range(rng.randrange(1, 5)):
            text = _changed_text(text, rng)
        return text
    values = yaml.safe_load(text.replace("${prev}", "PREV"))
    for _ in range(rng.randrange(1, 5)):
        _change_values(values, rng)
    return yaml.dump(values, allow_unicode=True, sort_keys=False).replace("PREV", "${prev}")


def _changed_text(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) + 1)
    to = min(len(text), at + rng.choice((1, 2, 10, 200)))
    lines = text.splitlines(keepends=True) or [""]
    line = rng.randrange(len(lines))
    return rng.choice((
        text[:at] + rng.choice(SNIPPETS) + text[at:],
        text[:at] + text[to:],
        text[:at],
        text[:at] + text[at:to] * 3 + text[to:],
        "".join([*lines[:line], " " * rng.randrange(1, 5) + lines[line], *lines[line + 1 :]]),
        "".join([*lines[:line], lines[line].lstrip(), *lines[line + 1 :]]),
        "".join([*lines[:line], *lines[line + 1 :]]),
    ))  # fmt: skip


def _change_values(values: Any, rng: random.Random) -> None:
    places = list(_places(values))
    if not places:
        return
    holder, key = rng.choice(places)
    other_holder, other_key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        holder[key] = copy.deepcopy(rng.choice(ODD))
    elif kind == 1:
        del holder[key]
    elif kind == 2:  # a value from elsewhere; a copy, so that nothing contains itself
        holder[key] = copy.deepcopy(other_holder[other_key])
    elif kind == 3 and isinstance(holder, dict):
        holder[str(rng.choice(("use", "stages", "args", "model", "x", "", "base", "a.b", "loop", "on", "<<")))] = (
            holder.pop(key)
        )  # a key of another meaning
    elif kind == 4 and isinstance(holder, dict):
        holder[f"{key}{rng.choice('xs_ ')}"] = copy.deepcopy(rng.choice(ODD))
    else:
        holder[key] = [copy.deepcopy(holder[key]) for _ in range(rng.randrange(1, 4))]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def tried(seed: int, folder: Path) -> Outcome:
    """Validate the recipe of a seed; beside it lie a FIFO, an empty file and a folder, which some of them name."""
    return tried_text(mutated(seed), seed, folder)


def tried_text(text: str, seed: int, folder: Path) -> Outcome:
    if not (folder / RECIPES[0].name).exists():  # what they extend and name lies beside them
        shutil.copytree(RECIPES[0].parent, folder, dirs_exist_ok=True)
    file = folder / "mutated.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    if not (folder / "fifo.jsonl").exists():
        os.mkfifo(folder / "fifo.jsonl")
    began = time.perf_counter()
    failure, message = None, ""
    try:
        api.validate(file)
    except PosttrainError as error:
        message = str(error)
        failure = None if message.strip() else "an error without a message"
    except Exception as error:  # what a user would see as a traceback
        failure = f"{type(error).__name__}: {str(error)[:200]}"
    return Outcome(seed, time.perf_counter() - began, failure, message)


def peak_mib() -> float:
    """Return the most memory that this program has had; `getrusage` would count the process that it was forked from."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
