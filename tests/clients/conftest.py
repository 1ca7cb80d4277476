"""A small model and a real one, trained, served and exported, and what `posttrain evaluate` says, for others' programs.

They stand in environments of their own, which `make clients` makes: `POSTTRAIN_LM_EVAL` and `POSTTRAIN_INSPECT` name
the Pythons. Without them these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client_exam import MAX_TOKENS, RECIPE, SUBJECTS, Exam, problems

import posttrain_plugins as pp

PATIENCE_S = 540  # of a client's whole run, on a busy machine


@pytest.fixture(scope="session", params=["tiny", pytest.param("smollm2", marks=pytest.mark.real)])
def exam(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Exam:
    subject = SUBJECTS[request.param]
    folder = tmp_path_factory.mktemp("clients")
    rows = list(problems(20, seed=1))
    demos = [
        {"prompt": r["prompt"], "completion": [{"role": "assistant", "content": r["last"]}]} for r in problems(600, 0)
    ]
    for name, made in (("exam", rows), ("demos", demos)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    recipe = textwrap.dedent(RECIPE)
    values = {
        "model": subject.model,
        "tiny": tiny_model,
        "steps": subject.steps,
        "rate": subject.learning_rate,
        "demos": folder / "demos.jsonl",
        "exam": folder / "exam.jsonl",
        "exported": folder / "exported",
        "max_tokens": MAX_TOKENS,
    }
    for key, value in values.items():
        recipe = recipe.replace("{" + key + "}", str(value))
    (folder / "clients.yaml").write_text(recipe, encoding="utf-8")
    run = pp.run(folder / "clients.yaml", runs_dir=folder / "runs")
    samples = [json.loads(line) for line in (run["eval"].folder / "samples.jsonl").read_text().splitlines()]
    right = [row["rewards"]["right"] == 1.0 for row in samples]
    assert len(right) == len(rows)
    assert 0 < sum(right) < len(right)
    return Exam(folder / "exam.jsonl", folder / "runs", folder / "exported", right)


@pytest.fixture(scope="session")
def served(exam: Exam) -> Iterator[str]:
    """Start `posttrain serve` of the adapter as `tuned`; gives the server's address."""
    command = [sys.executable, "-m", "posttrain_plugins", "serve", "tuned=clients:tuned", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--runs-dir", str(exam.runs)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    try:
        told = ""
        while not (found := re.search(r"at (http://\S+)/v1", told)):
            line = process.stderr.readline()
            assert line, told
            told += line
        yield found[1]
    finally:
        process.terminate()
        process.wait(60)
        process.stderr.close()


@pytest.fixture
def run_client(tmp_path: Path) -> Callable[..., str]:
    """Runs a module with the Python that an environment variable names; gives what it wrote."""

    def run(variable: str, *arguments: str, **environment: str) -> str:
        # nothing of ours may be importable there, and no cache or setting of the user's counts
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "INSPECT_", "OPENAI_"))
        }
        own = {"HF_HOME": str(tmp_path / "hf"), "XDG_DATA_HOME": str(tmp_path / "data"), "COLUMNS": "200"}
        done = subprocess.run(
            [os.environ[variable], *arguments],
            cwd=tmp_path,
            env={**kept, **own, **environment},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    return run
