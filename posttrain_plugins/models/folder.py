"""What a model folder holds, read from its files: adapters, the base below them, the task. Nothing is loaded. No paper.

A folder holds a full model, or the newest of a stack of adapters; what lies below that one stands in `stack/`. A folder
with `adapters.json` holds several adapters over one base, a folder each.

```
model/                      the newest adapter: adapter_config.json names the base
├── adapter_model.safetensors
└── stack/0, stack/1 ...    the adapters below, from the base up
```
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from posttrain_plugins.errors import InputError

__all__ = [
    "ADAPTERS",
    "ALLOW_PICKLE",
    "TASKS",
    "TEMPLATE_OPTIONS_FILE",
    "TRUSTING",
    "UNMERGEABLE_FILE",
    "BaseWeights",
    "Task",
    "adapter_config",
    "adapters_in",
    "base_of",
    "choose_adapter",
    "copy_below",
    "digest",
    "gguf_refusal",
    "named_adapters",
    "task_of",
    "task_of_architecture",
    "template_options",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTERS = "adapters.json"
BELOW = "stack"
ALLOW_PICKLE = "allow_pickle"
"""What a recipe's `model` says where weights may be read by `pickle`, the format before safetensors."""

TRUSTING = (ALLOW_PICKLE, "trust_remote_code")
"""What a recipe's `model` may say beside TRL's `ModelConfig`: yes or no to what may run code of who made the model."""

UNMERGEABLE_FILE = "adapter_unmergeable"
"""The file beside an adapter that says that its plugin declared `can_merge = False`; it goes where the weights go."""

TEMPLATE_OPTIONS_FILE = "chat_template_kwargs.json"
"""The file beside a policy with the options of the chat template that its prompts were rendered with in training."""

Task: TypeAlias = Literal["CausalLM", "SequenceClassification", "TokenClassification"]

TASKS: Mapping[str, Task] = {
    "CAUSAL_LM": "CausalLM",
    "SEQ_CLS": "SequenceClassification",
    "TOKEN_CLS": "TokenClassification",
}
"""PEFT's task types -> what transformers calls the models."""


class BaseWeights(NamedTuple):
    """The full weights below an adapter, or a full model itself.

    Args:
        path: a folder or Hub id.
        revision: of a Hub id; None leaves it to transformers, which takes `main`.
    """

    path: str
    revision: str | None


def adapter_config(folder: str | Path) -> dict[str, Any]:
    """Return the `adapter_config.json` of a folder; empty for a full model."""
    file = Path(folder) / ADAPTER_CONFIG
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def base_of(model: str | Path, revision: str | None = None) -> BaseWeights:
    """Return the full weights that a model rests on.

    Args:
        model: a folder or Hub id.
        revision: the one that was asked for. Where there is none, an adapter's `adapter_config.json` may record the
            revision that it was trained on, and that one counts: on other weights the adapter is another model.
    """
    config = adapter_config(model)
    if not config:
        return BaseWeights(str(model), revision)
    return BaseWeights(str(config.get("base_model_name_or_path") or ""), revision or config.get("revision"))


def adapters_in(folder: str | Path) -> list[Path]:
    """Return the adapters that a model folder stands for, from the base up; none for a full model or a Hub id."""
    path = Path(folder)
    if not (path / ADAPTER_CONFIG).is_file():
        return []
    # by number and not by name: `10` comes after `9`
    below = (path / BELOW).iterdir() if (path / BELOW).is_dir() else ()
    return [*sorted((one for one in below if one.name.isdigit()), key=lambda one: int(one.name)), path]


def copy_below(adapters: Sequence[Path], folder: Path) -> None:
    """Put adapters, from the base up, below the one that `folder` holds; their own `stack/` stays where it is."""
    shutil.rmtree(folder / BELOW, ignore_errors=True)
    for number, adapter in enumerate(adapters):
        target = folder / BELOW / str(number)
        target.mkdir(parents=True)
        for file in sorted(adapter.glob("adapter_*")):  # weights, config, UNMERGEABLE_FILE; no tokenizer, no manifest
            shutil.copy2(file, target / file.name)


def digest(adapter: str | Path) -> str:
    """Return a hash of an adapter's weights, the same wherever its folder lies."""
    # of the bytes alone, so that a copied or renamed folder is the same adapter to whatever was made on top of it
    found = hashlib.sha256()
    for file in sorted(Path(adapter).glob("adapter_model*")):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def task_of(folder: str | Path) -> Task | None:
    """Return what a model folder was trained as, by its adapter's task type or its architecture; None if unknown."""
    adapter = adapter_config(folder)
    if adapter:
        # a folder of an adapter may also hold its base's config.json, which says nothing of what was trained on it
        return TASKS.get(str(adapter.get("task_type")))
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return task_of_architecture(config.get("architectures"))


def task_of_architecture(architectures: Sequence[str] | None) -> Task | None:
    """Return the task that the first of a config's `architectures` is made for."""
    name = str((architectures or [""])[0])
    return next((task for task in TASKS.values() if name.endswith(f"For{task}")), None)


def named_adapters(folder: str | Path) -> list[str]:
    """Return the names of the adapters of a model that holds several over one base; empty for any other."""
    file = Path(folder) / ADAPTERS
    return list(json.loads(file.read_text(encoding="utf-8"))["adapters"]) if file.is_file() else []


def choose_adapter(model: str, folder: str | Path, adapter: str) -> str:
    """Return the folder of one adapter of a model that holds several; the model's own if there is nothing to choose.

    Args:
        model: its name, for errors.
        folder: of the model.
        adapter: the name behind the `+`; empty for none.

    Raises:
        InputError: no such adapter, or none is named and there are several; the hint has the names.
    """
    names = named_adapters(folder)
    if adapter in names:
        return str(Path(folder) / adapter)
    known = f"there are {', '.join(f'{model}+{name}' for name in names)}"
    if names:
        found = f"no adapter '{adapter}'" if adapter else "several adapters, expected one of them"
        raise InputError(f"model '{model}' has {found}", hint=known)
    if adapter:
        raise InputError(f"model '{model}' has no adapter '{adapter}': it is one model", hint=f"name it: {model}")
    return str(folder)


def template_options(folder: str | Path) -> dict[str, Any]:
    """Return the options of the chat template that a policy's prompts were rendered with; empty where none were."""
    file = Path(folder) / TEMPLATE_OPTIONS_FILE
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def gguf_refusal(path: str | Path) -> InputError | None:
    """Return why a GGUF file, or a folder that holds nothing else to load, is no model yet; None for any other path."""
    path = Path(path)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return InputError(f"{path} names a GGUF file, which the stage 'gguf' reads", hint=_use_gguf(path))
    is_model = any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG, ADAPTERS))
    files = [] if is_model or not path.is_dir() else sorted(path.glob("*.gguf"))
    if not files:
        return None
    return InputError(f"folder {path} holds GGUF files, which the stage 'gguf' reads", hint=_use_gguf(files[0]))


def _use_gguf(file: Path) -> str:
    return f"in a recipe: model: {{use: gguf, file: {file}}}"
