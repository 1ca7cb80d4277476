"""Tools in training: what TRL's own loop is given, the limits that it lacks, and templates that can show a call.

A completion is then a whole trajectory: what the model wrote, what tools answered, and so on, as one list of messages
for rewards and one row of tokens for the loss, with the answers' tokens masked (TRL's `tool_mask`; PPO's values and
advantages step over them). Turns are limited by `args.max_tool_calling_iterations`, tokens by
`args.max_completion_length`, of all of a trajectory; TRL has no limit of time. No paper.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from posttrain_plugins.engine.tools import schema_of
from posttrain_plugins.errors import InputError
from posttrain_plugins.guard.guarded import guarded_in
from posttrain_plugins.guard.tools import GuardedTool
from posttrain_plugins.models.training_templates import renders_tool_calls, tool_twin
from posttrain_plugins.text import is_conversational
from posttrain_plugins.trainers import compat
from posttrain_plugins.trainers.tool_rules import GIVE, calls_tools
from posttrain_plugins.types import StageContext

__all__ = ["given_tools", "hold_limits", "show_calls", "with_schemas"]

FIRST_ROWS = 200  # that are looked at for calls


def given_tools(context: StageContext) -> dict[str, Any]:
    """Return the arguments `tools` and `environment_factory` for a stage's trainer; nothing where it has none.

    Raises:
        InputError: the prompts are no messages, or the environment is none.
    """
    tools, factory = context.inputs.get("tools") or [], context.inputs.get("environment_factory")
    if not tools and factory is None:
        return {}
    prompts = context.inputs["dataset"]
    if "prompt" in prompts.column_names and not is_conversational(prompts[0]["prompt"]):
        hint = "system_prompt: TEXT on the data set makes them so"
        raise InputError(f"stage '{context.stage}' has tools, which need prompts that are messages", hint=hint)
    given: dict[str, Any] = {"tools": list(tools)} if tools else {}
    if factory is not None:
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # who names an environment knows what it is
        for one in factory.values() if isinstance(factory, dict) else [factory]:
            _check_environment(context.stage, one)
        given["environment_factory"] = factory
    return given


def hold_limits(context: StageContext, trainer: Any, max_trajectory_s: float | None) -> None:
    """End the calls of a rollout when its time is over, and the run when a tool has failed too often."""
    guards = [one for one in guarded_in(context.inputs.get("tools") or []) if isinstance(one, GuardedTool)]
    compat.limit_tool_calls(trainer, max_trajectory_s, [guard.check for guard in guards])


def show_calls(context: StageContext, tokenizer_of: Callable[[], Any]) -> Any:
    """Return the tokenizer with a template that shows tool calls, and a parser of them; None if all is as it should be.

    Args:
        context: of a stage that calls tools, or whose rows hold calls.
        tokenizer_of: loads it.

    Raises:
        InputError: it cannot show calls, and has no twin that can.
    """
    samples = bool(context.inputs.get("tools")) or context.inputs.get("environment_factory") is not None
    rows = context.inputs["dataset"]
    if not samples and not any(map(calls_tools, rows.select(range(min(FIRST_ROWS, len(rows)))))):
        return None
    tokenizer = tokenizer_of()
    template = tokenizer.chat_template
    is_new = isinstance(template, str) and not renders_tool_calls(template)
    if is_new:
        twin = tool_twin(template)
        if twin is None:
            found = f"stage '{context.stage}': the chat template cannot render tool calls and their answers"
            raise InputError(found, hint=GIVE)
        tokenizer.chat_template = twin
    is_read = compat.reads_tool_calls(tokenizer)
    return tokenizer if is_new or is_read else None


def with_schemas(rows: Any, tools: Sequence[Callable[..., Any]]) -> Any:
    """Return rows with the tools' schemas in a column `tools`, as TRL's trainers render them; None stays None."""
    if rows is None or not tools:
        return rows
    schemas = json.dumps([schema_of(tool.__name__, tool) for tool in tools])
    return rows.add_column("tools", [schemas] * len(rows))


def _check_environment(stage: str, factory: Any) -> None:
    """Refuse what TRL would take for an environment until the first rollout."""
    hint = "a class with reset() and one method for each tool, each with annotations and a docstring"
    if not callable(factory):
        raise InputError(f"stage '{stage}': environment_factory is {factory!r:.80}, expected a class", hint=hint)
    if inspect.isclass(factory) and not callable(getattr(factory, "reset", None)):
        raise InputError(f"stage '{stage}': environment {factory.__name__} has no reset()", hint=hint)
