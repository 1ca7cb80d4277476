"""The tokens that a reward model reads: the same where it is trained, where it is asked, and where it is measured.

`trl.RewardTrainer` puts EOS behind plain text and the tokenizer's own special tokens around it, and renders messages
with the tools and template options of their row. A score is read at the last token, so a model that is asked without
the EOS that it was trained with is asked something else: a model that ordered 100 % of its own pairs ordered 66 %.
No paper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain_plugins.text.messages import is_conversational, to_text
from posttrain_plugins.types import Prompt

__all__ = ["TEMPLATE_COLUMNS", "reward_input_ids", "rows_of"]

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns of a row that change how its messages are rendered."""


def reward_input_ids(
    tokenizer: Any,
    prompt: Prompt,
    completion: Prompt,
    *,
    tools: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the tokens of a prompt and its completion, as `trl.RewardTrainer` prepares `chosen` and `rejected`.

    Args:
        tokenizer: with a chat template where the prompt or the completion is conversational.
        prompt: text or messages; empty where the completion is the whole conversation.
        completion: in the prompt's format; text behind messages is one of role `assistant`.
        tools: the row's tools, also as JSON.
        chat_template_kwargs: the row's options of the chat template.

    Returns:
        T token ids, the last of which is what the score is read at.
    """
    if is_conversational(completion) or (prompt and is_conversational(prompt)):
        said = completion if is_conversational(completion) else [{"role": "assistant", "content": completion}]
        options = {"tools": json.loads(tools) if isinstance(tools, str) else tools, **(chat_template_kwargs or {})}
        # in one call of the template: some templates write earlier turns in another way
        text = tokenizer.apply_chat_template([*prompt, *said], tokenize=False, **options)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    eos, said = tokenizer.eos_token or "", to_text(completion)
    # a completion that ends in EOS already keeps the one that it has
    return list(tokenizer(text=to_text(prompt) + said + ("" if said.endswith(eos) else eos))["input_ids"])


def rows_of(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return what each of `count` rows says of its rendering, out of the columns that a reward is given."""
    given: dict[str, Sequence[Any]] = {name: columns[name] for name in TEMPLATE_COLUMNS if columns.get(name)}
    return [{name: values[i] for name, values in given.items()} for i in range(count)]
