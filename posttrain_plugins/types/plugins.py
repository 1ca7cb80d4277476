"""The six kinds of plugin as protocols for readers and type checkers, and what a recipe's check asks a stage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from posttrain_plugins.types.requests import Problem, RequestGenerator, Result

__all__ = ["KINDS", "Adapter", "Dataset", "Kind", "Reward", "Strategy", "Tool"]

Kind: TypeAlias = Literal["reward", "adapter", "strategy", "dataset", "stage", "tool"]

# in the order in which `plugins list` and the docs show them
KINDS: tuple[Kind, ...] = ("reward", "adapter", "strategy", "dataset", "stage", "tool")


@runtime_checkable
class Reward(Protocol):
    """How good is it? One float per completion, None where it cannot judge; TRL's reward call, sync or async."""

    # `**columns` is what keeps a reward valid when a data set, or a later TRL, hands it one more column
    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]: ...


@runtime_checkable
class Adapter(Protocol):
    """What is trainable? A `peft.PeftConfig`, or None for full fine-tuning.

    What is returned may have a method `prepare(trainer)`: it is called once, when the trainer stands and before it
    trains, and what it returns, a mapping of plain values or None, goes into the record of the model. An object that is
    no PEFT config and has `prepare` trains all parameters but those that `prepare` freezes. A plugin of that kind says
    `is_full = True`, so that a recipe's check knows; the others say `params_of`, whose fields their parameters are.
    """

    # `Any`: naming PEFT's type would import PEFT, and torch with it
    def __call__(self, **params: Any) -> Any: ...


@runtime_checkable
class Strategy(Protocol):
    """How to spend compute at inference? A generator: yields requests, is sent the responses, returns a `Result`."""

    # a generator and no coroutine: the engine, not the strategy, decides what is asked together and when
    def __call__(self, problem: Problem) -> RequestGenerator[Result]: ...


@runtime_checkable
class Dataset(Protocol):
    """What to learn from? A `datasets.Dataset` or `DatasetDict` in one of TRL's formats."""

    def __call__(self, **params: Any) -> Any: ...


@runtime_checkable
class Tool(Protocol):
    """What may the model do beside writing? A plain function; what it returns is shown to the model as text.

    Its name, its annotations and its docstring, with a line for each argument below `Args:`, are all that the model is
    told of it. What it raises is told to the model too, which may try something else.
    """

    def __call__(self, **arguments: Any) -> Any: ...
