"""`react`: reason and act in turns; the model calls tools, reads what they answer, and finishes with its answer.

Paper: Yao et al., 2022 (https://huggingface.co/papers/2210.03629), section 2: Thought, Action, Observation, and an
action `Finish[answer]`.

1. No worked examples unless `instructions` hold some; an action's arguments may be a JSON object.
2. An action that cannot be read is told to the model as an observation, and so is what a tool raises.
3. Out of steps, the model is asked once for its answer; the paper falls back on other methods.
4. `mode: native` has the model's own tool calls in place of the grammar, after chat templates and servers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from string import Template
from typing import Any, Literal, TypeAlias

from posttrain_plugins.text import to_messages
from posttrain_plugins.text.answers import choose, extract
from posttrain_plugins.types import (
    CallTool,
    Candidate,
    Completion,
    Generate,
    Messages,
    ObjectRef,
    Problem,
    Prompt,
    Result,
)

__all__ = ["ReAct"]

Steps: TypeAlias = Generator[Generate | list[CallTool], Any, Result]

_ACTION = re.compile(r"^(?:Thought:)?[ \t]*Action[ \t]*\d*[ \t]*:[ \t]*(\w+)[ \t]*\[", re.MULTILINE)
_STOP = "\nObservation:"

INSTRUCTIONS = """Solve this in turns of Thought, Action and Observation.
A Thought says what to do next and why. An Action stands on a line of its own and is one of these:
$tools
Finish[answer]: gives the final answer.
Arguments are a JSON object, as in `Action: name[{"a": 1}]`; a single one may be plain text, as in `Action: name[text]`.
Stop after each Action: the Observation is then given to you."""

MALFORMED = "error: no action. Write one line `Action: name[arguments]`, or `Action: Finish[answer]`."
OUT_OF_STEPS = "There are no steps left. Write one line `Action: Finish[answer]` with your final answer."


@dataclass
class ReAct:
    """An answer that the model works out with tools.

    Args:
        tools: plain functions with annotated arguments and a docstring; what the caller gives `solve` counts too.
        mode: `text` writes and reads the paper's grammar, which any model can learn; `native` needs a chat model, and
            a backend that hands over its tool calls.
        max_steps: completions until the model has to answer; the paper's 7.
        instructions: put below the question in `text` mode; `$tools` is filled in. Worked examples belong here.
        malformed: the observation after a completion without a readable action.
        out_of_steps: how the model is asked for its answer at last.
        max_observation_chars: longer observations are cut.

    Example:
        >>> steps = ReAct()(Problem("Who wrote Emma?"))
        >>> next(steps).params.stop
        ('\\nObservation:',)
        >>> try:
        ...     steps.send([Completion(" I know this.\\nAction: Finish[Jane Austen]")])
        ... except StopIteration as stop:
        ...     print(stop.value.answer)
        Jane Austen
    """

    tools: list[ObjectRef] = field(default_factory=list)
    mode: Literal["text", "native"] = "text"
    max_steps: int = 7
    instructions: str = INSTRUCTIONS
    malformed: str = MALFORMED
    out_of_steps: str = OUT_OF_STEPS
    max_observation_chars: int = 4000

    def __call__(self, problem: Problem) -> Steps:
        return (yield from self._by_calls(problem) if self.mode == "native" else self._by_grammar(problem))

    # The paper's grammar

    def _by_grammar(self, problem: Problem) -> Steps:
        schemas = {function["name"]: function for function in map(_function, problem.tools)}
        listed = "\n".join(map(_described, schemas.values()))
        question = _with_text(problem.prompt, Template(self.instructions).safe_substitute(tools=listed))
        said: list[tuple[str, str]] = []  # what the model wrote, and the observation
        for step in range(self.max_steps + 1):
            is_last = step == self.max_steps
            if is_last and said:
                said[-1] = (said[-1][0], f"{said[-1][1]}\n{self.out_of_steps}")
            drawn = _first((yield _next_step(problem, question, said, "answer" if is_last else "thought")))
            if drawn is None:
                continue  # a failed sample is a step lost
            text = _lead(question) + drawn.text
            name, inner, end = _action(text)
            if name.lower() == "finish" and inner.strip():
                return _finished(said, text[:end], inner)
            if is_last:
                return _finished(said, text, None)
            observation = self.malformed
            if name and name.lower() != "finish":
                call = CallTool(name, _arguments(inner, schemas.get(name, {})))
                [observation] = yield [call]
            said.append((text[:end] if name else text, observation[: self.max_observation_chars]))
        return choose([], None)

    # Native calls

    def _by_calls(self, problem: Problem) -> Steps:
        messages = to_messages(problem.prompt)
        for step in range(self.max_steps + 1):
            is_last = step == self.max_steps
            if is_last:
                messages = [*messages, {"role": "user", "content": self.out_of_steps}]
            tools = () if is_last else problem.tools
            purpose = "answer" if is_last else "thought"
            drawn = _first((yield Generate(messages, params=problem.params, tools=tools, purpose=purpose)))
            if drawn is None:
                continue
            if not drawn.tool_calls or is_last:
                name, inner, _ = _action(drawn.text)
                return _finished([], drawn.text, inner if name.lower() == "finish" else None)
            messages = yield from self._called(messages, drawn, step)
        return choose([], None)

    def _called(
        self, messages: Messages, drawn: Completion, step: int
    ) -> Generator[list[CallTool], list[str], Messages]:
        """The conversation with the model's calls and what the tools answered, all called in one wave."""
        calls = [_call(raw) for raw in drawn.tool_calls or ()]
        observations = yield calls
        names = [f"call_{step}_{i}" for i in range(len(calls))]
        asked = [
            {"id": name, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
            for name, call in zip(names, calls, strict=True)
        ]
        told = [
            {"role": "tool", "tool_call_id": name, "name": call.name, "content": text[: self.max_observation_chars]}
            for name, call, text in zip(names, calls, observations, strict=True)
        ]
        return [*messages, {"role": "assistant", "content": drawn.text, "tool_calls": asked}, *told]


def _first(completions: Sequence[Completion]) -> Completion | None:
    return next((completion for completion in completions if completion.finish_reason != "error"), None)


def _finished(said: Sequence[tuple[str, str]], text: str, finish: str | None) -> Result:
    """The whole transcript; what stood in `Finish[...]` goes where every reward finds an answer."""
    whole = _transcript(said) + text
    if finish is None:
        return choose([Candidate(whole, extract(text))], 0)
    answer = extract(finish) or finish.strip()
    return choose([Candidate(f"{whole}\n<answer>{answer}</answer>", answer)], 0)


def _transcript(said: Sequence[tuple[str, str]]) -> str:
    return "".join(f"{wrote}\nObservation: {observed}\n" for wrote, observed in said)


def _call(raw: Mapping[str, Any]) -> CallTool:
    arguments = raw.get("arguments")
    return CallTool(str(raw.get("name", "")), arguments if isinstance(arguments, Mapping) else {})


# --- The grammar: what is written, and what is read ------------------------------------------------------------------


def _next_step(problem: Problem, question: Prompt, said: Sequence[tuple[str, str]], purpose: str) -> Generate:
    """Steps are turns of a chat, the observations the user's; in plain text they follow the question."""
    if isinstance(question, str):
        prompt: Prompt = f"{question}\n{_transcript(said)}{_lead(question)}"
    else:
        turns = [
            {"role": role, "content": text}
            for wrote, observed in said
            for role, text in (("assistant", wrote), ("user", f"Observation: {observed}"))
        ]
        prompt = [*question, *turns]
    params = replace(problem.params, stop=(_STOP, *problem.params.stop))
    return Generate(prompt, params=params, purpose=purpose)


def _lead(question: Prompt) -> str:
    """What a completion goes on from: plain text is led into the grammar, a chat model writes it by itself."""
    return "Thought:" if isinstance(question, str) else ""


def _function(schema: Mapping[str, Any]) -> dict[str, Any]:
    function = schema.get("function", schema)
    return {"name": "", **function}


def _properties(function: Mapping[str, Any]) -> dict[str, Any]:
    return dict(function.get("parameters", {}).get("properties", {}))


def _described(function: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}: {spec.get('type', 'any')}" for name, spec in _properties(function).items())
    return f"{function['name']}[{arguments}]: {function.get('description', '')}"


def _action(text: str) -> tuple[str, str, int]:
    """Name, what stands in the brackets, and where the first action ends; an empty name where there is none."""
    match = _ACTION.search(text)
    if match is None:
        return "", "", len(text)
    start = match.end()
    end = _closing(text, start)
    return ("", "", len(text)) if end is None else (match[1], text[start:end], end + 1)


def _closing(text: str, start: int) -> int | None:
    """The bracket that ends an action: behind a JSON value, else the one that matches, else the last on the line."""
    with suppress(ValueError, RecursionError):
        _, end = json.JSONDecoder().raw_decode(text, start)
        end += len(text[end:]) - len(text[end:].lstrip())
        if text[end : end + 1] == "]":
            return end
    depth = 1
    for i in range(start, len(text)):
        depth += {"[": 1, "]": -1}.get(text[i], 0)
        if depth == 0:
            return i
    last = text[start:].partition("\n")[0].rfind("]")
    return start + last if last >= 0 else None


def _arguments(inner: str, function: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object as it is; anything else is the first argument, read as JSON unless that is a text."""
    value: Any = None
    with suppress(ValueError, RecursionError):
        value = json.loads(inner)
    if isinstance(value, dict):
        return value
    properties = _properties(function)
    if not properties or not inner.strip():
        return {}
    name, spec = next(iter(properties.items()))
    is_text = spec.get("type", "string") == "string"
    keeps_text = value is None or (is_text and not isinstance(value, str))
    return {name: inner.strip() if keeps_text else value}


def _with_text(prompt: Prompt, text: str) -> Prompt:
    """A paragraph at the end of the text or of the user's last message."""
    if isinstance(prompt, str):
        return f"{prompt}\n\n{text}"
    at = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=len(prompt) - 1)
    return [*prompt[:at], {**prompt[at], "content": f"{prompt[at]['content']}\n\n{text}"}, *prompt[at + 1 :]]
