"""Chat templates that mark the assistant's turns, which `assistant_only_loss` needs: TRL's twins, and one of ChatML.

TRL renders with a marked twin in training where it knows the model's template by heart, and saves the model's own. So
do we for ChatML, which has no one text: a template is ChatML if it renders as ChatML does, whatever its text. No paper.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain_plugins.models.folder import base_of
from posttrain_plugins.plugins.source import package_file

__all__ = ["CHATML", "CHATML_TRAINING", "chat_template_in", "chatml_twin", "has_marks", "marked_twin"]

MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
LONGEST_CHATML = 4_000  # characters; what is longer is another family, and is not run

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
CHATML_TRAINING = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}"
    # the line break behind the turn is not the model's: it has stopped before
    "{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
SYSTEM = (
    "{%- if messages[0]['role'] != 'system' -%}{{- '<|im_start|>system\\n' + SYSTEM + '<|im_end|>\\n' -}}{%- endif -%}"
)
"""Goes before either where a template writes a system message by itself; `SYSTEM` is its text as a Jinja literal."""

USER, ANSWER = {"role": "user", "content": " a\n\n"}, {"role": "assistant", "content": "<think>\nb </think>\n c "}
SAID = {"role": "system", "content": "d"}
PROBES: tuple[list[dict[str, Any]], ...] = (
    [USER],
    [USER, ANSWER],
    [SAID, USER, ANSWER],
    [SAID, USER, ANSWER, USER, ANSWER],
    [USER, ANSWER, {"role": "tool", "content": "e"}, ANSWER, USER],
    [USER, ANSWER, SAID, USER],
)
PARTS = [{"type": "image"}, {"type": "text", "text": "a"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}


def has_marks(template: str) -> bool:
    """Tell whether a template says which tokens are the assistant's."""
    return MARK.search(template) is not None


def marked_twin(template: str) -> str | None:
    """Return a template with marks that renders the same: itself, TRL's twin, or ChatML's; None if nobody has one."""
    if has_marks(template):
        return template
    for file in sorted((package_file("trl").parent / "chat_templates").glob("*.jinja")):
        twin = file.with_name(f"{file.stem}_training.jinja")
        if twin.is_file() and file.read_text(encoding="utf-8") == template:
            return twin.read_text(encoding="utf-8")
    return chatml_twin(template)


def chatml_twin(template: str) -> str | None:
    """Return ChatML's marked twin for a template that renders as ChatML does, also with a system message of its own.

    Args:
        template: without marks.

    Returns:
        The twin; None for another format, and for one that renders tools or images.
    """
    if "<|im_start|>" not in template or len(template) > LONGEST_CHATML:
        return None
    first = _rendered(template, [USER])
    own = re.fullmatch(r"<\|im_start\|>system\n(.*)<\|im_end\|>\n", str(first).removesuffix(_chatml([USER])), re.DOTALL)
    before = SYSTEM.replace("SYSTEM", json.dumps(own[1])) if own else ""
    plain = before + CHATML
    parts = _rendered(template, [{"role": "user", "content": PARTS}])
    if parts is not None and str(PARTS) not in parts:  # it takes them apart, where ChatML knows texts alone
        return None
    for messages, options in _asked():
        found = _rendered(template, messages, **options)
        if found is None or found != _rendered(plain, messages, **{**options, "tools": None}):
            return None
    return before + CHATML_TRAINING


def chat_template_in(model: str | Path) -> str | None:
    """Return the chat template beside a model in a folder, or beside its base; None if there is none, or no folder."""
    folder = Path(model)
    if not (folder / "tokenizer_config.json").is_file():
        folder = Path(base_of(model).path)
    file = folder / "chat_template.jinja"  # where transformers writes it; earlier versions had it in the config
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    if isinstance(found, list):  # several by name
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _asked() -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    for messages in PROBES:
        yield messages, {"add_generation_prompt": False}
        yield messages, {"add_generation_prompt": True}
    yield [USER], {"add_generation_prompt": True, "tools": [TOOL]}  # ChatML has no place for them


def _chatml(messages: list[dict[str, Any]]) -> str:
    return "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages)


def _rendered(template: str, messages: list[dict[str, Any]], **options: Any) -> str | None:
    """Render as transformers does; None where the template cannot."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}  # as ChatML's models have them
    try:
        return environment.from_string(template).render(messages=messages, **tokens, **options)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError):
        return None
