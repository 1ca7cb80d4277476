"""Training with tools on a model that has learned to call a calculator: calls, masks, limits, kills, and plain TRL."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import ToolFailed
from posttrain_plugins.recipe.run.run import Run
from posttrain_plugins.record.figures import read_figures
from posttrain_plugins.tools.calculator import calculator
from tests.test_transparency import PLAIN, assert_same_log, assert_same_weights
from tests.tool_world import SCHEMAS, conversation, make_world, problems

pytestmark = pytest.mark.slow

REWARDS = '''
def answered(completions, solution, **columns):
    """Pays what the last message holds, and a little for each message of the conversation that it is shown."""
    return [float(s in c[-1]["content"]) + len(c) / 100 for c, s in zip(completions, solution)]
'''

FILES = '''
from posttrain_plugins.tools.calculator import calculator as calculate


def calculator(expression: str) -> str:
    """Calculate an arithmetic expression.

    Args:
        expression: numbers with + - * / // % ** and brackets, such as (12 + 7) * 3.

    Returns:
        The number.
    """
    raise OSError("no network")


class Desk:
    """Counts what is asked of it."""

    def reset(self, **row):
        self.asked = 0

    def get_reward(self):
        return float(self.asked)

    def calculator(self, expression: str) -> str:
        """Calculate an arithmetic expression.

        Args:
            expression: numbers with + - * / // % ** and brackets, such as (12 + 7) * 3.

        Returns:
            The number.
        """
        self.asked += 1
        return calculate(expression)
'''
"""Described as the built-in one is: the model has learned to call what it is shown, to the letter."""

SAMPLED = {
    "max_steps": 2,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 90,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "max_tool_calling_iterations": 3,
    "num_iterations": 1,
}
RECIPE = """
name: tools
seed: 11
model: {model_name_or_path: ./base}
datasets: {traces: {path: traces.jsonl}, problems: {path: problems.jsonl}}
rewards: {answered: "./rewards.py:answered"}
stages:
  sft:
    use: sft
    model: base
    dataset: traces
    tools: [calculator]
    args: {max_steps: 70, per_device_train_batch_size: 4, learning_rate: 5e-3, max_length: 320,
           gradient_checkpointing: false}
  grpo: {use: grpo, model: sft, dataset: problems, rewards: [answered], tools: [calculator], args: SAMPLED}
  ppo: {use: ppo, model: sft, dataset: problems, rewards: [answered], args: SAMPLED,
        tools: [{use: calculator, timeout_s: 30}]}
  kept: {use: sample, model: sft, dataset: {path: problems.jsonl, limit: 6}, rewards: [answered], keep: all,
         tools: [calculator], num_generations: 2, max_tokens: 80, max_missing: 1.0}
  again: {use: sft, model: sft, dataset: kept, tools: [calculator], args: {max_steps: 1, gradient_checkpointing: false}}
"""


@dataclass(frozen=True)
class World:
    folder: Path
    recipe: Path
    run: Run

    def rows(self, stage: str) -> list[dict[str, Any]]:
        text = (self.run[stage].folder / "rollouts.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def log(self, stage: str) -> list[Mapping[str, Any]]:
        return [line.figures for line in read_figures(self.run[stage].folder)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tools")
    make_world(folder)
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "files.py").write_text(FILES)
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("SAMPLED", json.dumps(SAMPLED)))
    yield World(folder, recipe, pp.run(recipe, runs_dir=folder / "runs"))
    sys.modules.pop("rewards", None)


def with_stage(world: World, stage: str, name: str = "other.yaml") -> Path:
    """A recipe beside the first one, with one more stage on its SFT."""
    file = world.folder / name
    head = RECIPE.replace("SAMPLED", json.dumps(SAMPLED)).partition("  grpo:")[0]
    file.write_text(f"{head}  it: {stage.replace('SAMPLED', json.dumps(SAMPLED))}\n")
    return file


def answer_to(name: str, arguments: Any) -> str:
    """What TRL's loop makes of a call."""
    if name != "calculator":
        return str({"error": f"Tool {name} not found."})
    try:
        return calculator(**arguments)
    except Exception as error:
        return str({"error": str(error)})


# --- the calculator is called ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_the_calculator_is_called_and_the_rollouts_are_whole(world: World, stage: str) -> None:
    rows = world.rows(stage)
    assert len(rows) == 16
    calls = 0
    for row in rows:
        completion = row["completion"]
        assert completion[0]["role"] == "assistant"
        asked = [c for message in completion for c in message.get("tool_calls") or ()]
        answers = [message["content"] for message in completion if message["role"] == "tool"]
        calls += len(answers)
        # an answer to each call, but for the last ones, where turns or tokens were over
        told = [answer_to(**call["function"]) for call in asked[: len(answers)]]
        assert answers == told
        # the reward has seen every message
        assert row["rewards"]["answered"] % 1 == pytest.approx(len(completion) / 100, abs=1e-4)
    assert calls >= 8, "the model was to have learned to call"
    logged = [row["tools/call_frequency"] for row in world.log(stage) if "tools/call_frequency" in row]
    assert len(logged) == 2
    assert sum(logged) * 8 >= calls


def test_calls_under_the_guard_are_counted_in_the_figures(world: World) -> None:
    figures = {k: v for k, v in world.run["ppo"].metrics.items() if k.startswith("tools/calculator/")}
    assert figures["tools/calculator/ok"] >= 4
    assert figures["tools/calculator/timeout"] == figures["tools/calculator/error"] == 0.0
    assert "tools/calculator/ok" not in world.run["grpo"].metrics  # handed over as it is


def test_the_model_keeps_the_template_that_it_was_trained_with(world: World) -> None:
    from transformers import AutoTokenizer

    for stage in ("sft", "grpo", "ppo"):
        tokenizer = AutoTokenizer.from_pretrained(str(world.run[stage].model_path))
        shown = tokenizer.apply_chat_template(conversation(problems(1)[0]), tools=SCHEMAS, tokenize=False)
        assert "<tool_call>" in shown.rpartition("</tools>")[2]
        assert tokenizer.response_template is not None


def test_what_was_sampled_with_tools_is_learned_again(world: World) -> None:
    lines = (world.run["kept"].folder / "data.jsonl").read_text(encoding="utf-8").splitlines()
    roles = [[message["role"] for message in json.loads(line)["completion"]] for line in lines]
    assert ["assistant", "tool", "assistant"] in roles
    assert world.run["again"].metrics["steps"] == 1.0


def test_a_run_with_tools_equals_a_plain_trl_script(world: World, load_script: Callable[[Path], Any]) -> None:
    from datasets import load_dataset

    rows = load_dataset("json", data_files=str(world.folder / "problems.jsonl"), split="train")
    reward = load_script(world.folder / "rewards.py").answered
    build = load_script(PLAIN / "grpo.py").build
    out = world.folder / "plain"
    given = {"model": str(world.run["sft"].model_path), "rows": rows, "reward_funcs": reward, "tools": [calculator]}
    trainer = build(out=str(out), seed=11, **SAMPLED, **given)
    trainer.train()
    trainer.save_model(str(out))
    assert_same_log(world.run["grpo"].folder, trainer.state.log_history, 2)
    assert world.run["grpo"].model_path is not None
    assert_same_weights(world.run["grpo"].model_path, out)


# --- which tokens are learned ----------------------------------------------------------------------------------------


def scripted(trainer: Any, turns: list[str]) -> None:
    """Let a trainer write these turns in place of the model, in every conversation."""
    tokenizer = trainer.processing_class
    ids = [tokenizer(text + "<|im_end|>", add_special_tokens=False)["input_ids"] for text in turns]
    written = itertools.cycle(ids)

    def single_turn(prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        turn = next(written)
        return [list(turn) for _ in prompt_ids], None

    trainer._generate_single_turn = single_turn


CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "7 * 8"}}\n</tool_call>'
TURNS = [CALL, f"So far.\n{CALL}\n{CALL}", "<answer>56</answer>"]


def trainer_of(world: World, kind: str, out: Path) -> Any:
    from datasets import load_dataset
    from trl import GRPOConfig, GRPOTrainer

    from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer

    rows = load_dataset("json", data_files=str(world.folder / "problems.jsonl"), split="train")

    def paid(completions: Any, **columns: Any) -> list[float]:
        return [float(i) for i, _ in enumerate(completions)]

    shared = {**SAMPLED, "bf16": False, "save_strategy": "no", "report_to": "none", "max_completion_length": 200}
    model = str(world.run["sft"].model_path)
    if kind == "grpo":
        return GRPOTrainer(model, paid, GRPOConfig(str(out), **shared), rows, tools=[calculator])
    return PPOTrainer(model, paid, PPOConfig(str(out), **shared), rows, tools=[calculator])


def test_the_mask_of_a_rollout_is_that_of_the_same_conversation_tokenised_again(world: World, tmp_path: Path) -> None:
    """Bit by bit: RL's tokens come turn by turn, SFT's from the whole text; both learn what the model wrote."""
    from transformers import AutoTokenizer

    from posttrain_plugins.models.training_templates import chatml_twin

    trainer = trainer_of(world, "grpo", tmp_path)
    scripted(trainer, TURNS)
    rows = [dict(row) for row in trainer.train_dataset.select(range(8))]
    seen: list[Any] = []
    score = trainer._calculate_rewards
    trainer._calculate_rewards = lambda i, p, c, ids: seen.append((p, c)) or score(i, p, c, ids)
    output = trainer._generate_and_score_completions(rows)
    tokenizer = AutoTokenizer.from_pretrained(str(world.run["sft"].model_path))
    tokenizer.chat_template = chatml_twin(tokenizer.chat_template)
    _, completions = seen[0]
    assert [message["role"] for message in completions[0]] == [
        "assistant",
        "tool",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    for i, completion in enumerate(completions):
        prompt_ids = output["prompt_ids"][i][output["prompt_mask"][i].bool()].tolist()
        is_real = output["completion_mask"][i].bool()
        ids = output["completion_ids"][i][is_real].tolist()
        mask = output["tool_mask"][i][is_real].tolist()
        asked = [{"role": "user", "content": rows[i]["prompt"][0]["content"]}]
        whole = tokenizer.apply_chat_template(
            [*asked, *completion], tools=SCHEMAS, return_dict=True, return_assistant_tokens_mask=True
        )
        assert prompt_ids + ids == whole["input_ids"][: len(prompt_ids) + len(ids)]
        assert [0] * len(prompt_ids) + mask == whole["assistant_masks"][: len(prompt_ids) + len(ids)]
        assert tokenizer.decode(whole["input_ids"][len(prompt_ids) + len(ids) :]) == "\n"
        learned = tokenizer.decode([token for token, on in zip(ids, mask, strict=True) if on])
        assert learned == "".join(f"{turn}<|im_end|>" for turn in TURNS)


def test_ppo_steps_over_what_tools_answered(world: World, tmp_path: Path) -> None:
    """No advantage, value or return stands at a token that the policy did not write, and none is changed by it."""
    import torch

    trainer = trainer_of(world, "ppo", tmp_path)
    scripted(trainer, TURNS)
    rows = [dict(row) for row in trainer.train_dataset.select(range(8))]
    output = trainer._generate_and_score_completions(rows)
    wrote = output["completion_mask"] * output["tool_mask"]
    assert 0 < int(output["tool_mask"].sum()) < int(output["completion_mask"].sum())
    assert torch.equal(output["value_mask"], wrote.float())
    for name in ("advantages", "old_values", "returns"):
        assert torch.equal(output[name] * (1 - wrote), torch.zeros_like(output[name])), name
    # A new critic says 0 everywhere, so a return is the score, 1.0 here, discounted by lambda for each token between:
    # of the policy's alone, however long the answers are.
    row = wrote[1].bool()
    count = int(row.sum())
    expected = trainer.args.lam ** torch.arange(count - 1, -1, -1, dtype=torch.float32)
    assert torch.allclose(output["returns"][1][row], expected, atol=1e-5)


# --- limits, failures, kills -----------------------------------------------------------------------------------------


def test_no_tool_is_called_when_the_time_is_over(world: World) -> None:
    stage = "{use: grpo, model: sft, dataset: problems, rewards: [answered], tools: [calculator], "
    file = with_stage(world, stage + "max_trajectory_s: 0.000001, args: SAMPLED}", "late.yaml")
    made = pp.run(file, runs_dir=world.folder / "runs")["it"]
    rows = [json.loads(line) for line in (made.folder / "rollouts.jsonl").read_text().splitlines()]
    assert all(len(row["completion"]) == 1 for row in rows)
    logged = [line.figures for line in read_figures(made.folder)]
    assert max(figures["tools/out_of_time"] for figures in logged) > 0.0


def test_a_tool_that_fails_too_often_ends_the_run(world: World) -> None:
    stage = "{use: grpo, model: sft, dataset: problems, rewards: [answered], tools: [TOOL], args: SAMPLED}"
    tool = "{use: './files.py:calculator', max_failure_share: 0.05}"
    file = with_stage(world, stage.replace("TOOL", tool), "broken.yaml")
    with pytest.raises(ToolFailed, match=r"tool 'calculator': .* calls failed, more than max_failure_share: 0\.05"):
        pp.run(file, runs_dir=world.folder / "runs")


def test_an_environment_owns_tools_and_reward(world: World) -> None:
    stage = "{use: grpo, model: sft, dataset: problems, rewards: [answered], environment_factory: './files.py:Desk', "
    made = pp.run(with_stage(world, stage + "args: SAMPLED}", "desk.yaml"), runs_dir=world.folder / "runs")["it"]
    rows = [json.loads(line) for line in (made.folder / "rollouts.jsonl").read_text().splitlines()]
    assert rows
    for row in rows:
        answers = [m for m in row["completion"] if m["role"] == "tool" and "error" not in m["content"]]
        assert set(row["rewards"]) == {"answered", "Desk"}
        assert row["rewards"]["Desk"] >= len(answers)
    assert any(row["rewards"]["Desk"] > 0 for row in rows)


RUNNER = """
import sys
from posttrain_plugins import run
from posttrain_plugins.recipe.run.run import Observer

class Told(Observer):
    def progress(self, stage, done, total, unit, figures):
        print("step", done, flush=True)

run(sys.argv[1], runs_dir=sys.argv[2], observer=Told())
"""


def test_a_run_with_tools_that_is_killed_goes_on(world: World, tmp_path: Path) -> None:
    stage = "{use: ppo, model: sft, dataset: problems, rewards: [answered], tools: [{use: calculator, max_chars: 40}], "
    args = json.dumps({**SAMPLED, "max_steps": 6, "save_strategy": "steps", "save_steps": 1})
    file = with_stage(world, f"{stage}args: {args}}}", "killed.yaml")
    whole = pp.run(file, runs_dir=world.folder / "runs")["it"]
    runs = tmp_path / "runs"
    shutil.copytree(world.folder / "runs", runs, symlinks=True)
    shutil.rmtree(runs / "tools" / whole.folder.name)
    (runs / "tools/latest/it").unlink()
    process = subprocess.Popen([sys.executable, "-c", RUNNER, str(file), str(runs)], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while not list((runs / "tools").glob(".it-*/checkpoints/checkpoint-2/complete")):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    made = pp.run(file, runs_dir=runs)["it"]
    assert made.folder != whole.folder
    assert made.model_path is not None
    assert whole.model_path is not None
    assert_same_weights(made.model_path, whole.model_path)
    own, other = ((one.folder / "rollouts.jsonl").read_text() for one in (made, whole))
    assert own == other, "sampled again after the kill, each once"
    counted = {k: v for k, v in made.metrics.items() if k.startswith("tools/")}
    assert counted == {k: v for k, v in whole.metrics.items() if k.startswith("tools/")}
    assert counted["tools/calculator/ok"] > 0
