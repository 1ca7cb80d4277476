"""The engine that runs strategies over many problems at once.

`solve` makes a `ProblemRun` of each problem and hands all of them to a driver; the driver has requests admitted,
answered and settled by the `Session`. Read `solve.py`, then `session.py`, then one of the drivers.

| file             | holds                                                                          |
|------------------|--------------------------------------------------------------------------------|
| `solve.py`       | `solve` and `sample`: what callers use                                         |
| `session.py`     | what is admitted, under which keys, what it costs, what is handed over         |
| `problem_run.py` | one problem: its generator, its budget, its best result so far                 |
| `waves.py`       | the driver for backends that answer whole batches                              |
| `stream.py`      | the driver for servers: no barrier between problems                            |
| `scoring.py`     | rewards called on texts, with the log as their cache                           |
| `tools.py`       | functions that a strategy calls, and the JSON schemas that tell a model of them |
| `tool_loop.py`   | completions that are conversations with tools                                  |
| `keys.py`        | a request's name: seed, cache entry and log line in one                        |
| `log.py`         | the log of answered requests: cache, replay and resume                         |
| `trace.py`       | what happened while a problem was solved, and the tree that it tells           |
| `saved_traces.py` | those of the first problems on disk, for reports                              |
"""
