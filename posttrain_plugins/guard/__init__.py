"""The guard of a reward: it cannot hang, cannot take the process down, and cannot silently zero a run.

`settings.py` what a recipe may ask for, `batch.py` a call as distinct rows, `outcome.py` what became of each score,
`pool.py` and `worker.py` processes that can be killed, `guarded.py` the reward in the place of the author's. Nothing is
imported here, so that a worker starts with `outcome.py` alone.
"""
