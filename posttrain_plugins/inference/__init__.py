"""The engine that runs strategies over many problems at once, and the backends that answer it.

| module                         | holds                                                                          |
|--------------------------------|--------------------------------------------------------------------------------|
| `engine.py`                    | `solve` and `sample`                                                           |
| `session.py`                   | what both drivers share: admission, budgets, usage, replay, handing over       |
| `waves.py`                     | the driver for models in this process: one call for all problems               |
| `stream.py`                    | the driver for servers: no barrier between problems                            |
| `live.py`                      | one problem: its generator, what it has spent, its best answer so far          |
| `keys.py`                      | names of requests: seed, cache entry and line in the log at once               |
| `log.py`                       | the JSONL log of answered requests: cache, replay and resume at once           |
| `scoring.py`                   | rewards called on texts, in TRL's signature, and what they cost                |
| `tools.py`                     | plain functions as tools, and their JSON schemas                               |
| `trace.py`                     | what happened, as JSON values, and the tree that it tells                      |
| `backends.py`                  | what a backend is: an identity, its capabilities, and one method               |
| `transformers_backend.py`      | models in process: full, adapter or 4-bit                                      |
| `loading.py`, `chat.py`        | models and tokenizers from folders; messages to tokens, tool calls back        |
| `decode.py`, `kv_cache.py`     | the decoding loop: shared prefill, rows that leave, noise of each row          |
| `stops.py`, `value_head.py`    | stop strings; the value head of a critic that shares the policy                |
| `continuous.py`                | transformers' continuous batching behind our rows, for CUDA                    |
| `vllm_backend.py`              | vLLM in process                                                                |
| `openai/`                      | any OpenAI-compatible server                                                   |
| `opened.py`                    | the backend of a model that a stage is given                                   |
| `measuring/`                   | what `evaluate` measures: curves over k, intervals, Pareto front, calibration  |
| `keeping.py`, `step_labels.py` | what `sample` keeps, in which format; which steps are right                    |
| `classifier.py`                | a model that judges texts or their tokens: rewards are built on it             |
| `calibration.py`               | a reward model's accuracy and calibration on held-out pairs                    |
| `rollouts.py`                  | rollouts that a strategy makes, for trainers                                   |

Importing this package, or any module but `decode.py`, `kv_cache.py`, `stops.py` and `continuous.py`, imports no torch.
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
