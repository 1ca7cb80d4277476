"""Runs programs that nobody trusts: no home, no network, little memory, little disk, few processes, and an end.

| file | holds |
|---|---|
| `run.py` | what a caller asks for, which kind of sandbox works here, and the wait for the end |
| `jail.py` | the process that locks itself in and becomes the program |
"""
