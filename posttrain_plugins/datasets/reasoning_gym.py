"""`reasoning_gym`: problems of a procedural task that comes with its own verifier, by the library of that name.

Paper: Stojanovski et al., 2025, Reasoning Gym (https://huggingface.co/papers/2505.24760). The reward `reasoning_gym`
judges the answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from posttrain_plugins.errors import InputError

if TYPE_CHECKING:
    import datasets

__all__ = ["ReasoningGym"]


@dataclass
class ReasoningGym:
    """Generate problems of one task, as conversational prompts.

    Args:
        task: its name in the library, such as `leg_counting`; an unknown one is answered by all names.
        size: number of rows.
        seed: what is drawn; take another one for held-out problems.
        config: the task's own settings.
        instruction: what is added to each question; says where the reward looks for the answer.

    Raises:
        InputError: there is no such task or setting, or reasoning-gym is not installed.

    Returns:
        A data set with `prompt`, `solution` (an answer, often one of several right ones) and `entry`, JSON that the
        reward reads.
    """

    columns: ClassVar[tuple[str, ...]] = ("prompt", "solution", "entry")

    example_params: ClassVar[dict[str, Any]] = {"task": "leg_counting", "size": 8}

    task: str
    size: int = 500
    seed: int = 42
    config: dict[str, Any] = field(default_factory=dict)
    instruction: str = "Think step by step, then give the answer alone between <answer> and </answer>."

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"reasoning_gym cannot use size: {self.size}, expected 1 or more")

    def __call__(self) -> datasets.Dataset:
        from datasets import Dataset

        return Dataset.from_list([self._row(entry) for entry in self._entries()])

    def _entries(self) -> list[dict[str, Any]]:
        try:
            from reasoning_gym import create_dataset
            from reasoning_gym.factory import DATASETS
        except ImportError as cause:
            hint = "pip install 'posttrain-plugins[reasoning-gym]'"
            raise InputError("reasoning_gym needs reasoning-gym, which is not installed", hint=hint) from cause
        # Told here with all names, since the library's own error names none.
        if self.task not in DATASETS:
            raise InputError(f"reasoning_gym has no task '{self.task}'", hint=f"it has {', '.join(sorted(DATASETS))}")
        # The library checks a task's config by assertions and by its dataclasses' signatures.
        try:
            made = create_dataset(self.task, size=self.size, seed=self.seed, **self.config)
            return [made[i] for i in range(self.size)]
        except (AssertionError, TypeError, ValueError) as cause:
            raise InputError(f"reasoning_gym's task '{self.task}' refuses its config: {cause}") from cause

    def _row(self, entry: dict[str, Any]) -> dict[str, Any]:
        question = f"{entry['question'].strip()}\n\n{self.instruction}".strip()
        prompt = [{"role": "user", "content": question}]
        # The verifier takes the full entry; as JSON, since entries of one task need not have the same nested fields,
        # which a table of Arrow columns would ask for.
        return {"prompt": prompt, "solution": entry["answer"], "entry": json.dumps(entry, default=str)}
