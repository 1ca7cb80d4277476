"""A process reward model: the probability that a completion is right so far, at the end of each of its steps.

Papers: Lightman et al., 2023 (https://huggingface.co/papers/2305.20050), section 2.6; soft labels as in Math-Shepherd
(https://huggingface.co/papers/2312.08935), section 3.3. TRL had such a trainer until 1.13.

1. One logit and a sigmoid instead of two logits and a softmax, so that labels may be shares of right rollouts, and so
   that `trl.RewardTrainer`, which this extends, takes care of loading, PEFT, quantization and logging.
2. A text is tokenised as a whole, as at inference; a step's label stands on the token that holds its last character.
3. The loss is the mean over the ends of steps of an optimizer step, however they are spread over processes and
   micro-batches; TRL's was the mean of the micro-batches' means, in which a step among few weighs more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from transformers import set_seed
from transformers.utils import logging
from trl import RewardConfig, RewardTrainer

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.load import load_full, load_tokenizer
from posttrain_plugins.text import render
from posttrain_plugins.text.steps import SEPARATOR, closed_steps, last_tokens
from posttrain_plugins.trainers import compat, stage_rules
from posttrain_plugins.trainers.encoded_rows import EncodedRows, pad_right
from posttrain_plugins.trainers.ppo import rules

__all__ = ["PRMConfig", "PRMTrainer", "StepCollator", "encode", "load_token_classifier"]

IGNORED = -100.0  # the label of a token at which no step ends


@dataclass
class PRMConfig(RewardConfig):  # type: ignore[misc]
    """`trl.RewardConfig`, and where a step ends.

    Args:
        step_separator: put behind each step of `completions`, but the last, that does not end with it.
    """

    step_separator: str = field(
        default=SEPARATOR, metadata={"help": "Put behind each step, but the last, that does not end with it."}
    )


class PRMTrainer(EncodedRows, RewardTrainer):  # type: ignore[misc]
    """Trains a token classifier with one label on stepwise data.

    Args:
        model: a folder or Hub id, or a token classification model with `num_labels=1`, also a `PeftModel`.
        args: a `PRMConfig`.
        train_dataset: `prompt` (text or messages), `completions` (its steps, texts) and `labels` (a bool or a
            probability for each step).
        kwargs: the other arguments of `trl.RewardTrainer`: `eval_dataset`, `processing_class`, `peft_config`,
            `quantization_config`, `callbacks` ...

    Raises:
        InputError: a row has not one label for each step, or the tokenizer cannot tell where its tokens start.

    Example:
        >>> PRMTrainer(model="Qwen/Qwen3-0.6B", args=PRMConfig(), train_dataset=steps).train()  # doctest: +SKIP
    """

    _tag_names = ("trl", "prm")
    _name = "PRM"
    columns = ("input_ids", "step_labels")
    loss_is_scaled_for_ga = True  # `compute_loss` divides by what `get_batch_samples` counts, transformers by nothing

    def __init__(self, model: Any, args: PRMConfig | None = None, **kwargs: Any) -> None:
        args = args or PRMConfig()
        if isinstance(model, str):
            if kwargs.get("processing_class") is None:
                revision = (args.model_init_kwargs or {}).get("revision")
                kwargs["processing_class"] = load_tokenizer(model, {"model_revision": revision})
            model = load_token_classifier(model, args, kwargs.pop("quantization_config", None))
            args.model_init_kwargs = None
        if kwargs.get("data_collator") is None:
            tokenizer = kwargs["processing_class"]
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            kwargs["data_collator"] = StepCollator(pad)
        super().__init__(model=model, args=args, **kwargs)

    def encode_row(self, tokenizer: Any, row: Mapping[str, Any], number: int, args: PRMConfig) -> dict[str, Any]:
        """Return the row's tokens, with a label at the end of each step."""
        return encode(tokenizer, row, number, args.step_separator)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Return the micro-batches of an optimizer step, and how many steps end in those of all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        # transformers counts `labels` alone, of which this trainer has none
        ends = sum((batch["step_labels"] != IGNORED).sum() for batch in batches)
        return batches, self.accelerator.gather(torch.as_tensor(ends, device=device)).sum().clamp(min=1)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the binary cross-entropy over the ends of all steps in the batch.

        In training it is the batch's share of the mean over `num_items_in_batch` ends, those of the optimizer step.
        """
        labels = inputs["step_labels"]  # (B, T)
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        is_end = labels != IGNORED
        logits, targets = outputs.logits.squeeze(-1)[is_end].float(), labels[is_end]  # (ends,)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")  # (ends,)
        if num_items_in_batch is None:  # an evaluation
            loss = losses.mean()
        else:  # times the processes, over whose gradients DDP takes the mean
            loss = losses.sum() / num_items_in_batch * self.accelerator.num_processes
        predicted, right = logits.detach() > 0, targets > 0.5
        counts = torch.stack([(predicted == right).sum(), (~predicted & ~right).sum(), (~right).sum(), right.sum()])
        # counts are added up before they are divided: a mean of the processes' shares would not be the batch's
        agreed, found, wrong, good = self.accelerator.gather(counts[None]).sum(0).tolist()
        compat.add_metric(self, "accuracy", agreed / max(wrong + good, 1))
        compat.add_metric(self, "right_share", good / max(wrong + good, 1))
        if wrong:
            compat.add_metric(self, "wrong_found", found / wrong)
        return (loss, outputs) if return_outputs else loss


@dataclass(frozen=True)
class StepCollator:
    """Pads on the right: `input_ids`, `attention_mask` and `step_labels`, each (B, T)."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = pad_right([row["input_ids"] for row in rows], self.pad_token_id)
        width = batch["input_ids"].size(1)
        labels = [list(row["step_labels"]) + [IGNORED] * (width - len(row["step_labels"])) for row in rows]
        return {**batch, "step_labels": torch.tensor(labels, dtype=torch.float32)}


def encode(tokenizer: Any, row: Mapping[str, Any], number: int, separator: str) -> dict[str, list[Any]]:
    """Return one row of stepwise data as tokens, with a label at the end of each step.

    Args:
        tokenizer: a fast one, which knows where its tokens start.
        row: `prompt`, `completions`, `labels`.
        number: which row this is, for errors.
        separator: see `PRMConfig`.

    Returns:
        `input_ids` (T,) and `step_labels` (T,), `IGNORED` where no step ends.
    """
    if issue := stage_rules.step_label_concern(row, number):
        rules.refuse([issue])
    steps, labels = list(row["completions"]), list(row["labels"])
    if not tokenizer.is_fast:
        raise InputError(f"{type(tokenizer).__name__} does not tell where tokens start", hint="use its fast version")
    prompt = render(tokenizer, row["prompt"])
    closed = closed_steps(steps, separator)
    ends = [len(prompt) + end for end in accumulate(map(len, closed))]  # in characters
    text = prompt + "".join(closed)
    # as one text, like at inference: steps that are tokenized one by one may end in other tokens
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    step_labels = [IGNORED] * len(encoded["input_ids"])
    starts = [start for start, _ in encoded["offset_mapping"]]
    for token, label in zip(last_tokens(starts, ends), labels, strict=True):
        step_labels[token] = float(label)
    return {"input_ids": list(encoded["input_ids"]), "step_labels": step_labels}


def load_token_classifier(path: str, args: RewardConfig, quantization_config: Any, num_labels: int = 1) -> Any:
    """Load a token classifier as TRL loads a reward model: float32 unless told, and seeded before the new head.

    Args:
        path: a folder or Hub id of a causal language model.
        args: with the seed, the device and options of `from_pretrained`.
        quantization_config: of the weights, or None.
        num_labels: logits of a token.

    Raises:
        InputError: the folder lacks weights.
    """
    options: dict[str, Any] = {"dtype": "float32", **(args.model_init_kwargs or {}), "num_labels": num_labels}
    if quantization_config is not None:
        options |= {"quantization_config": quantization_config}
        options.setdefault("device_map", {"": args.device})
    set_seed(args.seed)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is new is no news
    try:
        model, found = load_full(path, "TokenClassification", **options, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(name for name in found["missing_keys"] if not name.startswith("score."))
    if missing:
        raise InputError(f"{path} lacks weights: {', '.join(missing[:3])}", hint="name a causal language model")
    return model
