"""The five kinds of plugin as protocols for readers and type checkers, and what a recipe's check asks a stage."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from posttrain_plugins.types.requests import Problem, Request, Result

if TYPE_CHECKING:
    from posttrain_plugins.types.stage import StageContext, StageResult

__all__ = ["KINDS", "Adapter", "Concern", "Dataset", "Kind", "Outlook", "Reward", "Stage", "Strategy"]

Kind: TypeAlias = Literal["reward", "adapter", "strategy", "dataset", "stage"]

KINDS: tuple[Kind, ...] = ("reward", "adapter", "strategy", "dataset", "stage")


@runtime_checkable
class Reward(Protocol):
    """How good is it? One float per completion, None where it cannot judge; TRL's reward call, sync or async."""

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]: ...


@runtime_checkable
class Adapter(Protocol):
    """What is trainable? A `peft.PeftConfig`, or None for full fine-tuning.

    What is returned may have a method `prepare(trainer)`: it is called once, when the trainer stands and before it
    trains, and what it returns, a mapping of plain values or None, goes into the record of the model. An object that is
    no PEFT config and has `prepare` trains all parameters but those that `prepare` freezes. A plugin of that kind says
    `is_full = True`, so that a recipe's check knows; the others say `params_of`, whose fields their parameters are.
    """

    def __call__(self, **params: Any) -> Any: ...


@runtime_checkable
class Strategy(Protocol):
    """How to spend compute at inference? A generator: yields requests, is sent the responses, returns a `Result`."""

    def __call__(self, problem: Problem) -> Generator[Request | list[Request], Any, Result]: ...


@runtime_checkable
class Dataset(Protocol):
    """What to learn from? A `datasets.Dataset` or `DatasetDict` in one of TRL's formats."""

    def __call__(self, **params: Any) -> Any: ...


@runtime_checkable
class Stage(Protocol):
    """How to update, or to measure? Called once with its context.

    A stage's class may have a method `concerns(outlook: Outlook) -> Iterable[Concern]`: what is wrong, or unwise, with
    its settings. A recipe's check asks it of the stage whose reference fields hold names, so it must import nothing
    heavy; mistakes are told with all others of the recipe, warnings by `plan` and `run`. A stage in a file of the
    user's, which is never imported by the check, is not asked.
    """

    def __call__(self, context: StageContext) -> StageResult: ...


@dataclass(frozen=True)
class Concern:
    """What a stage says of its settings before anything is loaded.

    Args:
        message: `<what>: <found>, expected <what>`.
        hint: one action.
        field: the stage's field that it is about, such as `adapter` or `args.kl_coef`.
        is_warning: it may work none the less.
    """

    message: str
    hint: str | None = None
    field: str = ""
    is_warning: bool = False

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


@dataclass(frozen=True)
class Outlook:
    """What is known of a stage before anything is loaded.

    Args:
        args: the fields of its config class, as the recipe or else the class sets them.
        trains_all: does it train all parameters, and no adapter?
        parameters: how many the model has that it starts from; None where it cannot be told.
        loading: TRL `ModelConfig` fields for loading it.
        judges_steps: the stage's rewards by name, and whether each has `step_scores`.
        memory_bytes: asks for the memory of the first GPU, else of the machine.
    """

    args: Any
    trains_all: bool
    parameters: int | None
    loading: Mapping[str, Any]
    judges_steps: Mapping[str, bool]
    memory_bytes: Callable[[], int]
