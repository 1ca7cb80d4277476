"""`python`: a program that the model writes, run in the sandbox, as in program-aided language models.

Paper: Gao et al., 2022 (https://huggingface.co/papers/2211.10435). We differ: the program prints its answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain_plugins.errors import InputError
from posttrain_plugins.sandbox.run import Sandbox, SandboxLimits, run

__all__ = ["Python"]


@dataclass
class Python:
    """Runs a Python program without network, files and time to spare, and gives what it printed.

    The model is told of the call: one argument, `code`. What the sandbox stops, and what it does not, is told with
    the reward `code` (`docs/rewards.md`).

    Args:
        time_limit_s: seconds for a program.
        memory_mib: address space of each process.
        max_processes: at once, threads among them.
        max_chars: of what is printed, the rest is cut.
        sandbox: `auto` takes the first kind that works here; `none` runs as you.
    """

    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"arguments": {"code": "print(sum(range(10)))"}, "answer": "45"},
        {"arguments": {"code": "1 + 1"}, "answer": "nothing was printed; print what you want to see"},
    )

    time_limit_s: float = 6.0
    memory_mib: int = 1024
    max_processes: int = 32
    max_chars: int = 4000
    sandbox: Sandbox = "auto"

    def __post_init__(self) -> None:
        for name in ("time_limit_s", "memory_mib", "max_processes", "max_chars"):
            if getattr(self, name) <= 0:
                raise InputError(f"python cannot use {name}: {getattr(self, name)}, expected more than 0")

    def __call__(self, code: str) -> str:
        """Run a Python program and give what it prints.

        Args:
            code: the program. It prints its answer.

        Raises:
            InputError: no sandbox works here.
        """
        limits = SandboxLimits(self.time_limit_s, self.memory_mib, processes=self.max_processes)
        ran = run(code, "", limits, self.sandbox)
        if ran.code is None:
            return f"error: the program did not end within {self.time_limit_s:g} s"
        # of a traceback its last line: it names the error, and all of it would fill the model's context
        failed = ran.stderr.strip().rpartition("\n")[2] if ran.code else ""
        text = "\n".join(part for part in (ran.stdout.strip(), failed) if part)
        return text[: self.max_chars] or "nothing was printed; print what you want to see"
