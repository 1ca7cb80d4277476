"""Models in this process. `backend.py` turns requests into rows of tokens; `decode.py` draws them.

| file            | holds                                                                    |
|-----------------|--------------------------------------------------------------------------|
| `backend.py`    | the backend: which rows are drawn together, what their tokens say        |
| `decode.py`     | the decoding loop: many prompts, many completions each, noise by row     |
| `kv_cache.py`   | keys and values with room to grow, shared by a prompt's completions      |
| `stops.py`      | stop strings, found at the token that ends them                          |
| `chat.py`       | messages, prefills and tools to tokens; tool calls back from the text    |
| `continuous.py` | transformers' own continuous batching, for rows that it can draw         |
| `likelihood.py` | how likely a model finds texts                                           |
| `classifier.py` | models that judge: a row of logits for a text, or for each of its tokens |
"""
