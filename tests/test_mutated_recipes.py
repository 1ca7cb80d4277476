"""No recipe, however wrong, ends in a traceback, takes seconds, or takes the memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = "model: {model_name_or_path: org/name}\n"
STAGES = "stages:\n  s: {use: sft, model: base, dataset: d}\n"
HOSTILE = {
    "an integer of 5,000 digits": ("seed: " + "1" * 5000 + "\n" + HEAD + STAGES, "a number of 5,000 digits"),
    "a path of 5,000 characters": (f"{HEAD}datasets: {{d: {{path: {'x' * 5000}}}}}\n{STAGES}", "d"),
    "a path with NUL": (f'{HEAD}datasets: {{d: {{path: "a\\0b.jsonl"}}}}\n{STAGES}', "NUL"),
    "a model's path with NUL": (
        'model: {model_name_or_path: "./a\\0b"}\nstages: {s: {use: sft, model: base}}\n',
        "NUL",
    ),
    "a path of long names": (f"{HEAD}datasets: {{d: {{path: ./{'x' * 300}.jsonl}}}}\n{STAGES}", "d"),
    "aliases of aliases": (
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)) + HEAD + STAGES,
        "alias",
    ),
    "merged aliases of aliases": (
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{l: *a{i - 1}, r: *a{i - 1}}}\n" for i in range(1, 40))
        + HEAD
        + STAGES,
        "alias",
    ),
    "an alias that contains itself": (f"a: &a [*a]\n{HEAD}{STAGES}", "alias"),
    "a loop of 100,000 turns": (
        f"{HEAD}stages: {{l: {{repeat: 100000, init: base, stages: {{s: {{use: sft, model: base}}}}}}}}\n",
        "repeat",
    ),
    "/dev/zero as data": (f"{HEAD}datasets: {{d: {{path: /dev/zero}}}}\n{STAGES}", "/dev/zero"),
    "/dev/zero as a parent": (f"extends: /dev/zero\n{HEAD}{STAGES}", "/dev/zero"),
    "a FIFO as data": (f"{HEAD}datasets: {{d: {{path: ./fifo.jsonl}}}}\n{STAGES}", "fifo.jsonl"),
    "a FIFO as a plugin": (f"{HEAD}rewards: {{r: ./fifo.py:f}}\n{STAGES}", "fifo.py"),
    "250,000 data sets": (
        HEAD + "datasets:\n" + "".join(f"  d{i}: {{path: x}}\n" for i in range(250_000)) + STAGES,
        "MiB",
    ),
    "a thousand levels": ("a: " + "[" * 3000 + "]" * 3000 + "\n" + HEAD + STAGES, "deep"),
    "a thousand levels of mappings": ("a: " + "{b: " * 3000 + "1" + "}" * 3000 + "\n" + HEAD + STAGES, "deep"),
}

RUN = """
import json, os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import mutations
folder = Path({folder!r})
os.mkfifo(folder / "fifo.py")
found = []
for name, text in json.loads(sys.stdin.read()):
    outcome = mutations.tried_text(text, 0, folder)
    found.append((name, outcome.seconds, outcome.failure, outcome.message))
print(json.dumps([found, mutations.peak_mib()]))
"""


def test_hostile_recipes_are_told_in_a_second(tmp_path: Path) -> None:
    code = RUN.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    texts = json.dumps([(name, text) for name, (text, _) in HOSTILE.items()])
    done = subprocess.run([sys.executable, "-c", code], input=texts, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found, peak = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(HOSTILE)
    assert {name: failure for name, _, failure, _ in found if failure} == {}
    assert {name: message for name, _, _, message in found if HOSTILE[name][1] not in message} == {}
    # A limit of order, not a race: what it guards against takes minutes, or never ends.
    assert {name: seconds for name, seconds, _, _ in found if seconds > 10} == {}
    assert peak < 300


@pytest.mark.parametrize("start", range(0, 300, 100))
def test_a_mutated_recipe_gives_an_error_of_ours_or_none(start: int, tmp_path: Path) -> None:
    import mutations

    outcomes = [mutations.tried(seed, tmp_path) for seed in range(start, start + 100)]
    assert {outcome.seed: outcome.failure for outcome in outcomes if outcome.failure} == {}
    assert sum(outcome.message != "" for outcome in outcomes) > 50, "the changes must do harm, or nothing is tried"
