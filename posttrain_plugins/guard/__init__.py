"""The guard of a reward: it cannot hang, cannot take the process down, and cannot silently zero a run.

| file | holds |
|---|---|
| `settings.py` | what a recipe may ask for |
| `distinct_rows.py` | a call as its distinct rows |
| `isolation.py` | the pool of processes that score, for a reward that may hang or crash |
| `scorer.py` | what scores in each of them |
| `outcome.py` | what became of each score, judged by the same code in this process and in those |
| `guarded.py` | the reward in the author's place: it scores, counts outcomes and stops the run |
| `tools.py` | a tool in the author's place |
| `tool_caller.py` | what calls it, in this process and in those |

Nothing is imported here, so that a process of the pool starts with `scorer.py` and `outcome.py` alone.
"""
