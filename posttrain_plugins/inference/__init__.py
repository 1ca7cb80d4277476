"""The engine that runs strategies over many problems at once, and the backends that answer it.

| module                    | holds                                                                           |
|---------------------------|---------------------------------------------------------------------------------|
| `engine.py`               | `solve` and `sample`                                                            |
| `session.py`              | what both drivers share: admission, budgets, usage, replay, handing over        |
| `waves.py`                | the driver for models in this process: one call for all problems                |
| `stream.py`               | the driver for servers: no barrier between problems                             |
| `live.py`                 | one problem: its generator, what it has spent, its best answer so far           |
| `keys.py`                 | names of requests: seed, cache entry and line in the log at once                |
| `log.py`                  | the JSONL log of answered requests: cache, replay and resume at once            |
| `scoring.py`              | rewards called on texts, in TRL's signature, and what they cost                 |
| `tools.py`                | plain functions as tools, and their JSON schemas                                |
| `trace.py`                | what happened, as JSON values, and the tree that it tells                       |
| `backends.py`             | what a backend is: an identity, its capabilities, and one method                |
| `transformers_backend.py` | models in process: full, adapter or 4-bit                                       |
| `decode.py`               | its decoding loop: shared prefill, rows that leave early, noise of each row     |
| `measure.py`              | a data set's problems, and one model measured on them                           |
| `figures.py`              | means with bootstrap intervals, paired differences, pass@k                      |

Importing this package, or any module but `decode.py`, imports no torch.
"""

from posttrain_plugins.inference.backends import AsyncBackend, Backend, Capabilities
from posttrain_plugins.inference.engine import sample, solve
from posttrain_plugins.inference.log import RequestLog
from posttrain_plugins.inference.scoring import Scored, score
from posttrain_plugins.inference.trace import Node, tree

__all__ = [
    "AsyncBackend",
    "Backend",
    "Capabilities",
    "Node",
    "RequestLog",
    "Scored",
    "sample",
    "score",
    "solve",
    "tree",
]
