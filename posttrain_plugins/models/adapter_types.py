"""What PEFT's adapter types can do and what not, without importing PEFT: the recipe's check asks before a model loads.

The types and their config classes are read from PEFT's source, and what they can from the tables below, which
`tests/test_peft_types.py` compares with PEFT's classes and with what every type does on a tiny model. Of a type that is
not PEFT's, the plugin that brings it declares what it cannot (`can_merge`), and so it may of one of PEFT's.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from posttrain_plugins.errors import InputError, PosttrainError
from posttrain_plugins.models.folder import UNMERGEABLE_FILE, adapter_config
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.plugins.source import classes_of, of_config, package_file

__all__ = [
    "PeftTypeAbilities",
    "abilities",
    "abilities_of",
    "adds_up",
    "config_class",
    "ensure_registered",
    "moves_base",
    "shares_base",
    "why_unmergeable",
]

UNMERGEABLE = frozenset({"ADAPTION_PROMPT", "LILY", "POLY", "SHADOW", "XLORA"})
"""Types, beside the prompts, whose layers PEFT cannot merge: what they add is no linear function of their input."""
NOT_QUANTIZED = frozenset(
    {"ADAMSS", "DEFT", "DELORA", "FROD", "GLORA", "HRA", "LOHA", "LOKR", "OSF", "PEANUT", "POLY", "PSOFT", "SHADOW"}
    | {"SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "XLORA"}
)
"""Types that read the base's weights, or train them, in a form that bitsandbytes has not."""
ONE_AT_A_TIME = frozenset({"ADALORA", "OSF", "SHADOW", "XLORA", "POLY"})
"""Types of which PEFT lets one base have a single trainable adapter."""
DECLARED = "its plugin declares can_merge = False"
CACHES = frozenset({"PREFIX_TUNING", "CARTRIDGE"})
MOVING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Values of `init_lora_weights` that put a part of the base's weights into the adapter."""


HEADS = {"score", "classifier"}
"""What a classifier's head is called; PEFT adds both names to what such an adapter trains whole."""
STILL_A_SUM = frozenset(
    {"alpha_pattern", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "fan_in_fan_out"}
    | {"inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha"}
    | {"lora_bias", "lora_dropout", "lora_ga_config", "modules_to_save", "peft_version", "r", "rank_pattern"}
    | {"revision", "target_modules", "task_type", "use_rslora", "auto_mapping", "runtime_config", "peft_type"}
    | {"loraplus_lr_ratio"}
)
"""Options of LoRA with which what it adds to a layer's output depends on the layer's input alone."""


@dataclass(frozen=True)
class PeftTypeAbilities:
    """What adapters of a type can.

    Args:
        name: PEFT's name, `LORA`.
        is_prompt: it learns tokens before the text, and leaves every layer as it is.
        has_cache: its tokens are keys and values of every layer, handed to the model as a cache.
        can_merge: its weights can be added to the base's.
        quantizes: it trains on a base in 4 or 8 bits.
        shares: several can be trained on one base, each chosen by the layers themselves.
    """

    name: str
    is_prompt: bool
    has_cache: bool
    can_merge: bool
    quantizes: bool
    shares: bool

    @property
    def embeds(self) -> bool:
        """Are its tokens embeddings before the text's, so that the model is given embeddings alone?"""
        return self.is_prompt and not self.has_cache


@cache
def abilities(config: str) -> PeftTypeAbilities | None:
    """Return what the type that a config class makes can; None where the class's source does not tell the type.

    Args:
        config: the class, such as `peft:LoraConfig`.

    Raises:
        LookupError: there is no such class.
    """
    classes = classes_of(config)  # the class and those that it inherits from, as text
    # `self.peft_type = PeftType.LORA`, or `PeftType("LORA")`
    told = [re.search(r"self\.peft_type = PeftType(?:\.|\[|\()['\"]?(\w+)", one.text) for one in classes]
    name = next((match[1] for match in told if match), None)
    if name is None:
        return None
    is_prompt = any(one.head.name == "PromptLearningConfig" for one in classes)
    return PeftTypeAbilities(
        name,
        is_prompt=is_prompt,
        has_cache=is_prompt and name in CACHES,
        can_merge=not is_prompt and name not in UNMERGEABLE,
        quantizes=name not in NOT_QUANTIZED,
        shares=not is_prompt and name not in ONE_AT_A_TIME,
    )


def abilities_of(config: Any) -> PeftTypeAbilities | None:
    """Return the same for a `peft.PeftConfig`; None as well for a class without source, as one of a notebook."""
    try:
        return abilities(f"{type(config).__module__}:{type(config).__qualname__}")
    except LookupError:
        return None


def config_class(peft_type: str) -> str:
    """Return the config class of a type, `peft:LoHaConfig` for `LOHA`, as PEFT registers it.

    Raises:
        LookupError: PEFT has no such type.
    """
    known = _registered()
    if peft_type not in known:
        near = registry.suggest(peft_type, known)
        raise LookupError(f"PEFT has no type '{peft_type}'" + (f", {near}" if near else f", it has {', '.join(known)}"))
    return f"peft:{known[peft_type]}"


def shares_base(config: Any) -> bool:
    """Tell whether an adapter with this `peft.PeftConfig` can be trained beside another on one base."""
    found = abilities_of(config)
    # of a type that no table knows, PEFT's own flag is all there is: prompts are put before the text, not into layers
    return found.shares if found is not None else not config.is_prompt_learning


def moves_base(params: Mapping[str, Any]) -> str | None:
    """Return the initialisation among an adapter's parameters that changes the base, if there is one.

    With such an adapter switched off, the model is not the one that training started from.
    """
    init = params.get("init_lora_weights")
    # by prefix: PEFT takes variants such as `pissa_niter_16`
    return init if isinstance(init, str) and init.startswith(MOVING_INITS) else None


def adds_up(peft_type: str, params: Mapping[str, Any]) -> bool:
    """Tell whether an adapter is LoRA that only adds to what layers give, but for a classifier's head.

    Then several on one base, all in force, are what one on another is. Magnitudes (DoRA), and whole modules, tokens and
    biases that were trained, are of one adapter alone.

    Args:
        peft_type: PEFT's name.
        params: of its config, as a recipe gives them or as PEFT has saved them.
    """
    if peft_type != "LORA" or set(params.get("modules_to_save") or ()) - HEADS:
        return False
    fields = of_config(config_class(peft_type)).fields
    plain = {name: field.default for name, field in fields.items()}
    return all(not value or value == plain.get(name) or name in STILL_A_SUM for name, value in params.items())


def why_unmergeable(folder: str | Path) -> str | None:
    """Return why the weights of a saved adapter cannot be added to its base's; None if they can.

    What the plugin that trained it declared lies beside it (`UNMERGEABLE_FILE`). Else PEFT's own types are in the table
    above, and any other is asked of the plugin that brings the type.
    """
    if (Path(folder) / UNMERGEABLE_FILE).is_file():
        return DECLARED  # also where that plugin is not installed any more, or has changed its mind since
    name = str(adapter_config(folder).get("peft_type"))
    if name not in _registered():
        is_refused = any(not declared(plugin, "can_merge") for plugin in _plugins_of(folder, name))
        return DECLARED if is_refused else None
    found = abilities(config_class(name))
    if found is None or found.can_merge:
        return None
    if found.is_prompt:
        return "it adds virtual tokens to the prompt, not weights to the model"
    return "it adds modules that are not linear in their input"


def ensure_registered(folder: str | Path) -> None:
    """Make the type of a saved adapter known to PEFT, by importing the plugin that brings it.

    Nothing happens to a type of PEFT's own, or where the folder holds no adapter.

    Raises:
        InputError: no plugin brings the type.
    """
    name = adapter_config(folder).get("peft_type")
    if not isinstance(name, str) or name in _registered():
        return
    from peft import PeftType

    for plugin in _plugins_of(folder, name):
        # its own module, or that of the config class whose fields it takes, registers the type as it is imported
        owner = str(declared(plugin, "params_of")).partition(":")[0]
        if owner and owner != "peft":
            registry.import_object(f"{owner}:__name__")
        if name in PeftType.__members__:
            break
    if name not in PeftType.__members__:
        raise InputError(
            f"{folder} is an adapter of type {name}, which neither PEFT nor an installed plugin knows",
            hint=f"install the package whose adapter plugin '{name.lower()}' brings the type",
        )


def _plugins_of(folder: str | Path, peft_type: str) -> Iterator[Any]:
    """Import the plugins that may bring a type: the one that the stage's manifest names, and the one called as it."""
    # a manifest names the plugin only where the folder lies in a store; a copied folder has the type's name alone
    made_by = _json(Path(folder).parent / "manifest.json").get("handoff", {}).get("adapter", {}).get("plugin")
    for plugin in dict.fromkeys((made_by, peft_type.lower())):
        if isinstance(plugin, str):
            with contextlib.suppress(PosttrainError):  # not installed, or moved: the other one may be there
                yield registry.find("adapter", plugin).load()


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


# --- read from PEFT's source -----------------------------------------------------------------------------------------


@cache
def _registered() -> dict[str, str]:
    """Return PEFT's types, name -> config class, from the calls in `peft/tuners/*/__init__.py`."""
    # Read as text: importing PEFT imports torch, which `validate` and `plan` must not. Each call names both by keyword;
    # tests/test_peft_types.py compares the result with PEFT's own table.
    found = {}
    for file in sorted((package_file("peft").parent / "tuners").glob("*/__init__.py")):
        text = file.read_text(encoding="utf-8")
        for call in re.findall(r"register_peft_method\((.*?)\n?\)", text, re.DOTALL):
            fields = dict(re.findall(r'(name|config_cls)\s*=\s*"?(\w+)"?', call))
            if len(fields) == 2:
                found[fields["name"].upper()] = fields["config_cls"]
    return found
