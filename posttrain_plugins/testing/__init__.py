"""The conformance kit for plugin authors: what every plugin of a kind must do, as plain functions.

```python
from posttrain_plugins.testing import parametrize_with_checks

@parametrize_with_checks("reward", ["brevity"])
def test_brevity(plugin, check):
    check(plugin)
```

A check takes a plugin (a name as in a recipe, a class, a function, or an object that was made already), and raises
`AssertionError` with what it found. Its docstring says why it matters to a training run. It is skipped
(`unittest.SkipTest`) where it does not apply, or where another check fails for the same cause. What a plugin can and
cannot do it declares by attributes (`plugins/declarations.py`); known failures need a reason and are strict.

| module          | holds                                                            |
|-----------------|------------------------------------------------------------------|
| `running.py`    | all checks of a kind: `check_reward` ..., `parametrize_with_checks` |
| `general.py`    | checks on every kind                                             |
| `rewards.py`, `adapters.py`, `strategies.py`, `datasets.py`, `stages.py`, `tools.py` | checks on one kind |
| `subject.py`    | a plugin under check, and what it declares                       |
| `tiny.py`, `tiny_gguf.py`, `scripted.py`, `noise.py` | tiny models and data, a scripted model, global generators |
"""

from posttrain_plugins.testing.running import (
    CHECKS,
    Outcome,
    check_adapter,
    check_dataset,
    check_reward,
    check_stage,
    check_strategy,
    check_tool,
    parametrize_with_checks,
    run_checks,
)
from posttrain_plugins.testing.subject import Subject

__all__ = [
    "CHECKS",
    "Outcome",
    "Subject",
    "check_adapter",
    "check_dataset",
    "check_reward",
    "check_stage",
    "check_strategy",
    "check_tool",
    "parametrize_with_checks",
    "run_checks",
]
