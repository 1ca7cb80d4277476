"""Runs programs that nobody trusts: no home, no network, little memory, little disk, few processes, and an end.

`run.py` what a caller asks for, and which kind of sandbox works here; `jail.py` the process that locks itself in.
"""
