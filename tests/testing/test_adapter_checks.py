"""The checks on adapters against adapters with one fault each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from planted import Planted

PLANTED = Planted("adapter")


def lora_config(**params: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **params})


@PLANTED.fails("check_gives_a_peft_config")
def as_dict() -> Any:
    """A mapping of options."""
    return {"r": 2}


RANKS = iter(range(2, 10_000))


@PLANTED.fails("check_same_config_twice")
def growing() -> Any:
    """One more each time."""
    return lora_config(r=next(RANKS))


@PLANTED.fails("check_config_round_trips")
def discreet() -> Any:
    """A config that does not write down its scale."""
    from peft import LoraConfig

    @dataclass
    class Discreet(LoraConfig):
        def to_dict(self) -> dict[str, Any]:
            return {name: value for name, value in super().to_dict().items() if name != "lora_alpha"}

    return Discreet(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


@PLANTED.fails("check_attaches")
def nowhere() -> Any:
    """Names modules that no model has."""
    return lora_config(target_modules=["no_such_module"])


@PLANTED.fails("check_only_its_weights_train")
def frozen() -> Any:
    """Made for inference."""
    return lora_config(inference_mode=True)


@PLANTED.fails("check_saves_and_reloads")
def half_saved() -> Any:
    """A config that writes another scale than its own."""
    from peft import LoraConfig

    @dataclass
    class Forgetful(LoraConfig):
        def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
            saved = LoraConfig(r=2, lora_alpha=99, target_modules="all-linear", task_type="CAUSAL_LM")
            saved.save_pretrained(save_directory, **kwargs)

    return Forgetful(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


@PLANTED.fails("check_disabled_gives_the_base")
def principal() -> Any:
    """PiSSA takes its weights out of the base."""
    return lora_config(init_lora_weights="pissa")


@PLANTED.fails("check_merges_or_says_so")
def prompts() -> Any:
    """Virtual tokens, which no weight of the base can hold."""
    from peft import PromptTuningConfig

    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)


@pytest.mark.parametrize("check", PLANTED.plugins)
def test_a_planted_fault_fails_its_check_and_no_other(check: str) -> None:
    PLANTED.assert_fails_alone(check)


def test_every_check_has_a_planted_fault() -> None:
    PLANTED.assert_every_check_has_one()


def test_a_sound_plugin_passes() -> None:
    PLANTED.assert_passes(lora_config)
