"""Twins of chat templates: with the assistant's turns marked, as `assistant_only_loss` needs, and with tools.

TRL renders with a marked twin in training where it knows the model's template by heart, and saves the model's own. So
do we for ChatML, which has no one text: a template is ChatML if it renders as ChatML does, whatever its text.

ChatML has no place for tools either. Its twin with tools renders the same where there are none, so a model may keep it:
schemas stand at the end of the system message, calls are JSON between `<tool_call>` tags, as Hermes and Qwen write them
(https://huggingface.co/NousResearch/Hermes-2-Pro-Llama-3-8B), and an answer is a turn of role `tool`. No paper.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain_plugins.models.folder import base_of
from posttrain_plugins.plugins.source import package_file

__all__ = [
    "CHATML",
    "CHATML_TOOLS",
    "CHATML_TRAINING",
    "chat_template_in",
    "chatml_twin",
    "has_marks",
    "marked_twin",
    "renders_tool_calls",
    "tool_twin",
]

MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
MARKS = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
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

OWN_SYSTEM = "{%- set own_system = SYSTEM -%}"
"""The same for the twin with tools, which puts their schemas behind it."""
CHATML_TOOLS_TRAINING = (
    "{%- set said = messages[0]['content'] if messages[0]['role'] == 'system' else own_system | default(none) -%}"
    "{%- if tools -%}"
    "{{- '<|im_start|>system\\n' + (said + '\\n\\n' if said else '') -}}"
    "{{- 'You may call these functions. Their signatures are between <tools></tools> tags:\\n<tools>' -}}"
    "{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}"
    "{{- '\\n</tools>\\nFor each call write a JSON object with its name and arguments "
    "between <tool_call></tool_call> tags:"
    '\\n<tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n</tool_call><|im_end|>\\n\' -}}'
    "{%- elif said is string and messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\n' + said + '<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if not (tools and loop.first and message['role'] == 'system') -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' -%}{%- generation -%}"
    "{{- message['content'] or '' -}}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set function = call['function'] or call -%}"
    "{%- set given = function['arguments'] -%}"
    "{{- '\\n' if message['content'] or not loop.first -}}"
    "{{- '<tool_call>\\n{\"name\": \"' + function['name'] + '\", \"arguments\": ' -}}"
    "{{- (given if given is string else given | tojson) + '}\\n</tool_call>' -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}"
    "{{- '\\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
CHATML_TOOLS = CHATML_TOOLS_TRAINING.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")

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
# what has to be seen again of a call and its answer; TRL asks for the same (`supports_tool_calling`)
SEEN = ("called_7c1e", "argument_7c1e", "value_7c1e", "answer_7c1e")
CALL = {"type": "function", "function": {"name": SEEN[0], "arguments": {SEEN[1]: SEEN[2]}}}
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": SEEN[0], "content": SEEN[3]},
]
CALLS_AS_TEXT = json.loads(
    json.dumps(CALLS).replace(json.dumps({SEEN[1]: SEEN[2]}), json.dumps(json.dumps({SEEN[1]: SEEN[2]})))
)


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
        The twin; None for another format, and for one that renders tools (but ChatML's own twin with tools) or images.
    """
    if template.endswith(CHATML_TOOLS):
        return template.removesuffix(CHATML_TOOLS) + CHATML_TOOLS_TRAINING
    system = _system_of_chatml(template)
    return None if system is None else _before(SYSTEM, system) + CHATML_TRAINING


def tool_twin(template: str) -> str | None:
    """Return the twin with tools of a template that renders as ChatML does; None for any other.

    Args:
        template: with or without marks; the twin has none.
    """
    system = _system_of_chatml(_unmarked(template))
    return None if system is None else _before(OWN_SYSTEM, system) + CHATML_TOOLS


def renders_tool_calls(template: str) -> bool:
    """Tell whether a template shows a tool's name, arguments and answer, none of them left out."""
    plain = _unmarked(template)
    text = _rendered(plain, CALLS) or _rendered(plain, CALLS_AS_TEXT)  # some take the arguments as their JSON alone
    return text is not None and all(part in text for part in SEEN)


def _unmarked(template: str) -> str:
    return MARKS.sub(r"{#\1 \2#}", template)  # comments: what a mark does to the spaces around it stays


def _before(line: str, system: str) -> str:
    return line.replace("SYSTEM", json.dumps(system)) if system else ""


def _system_of_chatml(template: str) -> str | None:
    """Return the system message that a template writes by itself, empty for none; None where it is not ChatML."""
    if "<|im_start|>" not in template or len(template) > LONGEST_CHATML:
        return None
    first = _rendered(template, [USER])
    own = re.fullmatch(r"<\|im_start\|>system\n(.*)<\|im_end\|>\n", str(first).removesuffix(_chatml([USER])), re.DOTALL)
    system = own[1] if own else ""
    plain = _before(SYSTEM, system) + CHATML
    parts = _rendered(template, [{"role": "user", "content": PARTS}])
    if parts is not None and str(PARTS) not in parts:  # it takes them apart, where ChatML knows texts alone
        return None
    for messages, options in _asked():
        found = _rendered(template, messages, **options)
        if found is None or found != _rendered(plain, messages, **{**options, "tools": None}):
            return None
    return system


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

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: ""}
    tokens = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}  # as ChatML's models have them
    try:
        return environment.from_string(template).render(messages=messages, **tokens, **options)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError):
        return None


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)
