"""The built-in rewards: hand-worked scores, plain and conversational, and the contract that they keep."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from posttrain_plugins.errors import InputError
from posttrain_plugins.rewards.digit_chain_steps import DigitChainSteps
from posttrain_plugins.rewards.exact_answer import ExactAnswer
from posttrain_plugins.rewards.length import Length
from posttrain_plugins.rewards.regex import Regex

RIGHT = "<think>3|7=4;4>2=4</think><answer>4</answer>"
WRONG = "<think>3|7=7;7>2=7</think><answer>7</answer>"
REWARDS = [ExactAnswer(), Regex("<answer>.+</answer>"), Length(), DigitChainSteps(), DigitChainSteps("fraction")]


def _messages(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: type(reward).__name__)
def test_every_reward_keeps_the_contract(reward) -> None:
    texts = [RIGHT, WRONG, "", "\x00\n;;"]
    columns = {"solution": ["4"] * 4, "completion_ids": [[1]] * 4, "trainer_state": None}
    plain = reward(prompts=["3|7>2"] * 4, completions=texts, **columns)
    chat = reward(
        prompts=[_messages("user", "3|7>2")] * 4,
        completions=[_messages("assistant", text) for text in texts],
        **columns,
    )
    assert plain == chat
    assert all(type(score) is float for score in plain)
    low, high = reward.bounds
    assert all(low <= score <= high for score in plain)
    again = pickle.loads(pickle.dumps(reward))
    assert again == reward
    assert again(prompts=["3|7>2"] * 4, completions=texts, **columns) == plain
    assert reward(prompts=[], completions=[], solution=[]) == []


@pytest.mark.parametrize(
    "reward", [ExactAnswer(), Length(), DigitChainSteps()], ids=lambda reward: type(reward).__name__
)
def test_every_example_gets_its_score(reward) -> None:
    scores = set()
    for example in reward.examples:
        columns = {name: [value] for name, value in example.items() if name not in ("prompt", "completion", "score")}
        assert set(reward.requires_columns if hasattr(reward, "requires_columns") else ()) <= set(columns)
        assert reward(prompts=[example["prompt"]], completions=[example["completion"]], **columns) == [example["score"]]
        scores.add(example["score"])
    assert {0.0, 1.0} <= scores


def test_exact_answer_compares_with_the_solution() -> None:
    reward = ExactAnswer()
    assert reward(completions=[RIGHT, WRONG, "dunno"], solution=["4", "4", "4"]) == [1.0, 0.0, 0.0]


def test_exact_answer_cannot_judge_without_a_reference() -> None:
    assert ExactAnswer()(completions=[RIGHT, RIGHT], solution=[None, "4"]) == [None, 1.0]


def test_rewards_that_read_the_reference_say_so() -> None:
    assert ExactAnswer.oracle
    assert DigitChainSteps.oracle
    assert not hasattr(Regex, "oracle")
    assert not hasattr(Length, "oracle")


def test_regex_searches_or_matches_the_whole() -> None:
    texts = ["<answer>4</answer>", "so <answer>4</answer>", " <answer>4</answer>\n", "4"]
    assert Regex("<answer>.</answer>")(completions=texts) == [1.0, 1.0, 1.0, 0.0]
    assert Regex("<answer>.</answer>", full_match=True)(completions=texts) == [1.0, 0.0, 1.0, 0.0]


def test_regex_refuses_a_pattern_that_does_not_compile() -> None:
    with pytest.raises(InputError, match="regex cannot compile its pattern: '\\('"):
        Regex("(")


def test_length_decays_in_a_straight_line() -> None:
    reward = Length(max_chars=10, decay_chars=4)
    assert reward(completions=["x" * n for n in (0, 10, 11, 12, 14, 99)]) == [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    assert Length(max_chars=2, decay_chars=0)(completions=["xx", "xxx"]) == [1.0, 0.0]


@pytest.mark.parametrize("name", ["max_chars", "decay_chars"])
def test_length_refuses_a_negative_length(name: str) -> None:
    with pytest.raises(InputError, match=f"length cannot use {name}: -1"):
        Length(**{name: -1})


def test_digit_chain_steps_scores_strictly_by_fraction_or_by_answer() -> None:
    cancelled = "<think>3|7=7;7<1=1</think><answer>1</answer>"  # the wrong step does not change the answer
    short = "<think>3|7=4</think><answer>1</answer>"
    prompts, completions = ["3|7<1"] * 2, [cancelled, short]
    assert DigitChainSteps()(prompts, completions) == [0.0, 0.0]
    assert DigitChainSteps("fraction")(prompts, completions) == [0.5, 0.5]
    assert DigitChainSteps("answer")(prompts, completions) == [1.0, 1.0]
    assert DigitChainSteps().step_scores(prompts, completions) == [[0.0, 1.0], [1.0]]


def test_digit_chain_steps_reads_the_raw_layout_too() -> None:
    assert DigitChainSteps()(prompts=["<eos>3|7>2\n"], completions=["3|7=4;4>2=4\n4"]) == [1.0]


def test_digit_chain_steps_cannot_judge_without_a_problem() -> None:
    reward = DigitChainSteps()
    assert reward(["Hello", "3|7>2"], [RIGHT, RIGHT]) == [None, 1.0]
    assert reward.step_scores(["Hello", "3|7>2"], [RIGHT, ""]) == [[], []]


def test_digit_chain_steps_refuses_another_mode() -> None:
    with pytest.raises(InputError, match="digit_chain_steps cannot use mode: 'lax'"):
        DigitChainSteps("lax")


def test_importing_the_rewards_is_light() -> None:
    names = ("exact_answer", "regex", "length", "digit_chain_steps")
    modules = ", ".join(f"posttrain_plugins.rewards.{name}" for name in names)
    code = f"import sys, {modules}; print({{'torch', 'transformers', 'datasets', 'trl', 'numpy'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
