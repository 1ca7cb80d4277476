"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021), by PEFT.

Paper: https://huggingface.co/papers/2106.09685.

rsLoRA (`use_rslora`), DoRA (`use_dora`), PiSSA (`init_lora_weights: pissa`) and LoftQ (`init_lora_weights: loftq`,
`loftq_config: {loftq_bits: 4}`) are PEFT's own parameters. LoRA+ (Hayou et al., 2024,
https://huggingface.co/papers/2402.12354) is `loraplus_lr_ratio`, the name that PEFT's own optimizer gives it.

One deviation from PEFT's defaults: `target_modules` is `all-linear` where nothing is given, as in QLoRA (Dettmers et
al., 2023, https://huggingface.co/papers/2305.14314, section 4), because PEFT's own default is a table of model types
that knows few new ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain_plugins.errors import InputError

if TYPE_CHECKING:
    from peft import LoraConfig

__all__ = ["lora"]


def lora(
    target_modules: str | list[str] = "all-linear",
    task_type: str = "CAUSAL_LM",
    loraplus_lr_ratio: float | None = None,
    **params: Any,
) -> LoraConfig:
    """Return a `peft.LoraConfig`; other parameters are PEFT's own (`r`, `lora_alpha`, `lora_dropout`, `use_dora` ...).

    Args:
        target_modules: which modules get an adapter; PEFT's forms.
        task_type: PEFT's task type; the stage `reward` sets its own.
        loraplus_lr_ratio: learning rate of every B over that of A, 1 or more (LoRA+); None for one learning rate. In
            bare TRL, call the config's `prepare(trainer)` before `trainer.train()`.
        **params: fields of `peft.LoraConfig`.

    Raises:
        InputError: LoftQ without scipy, or a ratio below 1.

    Example:
        >>> lora(r=4).r
        4
    """
    from peft import LoraConfig

    if params.get("init_lora_weights") == "loftq":
        params["loftq_config"] = _loftq(params.get("loftq_config") or {})
    if loraplus_lr_ratio is None:
        # PEFT's own class, so that without a ratio the adapter is the very one of a plain TRL script
        return LoraConfig(target_modules=target_modules, task_type=task_type, **params)
    from posttrain_plugins.models.tuners.lora_plus import LoraPlusConfig

    return LoraPlusConfig(
        target_modules=target_modules, task_type=task_type, loraplus_lr_ratio=loraplus_lr_ratio, **params
    )


def _loftq(given: dict[str, int]) -> dict[str, int]:
    """Add the defaults, which PEFT has in a class and does not look for in a mapping."""
    from importlib.util import find_spec

    from peft import LoftQConfig

    # PEFT says so only when the adapter is made, after the model has been loaded
    if find_spec("scipy") is None:
        raise InputError("init_lora_weights: loftq needs scipy", hint="pip install 'posttrain-plugins[loftq]'")
    return dict(vars(LoftQConfig(**given)))


# `validate` compares a recipe with the fields of this class, which it reads from its source
lora.params_of = "peft:LoraConfig"  # type: ignore[attr-defined]
