"""Any OpenAI-compatible server as a backend.

| module       | holds                                                            |
|--------------|------------------------------------------------------------------|
| `backend.py` | the backend: one request, its completions                        |
| `probe.py`   | what the server can, found out by asking it                      |
| `format.py`  | requests and replies of the two APIs, chat and plain completions |
| `http.py`    | sent, retried, limited; errors as ours                           |
"""
