"""The tokens of a conversation that a strategy had with the policy: what is learned of it, what is masked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from posttrain_plugins import plan, run, solve
from posttrain_plugins.backends.transformers.chat import render
from posttrain_plugins.errors import InputError
from posttrain_plugins.record.figures import read_figures
from posttrain_plugins.strategies.react import ReAct
from posttrain_plugins.testing.scripted import ScriptedModel
from posttrain_plugins.tools.calculator import calculator
from posttrain_plugins.trainers.saved_rollouts import ANSWER
from posttrain_plugins.trainers.strategy_rollouts import hook, of_answers
from posttrain_plugins.trainers.trajectory import trajectory
from posttrain_plugins.types import Completion, ResolvedReward, ResolvedStrategy, StageContext

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""


class Letters:
    """A tokenizer of one token a character, and one for each mark of ChatML."""

    chat_template = CHATML
    bos_token_id = None
    eos_token_id = 2
    marks = ("<|im_start|>", "<|im_end|>")

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        ids = []
        while text:
            mark = next((mark for mark in self.marks if text.startswith(mark)), None)
            ids.append(self.marks.index(mark) + 1 if mark else ord(text[0]))
            text = text[len(mark or "x") :]
        return {"input_ids": ids}

    def apply_chat_template(self, messages: Any, tokenize: bool = True, **options: Any) -> Any:
        import jinja2

        text = jinja2.Template(self.chat_template).render(messages=messages, add_generation_prompt=True)
        return self(text) if tokenize else text

    def decode(self, ids: list[int]) -> str:
        return "".join(self.marks[i - 1] if i < 3 else chr(i) for i in ids)


@pytest.fixture
def tokenizer() -> Any:
    return Letters()


def trace(*said: Completion, **options: Any) -> list[dict[str, Any]]:
    """What `react` with a calculator asks, where the policy says these one after the other."""
    waiting = iter(said)
    [result] = solve(
        ReAct(tools=[calculator], instructions="$tools", **options),
        [[{"role": "user", "content": "6*7+1?"}]],
        backend=ScriptedModel(lambda request, seed: next(waiting)),
    )
    return result.trace


def learned(tokenizer: Any, found: Any) -> list[str]:
    """The stretches of the row that the policy wrote."""
    texts, is_open = [], False
    for token, own in zip(found.completion_ids, found.mask, strict=True):
        if own and not is_open:
            texts.append("")
        if own:
            texts[-1] += tokenizer.decode([token])
        is_open = bool(own)
    return texts


def test_what_the_policy_wrote_is_learned_and_what_it_was_told_is_masked(tokenizer: Any) -> None:
    """The whole conversation is one row, token by token what the chat template makes of it."""
    events = trace(Completion("Action: calculator[6*7+1]"), Completion("Action: Finish[43]"))
    found = trajectory(tokenizer, events)
    assert found.prompt_ids == render(tokenizer, events[0]["prompt"])
    last = next(event for event in reversed(events) if event["kind"] == "generate")
    whole = [*render(tokenizer, last["prompt"]), *tokenizer("Action: Finish[43]<|im_end|>")["input_ids"]]
    assert [*found.prompt_ids, *found.completion_ids] == whole
    assert learned(tokenizer, found) == ["Action: calculator[6*7+1]<|im_end|>", "Action: Finish[43]<|im_end|>"]
    assert "Observation: 43" in tokenizer.decode(found.completion_ids)
    assert found.turns == 2
    assert len(found.mask) == len(found.completion_ids)


def test_an_end_that_a_stop_string_made_is_not_learned(tokenizer: Any) -> None:
    cut = Completion("Action: calculator[6*7+1]", stop_reason="\nObservation:")
    found = trajectory(tokenizer, trace(cut, Completion("Action: Finish[43]", finish_reason="length")))
    assert learned(tokenizer, found) == ["Action: calculator[6*7+1]", "Action: Finish[43]"]


def test_what_stands_behind_an_action_is_dropped(tokenizer: Any) -> None:
    """The policy never saw it again, so that the row would not be what its last turn was drawn from."""
    found = trajectory(tokenizer, trace(Completion("Action: calculator[6*7]\nIt is 12"), Completion("Finish[43]")))
    assert learned(tokenizer, found)[0] == "Action: calculator[6*7]"
    assert "It is 12" not in tokenizer.decode(found.completion_ids)


def test_a_failed_draw_is_no_turn(tokenizer: Any) -> None:
    failed = Completion("", finish_reason="error", error="busy")
    found = trajectory(tokenizer, trace(failed, Completion("Action: Finish[43]")))
    assert found.turns == 1
    assert learned(tokenizer, found) == ["Action: Finish[43]<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML.replace("message['content']", "message['content'] | upper")
    with pytest.raises(InputError, match="changes what was written in earlier turns") as caught:
        trajectory(tokenizer, trace(Completion("Action: calculator[6*7+1]"), Completion("Action: Finish[43]")))
    assert caught.value.hint


def test_a_strategy_that_rewrites_them_is_refused(tokenizer: Any) -> None:
    events = trace(Completion("Action: calculator[6*7+1]"), Completion("Action: Finish[43]"))
    events[0]["completions"][0]["text"] = "Something else"
    with pytest.raises(InputError, match="the strategy changes what the policy wrote"):
        trajectory(tokenizer, events)


def test_rewards_judge_the_strategys_answer() -> None:
    seen: list[Any] = []

    def right(completions: Any, **columns: Any) -> list[float]:
        seen.append((completions, columns))
        return [1.0] * len(completions)

    judge = of_answers(right)
    assert judge.__name__ == "right"
    talk = [[{"role": "assistant", "content": "Action: calculator[6*7+1]\nObservation: 43"}]]
    assert judge(completions=talk, prompts=["?"], **{ANSWER: ["<answer>43</answer>"]}) == [1.0]
    assert seen == [([[{"role": "assistant", "content": "<answer>43</answer>"}]], {"prompts": ["?"]})]


ROWS = [{"prompt": [{"role": "user", "content": "6*7+1?"}], "solution": "43"}]


def context_with(strategy: Any, rows: Any, folder: Path) -> StageContext:
    rewards = [ResolvedReward("right", lambda completions, **columns: [0.0] * len(completions))]
    inputs = {"strategy": ResolvedStrategy("react", strategy), "dataset": Dataset.from_list(rows), "rewards": rewards}
    return StageContext("grpo", folder, 0, inputs, None, None, lambda: False)  # type: ignore[arg-type]


def test_react_by_its_grammar_makes_rollouts_and_rewards(tmp_path: Path) -> None:
    made = hook(context_with(ReAct(tools=[calculator]), ROWS, tmp_path))
    assert made["rollout_func"].is_talk
    assert len(made["reward_funcs"]) == 1


def test_native_calls_and_plain_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="strategy react has tools") as caught:
        hook(context_with(ReAct(tools=[calculator], mode="native"), ROWS, tmp_path))
    assert "tools: [...]" in str(caught.value.hint)
    with pytest.raises(InputError, match="needs prompts that are messages"):
        hook(context_with(ReAct(tools=[calculator]), [{"prompt": "6*7+1?", "solution": "43"}], tmp_path))


RECIPE = """
name: it
seed: 5
model: {model}
datasets: {problems: {path: "{data}/problems.jsonl", limit: 16}}
rewards: {brief: {use: length, max_chars: 4}}
stages:
  {stage}: {use: {stage}, model: base, dataset: problems, rewards: [brief], args: {args},
            strategy: {use: react, tools: [calculator], max_steps: 1, {texts}}}
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_a_policy_is_trained_on_its_conversations(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path, stage: str
) -> None:
    """The row that the trainer learns from has masked tokens, and `rollouts.jsonl` what the rewards judged."""
    args = "{max_steps: 2, per_device_train_batch_size: 4, max_completion_length: 6, logging_steps: 1, "
    args += "gradient_checkpointing: false" + (", num_generations: 2}" if stage == "grpo" else "}")
    texts = 'instructions: "1", malformed: "2", out_of_steps: "3"'  # a tiny model has little room
    recipe = write_recipe(RECIPE, model=tiny_model, data=tiny_data, stage=stage, args=args, texts=texts)
    assert [one.id for one in plan(recipe).stages][-1] == stage
    done = run(recipe, runs_dir=tmp_path / "runs")[stage]
    figures = next(read_figures(done.folder)).figures
    assert figures["rollouts/turns"] == 2.0, "a turn without an action, and the one that is asked for the answer"
    lines = (done.folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert ANSWER not in rows[0]
    assert all("Observation: 2" in row["completion"][0]["content"] for row in rows), "as it was judged"
