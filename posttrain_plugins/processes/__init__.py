"""Processes that answer requests for this one, and that can be killed.

| file | holds |
|---|---|
| `pool.py` | the pool in this process: requests go in, answers come as futures; what hangs or dies is replaced |
| `child.py` | the program of each process: it answers with a handler, and ends with its parent and all it started |

The guard of rewards and the comparison of answers share it. Nothing is imported here, so that a process starts with
`child.py` and what its handler needs, and nothing else.
"""
