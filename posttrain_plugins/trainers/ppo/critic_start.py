"""What a critic starts from: a value model, a reward model, or the critic that PPO or OREO saved with a policy.

Papers: Ouyang et al., 2022 (https://huggingface.co/papers/2203.02155), appendix C.4, start PPO's value function from
the reward model; Yuan et al., 2025 (https://huggingface.co/papers/2503.01491), pretrain it on the policy's own samples.

1. What a reward model says at a token is taken as the value of the state behind it, though it was trained at the end.
2. Logits of a value model's classes stay such: the head keeps its form (`models/value_form.py`) and learns through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import adds_up, ensure_registered, moves_base
from posttrain_plugins.models.critic import (
    critic_form_in,
    critic_returns_in,
    load_critic_body,
    value_head_in,
)
from posttrain_plugins.models.critic_folder import has_critic, kind_said
from posttrain_plugins.models.folder import BaseWeights, adapters_in, base_of, digest
from posttrain_plugins.models.load import load_tokenizer, task_to_load
from posttrain_plugins.models.merge import load_plain, plain_options
from posttrain_plugins.models.stack import is_wrapped
from posttrain_plugins.models.value_form import ValueForm, form_in
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.ppo.shared_reward import adapters_below, base_path, same_weights, score_head
from posttrain_plugins.types import CriticBody, ModelArtifact, ValueSource

__all__ = ["HEADS", "SavedValues", "check_tokenizer", "saved_values", "source_of"]

HEADS = ("score", "classifier")  # what PEFT notes as a classifier's head


@dataclass(frozen=True)
class SavedValues:
    """A value function on disk.

    Args:
        path: a folder or Hub id.
        body: what its head reads: an `adapter` on a base, a `whole` model, or the policy that it is `shared` with.
        loading: TRL `ModelConfig` fields.
    """

    path: str
    body: CriticBody
    loading: Mapping[str, Any]

    @property
    def is_critic(self) -> bool:
        """Was it saved beside a policy?"""
        return has_critic(self.path)

    @property
    def adapters(self) -> list[Path]:
        """The adapters that it consists of, from the base up."""
        own = Path(self.path) / "critic"
        return [*adapters_in(self.path)[:-1], *adapters_in(own)] if self.is_critic else adapters_in(self.path)

    @property
    def base(self) -> BaseWeights:
        """The full weights below its adapters."""
        newest = Path(self.path) / "critic" if self.is_critic and self.body == "adapter" else self.path
        return base_of(newest, self.loading.get("model_revision"))

    @property
    def form(self) -> ValueForm | None:
        """How its logits are read; None where they are the values."""
        return critic_form_in(self.path) if self.is_critic else form_in(self.path)

    @property
    def returns(self) -> Mapping[str, float] | None:
        """The moments of the returns in whose units it learned; None of one that did not."""
        return critic_returns_in(self.path) if self.is_critic else None

    @cached_property
    def whole(self) -> tuple[Any, dict[str, Tensor]]:
        """The layers and the head, loaded, with all adapters merged.

        Raises:
            InputError: an adapter cannot be merged.
        """
        if not self.is_critic:
            model = load_plain(self.path, self.loading).model
            with compat.gathered_parameters(model.score):
                head = {name: tensor.detach().float().clone() for name, tensor in model.score.named_parameters()}
            return model.base_model, head
        body = load_critic_body(self.path, dequantize=True, **plain_options(self.path, self.loading))
        if is_wrapped(body):
            raise InputError(f"the critic of '{self.path}' has an adapter that cannot be merged", hint="use: lora")
        return body, self.head

    @property
    def head(self) -> dict[str, Tensor]:
        """The head alone: `weight` (K, H), and `bias` (K,) where it has one."""
        if self.is_critic:
            found = value_head_in(self.path)
            assert found is not None
            return found
        return score_head(Path(self.path)) if self.body == "adapter" else self.whole[1]

    @property
    def config(self) -> Any:
        """The `peft.PeftConfig` of its newest adapter, as one beside a policy's has it."""
        from peft import PeftConfig

        ensure_registered(self.adapters[-1])
        config = PeftConfig.from_pretrained(str(self.adapters[-1]))
        # the head is not a part of the adapter here, and the base is the policy's, whatever the folder's name
        changes: dict[str, Any] = {"task_type": "CAUSAL_LM", "inference_mode": False, "base_model_name_or_path": None}
        for name in ("modules_to_save", "exclude_modules"):
            if isinstance(given := getattr(config, name, None), list | set):
                changes[name] = [one for one in given if one not in HEADS] or None
        return replace(config, **changes)

    def misfit(self, model: Any, policy_config: Any) -> str:
        """Say why its adapter cannot stand beside the policy's on one base; empty where it can.

        Args:
            model: the policy, or the path that it is loaded from.
            policy_config: the policy's `peft.PeftConfig`.
        """
        below, base = adapters_below(model), base_path(model)
        rest = self.adapters[len(below) :]
        own = self.base
        # the base first: of an adapter on another one nothing else would be worth telling
        if own.path != base and not same_weights(base, own.path):
            return f"its base is {own.path}, the policy's {base}"
        if (own.revision or "main") != (getattr(policy_config, "revision", None) or "main") and own.path == base:
            return f"its base has revision {own.revision or 'main'}, the policy's another"
        if not rest or tuple(map(digest, self.adapters[: len(below)])) != below:
            return "the adapters below it are others than those below the policy's"
        from peft import PeftConfig

        for one in rest:
            ensure_registered(one)
        configs = [PeftConfig.from_pretrained(str(one)) for one in rest]
        kinds = [str(config.peft_type.value) for config in configs]
        if other := [kind for kind in kinds if kind != policy_config.peft_type.value]:
            return f"its adapter is {other[0]}, the policy's {policy_config.peft_type.value}"
        if moved := next(filter(None, (moves_base(vars(one)) for one in (policy_config, *configs))), None):
            return f"init_lora_weights {moved} has changed the base for one of both"
        if whole := set(getattr(configs[-1], "modules_to_save", None) or ()) - {*HEADS}:
            return f"it trained {', '.join(sorted(whole))} whole"
        if len(rest) > 1 and not all(adds_up(kind, vars(one)) for kind, one in zip(kinds, configs, strict=True)):
            return "it lies on an adapter that the policy's base has not, and does not only add to it"
        return ""


def saved_values(given: str | ModelArtifact) -> SavedValues:
    """Find out what a folder or Hub id holds.

    Raises:
        InputError: no value function.
    """
    name, path, loading = (
        (given.name, given.path, given.loading) if isinstance(given, ModelArtifact) else (given, given, {})
    )
    found = SavedValues(path, "whole", loading)
    if found.is_critic:
        kind = kind_said(Path(path) / "critic")
        return replace(found, body="whole" if kind == "separate" else kind)
    task = task_to_load(path, loading.get("model_revision"))
    if task == "SequenceClassification" or (task == "TokenClassification" and form_in(path) is not None):
        found = replace(found, body="adapter" if adapters_in(path) else "whole")
        form = found.form
        # by the head itself: the config of an adapter's base has the labels of the base's own head, if any
        wanted, rows = (1 if form is None else form.num_labels), len(found.head["weight"])
        if rows == wanted:
            return found
        raise InputError(f"critic.from '{name}' has {rows} labels, expected {wanted}: it is no reward model")
    what = "a process reward model" if task == "TokenClassification" else "a language model without a critic"
    raise InputError(f"critic.from '{name}' is {what}", hint="name a stage value, reward, or ppo with a critic")


def source_of(saved: SavedValues, name: str, model: Any, policy_config: Any) -> ValueSource:
    """Return what the rules ask of it, for this policy.

    Args:
        saved: the value function.
        name: what messages call it.
        model: the policy, or the path that it is loaded from.
        policy_config: the policy's `peft.PeftConfig`, or None.
    """
    misfit = saved.misfit(model, policy_config) if saved.body == "adapter" and policy_config is not None else ""
    is_policy = saved.body == "shared" and _is_policy(saved.path, model, policy_config)
    return ValueSource(name, saved.body, is_policy, misfit)


def _is_policy(path: str, model: Any, policy_config: Any) -> bool:
    """Tell whether a policy to be trained is, weight for weight, the one in a folder."""
    folders = adapters_in(path)
    if not folders:
        return policy_config is None and same_weights(base_path(model), path)
    if not compat.is_peft(model) or adapters_below(model) != tuple(map(digest, folders[:-1])):
        return False
    from peft import get_peft_model_state_dict, load_peft_weights

    # by the weights: a policy in memory has no path, and one that has learned since then is another
    saved, own = load_peft_weights(path, device="cpu"), get_peft_model_state_dict(model)
    return saved.keys() == own.keys() and all(torch.equal(own[k].cpu(), v.to(own[k].dtype)) for k, v in saved.items())


def check_tokenizer(saved: SavedValues, name: str, tokenizer: Any) -> None:
    """Refuse values of other tokens than the policy writes.

    Args:
        saved: the value function.
        name: what messages call it.
        tokenizer: the policy's.

    Raises:
        InputError: another vocabulary.
    """
    own = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    theirs = load_tokenizer(saved.path, saved.loading)
    if theirs.get_vocab() != own.get_vocab():
        found = (
            f"critic.from '{name}' has another vocabulary, of {len(theirs)} tokens, expected the policy's {len(own)}"
        )
        raise InputError(found, hint="name a value or reward model that was trained from the policy's own base")
