"""Bottleneck adapters, as a PEFT type of our own: PEFT has none.

Papers: Houlsby et al., 2019 (https://huggingface.co/papers/1902.00751); Pfeiffer et al., 2020
(https://huggingface.co/papers/2005.00247); in parallel form He et al., 2021 (https://huggingface.co/papers/2110.04366).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain_plugins.models.tuners.bottleneck import BottleneckConfig

__all__ = ["bottleneck"]


def bottleneck(task_type: str = "CAUSAL_LM", **params: Any) -> BottleneckConfig:
    """Return a `BottleneckConfig`; importing it makes the type known to PEFT.

    Args:
        task_type: PEFT's task type; stages that train classifiers set their own.
        **params: `placement` (houlsby, pfeiffer or parallel), `reduction_factor`, `non_linearity`, `scaling` ...

    Raises:
        InputError: a value that no bottleneck has.

    Example:
        >>> bottleneck(placement="houlsby").peft_type
        <PeftType.BOTTLENECK: 'BOTTLENECK'>
    """
    # in the function, since it imports torch; whoever loads a saved adapter finds the module by `params_of`
    from posttrain_plugins.models.tuners.bottleneck import BottleneckConfig

    return BottleneckConfig(task_type=task_type, **params)


bottleneck.params_of = "posttrain_plugins.models.tuners.bottleneck:BottleneckConfig"  # type: ignore[attr-defined]
# a non-linearity has no place in a weight; PEFT does not know the type, so it is said here
bottleneck.can_merge = False  # type: ignore[attr-defined]
