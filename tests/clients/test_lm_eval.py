"""EleutherAI's lm-eval against `posttrain serve` and an exported folder: the figures are `posttrain evaluate`'s."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from client_exam import MAX_TOKENS, Exam, needs, only, rows_of

pytestmark = [pytest.mark.clients, needs("POSTTRAIN_LM_EVAL")]

ANSWERS = {
    "task": "exam_answers",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{solution}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": MAX_TOKENS, "do_sample": False},
    "filter_list": [
        {
            "name": "last_number",
            "filter": [
                {"function": "regex", "regex_pattern": "([0-9]+)", "group_select": -1},
                {"function": "take_first"},
            ],
        }
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CHOICES = {
    "task": "exam_choices",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": "label",
    "doc_to_choice": "{{choices}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def lm_eval(exam: Exam, tmp_path: Path, run_client: Callable[..., str]) -> Callable[..., list[Mapping[str, Any]]]:
    """Runs a task with a model of lm-eval's; gives its samples in the order of the problems."""
    for task in (ANSWERS, CHOICES):
        data = {
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(exam.file)}},
            "test_split": "test",
        }
        (tmp_path / f"{task['task']}.yaml").write_text(yaml.safe_dump({**task, **data}), encoding="utf-8")

    def run(task: Mapping[str, Any], model: str, arguments: str, *more: str) -> list[Mapping[str, Any]]:
        out = tmp_path / "out"
        options = ["--tasks", task["task"], "--include_path", str(tmp_path), "--apply_chat_template"]
        options += ["--log_samples", "--output_path", str(out), "--device", "cpu", *more]
        run_client("POSTTRAIN_LM_EVAL", "-m", "lm_eval", "run", "--model", model, "--model_args", arguments, *options)
        return sorted(rows_of(only("samples_*.jsonl", out)), key=lambda row: int(row["doc_id"]))

    return run


def doors(exam: Exam, url: str) -> dict[str, tuple[str, ...]]:
    """Name -> lm-eval's model, its arguments, and further options."""
    local = f"tokenizer={exam.exported},model=tuned,base_url={url}/v1/completions"
    return {
        "exported": ("hf", f"pretrained={exam.exported},dtype=float32"),
        "chat": ("local-chat-completions", f"model=tuned,base_url={url}/v1/chat/completions,num_concurrent=4"),
        "tokens": ("local-completions", f"{local},tokenizer_backend=huggingface,num_concurrent=4"),
        "batches": ("local-completions", f"{local},tokenizer_backend=huggingface", "--batch_size", "5"),
    }


@pytest.mark.parametrize("door", ["exported", "chat", "tokens", "batches"])
def test_answers_are_as_right_as_evaluate_says(exam: Exam, served: str, lm_eval: Any, door: str) -> None:
    rows = lm_eval(ANSWERS, *doors(exam, served)[door])
    assert [row["exact_match"] == 1 for row in rows] == exam.right


def test_likelihoods_are_those_of_the_exported_model(exam: Exam, served: str, lm_eval: Any, tmp_path: Path) -> None:
    """Choices are told apart by their likelihood, for which the server is asked to echo the prompt."""
    found = {}
    for door in ("exported", "batches"):
        rows = lm_eval(CHOICES, *doors(exam, served)[door])
        found[door] = rows
        only("samples_*.jsonl", tmp_path / "out").rename(tmp_path / f"{door}.done")
    assert [row["acc"] for row in found["batches"]] == [row["acc"] for row in found["exported"]]
    assert 0 < sum(row["acc"] for row in found["exported"]) < len(exam.right)
    for mine, theirs in zip(found["batches"], found["exported"], strict=True):
        for one, other in zip(mine["filtered_resps"], theirs["filtered_resps"], strict=True):
            assert float(one[0]) == pytest.approx(float(other[0]), abs=1e-3)
            assert str(one[1]) == str(other[1])
