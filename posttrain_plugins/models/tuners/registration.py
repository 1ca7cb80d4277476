"""A tuner type from outside PEFT, under PEFT's own registration.

PEFT 0.21 registers only types that stand in its enum `PeftType`, which Python does not let one extend by subclassing.
"""

from __future__ import annotations

from typing import Any

__all__ = ["register"]


def register(name: str, config_class: Any, model_class: Any) -> None:
    """Make a type known to PEFT, so that `get_peft_model` and `PeftModel.from_pretrained` take it; once or again.

    Args:
        name: in lower case; the `peft_type` of adapters is the same in upper case.
        config_class: its `PeftConfig`.
        model_class: its `BaseTuner`, with a `prefix`.
    """
    from peft import PeftType
    from peft.utils import register_peft_method

    if name.upper() in PeftType.__members__:
        return
    # What `Enum` does for a member of a class body: PEFT looks types up by name, by value and by `in`.
    member = str.__new__(PeftType, name.upper())
    member._name_ = member._value_ = name.upper()
    setattr(PeftType, name.upper(), member)
    PeftType._member_map_[name.upper()] = member
    PeftType._value2member_map_[name.upper()] = member
    PeftType._member_names_.append(name.upper())
    register_peft_method(name=name, config_cls=config_class, model_cls=model_class)
