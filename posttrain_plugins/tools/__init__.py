"""Tool plugins, one file each: what a model may call, in training, in `sample` and `evaluate`, and in strategies.

A tool is a plain function with annotated arguments and a docstring. What it returns is shown to the model as text, and
so is what it raises. `docs/tools.md` says more.

| file            | holds                                        |
|-----------------|----------------------------------------------|
| `calculator.py` | arithmetic                                   |
| `python.py`     | a Python program, run in a sandbox           |
"""
