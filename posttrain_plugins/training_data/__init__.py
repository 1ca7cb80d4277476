"""What the stage `sample` makes of completions: rows in TRL's formats.

| module           | holds                                                                              |
|------------------|------------------------------------------------------------------------------------|
| `selection.py`   | which completions are kept and in which format; completions that were saved before |
| `step_labels.py` | which steps of a completion are right, by a rule or by rollouts                    |
"""
