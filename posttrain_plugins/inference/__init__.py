"""The engine that runs strategies over many problems at once, and the backends that answer it.

| module                    | holds                                                                           |
|---------------------------|---------------------------------------------------------------------------------|
| `engine.py`               | `solve`: waves of requests, budgets, usage, replay                              |
| `log.py`                  | the JSONL log of answered requests: cache, replay and resume at once            |
| `scoring.py`              | rewards called on texts, in TRL's signature                                     |
| `backends.py`             | what a backend is: an identity, its capabilities, and one method                |
| `transformers_backend.py` | models in process: full, adapter or 4-bit                                       |
| `decode.py`               | its decoding loop: shared prefill, rows that leave early, noise of each row     |
| `measure.py`              | a data set's problems, and one model measured on them                           |
| `figures.py`              | means with bootstrap intervals, paired differences, pass@k                      |

Importing this package, or any module but `decode.py`, imports no torch.
"""

from posttrain_plugins.inference.backends import Backend, Capabilities
from posttrain_plugins.inference.engine import sample, solve
from posttrain_plugins.inference.log import RequestLog
from posttrain_plugins.inference.scoring import Scored, score

__all__ = ["Backend", "Capabilities", "RequestLog", "Scored", "sample", "score", "solve"]
