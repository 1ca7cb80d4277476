"""How good the answers are, and what they take: figures for `evaluate` and for reward models.

| module           | holds                                                                      |
|------------------|----------------------------------------------------------------------------|
| `bench.py`       | a data set's problems, and a model measured on them                        |
| `measure.py`     | one way of answering, measured                                             |
| `curves.py`      | pass, maj, weighted and best @ k from one log                              |
| `figures.py`     | bootstrap intervals, the Pareto front                                      |
| `missing.py`     | completions that never came: counted, told, and too many end the stage     |
| `proxy.py`       | whether a learned scorer is followed too far: over-optimised               |
| `retain.py`      | what a model still can do beside what it was trained for                   |
| `truths.py`      | what a reward that knows the answers says of the questions people get      |
| `plot.py`        | accuracy against tokens, drawn                                             |
| `proxy_plot.py`  | what scorers say against what is true, drawn                               |
| `calibration.py` | a reward model's accuracy and calibration on held-out pairs                |
"""
