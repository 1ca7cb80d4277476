"""One training step of a model without weights, op by op: what is alive, and when it is most. No paper.

The model stands on the meta device and goes forward and back on tensors that have a shape and no storage
(`FakeTensorMode`), so that a step of 8e9 parameters takes a second and a CPU's memory. What is counted is what
autograd would keep of this very model, adapter, loss and precision; nothing is known here of architectures.

1. Two layers are traced, then three: what a layer adds is the difference. A model whose layers differ is traced whole.
2. Attention is a fused kernel's: it keeps queries, keys, values, its output, a number a row and head, and the mask.
   With a mask, transformers repeats the keys of a group for each of its queries.
3. Rows are as long as each other, so that every one has the mask that padding brings.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface

from posttrain_plugins.models.fused_head import folding_in_place
from posttrain_plugins.models.training_memory import Moments

__all__ = ["ATTENTION", "Pass", "count_step", "decoder_layers", "trace"]

ATTENTION = "posttrain_fused"
"""Under this name transformers finds the attention that stands for a fused kernel."""
FEW_LAYERS, MORE_LAYERS = 2, 3


@dataclass
class Pass:
    """What goes through a model at once.

    Args:
        rows: B.
        length: tokens of a row.
        call: takes the model, the token ids (B, T) and the mask (B, 1, T, T), and returns the loss.
        has_mask: are rows padded? Packed ones are not.
        compute_dtype: what autocast computes in; None computes in the dtype of the weights.
        is_on_gpu: does TRL's fused head fold its tiles in place?
    """

    rows: int
    length: int
    call: Callable[[Any, Tensor, Tensor | None], Tensor]
    has_mask: bool = True
    compute_dtype: torch.dtype | None = None
    is_on_gpu: bool = False


class _FusedAttention(torch.autograd.Function):  # type: ignore[misc]
    """Keeps for the way back what a fused kernel does, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        out, log_sum = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)
        # torch makes numbers of a mask of truth values, in each layer anew
        ctx.save_for_backward(query, key, value, out, log_sum, mask if mask is None else mask.to(query.dtype))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any) -> Any:
    groups = query.shape[1] // key.shape[1]
    # as transformers' own `sdpa_attention_forward`: without a mask torch's kernel takes grouped heads as they are
    if mask is not None and groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return _FusedAttention.apply(query, key, value, mask).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)


class _Alive(TorchDispatchMode):  # type: ignore[misc]
    """Counts the bytes of the storages that ops have made and that somebody still holds.

    Args:
        there: tensors that were there before: an op that returns a view of one has made nothing.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.there = [one.untyped_storage() for one in there]
        self.bytes: dict[int, int] = {id(storage): 0 for storage in self.there}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        # after each op and not at the end of a layer: the largest temporaries live for one op
        self.peak = max(self.peak, self.now)
        return made

    def _count(self, storage: Any) -> None:
        # torch keeps the Python object of a storage as long as the storage, so this names it
        key = id(storage)
        if key not in self.bytes:  # a view has its base's storage
            self.bytes[key] = storage.nbytes()
            self.now += self.bytes[key]
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.bytes.pop(key)

    def collected(self) -> int:
        """Return what is alive once Python has let go of what nobody can reach."""
        # a checkpointed layer and its frame hold each other
        gc.collect()
        return self.now

    def take_peak(self) -> int:
        """Return the peak since the last call, and begin anew from what is alive."""
        peak, self.peak = self.peak, self.now
        return peak


@dataclass
class _Marks:
    """Where a step stands: at the loss, in the last layer, in what is before it.

    Args:
        alive: the count.
        activations: what is alive when the layers are through.
        loss: peak until the gradient of the last layer's output is there.
        last: peak from there to the gradient of that layer's input.
    """

    alive: _Alive
    activations: int = 0
    loss: int = 0
    last: int = 0

    def watch(self, layer: Any) -> None:
        """Mark the first way through the last layer; gradient checkpointing goes a second time on the way back."""
        layer.register_forward_pre_hook(self._enter, with_kwargs=True)
        layer.register_forward_hook(self._leave)

    def _enter(self, module: Any, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if not self.activations and hidden.requires_grad:
            hidden.register_hook(lambda grad: setattr(self, "last", self.alive.take_peak()))

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if not self.activations and hidden.requires_grad:
            hidden.register_hook(lambda grad: setattr(self, "loss", self.alive.take_peak()))
        self.activations = self.activations or self.alive.collected()


def trace(whole: Any, build: Callable[[int], Any] | None, given: Pass) -> Moments:
    """Return what a step has alive over the weights, at each moment at which that may be most.

    Args:
        whole: the model on the meta device; it may be changed.
        build: returns it with so many decoder layers; None where these must not be taken out.
        given: the step.
    """
    layers = decoder_layers(whole)
    if build is None or layers is None or len(layers) <= MORE_LAYERS or not _alike(layers):
        return _traced(whole, given)
    # twice as long as one trace, and still a hundred times shorter than all layers of a large model
    few, more = (_traced(build(count), given) for count in (FEW_LAYERS, MORE_LAYERS))
    return few.extended(more, len(layers) - FEW_LAYERS)


def _traced(model: Any, given: Pass) -> Moments:
    with (
        warnings.catch_warnings(),
        FakeTensorMode(),
        folding_in_place() if given.is_on_gpu else contextlib.nullcontext(),
    ):
        warnings.simplefilter("ignore")  # of options that transformers is about to rename
        _without_storage(model)
        ids = torch.zeros(given.rows, given.length, dtype=torch.long)
        shape = (given.rows, 1, given.length, given.length)
        mask = torch.ones(shape, dtype=torch.bool) if given.has_mask else None
        return count_step(model, given.call, ids, mask, given.compute_dtype)


def count_step(model: Any, call: Any, ids: Tensor, mask: Tensor | None, dtype: torch.dtype | None = None) -> Moments:
    """Go forward and back once, and return what was alive over the weights.

    Args:
        model: with storage or without.
        call: takes model, ids and mask, and returns the loss.
        ids: (B, T).
        mask: as the model takes it.
        dtype: that autocast computes in.
    """
    given = [ids] if mask is None else [ids, mask]
    layers, marks = decoder_layers(model), _Marks(_Alive((*model.parameters(), *model.buffers(), *given)))
    if layers is not None:
        marks.watch(layers[-1])
    model.train()
    with marks.alive, _autocast(dtype):
        loss = call(model, ids, mask)
        kept = marks.alive.collected()
    with marks.alive:  # autocast ends with the forward pass, and its copies of weights with the graph
        loss.backward()
    del loss  # its graph holds what was put aside for checkpointing
    rest, left = marks.alive.take_peak(), marks.alive.collected()
    # where nothing below the head learns, no gradient comes to the layers, and the rest is all
    return Moments(marks.activations, marks.loss or rest, marks.last, rest, kept, left)


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """Return the list of modules with most parameters; None where there is none of more than one module."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    # not the longest: a layer may have more experts than there are layers
    return max(lists, key=lambda one: sum(p.numel() for p in one.parameters()), default=None)


def _alike(layers: nn.ModuleList) -> bool:
    """Tell whether all layers have the same parameters, learning or not."""
    shapes = [tuple((name, p.shape, p.requires_grad) for name, p in layer.named_parameters()) for layer in layers]
    return len(set(shapes)) == 1


def _without_storage(model: Any) -> None:
    """Move a model from the meta device to tensors that say that they are on a CPU, which autocast knows."""
    moved: dict[int, Tensor] = {}

    def twin(one: Tensor) -> Tensor:
        if id(one) not in moved:  # tied weights stay tied
            bare = torch.empty(one.shape, dtype=one.dtype)
            moved[id(one)] = nn.Parameter(bare, one.requires_grad) if isinstance(one, nn.Parameter) else bare
        return moved[id(one)]

    for module in model.modules():
        held = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, one in held:
            setattr(module, name, twin(one))


@contextlib.contextmanager
def _autocast(dtype: torch.dtype | None) -> Iterator[None]:
    if dtype is None:
        yield
        return
    with torch.autocast("cpu", dtype=dtype):
        yield
