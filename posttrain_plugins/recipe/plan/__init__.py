"""Plan a recipe: which stages are done already, which must run, and why.

| file | holds |
|---|---|
| `keys.py` | what a stage's result depends on, as named parts; file hashes, remembered beside the runs |
| `decisions.py` | stages that wait for people: which decisions they use is a part of their key |
| `store.py` | `runs/<recipe>/<stage>-<key>`: locked while it is made, published by one rename, found again by key |
| `lock.py` | one process makes a stage: `flock`, and a sign of life that other machines see |
| `plan.py` | the plan: each stage's key, its artifact if there is one, and the reasons if it must run |
"""
