"""Reward models and process reward models that are adapters on the policy's own base: loaded beside the policy's.

The reward keeps its own way from text to tokens, and from logits to scores; what computes the logits is the policy's
base with the reward's adapters in force instead of the policy's. A classifier's adapter loads on a causal LM, but PEFT
passes its `score` head over in silence; it is read from the file here. No paper.
"""

from __future__ import annotations

import copy
import filecmp
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from posttrain_plugins.backends.transformers.classifier import Classifier
from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import adds_up, ensure_registered, moves_base
from posttrain_plugins.models.folder import adapter_config, adapters_in, digest, task_of
from posttrain_plugins.models.stack import attached_adapters
from posttrain_plugins.plugins import registry
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.ppo.route import Route

__all__ = [
    "SharedClassifier",
    "WithSharedRewards",
    "adapters_below",
    "base_path",
    "could_share",
    "same_weights",
    "score_head",
    "shared",
]


def shared(reward: Any, base_path: str, policy_config: Any, below: tuple[str, ...] = ()) -> Any:
    """Return the reward with the policy's base as its classifier where it is an adapter of that, else as it is.

    Args:
        reward: a folder, or a reward with a `classifier` (the plugins `reward_model` and `process_reward_model`).
        base_path: what the policy's base was loaded from.
        policy_config: the policy's `peft.PeftConfig`, or None.
        below: the digests of the adapters below the policy's, which have to be below the reward's too.
    """
    if hasattr(reward, "__wrapped__"):  # a guarded one keeps its guard
        return reward
    is_ours = isinstance(getattr(reward, "classifier", None), Classifier)
    path = reward.classifier.path if is_ours else reward
    if policy_config is None or not isinstance(path, str) or not adapter_config(path):
        return reward
    folders = _beside_the_policy(path, base_path, policy_config, below)
    if folders is None:
        return reward
    if is_ours:
        judge, task = copy.copy(reward), reward.classifier.task
    else:  # a classifier of sequences, as TRL loads a path
        judge, task = registry.find("reward", "reward_model").load()(path), "SequenceClassification"
        judge.__name__ = Path(path).name  # what TRL would have logged it under
    if task != task_of(path):
        return reward
    judge.classifier = SharedClassifier(path, task, folders)
    return judge


def _beside_the_policy(path: str, base: str, policy: Any, below: tuple[str, ...]) -> list[Path] | None:
    """Return the adapters that make the policy's base the reward model, from the base up; None where none can.

    What lies below the policy's adapter is part of its base, and has to be below the reward's too. What lies below the
    reward's alone is added: of a policy that goes on with SFT's adapter, that adapter as SFT left it.
    """
    from peft import PeftConfig

    ensure_registered(path)
    folders = adapters_in(path)
    rest = folders[len(below) :]
    if not rest or tuple(map(digest, folders[: len(below)])) != below:
        return None
    configs = [PeftConfig.from_pretrained(str(folder)) for folder in rest]
    # of one type: a PEFT model holds adapters of one tuner; and several at once have to be what one on another is
    fits = all(one.peft_type == policy.peft_type and not one.is_prompt_learning for one in configs)
    fits = fits and not any(moves_base(vars(one)) for one in (policy, *configs))
    fits = fits and (len(rest) == 1 or all(adds_up(one.peft_type.value, vars(one)) for one in configs))
    # the same Hub id is the same weights in the same revision alone
    fits = fits and (configs[-1].revision or "main") == (policy.revision or "main")
    return rest if fits and same_weights(base, str(configs[-1].base_model_name_or_path)) else None


def same_weights(one: str, other: str) -> bool:
    """Tell the same Hub id or folder, or two folders with the same bytes: stages that merge do so each for itself."""
    if one == other:
        return True
    files = [sorted(Path(folder).glob("*.safetensors")) for folder in (one, other)]
    if not files[0] or [f.name for f in files[0]] != [f.name for f in files[1]]:
        return False
    return all(filecmp.cmp(a, b, shallow=False) for a, b in zip(*files, strict=True))


class SharedClassifier(Classifier):
    """A classifier that is a policy's base with other adapters in force, and a head of its own.

    Args:
        path: the folder of the newest of these adapters, with the tokenizer.
        task: `SequenceClassification` or `TokenClassification`.
        folders: of the adapters, from the base up.

    Raises:
        InputError: the newest has no trained head.
    """

    def __init__(self, path: str, task: Any, folders: Sequence[Path]) -> None:
        super().__init__(path, task)
        self.folders = tuple(folders)
        self.adapters: tuple[str, ...] = ()
        self._head = score_head(Path(path))

    @property
    def model(self) -> Any:
        """The policy's model, asked as a classifier; after `bind`."""
        return self._model

    def bind(self, model: Any, number: int) -> None:
        """Load the adapters into the policy's `PeftModel`, frozen; once, before the policy is trained."""
        newest = f"reward_{number}"
        self.adapters = (*(f"{newest}_below_{i}" for i in range(len(self.folders) - 1)), newest)
        with warnings.catch_warnings():
            # a classifier of tokens leaves out its head, which the policy's base has not
            warnings.filterwarnings("ignore", "You have passed exclude_modules")
            for name, folder in zip(self.adapters, self.folders, strict=True):
                model.load_adapter(str(folder), name, is_trainable=False)
        self._model = _OnTheBase(model, Route(model, *self.adapters), self._head, self.task)

    def close(self) -> None:
        """Leave everything as it is: the memory is the policy's."""


class _OnTheBase:
    """Hidden states of a policy's base with other adapters in force, through a head."""

    def __init__(self, model: Any, route: Route, head: dict[str, Tensor], task: str) -> None:
        self._model, self._route, self._head, self._task = model, route, head, task

    @property
    def device(self) -> Any:
        return self._model.device

    # not inference mode: what the policy's modules keep of such a pass could not be used in one that learns
    @torch.inference_mode(False)  # type: ignore[untyped-decorator]
    @torch.no_grad()  # type: ignore[untyped-decorator]
    def __call__(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        was_training = self._model.training
        self._model.eval()  # neither dropout nor checkpointing
        try:
            with self._route:
                body = self._model.get_base_model().base_model
                hidden = body(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache).last_hidden_state
        finally:
            self._model.train(was_training)
        if self._task == "SequenceClassification":  # the head reads the last token of the text
            last = attention_mask.sum(1) - 1
            hidden = hidden[torch.arange(len(hidden), device=hidden.device), last.to(hidden.device)]
        head = {name: tensor.to(hidden.device) for name, tensor in self._head.items()}
        return SimpleNamespace(logits=torch.nn.functional.linear(hidden.float(), **head))  # (B, labels), (B, T, labels)


def score_head(folder: Path) -> dict[str, Tensor]:
    """Return the head of a classifier that is an adapter: `weight` (labels, H), and `bias` (labels,) if it has one.

    Raises:
        InputError: the adapter has none that was trained.
    """
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        names = [key for key in file.keys() if ".score." in f".{key}"]  # noqa: SIM118 (not a mapping)
        head = {key.rpartition(".")[2]: file.get_tensor(key).float() for key in names}
    if "weight" not in head:
        raise InputError(
            f"reward adapter has no trained score head: {folder}",
            hint="train it with modules_to_save: [score], as the stages `reward` and `prm` do",
        )
    return head


def could_share(rewards: Sequence[Any]) -> bool:
    """Tell whether one of these is a reward model that is an adapter; whose base it is on, the trainer asks."""
    classifiers = [getattr(reward, "classifier", None) for reward in rewards]
    return any(isinstance(one, Classifier) and bool(adapter_config(one.path)) for one in classifiers)


class WithSharedRewards:
    """Goes before `GRPOTrainer` or `RLOOTrainer`: an adapter on the policy's own base judges beside the policy's.

    Where a reward is none, or the weights are in pieces (FSDP), it stays what it is.

    Args:
        model: as TRL's trainer takes it, and so are the others.
        reward_funcs: one, or a list.
        args: the trainer's config.
        train_dataset: with `prompt` and the columns that the rewards need.
        **options: any other argument of the trainer.
    """

    model: Any
    args: Any
    reward_funcs: list[Any]

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, train_dataset: Any = None, **options: Any
    ) -> None:
        given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs] if reward_funcs is not None else []
        if not _is_in_pieces(args):
            policy_config = options.get("peft_config") or compat.active_config(model)
            base, below = base_path(model), adapters_below(model)
            given = [shared(reward, base, policy_config, below) for reward in given]
        super().__init__(model, given, args, train_dataset, **options)  # type: ignore[call-arg]
        found = [getattr(reward, "classifier", None) for reward in self.reward_funcs]
        classifiers = [one for one in found if isinstance(one, SharedClassifier)]
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # PEFT draws weights and then loads: the rollouts' numbers stay TRL's
            for number, classifier in enumerate(classifiers):
                classifier.bind(self.model, number)
        self.reward_adapters = [name for classifier in classifiers for name in classifier.adapters]
        compat.hide_from_vllm(self, self.is_beside_the_policy)

    def is_beside_the_policy(self, name: str) -> bool:
        """Tell whether the parameter of that name is a reward model's."""
        return not set(name.split(".")).isdisjoint(self.reward_adapters)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        for name in self.reward_adapters:  # PEFT saves what is not ours to change
            shutil.rmtree(Path(output_dir or self.args.output_dir) / name, ignore_errors=True)


def _is_in_pieces(args: Any) -> bool:
    """Tell FSDP, by the config or by `accelerate launch`: a pass through a part of the model finds shards there."""
    return bool(getattr(args, "fsdp", None)) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


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
