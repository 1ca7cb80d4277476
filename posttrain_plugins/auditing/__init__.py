"""A reward before and after training, without the trained model: tried, stressed, replayed on saved rollouts, audited.

| file         | holds                                                                                |
|--------------|--------------------------------------------------------------------------------------|
| `scoring.py` | a reward called on rows, in pieces                                                   |
| `trial.py`   | before: its own examples, a data set's references, and completions that nobody wants |
| `saved.py`   | after: the rollouts that RL stages save                                              |
| `audit.py`   | does an independent reward rise with the trained one?                                |
| `plot.py`    | an audit, drawn                                                                      |
"""
