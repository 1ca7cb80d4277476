"""Every exception that posttrain-plugins raises.

```
PosttrainError                  base; carries `hint`, one action that mends it
├── InputError                  your input is wrong                       (exit 2)
│   ├── RecipeErrors            all mistakes of one recipe, in one report
│   ├── PluginNotFound          no plugin of that kind and name
│   ├── PluginConflict          two distributions give the same name
│   └── HandoffError            a stage's input is not what it was made for
├── PluginBroken                a plugin failed to import or to be built  (exit 1)
├── StageFailed                 a stage could not finish                  (exit 1)
│   ├── NonFiniteLoss           the loss became NaN or infinite
│   ├── RewardFailed            a reward failed, failed too often, or gave no number for a whole generation
│   └── ToolFailed              a tool that models call failed too often
├── Interrupted                 stopped by a signal, a checkpoint stands  (exit 130 SIGINT, 143 SIGTERM, 138 SIGUSR1)
├── WaitsForPerson              a person has to decide before it goes on  (exit 4)
├── BudgetExhausted             thrown into a strategy at its yield; never reaches the user
└── GateNotMet                  an evaluation missed what `require:` asks (exit 3)
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = [
    "PLUGIN_FAILURES",
    "BudgetExhausted",
    "GateNotMet",
    "HandoffError",
    "InputError",
    "Interrupted",
    "Mistake",
    "NonFiniteLoss",
    "PluginBroken",
    "PluginConflict",
    "PluginNotFound",
    "PosttrainError",
    "RecipeErrors",
    "RewardFailed",
    "StageFailed",
    "ToolFailed",
    "WaitsForPerson",
    "importing_extra",
]


PLUGIN_FAILURES: tuple[type[Exception], type[SystemExit]] = (Exception, SystemExit)
"""What a plugin's code may raise that is a failure of the plugin, told as one.

A `sys.exit` somewhere in what it imports or calls would end a run of hours with an exit code and no word. Ctrl-C is the
user's, whoever's code it meets.
"""


class PosttrainError(Exception):
    """Base of all our errors: what failed, and a hint that says what to do.

    Args:
        message: `<what failed>: <found>[, expected <what>]`.
        hint: one action that mends it, best a command.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class InputError(PosttrainError):
    """Something that the user gave cannot be used."""

    exit_code = 2


@dataclass(frozen=True, order=True)
class Mistake:
    """One mistake in a recipe: where it stands, what is wrong, what to do."""

    file: str
    line: int
    column: int
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.message}" + (f" (hint: {self.hint})" if self.hint else "")


class RecipeErrors(InputError):
    """All mistakes of a recipe at once, in the order in which they stand in the file."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = sorted(set(mistakes), key=lambda m: (m.file, m.line, m.column, m.message))
        count = len(self.mistakes)
        lines = "\n".join(str(mistake) for mistake in self.mistakes)
        super().__init__(f"{count} mistake{'s' if count != 1 else ''} in the recipe\n\n{lines}")


class PluginNotFound(InputError):
    """No plugin of that kind has that name."""


class PluginConflict(InputError):
    """The same name is given by two distributions."""


class HandoffError(InputError):
    """A stage's input does not match what it was made for."""


class PluginBroken(PosttrainError):
    """A plugin is installed, but its module fails to import or its object cannot be built."""


class StageFailed(PosttrainError):
    """A stage could not finish; nothing stands where its result would be."""


class NonFiniteLoss(StageFailed):
    """The training loss became NaN or infinite."""


class RewardFailed(StageFailed):
    """A reward under the guard failed, too many of its scores did, or none of a whole generation is a number."""


class ToolFailed(StageFailed):
    """A tool that models call refuses to work, or failed too often under the guard."""


class Interrupted(PosttrainError):
    """The user or a scheduler stopped the run; what was reached is saved.

    Args:
        message: where it was stopped.
        hint: how it goes on.
        signal_number: what stopped it; a shell's exit code for it is 128 more, so that a job's script knows whether
            the time was over (SIGUSR1, SIGTERM) or somebody wanted it to end.
    """

    def __init__(self, message: str, hint: str | None = None, signal_number: int = 2) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number


class WaitsForPerson(PosttrainError):
    """A stage needs decisions that nobody has made yet: no failure, the same command goes on when they are made.

    Args:
        stage: which one.
        decided: how far it is, such as `137 of 200`.
        hint: how to decide the rest.
    """

    exit_code = 4

    def __init__(self, stage: str, decided: str, hint: str | None = None) -> None:
        super().__init__(f"stage '{stage}' waits for a person: {decided}", hint)
        self.stage = stage
        self.decided = decided


class BudgetExhausted(PosttrainError):
    """A strategy's budget is spent. Thrown at its yield; it may return its best answer so far."""


class GateNotMet(PosttrainError):
    """An evaluation's figures miss what the recipe requires."""

    exit_code = 3


@contextmanager
def importing_extra(plugin: str, library: str, extra: str) -> Iterator[None]:
    """Say what to install where a library that only some plugins need cannot be imported.

    Args:
        plugin: who needs it.
        library: what its distribution is called.
        extra: the extra of this package that brings it.

    Raises:
        InputError: an import within failed.
    """
    try:
        yield
    except ImportError as cause:
        hint = f"pip install 'posttrain-plugins[{extra}]'"
        raise InputError(f"{plugin} needs {library}, which is not installed", hint=hint) from cause
