"""What a trainer has more where its model carries a critic: a learning rate, and weights in what it saves. No paper."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain_plugins.errors import InputError

if TYPE_CHECKING:
    from posttrain_plugins.trainers.ppo.critic import Critic

__all__ = ["WithCritic"]


class WithCritic:
    """Goes before one of TRL's trainers: `class PPOTrainer(WithCritic, GRPOTrainer)`.

    `critic` is set after the trainer's own start, and is None where there is none; `args` has `critic_learning_rate`.
    What is saved stands in `critic/` beside the policy.
    """

    critic: Critic | None
    args: Any
    model: Any
    state: Any

    def create_optimizer(self, model: Any = None) -> Any:
        """As `transformers.Trainer` does; the critic's parameters have groups with their own learning rate."""
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        if self.critic is None or self.args.critic_learning_rate is None:
            return optimizer
        if not hasattr(optimizer, "param_groups"):
            hint = "take the optimizer out of the DeepSpeed config, or critic_learning_rate out of args"
            raise InputError("critic_learning_rate needs an optimizer of the trainer's own", hint=hint)
        own = {id(p) for p in self.critic.parameters}
        for group in list(optimizer.param_groups):
            critics = [p for p in group["params"] if id(p) in own]
            if critics:
                group["params"] = [p for p in group["params"] if id(p) not in own]
                optimizer.add_param_group({**group, "params": critics, "lr": self.args.critic_learning_rate})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.critic is None:
            super()._save(output_dir, state_dict)  # type: ignore[misc]
        elif self.args.should_save:
            state = self.model.state_dict() if state_dict is None else state_dict
            policy = {k: v for k, v in state.items() if self.critic.is_peft or not self.critic.owns(k)}
            super()._save(output_dir, policy)  # type: ignore[misc]
            self.critic.save(Path(output_dir or self.args.output_dir) / "critic", state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        self._load_critic(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()  # type: ignore[misc]
        self._load_critic(self.state.best_model_checkpoint)

    def _load_critic(self, folder: str | None) -> None:
        if self.critic is not None and folder is not None:
            self.critic.load(Path(folder) / "critic")
