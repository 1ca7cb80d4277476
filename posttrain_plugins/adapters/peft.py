"""Any adapter type of PEFT by its name; each has its own paper, see https://huggingface.co/docs/peft."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from posttrain_plugins.errors import InputError

if TYPE_CHECKING:
    from peft import PeftConfig

__all__ = ["peft"]


def peft(peft_type: str, task_type: str = "CAUSAL_LM", **params: Any) -> PeftConfig:
    """Return a config of the type that is named, as PEFT itself has it: LOHA, LOKR, BOFT, HRA, RANDLORA, MISS ...

    Args:
        peft_type: PEFT's name for it.
        task_type: PEFT's task type; stages that train classifiers set their own.
        **params: fields of that type's config class. PEFT knows which modules to take for the model types in its table;
            for the others, give `target_modules`.

    Raises:
        InputError: PEFT has no such type.

    Example:
        >>> peft("LOHA", r=4).peft_type.value
        'LOHA'
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIG_CLASSES

    if peft_type not in CONFIG_CLASSES:
        # `validate` has said so for a recipe; this is for a script, where nothing has been checked
        known = ", ".join(sorted(name.value for name in CONFIG_CLASSES))
        raise InputError(f"PEFT has no type '{peft_type}'", hint=f"it has {known}")
    # no default of ours, not even `all-linear`: several types know no such word
    config: PeftConfig = CONFIG_CLASSES[peft_type](task_type=task_type, **params)
    return config


# filled in with the recipe's own `peft_type`: the fields are those of the type that it names
peft.params_of = "peft:{peft_type}"  # type: ignore[attr-defined]
peft.example_params = {"peft_type": "LORA", "target_modules": "all-linear"}  # type: ignore[attr-defined]
