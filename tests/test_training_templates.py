"""ChatML's marked twin renders what ChatML does and marks the assistant's turns; what SFT learns is told before."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import posttrain_plugins as pp
from posttrain_plugins.errors import RecipeErrors
from posttrain_plugins.models import training_templates
from posttrain_plugins.models.training_templates import (
    CHATML,
    CHATML_TRAINING,
    chatml_twin,
    has_marks,
    marked_twin,
    renders_tool_calls,
    tool_twin,
)
from posttrain_plugins.plugins.source import package_file

# one format in other words: blocks that are not trimmed, a system message of its own, other ways to name a key
VARIANTS = {
    "ours": CHATML,
    "on one line": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "by attribute": "{%- for m in messages %}\n"
    "    {{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "bos is im_start": "{% for m in messages %}{{ bos_token + m['role'] + '\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "system": "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nIt\\'s \"helpful\" {{ ü }}<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}
OTHERS = {
    "trims": CHATML.replace("message['content']", "message['content'] | trim"),
    "drops thoughts": CHATML.replace("message['content']", "message['content'].split('</think>')[-1]"),
    "renders tools": "{% if tools %}{{ '<|im_start|>system\nTools: ' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    + CHATML,
    "ends with EOS": CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}",
    "thinks": CHATML.replace(
        "'<|im_start|>assistant\\n' -}}{%- endif", "'<|im_start|>assistant\\n<think>' -}}{%- endif"
    ),
    "refuses roles": "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML,
    "no syntax": CHATML + "{% if %}",
    "renders images": CHATML.replace(
        "message['content']",
        "(message['content'] if message['content'] is string else message['content'] | map(attribute='type') | join)",
    ),
    "endless": "{% for a in range(99999999) %}{% endfor %}" + CHATML,
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tests.test_scored_as_trained import byte_level

    made: PreTrainedTokenizerFast = byte_level(bos=False)
    made.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    return made


def conversations() -> list[list[dict[str, str]]]:
    """Every order of up to four turns of four roles, with texts that a template might touch."""
    texts = itertools.cycle(["a", "\n b ", "<think>x</think>\n\ny", "{{ z }}", ""])
    found = []
    for count in range(1, 5):
        for roles in itertools.product(("system", "user", "assistant", "tool"), repeat=count):
            found.append([{"role": role, "content": next(texts)} for role in roles])
    return found


@pytest.mark.parametrize("name", list(VARIANTS))
def test_the_twin_renders_as_its_template_and_marks_the_assistants_turns(name: str, tokenizer: Any) -> None:
    template = VARIANTS[name]
    twin = chatml_twin(template)
    assert twin is not None
    assert has_marks(twin)
    for messages in conversations():
        for prompts in (False, True):
            options = {"tokenize": False, "add_generation_prompt": prompts}
            plain, marked = (
                tokenizer.apply_chat_template(messages, chat_template=one, **options) for one in (template, twin)
            )
            assert plain == marked, messages
        found = tokenizer.apply_chat_template(
            messages, chat_template=twin, return_dict=True, return_assistant_tokens_mask=True
        )
        ids = [i for i, on in zip(found["input_ids"], found["assistant_masks"], strict=True) if on]
        said = "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")
        assert tokenizer.decode(ids) == said


def test_the_twin_keeps_prefixes_and_trains_the_end_of_a_turn(tokenizer: Any) -> None:
    from trl.chat_template_utils import is_chat_template_prefix_preserving, is_chat_template_stop_token_trained

    tokenizer.chat_template = CHATML_TRAINING
    assert is_chat_template_prefix_preserving(tokenizer)
    assert is_chat_template_stop_token_trained(tokenizer)
    for messages in conversations():
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        for end in range(1, len(messages)):
            assert whole.startswith(tokenizer.apply_chat_template(messages[:end], tokenize=False))


@pytest.mark.parametrize("name", list(OTHERS))
def test_another_format_has_no_twin_of_ours(name: str) -> None:
    assert chatml_twin(OTHERS[name]) is None


def test_trls_own_families_have_trls_twins() -> None:
    folder = package_file("trl").parent / "chat_templates"
    twins = sorted(folder.glob("*_training.jinja"))
    assert len(twins) > 10
    for twin in twins:
        original = (folder / twin.name.replace("_training", "")).read_text(encoding="utf-8")
        assert chatml_twin(original) is None, twin.name  # none of them is plain ChatML
        assert has_marks(original) or marked_twin(original) == twin.read_text(encoding="utf-8"), twin.name
    assert marked_twin("{{ messages }}") is None


def test_a_template_is_read_beside_a_model_as_transformers_writes_it(tmp_path: Path) -> None:
    settings = tmp_path / "tokenizer_config.json"
    assert training_templates.chat_template_in(tmp_path) is None
    for written, found in (
        ({}, None),
        ({"chat_template": "a"}, "a"),
        ({"chat_template": [{"name": "rag", "template": "b"}, {"name": "default", "template": "c"}]}, "c"),
    ):
        settings.write_text(json.dumps(written))
        assert training_templates.chat_template_in(tmp_path) == found
    (tmp_path / "chat_template.jinja").write_text("d")
    assert training_templates.chat_template_in(tmp_path) == "d"


# --- in a recipe -----------------------------------------------------------------------------------------------------

TALK = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}] * 2
WARNING = "of `messages` every token is learned: system, questions and role headers with the answers"


@pytest.fixture
def check(write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "talk.jsonl").write_text((json.dumps({"messages": TALK}) + "\n") * 4)
    (tmp_path / "chatml.jinja").write_text(VARIANTS["system"])
    (tmp_path / "own.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")

    def checked(stage: str) -> Any:
        head = "model: {model}\ndatasets: {demos: {data}/demos.jsonl, talk: ./talk.jsonl}\nstages:\n"
        return write_recipe(head + f"  s: {{use: sft, model: base, {stage}}}\n", model=tiny_model, data=tiny_data)

    return checked


def warnings(file: Path) -> list[str]:
    return [str(issue) for stage in pp.validate(file).stages for issue in stage.warnings]


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("dataset: talk", [f"{WARNING} (hint: args: {{assistant_only_loss: true}})"]),
        ("dataset: talk, chat_template: qwen3", [f"{WARNING} (hint: args: {{assistant_only_loss: true}})"]),
        ("dataset: talk, chat_template: ./own.jinja", [f"{WARNING} (hint: give it as `prompt` and `completion`, or"]),
        ("dataset: talk, args: {assistant_only_loss: true}", []),
        ("dataset: talk, args: {assistant_only_loss: false}", []),
        ("dataset: demos", []),
    ],
)
def test_what_sft_learns_of_messages_is_told(check: Callable[..., Path], stage: str, told: list[str]) -> None:
    found = warnings(check(stage))
    assert len(found) == len(told)
    assert all(one.startswith(start) for one, start in zip(found, told, strict=True))


def test_the_commands_say_it_in_one_line(check: Callable[..., Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from posttrain_plugins.cli.commands import app

    file = check("dataset: talk")
    line = f"warning: s: {WARNING} (hint: args: {{assistant_only_loss: true}})"
    for command in (["validate", str(file)], ["plan", str(file), "--runs-dir", str(tmp_path)]):
        done = CliRunner().invoke(app, command)
        assert line in done.output.splitlines(), done.output
    done = CliRunner().invoke(app, ["validate", str(file), "--json"])
    (told,) = json.loads(done.output)["warnings"]
    assert (told["stage"], told["message"]) == ("s", WARNING)


def test_a_template_without_marks_is_refused_by_validate(check: Callable[..., Path]) -> None:
    asks = "dataset: talk, args: {assistant_only_loss: true}"
    for template in ("./chatml.jinja", "chatml", "chatml_training", "qwen2_5", "llama3"):
        assert warnings(check(f"{asks}, chat_template: {template}")) == []
    with pytest.raises(RecipeErrors, match="found one without, and no twin") as told:
        pp.validate(check(f"{asks}, chat_template: ./own.jinja"))
    (mistake,) = told.value.mistakes
    assert "{% generation %}" in str(mistake.hint)
    assert mistake.line == 4


@pytest.mark.slow
def test_sft_on_chatml_learns_the_assistants_turns_and_keeps_the_template(
    check: Callable[..., Path], tmp_path: Path, tiny_data: Path
) -> None:
    args = "{assistant_only_loss: true, max_steps: 1, gradient_checkpointing: false}"
    file = check(f"dataset: talk, chat_template: ./chatml.jinja, args: {args}")
    shown = pp.api.masks(pp.plan(file, runs_dir=tmp_path / "runs"))["s"]
    learned = "".join(text for text, on in shown["rows"][0]["tokens"] if on)
    assert "error" not in shown
    assert learned.count("2") == 2
    assert "1" not in learned
    assert "system" not in learned
    made = pp.run(file, runs_dir=tmp_path / "runs")["s"]
    assert (made.model_path / "chat_template.jinja").read_text(encoding="utf-8") == VARIANTS["system"]  # type: ignore[operator]


# --- the twin with tools ---------------------------------------------------------------------------------------------

TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Add.", "parameters": {"type": "object", "properties": {}}},
    }
]


def asked(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


TOOL_TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "1+2 and 3+4?"},
    {"role": "assistant", "content": "I add.", "tool_calls": [asked("add", a=1, b=2), asked("add", a=3, b=4)]},
    {"role": "tool", "name": "add", "content": "3"},
    {"role": "tool", "name": "add", "content": "7"},
    {"role": "assistant", "content": "", "tool_calls": [asked("add", a="<é>")]},
    {"role": "tool", "name": "add", "content": "error"},
    {"role": "assistant", "content": "3 and 7"},
]
LEARNED = [
    'I add.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>\n'
    '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call><|im_end|>',
    '<tool_call>\n{"name": "add", "arguments": {"a": "<é>"}}\n</tool_call><|im_end|>',
    "3 and 7<|im_end|>",
]


@pytest.mark.parametrize("name", list(VARIANTS))
def test_the_twin_with_tools_renders_as_its_template_where_there_are_none(name: str, tokenizer: Any) -> None:
    template = VARIANTS[name]
    twin = tool_twin(template)
    assert twin is not None
    assert renders_tool_calls(twin)
    assert not renders_tool_calls(template)
    for messages in conversations():
        for prompts in (False, True):
            tokenizer.chat_template = template
            plain = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompts)
            tokenizer.chat_template = twin
            assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompts) == plain
    tokenizer.chat_template = twin
    first = tokenizer.apply_chat_template(TOOL_TALK, tools=TOOLS, tokenize=False)
    assert first.count("<|im_start|>system\n") == 1
    assert '"name": "add", "description": "Add."' in first
    if name == "system":
        assert first.startswith('<|im_start|>system\nIt\'s "helpful" {{ ü }}\n\nYou may call')
    said = [{"role": "system", "content": "Be brief."}, *TOOL_TALK]
    assert tokenizer.apply_chat_template(said, tools=TOOLS, tokenize=False).startswith(
        "<|im_start|>system\nBe brief.\n\nYou may call"
    )


@pytest.mark.parametrize("name", list(OTHERS))
def test_what_is_no_chatml_has_no_twin_with_tools(name: str) -> None:
    assert tool_twin(OTHERS[name]) is None


@pytest.mark.parametrize("name", list(VARIANTS))
def test_of_a_conversation_with_tools_exactly_what_the_model_wrote_is_learned(name: str, tokenizer: Any) -> None:
    twin = tool_twin(VARIANTS[name])
    assert twin is not None
    marked = chatml_twin(twin)
    assert marked is not None
    assert marked_twin(twin) == marked
    tokenizer.chat_template = twin
    plain = tokenizer.apply_chat_template(TOOL_TALK, tools=TOOLS, return_dict=True)["input_ids"]
    tokenizer.chat_template = marked
    made = tokenizer.apply_chat_template(TOOL_TALK, tools=TOOLS, return_dict=True, return_assistant_tokens_mask=True)
    assert made["input_ids"] == plain  # the text is tokenised as it is without marks
    runs = [
        list(run)
        for on, run in itertools.groupby(zip(plain, made["assistant_masks"], strict=True), lambda p: p[1])
        if on
    ]
    assert [tokenizer.decode([token for token, _ in run]) for run in runs] == LEARNED
    # every bit of it: what is between is the prompt, the answers and the headers
    outside = tokenizer.decode([t for t, on in zip(plain, made["assistant_masks"], strict=True) if not on])
    assert outside.endswith(
        "<|im_start|>user\n1+2 and 3+4?<|im_end|>\n<|im_start|>assistant\n\n<|im_start|>tool\n3<|im_end|>\n"
        "<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n\n<|im_start|>tool\nerror<|im_end|>\n"
        "<|im_start|>assistant\n\n"
    )


def test_a_prefix_of_a_conversation_is_rendered_the_same(tokenizer: Any) -> None:
    """TRL takes the tokens of an answer out of what is rendered with and without it."""
    from trl.chat_template_utils import is_chat_template_prefix_preserving, supports_tool_calling

    for template in VARIANTS.values():
        tokenizer.chat_template = tool_twin(template)
        assert supports_tool_calling(tokenizer)
        assert is_chat_template_prefix_preserving(tokenizer)


def test_it_is_told_which_templates_show_calls_as_trl_tells_it() -> None:
    from trl.chat_template_utils import supports_tool_calling

    class Known:
        def __init__(self, template: str) -> None:
            self.chat_template = template

        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            from transformers.utils.chat_template_utils import render_jinja_template

            given = {"chat_template": self.chat_template, "bos_token": "<s>", "eos_token": "</s>"}
            return str(render_jinja_template([messages], **given)[0][0])

    files = sorted((package_file("trl").parent / "chat_templates").glob("*.jinja"))
    assert len(files) > 50
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert renders_tool_calls(text) == supports_tool_calling(Known(text)), file.name
