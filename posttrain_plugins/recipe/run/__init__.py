"""Run a plan: stage after stage, each given its inputs, called, and published.

| file | holds |
|---|---|
| `inputs.py` | what a stage's references stand for -> the objects that it is given |
| `data.py` | data sets: read, converted, given their options, and checked row by row |
| `run.py` | the loop over stages: lock, resume, call, record, publish, or keep what cost something |
| `launched.py` | a stage in processes of its own: started, followed, its one error told |
| `observer.py` | who sees a run; the one that writes `run.jsonl` |
| `full_disk.py` | what is told of a full disk: by which libraries, what was kept, what to do |
| `out_of_memory.py` | what is told of a stage that had too little memory: the single change with which it fits |
| `preview.py` | which tokens carry loss, by TRL's own trainers on a stand-in model |
| `ad_hoc.py` | models, rewards, data sets and strategies named outside any recipe |
"""
