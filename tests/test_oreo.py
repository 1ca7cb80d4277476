"""OREO: the losses by hand and at the optimum, the trainer against them, and the value function that it leaves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from posttrain_plugins.errors import InputError
from posttrain_plugins.rewards.value_model import ValueModel
from posttrain_plugins.trainers.oreo import OREOConfig, OREOTrainer, TrajectoryCollator, encode, soft_bellman_losses

PROMPT = [{"role": "user", "content": "3|7>2"}]
RIGHT = "<think>3|7=4;4>2=4</think><answer>4</answer>"
WRONG = "<think>3|7=7;7>2=7</think><answer>7</answer>"
ROWS = [
    {"prompt": PROMPT, "completion": [{"role": "assistant", "content": RIGHT}], "reward": 1.0},
    {"prompt": PROMPT, "completion": [{"role": "assistant", "content": WRONG}], "reward": 0.0},
    {"prompt": PROMPT, "completion": [{"role": "assistant", "content": "<answer>4</answer>"}], "reward": 0.5},
    {
        "prompt": [{"role": "user", "content": "3|7>2" * 12}],
        "completion": [{"role": "assistant", "content": "4"}],
        "reward": 0,
    },
]


# --- the losses ------------------------------------------------------------------------------------------------------

VALUES = [0.2, 0.5, 0.9]
RATIOS = [0.3, -0.2, 0.1]


def losses(starts: list[bool], before: int = 0, behind: int = 0) -> tuple[Any, ...]:
    """Policy and value loss of one trajectory of reward 1 at beta 0.5, and the leaves."""
    pad: Callable[[list[Any], Any], list[Any]] = lambda row, value: [value] * before + row + [value] * behind  # noqa: E731
    ratios = torch.tensor([pad(RATIOS, 7.0)], requires_grad=True)
    values = torch.tensor([pad(VALUES, -3.0)], requires_grad=True)
    mask = torch.tensor([pad([True] * 3, False)])
    policy, value = soft_bellman_losses(
        ratios, values, torch.ones(1), torch.tensor([pad(starts, False)]), mask, beta=0.5
    )
    return policy, value, ratios, values


@pytest.mark.parametrize(("before", "behind"), [(0, 0), (2, 1)])
@pytest.mark.parametrize(
    ("starts", "policy_by_hand", "gradient"),
    [
        # V - R + beta * (all that is to come): 0.2 - 1 + 0.1, 0.5 - 1 - 0.05, 0.9 - 1 + 0.05
        ([True, True, True], (0.49 + 0.3025 + 0.0025) / 3, [-0.7 / 3, -0.55 / 3, -0.05 / 3]),
        ([True, False, True], (0.49 + 0.0025) / 2, [-0.7 / 2, -0.7 / 2, -0.05 / 2]),
        ([True, False, False], 0.49, [-0.7, -0.7, -0.7]),
    ],
    ids=["token", "step", "response"],
)
def test_the_losses_by_hand(
    starts: list[bool], policy_by_hand: float, gradient: list[float], before: int, behind: int
) -> None:
    """Equations 8 to 10; each moves its own network only, and padding is as if it were not there."""
    policy, value, ratios, values = losses(starts, before, behind)
    assert value.item() == pytest.approx((0.49 + 0.3025 + 0.0025) / 3)
    assert policy.item() == pytest.approx(policy_by_hand)
    policy.backward()
    assert values.grad is None
    assert ratios.grad[0, before : before + 3].tolist() == pytest.approx(gradient)  # 2 * beta = 1
    ratios.grad = None
    value.backward()
    assert ratios.grad is None
    expected = [2 * x / 3 for x in (-0.7, -0.55, -0.05)]
    assert values.grad[0, before : before + 3].tolist() == pytest.approx(expected)


def test_both_are_zero_where_policy_and_value_are_optimal() -> None:
    """Theorem 1, on two coin tosses of a fair reference of which one pays, solved backwards by the soft maximum."""
    beta, pays = 0.4, {(1, 1): 1.0, (1, 0): 0.3}
    soft: Callable[[list[float]], float] = lambda q: beta * math.log(sum(math.exp(x / beta) for x in q) / len(q))  # noqa: E731
    second = {a: soft([pays.get((a, b), 0.0) for b in (0, 1)]) for a in (0, 1)}
    first = soft([second[0], second[1]])
    for a, b in itertools.product((0, 1), repeat=2):
        ratios = torch.tensor([[(second[a] - first) / beta, (pays.get((a, b), 0.0) - second[a]) / beta]])
        values, rewards = torch.tensor([[first, second[a]]]), torch.tensor([pays.get((a, b), 0.0)])
        whole = torch.ones(1, 2, dtype=torch.bool)
        for starts in (whole, torch.tensor([[True, False]])):
            policy, value = soft_bellman_losses(ratios, values, rewards, starts, whole, beta)
            assert float(policy) == pytest.approx(0.0, abs=1e-10)
            assert float(value) == pytest.approx(0.0, abs=1e-10)


# --- trajectories ----------------------------------------------------------------------------------------------------


def test_a_trajectory_is_read_as_a_rollout_leaves_it(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(tiny_model)
    row = encode(words, ROWS[0], 0, "step", ";")
    head = words.apply_chat_template(PROMPT, add_generation_prompt=True)["input_ids"]
    first = words("<think>3|7=4;", add_special_tokens=False)["input_ids"]
    whole = words(RIGHT, add_special_tokens=False)["input_ids"]
    assert row["input_ids"] == [*head, *whole, words.eos_token_id]
    assert row["prompt_length"] == len(head)
    assert row["starts"] == [len(head), len(head) + len(first)]
    assert row["reward"] == 1.0
    assert encode(words, ROWS[0], 0, "response", ";")["starts"] == [len(head)]
    assert len(encode(words, ROWS[0], 0, "token", ";")["starts"]) == len(whole) + 1
    plain = {"prompt": "3|7\n", "completion": "4<eos>", "label": True}
    assert encode(words, plain, 0, "token", ";")["input_ids"] == words("3|7\n4<eos>")["input_ids"]
    assert encode(words, plain, 0, "token", ";")["reward"] == 1.0
    tools = {**ROWS[0], "completion": [{"role": "tool", "content": "4"}]}
    with pytest.raises(InputError, match="row 1 has an empty prompt"):
        encode(words, {**plain, "prompt": ""}, 0, "token", ";")
    with pytest.raises(InputError, match="row 3 has a completion of several messages"):
        encode(words, tools, 2, "token", ";")


def test_trajectories_of_different_lengths_share_a_batch() -> None:
    batch = TrajectoryCollator(9)(
        [
            {"input_ids": [1, 2, 3], "prompt_length": 2, "starts": [2], "reward": 1},
            {"input_ids": [4, 5, 6, 7], "prompt_length": 1, "starts": [1, 3], "reward": 0.5},
        ]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9], [4, 5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["completion_mask"].int().tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]
    assert batch["starts"].int().tolist() == [[0, 0, 1, 0], [0, 1, 0, 1]]
    assert batch["rewards"].tolist() == [1.0, 0.5]


# --- the trainer -----------------------------------------------------------------------------------------------------


@pytest.fixture
def build(tiny_model: Path, tmp_path: Path) -> Callable[..., OREOTrainer]:
    def make(rows: Any = ROWS, *, folder: str = "out", is_peft: bool = False, **more: Any) -> OREOTrainer:
        from peft import LoraConfig

        options: dict[str, Any] = {"per_device_train_batch_size": 4, "max_steps": 1, "learning_rate": 1e-3}
        options |= {"bf16": False, "dataloader_pin_memory": False, "report_to": [], "disable_tqdm": True}
        options |= {"logging_steps": 1, "save_strategy": "no", "gradient_checkpointing": False}
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        return OREOTrainer(
            str(tiny_model),
            OREOConfig(str(tmp_path / folder), **{**options, **more}),
            train_dataset=Dataset.from_list(rows),
            peft_config=lora if is_peft else None,
        )

    return make


def logged(trainer: OREOTrainer, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.parametrize("is_peft", [False, True])
def test_the_first_loss_is_known(build: Callable[..., OREOTrainer], is_peft: bool) -> None:
    """The policy is its reference and the values are 0, so every residual is minus the reward."""
    trainer = build(is_peft=is_peft)
    loss = trainer.train().training_loss
    squares = (1.0 + 0.0 + 0.25 + 0.0) / 4
    assert logged(trainer, "policy/loss") == pytest.approx([squares])
    assert logged(trainer, "value/loss") == pytest.approx([squares])
    assert logged(trainer, "kl") == pytest.approx([0.0], abs=1e-6)
    assert loss == pytest.approx(2 * squares, abs=1e-5)


def test_a_batch_is_the_mean_of_its_trajectories(build: Callable[..., OREOTrainer]) -> None:
    """Whatever stands beside it in a batch; with a policy that is not its reference and a value head that is not 0."""
    trainer = build(alpha=0.3, beta=0.4, max_steps=3)
    trainer.train()
    trainer.model.eval()
    rows = [trainer.train_dataset[i] for i in range(4)]

    def loss(some: list[Any]) -> float:
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model, trainer.data_collator(some)))

    assert loss(rows) == pytest.approx(sum(loss([row]) for row in rows) / 4, abs=1e-6)
    assert loss(rows[:1]) != pytest.approx(loss(rows[1:2]), abs=1e-3)


@pytest.mark.parametrize("level", ["token", "step", "response"])
def test_it_learns_what_is_right_and_what_it_is_worth(
    build: Callable[..., OREOTrainer], tmp_path: Path, level: str
) -> None:
    """Likelier than under the reference what was rewarded, less what was not; and what begun ones are worth."""
    trainer = build(
        ROWS[:2],
        level=level,
        step_separator=";",
        max_steps=40,
        beta=0.05,
        learning_rate=1e-4,
        critic_learning_rate=1e-2,
        lr_scheduler_type="constant",
    )
    before = likelihoods(trainer)
    trainer.train()
    right, wrong = (now - then for now, then in zip(likelihoods(trainer), before, strict=True))
    assert right > 1.0
    assert wrong < 0.0
    # worth 1 and 0: of values that are all 0 the loss is 1/2, of the best constant, which tells nothing apart, 1/4
    assert logged(trainer, "value/loss")[0] == pytest.approx(1 / 2)
    assert logged(trainer, "value/loss")[-1] < 1 / 4
    trainer.save_model(str(tmp_path / "model"))
    judge = ValueModel(str(tmp_path / "model"), separator=";")
    begun = judge([PROMPT] * 3, ["", "<think>3|7=4;", "<think>3|7=7;"])
    assert sorted(begun, key=lambda value: value or 0.0) == [begun[2], begun[0], begun[1]]
    assert begun[1] > 1 / 2 > begun[2], "each nearer to its own worth than to the other's"  # type: ignore[operator]


def likelihoods(trainer: OREOTrainer) -> list[float]:
    trainer.model.eval()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    with torch.no_grad():
        logps = trainer.model(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    own = logps.gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1) * batch["completion_mask"][:, 1:]
    return own.sum(1).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("critic", "is_peft"), [("adapter", True), ("shared", False), ("separate", True)])
def test_it_trains_with_every_critic(build: Callable[..., OREOTrainer], critic: str, is_peft: bool) -> None:
    """Checkpointing changes nothing, and each role's parameters move."""
    ends = []
    for checkpointing in (False, True):
        trainer = build(critic=critic, is_peft=is_peft, max_steps=2, gradient_checkpointing=checkpointing, beta=0.3)
        start = {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}
        assert trainer.critic is not None
        owned = [name for name in start if trainer.critic.owns(name)]
        trainer.train()
        end = dict(trainer.model.named_parameters())
        moved = {name for name, value in start.items() if not torch.equal(value, end[name])}
        assert next(name for name in owned if name.endswith("value_head.bias")) in moved
        assert len(moved & set(owned)) > 2 or critic == "shared"
        assert moved - set(owned)
        ends.append({name: end[name].detach().clone() for name in start})
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("is_peft", [False, True])
def test_it_goes_on_from_a_checkpoint_to_the_same_bits(
    build: Callable[..., OREOTrainer], tmp_path: Path, is_peft: bool
) -> None:
    options = {"max_steps": 4, "per_device_train_batch_size": 2, "is_peft": is_peft, "critic_learning_rate": 1e-2}
    whole = build(folder="whole", save_strategy="steps", save_steps=2, **options)
    whole.train()
    later = build(folder="later", **options)
    later.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in later.model.named_parameters())
    assert {group["initial_lr"] for group in later.optimizer.param_groups} == {1e-3, 1e-2}, "the critic has its own"


def test_what_is_too_long_is_left_out_and_counted(build: Callable[..., OREOTrainer]) -> None:
    with pytest.warns(UserWarning, match="1 of 4 rows are left out: no trajectory of the train data set may be longer"):
        trainer = build(max_length=60)
    assert len(trainer.train_dataset) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"level": "word"}, "level is 'word'"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"loss_type": "ipo"}, "OREO does not take loss_type"),
        ({"f_divergence_type": "forward_kl"}, "OREO does not take f_divergence_type=forward_kl"),
        ({"router_aux_loss_coef": 0.1}, "OREO does not take router_aux_loss_coef=0.1"),
        ({"critic": "adapter"}, "the policy trains all parameters"),
        ({"max_length": 4}, "no trajectory of the train data set fits"),
    ],
)
def test_what_cannot_work_is_refused(build: Callable[..., OREOTrainer], args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**args)
