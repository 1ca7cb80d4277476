"""Plugins, recipes and test-time strategies on top of Hugging Face TRL: post-training end to end.

```python
import posttrain_plugins as pp

run = pp.run("recipes/lora.yaml", overrides={"stages.sft.args.max_steps": 10})
reward = pp.load("reward", "length", max_chars=200)  # a TRL reward function
```

Importing this package imports neither torch nor transformers nor trl.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from posttrain_plugins.api import backend, load, plan, run, solve, validate

__all__ = ["backend", "load", "plan", "run", "solve", "validate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from posttrain_plugins import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
