"""A reward model that is an adapter on the policy's own base, loaded beside the policy's and not as a second model.

Prompt and completion become tokens with the reward model's own tokenizer and chat template, as in its training. An
adapter trained as a sequence classifier loads on a causal LM, but PEFT passes its `score` head over in silence; it is
read from the file here.
"""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import ensure_registered, moves_base
from posttrain_plugins.models.folder import adapters_in, digest
from posttrain_plugins.models.load import load_tokenizer
from posttrain_plugins.models.stack import attached_adapters
from posttrain_plugins.text.reward_input import reward_input_ids, rows_of
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.encoded_rows import pad_right
from posttrain_plugins.trainers.ppo.route import Route
from posttrain_plugins.types import Prompt

__all__ = ["SharedReward", "adapters_below", "base_path", "bind_all", "shared"]


def shared(reward: Any, base_path: str, policy_config: Any, below: tuple[str, ...] = ()) -> Any:
    """Return the reward as an adapter of the policy's base where it is one, else as it is.

    Args:
        reward: a folder, or a callable that says its `model_name_or_path` (the `reward_model` plugin).
        base_path: what the policy's base was loaded from.
        policy_config: the policy's `peft.PeftConfig`, or None.
        below: the digests of the adapters below the policy's, which have to be below the reward's too.
    """
    if hasattr(reward, "__wrapped__"):  # a guarded one keeps its guard
        return reward
    path = reward if isinstance(reward, str) else getattr(reward, "model_name_or_path", None)
    if policy_config is None or not isinstance(path, str) or not (Path(path) / "adapter_config.json").is_file():
        return reward
    from peft import PeftConfig

    ensure_registered(path)
    config = PeftConfig.from_pretrained(path)
    # of one type: a PEFT model holds adapters of one tuner; and on what the policy's lies on, base and stack
    moved = moves_base(vars(config)) or moves_base(vars(policy_config))
    fits = not moved and config.peft_type == policy_config.peft_type and not config.is_prompt_learning
    # the same Hub id is the same weights in the same revision alone
    fits = fits and (config.revision or "main") == (policy_config.revision or "main")
    fits = fits and tuple(map(digest, adapters_in(path)[:-1])) == below
    if not fits or config.task_type != "SEQ_CLS" or not _same_weights(base_path, str(config.base_model_name_or_path)):
        return reward
    # what TRL would have logged it under
    name = Path(path).name if isinstance(reward, str) else str(getattr(reward, "__name__", "reward_model"))
    return SharedReward(path, name, int(getattr(reward, "batch_size", 32)), getattr(reward, "max_length", None))


def _same_weights(one: str, other: str) -> bool:
    """Tell the same Hub id or folder, or two folders with the same bytes: each stage merges an adapter for itself."""
    if one == other:
        return True
    files = [sorted(Path(folder).glob("*.safetensors")) for folder in (one, other)]
    if not files[0] or [f.name for f in files[0]] != [f.name for f in files[1]]:
        return False
    return all(filecmp.cmp(a, b, shallow=False) for a, b in zip(*files, strict=True))


class SharedReward:
    """Scores completions by an adapter on the policy's base; TRL calls it like any reward function.

    Args:
        path: the reward model's folder.
        name: what it is logged under.
        batch_size: completions per forward.
        max_length: tokens of prompt and completion at most, cut on the right.
    """

    def __init__(self, path: str, name: str, batch_size: int = 32, max_length: int | None = None) -> None:
        self.path, self.batch_size, self.max_length = path, batch_size, max_length
        self.__name__ = name
        self.adapter = ""
        self._tokenizer = load_tokenizer(path)
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._score: Tensor = _score_head(Path(path))  # (1, H)

    def bind(self, model: Any, number: int) -> None:
        """Load the adapter into the policy's `PeftModel`, frozen; once, before the policy is trained."""
        self.adapter = f"reward_{number}"
        self._model = model
        model.load_adapter(self.path, self.adapter, is_trainable=False)
        self._route = Route(model, self.adapter)

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float | None]:
        """Return B scores: logits, larger is better."""
        rows = zip(prompts, completions, rows_of(columns, len(completions)), strict=True)
        ids = [reward_input_ids(self._tokenizer, prompt, text, **row)[: self.max_length] for prompt, text, row in rows]
        scores: list[float | None] = [None] * len(ids)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # of like length, so that little is padded
        was_training = self._model.training
        self._model.eval()  # neither dropout nor checkpointing
        try:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for i, score in zip(batch, self._forward([ids[i] for i in batch]), strict=True):
                    scores[i] = score
        finally:
            self._model.train(was_training)
        return scores

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _forward(self, ids: list[list[int]]) -> list[float]:
        padded = pad_right(ids, self._tokenizer.pad_token_id)
        inputs = {name: tensor.to(self._model.device) for name, tensor in padded.items()}
        with self._route:
            body = self._model.get_base_model().base_model
            hidden = body(**inputs, use_cache=False).last_hidden_state  # (B, L, H)
        # as a sequence classifier does: the head reads the last token of the text
        last = inputs["attention_mask"].sum(1) - 1
        pooled = hidden[torch.arange(len(ids), device=hidden.device), last.to(hidden.device)]
        return (pooled.float() @ self._score.to(pooled.device).T)[:, 0].tolist()  # type: ignore[no-any-return]


def _score_head(folder: Path) -> Tensor:
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (not a mapping)
            if key.endswith("score.weight"):
                return file.get_tensor(key).float()  # type: ignore[no-any-return]
    raise InputError(
        f"reward adapter has no trained score head: {folder}",
        hint="train it with modules_to_save: [score], as the stage `reward` does",
    )


def bind_all(trainer: Any) -> list[str]:
    """Load every shared reward into the trainer's model and return their adapters' names."""
    rewards = [func for func in trainer.reward_funcs if isinstance(func, SharedReward)]
    for number, reward in enumerate(rewards):
        reward.bind(trainer.model, number)
    return [reward.adapter for reward in rewards]


def adapters_below(model: Any) -> tuple[str, ...]:
    """Return the digests of the adapters that are part of a policy's base."""
    if isinstance(model, str):
        return ()
    return attached_adapters(model.get_base_model() if compat.is_peft(model) else model)


def base_path(model: Any) -> str:
    """Return what a policy's base is loaded from: `model` is a path, a model or a `PeftModel`."""
    if isinstance(model, str):
        return model
    return compat.model_path(model.get_base_model() if compat.is_peft(model) else model)
