"""What every server on this machine needs, whatever it serves: `serve` and `annotate` share it.

| file        | holds                                                              |
|-------------|--------------------------------------------------------------------|
| `origin.py` | which pages of a browser, and which names, requests may come from  |
| `port.py`   | a port, taken before anything else is done                         |
| `body.py`   | a request's body: not too large, and not waited for for ever       |

Importing this package imports neither FastAPI nor uvicorn.
"""
