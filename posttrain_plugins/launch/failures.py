"""Of several processes that end, which one was the cause, and what to say of it. No paper."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from posttrain_plugins.errors import PosttrainError, StageFailed
from posttrain_plugins.launch.job import read_failures

__all__ = ["failure"]

CONSEQUENCES = re.compile(
    r"Connection (closed|reset) by (remote )?peer|Broken pipe|gloo/transport|ncclRemoteError|ncclSystemError"
    r"|DistBackendError|DistNetworkError|DistStoreError|NCCL communicator was aborted|Socket Timeout|recvValue failed"
)
"""How a process says that another one is gone."""
LATE = re.compile(r"Timed out waiting|Watchdog caught collective operation timeout|Application timeout caused pair")
"""How it says that another one does not come."""
EXIT = re.compile(r"^\s*rank\s*: (?P<rank>\d+) .*?\n\s*exitcode\s*: (?P<code>-?\d+)", re.MULTILINE)
"""torchrun's report of the process that ended first."""
TAIL_LINES = 12


def failure(stage: str, folder: Path, code: int) -> PosttrainError:
    """Return the one error of a stage whose processes have ended without a result.

    Args:
        stage: its id.
        folder: of the job.
        code: the launcher's exit code.
    """
    raised = read_failures(folder)
    # By what they say and not by their times: who loses a peer may tell it before the peer's own error is written.
    causes = [one for one in raised if not CONSEQUENCES.search(one.message) and not LATE.search(one.message)]
    if causes:
        return causes[0].error()
    others, _, first = _text(folder / "launcher.log").rpartition("Root Cause")
    ended, also = ([(int(one["rank"]), int(one["code"])) for one in EXIT.finditer(part)] for part in (first, others))
    # Negative is a signal; the launcher's own report has it, since a process that is killed can write nothing. Who has
    # lost it and ended in the same moment may stand as the first; the launcher itself ends others by SIGTERM.
    signals = [(rank, -code) for rank, code in ended if code < 0]
    signals += [(rank, -code) for rank, code in also if code < 0 and -code != signal.SIGTERM]
    killed = next(iter(signals), None)
    if killed is not None:
        rank, number = killed
        name = signal.Signals(number).name if number in {*signal.Signals} else str(number)
        hint = "out of memory? The next run goes on from the newest checkpoint" if number == signal.SIGKILL else None
        return StageFailed(f"process {rank} of stage '{stage}' was ended by {name}", hint=hint or _tail(folder, rank))
    if raised:
        one = raised[0]
        said = "waited for another that did not come" if LATE.search(one.message) else "lost another"
        return StageFailed(
            f"stage '{stage}': process {one.rank} {said}: {one.message.splitlines()[0]}",
            hint=f"see {folder}/rank-*.log",
        )
    last = ended[0][0] if ended else None
    hint = _tail(folder, last)
    which = "the launcher" if last is None else f"process {last}"
    return StageFailed(f"{which} of stage '{stage}' ended with exit code {ended[0][1] if ended else code}", hint=hint)


def _tail(folder: Path, rank: int | None) -> str | None:
    """Return the end of a log, where a process that could tell nothing may have printed why."""
    file = folder / ("launcher.log" if rank is None else f"rank-{rank}.log")
    lines = [line for line in _text(file).splitlines() if line.strip()][-TAIL_LINES:]
    return f"the end of {file}:\n" + "\n".join(lines) if lines else f"see {folder}"


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
