"""The UK AI Security Institute's Inspect against `posttrain serve` and an exported folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from client_exam import MAX_TOKENS, Exam, needs, only

pytestmark = [pytest.mark.clients, needs("POSTTRAIN_INSPECT")]

TASK = """
import json

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.scorer import accuracy, pattern
from inspect_ai.solver import generate


@task
def exam(file: str) -> Task:
    rows = [json.loads(line) for line in open(file, encoding="utf-8")]
    samples = [Sample(id=i, input=row["question"], target=row["solution"]) for i, row in enumerate(rows)]
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=pattern(r"([0-9]+)[^0-9]*$"))
"""


@pytest.fixture
def inspect(exam: Exam, tmp_path: Path, run_client: Callable[..., str]) -> Callable[..., Any]:
    """Runs the exam with a model of Inspect's; gives the log."""
    (tmp_path / "exam.py").write_text(TASK, encoding="utf-8")

    def run(model: str, *options: str, **environment: str) -> Any:
        limits = ["--temperature", "0", "--max-tokens", str(MAX_TOKENS), "--seed", "1"]
        log = ["--log-format", "json", "--log-dir", str(tmp_path / "logs"), "--display", "plain"]
        data = ["-T", f"file={exam.file}"]
        run_client(
            "POSTTRAIN_INSPECT",
            *("-m", "inspect_ai", "eval", "exam.py", "--model", model, *options, *data, *limits, *log),
            **environment,
        )
        return json.loads(only("*.json", tmp_path / "logs").read_text(encoding="utf-8"))

    return run


def right_in(log: Any) -> list[bool]:
    assert log["status"] == "success", log.get("error")
    samples = sorted(log["samples"], key=lambda sample: int(sample["id"]))
    return [sample["scores"]["pattern"]["value"] == "C" for sample in samples]


@pytest.mark.parametrize("door", ["exported", "served"])
def test_answers_are_as_right_as_evaluate_says(exam: Exam, served: str, inspect: Any, door: str) -> None:
    if door == "exported":
        log = inspect(
            "hf/local", *("-M", f"model_path={exam.exported}"), *("-M", "device=cpu", "-M", "do_sample=false")
        )
    else:
        log = inspect("openai-api/posttrain/tuned", POSTTRAIN_BASE_URL=f"{served}/v1", POSTTRAIN_API_KEY="none")
    assert right_in(log) == exam.right
    (told,) = [metric["value"] for score in log["results"]["scores"] for metric in [score["metrics"]["accuracy"]]]
    assert told == pytest.approx(exam.accuracy)
    assert sum(usage["output_tokens"] for usage in log["stats"]["model_usage"].values()) > 0


def test_a_strategy_answers_for_a_client(exam: Exam, served: str, inspect: Any) -> None:
    """What stands behind `NAME@` is a model like any to others; the vote of one greedy answer is that answer."""
    spec = "openai-api/posttrain/tuned@self_consistency(n=1)"
    log = inspect(spec, POSTTRAIN_BASE_URL=f"{served}/v1", POSTTRAIN_API_KEY="none")
    assert right_in(log) == exam.right
