"""The table of what PEFT's types can, against PEFT itself: every type that a tiny model can have is tried."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.models import adapter_types
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.declarations import declared

SMALL: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "BEFT": {},
    "C3A": {"block_size": 16},
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["norm"]},
    "MISS": {"r": 8},
    "OFT": {"oft_block_size": 16},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "WAVEFT": {"n_frequency": 64},
}
"""What a type wants beside its defaults on a model of hidden size 32."""
ELSEWHERE = {
    "ADAMSS": "needs scikit-learn",
    "ADAPTION_PROMPT": "knows Llama, Mistral and GPT-2",
    "CPT": "wants a text",
    "MULTITASK_PROMPT_TUNING": "wants a task for each row",
    "POLY": "wants a task for each row",
    "SHADOW": "does not know Qwen3",
    "TRAINABLE_TOKENS": "wants token ids",
    "XLORA": "wants adapters to mix",
    "BEFT": "merges into biases, which the model has not",
}


def test_every_type_that_peft_registers_is_known() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIG_CLASSES

    known = {name.value: cls.__name__ for name, cls in CONFIG_CLASSES.items() if cls.__module__.startswith("peft.")}
    assert adapter_types._registered() == known


def test_prompts_are_told_from_layers() -> None:
    from peft import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIG_CLASSES

    for name in adapter_types._registered():
        found = adapter_types.abilities(adapter_types.config_class(name))
        assert found is not None
        assert found.name == name
        assert found.is_prompt == issubclass(CONFIG_CLASSES[name], PromptLearningConfig)


def test_what_merges_is_what_peft_s_layers_say() -> None:
    """A layer class merges if it, or one that derives from it, has a `merge` that does more than raise."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS
    from peft.tuners.tuners_utils import BaseTunerLayer

    def classes(layer: type) -> list[type]:
        return [layer, *(one for inner in layer.__subclasses__() for one in classes(inner))]

    def merges(layer: type | None) -> bool:
        own = {one.merge for one in classes(layer)} - {BaseTunerLayer.merge} if layer else set()  # type: ignore[attr-defined]
        return any("raise NotImplementedError" not in inspect.getsource(merge) for merge in own)

    says = {name: merges(getattr(TUNERS[name], "tuner_layer_cls", None)) for name in adapter_types._registered()}
    found = {name: adapter_types.abilities(adapter_types.config_class(name)) for name in says}
    wrong = {name: says[name] for name, one in found.items() if one is None or one.can_merge != says[name]}
    assert wrong == {}, "to be put into, or taken out of, adapter_types.UNMERGEABLE"


def test_our_adapter_plugins_declare_what_the_table_says() -> None:
    """The kit reads the one, the core both; a plugin of a type that PEFT has not is alone in saying it."""
    for plugin in registry.installed("adapter"):
        definition = plugin.load()
        target = declared(definition, "params_of")
        found = adapter_types.abilities(target) if target and "{" not in target else None
        if found is not None and found.name in adapter_types._registered():
            assert declared(definition, "can_merge") == found.can_merge, plugin.name


@pytest.fixture(scope="module")
def types() -> list[str]:
    return [name for name in adapter_types._registered() if name not in ELSEWHERE]


def adapted(name: str, model: Any) -> Any:
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIG_CLASSES

    config_class = CONFIG_CLASSES[name]
    fields = set(inspect.signature(config_class).parameters)
    params: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    params |= {"target_modules": "all-linear"} if "target_modules" in fields else {}
    params |= {"num_virtual_tokens": 4} if "num_virtual_tokens" in fields else {}
    return get_peft_model(model, config_class(**{**params, **SMALL.get(name, {})}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_merges_merges_and_what_does_not_refuses(tiny_model: Path, types: list[str]) -> None:
    from transformers import AutoModelForCausalLM

    for name in types:
        model = adapted(name, AutoModelForCausalLM.from_pretrained(tiny_model))
        found = adapter_types.abilities(adapter_types.config_class(name))
        assert found is not None
        try:
            model.merge_and_unload()
            merges = True
        except Exception:  # each type has its own
            merges = False
        assert found.can_merge == merges, name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_trains_on_packed_weights(tiny_model: Path, types: list[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from posttrain_plugins.models.quantization import keep_packed_weights_exact

    keep_packed_weights_exact()
    packed = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    ids = torch.arange(4, 28).reshape(2, 12)
    for name in types:
        found = adapter_types.abilities(adapter_types.config_class(name))
        assert found is not None
        try:
            model = adapted(name, AutoModelForCausalLM.from_pretrained(tiny_model, quantization_config=packed))
            model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
            works = any(p.grad is not None for p in model.parameters())
        except Exception:  # each type has its own
            works = False
        assert found.quantizes == works, name
