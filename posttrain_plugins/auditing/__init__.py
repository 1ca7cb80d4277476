"""Rewards looked at from outside, without a model: tried, stressed, replayed on saved rollouts, audited.

| module       | holds                                                                     |
|--------------|---------------------------------------------------------------------------|
| `scoring.py` | a reward called on rows, in pieces                                        |
| `trial.py`   | its own examples, a data set's references, and texts that no one wants    |
| `saved.py`   | the rollouts that RL stages save                                          |
| `audit.py`   | does an independent reward rise with the trained one?                     |
| `plot.py`    | the same, drawn                                                           |
"""
