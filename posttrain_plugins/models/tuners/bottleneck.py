"""Bottleneck adapters as a PEFT tuner type: a small network down, a non-linearity and up again, with a shortcut.

| placement  | reads                                 | stands                | paper                 |
|------------|---------------------------------------|-----------------------|-----------------------|
| `houlsby`  | outputs of attention and feed-forward | after each of the two | Houlsby et al., 2019  |
| `pfeiffer` | output of the feed-forward            | after it              | Pfeiffer et al., 2020 |
| `parallel` | input of the feed-forward             | beside it             | He et al., 2021       |

Papers, in this order: https://huggingface.co/papers/1902.00751, https://huggingface.co/papers/2005.00247,
https://huggingface.co/papers/2110.04366.

1. The papers have post-norm encoders; here as there the adapter comes before the residual sum, but in the pre-norm
   decoders of today no layer norm follows it.
2. The matrix up starts at zero, so that the first step's model is the base to the last bit; Houlsby et al. start near.
3. A non-linearity cannot be merged into a weight: `merge` refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.tuners.registration import register

__all__ = ["BottleneckConfig", "BottleneckLayer", "BottleneckModel"]

ATTENTION = ("self_attn", "self_attention", "attention", "attn")
FEED_FORWARD = ("mlp", "feed_forward", "block_sparse_moe", "ffn")


@dataclass
class BottleneckConfig(PeftConfig):  # type: ignore[misc]
    """What a bottleneck adapter is made of; names shared with other PEFT configs mean the same.

    Args:
        placement: `houlsby`, `pfeiffer` or `parallel`.
        reduction_factor: hidden size over bottleneck size; Pfeiffer et al. use 16 (section 3), Houlsby et al. 8 to 768.
        bottleneck_size: the size itself, in place of `reduction_factor`.
        non_linearity: a name of transformers' activations.
        scaling: times the adapter's output; 1, and 4 for `parallel` (He et al., section 4.1), where it is not given.
        bottleneck_dropout: on what the adapter reads.
        init_weights: start as the identity; False starts at random, for tests.
        target_modules: whole sublayers, attention or feed-forward, by PEFT's forms; by default the placement's.
        exclude_modules: modules to leave out.
        layers_to_transform: indices of the layers to adapt; all where it is not given.
        layers_pattern: the name of the list of layers, where it is not found.
        modules_to_save: modules that are trained whole and saved beside the adapter.
        bias: `none`; PEFT's other choices train the base's biases too.
    """

    placement: Literal["houlsby", "pfeiffer", "parallel"] = "pfeiffer"
    reduction_factor: float = 16.0
    bottleneck_size: int | None = None
    non_linearity: str = "relu"
    scaling: float | None = None
    bottleneck_dropout: float = 0.0
    init_weights: bool = True
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    bias: str = field(default="none")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("BOTTLENECK")
        if self.placement not in ("houlsby", "pfeiffer", "parallel"):
            raise InputError(f"placement is '{self.placement}', expected houlsby, pfeiffer or parallel")
        if self.non_linearity not in ACT2FN:
            raise InputError(f"non_linearity is '{self.non_linearity}', expected a transformers activation, as relu")
        if self.reduction_factor <= 0 or (self.bottleneck_size is not None and self.bottleneck_size < 1):
            raise InputError("a bottleneck has a size of 1 or more", hint="set reduction_factor or bottleneck_size")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)  # as PEFT's own configs
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)

    @property
    def is_parallel(self) -> bool:
        return self.placement == "parallel"

    def size(self, hidden_size: int) -> int:
        """Return the number of units in the middle."""
        return self.bottleneck_size or max(1, int(hidden_size / self.reduction_factor))

    def scale(self) -> float:
        """Return what the adapter's output is multiplied by."""
        return self.scaling if self.scaling is not None else 4.0 if self.is_parallel else 1.0


class BottleneckLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """A sublayer with bottleneck adapters behind it, or beside it.

    Args:
        base_layer: attention or feed-forward; it gives (B, T, H), or a tuple whose first item that is.
        adapter_name: the first adapter.
        config: its config.
        hidden_size: H.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout", "configs")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, hidden_size: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hidden_size = hidden_size
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.configs: dict[str, BottleneckConfig] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter, or make one of this name anew; PEFT's name for it."""
        size = config.size(self.hidden_size)
        self.configs[adapter_name] = config
        self.bottleneck_down[adapter_name] = nn.Linear(self.hidden_size, size)
        self.bottleneck_up[adapter_name] = nn.Linear(size, self.hidden_size)
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.bottleneck_dropout)
        if config.init_weights:
            # up only: with down at zero too, no gradient would ever reach either
            nn.init.zeros_(self.bottleneck_up[adapter_name].weight)
            nn.init.zeros_(self.bottleneck_up[adapter_name].bias)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the sublayer does, with what the active adapters add."""
        result = self.base_layer(*args, **kwargs)
        active = [name for name in self.active_adapters if name in self.bottleneck_down]
        if self.disable_adapters or not active:
            return result
        # attention returns its weights too in most models of transformers, feed-forward layers the states alone
        output = result[0] if isinstance(result, tuple) else result
        given = args[0] if args else kwargs["hidden_states"]
        for name in active:
            output = output + self._added(name, given if self.configs[name].is_parallel else output)
        return (output, *result[1:]) if isinstance(result, tuple) else output

    def _added(self, name: str, hidden: Tensor) -> Tensor:
        """Compute an adapter's output, (B, T, H) from (B, T, H), in the adapter's own precision."""
        config, down, up = self.configs[name], self.bottleneck_down[name], self.bottleneck_up[name]
        inner = down(self.bottleneck_dropout[name](hidden.to(down.weight.dtype)))  # (B, T, size)
        inner = ACT2FN[config.non_linearity](inner)
        return (up(inner) * config.scale()).to(hidden.dtype)  # type: ignore[no-any-return]

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[Any, Any]:
        """Look at the sublayer's modules: PEFT asks a linear layer's `weight`, and a sublayer has none."""
        parameters = list(base_layer.parameters())
        # packed weights are integers, in which no adapter could learn
        floating = [p.dtype for p in parameters if p.is_floating_point()]
        return (parameters[0].device if parameters else None), (floating[0] if floating else None)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a bottleneck adapter has a non-linearity, which no weight of the base can hold")


class BottleneckModel(BaseTuner):  # type: ignore[misc]
    """A transformers model whose sublayers have bottleneck adapters; PEFT makes and loads it."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (PEFT's own form)

    def _prepare_adapter_config(self, peft_config: BottleneckConfig, model_config: dict[str, Any]) -> BottleneckConfig:
        if peft_config.target_modules is None:
            wanted = [FEED_FORWARD] if peft_config.placement != "houlsby" else [ATTENTION, FEED_FORWARD]
            peft_config.target_modules = {_first_of(names, self.model) for names in wanted}
        return peft_config

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)  # a second adapter on a base that has one
            return
        if isinstance(target, nn.Linear):
            raise InputError(
                f"bottleneck adapts whole sublayers, but target_modules has the linear layer {current_key}",
                hint="leave target_modules out, or name attention or feed-forward modules",
            )
        layer = BottleneckLayer(target, adapter_name, peft_config, _hidden_size(self.model))
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # one more adapter is not trainable by itself
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put the new module in place; PEFT's own method also hands on a linear layer's `weight`."""
        setattr(parent, child_name, new_module)


def _first_of(names: tuple[str, ...], model: nn.Module) -> str:
    """Return the name among these that the model's sublayers have."""
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for name in names:
        if name in present:
            return name
    raise InputError(
        f"bottleneck: {type(model).__name__} has no sublayer named {', '.join(names)}",
        hint="target_modules: the names of its attention or feed-forward modules",
    )


def _hidden_size(model: Any) -> int:
    # a model that also sees images has a config for each half
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return int(config.hidden_size)


register("bottleneck", BottleneckConfig, BottleneckModel)
