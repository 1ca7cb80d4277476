"""Which adapters of a shared base a pass goes through; so one base serves policy, critic and reward model.

Which adapters a layer applies is a field of the layer. The route sets that field alone, and gradient checkpointing
enters the route again when it runs a layer a second time. PEFT's `set_adapter` would also take the gradients from the
other adapters, and what a checkpoint computes again would be the policy. No paper; PEFT's multi-adapter models.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from posttrain_plugins.trainers import compat

__all__ = ["Route"]


class Route:
    """A context in which a PEFT model applies these adapters, in the forward pass and when a checkpoint repeats it.

    Args:
        model: a `PeftModel`.
        *adapters: the adapters' names; of several, each layer adds what all of them give.

    Example:
        ```python
        with Route(model, "critic"):
            hidden = model.get_base_model().base_model(input_ids).last_hidden_state
        ```
    """

    def __init__(self, model: Any, *adapters: str) -> None:
        self.adapters = adapters
        self._model = model
        self._all = compat.adapter_layers(model)
        self._inside: dict[int, list[Any]] = {}
        self._open: Any = None

    def __enter__(self) -> Route:
        layers = compat.checkpointed_layers(self._model)  # asked for each time: TRL switches checkpointing on and off
        with ExitStack() as stack:
            stack.enter_context(compat.routed(self._all, *self.adapters))
            stack.enter_context(compat.recomputed_with(layers, self._again))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._open.close()

    def _again(self, layer: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return `forward` with the route entered again, for the layer alone.

        The critic's backward runs outside of the route, where the policy's adapter is active: a checkpoint would
        compute the policy's activations again, and the critic's gradients would be wrong without a word. Only the
        layer's own fields are set: autograd has a thread for each device, and each repeats its own layers.
        """
        inside = self._inside.setdefault(id(layer), compat.adapter_layers(layer))

        def routed(*args: Any, **kwargs: Any) -> Any:
            with compat.routed(inside, *self.adapters):
                return forward(*args, **kwargs)

        return routed
