"""Our formulas on the tensors of TRL 1.12's own: its lines run as they stand in its source, and are not copied here.

Random rollouts without padding (`PPOTrainer`'s first deviation is about padding), k1 and k3, two discounts, rewards
whitened or not; then its loss of a policy and a critic that have moved. Prints the largest differences as JSON. Run by
`ppo_parity.py` with the interpreter that has trl==1.12.
"""

from __future__ import annotations

import inspect
import json
import os
import textwrap
import types
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
import trl.experimental.ppo.ppo_trainer as theirs

from posttrain_plugins.trainers.ppo import advantages as ours

ROLLOUTS, B, T = 50, 8, 12


def main() -> None:
    source = inspect.getsource(theirs.PPOTrainer.train)
    advantages = _lines(source, "# 4. compute rewards", "empty_cache()\n\n            # Do multiple epochs")
    loss = _lines(source, "vpredclipped = torch.clamp(", "accelerator.backward(loss)")
    worst = {"whitened_advantages": 0.0, "returns": 0.0, "loss": 0.0}
    for seed in range(ROLLOUTS):
        for name, difference in compare(seed, advantages, loss).items():
            worst[name] = max(worst[name], difference)
    print("\n" + json.dumps(worst))


def compare(seed: int, their_advantages: str, their_loss: str) -> dict[str, float]:
    """The largest difference in each tensor of one rollout."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    logps, ref, values, scores = -draw(B, T).abs(), -draw(B, T).abs(), draw(B, T), draw(B)
    args = types.SimpleNamespace(
        kl_estimator=("k1", "k3")[seed % 2], kl_coef=0.05, whiten_rewards=seed % 3 == 0, gamma=(1.0, 0.97)[seed % 2],
        lam=0.95, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1,
    )  # fmt: skip
    nowhere = torch.zeros(B, T, dtype=torch.bool)
    known: dict[str, Any] = {
        "torch": torch, "masked_whiten": theirs.masked_whiten, "masked_mean": theirs.masked_mean, "args": args,
        "logprobs": logps, "ref_logprobs": ref, "values": values, "scores": scores, "responses": values,
        "padding_mask": nowhere, "padding_mask_p1": nowhere,
        "sequence_lengths": torch.full((B,), T - 1), "sequence_lengths_p1": torch.full((B,), T),
    }  # fmt: skip
    exec(their_advantages, known)
    every = torch.ones(B, T)
    rewards = ours.token_rewards(every, scores, ours.kl_estimate(logps, ref, args.kl_estimator), args.kl_coef)
    if args.whiten_rewards:
        rewards = ours.whiten(rewards, every, shift_mean=False)
    found, returns = ours.gae(rewards, values, every, args.gamma, args.lam)
    white = ours.whiten(found, every)
    moved, valued = logps + 0.2 * draw(B, T), values + 0.4 * draw(B, T)
    known |= {"new_logprobs": moved, "vpred": valued, "mb_values": values, "mb_return": known["returns"]}
    known |= {"mb_advantage": known["advantages"], "mb_logprobs": logps, "micro_batch_inds": slice(None)}
    exec(their_loss, known)
    ratio = torch.exp(moved - logps)
    policy = torch.max(-white * ratio, -white * ratio.clamp(0.8, 1.2)).mean()
    value, _ = ours.clipped_value_loss(valued, values, returns, every, args.cliprange_value)
    return {
        "whitened_advantages": float((white - known["advantages"]).abs().max()),
        "returns": float((returns - known["returns"]).abs().max()),
        "loss": abs(float(policy + args.vf_coef * value) - float(known["loss"])),
    }


def _lines(source: str, first: str, behind: str) -> str:
    """The lines of a method from the one with `first` up to `behind`."""
    start = source.rindex("\n", 0, source.index(first)) + 1
    return textwrap.dedent(source[start : source.index(behind, start)])


if __name__ == "__main__":
    main()
