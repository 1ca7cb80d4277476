"""Plan a recipe's memory and time: what each stage takes, what fits, and which single change makes the rest fit.

| file | holds |
|---|---|
| `sizes.py` | `80GB` as bytes, bytes as people read them, and the machine that a stage is to run on |
| `work.py` | steps, tokens and time of a stage; imports nothing heavy |
| `method.py` | what each trainer goes over at once, and how it gets its loss |
| `unknown.py` | the exception that says why something cannot be told |
| `model.py` | the model of a stage from its config alone: on the meta device, with what learns |
| `trace.py` | a training step without weights, op by op: what is alive, and when it is most |
| `estimate.py` | a stage's memory by part, and the peaks of its update and of its rollout |
| `advice.py` | single changes of a stage, each as the line to write, with what it then takes |

The sum that the parts go into is `models.training_memory.peak_of`.
"""
