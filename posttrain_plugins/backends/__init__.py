"""What answers the engine: transformers or vLLM in this process, any OpenAI-compatible server.

| file            | holds                                                                          |
|-----------------|--------------------------------------------------------------------------------|
| `protocol.py`   | what a backend is, what it may be able to do, and requests that it cannot answer |
| `open.py`       | from a model's name or URL to a backend: the one way for stages, `ask`, `serve` |
| `engines.py`    | which engine answers, and vLLM's options, checked before anything is loaded    |
| `transformers/` | a model in this process                                                        |
| `openai/`       | a server                                                                       |
| `markers.py`    | marks that a strategy waits for, and a model that does not know them           |
| `vllm.py`       | vLLM in this process                                                           |
"""
