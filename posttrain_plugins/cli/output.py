"""Where the commands write: data to stdout, messages to stderr; libraries are kept quiet."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

from posttrain_plugins.errors import PosttrainError, StageFailed, WaitsForPerson

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["err", "out", "print_error", "quiet"]

PIPE_COLUMNS = 160  # rich takes 80 where it sees no terminal, and would break the rows of a table for `grep`


def out() -> Console:
    """Return the console for data."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def err() -> Console:
    """Return the console for messages."""
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else PIPE_COLUMNS)


def quiet(console: Console | None = None) -> None:
    """Keep torch and its like quiet, before they are imported: one display instead of five."""
    # read at the import of these libraries; what the user has set wins
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from posttrain_plugins.cli.run_display import quiet_libraries

    quiet_libraries(console or err())


def print_error(error: PosttrainError, is_debug: bool) -> None:
    """Print message and hint, and with --debug, or if a stage's own code failed, a traceback."""
    cause = error.__cause__
    if is_debug:
        traceback.print_exception(error)
    elif isinstance(error, StageFailed) and error.hint is None and cause is not None:
        # nobody foresaw this one, so that there is no hint: the author of the stage needs the place in the code
        traceback.print_exception(cause)
    # that a person is waited for is no error: nothing is wrong, and the message says what to do
    print(error.message if isinstance(error, WaitsForPerson) else f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"\nhint: {error.hint}", file=sys.stderr)
