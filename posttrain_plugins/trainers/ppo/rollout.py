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
from posttrain_plugins.trainers.ppo import advantages, process_rewards

__all__ = ["PolicyPass", "ScoredRollout", "log_ratio", "token_advantages"]


@dataclass
class ScoredRollout:
    """What the rewards gave.

    Args:
        rewards: (N, F), of all processes.
        steps: this process's step scores.
        prompts: this process's prompts.
        ids: token ids of its completions.
    """

    rewards: Tensor
    steps: process_rewards.StepScores
    prompts: Sequence[Any]
    ids: Sequence[Sequence[int]]


@dataclass
class PolicyPass:
    """A pass of the policy: log-probabilities and, where there is a critic, values; both (B, T)."""

    logps: Tensor
    values: Tensor | None


def token_advantages(trainer: Any, inputs: Any, output: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the advantages of a rollout and, with a critic, its targets.

    Args:
        trainer: the `PPOTrainer`, with `scored` and `last_pass` of this rollout.
        inputs: the rows of the data set.
        output: what GRPO made of them.

    Returns:
        `advantages`, and with a critic `returns`, `old_values` and `value_mask`: all (B, T).
    """
    args, total = trainer.args, _total(trainer)
    mask = (output["completion_mask"] * output.get("tool_mask", 1)).float()  # (B, T), 1 where the policy wrote
    scores, steps = _score(trainer, trainer.scored, mask)  # (B,), (B, T)
    mask = mask * (~torch.isnan(scores)).unsqueeze(1)  # where no reward could judge there is nothing to learn
    # The KL is a part of the reward and not of the loss, so it goes in before anything is summed up over time. Its
    # coefficient is this rollout's; only then is it steered, for the next.
    kl = _kl(trainer, output, mask)  # (B, T)
    rewards = advantages.token_rewards(mask, scores.nan_to_num(0.0), kl, trainer.kl_coef, steps)  # (B, T)
    if kl is not None:
        _steer_kl(trainer, kl)
    if args.whiten_rewards:
        rewards = advantages.whiten(rewards, mask, total, shift_mean=False)
    targets = {}
    if trainer.critic is not None:
        values = trainer.last_pass.values.float() * mask  # (B, T)
        found, returns = advantages.gae(rewards, values, mask, args.gamma, args.lam)
        targets = {"returns": returns, "old_values": values, "value_mask": mask}
        compat.add_metric(trainer, "value/mean", float(advantages.masked_mean(values, mask, total)))
        explained = advantages.explained_variance(values, returns, mask, total)
        compat.add_metric(trainer, "value/explained_variance", explained)
        if trainer.critic.returns is not None and trainer.model.training:
            _count_returns(trainer, returns, mask)
    else:
        returns = advantages.returns_to_go(rewards, mask, args.gamma)
        episode = scores if steps is None else scores + (steps * mask).sum(1)  # (B,), without the KL
        found = _less_baseline(trainer, inputs, returns, mask, episode)
    compat.add_metric(trainer, "returns/mean", float(advantages.masked_mean(returns, mask, total)))
    compat.add_metric(trainer, "advantages/mean", float(advantages.masked_mean(found, mask, total)))
    compat.add_metric(trainer, "advantages/std", float(advantages.variance(found, mask, total).sqrt()))
    # last, after the returns: the critic learns in the unit of the rewards, however the policy's gradient is scaled
    return {**targets, "advantages": advantages.whiten(found, mask, total) if args.whitens else found}


def _count_returns(trainer: Any, returns: Tensor, mask: Tensor) -> None:
    """Let the critic learn in the units of these returns too."""
    total = _total(trainer)
    if not float(total(mask.sum())):
        return  # nobody could judge any of them
    mean, square = (float(advantages.masked_mean(x, mask, total)) for x in (returns, returns.square()))
    # after GAE, which had its values from the head as it was: what the head says of a state stays the same anyway
    trainer.critic.count_returns(mean, square)
    compat.add_metric(trainer, "returns/running_mean", trainer.critic.returns.mean)
    compat.add_metric(trainer, "returns/running_std", trainer.critic.returns.deviation)


def log_ratio(trainer: Any, logps: Tensor, inputs: Mapping[str, Any]) -> None:
    """Log how far the policy is from the one that made the rollout."""
    total = _total(trainer)
    mask = (inputs["completion_mask"] * inputs.get("tool_mask", 1)).float()
    moved = logps - inputs.get("old_per_token_logps", logps)  # TRL leaves them out where the policy is the same
    compat.add_metric(trainer, "ratio/mean", float(advantages.masked_mean(moved.exp(), mask, total)))
    compat.add_metric(trainer, "ratio/std", float(advantages.variance(moved.exp(), mask, total).sqrt()))
    compat.add_metric(trainer, "ratio/approx_kl", float(advantages.masked_mean(moved.square() / 2, mask, total)))


def _score(trainer: Any, scored: ScoredRollout, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return what this process's completions earn at their end, (B,), NaN where nobody can judge; at steps, (B, T)."""
    args = trainer.args
    rewards = scored.rewards[_own_rows(trainer, len(scored.ids))]  # (B, F)
    weights = trainer.reward_weights.to(rewards.device)
    # a reward that pays by steps is logged with their sum, which must not be paid a second time at the end
    outcome = [i for i in range(rewards.size(1)) if i not in scored.steps]
    scores = (rewards[:, outcome] * weights[outcome]).nansum(1)  # as TRL: a reward's None is left out of the sum
    if args.score_clip is not None:
        scores = scores.clamp(-args.score_clip, args.score_clip)
    if args.missing_eos_penalty is not None:
        is_cut = [not row or row[-1] not in trainer.eos_token_ids for row in scored.ids]
        scores = scores - args.missing_eos_penalty * torch.tensor(is_cut, device=scores.device)
    scores = scores.masked_fill(torch.isnan(rewards).all(1), torch.nan)  # `nansum` of nothing is 0, a judgement
    if not scored.steps:
        return scores, None
    placed = process_rewards.place(trainer, scored.steps, scored.ids, args.step_separator)
    rows = [weights[i] * process_rewards.as_tensor(rows, mask) for i, rows in placed.items()]
    return scores, torch.stack(rows).sum(0)


def _kl(trainer: Any, output: Mapping[str, Any], mask: Tensor) -> Tensor | None:
    """Return the KL of each token against the reference, (B, T); None where none is asked for."""
    if "ref_per_token_logps" not in output:
        return None
    # GRPO takes these itself only where a rollout is used for more than one step; else our own pass has them
    logps = output.get("old_per_token_logps", trainer.last_pass.logps).float()
    kl = advantages.kl_estimate(logps, output["ref_per_token_logps"].float(), trainer.args.kl_estimator) * mask
    compat.add_metric(trainer, "kl", float(advantages.masked_mean(kl, mask, _total(trainer))))
    return kl


def _steer_kl(trainer: Any, kl: Tensor) -> None:
    """Log the KL of a completion and, where it has a target, set the coefficient for the next rollout."""
    args, total = trainer.args, _total(trainer)
    every = torch.ones_like(kl[:, 0])
    per_completion = float(advantages.masked_mean(kl.sum(1), every, total))
    compat.add_metric(trainer, "kl/completion", per_completion)
    compat.add_metric(trainer, "kl/coef", trainer.kl_coef)
    if args.kl_target is not None and trainer.model.training:  # an evaluation steers nothing
        count = int(total(every.sum()))
        trainer.kl_coef = advantages.next_kl_coef(
            trainer.kl_coef, per_completion, args.kl_target, args.kl_horizon, count
        )


def _less_baseline(trainer: Any, inputs: Any, returns: Tensor, mask: Tensor, episode: Tensor) -> Tensor:
    """Return the returns less what the estimator expected, (B, T).

    `episode` (B,) is what each completion earned in all.
    """
    match trainer.args.advantage_estimator:
        case "reinforce":
            mean = float(advantages.masked_mean(returns[:, 0], mask[:, 0], _total(trainer)))
            return (returns - _mean_return(trainer, mean)) * mask
        case "reinforce_pp_baseline":
            size = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
            everyone = trainer.accelerator.gather(episode)  # a group may be on two processes
            own = advantages.group_mean(everyone, size)[_own_rows(trainer, len(episode))]
            return (returns - own.nan_to_num(0.0).unsqueeze(1)) * mask
        case "remax":
            return (returns - _greedy_scores(trainer, inputs, mask).nan_to_num(0.0).unsqueeze(1)) * mask
    return returns


def _mean_return(trainer: Any, of_batch: float) -> float:
    """Return the batch's own mean, or that of the batches before; the first batch has none before it."""
    if trainer.args.baseline == "batch":
        return of_batch
    before = of_batch if trainer.mean_return is None else float(trainer.mean_return)
    if trainer.model.training:
        decay = trainer.args.baseline_decay
        trainer.mean_return = decay * before + (1 - decay) * of_batch
    # before this batch counts: a baseline that holds the batch's own returns would make the gradient biased
    return before


def _greedy_scores(trainer: Any, inputs: Any, mask: Tensor) -> Tensor:
    """Return the score of a greedy completion of each prompt, (B,): ReMax's baseline."""
    sampled = trainer.scored
    with compat.without_side_effects(trainer):
        completions, ids = compat.rollout_greedily(trainer, list(sampled.prompts))
        compat.calculate_rewards(trainer, inputs, list(sampled.prompts), completions, ids)  # sets `scored`
        longest = max(map(len, ids))
        wrote = torch.tensor([[float(t < len(row)) for t in range(longest)] for row in ids], device=mask.device)
        scores, steps = _score(trainer, trainer.scored, wrote)
    trainer.scored = sampled
    scores = scores if steps is None else scores + steps.sum(1)
    compat.add_metric(trainer, "greedy/score", float(trainer.accelerator.gather(scores).nanmean()))
    return scores


def _total(trainer: Any) -> advantages.Total:
    """Return a function that sums a tensor over all processes."""

    def total(x: Tensor) -> Tensor:
        return trainer.accelerator.reduce(x, reduction="sum")  # type: ignore[no-any-return]

    return total


def _own_rows(trainer: Any, count: int) -> slice:
    """Pick this process's rows of what was gathered from all."""
    start = trainer.accelerator.process_index * count
    return slice(start, start + count)
