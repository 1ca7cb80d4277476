"""`digit_chain_steps`: the tiny world's own checker as a reward, for the whole completion or for every step.

No paper; process supervision as in https://huggingface.co/papers/2305.20050, with a program in the labeller's place. It
knows the right answer, so it is an oracle at test time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import last_user_text, to_text
from posttrain_plugins.tiny_world.checker import Check, check, find_expression
from posttrain_plugins.types import Prompt

__all__ = ["DigitChainSteps"]


@dataclass
class DigitChainSteps:
    """Check answer and steps; the problem is read from the prompt, so no column is needed.

    Args:
        mode: `strict` gives 1.0 for the right layout, answer and every step, else 0.0; `fraction` the share of right
            steps, where missing steps and steps too many count as wrong; `answer` looks at the answer alone.

    Raises:
        InputError: for another mode.

    Example:
        >>> wrong = "<think>3|7=4;4>2=2</think><answer>2</answer>"
        >>> DigitChainSteps()(prompts=["3|7>2"], completions=[wrong])
        [0.0]
        >>> DigitChainSteps(mode="fraction")(prompts=["3|7>2"], completions=[wrong])
        [0.5]
        >>> DigitChainSteps().step_scores(prompts=["3|7>2"], completions=[wrong])
        [[1.0, 0.0]]
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ()
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt": "3|7>2", "completion": "<think>3|7=4;4>2=4</think><answer>4</answer>", "score": 1.0},
        {"prompt": "3|7>2", "completion": "<think>3|7=7;7>2=7</think><answer>7</answer>", "score": 0.0},
        {"prompt": "3|7>2", "completion": "<answer>4</answer>", "score": 0.0},
        {"prompt": "Hello", "completion": "<answer>4</answer>", "score": None},
    )

    mode: Literal["strict", "fraction", "answer"] = "strict"

    def __post_init__(self) -> None:
        if self.mode not in ("strict", "fraction", "answer"):
            message = f"digit_chain_steps cannot use mode: {self.mode!r}, expected strict, fraction or answer"
            raise InputError(message, hint="change mode")

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores in [0, 1]; None where the prompt holds no problem.

        Args:
            completions: B completions, in the chat or the raw layout.
        """
        scores: list[float | None] = []
        for found in _check_all(prompts, completions):
            if found is None:
                scores.append(None)
            elif self.mode == "fraction":
                scores.append(found.fraction)
            else:
                scores.append(float(found.strict if self.mode == "strict" else found.answer_correct))
        return scores

    def step_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any
    ) -> list[list[float]]:
        """Return B lists: 1.0 or 0.0 for each step between semicolons, empty where there is no step or no problem."""
        # Each by what stands in it, whatever the answer: a chain that goes wrong at its third step keeps two.
        checks = _check_all(prompts, completions)
        return [[] if found is None else [float(is_right) for is_right in found.steps] for found in checks]


def _check_all(prompts: Sequence[Prompt], completions: Sequence[Prompt]) -> list[Check | None]:
    checks: list[Check | None] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        # The last message of the user alone: a prompt with examples holds their problems, too.
        expression = find_expression(last_user_text(prompt))
        checks.append(None if expression is None else check(expression, to_text(completion)))
    return checks
