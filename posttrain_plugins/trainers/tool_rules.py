"""What stages with tools refuse and warn of, asked by the recipe's check, which has no torch.

No paper. TRL says the same in other words, when the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from posttrain_plugins.models.training_templates import renders_tool_calls, tool_twin
from posttrain_plugins.plugins.tools import environment_faults
from posttrain_plugins.types import Issue, StageFacts

__all__ = ["calls_tools", "draw_concerns", "learned_answers", "rollout_concerns", "schema_concerns", "template_concern"]

GIVE = "chat_template: qwen2_5 or another that shows tools, where the model first gets one"


def rollout_concerns(
    tools: Sequence[str], environment: str | None, rewards: Sequence[str], facts: StageFacts, **others: Any
) -> Iterator[Issue]:
    """Yield why a trainer that samples cannot call these tools.

    Args:
        tools: the stage's.
        environment: its `environment_factory`.
        rewards: its rewards.
        facts: of the stage.
        **others: `strategy`, `process_rewards` and `max_trajectory_s` as the stage has them.
    """
    limit, environment_field = others.get("max_trajectory_s"), "environment_factory"
    if not rewards and environment is None:
        yield Issue("it has no rewards", "rewards: [...]", "rewards")
    if not (tools or environment):
        if limit is not None:
            yield Issue("max_trajectory_s is of trajectories with tools", "tools: [...]", "max_trajectory_s")
        return
    field = "tools" if tools else environment_field
    if limit is not None and not limit > 0:
        yield Issue(f"max_trajectory_s is {limit}, expected more than 0", "leave it out", "max_trajectory_s")
    turns = getattr(facts.args, "max_tool_calling_iterations", None)
    if turns is not None and turns < 1:
        found = f"max_tool_calling_iterations is {turns}, with which no tool is called"
        yield Issue(found, "raise it, or leave it out", "args.max_tool_calling_iterations")
    if others.get("strategy"):
        yield Issue("a strategy makes the rollouts, and calls its own tools", "remove tools or strategy", field)
    if others.get("process_rewards"):
        found = "process_rewards judge the steps of one text, and a conversation with tools has several"
        yield Issue(found, "remove tools or process_rewards", field)
    if environment and getattr(facts.args, "advantage_estimator", None) == "remax":
        found = "remax answers each prompt a second time, which an environment has no place for"
        yield Issue(found, "another advantage_estimator, or no environment", "args.advantage_estimator")
    for message, hint in environment_faults(environment) if environment else ():
        yield Issue(message, hint, environment_field)
    yield from prompt_concern(facts)
    yield from template_concern(facts, field)


def draw_concerns(stage: Any, facts: StageFacts) -> Iterator[Issue]:
    """Yield why `sample` or `evaluate` cannot draw with its `tools`, or has limits and no tools."""
    limits = {name: getattr(stage, name) for name in ("max_tool_calling_iterations", "max_trajectory_s")}
    for name, limit in limits.items():
        if limit is not None and not limit > 0:
            yield Issue(f"{name} is {limit}, expected more than 0", "leave it out", name)
        elif limit is not None and not stage.tools:
            yield Issue(f"{name} is of conversations with tools", "tools: [...]", name)
    if stage.tools:
        yield from prompt_concern(facts)
        yield from template_concern(facts, "tools")


def prompt_concern(facts: StageFacts) -> Iterator[Issue]:
    """Yield that the prompts are plain text."""
    if facts.rows and isinstance(facts.rows[0].get("prompt"), str) and not facts.is_made_conversational:
        found = "tools need prompts that are messages, found plain text"
        yield Issue(found, "system_prompt: TEXT on the data set makes them so", "dataset")


def template_concern(facts: StageFacts, field: str) -> Iterator[Issue]:
    """Yield that the model's chat template cannot show a tool call, and has no twin that can."""
    template = facts.chat_template
    if template is None or renders_tool_calls(template) or tool_twin(template) is not None:
        return
    yield Issue("the chat template cannot render tool calls and their answers", GIVE, field)


def schema_concerns(facts: StageFacts) -> Iterator[Issue]:
    """Yield that rows bring schemas of their own, or are no conversations."""
    if facts.columns is not None and "tools" in facts.columns:
        yield Issue("the data set has a column `tools` already", "remove tools from the stage", "tools")
    texts = [facts.rows[0].get(name) for name in ("messages", "prompt")] if facts.rows else []
    if facts.rows and not any(isinstance(text, list) for text in texts) and not facts.is_made_conversational:
        yield Issue("tools are shown in conversations, found plain text", "give the rows `messages`", "dataset")


def calls_tools(row: Mapping[str, Any]) -> bool:
    """Tell whether a row's conversation has a tool's call in it, or the tools' schemas beside it."""
    if row.get("tools"):
        return True
    texts = [row.get(name) for name in ("messages", "prompt", "completion", "chosen", "rejected")]
    messages = [message for text in texts if isinstance(text, list) for message in text]
    return any(isinstance(message, Mapping) and message.get("tool_calls") for message in messages)


def learned_answers(given: Mapping[str, Any], facts: StageFacts) -> Iterator[Issue]:
    """Warn that what tools answered would be learned as if the model had written it.

    Args:
        given: the recipe's own `args` of `trl.SFTConfig`.
        facts: of the stage.
    """
    completions = [row.get("completion") for row in facts.rows]
    roles = {m.get("role") for c in completions if isinstance(c, list) for m in c if isinstance(m, Mapping)}
    if "tool" in roles and not given.get("assistant_only_loss"):
        found = "completions hold answers of tools, which are learned as if the model wrote them"
        yield Issue(found, "args: {assistant_only_loss: true}", "args", is_warning=True)
