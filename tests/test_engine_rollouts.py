"""`rollouts: engine`: draws of the distribution that the trainer's own generation draws from, tested by likelihood."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # noqa: E402

from posttrain_plugins.trainers import compat, stage_rules  # noqa: E402
from posttrain_plugins.trainers.engine_rollouts import draw_with_engine  # noqa: E402

ARGS: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 6,
    "temperature": 0.8,
    "logging_steps": 1,
    "save_strategy": "no",
    "bf16": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
    "report_to": [],
    "seed": 3,
}


@pytest.fixture
def build(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> Callable[..., Any]:
    from datasets import load_dataset

    rows = load_dataset("json", data_files=str(tiny_data / "problems.jsonl"), split="train")

    def make(trainer_class: Any = GRPOTrainer, config_class: Any = GRPOConfig, **args: Any) -> Any:
        def reward(completions: list[Any], **columns: Any) -> list[float]:
            return [float(i % 2) for i in range(len(completions))]

        return trainer_class(str(tiny_model), reward, config_class(str(tmp_path / "out"), **{**ARGS, **args}), rows)

    return make


def surprise(trainer: Any, prompt: list[int], completions: list[list[int]]) -> float:
    """How many standard deviations the log-likelihood of drawn tokens is from what it is in the mean, by definition."""
    off = spread = 0.0
    for completion in completions:
        with torch.no_grad():
            logits = trainer.model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double()
        known = (logits / trainer.temperature).log_softmax(-1)  # (T, V)
        mean = (known.exp() * known).sum(-1)
        spread += float(((known.exp() * known**2).sum(-1) - mean**2).sum())
        off += float((known.gather(1, torch.tensor(completion)[:, None])[:, 0] - mean).sum())
    return off / spread**0.5


def test_the_engine_draws_from_the_trainers_distribution(build: Callable[..., Any]) -> None:
    """As `generate` does; at another temperature the draws would be far off."""
    trainer = build()
    prompt = trainer.processing_class.apply_chat_template(
        [{"role": "user", "content": "3 + 4"}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    prompts = [list(prompt)] * 400
    torch.manual_seed(0)
    own, _ = trainer._generate_single_turn(prompts, None, {}, 4)
    draw_with_engine(trainer, "grpo")
    drawn, logprobs = trainer._generate_single_turn(prompts, None, {}, 4)
    assert logprobs is None
    assert abs(surprise(trainer, list(prompt), own)) < 5
    assert abs(surprise(trainer, list(prompt), drawn)) < 5
    with compat.changed(trainer, temperature=1.6):
        hotter, _ = trainer._generate_single_turn(prompts, None, {}, 4)
    assert surprise(trainer, list(prompt), hotter) < -5
    assert all(1 <= len(ids) <= 6 for ids in drawn)
    eos = set(trainer.eos_token_ids)
    assert all(eos.isdisjoint(ids[:-1]) and (len(ids) == 6 or ids[-1] in eos) for ids in drawn)


@pytest.mark.parametrize(("trainer_class", "config_class"), [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)])
def test_a_training_draws_the_same_again(build: Callable[..., Any], trainer_class: Any, config_class: Any) -> None:
    """Seeds are of step and row: what else draws random numbers changes nothing."""
    seen: list[list[Any]] = []
    for noise in (1, 2):
        trainer = build(trainer_class, config_class)
        draw_with_engine(trainer, "train")
        drawn: list[Any] = []
        compat.observe_rewards(trainer, lambda inputs, prompts, completions, rewards, to=drawn: to.extend(completions))
        torch.manual_seed(noise)
        trainer.train()
        assert trainer.model.training
        seen.append(drawn)
    assert seen[0] == seen[1]
    assert len({str(completion) for completion in seen[0]}) > 1


def test_a_greedy_rollout_is_greedy(build: Callable[..., Any]) -> None:
    """ReMax's baseline, which the trainer's own generation makes."""
    trainer = build()
    prompts = [[{"role": "user", "content": "3 + 4"}]] * 2
    _, own = compat.rollout_greedily(trainer, prompts)
    draw_with_engine(trainer, "grpo")
    _, drawn = compat.rollout_greedily(trainer, prompts)
    assert drawn == own


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_p", 0.1), ("repetition_penalty", 1.2), ("generation_kwargs", {"num_beams": 2}), ("use_vllm", True)],
)
def test_what_the_engine_does_not_know_is_refused(name: str, value: Any) -> None:
    fields = dict.fromkeys(stage_rules.ENGINE_DRAWS) | {"use_vllm": False, "repetition_penalty": 1.0}
    args = SimpleNamespace(**fields, per_device_train_batch_size=4, num_generations=4)
    assert list(stage_rules.speed_concerns(args, True, "engine")) == []
    setattr(args, name, value)
    (issue,) = stage_rules.speed_concerns(args, False, "engine")
    assert issue.field == f"args.{name}"
    (issue, _) = stage_rules.speed_concerns(args, False, "engine", has_strategy=True)
    assert "strategy" in issue.message


@pytest.mark.parametrize(
    ("rows", "group", "found"), [(1, 4, "batch_size 1"), (6, 4, "cut"), (4, 1, "num_generations 1")]
)
def test_batches_without_a_prompt_to_share_are_told(rows: int, group: int, found: str) -> None:
    args = SimpleNamespace(per_device_train_batch_size=rows, num_generations=group)
    (issue,) = stage_rules.speed_concerns(args, True, "trainer")
    assert found in issue.message
    assert issue.is_warning == (found == "cut")
