"""A value model from saved trajectories: of each state of a completion, the return that is to be expected.

Papers: Wang et al., 2025 (https://huggingface.co/papers/2505.17373), section 3: a classifier of begun completions by
how they ended, trained on completions of several policies; Farebrother et al., 2024
(https://huggingface.co/papers/2403.03950) for classes in place of regression; TD(lambda), Sutton and Barto, 2018,
section 12.1.

1. The model is a token classifier: what it says at a token is the value of the state behind it.
2. What a state learns is how its trajectory ended, or where steps are labelled with what was drawn from them (shares
   of right rollouts; Kazemnejad et al., 2024, https://huggingface.co/papers/2410.01679, section 5) the label of the
   next step's end: that state is drawn from this one, so the target has the same mean and less noise.
3. Prompt and completion are tokenised apart and EOS ends the completion, as in a rollout; the state before EOS is the
   last one that has a value.
4. The loss is the mean over the states of an optimizer step, however they are spread over processes and micro-batches.
5. Where one of right and wrong trajectories is rare, its states weigh more, and the odds of a binary classifier are set
   back by as much (Elkan, 2001); of the other losses the calibration does that.
6. Calibration is fitted on held-out prompts. The figures of them are cross-fitted: each half by the other's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import log
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional
from trl import RewardConfig, RewardTrainer

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.load import load_tokenizer
from posttrain_plugins.models.value_form import ValueForm, ValueLoss, form_in
from posttrain_plugins.text import fingerprint
from posttrain_plugins.text.steps import SEPARATOR, closed_steps, last_tokens
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.encoded_rows import EncodedRows, pad_right
from posttrain_plugins.trainers.oreo import encode
from posttrain_plugins.trainers.ppo import rules
from posttrain_plugins.trainers.ppo.advantages import gae, token_rewards
from posttrain_plugins.trainers.prm import load_token_classifier
from posttrain_plugins.trainers.stage_rules import in_steps, returns_of, stepwise_concern, value_concerns
from posttrain_plugins.trainers.value_figures import HeldOut, fitted, measured

__all__ = ["ValueConfig", "ValueTrainer", "rarity_weights", "split_prompts", "two_hot"]


@dataclass
class ValueConfig(RewardConfig):  # type: ignore[misc]
    """`trl.RewardConfig`, and what a value model has beside it.

    Args:
        value_loss: `binary`, the cross-entropy of a return's share of the range; `two_hot`, of classes; `regression`.
        num_classes: of `two_hot`.
        value_range: the least and the largest return; None takes the least and the largest reward of the data set.
        gamma: discount of a token.
        lam: 1 learns from the return (Monte Carlo), less from the model's own values of later states too: TD(lambda).
        balance: the least share of the weight that the rarer of right (above the middle of the range) and wrong has.
        calibrate: fit slope and intercept on held-out prompts.
        held_out: share of the prompts that the stage sets aside where it has no `eval_dataset`.
        step_separator: of rows in steps, put behind each step, but the last, that does not end with it.
        chat_template_kwargs: options of the chat template that prompts were rendered with.
    """

    value_loss: ValueLoss = "binary"
    num_classes: int = 21
    value_range: list[float] | None = None
    gamma: float = 1.0
    lam: float = 1.0
    balance: float = 0.25
    calibrate: bool = True
    held_out: float = 0.1
    step_separator: str = SEPARATOR
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        rules.refuse(rules.choice_concerns(self, {"value_loss": get_args(ValueLoss)}), "ValueConfig: ")
        rules.refuse(value_concerns(self), "ValueConfig: ")
        super().__post_init__()


class ValueTrainer(EncodedRows, RewardTrainer):  # type: ignore[misc]
    """Trains a token classifier on `prompt`, `completion` and `reward` (a number), or `label` (a bool), or on steps.

    Args:
        model: a folder or Hub id, or a token classification model, also a `PeftModel`.
        args: a `ValueConfig`.
        train_dataset: trajectories; those of more than `max_length` tokens, with their prompt, are left out. In
            steps, `completions` and `labels`, a label is what is expected behind its step.
        eval_dataset: held-out trajectories: figures of them, and what the calibration is fitted on.
        kwargs: the other arguments of `trl.RewardTrainer`.

    Raises:
        InputError: a row that is no trajectory, `gamma` or `lam` with steps, or a head of another size.

    Example:
        >>> ValueTrainer(model="Qwen/Qwen3-0.6B", args=ValueConfig(), train_dataset=rows).train()  # doctest: +SKIP
    """

    _tag_names = ("trl", "value")
    _name = "Value"
    columns = ("input_ids", "prompt_length", "returns", "group", "number")
    row_name = "trajectory"
    loss_is_scaled_for_ga = True  # `compute_loss` divides by what `get_batch_samples` counts, transformers by nothing

    def __init__(self, model: Any, args: ValueConfig | None = None, **kwargs: Any) -> None:
        args = args or ValueConfig()
        returns = [returns_of(row) for row in kwargs["train_dataset"]]
        columns = [getattr(of, "column_names", None) for of in (kwargs["train_dataset"], kwargs.get("eval_dataset"))]
        rules.refuse(value_concerns(args, any(in_steps(of or ()) for of in columns)), "ValueConfig: ")
        known = [value for of_row in returns for value in of_row]
        low, high = args.value_range or (min(known), max(known))
        if args.gamma < 1.0 and args.value_range is None:
            low, high = min(low, 0.0), max(high, 0.0)  # what is discounted lies nearer to 0
        classes = args.num_classes if args.value_loss == "two_hot" else 1
        earlier = _earlier_form(model, args.value_loss, classes)
        if earlier is not None and args.value_range is None:  # what its head says is a share of its own range
            low, high = min(low, earlier.low), max(high, earlier.high)
        self.form = ValueForm(args.value_loss, low, high if high > low else low + 1.0, classes)
        middle = self.form.low + self.form.span / 2
        is_right = [of_row[-1] > middle for of_row in returns if of_row]
        self.weights = rarity_weights(is_right, args.balance)  # of wrong, of right
        if args.value_loss == "binary":
            self.form = replace(self.form, intercept=log(self.weights[0] / self.weights[1]))
        self.calibrated = self.form
        self._held_out: list[HeldOut] = []
        self._measured: tuple[int, dict[str, float]] | None = None
        if isinstance(model, str):
            if kwargs.get("processing_class") is None:
                revision = (args.model_init_kwargs or {}).get("revision")
                kwargs["processing_class"] = load_tokenizer(model, {"model_revision": revision})
            model = load_token_classifier(model, args, kwargs.pop("quantization_config", None), classes)
            args.model_init_kwargs = None
        _fit_head(model, classes)
        if kwargs.get("data_collator") is None:
            tokenizer = kwargs["processing_class"]
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            kwargs["data_collator"] = StateCollator(pad)
        with compat.changed(model.config, num_labels=1):  # TRL takes no other model, and reads no logits of this one
            super().__init__(model=model, args=args, **kwargs)

    def encode_row(self, tokenizer: Any, row: Mapping[str, Any], number: int, args: ValueConfig) -> dict[str, Any]:
        """Return the trajectory's tokens, and a number that rows with one prompt have in common."""
        options, trajectory = args.chat_template_kwargs or {}, dict(row)
        if in_steps(row):
            rules.refuse([issue] if (issue := stepwise_concern(row, number)) else [])
            if not tokenizer.is_fast:
                raise InputError(
                    f"{type(tokenizer).__name__} does not tell where tokens start", hint="use its fast version"
                )
            steps = closed_steps(row["completions"], args.step_separator)
            trajectory |= {"completion": "".join(steps), "reward": row["labels"][-1]}
        made = encode(tokenizer, trajectory, number, "response", "", **options)
        count = len(made["input_ids"]) - made["prompt_length"]
        returns = [made["reward"]] * count
        if in_steps(row):
            returns = _returns_of_steps(tokenizer, steps, row["labels"], count)
        group = int(fingerprint(row["prompt"])[:15], 16)  # 60 bits: Arrow's integers have a sign
        told = {"returns": returns, "group": group, "number": number}
        return {name: made[name] for name in ("input_ids", "prompt_length")} | told

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Return the micro-batches of an optimizer step, and what the states of all processes weigh."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        weight = sum((self._weights(batch) * batch["completion_mask"][:, 1:]).sum() for batch in batches)
        weight = torch.as_tensor(weight, dtype=torch.float32, device=device)
        return batches, self.accelerator.gather(weight).sum().clamp(min=1e-6)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the weighted mean of the states' losses; of a batch in training its share of the optimizer step's."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        logits = outputs.logits[:, :-1].float()  # (B, T, K); the state before each token
        mask = inputs["completion_mask"][:, 1:].float()  # (B, T)
        values = self.form.values(logits).detach()
        returns = self._returns(inputs) * mask
        targets = returns
        if self.args.lam < 1.0:
            paid = token_rewards(mask, inputs["rewards"])
            targets = gae(paid, values * mask, mask, self.args.gamma, self.args.lam)[1]
        weights = self._weights(inputs)
        losses = self._losses(logits, self.form.share(targets), weights) * mask  # (B, T)
        if self.model.training:
            total = num_items_in_batch if num_items_in_batch is not None else (weights * mask).sum()
            # times the processes, over whose gradients DDP takes the mean
            loss = losses.sum() / total * self.accelerator.num_processes
        else:
            loss = losses.sum() / (weights * mask).sum().clamp(min=1e-6)
            self._hold(inputs, self.form.raw(logits), returns, mask)
        # sums are gathered, not shares of processes that have different numbers of states
        sums = torch.stack([x.sum() for x in (mask, values * mask, (values - returns).square() * mask, returns * mask)])
        count, mean, error, paid_mean = self.accelerator.gather(sums[None]).sum(0).tolist()
        compat.add_metric(self, "value/mean", mean / count)
        compat.add_metric(self, "value/squared_error", error / count)
        compat.add_metric(self, "returns/mean", paid_mean / count)
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Do as `trl.RewardTrainer`; of the stage's own held-out rows once for a step."""
        is_own = eval_dataset is None and metric_key_prefix == "eval"
        if is_own and self._measured is not None and self._measured[0] == self.state.global_step:
            return dict(self._measured[1])
        found: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if is_own:
            self._measured = (self.state.global_step, found)
        return found

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Do as `transformers.Trainer`, calibrate, and add the figures of the states."""
        self._held_out.clear()
        output = super().evaluation_loop(*args, **kwargs)
        # the last batch is filled up with rows from the start, where there are several processes
        rows = list({row.number: row for row in gather_object(self._held_out)}.values())
        self.calibrated = fitted(self.form, rows) if self.args.calibrate else self.form
        prefix = kwargs.get("metric_key_prefix", "eval")
        figures = measured(self.form, rows, self.args.calibrate)
        output.metrics.update({f"{prefix}_{name}": value for name, value in figures.items()})
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and how its logits are read, calibrated on the held-out rows where there are such."""
        if not _internal_call and self.eval_dataset is not None:
            if self.args.load_best_model_at_end:
                self._measured = None  # other weights than those of the last step
            self.evaluate()
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self.calibrated.write(Path(output_dir or self.args.output_dir))

    def _returns(self, batch: Mapping[str, Any]) -> Tensor:
        """Return what comes after each state, discounted, (B, T)."""
        mask = batch["completion_mask"][:, 1:].float()
        left = mask.flip(1).cumsum(1).flip(1) - 1  # the tokens behind this one
        discounted: Tensor = batch["returns"][:, 1:] * self.args.gamma**left
        return discounted

    def _weights(self, batch: Mapping[str, Any]) -> Tensor:
        """Return what each state weighs, (B, T): by its row's end, of the binary loss by its own return."""
        wrong, right = self.weights
        shares: Tensor = self.form.share(self._returns(batch)).clamp(0.0, 1.0)
        if self.form.loss != "binary":
            is_right = batch["rewards"] > self.form.low + self.form.span / 2
            shares = is_right.float().unsqueeze(1).expand_as(shares)
        return shares * (right - wrong) + wrong

    def _losses(self, logits: Tensor, shares: Tensor, weights: Tensor) -> Tensor:
        """Return each state's weighted loss, (B, T), of logits (B, T, K) and targets' shares of the range (B, T)."""
        if self.form.loss == "regression":
            return 0.5 * (logits.squeeze(-1) - shares).square() * weights
        shares = shares.clamp(0.0, 1.0)  # bootstrapped and discounted targets may round beyond
        if self.form.loss == "binary":
            wrong, right = self.weights
            ratio = torch.tensor(right / wrong, device=logits.device)
            # each part has its weight, so that the odds can be set back whatever lies in between
            return wrong * functional.binary_cross_entropy_with_logits(
                logits.squeeze(-1), shares, reduction="none", pos_weight=ratio
            )
        return -(two_hot(shares, self.form.num_labels) * logits.log_softmax(-1)).sum(-1) * weights

    def _hold(self, inputs: Mapping[str, Any], raw: Tensor, returns: Tensor, mask: Tensor) -> None:
        """Keep what the model says of held-out trajectories."""
        for i in range(len(raw)):
            on = mask[i].bool()
            group, number = int(inputs["groups"][i]), int(inputs["numbers"][i])
            self._held_out.append(HeldOut(number, group, raw[i][on].tolist(), returns[i][on].tolist()))


@dataclass(frozen=True)
class StateCollator:
    """Pads on the right: `input_ids`, `attention_mask`, `completion_mask`, `returns` (B, L); the others (B,).

    A token's return is that of the state before it; `rewards` are the last ones.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = pad_right([row["input_ids"] for row in rows], self.pad_token_id)
        starts = torch.tensor([row["prompt_length"] for row in rows])
        is_completion = torch.arange(batch["input_ids"].size(1)) >= starts[:, None]
        returns = torch.zeros(batch["input_ids"].shape)
        for i, row in enumerate(rows):
            returns[i, row["prompt_length"] : len(row["input_ids"])] = torch.tensor(row["returns"])
        return {
            **batch,
            "completion_mask": batch["attention_mask"].bool() & is_completion,
            "returns": returns,
            "rewards": torch.tensor([float(row["returns"][-1]) for row in rows]),
            "groups": torch.tensor([row["group"] for row in rows]),
            "numbers": torch.tensor([row["number"] for row in rows]),
        }


def two_hot(shares: Tensor, count: int) -> Tensor:
    """Spread each share of the range over the two classes beside it, so that their mean is the share.

    Example:
        >>> two_hot(torch.tensor([0.125]), 5)
        tensor([[0.5000, 0.5000, 0.0000, 0.0000, 0.0000]])
    """
    at = shares.clamp(0.0, 1.0) * (count - 1)
    below = at.floor().clamp(max=count - 2).long()
    upper = at - below  # the share of the upper class
    spread = torch.zeros(*shares.shape, count, device=shares.device, dtype=shares.dtype)
    spread.scatter_(-1, below.unsqueeze(-1), (1 - upper).unsqueeze(-1))
    return spread.scatter_(-1, (below + 1).unsqueeze(-1), upper.unsqueeze(-1))


def rarity_weights(is_right: Sequence[bool], balance: float) -> tuple[float, float]:
    """Return what a wrong and a right trajectory weigh, so that the rarer of both has its share.

    Example:
        >>> rarity_weights([True] * 9 + [False], balance=0.25)
        (3.0, 1.0)
    """
    right = sum(is_right)
    wrong = len(is_right) - right
    rare, common = min(right, wrong), max(right, wrong)
    if not rare or rare / (rare + common) >= balance:
        return 1.0, 1.0
    weight = balance * common / ((1 - balance) * rare)
    return (weight, 1.0) if wrong < right else (1.0, weight)


def split_prompts(dataset: Any, share: float) -> tuple[Any, Any]:
    """Set a share of the prompts aside, with all their rows; which, is told by the prompts alone.

    Args:
        dataset: a `datasets.Dataset` with `prompt`.
        share: of the distinct prompts; at least two are set aside where it is more than 0, and two are left.

    Returns:
        What is left, and what is set aside; None for the latter where there are too few prompts.
    """
    marks = [fingerprint(prompt) for prompt in dataset["prompt"][:]]
    distinct = sorted(set(marks))  # of hashes: an order that has nothing to do with the prompts
    count = max(2, round(share * len(distinct))) if share > 0 else 0
    if not count or count + 2 > len(distinct):
        return dataset, None
    aside = set(distinct[:count])
    parts = ([i for i, mark in enumerate(marks) if (mark in aside) is is_aside] for is_aside in (False, True))
    left, held = (dataset.select(part) for part in parts)
    return left, held


def _returns_of_steps(tokenizer: Any, steps: Sequence[str], labels: Sequence[Any], count: int) -> list[float]:
    """Return what each of `count` states learns, the one before each token and before EOS: the next step's label."""
    text = "".join(steps).removesuffix(tokenizer.eos_token)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    last = last_tokens([start for start, _ in offsets], list(accumulate(map(len, steps))))
    # Behind the last token of a step its label is known, of two that end in one token the later's; elsewhere the label
    # of the step that is being written.
    ended = {token: step for step, token in enumerate(last)}
    return [float(labels[ended.get(i - 1, bisect_left(last[:-1], i - 1))]) for i in range(count)]


def _earlier_form(model: Any, loss: ValueLoss, classes: int) -> ValueForm | None:
    """Return how the values of a model are read that is a value model already; None for all others.

    Raises:
        InputError: they are read in another way, for which its head would be no start.
    """
    folder = Path(str(model if isinstance(model, str) else getattr(model, "name_or_path", "")))
    form = form_in(folder) if folder.is_dir() else None
    if form is not None and (form.loss, form.num_labels) != (loss, classes):
        found = f"value_loss is {loss} with {classes} logits, but {folder} is a value model of {form.loss}"
        raise InputError(f"{found} with {form.num_labels}", hint=f"value_loss: {form.loss}, or start from its model")
    return form


def _fit_head(model: Any, count: int) -> None:
    """Give a model that is loaded a head of so many logits, where it has another.

    Raises:
        InputError: its head is part of the adapter that it goes on with.
    """
    if model.config.num_labels == count:
        return
    if compat.is_peft(model):
        found = f"value_loss two_hot has {count} logits, but the adapter's head has {model.config.num_labels}"
        raise InputError(found, hint="value_loss: binary, or adapter_mode: stack")
    old = model.score
    model.score = torch.nn.Linear(old.in_features, count, device=old.weight.device, dtype=old.weight.dtype)
    model.num_labels = model.config.num_labels = count
