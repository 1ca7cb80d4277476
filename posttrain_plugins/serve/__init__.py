"""An OpenAI-compatible server over models, adapters and test-time strategies.

| module | holds |
|---|---|
| `server.py` | the process: a port, signals, a graceful end |
| `app.py` | the routes, and the gate that lets requests in; the only module that imports FastAPI |
| `protocol.py` | a request's JSON, read and checked |
| `fields.py`, `messages.py` | its parts: single fields and refusals, chat messages and tools |
| `service.py` | one client's request, from the checks to the answer |
| `strategies.py` | what a client may write after `NAME@` |
| `models.py` | the served models by name; adapters of one base share it in memory |
| `queued.py` | backends and scorers that wait in the line of the models' thread |
| `model_thread.py` | the one thread that owns the models, and the waves in which it answers |
| `replies.py` | results as OpenAI's JSON, whole or as server-sent events |

Importing this package imports neither FastAPI nor uvicorn nor torch.
"""

from posttrain_plugins.serve.server import serve

__all__ = ["serve"]
