"""What SFT learns of a conversation, as far as the recipe tells: every token, or the assistant's turns. No paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain_plugins.models.training_templates import marked_twin
from posttrain_plugins.types import Issue, StageFacts

__all__ = ["mask_concerns"]

CURE = "args: {assistant_only_loss: true}"
BY_HAND = (
    "give it as `prompt` and `completion`, or a chat_template with {% generation %} around what the assistant says"
)


def mask_concerns(given: Mapping[str, Any], facts: StageFacts) -> Iterator[Issue]:
    """Yield why the assistant's turns cannot be told, or warn that all turns are learned.

    Args:
        given: the recipe's own `args`.
        facts: of a stage with `trl.SFTConfig`.
    """
    is_chat = facts.columns is not None and "messages" in facts.columns and "prompt" not in facts.columns
    asks = given.get("assistant_only_loss")
    if not asks and (asks is not None or not is_chat):  # who writes false knows it
        return
    # a template in the user's own code is not read by a check, and is believed
    has_twin = facts.chat_template is None or marked_twin(facts.chat_template) is not None
    if not asks:
        found = "of `messages` every token is learned: system, questions and role headers with the answers"
        yield Issue(found, CURE if has_twin else BY_HAND, "args", is_warning=True)
    elif not has_twin:
        found = "assistant_only_loss needs a chat template with marked turns, found one without, and no twin with marks"
        yield Issue(found, BY_HAND, "args.assistant_only_loss")
