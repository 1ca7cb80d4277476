"""OREO, offline reasoning optimisation: a policy and its value function from saved trajectories alone.

Paper: Wang et al., 2024 (https://huggingface.co/papers/2412.16145). Policy and value are brought to satisfy the soft
Bellman equation (equation 3) at every state of a trajectory: the value by equation 8, the policy by equation 9, for
steps and whole responses by section 4.2 and equation 10. Trajectories need no pairs and may be wrong ones.

1. The value is learned at every token whatever `level` says, so that a search may ask for it anywhere (section 4.4).
2. Rewards stand at the end; the paper's discount is 1.
3. Policy and value loss are averaged over the tokens (or steps) of a trajectory, then over trajectories, and added with
   `vf_coef` in between: one optimizer for both.
4. Prompt and completion are tokenised apart and EOS ends the completion, as in a rollout, so that `value_model` reads
   the states that were trained on.
5. A trajectory longer than `max_length` is left out, since its reward stands at its end; how many are is warned of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from accelerate.utils import set_seed
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import is_conversational, render, to_text
from posttrain_plugins.text.steps import SEPARATOR, last_tokens, step_ends
from posttrain_plugins.trainers import compat, stage_rules
from posttrain_plugins.trainers.encoded_rows import EncodedRows, pad_right
from posttrain_plugins.trainers.ppo import rules
from posttrain_plugins.trainers.ppo.critic import Critic, WithCritic
from posttrain_plugins.trainers.ppo.rules import CriticKind

__all__ = ["OREOConfig", "OREOTrainer", "TrajectoryCollator", "encode", "soft_bellman_losses"]

Level: TypeAlias = Literal["token", "step", "response"]


@dataclass
class OREOConfig(DPOConfig):  # type: ignore[misc]
    """`trl.DPOConfig`, whose `beta` is the paper's, and what OREO has beside it; defaults are the paper's (A.3).

    Args:
        level: what an action of the policy is: a `token`, a `step`, or the whole `response`.
        alpha: weight of the KL to the reference over the whole vocabulary (equation 9); the paper has 0.1 for steps
            and 0.3 for responses.
        step_separator: what ends a step.
        vf_coef: weight of the value loss.
        critic: `adapter`, `shared` or `separate` (`critic.py`); None is `adapter` where the policy is one, else
            `separate`.
        critic_learning_rate: None is `learning_rate`.
    """

    learning_rate: float = 5e-6
    beta: float = 0.03
    level: Level = "token"
    alpha: float = 0.01
    step_separator: str = SEPARATOR
    vf_coef: float = 1.0
    critic: CriticKind | None = None
    critic_learning_rate: float | None = None

    def __post_init__(self) -> None:
        choices = {"level": get_args(Level), "critic": (*get_args(CriticKind), None)}
        rules.refuse(rules.choice_concerns(self, choices), "OREOConfig: ")
        rules.refuse(stage_rules.oreo_concerns(self), "OREOConfig: ")
        super().__post_init__()


def soft_bellman_losses(
    log_ratios: Tensor, values: Tensor, rewards: Tensor, starts: Tensor, mask: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Measure how far policy and value are from the soft Bellman equation, telescoped to the end (equation 7).

    Args:
        log_ratios: (B, T), log pi(a|s) - log pi_ref(a|s).
        values: (B, T), V of the state before each token.
        rewards: (B,), at the end.
        starts: (B, T), true for the first token of each action of the policy.
        mask: (B, T), true for the completion's tokens.
        beta: price of a nat.

    Returns:
        Policy loss (equation 9 without its regulariser, or 10) and value loss (equation 8), both (B,).

    Example:
        >>> policy, value = soft_bellman_losses(
        ...     torch.zeros(1, 2), torch.tensor([[0.5, 1.0]]), torch.ones(1), torch.ones(1, 2).bool(),
        ...     torch.ones(1, 2).bool(), beta=0.1)
        >>> policy.tolist(), value.tolist()
        ([0.125], [0.125])
    """
    ratios = log_ratios * mask
    # equation 8 is the value's alone: the policy stands in it as it is, without a gradient
    missing = values - rewards[:, None] + beta * _to_go(ratios.detach())  # (B, T)
    value_loss = _mean(missing.square(), mask)

    # Equation 9 is the policy's alone, and of each action only its own ratio learns: those after it are fixed, or an
    # action would be paid for what came later. An action is one token or several, so tokens are added up by action.
    action = (starts.cumsum(1) - 1).clamp(min=0)  # (B, T), which action a token belongs to
    zeros = torch.zeros_like(ratios)
    own = zeros.scatter_add(1, action, ratios)  # (B, A), A = T at most
    state = zeros.scatter_add(1, action, values.detach() * starts)  # (B, A), V where the action begins
    later = _to_go(own.detach()) - own.detach()  # (B, A)
    is_action = torch.arange(own.size(1), device=own.device) < starts.sum(1, keepdim=True)  # (B, A)
    return _mean((state - rewards[:, None] + beta * (own + later)).square(), is_action), value_loss


def _to_go(x: Tensor) -> Tensor:
    """Sum from each place to the end."""
    return x.flip(1).cumsum(1).flip(1)


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """Average over what the mask has, (B,)."""
    return (x * mask).sum(1) / mask.sum(1)


class OREOTrainer(EncodedRows, WithCritic, DPOTrainer):  # type: ignore[misc]
    """Trains policy and value function on `prompt`, `completion` and `reward` (a number), or `label` (a bool).

    Trajectories of more than `max_length` tokens, with their prompt, are left out.

    The reference is what DPO's is: the same path loaded again, or the adapter switched off.

    Args:
        model: as `trl.DPOTrainer` takes it.
        args: an `OREOConfig`.
        critic_config: `peft.PeftConfig` of the critic; by default the policy's.
        **options: any other argument of `trl.DPOTrainer`, such as `train_dataset` and `peft_config`.

    Raises:
        InputError: an option that only pairs have, a row that is no trajectory, or a critic that cannot be had.

    Example:
        >>> OREOTrainer(model="Qwen/Qwen3-0.6B", args=OREOConfig(), train_dataset=trajectories)  # doctest: +SKIP
    """

    _tag_names = ("trl", "oreo")
    _name = "OREO"
    columns = ("input_ids", "prompt_length", "starts", "reward")
    row_name = "trajectory"

    def __init__(self, model: Any, args: OREOConfig | None = None, *, critic_config: Any = None, **options: Any):
        args = args or OREOConfig()
        rules.refuse(stage_rules.pair_concerns(args, "OREO"))
        policy_config = options.get("peft_config") or compat.active_config(model)
        is_quantized = options.get("quantization_config") is not None or compat.is_quantized(model)
        kind = rules.choose_kind(args.critic, policy_config, critic_config, is_quantized)
        self.critic = None
        super().__init__(model=model, args=args, **options)
        if options.get("data_collator") is None:
            self.data_collator = TrajectoryCollator(self.processing_class.pad_token_id)
        set_seed(args.seed)  # the same critic on every process
        self.critic = Critic(self.model, kind, critic_config)

    def encode_row(self, tokenizer: Any, row: Mapping[str, Any], number: int, args: OREOConfig) -> dict[str, Any]:
        """Return the trajectory's tokens."""
        return encode(tokenizer, row, number, args.level, args.step_separator)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean over the trajectories of equation 9 and `vf_coef` times equation 8."""
        width = inputs["input_ids"].size(1) - int(inputs["prompt_lengths"].min())  # T: no completion starts before
        mask, starts = inputs["completion_mask"][:, -width:], inputs["starts"][:, -width:]
        given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        given["logits_to_keep"] = width + 1
        targets = inputs["input_ids"][:, -width:, None]  # (B, T, 1)
        # First the reference, without gradients. A pass between the policy's and its backward would switch adapters
        # while checkpointed layers still have to be computed again.
        before = compat.reference_log_probs(self, given)[:, :-1]  # (B, T, V)
        assert self.critic is not None
        self.critic.unfreeze()  # the reference pass ended in PEFT's `set_adapter`
        outputs = model(**given, with_values=True)  # one call of the wrapped model for policy and critic
        now = outputs.logits[:, :-1].float().log_softmax(-1)  # (B, T, V)
        ratios = (now - before).gather(-1, targets).squeeze(-1)
        values = outputs.state_values[:, -width:].float()
        policy, value = soft_bellman_losses(ratios, values, inputs["rewards"], starts, mask, self.args.beta)
        kl = _mean((now.exp() * (now - before)).sum(-1), mask)  # (B,), over the whole vocabulary, not the one token
        loss = (policy + self.args.alpha * kl + self.args.vf_coef * value).mean()
        figures = {"policy/loss": policy, "value/loss": value, "kl": kl, "value/mean": _mean(values, mask)}
        for name, found in figures.items():
            compat.add_metric(self, name, float(self.accelerator.gather(found.detach()).mean()))
        return (loss, outputs) if return_outputs else loss


@dataclass(frozen=True)
class TrajectoryCollator:
    """Pads on the right: `input_ids`, `attention_mask`, `completion_mask`, `starts` (B, L); `rewards` (B,)."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = pad_right([row["input_ids"] for row in rows], self.pad_token_id)
        prompt_lengths = torch.tensor([row["prompt_length"] for row in rows])
        is_completion = torch.arange(batch["input_ids"].size(1)) >= prompt_lengths[:, None]
        starts = torch.zeros_like(is_completion)
        for i, row in enumerate(rows):
            starts[i, row["starts"]] = True
        return {
            **batch,
            "completion_mask": batch["attention_mask"].bool() & is_completion,
            "prompt_lengths": prompt_lengths,
            "starts": starts,
            "rewards": torch.tensor([float(row["reward"]) for row in rows]),
        }


def encode(
    tokenizer: Any, row: Mapping[str, Any], number: int, level: str, separator: str, **options: Any
) -> dict[str, Any]:
    """Return one trajectory as tokens.

    Args:
        tokenizer: with a chat template where the prompt is conversational.
        row: `prompt`, `completion`, and `reward` or `label`.
        number: which row this is, for errors.
        level: see `OREOConfig`.
        separator: see `OREOConfig`.
        **options: of the chat template.

    Returns:
        `input_ids` (L,), `prompt_length`, `starts` (the index of the first token of each action), `reward`.
    """
    prompt, completion = row["prompt"], row["completion"]
    if issue := stage_rules.trajectory_concern(row, number):
        rules.refuse([issue])
    # apart, as a rollout does: what is drawn are tokens behind the prompt's, and no token spans the two
    text = render(tokenizer, prompt, **options)
    head = tokenizer(text, add_special_tokens=not is_conversational(prompt))["input_ids"]
    if not head:
        raise InputError(f"row {number + 1} has an empty prompt, so there is no state before its first token")
    text = to_text(completion).removesuffix(tokenizer.eos_token)
    tail = tokenizer(text, add_special_tokens=False, return_offsets_mapping=level == "step")
    ids = [*tail["input_ids"], tokenizer.eos_token_id]
    begins = {"token": list(range(len(ids))), "response": [0]}.get(level)
    if begins is None:
        # a step begins with the token after the one that ends the step before; one that spans two belongs to the first
        ends = last_tokens([start for start, _ in tail["offset_mapping"]], step_ends(text, separator)[:-1])
        begins = sorted({0, *(end + 1 for end in ends)})
    reward = row["reward"] if row.get("reward") is not None else row["label"]
    starts = [len(head) + begin for begin in begins]
    return {"input_ids": [*head, *ids], "prompt_length": len(head), "starts": starts, "reward": float(reward)}
