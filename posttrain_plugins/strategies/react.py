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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from string import Template
from typing import Any, Literal, TypeAlias

from posttrain_plugins.text import extend_question, to_messages
from posttrain_plugins.text.answers import choose, extract
from posttrain_plugins.types import (
    CallTool,
    Candidate,
    Completion,
    Generate,
    ObjectRef,
    Problem,
    Prompt,
    RequestGenerator,
    Result,
)

__all__ = ["ReAct"]

Turns: TypeAlias = list[tuple[str, str]]
"""What the model wrote, and the observation that it was shown."""

# "Thought:" may stand before it on its line: a chat model that writes one action and no thought often begins so.
_ACTION = re.compile(r"^(?:Thought:)?[ \t]*Action[ \t]*\d*[ \t]*:[ \t]*(\w+)[ \t]*\[", re.MULTILINE)
_STOP = "\nObservation:"  # the model would go on and imagine what the tool answers

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
    """Let the model work its answer out with tools.

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

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        return (yield from self._by_calls(problem) if self.mode == "native" else self._by_grammar(problem))

    # The paper's grammar

    def _by_grammar(self, problem: Problem) -> RequestGenerator[Result]:
        functions = [{"name": "", **schema.get("function", schema)} for schema in problem.tools]
        schemas = {function["name"]: function for function in functions}
        lines = []
        for name, function in schemas.items():
            arguments = ", ".join(f"{key}: {spec.get('type', 'any')}" for key, spec in _properties(function).items())
            lines.append(f"{name}[{arguments}]: {function.get('description', '')}")
        instructions = Template(self.instructions).safe_substitute(tools="\n".join(lines))
        question = extend_question(problem.prompt, instructions)
        # Plain text is led into the grammar by the paper's "Thought:"; a chat model writes it by itself, and some chat
        # templates would not take a prefill.
        lead = "Thought:" if isinstance(question, str) else ""
        turns: Turns = []
        for step in range(self.max_steps + 1):  # the paper's 7 steps (section 3.2), and one more to be asked in
            is_last = step == self.max_steps
            if is_last and turns:
                # In the last observation, not in a message of its own: two user turns in a row are often refused.
                turns[-1] = (turns[-1][0], f"{turns[-1][1]}\n{self.out_of_steps}")
            request = self._next_step(problem, question, turns, lead, "answer" if is_last else "thought")
            drawn = _first((yield request))
            if drawn is None:
                continue  # a failed sample is a step lost
            text = lead + drawn.text
            name, inside, end = _read_action(text)
            if name.lower() == "finish" and inside.strip():
                return _finish(_transcript(turns) + text[:end], text, inside)
            if is_last:
                return _finish(_transcript(turns) + text, text, None)
            observation = self.malformed  # shown to the model, which may do better in its next step
            if name and name.lower() != "finish":
                [observation] = yield [CallTool(name, _read_arguments(inside, schemas.get(name, {})))]
            # What stands behind the action was written without its observation: it is dropped.
            turns.append((text[:end] if name else text, observation[: self.max_observation_chars]))
        return choose([], None)

    def _next_step(self, problem: Problem, question: Prompt, turns: Turns, lead: str, purpose: str) -> Generate:
        """Make the request for a step: in a chat, observations are the user's; plain text is one transcript."""
        prompt: Prompt
        if isinstance(question, str):
            prompt = f"{question}\n{_transcript(turns)}{lead}"
        else:
            roles = ("assistant", "user")
            texts = [text for wrote, observed in turns for text in (wrote, f"Observation: {observed}")]
            prompt = [*question, *({"role": roles[i % 2], "content": text} for i, text in enumerate(texts))]
        params = replace(problem.params, stop=(_STOP, *problem.params.stop))
        return Generate(prompt, params=params, purpose=purpose)

    # Native calls

    def _by_calls(self, problem: Problem) -> RequestGenerator[Result]:
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
            if not drawn.tool_calls or is_last:  # an answer without a call is the end, as chat models are trained
                name, inside, _ = _read_action(drawn.text)
                return _finish(drawn.text, drawn.text, inside if name.lower() == "finish" else None)
            given = [(str(raw.get("name", "")), raw.get("arguments")) for raw in drawn.tool_calls]
            calls = [CallTool(name, args if isinstance(args, Mapping) else {}) for name, args in given]
            observations = yield [*calls]  # all calls of a step in one wave
            # Made up from the step, not drawn: a replay has to send the same messages. Some servers refuse calls
            # without ids, or tool messages that name none.
            ids = [f"call_{step}_{i}" for i in range(len(calls))]
            asked = [
                {"id": key, "type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for key, call in zip(ids, calls, strict=True)
            ]
            answers = [
                {"role": "tool", "tool_call_id": key, "name": call.name, "content": text[: self.max_observation_chars]}
                for key, call, text in zip(ids, calls, observations, strict=True)
            ]
            messages = [*messages, {"role": "assistant", "content": drawn.text, "tool_calls": asked}, *answers]
        return choose([], None)


def _first(completions: Sequence[Completion]) -> Completion | None:
    return next((completion for completion in completions if completion.finish_reason != "error"), None)


def _transcript(turns: Turns) -> str:
    return "".join(f"{wrote}\nObservation: {observed}\n" for wrote, observed in turns)


def _finish(transcript: str, text: str, inside: str | None) -> Result:
    """Return the result of a transcript; what stood in `Finish[...]` goes where every reward finds an answer."""
    if inside is None:
        return choose([Candidate(transcript, extract(text))], 0)
    answer = extract(inside) or inside.strip()
    return choose([Candidate(f"{transcript}\n<answer>{answer}</answer>", answer)], 0)


# --- The grammar -----------------------------------------------------------------------------------------------------


def _properties(function: Mapping[str, Any]) -> dict[str, Any]:
    return dict(function.get("parameters", {}).get("properties", {}))


def _read_action(text: str) -> tuple[str, str, int]:
    """Return name, what stands in the brackets, and where the first action ends; an empty name where there is none."""
    nothing = ("", "", len(text))
    match = _ACTION.search(text)
    if match is None:
        return nothing
    # The bracket that ends it stands behind a JSON value, whose texts may hold brackets of their own; without JSON it
    # is the one that matches, else the last on the line ("[0, 1)" has none that matches).
    start = match.end()
    with suppress(ValueError, RecursionError):  # a text of 3,000 brackets is too deep for the decoder
        _, end = json.JSONDecoder().raw_decode(text, start)
        end += len(text[end:]) - len(text[end:].lstrip())
        if text[end : end + 1] == "]":
            return match[1], text[start:end], end + 1
    depth = 1
    for end in range(start, len(text)):
        depth += {"[": 1, "]": -1}.get(text[end], 0)
        if depth == 0:
            return match[1], text[start:end], end + 1
    last = text[start:].partition("\n")[0].rfind("]")
    return (match[1], text[start : start + last], start + last + 1) if last >= 0 else nothing


def _read_arguments(inside: str, function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object as it is; anything else is the first argument, read as JSON unless that is a text."""
    value: Any = None
    with suppress(ValueError, RecursionError):
        value = json.loads(inside)
    if isinstance(value, dict):
        return value
    properties = _properties(function)
    if not properties or not inside.strip():
        return {}
    name, spec = next(iter(properties.items()))
    # `look_up[1984]` is a word to look up, not a number, where the schema asks for a text
    is_text = spec.get("type", "string") == "string"
    keeps_text = value is None or (is_text and not isinstance(value, str))
    return {name: inside.strip() if keeps_text else value}
