"""Peak memory of a training: the GPU's as torch counts it, else the process's own. No paper."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

__all__ = ["peak_gib", "reset_peak"]

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What lets Linux forget the peak of this process (`proc_pid_clear_refs(5)`)."""


def reset_peak(is_on_gpu: bool) -> None:
    """Begin anew, so that a stage's peak is not that of one before; where the system cannot, it is the process's."""
    if is_on_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        CLEAR.write_text(RESET_PEAK)


def peak_gib(is_on_gpu: bool) -> float:
    """Return the most memory in GiB since `reset_peak`: of tensors on the first GPU of this process, or resident."""
    if is_on_gpu:
        import torch

        return float(torch.cuda.max_memory_allocated()) / 2**30
    with contextlib.suppress(OSError):
        for line in STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20  # in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2.0 ** (
        30 if sys.platform == "darwin" else 20
    )  # bytes there, KiB elsewhere
