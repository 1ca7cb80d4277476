"""TRL's experimental trainers under the calling convention of its stable ones.

They take no `quantization_config`, load in another dtype than the stable ones, and some want the tokenizer handed in.
Those with rewards call asynchronous ones as if they were not, and give none a `log_metric`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from posttrain_plugins.guard import outcome
from posttrain_plugins.guard.guarded import Guarded, figures_of
from posttrain_plugins.models.load import load_tokenizer
from posttrain_plugins.nested_rewards import wait_for

__all__ = ["as_stable", "load_experimental"]


def load_experimental(name: str) -> Any:
    """Import `trl.experimental.<name>` without TRL's warning: who names such a stage knows what it is.

    Args:
        name: of the package, such as `gmpo`.

    Returns:
        The module, with its trainer and config classes.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    return importlib.import_module(f"trl.experimental.{name}")


def as_stable(trainer_class: Any) -> Callable[..., Any]:
    """Return what `train` is given in place of an experimental trainer that does not load models as the stable ones do.

    It loads the tokenizer, hands quantization to the model, waits for asynchronous rewards, and logs what became of
    guarded ones.

    Args:
        trainer_class: an experimental trainer that takes no `quantization_config`. One that extends a stable trainer
            (`GMPOTrainer`) needs none of this.

    Returns:
        A function that takes a stable trainer's arguments and gives the trainer.
    """

    def build(*, model: Any, args: Any, **kwargs: Any) -> Any:
        quantization = kwargs.pop("quantization_config", None)
        loading = dict(args.model_init_kwargs or {})
        if quantization is not None:
            loading["quantization_config"] = quantization
        if isinstance(model, str):
            args.model_init_kwargs = {"dtype": "float32", **loading}  # as TRL's stable trainers
            if "processing_class" not in kwargs:
                revision = {"model_revision": loading.get("revision")}
                kwargs["processing_class"] = load_tokenizer(model, revision, padding_side="left")
        rewards = kwargs.get("reward_funcs", ())
        if rewards:
            kwargs["reward_funcs"] = [_Awaited(reward) if outcome.is_async(reward) else reward for reward in rewards]
        trainer = trainer_class(model=model, args=args, **kwargs)
        guarded = [reward for reward in rewards if isinstance(reward, Guarded)]
        if guarded:
            _log_outcomes(trainer, guarded)
        return trainer

    return build


class _Awaited:
    """An asynchronous reward that is called and waited for."""

    def __init__(self, reward: Any) -> None:
        self.reward = reward
        self.__name__ = getattr(reward, "__name__", type(reward).__name__)

    def __call__(self, **arguments: Any) -> Any:
        return wait_for(self.reward(**arguments))


def _log_outcomes(trainer: Any, rewards: list[Guarded]) -> None:
    """Put what became of the scores since the last log into the next one, as `log_metric` would have done."""
    from transformers import TrainerCallback

    class Outcomes(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            now = figures_of({"rewards": rewards})
            # what the log has of them, it has from here; a checkpoint keeps the log, and so do its readers
            new = {name: count - sum(row.get(name, 0.0) for row in state.log_history) for name, count in now.items()}
            # transformers has put a copy of `logs` into the history before it calls callbacks
            for row in (logs, state.log_history[-1] if state.log_history else None):
                if row is not None:
                    row.update(new)

    trainer.add_callback(Outcomes())
