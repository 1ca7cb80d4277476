"""`share_prompts`: a prompt is computed once for all of its completions, where log-probabilities are taken.

The passes for old, reference and current log-probabilities and the backward all go through the forward of the causal
LM below adapters, DDP and critic. Within a pass `Sharing` stands in for it, and gives what it would have given: the
trainer's own code sees (B, C) log-probabilities and knows of nothing. `prompt_layout` has the two ways and the formula.

1. `share` tries each way on a few rows before training, and refuses a model for which neither gives the plain numbers.
2. Completions of a prompt stay in one batch: TRL deals the rows of a rollout out at random, here its groups.
3. Dropout draws one mask for the shared prompt, not one for each completion.
4. A pass with images, with a router's loss, or past a sliding window is a plain one.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from posttrain_plugins.errors import InputError
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.prompt_layout import (
    FORMULA,
    WAYS,
    Batch,
    block_states,
    cached_states,
    cheapest,
    pairs_per_token,
)

__all__ = ["Sharing", "share"]

UNTOUCHED = ("input_ids", "attention_mask", "labels", "fused_lm_head", "with_values", "return_dict")
"""Arguments that a shared pass knows what to do with; any other that is given makes it a plain one."""
TOLERANCE = 1e-3
"""Mean difference of log-probabilities, and relative one of gradients, that rounding in float32 stays far below."""


def share(trainer: Any, stage: str) -> Sharing:
    """Let a trainer that samples compute each prompt once, from now on.

    Args:
        trainer: GRPO's, RLOO's or ours, built and not yet training.
        stage: whose it is, for errors.

    Returns:
        What counts the passes; its `record` is for the manifest.

    Raises:
        InputError: no way gives this model's own numbers, or its weights are sharded.
    """
    if compat.has_sharded_weights(trainer):
        hint = "train with DDP or ZeRO-2, or take share_prompts out of the stage"
        raise InputError(f"stage '{stage}': share_prompts was not made for sharded weights", hint=hint)
    sharing = Sharing(trainer)
    refused = {way: reason for way in WAYS if (reason := _difference(sharing, way))}
    sharing.ways = [way for way in WAYS if way not in refused]
    sharing.refused = refused
    is_recomputed = bool(trainer.args.gradient_checkpointing)
    if not sharing.ways or (is_recomputed and "block" in refused):
        told = "; ".join(f"{way}: {reason}" for way, reason in refused.items())
        needs = ", and gradient checkpointing leaves only block" if sharing.ways else ""
        message = f"stage '{stage}': share_prompts does not give this model's own log-probabilities: {told}{needs}"
        raise InputError(message, hint="take share_prompts out of the stage")
    compat.around_log_probs(trainer, sharing.within)
    compat.deal_groups(trainer)
    sharing.passes.clear()
    sharing.tokens.clear()
    return sharing


class Sharing:
    """The forward of a causal LM that reads each prompt of a batch once.

    Args:
        trainer: whose passes these are.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.ways: Collection[str] = WAYS
        self.refused: Mapping[str, str] = {}
        self.passes: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        base = self._base(trainer.model)
        self.pairs = pairs_per_token(base.base_model)

    @property
    def record(self) -> dict[str, Any]:
        """The formula and how often it took which way, as JSON values."""
        return {
            "formula": FORMULA,
            "k": round(self.pairs),
            "ways": list(self.ways),
            "refused": dict(self.refused),
            "passes": dict(self.passes),
            "tokens": dict(self.tokens),
        }

    @contextlib.contextmanager
    def within(self, model: Any, width: int) -> Iterator[None]:
        """Within, the causal LM inside `model` shares prompts of `width` columns."""
        base = self._base(model)
        plain = base.forward

        def forward(*args: Any, **given: Any) -> Any:
            # another's call, which wants logits or a cache
            if args or not given.get("fused_lm_head") or given.get("input_ids") is None:
                return plain(*args, **given)
            batch = Batch.of(given["input_ids"], given["attention_mask"], width)
            way = self._way(base, batch, given)
            self.passes[way] += 1
            self.tokens["plain"] += batch.ids.numel()
            self.tokens["read"] += _tokens(batch, way)
            return plain(**given) if way == "plain" else self._shared(base, plain, batch, way, given)

        with compat.forward_as(base, forward):
            yield

    def _base(self, model: Any) -> Any:
        model = self.trainer.accelerator.unwrap_model(model)
        return model.get_base_model() if compat.is_peft(model) else model

    def _way(self, base: Any, batch: Batch, given: Mapping[str, Any]) -> str:
        if any(value is not None and value is not False for name, value in given.items() if name not in UNTOUCHED):
            return "plain"
        if batch.ids.shape[1] > compat.attention_window(base):
            return "plain"
        ways = set(self.ways)
        if torch.is_grad_enabled() and base.training and compat.checkpointed_layers(base):
            ways.discard("cached")  # a layer that is computed again in backward keeps no cache
        return cheapest(batch, self.pairs, ways)

    def _shared(self, base: Any, plain: Any, batch: Batch, way: str, given: Mapping[str, Any]) -> Any:
        """Return the plain pass's output, per token (B, C): of the completions alone."""
        from transformers.modeling_outputs import BaseModelOutput

        is_additive = compat.adds_masks(base)

        def standing_in(read: Any) -> Any:
            def forward(*args: Any, **kwargs: Any) -> Any:
                states = cached_states(read, batch) if way == "cached" else block_states(read, batch, is_additive)
                return BaseModelOutput(last_hidden_state=states[None])  # (1, N, H), each the state before a label

            return forward

        labels = given["labels"][:, batch.width :][batch.is_label]  # (N,)
        # the head is the plain pass's own, over the states of real labels alone
        bodies = [base.base_model, *_critic_copy(base)]  # a critic reads the same rows, if not with this body
        with contextlib.ExitStack() as stack:
            for body in bodies:
                stack.enter_context(compat.forward_as(body, standing_in(body.forward)))
            output = plain(**{**given, "labels": None, "shift_labels": labels[None]})
        return type(output)(**{name: _spread(value, batch.is_label) for name, value in output.items()})


def _critic_copy(base: Any) -> list[Any]:
    """Return the critic's own body, where PPO has put one beside the policy's."""
    body = getattr(base, "critic_model", None)
    return [] if body is None else [body.get_base_model() if compat.is_peft(body) else body]


def _tokens(batch: Batch, way: str) -> int:
    """Return how many tokens a way reads, padding among them."""
    if way == "cached":
        return len(batch.first) * batch.width + len(batch.ids) * batch.columns_read
    return len(batch.first) * batch.longest_row if way == "block" else batch.ids.numel()


def _spread(value: Any, is_label: Tensor) -> Any:
    """Put (1, N) figures of labels where these stand, (B, C); all else is 0."""
    if not isinstance(value, Tensor) or value.dim() != 2:
        return value
    is_label = is_label.to(value.device)
    return value.new_zeros(is_label.shape).masked_scatter(is_label, value)


# --- before training -------------------------------------------------------------------------------------------------


def _difference(sharing: Sharing, way: str) -> str:
    """Return why a way does not give the plain pass's log-probabilities and gradients, or nothing."""
    try:
        with compat.trial(sharing.trainer.model):
            plain, plain_slope = _take(sharing, "plain")
            shared, slope = _take(sharing, way)
    except Exception as cause:  # whatever the model's own code raises for a mask or a cache
        return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0][:200] if str(cause).strip() else ''}"
    if sharing.passes[way] == 0:
        return "its adapter does not hand the tokens on to the model"
    bound = max(TOLERANCE, torch.finfo(sharing.trainer.model.dtype).eps * float(plain.abs().mean()))
    off = float((plain - shared).abs().mean())
    if not off <= bound:
        return f"log-probabilities are off by {off:.2g} in the mean"
    off = float((plain_slope - slope).norm() / plain_slope.norm().clamp(min=1e-30))
    return "" if off <= max(TOLERANCE, 8 * bound) else f"gradients are off by {off:.2g}"


def _take(sharing: Sharing, way: str) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of made-up rows, (N,), and their gradient with respect to each word's embedding."""
    model = sharing.trainer.model
    words = model.get_input_embeddings()
    vocabulary, device = words.weight.shape[0], words.weight.device
    ids, mask, width = _rows(min(vocabulary, model.config.get_text_config().vocab_size))
    ids, mask = ids.to(device), mask.to(device)
    read: list[tuple[Tensor, Tensor]] = []

    # by word, and not by place: the ways lay the same words out in other rows
    def watch(module: Any, args: Any, out: Tensor) -> Tensor:
        leaf = out.detach().requires_grad_()
        read.append((args[0], leaf))
        return leaf

    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :width] = -100
    before, sharing.ways = sharing.ways, () if way == "plain" else (way,)
    handle = words.register_forward_hook(watch)
    try:
        with torch.enable_grad(), sharing.trainer.accelerator.autocast(), _whatever_it_costs(sharing, width):
            output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        found = output.log_probs[:, -(ids.shape[1] - width) :].float()
        weights = torch.linspace(0.5, 1.5, found.numel(), device=found.device).view(found.shape)
        gradients = torch.autograd.grad((found * weights).sum(), [leaf for _, leaf in read], allow_unused=True)
    finally:
        handle.remove()
        sharing.ways = before
    slope = torch.zeros(vocabulary, read[0][1].shape[-1], device=device)
    for (tokens, _), gradient in zip(read, gradients, strict=True):
        if gradient is not None:
            slope.index_add_(0, tokens.reshape(-1), gradient.reshape(-1, gradient.shape[-1]).float())
    return found[mask[:, width:] > 0].detach(), slope


@contextlib.contextmanager
def _whatever_it_costs(sharing: Sharing, width: int) -> Iterator[None]:
    """Within, the model's passes go the one way that is allowed, since attention costs nothing in the formula."""
    before, sharing.pairs = sharing.pairs, float("inf")
    try:
        with sharing.within(sharing.trainer.model, width):
            yield
    finally:
        sharing.pairs = before


def _rows(vocabulary: int) -> tuple[Tensor, Tensor, int]:
    """Return ids and mask (B, P + C) of two prompts with three completions each, of unequal lengths, and P."""
    # rows of a prompt stand apart, one completion is a single token, and both sides have padding
    draw = torch.Generator().manual_seed(0)
    width, length = 12, 5
    prompts = torch.randint(vocabulary, (2, width), generator=draw)
    lengths, of = (width, width - 5), [1, 0, 0, 1, 1, 0]
    completions = torch.randint(vocabulary, (len(of), length), generator=draw)
    ids = torch.cat([prompts[of], completions], dim=1)
    columns = torch.arange(width + length)
    begins = torch.tensor([width - lengths[i] for i in of])
    ends = torch.tensor([width + n for n in (5, 1, 4, 2, 5, 3)])
    mask = (columns >= begins[:, None]) & (columns < ends[:, None])
    return ids, mask.long(), width
