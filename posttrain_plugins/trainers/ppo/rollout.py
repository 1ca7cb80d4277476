"""What a rollout of `PPOTrainer` was worth: scores, KL, baselines, and from them the advantage of each token.

The formulas are in `advantages.py`; here is where their tensors come from, and what is logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.ppo import advantages, process

__all__ = ["Scored", "Seen", "judge", "log_ratio"]


@dataclass
class Scored:
    """What the rewards gave.

    Args:
        rewards: (N, F), of all processes.
        steps: this process's step scores.
        prompts: this process's prompts.
        ids: token ids of its completions.
    """

    rewards: Tensor
    steps: process.Steps
    prompts: Sequence[Any]
    ids: Sequence[Sequence[int]]


@dataclass
class Seen:
    """A pass of the policy: log-probabilities and, where there is a critic, values; both (B, T)."""

    logps: Tensor
    values: Tensor | None


def judge(trainer: Any, inputs: Any, output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The advantages of a rollout and, with a critic, its targets.

    Args:
        trainer: the `PPOTrainer`, with `scored` and `seen` of this rollout.
        inputs: the rows of the data set.
        output: what GRPO made of them.

    Returns:
        `advantages`, and with a critic `returns`, `old_values` and `value_mask`: all (B, T).
    """
    total = _total(trainer)
    mask = (output["completion_mask"] * output.get("tool_mask", 1)).float()
    scores, steps = _score(trainer, trainer.scored, mask)
    mask = mask * (~torch.isnan(scores)).unsqueeze(1)  # where no reward could judge there is nothing to learn
    kl = _kl(trainer, output, mask)
    rewards = advantages.token_rewards(mask, scores.nan_to_num(0.0), kl, trainer.kl_coef, steps)
    if kl is not None:
        _steer(trainer, kl)
    if trainer.args.whiten_rewards:
        rewards = advantages.whiten(rewards, mask, total, shift_mean=False)
    if trainer.critic is not None:
        found, judged = _by_critic(trainer, rewards, mask)
    else:
        episode = scores if steps is None else scores + (steps * mask).sum(1)  # (B,)
        found, judged = _by_baseline(trainer, inputs, rewards, mask, episode), {}
    compat.add_metric(trainer, "advantages/mean", float(advantages.masked_mean(found, mask, total)))
    compat.add_metric(trainer, "advantages/std", float(advantages.variance(found, mask, total).sqrt()))
    judged["advantages"] = advantages.whiten(found, mask, total) if trainer.args.whitens else found
    return judged


def log_ratio(trainer: Any, logps: Tensor, inputs: Mapping[str, Any]) -> None:
    """Logs how far the policy is from the one that made the rollout."""
    total = _total(trainer)
    mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).float()
    moved = logps - inputs.get("old_per_token_logps", logps)
    compat.add_metric(trainer, "ratio/mean", float(advantages.masked_mean(moved.exp(), mask, total)))
    compat.add_metric(trainer, "ratio/std", float(advantages.variance(moved.exp(), mask, total).sqrt()))
    compat.add_metric(trainer, "ratio/approx_kl", float(advantages.masked_mean(moved.square() / 2, mask, total)))


def _score(trainer: Any, scored: Scored, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """What this process's completions earn at their end, (B,), NaN where nobody can judge; and at steps, (B, T)."""
    args = trainer.args
    rewards = scored.rewards[_own_rows(trainer, len(scored.ids))]  # (B, F)
    weights = trainer.reward_weights.to(rewards.device)
    outcome = [i for i in range(rewards.size(1)) if i not in scored.steps]
    scores = (rewards[:, outcome] * weights[outcome]).nansum(1)
    if args.score_clip is not None:
        scores = scores.clamp(-args.score_clip, args.score_clip)
    if args.missing_eos_penalty is not None:
        is_cut = [not row or row[-1] not in trainer.eos_token_ids for row in scored.ids]
        scores = scores - args.missing_eos_penalty * torch.tensor(is_cut, device=scores.device)
    scores = scores.masked_fill(torch.isnan(rewards).all(1), torch.nan)
    if not scored.steps:
        return scores, None
    placed = process.place(trainer, scored.steps, scored.ids, args.step_separator)
    return scores, torch.stack([weights[i] * process.as_tensor(rows, mask) for i, rows in placed.items()]).sum(0)


def _kl(trainer: Any, output: Mapping[str, Any], mask: Tensor) -> Tensor | None:
    """(B, T), KL of each token against the reference; None where none is asked for."""
    if "ref_per_token_logps" not in output:
        return None
    logps = output.get("old_per_token_logps", trainer.seen.logps).float()
    kl = advantages.kl_estimate(logps, output["ref_per_token_logps"].float(), trainer.args.kl_estimator) * mask
    compat.add_metric(trainer, "kl", float(advantages.masked_mean(kl, mask, _total(trainer))))
    return kl


def _steer(trainer: Any, kl: Tensor) -> None:
    """Logs the KL of a completion and, where it has a target, sets the coefficient for the next rollout."""
    args, total = trainer.args, _total(trainer)
    every = torch.ones_like(kl[:, 0])
    per_completion = float(advantages.masked_mean(kl.sum(1), every, total))
    compat.add_metric(trainer, "kl/completion", per_completion)
    compat.add_metric(trainer, "kl/coef", trainer.kl_coef)
    if args.kl_target is not None and trainer.model.training:
        count = int(total(every.sum()))
        trainer.kl_coef = advantages.next_kl_coef(
            trainer.kl_coef, per_completion, args.kl_target, args.kl_horizon, count
        )


def _by_critic(trainer: Any, rewards: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    args, total = trainer.args, _total(trainer)
    values = trainer.seen.values.float() * mask
    found, returns = advantages.gae(rewards, values, mask, args.gamma, args.lam)
    compat.add_metric(trainer, "value/mean", float(advantages.masked_mean(values, mask, total)))
    compat.add_metric(trainer, "value/explained_variance", advantages.explained_variance(values, returns, mask, total))
    compat.add_metric(trainer, "returns/mean", float(advantages.masked_mean(returns, mask, total)))
    return found, {"returns": returns, "old_values": values, "value_mask": mask}


def _by_baseline(trainer: Any, inputs: Any, rewards: Tensor, mask: Tensor, episode: Tensor) -> Tensor:
    total = _total(trainer)
    returns = advantages.returns_to_go(rewards, mask, trainer.args.gamma)
    compat.add_metric(trainer, "returns/mean", float(advantages.masked_mean(returns, mask, total)))
    match trainer.args.advantage_estimator:
        case "reinforce":
            mean = float(advantages.masked_mean(returns[:, 0], mask[:, 0], total))
            return (returns - _mean_return(trainer, mean)) * mask
        case "reinforce_pp_baseline":
            size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
            everyone = advantages.group_mean(
                trainer.accelerator.gather(episode), size
            )  # a group may be on two processes
            own = everyone[_own_rows(trainer, len(episode))]
            return (returns - own.nan_to_num(0.0).unsqueeze(1)) * mask
        case "remax":
            return (returns - _greedy_scores(trainer, inputs, mask).nan_to_num(0.0).unsqueeze(1)) * mask
    return returns


def _mean_return(trainer: Any, of_batch: float) -> float:
    """The batch's own mean, or that of the batches before; the first batch has none before it."""
    if trainer.args.baseline == "batch":
        return of_batch
    before = of_batch if trainer.mean_return is None else float(trainer.mean_return)
    if trainer.model.training:
        decay = trainer.args.baseline_decay
        trainer.mean_return = decay * before + (1 - decay) * of_batch
    return before


def _greedy_scores(trainer: Any, inputs: Any, mask: Tensor) -> Tensor:
    """(B,), the score of a greedy completion of each prompt: ReMax's baseline."""
    sampled = trainer.scored
    with compat.without_side_effects(trainer):
        completions, ids = compat.rollout_greedily(trainer, list(sampled.prompts))
        compat.calculate_rewards(trainer, inputs, list(sampled.prompts), completions, ids)
        longest = max(map(len, ids))
        whole = torch.tensor([[float(t < len(row)) for t in range(longest)] for row in ids], device=mask.device)
        scores, steps = _score(trainer, trainer.scored, whole)
    trainer.scored = sampled
    scores = scores if steps is None else scores + steps.sum(1)
    compat.add_metric(trainer, "greedy/score", float(trainer.accelerator.gather(scores).nanmean()))
    return scores


def _total(trainer: Any) -> advantages.Total:
    """The sum of a tensor over all processes."""

    def total(x: Tensor) -> Tensor:
        return trainer.accelerator.reduce(x, reduction="sum")  # type: ignore[no-any-return]

    return total


def _own_rows(trainer: Any, count: int) -> slice:
    """This process's rows of what was gathered from all."""
    start = trainer.accelerator.process_index * count
    return slice(start, start + count)
