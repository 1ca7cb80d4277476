"""Rollouts that a strategy makes for GRPO and PPO: one answer for each prompt, reproducible, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from posttrain_plugins import run
from posttrain_plugins.api import validate
from posttrain_plugins.errors import InputError, StageFailed
from posttrain_plugins.record.figures import read_figures
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.react import ReAct
from posttrain_plugins.trainers.strategy_rollouts import StrategyRollouts, hook, issues
from posttrain_plugins.types import Candidate, Problem, ResolvedReward, ResolvedStrategy, Result, StageContext

PROMPTS = [[{"role": "user", "content": text}] for text in ("3|7>2", "3|7>2", "9<1", "9<1")]
ROWS = [{"prompt": PROMPTS[0], "solution": "4"}, {"prompt": PROMPTS[2], "solution": "1"}]


class Longest:
    """Prefers long completions, and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[Any] = []
        self.texts: list[str] = []

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        texts = [completion[-1]["content"] for completion in completions]
        self.given += list(zip((prompt[-1]["content"] for prompt in prompts), columns["solution"], strict=True))
        self.texts += texts
        return [float(len(text)) for text in texts]


@pytest.fixture
def trainer(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    options: dict[str, Any] = {"bf16": False, "dataloader_pin_memory": False, "report_to": [], "num_generations": 2}
    return GRPOTrainer(
        str(tiny_model),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=GRPOConfig(str(tmp_path), per_device_train_batch_size=4, max_completion_length=6, **options),
        train_dataset=Dataset.from_list(ROWS),
    )


def rollouts(strategy: Any, scorer: Any = None) -> StrategyRollouts:
    scorers = {"longest": ResolvedReward("longest", scorer)} if scorer else {}
    return StrategyRollouts(ResolvedStrategy("it", strategy, scorers), ROWS, seed=1)


def test_each_prompt_gets_an_answer_of_its_own(trainer: Any) -> None:
    """The best of four by the scorer, which sees the row's other columns; the trainer goes on in its own mode."""
    scorer = Longest()
    made = rollouts(BestOfN(n=4, scorer="longest"), scorer)
    trainer.model.train()
    output = made(PROMPTS, trainer)
    assert trainer.model.training
    words = trainer.processing_class
    expected = [words.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in PROMPTS]
    assert output["prompt_ids"] == expected
    assert output["logprobs"] is None
    texts = words.batch_decode(output["completion_ids"], skip_special_tokens=True)
    assert len(scorer.texts) == 16
    assert set(texts) <= set(scorer.texts)
    assert sum(map(len, texts)) / 4 > sum(map(len, scorer.texts)) / 16, "the longest of four each"
    assert set(scorer.given) == {("3|7>2", "4"), ("9<1", "1")}
    assert all(1 <= len(ids) <= 6 for ids in output["completion_ids"])
    assert len({tuple(ids) for ids in output["completion_ids"]}) > 1


def test_the_same_step_gives_the_same_rollouts_and_another_does_not(trainer: Any) -> None:
    """So a resumed run draws what the uninterrupted one drew, and an evaluation's second batch is not its first."""
    first = rollouts(BestOfN(n=2, scorer="longest"), Longest())
    one, two = (first(PROMPTS, trainer)["completion_ids"] for _ in range(2))
    assert one != two
    again = rollouts(BestOfN(n=2, scorer="longest"), Longest())
    assert again(PROMPTS, trainer)["completion_ids"] == one
    trainer.state.global_step = 1
    later = first(PROMPTS, trainer)["completion_ids"]
    assert later not in (one, two)
    assert rollouts(BestOfN(n=2, scorer="longest"), Longest())(PROMPTS, trainer)["completion_ids"] == later


@dataclass
class Says:
    """Answers without a model."""

    text: str
    finish_reason: str = "stop"

    def __call__(self, problem: Problem) -> Generator[Any, Any, Result]:
        yield []
        return Result(self.text, self.text, [Candidate(self.text, finish_reason=self.finish_reason)])


@dataclass
class Fails:
    def __call__(self, problem: Problem) -> Generator[Any, Any, Result]:
        yield []
        raise ValueError("no way")


def test_a_whole_answer_ends_with_eos_and_a_cut_one_does_not(trainer: Any) -> None:
    words = trainer.processing_class
    eos, digits = words.eos_token_id, words("123456789", add_special_tokens=False)["input_ids"]
    for says, expected in (
        (Says("12"), [*digits[:2], eos]),
        (Says("12", "length"), digits[:2]),
        (Says("123456789"), digits[:6]),
        (Says(""), [eos]),
    ):
        assert rollouts(says)(PROMPTS[:1], trainer)["completion_ids"] == [expected]


def test_a_strategy_that_always_fails_is_told(trainer: Any) -> None:
    with pytest.raises(StageFailed, match=r"strategy it failed at every prompt: .*no way"):
        rollouts(Fails())(PROMPTS, trainer)


@dataclass
class FailsAt:
    """Raises at one of the prompts, and says 12 at the others."""

    number: str

    def __call__(self, problem: Problem) -> Generator[Any, Any, Result]:
        yield []
        if problem.id == self.number:
            raise ValueError("no way")
        return Result("12", "12")


def test_where_the_strategy_fails_the_policy_draws_itself_and_is_counted(trainer: Any) -> None:
    words = trainer.processing_class
    trainer.model.train()
    found = rollouts(FailsAt("2"))(PROMPTS, trainer)["completion_ids"]
    said = [*words("12", add_special_tokens=False)["input_ids"], words.eos_token_id]
    assert [ids == said for ids in found] == [True, True, False, True]
    assert len(found[2]) > 1, "a draw, and not EOS alone"
    assert found == rollouts(FailsAt("2"))(PROMPTS, trainer)["completion_ids"]
    assert trainer._metrics["train"]["rollouts/missing"] == [1.0, 1.0]


def test_sharded_weights_are_refused(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(trainer), "is_fsdp_enabled", True, raising=False)
    trainer.is_fsdp_enabled = True
    with pytest.raises(InputError, match="whole weights"):
        rollouts(Says("1"))(PROMPTS, trainer)


@pytest.mark.parametrize(
    ("args", "told"),
    [({"use_vllm": True}, "args has use_vllm"), ({"advantage_estimator": "remax"}, "greedy completion")],
)
def test_arguments_without_a_meaning_are_refused(args: dict[str, Any], told: str) -> None:
    (found,) = issues(SimpleNamespace(**args))
    assert told in found.message
    assert not found.is_warning


def test_tools_are_refused(tmp_path: Path) -> None:
    def look(text: str) -> str:
        """Looks.

        Args:
            text: at what.
        """
        return text

    inputs = {
        "strategy": ResolvedStrategy("react", ReAct(tools=[look], mode="native")),
        "dataset": Dataset.from_list(ROWS),
    }
    context = StageContext("grpo", tmp_path, 0, inputs, None, None, lambda: False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="strategy react has tools"):
        hook(context)


RECIPE = """
name: it
seed: 5
model: {model}
adapters: {policy: {use: lora, r: 4}}
datasets: {problems: {path: "{data}/problems.jsonl", limit: 16}}
rewards: {steps: {use: digit_chain_steps, mode: fraction}, brief: {use: length, max_chars: 4}}
stages:
  grpo: {use: grpo, model: base, dataset: problems, rewards: [steps, brief], args: {args},
         strategy: {use: best_of_n, n: 2, scorer: brief}}
  ppo: {use: ppo, model: base, dataset: problems, rewards: [steps, brief], adapter: policy, args: {ppo},
        strategy: {use: best_of_n, n: 2, scorer: brief}}
"""
ARGS = {"max_steps": 2, "per_device_train_batch_size": 4, "max_completion_length": 8, "gradient_checkpointing": False}


def test_a_recipe_with_vllm_beside_a_strategy_is_refused_before_it_runs(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path
) -> None:
    args = json.dumps({**ARGS, "num_generations": 2, "use_vllm": True})
    recipe = write_recipe(RECIPE, model=tiny_model, data=tiny_data, args=args, ppo=json.dumps(ARGS))
    with pytest.raises(InputError, match="rollouts in process, but args has use_vllm"):
        validate(recipe)


@pytest.mark.slow
def test_grpo_and_ppo_train_on_a_strategys_rollouts(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    grpo = json.dumps({**ARGS, "num_generations": 2, "learning_rate": 1e-3, "logging_steps": 1})
    ppo = json.dumps({**ARGS, "learning_rate": 1e-3, "logging_steps": 1, "num_iterations": 1})
    recipe = write_recipe(RECIPE, model=tiny_model, data=tiny_data, args=grpo, ppo=ppo)
    done = run(recipe, runs_dir=tmp_path / "runs")
    for stage in ("grpo", "ppo"):
        assert done[stage].metrics["steps"] == 2
        first = next(read_figures(done[stage].folder)).figures
        assert first["completions/mean_length"] <= 8
        assert torch.isfinite(torch.tensor(first["loss"]))
