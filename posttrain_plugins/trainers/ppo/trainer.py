"""Proximal policy optimisation on TRL's `GRPOTrainer` (Schulman et al., https://huggingface.co/papers/1707.06347).

TRL dropped its own PPO in 1.13. Here GRPO generates and scores as it does for itself, with vLLM, tools, all kinds of
rewards, adapters, 4-bit weights and checkpoints. Its advantages are then replaced by those of tokens (`advantages.py`),
and the clipped value loss is added to its policy loss. No method of TRL is copied.

What differs from TRL 1.12's `PPOTrainer`:

1. The score stands on the last token. 1.12 has it one slot behind where a row is padded.
2. Advantages are whitened over the batch of all processes; 1.12 had each process whiten its own.
3. One model with adapters where the policy is one (`critic.py`); 1.12 held three, and trained the critic whole.
4. A killed run goes on from its checkpoint; the rollout buffer is not in it, so `save_steps` belongs between rollouts.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import TrainerCallback
from trl import GRPOTrainer

from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.ppo import advantages, process_rewards, rollout, rules
from posttrain_plugins.trainers.ppo.config import PPOConfig
from posttrain_plugins.trainers.ppo.critic import Critic, WithCritic, WithValues
from posttrain_plugins.trainers.ppo.critic_start import check_tokenizer, saved_values, source_of
from posttrain_plugins.trainers.ppo.rollout import PolicyPass, ScoredRollout
from posttrain_plugins.trainers.ppo.shared_reward import WithSharedRewards, base_path
from posttrain_plugins.types import ModelArtifact

__all__ = ["PPOConfig", "PPOTrainer"]

STATE = "ppo_state.json"


class PPOTrainer(WithCritic, WithSharedRewards, GRPOTrainer):  # type: ignore[misc]
    """PPO, REINFORCE, REINFORCE++ and ReMax, used as any trainer of TRL.

    Args:
        model: as `GRPOTrainer` takes it. It is also the reference: an adapter policy's base with the adapter off, or,
            of a `PeftModel`, a frozen copy of the adapter it comes with.
        reward_funcs: as `GRPOTrainer` takes them; an adapter on the policy's own base is loaded beside the policy's.
        args: a `PPOConfig`.
        train_dataset: with `prompt` and the columns that the rewards need.
        critic_config: `peft.PeftConfig` of the critic; by default the policy's.
        critic_from: a value model, a reward model, or a policy with a critic, whose values the critic starts with: a
            folder, a Hub id or a `ModelArtifact`. None starts at 0.
        **options: any other argument of `GRPOTrainer`, such as `peft_config`.

    Raises:
        InputError: the critic, the reference or a process reward cannot be had.

    Example:
        ```python
        from datasets import load_dataset
        from peft import LoraConfig
        from trl.rewards import accuracy_reward

        from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer

        trainer = PPOTrainer(
            model="Qwen/Qwen2.5-0.5B-Instruct",
            reward_funcs=accuracy_reward,
            args=PPOConfig("ppo", num_iterations=2, kl_coef=0.02),
            train_dataset=load_dataset("trl-lib/DeepMath-103K", split="train"),
            peft_config=LoraConfig(),
        )
        trainer.train()
        ```
    """

    _tag_names = ("trl", "ppo")
    _name = "PPO"
    _paper = {  # noqa: RUF012 (TRL's own form)
        "title": "Proximal Policy Optimization Algorithms",
        "id": "1707.06347",
        "citation": textwrap.dedent("""\
            @article{schulman2017proximal,
                title  = {{Proximal Policy Optimization Algorithms}},
                author = {John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov},
                year   = 2017,
                eprint = {1707.06347},
            }"""),
    }

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: PPOConfig | None = None,
        train_dataset: Any = None,
        *,
        critic_config: Any = None,
        critic_from: str | ModelArtifact | None = None,
        **options: Any,
    ) -> None:
        args = args or PPOConfig(f"{Path(base_path(model)).name or 'model'}-PPO")
        policy_config = options.get("peft_config") or compat.active_config(model)
        name = critic_from.name if isinstance(critic_from, ModelArtifact) else str(critic_from)
        start = saved_values(critic_from) if critic_from is not None else None
        source = source_of(start, name, model, policy_config) if start is not None else None
        kind = rules.check_start(args, model, policy_config, critic_config, options, source)  # before GRPO loads it
        self.critic: Critic | None = None
        self.last_pass: PolicyPass | None = None
        self.scored: ScoredRollout | None = None
        self.passes_made = 0  # over the rollout that the loss is of
        super().__init__(model, reward_funcs, args, train_dataset, **options)
        if not isinstance(model, str):
            rules.check_reference_weights(self)
        self.kl_coef = args.kl_coef
        self.mean_return: float | None = None  # the running baseline of `reinforce`
        self._policy_adapter = compat.active_adapter(self.model)
        # The critic comes after TRL has built the model, with its adapter and fused head, and before `train` makes the
        # optimizer and wraps the model: its parameters are in both.
        if kind is not None:
            engine = {"is_deepspeed": self.is_deepspeed_enabled, "is_fsdp": self.is_fsdp_enabled}
            rules.refuse(rules.engine_concerns(args, **engine))
            if start is not None:
                check_tokenizer(start, name, self.processing_class)
            set_seed(args.seed)  # the same critic on every process
            self.critic = Critic(self.model, kind, critic_config, start=start, normalizes=args.normalize_returns)
            set_seed(args.seed, device_specific=True)  # as GRPO left it
            self.add_callback(_OneLearns(self))
            # GRPO hands a rollout out so many times: as often as the one of both that learns longer from it
            self.num_iterations = max(args.num_iterations, self.critic_iterations)
        if args.disable_dropout:
            compat.disable_dropout(self.model)  # TRL did so before the critic's adapter was there

    def is_beside_the_policy(self, name: str) -> bool:
        """Tell whether the parameter of that name is the critic's or a reward model's."""
        return (self.critic is not None and self.critic.owns(name)) or super().is_beside_the_policy(name)

    # --- rollouts ----------------------------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer` does, after a look at the names of the process rewards."""
        # not in `__init__`: the names in the logs, which `process_rewards` gives, may be set after it
        process_rewards.check(self, self.args.process_rewards)
        return super().train(*args, **kwargs)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        with process_rewards.stepwise(self, self.args.process_rewards) as steps:
            rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self.scored = ScoredRollout(rewards, steps, prompts, completion_ids_list)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self.last_pass = self.scored = None
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.critic is not None:
            self.critic.unfreeze()  # the reference pass ended in PEFT's `set_adapter`
        if (self.critic is not None or self.beta != 0.0) and self.last_pass is None:
            # GRPO takes log-probabilities of a rollout only where it is used for more than one step. Values and KL
            # need a pass of the policy in any case.
            is_training = self.model.training
            rows = self.args.per_device_train_batch_size if is_training else self.args.per_device_eval_batch_size
            with torch.no_grad(), compat.without_checkpointing(self):
                self._pass_over(self.model, output, batch_size=rows)
        # (B, T) in place of GRPO's (B,), which its loss takes too. What else is added here, GRPO's buffer shuffles and
        # splits between the steps like its own tensors.
        output.update(rollout.token_advantages(self, inputs, output))
        compat.drop_metric(self, "frac_reward_zero_std")  # of groups, which are no matter here
        return output

    def _pass_over(self, model: Any, batch: Mapping[str, Any], **options: Any) -> Tensor:
        """Return the log-probabilities of a rollout's completions, (B, T); `last_pass` has them and the values."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)  # (B, P + T)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        extras = {name: batch[name] for name in compat.FORWARD_EXTRAS if name in batch}
        width = batch["completion_ids"].size(1)
        logps: Tensor = self._get_per_token_logps_and_entropies(model, ids, mask, width, **options, **extras)[0]
        return logps

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        is_reference = model is self.ref_model or compat.active_adapter(self.model) != self._policy_adapter
        if is_reference:
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        watched = WithValues(model) if self.critic is not None else model
        result = super()._get_per_token_logps_and_entropies(watched, *args, **kwargs)
        # several of (rows, L - 1): GRPO takes the rows in batches; of the prompt's and virtual tokens' none is needed
        values = torch.cat(watched.values)[:, -result[0].size(1) :] if self.critic is not None else None  # (B, T)
        self.last_pass = PolicyPass(result[0].detach(), values)
        return result

    # --- update ------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        # kept for the optimizer's step: by then GRPO has counted on
        if self.model.training:
            self.passes_made = compat.rollout_pass(self)
        if self.is_past_the_policy:
            # of the policy's loss nothing would be left but its figures, which are those of the passes that it had
            loss = self._pass_over(model, inputs).sum()
        else:
            # `beta` does two things in GRPO: not 0, it makes the rollout have reference log-probabilities, which we
            # want, and adds a KL to the loss, which we do not: it stands in the reward.
            with compat.changed(self, beta=0.0):
                loss = super()._compute_loss(model, inputs)
        assert self.last_pass is not None
        seen, self.last_pass = self.last_pass, None  # the values hold the graph
        if not self.is_past_the_policy:
            rollout.log_ratio(self, seen.logps, inputs)
        if self.critic is None:
            return loss
        assert seen.values is not None
        value_loss = self._value_loss(seen.values, inputs)
        # GRPO has divided its own loss by the accumulation steps, and transformers divides no loss of GRPO's
        shares = self.current_gradient_accumulation_steps if self.model.training else 1
        coef = self.args.vf_coef if self.critic_learns else 0.0
        # times 0, not left out: DDP wants a gradient, if a zero one, for each parameter that the pass used
        return (1.0 if self.policy_learns else 0.0) * loss + coef * value_loss / shares

    def _value_loss(self, values: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        assert self.critic is not None
        old_values, returns = inputs["old_values"], inputs["returns"]
        if self.critic.returns is not None:
            # each in units of the deviation, and so the clip's range; the head as it is gives the rewards' units
            values, old_values, returns = map(self.critic.head.normalized, (values, old_values, returns))
        mask, cliprange = inputs["value_mask"], self.args.cliprange_value
        loss, clipped = advantages.clipped_value_loss(values, old_values, returns, mask, cliprange)
        compat.add_metric(self, "value/loss", float(self.accelerator.gather(loss.detach()).mean()))
        if cliprange is not None:
            compat.add_metric(self, "value/clip_ratio", float(self.accelerator.gather(clipped).mean()))
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip as `transformers.Trainer` does, or policy and critic each by its own norm; return that of both."""
        if self.critic is None or self.args.critic_max_grad_norm is None:
            return super()._clip_grad_norm(model)
        critic = self.critic.parameters
        own = {id(parameter) for parameter in critic}
        policy = [parameter for parameter in model.parameters() if id(parameter) not in own]
        # accelerate's first: it takes the scale of float16 out of all gradients, and would refuse to do so twice
        norm = self.accelerator.clip_grad_norm_(policy, self.args.max_grad_norm)
        critic_norm = torch.nn.utils.clip_grad_norm_(critic, self.args.critic_max_grad_norm)
        compat.add_metric(self, "value/grad_norm", float(critic_norm))
        return torch.hypot(norm, critic_norm.to(norm.device))

    @property
    def critic_iterations(self) -> int:
        """In how many passes over a rollout the critic learns."""
        return int(self.args.critic_iterations or self.args.num_iterations)

    @property
    def is_past_the_policy(self) -> bool:
        """Has the policy had its passes over this rollout?"""
        return bool(self.model.training and self.passes_made >= self.args.num_iterations)

    @property
    def policy_learns(self) -> bool:
        """Does the policy learn in this step, beside the critic or alone?"""
        warms_up = self.model.training and self.state.global_step < self.args.critic_warmup_steps
        return not (warms_up or self.is_past_the_policy)

    @property
    def critic_learns(self) -> bool:
        """Does the critic learn in this step?"""
        return not self.model.training or self.passes_made < self.critic_iterations

    # --- saving and going on -----------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            state = {"kl_coef": self.kl_coef, "mean_return": self.mean_return}
            file = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / STATE
            file.write_text(json.dumps(state) + "\n", encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / STATE).is_file():
            state = json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))
            self.kl_coef, self.mean_return = state["kl_coef"], state["mean_return"]
            rules.warn_within_generation(self, Path(checkpoint))


class _OneLearns(TrainerCallback):  # type: ignore[misc]
    """Takes out the zero gradients of who does not learn, so that neither weight decay nor Adam's moments move it."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        critic = self.trainer.critic
        if critic is None or (self.trainer.policy_learns and self.trainer.critic_learns):
            return
        for name, parameter in self.trainer.model.named_parameters():
            if not (self.trainer.critic_learns if critic.owns(name) else self.trainer.policy_learns):
                parameter.grad = None
