"""Tools in recipes: every mistake is told before anything is loaded, and completions with tools are conversations."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.engine.solve import sample, solve
from posttrain_plugins.engine.tool_loop import ToolLoop
from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.recipe.plan import keys
from posttrain_plugins.recipe.run.inputs import Resolver
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.greedy import Greedy
from posttrain_plugins.strategies.react import ReAct
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.text import Conversation, in_format_of, to_text
from posttrain_plugins.tools.calculator import calculator
from posttrain_plugins.types import Budget, Completion, Generate, Problem, ResolvedReward, SamplingParams, Usage

TOOLS = '''
def price(item: str) -> str:
    """Look up a price.

    Args:
        item: one word.
    """
    return {"tea": "3"}[item]


def calculator(item: str) -> str:
    """Has the name of a built-in one.

    Args:
        item: one word.
    """


def silent(item: str) -> str:
    return item


def bare(item):
    """Look up a price.

    Args:
        item: one word.
    """


async def slow(item: str) -> str:
    """Look up a price.

    Args:
        item: one word.
    """


class Game:
    """A game."""

    def reset(self, **row): ...

    def move(self, to: str) -> str:
        """Move.

        Args:
            to: where.
        """


class Broken:
    def move(self, to):
        """Move."""
'''

HEAD = """
    name: tools
    model: {model_name_or_path: {model}, chat_template: TEMPLATE}
    datasets:
      problems: {path: "{data}/problems.jsonl"}
      plain: {path: ./plain.jsonl}
      traces: {path: ./traces.jsonl}
    stages:
      it: STAGE
"""
GRPO = "{use: grpo, model: base, dataset: problems, rewards: [exact_answer], MORE}"
PPO = "{use: ppo, model: base, dataset: problems, rewards: [exact_answer], MORE}"
RLOO = "{use: rloo, model: base, dataset: problems, rewards: [exact_answer], MORE}"
SFT = "{use: sft, model: base, dataset: traces, MORE}"
SAMPLE = "{use: sample, model: base, dataset: problems, rewards: [exact_answer], MORE}"
EVALUATE = "{use: evaluate, models: [base], dataset: problems, rewards: [exact_answer], MORE}"

TALK = [
    {"role": "user", "content": "tea?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "price", "arguments": {"item": "tea"}}}],
    },
    {"role": "tool", "name": "price", "content": "3"},
    {"role": "assistant", "content": "3 euros"},
]


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Callable[..., Path]:
    (tmp_path / "my_tools.py").write_text(TOOLS)
    (tmp_path / "plain.jsonl").write_text(json.dumps({"prompt": "1+1=?", "solution": "2"}) + "\n")
    rows = [{"prompt": TALK[:1], "completion": TALK[1:]}]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def written(stage: str, more: str, template: str = "chatml") -> Path:
        text = HEAD.replace("STAGE", stage.replace("MORE", more)).replace("TEMPLATE", template)
        return write_recipe(text, model=tiny_model, data=tiny_data)

    return written


FINE = {
    "by name": (GRPO, "tools: [calculator], args: {max_tool_calling_iterations: 3}"),
    "by file": (GRPO, "tools: ['./my_tools.py:price', {use: python, time_limit_s: 2.0}], max_trajectory_s: 60"),
    "guarded": (PPO, "tools: [{use: calculator, timeout_s: 2, max_failure_share: 0.1, max_chars: 200}]"),
    "environment": (GRPO, "environment_factory: './my_tools.py:Game'"),
    "sft": (SFT, "tools: ['./my_tools.py:price']"),
    "sample": (SAMPLE, "tools: [calculator], max_tool_calling_iterations: 2"),
    "evaluate": (EVALUATE, "tools: [calculator], strategies: [greedy, {use: react, tools: [calculator]}]"),
    "lenient": (EVALUATE, "strategies: [{use: react, tools: ['./my_tools.py:silent']}]"),
}


@pytest.mark.parametrize("name", FINE)
def test_what_can_be_called_is_fine(recipe: Callable[..., Path], name: str) -> None:
    stage = pp.validate(recipe(*FINE[name])).stage("it")
    assert [str(issue) for issue in stage.warnings] == []


MISTAKES = {
    "unknown": (GRPO, "tools: [calclator]", "unknown tool 'calclator'", "did you mean 'calculator'?"),
    "no such function": (GRPO, "tools: ['./my_tools.py:prise']", "has no 'prise'", "did you mean 'price'?"),
    "another kind": (GRPO, "tools: [length]", "unknown tool 'length'", None),
    "no docstring": (GRPO, "tools: ['./my_tools.py:silent']", "tool 'silent' has no docstring", None),
    "no type": (PPO, "tools: ['./my_tools.py:bare']", "arguments without a type: item", "item: str"),
    "async": (EVALUATE, "tools: ['./my_tools.py:slow']", "tool 'slow' is async", None),
    "no list": (SAMPLE, "tools: calculator", "expected a list", "tools: [calculator]"),
    "a parameter": (GRPO, "tools: [{use: python, memory: 3}]", "unknown key 'memory'", None),
    "a bad parameter": (GRPO, "tools: [{use: python, time_limit_s: 0}]", "python cannot use time_limit_s: 0", None),
    "a bad limit": (GRPO, "tools: [{use: calculator, timeout_s: 0}]", "the guard cannot use timeout_s: 0", None),
    "a bad length": (GRPO, "tools: [{use: calculator, max_chars: 0}]", "max_chars is 0", None),
    "one name twice": (
        GRPO,
        "tools: [calculator, './my_tools.py:calculator']",
        "two different tools are named 'calculator'",
        None,
    ),
    "rloo": (
        RLOO,
        "tools: [calculator]",
        "cannot call tools: what rloo runs has no loop",
        "grpo, ppo, sample, evaluate",
    ),
    "rloo's environment": (RLOO, "environment_factory: './my_tools.py:Game'", "cannot call tools", None),
    "no turn": (
        GRPO,
        "tools: [calculator], args: {max_tool_calling_iterations: 0}",
        "max_tool_calling_iterations is 0",
        None,
    ),
    "no time": (PPO, "tools: [calculator], max_trajectory_s: 0", "max_trajectory_s is 0", None),
    "time for nothing": (GRPO, "max_trajectory_s: 9", "is of trajectories with tools", "tools: [...]"),
    "turns for nothing": (EVALUATE, "max_tool_calling_iterations: 2", "is of conversations with tools", None),
    "a strategy": (GRPO, "tools: [calculator], strategy: greedy", "a strategy makes the rollouts", None),
    "steps": (
        GRPO,
        "tools: [calculator], process_rewards: [exact_answer]",
        "a conversation with tools has several",
        None,
    ),
    "remax": (
        PPO,
        "environment_factory: './my_tools.py:Game', args: {advantage_estimator: remax}",
        "an environment has no place for",
        None,
    ),
    "no reset": (GRPO, "environment_factory: './my_tools.py:Broken'", "environment 'Broken' has no reset()", None),
    "its tools": (GRPO, "environment_factory: './my_tools.py:Broken'", "arguments without a type: to", None),
    "no reward": (GRPO.replace("[exact_answer]", "[]"), "tools: [calculator]", "it has no rewards", "rewards: [...]"),
    "plain text": (
        GRPO.replace("problems", "plain"),
        "tools: [calculator]",
        "tools need prompts that are messages, found plain text",
        "system_prompt: TEXT on the data set makes them so",
    ),
    "steps of sample": (SAMPLE, "tools: [calculator], keep: steps", "need a model that draws whole completions", None),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_before_anything_is_loaded(recipe: Callable[..., Path], name: str) -> None:
    stage, more, message, hint = MISTAKES[name]
    with pytest.raises(RecipeErrors) as caught:
        pp.validate(recipe(stage, more))
    found = [one for one in caught.value.mistakes if message in one.message]
    assert len(found) == 1, [str(one) for one in caught.value.mistakes]
    assert hint is None or hint in str(found[0].hint)
    assert found[0].line > 1


@pytest.mark.parametrize("stage", [GRPO, PPO, SAMPLE, EVALUATE, SFT])
def test_a_template_that_cannot_render_calls_is_told(recipe: Callable[..., Path], stage: str) -> None:
    with pytest.raises(RecipeErrors, match="the chat template cannot render tool calls and their answers"):
        pp.validate(recipe(stage, "tools: [calculator]", "tiny_world"))
    for template in ("chatml", "qwen3"):
        pp.validate(recipe(stage, "tools: [calculator]", template))


def test_answers_of_tools_that_would_be_learned_are_told(recipe: Callable[..., Path]) -> None:
    (warning,) = pp.validate(recipe(SFT, "args: {max_steps: 1}")).stage("it").warnings
    assert "which are learned as if the model wrote them" in warning.message
    assert pp.validate(recipe(SFT, "args: {assistant_only_loss: true}")).stage("it").warnings == ()
    with pytest.raises(RecipeErrors, match="cannot render tool calls"):
        pp.validate(recipe(SFT, "args: {assistant_only_loss: true}", "tiny_world"))


def test_a_stage_is_given_the_authors_own_function_unless_it_is_guarded(recipe: Callable[..., Path]) -> None:
    checked = pp.validate(recipe(GRPO, "tools: [calculator, './my_tools.py:price', {use: python, time_limit_s: 2.0}]"))
    own, price, python = Resolver(checked).resolve(checked.stage("it").inputs["tools"], {})
    assert own is calculator
    assert price("tea") == "3"
    assert not hasattr(price, "guard")
    assert (python.__name__, python.guard.settings.max_failure_share) == ("python", 1.0)
    checked = pp.validate(recipe(GRPO, "tools: [{use: calculator, max_chars: 2}]"))
    (cut,) = Resolver(checked).resolve(checked.stage("it").inputs["tools"], {})
    assert (cut.__name__, cut(expression="10 ** 5"), cut.guard.settings.max_failure_share) == ("calculator", "10", 1.0)


def test_the_key_knows_the_tools_source_and_limits(recipe: Callable[..., Path], tmp_path: Path) -> None:
    def parts(more: str) -> dict[str, str]:
        stage = pp.validate(recipe(GRPO, more)).stage("it")
        return keys.parts_of(stage, 0, {}, keys.HashCache(tmp_path / "hashes.json"))

    before = parts("tools: ['./my_tools.py:price']")
    assert before["tools[0].use"] == "my_tools.py:price"
    cut = parts("tools: [{use: './my_tools.py:price', max_chars: 9}]")
    assert {name for name in cut if before.get(name) != cut[name]} == {"tools[0].max_chars"}
    (tmp_path / "my_tools.py").write_text(TOOLS.replace('"3"', '"4"'))
    after = parts("tools: ['./my_tools.py:price']")
    assert {name for name in after if before.get(name) != after[name]} == {"tools[0].source"}


# --- completions with tools ------------------------------------------------------------------------------------------


@dataclass
class Speaker:
    """Answers by a script: the first line that the messages so far do not hold; `CALL x` calls the calculator."""

    lines: Sequence[str]
    identity: str = "speaker"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(tools=True))
    asked: list[Generate] = field(default_factory=list)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        for i, request in enumerate(batch):
            self.asked.append(request)
            turn = sum(message["role"] == "assistant" for message in request.prompt)  # type: ignore[index]
            line = self.lines[min(turn, len(self.lines) - 1)]
            for j in range(request.n):
                usage = Usage(prompt_tokens=5, completion_tokens=10)
                if line == "FAIL":
                    yield i, j, Completion("", finish_reason="error", error="down")
                elif line.startswith("CALL "):
                    name, _, text = line.removeprefix("CALL ").partition(" ")
                    calls = [{"name": name, "arguments": {"expression": one}} for one in text.split(" & ")]
                    yield i, j, Completion("", finish_reason="tool_calls", usage=usage, tool_calls=calls)
                else:
                    yield i, j, Completion(line, usage=usage)


PROBLEM = Problem([{"role": "user", "content": "7 * 8 = ?"}], SamplingParams(max_tokens=100))
LOOP = ToolLoop([calculator])


def messages_of(text: str) -> list[dict[str, Any]]:
    assert isinstance(text, Conversation)
    return [{k: v for k, v in message.items() if not k.endswith("id")} for message in text.messages]


def test_a_completion_with_tools_is_the_conversation_that_react_has() -> None:
    lines = ["CALL calculator 7 * 8", "<answer>56</answer>"]
    (result,) = solve(Greedy(), [PROBLEM], backend=Speaker(lines), tool_loop=LOOP)
    assert (result.answer, result.text) == ("56", "<answer>56</answer>")
    assert messages_of(result.text) == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_0_0",
                    "type": "function",
                    "function": {"name": "calculator", "arguments": {"expression": "7 * 8"}},
                }
            ],
        },
        {"role": "tool", "name": "calculator", "content": "56"},
        {"role": "assistant", "content": "<answer>56</answer>"},
    ]
    ours, theirs = Speaker(lines), Speaker(lines)
    solve(Greedy(), [PROBLEM], backend=ours, tool_loop=LOOP)
    (react,) = solve(ReAct(mode="native"), [PROBLEM], backend=theirs, tools=[calculator])
    assert [(one.prompt, one.tools) for one in ours.asked] == [(one.prompt, one.tools) for one in theirs.asked]
    assert react.answer == result.answer


def test_what_a_reward_and_a_file_are_given_is_the_whole_conversation() -> None:
    (result,) = sample([PROBLEM], 2, backend=Speaker(["CALL calculator 1 & 2/0", "hm"]), tool_loop=LOOP)
    texts = [candidate.text for candidate in result.candidates]
    roles = [message["role"] for message in in_format_of(PROBLEM.prompt, texts[0])]
    assert roles == ["assistant", "tool", "tool", "assistant"]
    # in TRL's words, as the model was trained with
    assert [m["content"] for m in messages_of(texts[0])][1:3] == ["1", "{'error': 'division by zero'}"]
    assert texts == ["hm", "hm"]  # a tool's number is no answer of the model's
    assert result.usage["policy"].completion_tokens == 40


def test_an_unknown_tool_and_wrong_arguments_are_answered_as_trl_answers_them() -> None:
    (result,) = solve(Greedy(), [PROBLEM], backend=Speaker(["CALL abacus 1", "done"]), tool_loop=LOOP)
    assert messages_of(result.text)[1]["content"] == "{'error': 'Tool abacus not found.'}"


def test_turns_tokens_and_seconds_end_a_conversation() -> None:
    for_ever = ["CALL calculator 1"]
    (result,) = solve(Greedy(), [PROBLEM], backend=Speaker(for_ever), tool_loop=ToolLoop([calculator], max_turns=2))
    assert [message["role"] for message in messages_of(result.text)] == [
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert messages_of(result.text)[-1]["tool_calls"]  # nobody answered it
    backend = Speaker(for_ever)
    (result,) = solve(Greedy(), [PROBLEM], backend=backend, tool_loop=LOOP)
    assert [request.params.max_tokens for request in backend.asked] == list(range(100, 0, -10))
    assert messages_of(result.text)[-1]["role"] == "tool"  # there was no room to go on
    (result,) = solve(Greedy(), [PROBLEM], backend=Speaker(for_ever), tool_loop=ToolLoop([calculator], max_seconds=0.0))
    assert [message["role"] for message in messages_of(result.text)] == ["assistant"]


def test_strategies_work_with_tools_as_they_are() -> None:
    lines = ["CALL calculator 7 * 8", "<answer>56</answer>"]

    def judge(completions: Any, **columns: Any) -> list[float]:
        return [float(len(completion)) for completion in completions]

    scorers = {"rm": ResolvedReward("rm", judge)}
    for strategy in (SelfConsistency(n=3), BestOfN("rm", n=2)):
        (result,) = solve(strategy, [PROBLEM], backend=Speaker(lines), scorers=scorers, tool_loop=LOOP)
        assert result.answer == "56"
        assert len(messages_of(result.text)) == 3
    assert [candidate.score for candidate in result.candidates] == [3.0, 3.0]  # three messages


def test_a_failed_turn_is_a_failed_completion_and_a_budget_ends_with_what_there_is() -> None:
    (result,) = solve(Greedy(), [PROBLEM], backend=Speaker(["CALL calculator 1", "FAIL"]), tool_loop=LOOP)
    assert result.candidates == []
    (result,) = solve(
        SelfConsistency(n=2), [PROBLEM], backend=Speaker(["CALL calculator 1"]), tool_loop=LOOP, budget=Budget(calls=4)
    )
    assert result.stopped_by == "calls"
    assert result.error is None


def test_a_killed_evaluation_replays_its_conversations(tmp_path: Path) -> None:
    lines = ["CALL calculator 7 * 8", "<answer>56</answer>"]
    first = solve(SelfConsistency(n=2), [PROBLEM], backend=Speaker(lines), tool_loop=LOOP, log=tmp_path / "log")
    silent = Speaker(["FAIL"])
    again = solve(SelfConsistency(n=2), [PROBLEM], backend=silent, tool_loop=LOOP, log=tmp_path / "log")
    assert silent.asked == []
    assert [messages_of(c.text) for c in again[0].candidates] == [messages_of(c.text) for c in first[0].candidates]


def test_plain_prompts_are_completed_without_tools() -> None:
    plain = Problem("7 * 8 = ?", SamplingParams())

    class Plain(Speaker):
        def generate(self, batch: Any, seeds: Any) -> Any:
            assert batch[0].tools == ()
            yield 0, 0, Completion("56")

    (result,) = solve(Greedy(), [plain], backend=Plain([]), tool_loop=LOOP)
    assert result.text == "56"


def test_the_text_of_a_completion_is_what_the_model_wrote() -> None:
    assert to_text(TALK[1:]) == "3 euros"
    assert to_text(TALK) == "tea?\n3\n3 euros"  # of a prompt all counts, what tools answered too
    import copy
    import pickle

    talk = Conversation(TALK[1:])
    for again in (copy.deepcopy(talk), pickle.loads(pickle.dumps(talk))):
        assert (again, again.messages) == ("3 euros", TALK[1:])


def test_tools_on_plain_prompts_are_refused_at_the_start(recipe: Callable[..., Path]) -> None:
    from posttrain_plugins.engine.tool_loop import tool_loop

    class Context:
        stage = "it"
        inputs = {"tools": [calculator], "dataset": [{"prompt": "1+1"}]}  # noqa: RUF012

    with pytest.raises(InputError, match="which need prompts that are messages"):
        tool_loop(Context, None)  # type: ignore[arg-type]
