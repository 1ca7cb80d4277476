"""Let accelerate have FSDP2 on a CPU, for tests alone: it looks for it under MULTI_GPU, never under MULTI_CPU.

Python imports this file where its folder is on `PYTHONPATH`; it acts in workers of a launched stage, and nowhere else.
"""

import os
import sys

WORKER = "posttrain_plugins.launch.worker"


def _is_worker() -> bool:
    words = sys.orig_argv
    return "-m" in words and words[words.index("-m") + 1] == WORKER


if _is_worker() and os.environ.get("ACCELERATE_USE_FSDP") == "true":
    from accelerate import state

    _original = state.PartialState.__init__

    def _init(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        _original(self, *args, **kwargs)
        if self._shared_state.get("distributed_type") == state.DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = state.DistributedType.MULTI_GPU

    state.PartialState.__init__ = _init
