"""PPO's critic on its own: passes, clipping and units of its own, each against what it would be without."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_training import SMALL, digits

torch = pytest.importorskip("torch")

from posttrain_plugins.checkpoints import generation_period  # noqa: E402
from posttrain_plugins.errors import InputError  # noqa: E402
from posttrain_plugins.models.critic import value_head_in  # noqa: E402
from posttrain_plugins.trainers.ppo import rules  # noqa: E402
from posttrain_plugins.trainers.ppo.advantages import clipped_value_loss  # noqa: E402
from posttrain_plugins.trainers.ppo.critic import ValueHead  # noqa: E402
from posttrain_plugins.trainers.ppo.return_scale import DECAY, RunningReturns  # noqa: E402
from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer  # noqa: E402

ARGS: dict[str, Any] = SMALL | {"num_iterations": 1}
Make = Callable[..., PPOTrainer]


def hundreds(completions: list[Any], **columns: Any) -> list[float]:
    return [500.0 + 800.0 * score for score in digits(completions)]


def lora(rank: int = 4) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="session")
def problem_rows(tiny_data: Path) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(tiny_data / "problems.jsonl"), split="train")


@pytest.fixture
def make(tiny_model: Path, problem_rows: Any, tmp_path: Path) -> Make:
    """A LoRA policy with an adapter critic; keywords of `PPOConfig` override `ARGS`."""

    def built(rewards: Any = digits, is_full: bool = False, out: str = "out", **args: Any) -> PPOTrainer:
        return PPOTrainer(
            str(tiny_model),
            rewards,
            PPOConfig(str(tmp_path / out), **{**ARGS, **args}),
            problem_rows,
            peft_config=None if is_full else lora(),
        )

    return built


def logged(trainer: PPOTrainer) -> list[dict[str, Any]]:
    return [row for row in trainer.state.log_history if "loss" in row]


def parts(trainer: PPOTrainer) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What learns of the policy, and of the critic."""
    assert trainer.critic is not None
    named = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    policy = {name: p for name, p in named.items() if not trainer.critic.owns(name)}
    return policy, {name: p for name, p in named.items() if name not in policy}


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


# --- passes of its own -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_full", [False, True], ids=["adapter", "separate"])
def test_passes_of_its_own_change_the_critic_and_not_the_policy(make: Make, is_full: bool) -> None:
    """Three steps on one rollout, of which one is the policy's: it is what one step alone has made of it."""
    one = make(is_full=is_full, max_steps=1, weight_decay=0.1, lr_scheduler_type="constant")
    one.train()
    three = make(is_full=is_full, max_steps=3, weight_decay=0.1, lr_scheduler_type="constant", critic_iterations=3)
    three.train()
    assert differ(parts(one)[0], parts(three)[0]) == []
    assert any("value_head" in name for name in differ(parts(one)[1], parts(three)[1]))
    first, *rest = logged(three)
    assert "reward" in first
    assert [("reward" in row, "clip_ratio/region_mean" in row) for row in rest] == [(False, False)] * 2
    assert rest[1]["value/loss"] < rest[0]["value/loss"] < first["value/loss"], "the same rollout, learned further"


def test_after_its_passes_the_policy_learns_again(make: Make) -> None:
    trainer = make(max_steps=3, critic_iterations=2, num_iterations=1)
    seen: list[tuple[bool, bool, bool]] = []
    inner = trainer._compute_loss

    def watched(model: Any, inputs: Any) -> Any:
        loss = inner(model, inputs)
        seen.append((trainer.policy_learns, trainer.critic_learns, trainer.passes_made == 0))
        return loss

    trainer._compute_loss = watched
    trainer.train()
    assert seen == [(True, True, True), (False, True, False), (True, True, True)]
    assert ["reward" in row for row in logged(trainer)] == [True, False, True]


def test_fewer_passes_than_the_policy_leave_the_critic_alone(make: Make) -> None:
    one = make(max_steps=1, num_iterations=2, lr_scheduler_type="constant")
    one.train()
    two = make(max_steps=2, num_iterations=2, critic_iterations=1, lr_scheduler_type="constant")
    two.train()
    assert differ(parts(one)[1], parts(two)[1]) == []
    assert differ(parts(one)[0], parts(two)[0])


def test_a_shared_critic_learns_by_its_head_alone(make: Make) -> None:
    one = make(is_full=True, critic="shared", max_steps=1, lr_scheduler_type="constant")
    one.train()
    two = make(is_full=True, critic="shared", max_steps=2, critic_iterations=2, lr_scheduler_type="constant")
    two.train()
    assert differ(parts(one)[0], parts(two)[0]) == []
    assert differ(parts(one)[1], parts(two)[1]) == ["value_head.weight", "value_head.bias"]


def test_as_many_passes_as_the_policy_are_no_other_run(make: Make) -> None:
    """Bit for bit: saying the default, and a clip that nothing reaches, changes nothing."""
    plain = make(num_iterations=2, max_steps=4)
    plain.train()
    said = make(num_iterations=2, max_steps=4, critic_iterations=2)
    said.train()
    assert [row["loss"] for row in logged(plain)] == [row["loss"] for row in logged(said)]
    assert differ(parts(plain)[0], parts(said)[0]) == []
    assert differ(parts(plain)[1], parts(said)[1]) == []


def test_checkpoints_stand_between_rollouts_of_all_passes() -> None:
    args = PPOConfig("ppo", bf16=False, num_iterations=1, steps_per_generation=2, critic_iterations=4)
    assert generation_period(args) == 8
    args.critic_iterations = None
    assert generation_period(args) == 2


# --- clipping of its own ---------------------------------------------------------------------------------------------


def test_the_critics_gradient_is_clipped_by_itself(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy's step is the one that it would take with no critic beside it: the critic's size is no matter."""
    seen: dict[str, float] = {}

    def norms(trainer: PPOTrainer) -> None:
        inner = trainer.optimizer.step

        def step(*args: Any, **kwargs: Any) -> Any:
            assert trainer.critic is not None
            for who, own in (("policy", False), ("critic", True)):
                grads = [
                    p.grad
                    for name, p in trainer.model.named_parameters()
                    if p.grad is not None and trainer.critic.owns(name) is own
                ]
                seen[who] = float(torch.stack([g.norm() for g in grads]).norm())
            return inner(*args, **kwargs)

        monkeypatch.setattr(trainer.optimizer, "step", step)

    def train(**args: Any) -> dict[str, Any]:
        trainer = make(rewards=hundreds, max_steps=1, vf_coef=1.0, **args)
        trainer.create_optimizer_and_scheduler(1)
        norms(trainer)
        trainer.train()
        return logged(trainer)[0]

    joint = train()
    assert math.hypot(seen["policy"], seen["critic"]) == pytest.approx(1.0, rel=1e-3)
    assert seen["policy"] < 0.1, "the critic's gradient, of returns near a thousand, takes all"
    of_policy = seen["policy"] * joint["grad_norm"]
    own = train(critic_max_grad_norm=0.5)
    assert seen["critic"] == pytest.approx(0.5, rel=1e-3)
    assert seen["policy"] == pytest.approx(min(1.0, of_policy), rel=1e-2)
    assert own["grad_norm"] == pytest.approx(joint["grad_norm"], rel=1e-4), "of both, before any clipping"
    assert own["value/grad_norm"] <= own["grad_norm"]
    assert "value/grad_norm" not in joint


# --- the clip of values ----------------------------------------------------------------------------------------------


def test_no_clip_is_half_the_squared_error() -> None:
    values, old, returns = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2), torch.tensor([[2.0, 2.0]])
    mask = torch.ones(1, 2)
    loss, share = clipped_value_loss(values, old, returns, mask, None)
    assert (float(loss), float(share)) == (0.5, 0.0)
    assert float(clipped_value_loss(values, old, returns, mask, 0.2)[0]) > 1.0


def test_a_null_clip_lets_values_move(make: Make) -> None:
    """With the clip the gradient of a value that has moved is cut; without it goes on, and no share is told."""
    cut, free = (
        make(rewards=hundreds, max_steps=4, num_iterations=4, critic_learning_rate=1e-1, max_grad_norm=1e9, **more)
        for more in ({}, {"cliprange_value": None})
    )
    for trainer in (cut, free):
        trainer.train()
    assert "value/clip_ratio" in logged(cut)[0]
    assert "value/clip_ratio" not in logged(free)[0]
    bias = [float(trainer.critic.head.bias.detach()) for trainer in (cut, free)]  # type: ignore[union-attr]
    assert bias[1] > bias[0] > 0


# --- returns in units of their own -----------------------------------------------------------------------------------


def test_moments_are_those_of_the_rollouts_so_far() -> None:
    returns = RunningReturns()
    assert (returns.mean, returns.deviation) == (0.0, 1.0)
    for mean, square in ((2.0, 8.0), (4.0, 24.0)):
        returns.add(mean, square)
    late, early = 1 / (1 + DECAY), DECAY / (1 + DECAY)
    assert returns.mean == pytest.approx(early * 2 + late * 4)
    assert returns.deviation == pytest.approx(math.sqrt(early * 8 + late * 24 - returns.mean**2))


def test_returns_that_are_all_equal_have_a_deviation() -> None:
    returns = RunningReturns()
    returns.add(0.0, 0.0)
    assert returns.deviation == 1.0
    equal = RunningReturns()
    equal.add(5.0, 25.0)
    assert equal.deviation == pytest.approx(0.05)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_other_units_change_no_value(scale: float) -> None:
    head = ValueHead(8)
    torch.nn.init.normal_(head.weight)
    torch.nn.init.normal_(head.bias)
    hidden = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    before, weight = head(hidden), head.weight.detach().clone()
    for unit, shift in ((scale, 3.0 * scale), (0.7 * scale, -scale)):
        head.rescale(unit, shift)
        assert torch.allclose(head(hidden), before, rtol=1e-5, atol=1e-5 * (1 + 3 * scale))
        assert torch.allclose(head.normalized(before) * unit + shift, before, rtol=1e-5, atol=1e-5 * (1 + 3 * scale))
    assert not torch.equal(head.weight, weight)


def test_a_normalised_critic_learns_large_returns(make: Make) -> None:
    """In as many steps of the same size a critic that starts at 0 and is not normalised is far below them."""
    args: dict[str, Any] = {"rewards": hundreds, "max_steps": 6, "num_iterations": 2, "critic_learning_rate": 1e-2}
    plain, normal = make(**args), make(**args, normalize_returns=True)
    for trainer in (plain, normal):
        trainer.train()
    last = [[row for row in logged(t) if "value/mean" in row][-1] for t in (plain, normal)]
    assert abs(last[0]["value/mean"]) < 50 < 500 < last[1]["value/mean"]
    assert last[1]["returns/running_mean"] == pytest.approx(last[1]["returns/mean"], rel=0.2)
    assert last[1]["value/loss"] < 100 < last[0]["value/loss"], "in units of the deviation"
    assert "returns/running_std" not in last[0]


def test_what_reads_a_normalised_critic_sees_values(make: Make, tmp_path: Path) -> None:
    trainer = make(rewards=hundreds, normalize_returns=True)
    trainer.train()
    critic = trainer.critic
    assert critic is not None
    assert critic.head.scale > 2
    trainer.save_model(str(tmp_path / "saved"))
    head = value_head_in(tmp_path / "saved")
    assert head is not None
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    read = torch.nn.functional.linear(hidden, head["weight"], head["bias"]).squeeze(-1)
    assert torch.allclose(read, critic.head(hidden), rtol=1e-5, atol=1e-3)
    said = json.loads((tmp_path / "saved/critic/critic.json").read_text(encoding="utf-8"))
    assert RunningReturns(**said["returns"]).mean == critic.head.shift


def test_a_resumed_run_has_its_units(make: Make, tmp_path: Path) -> None:
    """From the checkpoint after the second of three rollouts: the same weights, units and losses as in one go."""
    args: dict[str, Any] = {
        "rewards": hundreds,
        "normalize_returns": True,
        "critic_iterations": 2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 4,
    }
    whole = make(**args)
    whole.train()
    again = make(out="again", **args)
    again.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-4"))
    assert again.critic is not None
    assert whole.critic is not None
    assert again.critic.returns == whole.critic.returns
    assert (again.critic.head.scale, again.critic.head.shift) == (whole.critic.head.scale, whole.critic.head.shift)
    assert differ(parts(whole)[0], parts(again)[0]) == []
    assert differ(parts(whole)[1], parts(again)[1]) == []
    assert [row["loss"] for row in logged(whole)][4:] == [row["loss"] for row in logged(again)][4:]


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"critic_iterations": 0}, "critic_iterations is 0, expected 1 or more"),
        ({"critic_max_grad_norm": 0.0}, "critic_max_grad_norm is 0.0, expected more than 0"),
        ({"cliprange_value": 0.0}, "cliprange_value is 0.0, expected more than 0"),
        ({"critic_max_grad_norm": 1.0, "max_grad_norm": 0.0}, "max_grad_norm is 0, with which no gradient is clipped"),
        ({"advantage_estimator": "remax", "critic_iterations": 2}, "critic_iterations is set, but remax has no critic"),
        ({"advantage_estimator": "remax", "normalize_returns": True}, "normalize_returns is set, but remax has no"),
        (
            {"critic_iterations": 3, "steps_per_generation": 3, "gradient_accumulation_steps": 2},
            "an optimizer step ends within a pass: steps_per_generation is 3, gradient_accumulation_steps 2",
        ),
        ({"critic_iterations": 3, "generation_batch_size": 24, "gradient_accumulation_steps": 2}, "within a pass"),
    ],
)
def test_what_the_critic_cannot_be_set_to(args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PPOConfig("ppo", bf16=False, per_device_train_batch_size=8, **args)


@pytest.mark.parametrize(
    ("engine", "args", "refused"),
    [
        ("deepspeed", {"critic_iterations": 8}, True),
        ("deepspeed", {"critic_iterations": 4}, False),
        ("deepspeed", {"critic_max_grad_norm": 1.0}, True),
        ("deepspeed", {"normalize_returns": True}, True),
        ("fsdp", {"normalize_returns": True}, True),
        ("fsdp", {"critic_iterations": 8, "critic_max_grad_norm": 1.0}, False),
        ("", {"critic_iterations": 8, "critic_max_grad_norm": 1.0, "normalize_returns": True}, False),
    ],
)
def test_what_an_engine_cannot_do_with_it(engine: str, args: dict[str, Any], refused: bool) -> None:
    config = PPOConfig("ppo", bf16=False, **args)
    found = list(rules.engine_concerns(config, is_deepspeed=engine == "deepspeed", is_fsdp=engine == "fsdp"))
    assert [issue.field for issue in found] == [f"args.{name}" for name in args] * refused
    assert all("cannot be had under" in issue.message for issue in found)
