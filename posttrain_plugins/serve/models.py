"""The served models by name. PEFT adapters of one base share it: the base is loaded once, the adapters by name.

1. What cannot share is loaded by itself, with a base of its own: an adapter that is no LoRA, that trains whole modules
   or biases too, has a value head or put a part of the base's weights into itself as it began (PiSSA, LoftQ), or is
   loaded in another way (dtype, quantization, tokenizer) than its sibling.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from posttrain_plugins import api
from posttrain_plugins.backends.engines import TRANSFORMERS
from posttrain_plugins.backends.protocol import AnyBackend
from posttrain_plugins.backends.transformers.backend import TransformersBackend, load_tokenizer
from posttrain_plugins.errors import InputError
from posttrain_plugins.models.adapter_types import moves_base
from posttrain_plugins.models.critic import shared_critic_in
from posttrain_plugins.models.folder import adapter_config, adapters_in, base_of
from posttrain_plugins.recipe import handoff
from posttrain_plugins.recipe.run.ad_hoc import NameResolver
from posttrain_plugins.types import Completion, Generate, server_of

__all__ = ["Served", "open_models", "parse_models"]

NONE: Mapping[str, Any] = MappingProxyType({})
NAME = re.compile(r"[A-Za-z0-9][\w.:/+-]*")


@dataclass(frozen=True)
class Served:
    """A model that clients can ask.

    Args:
        name: what clients call it.
        path: its folder or Hub id.
        backend: draws its completions.
        base: the path of an adapter's base.
        created: when it was loaded, in seconds since 1970.
    """

    name: str
    path: str
    backend: AnyBackend
    base: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))


def parse_models(texts: Sequence[str]) -> dict[str, str]:
    """Read `MODEL` or `NAME=MODEL` as name -> model.

    A folder goes by its own name, `model` by that of the folder above, a server's model by its name there.

    Raises:
        InputError: two models of one name, one that is no name, or a folder that is not there.

    Example:
        >>> parse_models(["quickstart:grpo", "small=Qwen/Qwen3-0.6B"])
        {'quickstart:grpo': 'quickstart:grpo', 'small': 'Qwen/Qwen3-0.6B'}
    """
    named: dict[str, str] = {}
    for text in texts:
        name, equals, model = text.partition("=")
        server = server_of(text)
        if not equals or server or Path(text).exists():  # a folder or an address may have `=` in its name
            path = Path(text).resolve()
            folder = path.parent.name if path.name == "model" else path.name  # a stage's folder holds `model/`
            name = server[1] if server else folder if Path(text).exists() else text
            model = text
        if model.startswith(("/", ".")) and not Path(model).exists():
            raise InputError(f"no such folder: {model}")
        if not NAME.fullmatch(name) or not model:
            raise InputError(f"{text!r} gives a model no name: {name!r}", hint=f"name it: small={model or 'MODEL'}")
        if name in named:
            raise InputError(
                f"two models are named {name!r}: {named[name]} and {model}", hint=f"name one: other={model}"
            )
        named[name] = model
    return named


def open_models(
    models: Mapping[str, str],
    runs_dir: Path,
    loading: Mapping[str, Any],
    engine: str = TRANSFORMERS,
    vllm: Mapping[str, Any] = NONE,
) -> dict[str, Served]:
    """Load every model, or lay an adapter over a base that is there already.

    A model that holds several adapters is served as `NAME+ADAPTER`, each.

    Args:
        models: name -> model, as `parse_models` gives them.
        runs_dir: where `RUN:STAGE` is looked up.
        loading: TRL `ModelConfig` fields for all of them; a stage's model is loaded as in its recipe otherwise.
        engine: what runs those that are no servers; only transformers shares a base.
        vllm: options for vLLM.
    """
    outside = NameResolver(runs_dir.resolve())
    models = {n: one for name, model in models.items() for n, one in outside.each(name, model).items()}
    sources = [_UnloadedModel(name, model, runs_dir, loading, engine, vllm) for name, model in models.items()]
    shared: dict[Hashable, _SharedBase] = {}
    opened: dict[str, Served] = {}
    # Adapters first: the base that comes with them is then served too, and not loaded a second time.
    for source in sorted(sources, key=lambda source: not source.is_adapter):
        if source.share_key in shared:
            backend: AnyBackend = shared[source.share_key].add(source)
        elif source.is_adapter and source.share_key is not None:
            shared[source.share_key] = _SharedBase(source.load())
            backend = shared[source.share_key].first
        else:
            backend = source.load()
        opened[source.name] = Served(source.name, source.path, backend, source.base)
    return {name: opened[name] for name in models}


class _UnloadedModel:
    """A model before it is loaded: where it lies, how it is loaded, and with what it can share a base."""

    def __init__(
        self,
        name: str,
        model: str,
        runs_dir: Path,
        loading: Mapping[str, Any],
        engine: str = TRANSFORMERS,
        vllm: Mapping[str, Any] = NONE,
    ) -> None:
        self.name = name
        self.model = model
        self.runs_dir = runs_dir
        self.given = loading
        is_elsewhere = server_of(model) is not None
        self.engine, self.options = (TRANSFORMERS, None) if is_elsewhere else (engine, dict(vllm) or None)
        found = NameResolver(runs_dir.resolve()).model(model)
        self.path = found.path
        self.loading = {**found.loading, **loading}
        self.config = adapter_config(self.path)
        self.is_adapter = bool(self.config)
        self.base: str | None = self.config.get("base_model_name_or_path")

    @property
    def share_key(self) -> Hashable | None:
        """A key that is equal for those that can share a base; None for what changes more than its own weights."""
        more = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication")
        is_plain = (
            self.config.get("peft_type") == "LORA" and self.config.get("bias") == "none" and not moves_base(self.config)
        )
        # A critic or a second adapter is a part of what is served, and switching the first would leave it behind.
        if self.engine != TRANSFORMERS:
            return None
        if server_of(self.model) or shared_critic_in(self.path) is not None or len(adapters_in(self.path)) > 1:
            return None
        if self.is_adapter and (not is_plain or any(self.config.get(name) for name in more)):
            return None
        base, revision = base_of(self.path, self.loading.get("model_revision"))
        where = str(Path(base).resolve()) if Path(base).exists() else f"{base}@{revision or 'main'}"
        # With another tokenizer the same ids mean something else; loaded in another way it is another base.
        return where, handoff.record(Path(self.path), {})["tokenizer"], json.dumps(self.loading, sort_keys=True)

    def load(self) -> Any:
        given = {} if server_of(self.model) else self.given
        try:
            return api.backend(self.model, runs_dir=self.runs_dir, engine=self.engine, options=self.options, **given)
        except (OSError, ValueError) as cause:  # what transformers raises for a model that is not there
            raise InputError(f"model {self.model!r} cannot be loaded: {str(cause).partition(chr(10))[0]}") from cause


class _SharedBase:
    """One base with named adapters. Only the models' thread draws, so one adapter is on at a time."""

    def __init__(self, loaded: TransformersBackend) -> None:
        self.model = loaded.model
        self.max_batch_tokens = loaded.max_batch_tokens
        self.count = 0
        self.first = _OnSharedBase(loaded, partial(self.model.set_adapter, "default"))

    def add(self, source: _UnloadedModel) -> _OnSharedBase:
        """Return the backend of a sibling of the first adapter, or of the base itself."""
        backend = TransformersBackend(
            self.model,
            load_tokenizer(source.path, source.loading),
            max_batch_tokens=self.max_batch_tokens,
            identity=source.path,
        )
        if not source.is_adapter:  # the same weights, for as long as the adapters are off
            return _OnSharedBase(backend, self.model.disable_adapter)
        self.count += 1
        name = f"adapter_{self.count}"
        self.model.load_adapter(source.path, adapter_name=name)
        return _OnSharedBase(backend, partial(self.model.set_adapter, name))


class _OnSharedBase:
    """One adapter's backend, or the bare base's: it switches the model before it draws."""

    def __init__(self, backend: TransformersBackend, switch: Callable[[], AbstractContextManager[None] | None]) -> None:
        self.identity = backend.identity
        self.capabilities = backend.capabilities
        self.tokenizer = backend.tokenizer
        self.model = backend.model
        self._backend = backend
        self._switch = switch

    def switched(self) -> AbstractContextManager[None]:
        """Return the context within which the shared model is this one."""
        return self._switch() or nullcontext()  # `set_adapter` gives nothing, `disable_adapter` a context

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        """See `Backend.generate`."""
        with self.switched():
            yield from self._backend.generate(batch, seeds)
