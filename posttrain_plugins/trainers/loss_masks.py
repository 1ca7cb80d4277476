"""Which tokens a stage learns from, seen before it runs: its own trainer, built on a stand-in model and a few rows.

TRL prepares data inside its trainers, each in its own way. So a trainer is built as for training, and asked for its
first batch; the model is a random one of a few thousand parameters with the stage's own tokenizer. No paper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from posttrain_plugins.models.load import load_tokenizer
from posttrain_plugins.trainers import compat

__all__ = ["masks", "preview_args", "save_stand_in"]

MAX_COMPLETION_TOKENS = 8
OFF = {  # what a look at a few rows does without
    "bf16": False,
    "deepspeed": None,
    "eval_strategy": "no",
    "fsdp": None,
    "generation_batch_size": None,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "load_best_model_at_end": False,
    "max_completion_length": MAX_COMPLETION_TOKENS,
    "max_steps": 1,
    "model_init_kwargs": None,
    "num_generations": 2,
    "num_generations_eval": None,
    "precompute_ref_log_probs": False,
    "quantization": None,
    "report_to": "none",
    "steps_per_generation": None,
    "teacher_model_init_kwargs": None,
    "use_cpu": True,
    "use_liger_kernel": False,
    "use_transformers_continuous_batching": False,
    "use_vllm": False,
}


MaskedRow: TypeAlias = tuple[str, list[int], list[bool]]
"""Part, token ids, and which carry loss; without padding."""


def save_stand_in(folder: Path) -> None:
    """Save a random causal language model of one small layer beside the tokenizer that the folder holds."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = load_tokenizer(folder)
    config = Qwen3Config(
        vocab_size=max([len(tokenizer), *tokenizer.get_vocab().values()]) + 1,  # added tokens may leave gaps in the ids
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(str(folder))


def preview_args(config_class: Any, args: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return the recipe's `args` without what a look does without, as far as the config class has such fields."""
    known = {field.name for field in dataclasses.fields(config_class)}
    batch = {"per_device_train_batch_size": 2 * rows if "num_generations" in known else rows}
    off = {name: value for name, value in {**OFF, **batch}.items() if name in known}
    return {**{name: value for name, value in args.items() if name != "critic"}, **off}


def masks(trainer: Any, rows: Any, writes: bool) -> dict[str, Any]:
    """Return what the trainer's first batch holds.

    Args:
        trainer: built on the stand-in model.
        rows: the data set that it was given.
        writes: the model learns to write, and with it to stop; a judge of texts does not.

    Returns:
        `rows`, each with `part` (chosen, rejected, good, bad, or empty) and `tokens`, pairs of text and whether it
        carries loss; `warnings`; and `is_drawn`, whether the completions are the stand-in's and stand for any.
    """
    batch = compat.first_batch(trainer)
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    # some trainers tokenize only as they sample: their batch is the data set's rows
    is_tokenized = isinstance(batch, Mapping) and any(name.endswith("_ids") for name in batch)
    if is_tokenized:
        found = list(_drawn_rows(batch) if "completion_ids" in batch else _padded_rows(batch))
    else:
        found = []
        for prompt in batch["prompt"] if isinstance(batch, Mapping) else [row["prompt"] for row in batch]:
            if isinstance(prompt, str):
                encoded = tokenizer(prompt)
            else:
                encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
            ids = list(encoded["input_ids"])
            found.append(("", ids, [False] * len(ids)))
    is_drawn = not is_tokenized or "completion_ids" in batch
    texts = [(part, [tokenizer.decode([token]) for token in ids], learned) for part, ids, learned in found]
    return {
        "rows": [{"part": part, "tokens": list(zip(tokens, on, strict=True))} for part, tokens, on in texts],
        "is_drawn": is_drawn,
        "warnings": [] if is_drawn else list(_warnings(trainer.args, tokenizer, found, rows, writes)),
    }


def _drawn_rows(batch: Mapping[str, Any]) -> Iterator[MaskedRow]:
    seen = []
    for i in range(len(batch["prompt_ids"])):
        prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
        completion = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        if prompt not in seen:  # one completion of a group tells as much as all
            seen.append(prompt)
            yield "", prompt + completion, [False] * len(prompt) + [True] * len(completion)


def _padded_rows(batch: Mapping[str, Any]) -> Iterator[MaskedRow]:
    for prefix in ("", "chosen_", "rejected_"):
        ids = batch.get(f"{prefix}input_ids")  # (B, T)
        if ids is None:
            continue
        learned, attended = _learned(batch, prefix), batch.get(f"{prefix}attention_mask")
        # a batch of pairs without other marks has all chosen ones first, then all rejected ones, as TRL's collators do
        is_paired = not {"label", "labels", "step_labels", "sizes", "rewards"} & set(batch) and not prefix
        for i in range(len(ids)):
            kept = attended[i].bool() if attended is not None else ids[i] == ids[i]
            part = prefix.removesuffix("_")
            if "label" in batch:
                part = "good" if bool(batch["label"][i]) else "bad"
            elif is_paired:
                part = "chosen" if i < len(ids) // 2 else "rejected"
            yield part, ids[i][kept].tolist(), learned[i][kept].tolist()


def _learned(batch: Mapping[str, Any], prefix: str) -> Any:
    """Tell where the loss looks, (B, T); a judge of whole texts reads the last token."""
    import torch

    if f"{prefix}labels" in batch:
        return batch[f"{prefix}labels"] != -100
    if f"{prefix}completion_mask" in batch:
        return batch[f"{prefix}completion_mask"].bool()
    if "step_labels" in batch:
        return batch["step_labels"] >= 0
    attended = batch[f"{prefix}attention_mask"]
    return torch.arange(attended.shape[1])[None] == attended.sum(1, keepdim=True) - 1


def _warnings(args: Any, tokenizer: Any, found: list[MaskedRow], rows: Any, writes: bool) -> Iterator[str]:
    """Warn of EOS that nothing teaches, and of rows and turns without loss."""
    empty = sum(not any(learned) for _, _, learned in found)
    if empty:
        yield f"{empty} of {len(found)} rows have no token with loss: cut by max_length, or not marked by the template"
    if writes:
        taught = {token for _, ids, learned in found for token, is_on in zip(ids, learned, strict=True) if is_on}
        if tokenizer.eos_token_id not in taught:
            eos = f"EOS ({tokenizer.eos_token})"
            yield f"{eos} is never learned in these rows: the model will not stop; put it into the template's last turn"
    if getattr(args, "assistant_only_loss", False):
        turns = sum(
            m["role"] == "assistant" for row in rows for m in row.get("messages") or row.get("completion") or ()
        )
        # a turn is a run of tokens with loss
        starts = [on and not before for _, _, x in found for before, on in zip([False, *x], x, strict=False)]
        if sum(starts) < turns:
            yield f"{turns - sum(starts)} of {turns} assistant turns have no loss"
