"""What the folders of a run tell: one reader for tables, cards, pages and a second terminal, and what is written live.

Nothing here loads a model, takes a lock or changes what it reads; all of it is there while a run works, and after it
was killed.

| file          | holds                                                                                     |
|---------------|-------------------------------------------------------------------------------------------|
| `lines.py`    | JSON lines: written without NaN, read without what a kill has torn                         |
| `figures.py`  | `figures.jsonl`: the figures of each optimizer step, written as it trains                  |
| `health.py`   | is a training well? Verdicts over its figures, with threshold, source and cure            |
| `events.py`   | `run.jsonl`: what happened in a run, as it happens                                         |
| `artifact.py` | a finished stage: its folder and its manifest                                              |
| `runs.py`     | a run: its stages in order, the state of each, and their files                             |
| `pace.py`     | the median of the last steps, what is left, and for how long there was none               |
| `rollouts.py` | the newest completions, read from the end of the file                                     |
| `storage.py`  | all folders of all runs: sizes, who needs them, whether they are as they were made        |
| `lineage.py`  | the manifests from a model back to its base, and what was measured of it                   |
| `results.py`  | what a run came to: one row a stage                                                        |
"""
