"""Rollouts of a policy that is being trained, made by a strategy, for TRL's `rollout_func` hook.

Each completion that a trainer asks for is the answer of one run of the strategy, and the runs of a batch share waves.
So a group of G rollouts is G answers of best-of-4, or of a tree search.

**What this does to the gradient.** The trainer takes completions for draws of the policy itself. A plain prompt
strategy draws from the policy after another prompt; a selecting strategy (best of n, search) draws from another
distribution, whose probabilities nobody knows, so importance weights cannot be had. What is right all the same: the
ratio of new to old policy within the steps of one generation (PPO's and GRPO's clip), since both log-probabilities are
taken on the text as it stands. What is biased: the expectation, which is over the strategy's answers. That is expert
iteration with advantages (Anthony et al., 2017, https://huggingface.co/papers/1705.08439; best of n as the behaviour
policy in BOND, Sessa et al., 2024, https://huggingface.co/papers/2407.14622), and it lacks what the policy does wrong
without search. Keep some stages on plain draws.

1. The strategy's text is tokenised again; it is the text, not the drawn tokens, that is trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain_plugins.inference.engine import solve
from posttrain_plugins.inference.transformers_backend import TransformersBackend, render
from posttrain_plugins.types import Problem, Prompt, ResolvedStrategy, Result, SamplingParams

__all__ = ["StrategyRollouts"]


@dataclass
class StrategyRollouts:
    """TRL's `rollout_func(prompts, trainer)`.

    Args:
        resolved: the strategy, with the rewards that it names.
        params: what it starts from.
        rows: the data set; scorers are given the other columns of a prompt's row.
        seed: of the run.
    """

    resolved: ResolvedStrategy
    params: SamplingParams
    rows: Sequence[Mapping[str, Any]]
    seed: int = 0
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._row_of = {_name(row["prompt"]): row for row in self.rows}

    def __call__(self, prompts: list[Prompt], trainer: Any) -> dict[str, Any]:
        """One answer for each prompt, equal ones among them.

        Returns:
            `prompt_ids` and `completion_ids`, B lists of tokens; `logprobs` is None: nobody knows the strategy's.
        """
        self.calls += 1
        model = trainer.accelerator.unwrap_model(trainer.model)
        is_training = model.training
        place = f"{trainer.state.global_step}:{self.calls}:{trainer.accelerator.process_index}"
        backend = TransformersBackend(model, trainer.processing_class, identity=place)
        try:
            results = self._solve(prompts, backend)
        finally:
            model.train(is_training)
        tokenizer = trainer.processing_class
        return {
            "prompt_ids": [render(tokenizer, prompt) for prompt in prompts],
            "completion_ids": [self._tokens(tokenizer, result) for result in results],
            "logprobs": None,
        }

    def _solve(self, prompts: Sequence[Prompt], backend: TransformersBackend) -> list[Result]:
        rows = [self._row_of.get(_name(prompt), {}) for prompt in prompts]
        names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "completion"))
        return solve(
            self.resolved.strategy,
            [Problem(prompt, self.params, id=str(i)) for i, prompt in enumerate(prompts)],
            backend=backend,
            scorers=self.resolved.scorers,
            columns={name: [row.get(name) for row in rows] for name in names},
            seed=self.seed,
        )

    def _tokens(self, tokenizer: Any, result: Result) -> list[int]:
        """The answer's tokens, with EOS where it is whole; an empty answer is EOS alone."""
        ids = list(tokenizer(result.text, add_special_tokens=False)["input_ids"])[: self.params.max_tokens]
        reasons = {candidate.text: candidate.finish_reason for candidate in result.candidates}
        is_whole = reasons.get(result.text, "stop") == "stop" and len(ids) < self.params.max_tokens
        return [*ids, tokenizer.eos_token_id] if is_whole or not ids else ids


def _name(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True, default=str)
