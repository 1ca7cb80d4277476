"""Adapter plugins: what is trainable. Reached by name only.

| module          | holds                                                                                |
|-----------------|--------------------------------------------------------------------------------------|
| `lora.py`       | low-rank matrices beside the weights; rsLoRA, DoRA, PiSSA, LoftQ and LoRA+ as options |
| `adalora.py`    | LoRA whose ranks shrink where they matter least                                      |
| `vera.py`       | random matrices that all layers share, and two learned vectors for each              |
| `oft.py`        | weights turned by a learned rotation                                                 |
| `ia3.py`        | one learned factor for each channel                                                  |
| `bottleneck.py` | small networks after or beside attention and feed-forward layers                     |
| `prompt.py`     | learned embeddings before every text                                                 |
| `p_tuning.py`   | the same, made by a small learned network                                            |
| `prefix.py`     | learned keys and values before every text, in every layer                            |
| `peft.py`       | any other type of PEFT, by its name                                                  |
| `full.py`       | every parameter                                                                      |
| `freeze.py`     | every parameter but chosen layers or names                                           |
"""
