"""Plugins, recipes and test-time strategies on top of Hugging Face TRL: post-training end to end.

```python
import posttrain_plugins as pp

run = pp.run("recipes/lora.yaml", overrides={"stages.sft.args.max_steps": 10})
reward = pp.load("reward", "length", max_chars=200)  # a TRL reward function
```

Importing this package imports neither torch nor transformers nor trl.

Imports go down this table and to the rows above only (`tests/test_arrows.py` has the arrows one by one); plugins are
reached by name. Each folder's `__init__` has a table of its own.

| file or folder                              | holds                                                             |
|---------------------------------------------|-------------------------------------------------------------------|
| `errors.py`                                 | every exception of ours, with a hint                              |
| `processes/`                                | processes that answer requests, and can be killed                 |
| `types/`                                    | requests, results, references, what a stage is given and returns  |
| `text/`                                     | messages, answers, steps; mathematical equality                   |
| `answers.py`, `steps.py`                    | the same by the names under which plugins import them             |
| `rows/`                                     | data files, read as they are; what a trainer could not take       |
| `decisions/`                                | what people decided: questions, ledger, training data from them   |
| `record/`                                   | what the folders of a run tell, while it works and afterwards     |
| `nested_rewards.py`                         | rewards that call other rewards                                   |
| `plugins/`                                  | how plugins are found, and what they take and declare             |
| `models/`                                   | loading, merging and stacking of models and adapters              |
| `checkpoints.py`                            | the newest checkpoint that is as it was saved                     |
| `launch/`                                   | a stage in several processes; the one module that knows ranks     |
| `guard/`, `sandbox/`                        | rewards that cannot hang; programs that nobody trusts             |
| `recipe/`                                   | YAML -> checked recipe -> plan with content keys -> run -> store  |
| `memory_plan/`                              | what each stage of a plan takes of memory, from configs alone     |
| `backends/`, `engine/`                      | models that generate; strategies run on many problems at once     |
| `evaluation/`, `training_data/`             | figures; what is kept of completions as training data             |
| `search/`                                   | what the tree searches share                                      |
| `trainers/`                                 | how TRL's trainers are driven; PPO and other trainers of ours     |
| `publish/`                                  | the card of an exported model; what of it goes to the Hub         |
| `tiny_world/`                               | task, checker and tokenizer of the quickstart                     |
| `stages/`, `adapters/`, `rewards/`, `strategies/`, `datasets/`, `tools/` | the built-in plugins, a file each    |
| `api.py`                                    | the Python interface                                              |
| `testing/`, `templates/`                    | the conformance kit; what `plugins new` copies                    |
| `auditing/`, `doctor.py`, `serve/`          | rewards tried and audited; the installation; the server           |
| `annotate/`                                 | the page on which people decide                                   |
| `web/`                                      | what every server needs: who may come in, a port, a body          |
| `report/`                                   | pages that people read: a run, two runs compared, a trace         |
| `cli/`                                      | parsing and printing                                              |
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
