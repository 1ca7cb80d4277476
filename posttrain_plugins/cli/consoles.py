"""Where the commands write: data to stdout, messages to stderr; libraries are kept quiet."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

from posttrain_plugins.errors import PosttrainError, StageFailed

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["err", "out", "quiet", "tell"]

PIPE_COLUMNS = 160


def out() -> Console:
    """For data."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def err() -> Console:
    """For messages."""
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else PIPE_COLUMNS)


def quiet(console: Console | None = None) -> None:
    """Before torch and its like are imported: one display instead of five."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from posttrain_plugins.cli.display import quiet_libraries

    quiet_libraries(console or err())


def tell(error: PosttrainError, is_debug: bool) -> None:
    """The message and the hint; the whole traceback with --debug, and where a stage's own code failed."""
    cause = error.__cause__
    if is_debug:
        traceback.print_exception(error)
    elif isinstance(error, StageFailed) and error.hint is None and cause is not None:
        traceback.print_exception(cause)
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"\nhint: {error.hint}", file=sys.stderr)
