"""Rollouts of a policy that is being trained, made by a strategy, for TRL's `rollout_func` hook.

Each completion that a trainer asks for is the answer of one run of the strategy, and the runs of a batch share waves.
So a group of G rollouts is G answers of best-of-4, or of a tree search.

**What this does to the gradient.** The trainer takes completions for draws of the policy itself. A plain prompt
strategy draws from the policy after another prompt; a selecting strategy (best of n, search) draws from another
distribution, whose probabilities nobody knows. What is right all the same: the ratio of new to old policy within the
steps of one generation (PPO's and GRPO's clip), since the trainer takes both log-probabilities, on the text as it
stands. What is biased: the expectation, which is over the strategy's answers and lacks what the policy does wrong
without search. That is expert iteration with advantages (Anthony et al., 2017,
https://huggingface.co/papers/1705.08439; best of n as the behaviour policy in BOND, Sessa et al., 2024,
https://huggingface.co/papers/2407.14622). Keep some stages on plain draws.

**TRL's importance sampling correction** (`vllm_importance_sampling_correction`) weighs a token by pi_old / pi_sampler,
with the sampler's own `sampling_per_token_logps`. It mends the small difference between an engine's arithmetic and the
trainer's, for draws of the same distribution; it cannot mend a selection. So no log-probabilities are handed over
(`logprobs: None`, as TRL's own rollouts in process), nothing is weighed, and `use_vllm` is refused beside a strategy.

1. The strategy's text is tokenised again; it is the text, not the drawn tokens, that is trained on.
2. Where the strategy has no answer (it raised, or all that it drew failed), the policy's own plain draw takes its
   place, which is a rollout like any other; the trainer's log counts these as `rollouts/missing`.
3. A strategy with tools that is one conversation (`react` by its grammar) gives the whole of it, asked as the strategy
   asks, with the tools' answers masked (`trainers/trajectory.py`); rewards judge the strategy's answer, as `evaluate`.
4. Refused: other strategies with tools, whose answers the policy did not write; ReMax, whose baseline is greedy;
   sharded weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from posttrain_plugins.backends.transformers.backend import TransformersBackend, render
from posttrain_plugins.engine.solve import sample, solve
from posttrain_plugins.engine.trace import unanswered
from posttrain_plugins.errors import InputError, StageFailed
from posttrain_plugins.text import is_conversational
from posttrain_plugins.trainers.compat import add_metric
from posttrain_plugins.trainers.saved_rollouts import ANSWER
from posttrain_plugins.trainers.trajectory import trajectory
from posttrain_plugins.types import Issue, Problem, Prompt, ResolvedStrategy, Result, SamplingParams, StageContext

__all__ = ["StrategyRollouts", "hook", "issues"]

SAMPLERS = ("use_vllm", "use_transformers_continuous_batching")


def issues(args: Any) -> Iterator[Issue]:
    """Yield fields of a trainer's config that have no meaning beside a strategy."""
    for name in SAMPLERS:
        if getattr(args, name, False):
            found = f"strategy makes the rollouts in process, but args has {name}"
            yield Issue(found, f"remove {name}", f"args.{name}")
    if getattr(args, "advantage_estimator", None) == "remax":
        found = "remax compares with a greedy completion, and a strategy would take its place too"
        yield Issue(found, "use another estimator, or no strategy", "args.advantage_estimator")


def hook(context: StageContext) -> dict[str, Any]:
    """Return the argument `rollout_func` for a stage's trainer; nothing where the stage has no strategy.

    Raises:
        InputError: the strategy has tools, and is not one conversation; or it is one, and the prompts are plain text.
    """
    resolved: ResolvedStrategy | None = context.inputs.get("strategy")
    if resolved is None:
        return {}
    is_talk = bool(getattr(resolved.strategy, "tools", None))
    if is_talk and not getattr(resolved.strategy, "is_one_conversation", False):
        message = f"strategy {resolved.label} has tools, whose answers would be trained on as if the policy wrote them"
        raise InputError(message, hint="react in mode: text, or tools: [...] on the stage in place of the strategy")
    if is_talk and not is_conversational(context.inputs["dataset"][0]["prompt"]):
        message = (
            f"strategy {resolved.label} in stage '{context.stage}' needs prompts that are messages, found plain text"
        )
        raise InputError(message, hint="system_prompt: TEXT on the data set makes them so")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # who names a strategy knows what it is
    sets = [context.inputs[name] for name in ("dataset", "eval_dataset") if context.inputs.get(name) is not None]
    rows = [dict(row) for dataset in sets for row in dataset]
    made: dict[str, Any] = {"rollout_func": StrategyRollouts(resolved, rows, context.seed, is_talk)}
    if is_talk:
        made["reward_funcs"] = [of_answers(reward.func) for reward in context.inputs["rewards"]]
    return made


def of_answers(reward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the reward, given the strategy's answers where the trainer gives it whole conversations as text."""

    @wraps(reward)
    def judge(*, completions: Sequence[Any], **columns: Any) -> Any:
        answers = columns.pop(ANSWER)
        return reward(completions=[[{"role": "assistant", "content": text}] for text in answers], **columns)

    return judge


@dataclass
class StrategyRollouts:
    """TRL's `rollout_func(prompts, trainer)`.

    Args:
        resolved: the strategy, with the rewards and models that it names.
        rows: the data set; scorers are given the other columns of a prompt's row.
        seed: of the run.
        is_talk: whether a completion is the strategy's whole conversation, and not its answer alone.
    """

    resolved: ResolvedStrategy
    rows: Sequence[Mapping[str, Any]]
    seed: int = 0
    is_talk: bool = False
    _place: tuple[Any, ...] = field(default=(), init=False)
    _calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._row_of = {_name(row["prompt"]): row for row in self.rows}
        self._others: dict[str, TransformersBackend] = {}

    def __call__(self, prompts: list[Prompt], trainer: Any) -> dict[str, Any]:
        """Return one answer for each prompt, equal ones among them.

        Returns:
            `prompt_ids` and `completion_ids`, B lists of tokens; `logprobs` is None: nobody knows the strategy's. Of
            conversations also `env_mask`, 1 where the policy wrote, and the strategy's answers, which rewards judge.

        Raises:
            InputError: the weights are sharded, or a conversation cannot be read back from the chat template.
            StageFailed: the strategy failed at every prompt.
        """
        deepspeed = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        if trainer.is_fsdp_enabled or (deepspeed is not None and deepspeed.zero_stage == 3):
            hint = "train with DDP or ZeRO-2, or take strategy out of the stage"
            raise InputError("a strategy's rollouts need the whole weights on each process, but they are sharded", hint)
        model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
        is_training = model.training
        # The backend's identity is a part of each request's seed: which step, which process, and how often within. So a
        # resumed run draws the same, and two draws of one step do not.
        place = (trainer.state.global_step, is_training, trainer.accelerator.process_index)
        self._calls = self._calls + 1 if place == self._place else 0
        self._place = place
        identity = ":".join(map(str, (*place, self._calls)))
        backend = TransformersBackend(model, tokenizer, identity=identity)
        params = SamplingParams(trainer.temperature, trainer.top_p, trainer.max_completion_length)
        try:
            results = self._solve(prompts, backend, params)
            missing = {i: why for i, result in enumerate(results) if (why := unanswered(result)) is not None}
            if 0 < len(missing) < len(prompts):
                # The trainer wants a completion for each prompt. An empty one would be scored, and be a lesson.
                problems = [Problem(prompts[i], params, id=str(i)) for i in missing]
                plain = sample(problems, 1, backend=backend, seed=self.seed)
                results = [plain.pop(0) if i in missing else result for i, result in enumerate(results)]
        finally:
            model.train(is_training)  # the backend generates in `eval`
        if missing and len(missing) == len(prompts):
            raise StageFailed(f"strategy {self.resolved.label} failed at every prompt: {next(iter(missing.values()))}")
        add_metric(trainer, "rollouts/missing", float(len(missing)))
        if self.is_talk:
            talks = [trajectory(tokenizer, result.trace) for result in results]
            add_metric(trainer, "rollouts/turns", sum(talk.turns for talk in talks) / len(talks))
            return {
                "prompt_ids": [talk.prompt_ids for talk in talks],
                "completion_ids": [talk.completion_ids for talk in talks],
                "env_mask": [talk.mask for talk in talks],
                "logprobs": None,
                ANSWER: [result.text for result in results],
            }
        return {
            "prompt_ids": [render(tokenizer, prompt) for prompt in prompts],
            "completion_ids": [self._tokens(tokenizer, result, params.max_tokens) for result in results],
            "logprobs": None,
        }

    def _solve(self, prompts: Sequence[Prompt], backend: TransformersBackend, params: SamplingParams) -> list[Result]:
        for role, artifact in self.resolved.models.items():
            if role not in self._others:  # loaded at the first rollout, and kept
                made = TransformersBackend(artifact.path, loading=artifact.loading, identity=artifact.name)
                self._others[role] = made
        rows = [self._row_of.get(_name(prompt), {}) for prompt in prompts]
        names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "completion"))
        return solve(
            self.resolved.strategy,
            [Problem(prompt, params, id=str(i)) for i, prompt in enumerate(prompts)],
            backend={**self._others, "policy": backend},
            scorers=self.resolved.scorers,
            columns={name: [row.get(name) for row in rows] for name in names},
            seed=self.seed,
        )

    def _tokens(self, tokenizer: Any, result: Result, max_tokens: int) -> list[int]:
        """Return the answer's tokens, with EOS where it is finished; an empty answer is EOS alone."""
        ids = list(tokenizer(result.text, add_special_tokens=False)["input_ids"])[:max_tokens]
        reasons = {candidate.text: candidate.finish_reason for candidate in result.candidates}
        is_finished = reasons.get(result.text, "stop") == "stop" and len(ids) < max_tokens
        # the policy wrote EOS, which the text does not hold: without it, it would never learn to stop
        return [*ids, tokenizer.eos_token_id] if is_finished or not ids else ids


def _name(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True, default=str)
