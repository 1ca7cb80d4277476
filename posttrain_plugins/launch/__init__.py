"""A training stage in processes of its own: the run plans, locks and publishes, and is none of them.

The run writes what is to be made into the stage's folder (`launch/job.json`) and starts `accelerate launch`, which
starts `worker.py` once for each process. They answer by files in the same folder, which a node of a cluster reaches
too: progress, a wish to stop, the result, and what went wrong in which process. Nothing is pickled.

| file           | holds                                                                              |
|----------------|------------------------------------------------------------------------------------|
| `job.py`       | what goes to the workers and what comes back, as files                             |
| `nodes.py`     | several machines: which this is, what the first one orders                         |
| `processes.py` | the command, its environment, and its end: no process outlives a run               |
| `failures.py`  | which of several errors is the cause                                               |
| `hang.py`      | who says nothing any more: signs of life, where a process stands, who holds up whom |
| `cpu.py`       | what DeepSpeed needs on a machine without a GPU                                    |
| `rank.py`      | the one module that knows ranks: which process this is, sums, and the true engine  |
| `worker.py`    | the program of one process                                                         |
"""
