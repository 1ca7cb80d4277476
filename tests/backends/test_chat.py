"""Messages, prefills and tools through the chat template; tool calls back from the text."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import CHATS, OPENED_TEMPLATE, byte_tokenizer, generate, params

from posttrain_plugins.backends.transformers.backend import TransformersBackend, render
from posttrain_plugins.backends.transformers.chat import parse_tool_calls
from posttrain_plugins.errors import InputError
from posttrain_plugins.tiny_world import tokenizer as make_tokenizer
from posttrain_plugins.types import Generate


def test_render_uses_the_template(tokenizer: Any) -> None:
    assert tokenizer.decode(render(tokenizer, CHATS[1])) == "<|user|>1<2<|assistant|>"
    begun = [*CHATS[1], {"role": "assistant", "content": "<think>1"}]
    assert tokenizer.decode(render(tokenizer, begun)) == "<|user|>1<2<|assistant|><think>1"
    assert tokenizer.decode(render(tokenizer, "1<2\n")) == "1<2\n"


def test_render_without_a_template_makes_a_document() -> None:
    base = make_tokenizer()
    base.chat_template = None
    system = [{"role": "system", "content": "be brief"}, *CHATS[1]]
    assert base.decode(render(base, CHATS[1])) == "<eos>1<2\n"
    assert base.decode(render(base, system)) == "<eos>be brief\n\n1<2\n"
    assert base.decode(render(base, [*CHATS[1], {"role": "assistant", "content": "1<"}])) == "<eos>1<2\n1<"
    assert base.decode(render(base, "")) == "<eos>"


TOOLS = ({"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}},)


PREFILLS = [
    "",
    "12",
    "Le",
    "<thi",
    "<think>",
    "<think>\nLet",
    "<think>\n\n",
    "\n",
    "\n\na",
    "x \n ",
    "<think>a</think>\nb",
]


@pytest.mark.parametrize("prefill", PREFILLS)
def test_a_prefill_is_gone_on_from_as_it_is(prefill: str) -> None:
    tokenizer = byte_tokenizer()
    begun = [*CHATS[0], {"role": "assistant", "content": prefill}]
    before, whole = render(tokenizer, CHATS[0]), render(tokenizer, begun)
    assert tokenizer.decode(before) == "<|im_start|>user\n3|7>2<|im_end|>\n<|im_start|>assistant\n"
    assert whole[: len(before)] == before, "what stands before it keeps its tokens"
    assert tokenizer.decode(whole[len(before) :]) == prefill
    assert whole[len(before) :] == tokenizer(prefill, add_special_tokens=False)["input_ids"]
    blocks = [*CHATS[0], {"role": "assistant", "content": [{"type": "text", "text": prefill}]}]
    assert render(tokenizer, blocks) == whole


def test_a_thought_that_the_template_opens_is_not_opened_twice() -> None:
    tokenizer = byte_tokenizer(OPENED_TEMPLATE)
    for prefill in ("<think>\nLet", "Let"):
        ids = render(tokenizer, [*CHATS[0], {"role": "assistant", "content": prefill}])
        assert tokenizer.decode(ids).endswith("assistant\n<think>\nLet")
    assert tokenizer.decode(render(tokenizer, CHATS[0])).endswith("assistant\n<think>\n")


def test_earlier_thoughts_are_the_templates_business() -> None:
    tokenizer = byte_tokenizer()
    earlier = [*CHATS[0], {"role": "assistant", "content": "<think>a</think>4"}, *CHATS[1]]
    begun = [*earlier, {"role": "assistant", "content": "<think>b"}]
    text = tokenizer.decode(render(tokenizer, begun))
    assert "<think>a" not in text
    assert "assistant\n4<|im_end|>" in text
    assert text.endswith("assistant\n<think>b")


@pytest.mark.parametrize("has_template", [True, False])
def test_greedy_goes_on_from_any_token_of_its_own(model: Any, has_template: bool) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template if has_template else None
    backend = TransformersBackend(model, tokenizer)
    greedy = params(temperature=0.0, logprobs=True)
    whole = generate(backend, [Generate(prompt, params=greedy) for prompt in CHATS], [[0]] * 4)
    batch, expected = [], []
    for prompt, [completion] in zip(CHATS, whole, strict=True):
        ids = completion.token_ids or []
        for k in range(len(ids)):
            begun = tokenizer.decode(ids[:k])
            if tokenizer(begun, add_special_tokens=False)["input_ids"] == ids[:k]:
                messages = [*prompt, {"role": "assistant", "content": begun}]
                batch.append(Generate(messages, params=replace(greedy, max_tokens=16 - k)))
                expected.append(ids[k:])
    assert len(batch) > 30
    found = generate(backend, batch, [[0]] * len(batch))
    assert [completion.token_ids for [completion] in found] == expected


def test_a_prompt_that_the_template_refuses_is_a_failed_sample(model: Any) -> None:
    backend = TransformersBackend(model, byte_tokenizer())
    odd = [{"role": "wizard", "content": "1<2"}]
    calls = [*CHATS[0], {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "arguments": {}}]}]
    batch = [Generate(odd, n=2, params=params()), Generate(calls, params=params()), Generate([], params=params())]
    refused, unanswered, empty = generate(backend, batch, [[0, 1], [0], [0]])
    assert [completion.finish_reason for completion in (*refused, *unanswered, *empty)] == ["error"] * 4
    assert "the chat template refuses the messages: no role wizard" in str(refused[1].error)
    assert "role tool" in str(unanswered[0].error)
    assert "no messages" in str(empty[0].error)


def test_tools_and_their_answers_go_through_the_template() -> None:
    tokenizer = byte_tokenizer()
    asked: list[dict[str, Any]] = [
        {"name": "add", "arguments": {"a": 1}},
        {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}},
    ]
    messages = [
        *CHATS[0],
        {"role": "assistant", "content": None, "tool_calls": asked},
        {"role": "tool", "name": "add", "content": "3"},
    ]
    text = tokenizer.decode(render(tokenizer, messages, TOOLS))
    assert text.startswith('<|im_start|>system\n{"type": "function", "function": {"name": "add"')
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>' in text
    assert '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>' in text
    assert text.endswith("<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    bare = tokenizer.decode(render(tokenizer, messages, [TOOLS[0]["function"]]))
    assert bare == text


def test_tools_that_nobody_would_see_are_refused(backend: TransformersBackend, tokenizer: Any) -> None:
    assert not backend.capabilities.tools
    for prompt in (CHATS[0], "1<2"):
        with pytest.raises(InputError, match="native tools need messages and a template"):
            render(tokenizer, prompt, TOOLS)
        [[failed]] = generate(backend, [Generate(prompt, params=params(), tools=TOOLS)], [[0]])
        assert failed.finish_reason == "error"


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>'


ADD = {"name": "add", "arguments": {"a": 1, "b": [2]}}


@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        ("no call", "no call", []),
        (CALL, "", [ADD]),
        (f"<think>x</think>I add.\n{CALL}\n{CALL}", "<think>x</think>I add.", [ADD, ADD]),
        ('<tool_call>{"name": "now"}</tool_call> later', "later", [{"name": "now", "arguments": {}}]),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
            "",
            [{"name": "f", "arguments": {"a": 1}}],
        ),
        ("<tool_call>{'name': 'add'}</tool_call>", "<tool_call>{'name': 'add'}</tool_call>", []),
        ('<tool_call>{"name": "add", "argum', '<tool_call>{"name": "add", "argum', []),
        ('<tool_call>["add"]</tool_call>', '<tool_call>["add"]</tool_call>', []),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        (f"<tool_call>{{</tool_call>{CALL}", "<tool_call>{</tool_call>", [ADD]),
    ],
)
def test_tool_calls_are_read_from_the_text(text: str, rest: str, calls: list[dict[str, Any]]) -> None:
    assert parse_tool_calls(byte_tokenizer(), [], [], text, TOOLS) == (rest, calls)


def test_a_tokenizer_may_say_itself_how_calls_are_written() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "tool_calls": {
                "open": "[[",
                "close": "]]",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"close": "<|im_end|>", "content": "text"},
        },
    }
    prompt = render(tokenizer, CHATS[0], TOOLS)
    written = tokenizer('I add.[[{"name": "add", "arguments": {"a": 1}}]]<|im_end|>')["input_ids"]
    text = tokenizer.decode(written, skip_special_tokens=True)
    found = parse_tool_calls(tokenizer, prompt, written, text, TOOLS)
    assert found == ("I add.", [{"name": "add", "arguments": {"a": 1}}])
    broken = tokenizer("I add.[[{]]<|im_end|>")["input_ids"]
    assert parse_tool_calls(tokenizer, prompt, broken, "I add.[[{]]", TOOLS) == ("I add.[[{]]", [])


class Writes(torch.nn.Module):
    """A model that writes one text, whatever the prompt."""

    def __init__(self, like: Any, prompt: list[int], ids: list[int]) -> None:
        super().__init__()
        self.config, self.generation_config = copy.deepcopy(like.config), copy.deepcopy(like.generation_config)
        self.config.max_position_embeddings, self.generation_config.eos_token_id = 1024, None
        self.device, self.dtype = like.device, like.dtype
        self.begin, self.ids = len(prompt), torch.tensor(ids)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, **options: Any) -> Any:
        from transformers import DynamicCache
        from transformers.modeling_outputs import CausalLMOutputWithPast

        at = (position_ids[:, -1:] + 1 - self.begin).clamp(max=len(self.ids) - 1)
        logits = torch.nn.functional.one_hot(self.ids[at], 512).float() * 100
        return CausalLMOutputWithPast(logits=logits, past_key_values=options["past_key_values"] or DynamicCache())


def test_a_completion_that_calls_tools_says_so(model: Any) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(f"I add.\n{CALL}<|im_end|>", add_special_tokens=False)["input_ids"]
    writer = Writes(model, render(tokenizer, CHATS[0], TOOLS), ids)
    backend = TransformersBackend(writer, tokenizer, identity="writer")
    assert backend.capabilities.tools
    room = params(max_tokens=len(ids))
    [[called]] = generate(backend, [Generate(CHATS[0], params=room, tools=TOOLS)], [[0]])
    assert (called.finish_reason, called.text, called.tool_calls) == ("tool_calls", "I add.", [ADD])
    writer.begin = len(render(tokenizer, CHATS[0]))
    [[untold]] = generate(backend, [Generate(CHATS[0], params=room)], [[0]])
    assert (untold.finish_reason, untold.text, untold.tool_calls) == ("stop", f"I add.\n{CALL}", None)
