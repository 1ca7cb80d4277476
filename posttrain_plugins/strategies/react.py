"""`react`: reason and act in turns; the model calls tools, reads what they answer, and finishes with its answer.

Paper: Yao et al., 2022 (https://huggingface.co/papers/2210.03629), section 2: Thought, Action, Observation, and an
action `Finish[answer]`.

1. No worked examples unless `instructions` hold some; an action's arguments may be a JSON object. What chat models
   write in place of the grammar is read where it has one plain meaning (`text/actions.py`).
2. An action or a call that cannot be read is told to the model as an observation, and so is what a tool refuses or
   raises.
3. Out of steps, the model is asked once for its answer; the paper falls back on other methods.
4. `mode: native` has the model's own tool calls in place of the grammar, after chat templates and servers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import Template
from typing import Any, Literal, TypeAlias

from posttrain_plugins.text import extend_question, to_messages
from posttrain_plugins.text.actions import read_action, read_arguments, read_object, tool_turn
from posttrain_plugins.text.answers import choose, extract
from posttrain_plugins.text.readers import without_thought
from posttrain_plugins.types import (
    CallTool,
    Candidate,
    Completion,
    Generate,
    Problem,
    Prompt,
    RequestGenerator,
    Result,
    ToolRef,
)

__all__ = ["ReAct"]

Turns: TypeAlias = list[tuple[str, str]]
"""What the model wrote, and the observation that it was shown."""

# A call that backend or server could not read stays in the text: it is no answer.
_UNREAD_CALL = re.compile(r"<tool_call>|<function=|\[TOOL_CALLS\]|<\|python_tag\|>|<\uff5ctool")
_STOP = "\nObservation:"  # the model would go on and imagine what the tool answers

INSTRUCTIONS = """Solve this in turns of Thought, Action and Observation.
A Thought says what to do next and why. An Action stands on a line of its own and is one of these:
$tools
Finish[answer]: gives the final answer.
Arguments are a JSON object, as in `Action: name[{"a": 1}]`; a single one may be plain text, as in `Action: name[text]`.
Stop after each Action: the Observation is then given to you."""

MALFORMED = "error: no action. Write one line `Action: name[arguments]`, or `Action: Finish[answer]`."
UNREAD_CALL = "error: the tool call cannot be read. Write it again, its arguments as a JSON object."
OUT_OF_STEPS = "There are no steps left. Write one line `Action: Finish[answer]` with your final answer."


@dataclass
class ReAct:
    """Let the model work its answer out with tools.

    Args:
        tools: plugins, or plain functions with annotated arguments and a docstring; what the caller gives `solve`
            counts too.
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

    tools: list[ToolRef] = field(default_factory=list)
    mode: Literal["text", "native"] = "text"
    max_steps: int = 7
    instructions: str = INSTRUCTIONS
    malformed: str = MALFORMED
    out_of_steps: str = OUT_OF_STEPS
    max_observation_chars: int = 4000

    @property
    def is_one_conversation(self) -> bool:
        """Whether each prompt begins with the one before and what was written there, so that it can be trained on."""
        return self.mode == "text"

    def __call__(self, problem: Problem) -> RequestGenerator[Result]:
        return (yield from self._by_calls(problem) if self.mode == "native" else self._by_grammar(problem))

    # The paper's grammar

    def _by_grammar(self, problem: Problem) -> RequestGenerator[Result]:
        schemas = _schemas(problem)
        lines = []
        for name, function in schemas.items():
            properties = function.get("parameters", {}).get("properties", {})
            arguments = ", ".join(f"{key}: {spec.get('type', 'any')}" for key, spec in properties.items())
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
            name, inside, end = read_action(text, request.prompt)
            is_finish = _plain(name) in ("finish", "finalanswer")
            if is_finish and inside.strip():
                return _finish(_transcript(turns) + text[:end], text, inside)
            if is_last:
                return _finish(_transcript(turns) + text, text, None)
            observation = self.malformed  # shown to the model, which may do better in its next step
            if name and not is_finish:
                call, observation = _read_call(name, inside, schemas, read_arguments)
                if not observation:
                    [observation] = yield [call]
            # What stands behind the action was written without its observation: it is dropped.
            turns.append((text[:end], observation[: self.max_observation_chars]))
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
        messages, schemas = list(to_messages(problem.prompt)), _schemas(problem)
        for step in range(self.max_steps + 1):
            is_last = step == self.max_steps
            if is_last and messages[-1]["role"] == "user":  # two user turns in a row are often refused
                messages = list(to_messages(extend_question(messages, self.out_of_steps)))
            elif is_last:
                messages.append({"role": "user", "content": self.out_of_steps})
            tools = () if is_last else problem.tools
            purpose = "answer" if is_last else "thought"
            drawn = _first((yield Generate([*messages], params=problem.params, tools=tools, purpose=purpose)))
            if drawn is None:
                continue
            if not drawn.tool_calls or is_last:
                name, inside, _ = read_action(drawn.text, messages)
                said = without_thought(drawn.text, messages) or ""
                if not is_last and (name in schemas or _UNREAD_CALL.search(said)):
                    messages += [{"role": "assistant", "content": drawn.text}, {"role": "user", "content": UNREAD_CALL}]
                    continue
                # an answer without a call is the end, as chat models are trained
                return _finish(drawn.text, drawn.text, inside if _plain(name) in ("finish", "finalanswer") else None)
            read = [
                _read_call(
                    str(raw.get("name") or ""), raw.get("arguments"), schemas, lambda given, _: read_object(given)
                )
                for raw in drawn.tool_calls
            ]
            wanted = [call for call, refusal in read if not refusal]
            told = iter((yield [*wanted]) if wanted else [])  # all calls of a step in one wave
            observations = [refusal or next(told) for _, refusal in read]
            calls = [(call.name, call.arguments) for call, _ in read]
            shown = [text[: self.max_observation_chars] for text in observations]
            messages += tool_turn(step, drawn.text, calls, shown)
        return choose([], None)


def _schemas(problem: Problem) -> dict[str, dict[str, Any]]:
    functions = [{"name": "", **schema.get("function", schema)} for schema in problem.tools]
    return {function["name"]: function for function in functions}


def _read_call(
    written: str,
    given: Any,
    schemas: Mapping[str, Mapping[str, Any]],
    read: Callable[[Any, Mapping[str, Any]], dict[str, Any] | None],
) -> tuple[CallTool, str]:
    """Return a call, and the observation that tells the model why it cannot be made; empty where it can."""
    # Models write a tool's name in other cases, and behind a namespace: `functions.web-search` for `web_search`.
    plain = {_plain(written), _plain(written.rpartition(".")[2])}
    alike = [known for known in schemas if plain & {_plain(known), _plain(known.rpartition(".")[2])}]
    name = alike[0] if written not in schemas and len(alike) == 1 else written
    if name not in schemas:
        return CallTool(name, {}), ""  # whoever holds the tools says which there are
    arguments = read(given, schemas[name])
    if arguments is not None:
        return CallTool(name, arguments), ""
    properties = schemas[name].get("parameters", {}).get("properties", {})
    wanted = json.dumps({key: spec.get("type", "any") for key, spec in properties.items()})
    # What was written is quoted: a native call is sent back without it, for servers refuse messages with broken JSON.
    return CallTool(name, {}), f"error: {name}: expected the arguments as a JSON object, {wanted}, found: {given}"


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _first(completions: Sequence[Completion]) -> Completion | None:
    return next((completion for completion in completions if completion.finish_reason != "error"), None)


def _transcript(turns: Turns) -> str:
    return "".join(f"{wrote}\nObservation: {observed}\n" for wrote, observed in turns)


def _finish(transcript: str, text: str, inside: str | None) -> Result:
    """Return the result of a transcript; what stood in `Finish[...]` goes where every reward finds an answer."""
    if inside is None:
        return choose([Candidate(transcript, extract(text))], 0)
    # `Finish(answer="4")` and an object with `answer` mean what stands in them; bold is none of it
    named = read_arguments(inside, {"parameters": {"properties": {"answer": {"type": "string"}}}}) or {}
    text = str(named.get("answer", inside))
    inside = re.sub(r"\A(?:\*\*)?(.*?)(?:\*\*)?\Z", r"\1", text.strip(), flags=re.DOTALL).strip()
    answer = extract(inside, "marked") or inside
    return choose([Candidate(f"{transcript}\n<answer>{answer}</answer>", answer)], 0)
