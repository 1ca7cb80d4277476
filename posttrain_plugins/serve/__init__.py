"""An OpenAI-compatible server over models, adapters and test-time strategies.

| module          | holds                                                                          |
|-----------------|--------------------------------------------------------------------------------|
| `protocol.py`   | a request's JSON, read and checked (`fields.py`, `messages.py`: its parts)     |
| `replies.py`    | results as OpenAI's JSON, whole or as server-sent events                       |
| `models.py`     | the served models by name; adapters of one base share it in memory             |
| `strategies.py` | what a client may write after `NAME@`                                          |
| `worker.py`     | the one thread that owns the models, and the waves in which it answers         |
| `queued.py`     | backends and scorers that wait in the worker's line                            |
| `service.py`    | one client's call, from the checks to the answer                               |
| `app.py`        | the routes; the only module that imports FastAPI                               |
| `server.py`     | the process: a port, signals, a graceful end                                   |

Importing this package imports neither FastAPI nor uvicorn nor torch.
"""

from posttrain_plugins.serve.server import serve

__all__ = ["serve"]
