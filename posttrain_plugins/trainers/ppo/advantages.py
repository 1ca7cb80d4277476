"""Advantages of tokens, as pure functions of tensors; `PPOTrainer` and `ProcessGRPOTrainer` take them from here.

| estimator               | advantage of token t                                    | paper                           |
|-------------------------|---------------------------------------------------------|---------------------------------|
| `gae`                   | sum of (gamma lam)^l delta_{t+l}                        | 1506.02438, eq. 16 (1707.06347) |
| `reinforce`             | G_t - b, b the mean return of the batch or of the past  | Williams, 1992                  |
| `reinforce_pp`          | whitened G_t                                            | 2501.03262                      |
| `reinforce_pp_baseline` | whitened (G_t - mean score of the group)                | 2501.03262                      |
| `remax`                 | G_t - score of the greedy completion                    | 2310.10505                      |
| process supervision     | sum of normalised rewards of the steps that end at >= t | 2402.03300, section 4.1.3       |

delta_t = r_t + gamma V(s_{t+1}) - V(s_t); G_t is the discounted sum of rewards from token t on; r_t is the penalty for
the KL divergence of token t, plus what is paid at it: the score at the last token, a step's score at the step's end.

1. Tokens that the model did not write (padding, a tool's answer) have mask 0: they earn nothing and are stepped over.
2. Whitening is over the tokens of the whole batch on all processes; TRL 1.12 had each process whiten its own.
3. `reinforce_pp_baseline` keeps the KL penalty in the reward, as the other estimators; the paper has a loss term there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "clipped_value_loss",
    "explained_variance",
    "gae",
    "group_mean",
    "group_normalized",
    "kl_estimate",
    "masked_mean",
    "next_kl_coef",
    "normalized_steps",
    "returns_to_go",
    "token_rewards",
    "variance",
    "whiten",
]

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


def _alone(x: Tensor) -> Tensor:
    return x


def masked_mean(x: Tensor, mask: Tensor, total: Total = _alone) -> Tensor:
    """Return the mean of `x` where `mask` is 1, over all processes; 0 where it is nowhere."""
    # sums are gathered, not means: processes have different numbers of tokens
    both = total(torch.stack([(x * mask).sum(), mask.sum().to(x.dtype)]))
    return both[0] / both[1].clamp(min=1.0)


def variance(x: Tensor, mask: Tensor, total: Total = _alone) -> Tensor:
    """Return the unbiased variance of `x` where `mask` is 1, over all processes; 0 for less than two values."""
    count = total(mask.sum().to(x.dtype))
    mean = masked_mean(x, mask, total)
    return total((torch.square(x - mean) * mask).sum()) / (count - 1).clamp(min=1.0)


def whiten(x: Tensor, mask: Tensor, total: Total = _alone, *, shift_mean: bool = True) -> Tensor:
    """Return `x` with variance 1, and mean 0 unless `shift_mean` is false; 0 where `mask` is 0.

    Args:
        x: (B, T).
        mask: (B, T), 1 where `x` counts.
        total: sums over processes.
        shift_mean: false keeps the mean, as TRL 1.12 does with rewards.

    Example:
        >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]])).round(decimals=4)
        tensor([[-0.7071,  0.7071,  0.0000]])
    """
    mean = masked_mean(x, mask, total)
    white = (x - mean) * torch.rsqrt(variance(x, mask, total) + 1e-8)
    return (white if shift_mean else white + mean) * mask


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: str = "k1") -> Tensor:
    """Estimate KL(policy, reference) per token from samples of the policy (http://joschu.net/blog/kl-approx.html).

    Args:
        logps: (B, T), of the policy.
        ref_logps: (B, T), of the reference.
        kind: `k1`, the log-ratio: unbiased, may be negative; `k3`: unbiased, never negative, less variance.
    """
    log_ratio = logps - ref_logps
    return log_ratio if kind == "k1" else torch.exp(-log_ratio) - 1 + log_ratio


def next_kl_coef(coef: float, kl: float, target: float, horizon: float, completions: int) -> float:
    """Return the next adaptive coefficient (Ziegler et al., https://huggingface.co/papers/1909.08593, section 2.2).

    Args:
        coef: the coefficient so far.
        kl: nats per completion, the mean of the batch.
        target: what it should be.
        horizon: in completions; a batch of as many moves the coefficient by 20 % at most.
        completions: how many the batch has.

    Example:
        >>> next_kl_coef(0.1, kl=12.0, target=6.0, horizon=1000, completions=100)
        0.10200000000000001
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coef * (1.0 + error * completions / horizon)


def token_rewards(
    mask: Tensor, scores: Tensor, kl: Tensor | None = None, kl_coef: float = 0.0, steps: Tensor | None = None
) -> Tensor:
    """Return what each token earns.

    Args:
        mask: (B, T), 1 at tokens that the model wrote.
        scores: (B,), paid at the last of them.
        kl: (B, T), per-token KL.
        kl_coef: its price.
        steps: (B, T), what steps earn at their ends.

    Returns:
        (B, T).

    Example:
        >>> token_rewards(torch.tensor([[1, 1, 0]]), torch.tensor([5.0]), torch.tensor([[1.0, 2.0, 0.0]]), kl_coef=0.5)
        tensor([[-0.5000,  4.0000,  0.0000]])
    """
    left = mask.flip(1).cumsum(1).flip(1)  # (B, T), how many of the model's tokens stand from here to the end
    is_last = ((left == 1) & mask.bool()).to(mask.dtype)  # (B, T), one in each row, none in a row without such tokens
    rewards = is_last * scores.unsqueeze(1)
    if kl is not None:
        rewards = rewards - kl_coef * kl
    return (rewards if steps is None else rewards + steps) * mask


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Estimate generalized advantages (https://huggingface.co/papers/1506.02438, equation 16).

    Args:
        rewards: (B, T).
        values: (B, T), V of the state before each token.
        mask: (B, T), 1 at tokens that the model wrote; the state after the last of them is worth 0.
        gamma: discount.
        lam: 0 trusts the critic, 1 the rewards.

    Returns:
        Advantages and returns, the critic's targets: both (B, T), 0 where `mask` is 0.

    Example:
        >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), torch.ones(1, 2), lam=0.5)
        (tensor([[0.2500, 0.5000]]), tensor([[0.7500, 1.0000]]))
    """
    advantages = torch.zeros_like(rewards)
    carried = rewards.new_zeros(rewards.size(0))  # the advantage at the next token that counts
    following = rewards.new_zeros(rewards.size(0))  # the value there
    # Backwards, once through the row. A token that does not count is stepped over, and does not end the row: what a
    # tool wrote lies between two tokens of the policy, and the later one's value is the earlier one's next.
    for t in reversed(range(rewards.size(1))):
        counts = mask[:, t].bool()
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = torch.where(counts, delta + gamma * lam * carried, carried)
        following = torch.where(counts, values[:, t], following)
        advantages[:, t] = carried
    return advantages * mask, (advantages + values) * mask


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Return G_t, the discounted sum of rewards from token t on.

    Example:
        >>> returns_to_go(torch.tensor([[1.0, 0.0, 4.0]]), torch.ones(1, 3), gamma=0.5)
        tensor([[2., 2., 4.]])
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, lam=1.0)[0]


def group_mean(scores: Tensor, num_generations: int) -> Tensor:
    """Return the mean score of each row's group; `scores` are (B,), a group's rows together; NaN does not count."""
    return scores.view(-1, num_generations).nanmean(1).repeat_interleave(num_generations)


def group_normalized(scores: Tensor, num_generations: int, scale: str = "group") -> Tensor:
    """Return GRPO's outcome advantage, (r - mean) / std (https://huggingface.co/papers/2402.03300, section 4.1.2).

    Args:
        scores: (B,), NaN where nobody can judge: such a row does not count and has 0. A group stands together.
        num_generations: G.
        scale: TRL's `scale_rewards`: `group`, `batch` or `none`, whose standard deviation divides.

    Example:
        >>> group_normalized(torch.tensor([0.0, 2.0]), 2, scale="none")
        tensor([-1.,  1.])
    """
    groups = scores.view(-1, num_generations)  # (P, G)
    centred = groups - groups.nanmean(1, keepdim=True)
    if scale != "none":
        of = groups.reshape(1, -1) if scale == "batch" else groups
        known = [row[~torch.isnan(row)] for row in of]  # torch has no `nanstd`
        spread = torch.stack([row.std() if len(row) > 1 else row.new_zeros(()) for row in known])
        centred = centred / (spread.unsqueeze(1) + 1e-4)
    return centred.reshape(-1).nan_to_num(0.0)


def normalized_steps(
    scores: Sequence[Sequence[float]], num_generations: int, *, scale: bool = True
) -> list[list[float]]:
    """Normalise step rewards by their group's mean and standard deviation (2402.03300, section 4.1.3).

    The advantage of a token is the sum of those of the steps that end at it or later: `returns_to_go`.

    Args:
        scores: of B completions, for each step; a group's completions stand together.
        num_generations: G.
        scale: false takes the mean away and does not divide.

    Example:
        >>> normalized_steps([[1.0, 0.0], [2.0]], 2)
        [[0.0, -0.9999000099990001], [0.9999000099990001]]
    """
    normal: list[list[float]] = []
    for start in range(0, len(scores), num_generations):
        group = scores[start : start + num_generations]
        known = torch.tensor([score for steps in group for score in steps], dtype=torch.float64)
        mean = float(known.mean()) if len(known) else 0.0
        spread = (float(known.std()) if len(known) > 1 else 0.0) + 1e-4
        normal += [[(score - mean) / (spread if scale else 1.0) for score in steps] for steps in group]
    return normal


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange: float | None
) -> tuple[Tensor, Tensor]:
    """Return half the squared error, the larger of the plain and the clipped one, as PPO's first implementation does.

    No paper has the clip; TRL 1.12 and https://github.com/openai/baselines (`ppo2`) do.

    Args:
        values: (B, T), of the critic as it is.
        old_values: (B, T), at the rollout.
        returns: (B, T), the targets.
        mask: (B, T).
        cliprange: how far a value may move from the old one before its gradient is cut; None cuts none.

    Returns:
        The loss, and the share of tokens where the clipped error was the larger.

    Example:
        >>> one = torch.ones(1, 1)
        >>> clipped_value_loss(one, 0 * one, 2 * one, one, cliprange=0.5)
        (tensor(1.1250), tensor(1.))
    """
    plain_error = torch.square(values - returns)
    if cliprange is None:
        return 0.5 * masked_mean(plain_error, mask), torch.zeros_like(plain_error.sum()).detach()
    clipped = torch.clamp(values, old_values - cliprange, old_values + cliprange)
    clipped_error = torch.square(clipped - returns)
    loss = 0.5 * masked_mean(torch.max(plain_error, clipped_error), mask)
    return loss, masked_mean((clipped_error > plain_error).to(values.dtype), mask).detach()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, total: Total = _alone) -> float:
    """Return 1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 a constant.

    NaN where returns do not vary.
    """
    spread = float(variance(returns, mask, total))
    return 1.0 - float(variance(returns - values, mask, total)) / spread if spread > 0 else float("nan")
