"""Rewards that others wrote work unchanged: TRL's own by name, functions in TRL's and Open R1's style from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.recipe.run.inputs import Resolver
from posttrain_plugins.record.figures import read_figures

# In the style of TRL's documentation and of Open R1's rewards: positional lists, `completion[0]["content"]`, no
# annotations to speak of, `**kwargs`, numbers that are no floats, and functions that make a reward of a closure.
OTHERS = '''
import re

def think_then_answer(completions, **kwargs):
    """Reward function that checks the two parts."""
    pattern = r"^<think>.*?</think>\\s*<answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content, re.DOTALL) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]

def unique_chars(prompts, completions, completion_ids, trainer_state, **kwargs):
    print("scoring", len(completions))
    return [len(set(completion[0]["content"])) for completion in completions]

def only_some(completions, solution, **kwargs):
    return [1.0 if sol in c[0]["content"] else None for c, sol in zip(completions, solution)]

def get_scaled_reward(low: float = -1.0, high: float = 1.0, max_len: int = 1000):
    def scaled_reward(completions, solution, **kwargs):
        rewards = []
        for completion, sol in zip(completions, solution):
            progress = min(len(completion[0]["content"]) / max_len, 1)
            rewards.append(high - (high - low) * progress)
        return rewards
    return scaled_reward
'''

RECIPE = """
name: others
model: {model_name_or_path: {model}}
datasets: {problems: {path: {data}/problems.jsonl, limit: 4}}
rewards:
  right: {use: "trl.rewards:accuracy_reward"}
  thinks: {use: "trl.rewards:think_format_reward", weight: 0.5}
  overlong: {use: "trl.rewards:get_soft_overlong_punishment", max_completion_len: 8, soft_punish_cache: 4}
  again: {use: "trl.rewards:get_repetition_penalty_reward", ngram_size: 2}
  format: {use: "./others.py:think_then_answer", timeout_s: 30, num_workers: 1}
  chars: {use: "./others.py:unique_chars"}
  some: {use: "./others.py:only_some"}
  scaled: {use: "./others.py:get_scaled_reward", max_len: 50}
stages:
  rl: {use: grpo, model: base, dataset: problems,
       rewards: [right, thinks, overlong, again, format, chars, some, scaled],
       args: {max_steps: 1, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8}}
"""


@pytest.fixture
def recipe(tmp_path: Path, write_recipe: Callable[..., Path], tiny_data: Path) -> Callable[..., Path]:
    (tmp_path / "others.py").write_text(OTHERS)
    return lambda text=RECIPE, model="some/model": write_recipe(text, model=model, data=tiny_data)


def test_they_are_checked_and_built_as_they_are(recipe: Callable[..., Path]) -> None:
    import trl.rewards

    checked = pp.validate(recipe())
    resolver = Resolver(checked, {})
    spec = checked.stage("rl")
    funcs: dict[str, Any] = {}
    for source in spec.inputs["rewards"]:  # type: ignore[union-attr]
        reward = resolver._reward(source, spec)
        funcs[reward.name] = reward.func
    assert funcs["right"] is trl.rewards.accuracy_reward
    assert funcs["overlong"](completion_ids=[[1] * 4, [1] * 6, [1] * 9]) == [0.0, -0.5, -1.0]
    chat = [[{"role": "assistant", "content": text}] for text in ("<think>a</think><answer>3</answer>", "x" * 25)]
    given: dict[str, Any] = {"prompts": [None] * 2, "completions": chat, "solution": ["3", "4"]}
    assert funcs["format"](**given) == [1.0, 0.0]
    funcs["format"].close()
    assert funcs["some"](**given) == [1.0, None]
    assert funcs["scaled"](**given)[1] == 0.0
    assert pp.load("reward", "trl.rewards:get_repetition_penalty_reward", ngram_size=1)([[5, 5]]) == [-0.5]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("max_len: 50", "maxlen: 50", "unknown key 'maxlen'"),
        ("max_len: 50", "max_len: long", "'max_len' is 'long', expected int"),
        (", soft_punish_cache: 4", "", "needs 'soft_punish_cache' (int)"),
        ('only_some"', 'only_some", max_len: 3', "unknown key 'max_len'"),
    ],
)
def test_what_makes_a_reward_is_checked_against_its_parameters(recipe, old: str, new: str, told: str) -> None:
    with pytest.raises(RecipeErrors) as caught:
        pp.validate(recipe(RECIPE.replace(old, new)))
    assert told in str(caught.value)


def test_what_refuses_its_parameters_is_told(recipe: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="refuses its parameters: max_penalty 1 should not be positive"):
        pp.load("reward", "trl.rewards:get_repetition_penalty_reward", max_penalty=1)


def test_a_column_that_they_need_is_missed_before_anything_runs(recipe, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.jsonl").write_text('{"prompt": "?"}\n')
    with pytest.raises(RecipeErrors) as caught:
        pp.validate(recipe(RECIPE.replace("{data}/problems.jsonl", "bare.jsonl")))
    assert "'solution'" in str(caught.value)


@pytest.mark.slow
def test_they_train(recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    run = pp.run(recipe(model=str(tiny_model)), runs_dir=tmp_path / "runs")
    logged = next(read_figures(run["rl"].folder)).figures
    names = ("right", "thinks", "overlong", "again", "format", "chars", "scaled")  # `some` can judge none of these
    assert {f"rewards/{name}/mean" for name in names} <= set(logged)
    assert logged["rewards/format/ok"] == 4.0
    assert logged["rewards/chars/mean"] >= 0
