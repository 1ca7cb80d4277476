"""PPO on TRL's GRPO: its loss against the definition, its refusals, its estimators, its critic, its checkpoints."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from small_training import SMALL, digits

torch = pytest.importorskip("torch")

from posttrain_plugins.errors import InputError  # noqa: E402
from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer  # noqa: E402

ARGS: dict[str, Any] = SMALL | {"num_iterations": 2}


def lora(rank: int = 4) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="session")
def rows(tiny_data: Path) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(tiny_data / "problems.jsonl"), split="train")


@pytest.fixture
def build(tiny_model: Path, rows: Any, tmp_path: Path) -> Callable[..., PPOTrainer]:
    """A trainer on the tiny model; keywords of `PPOConfig` override `ARGS`, those below are the trainer's."""

    def make(
        model: Any = None, rewards: Any = digits, peft_config: Any = None, critic_config: Any = None, **args: Any
    ) -> PPOTrainer:
        return PPOTrainer(
            model=str(tiny_model) if model is None else model,
            reward_funcs=rewards,
            args=PPOConfig(str(tmp_path / "out"), **{**ARGS, **args}),
            train_dataset=rows,
            peft_config=peft_config,
            critic_config=critic_config,
        )

    return make


def history(trainer: PPOTrainer) -> list[dict[str, Any]]:
    return [row for row in trainer.state.log_history if "loss" in row]


def weights(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def rollout(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    trainer.model.train()
    batch = [trainer.train_dataset[i] for i in range(8)]
    return trainer._generate_and_score_completions(batch)


# --- the whole, against its definition -------------------------------------------------------------------------------


def log_probs(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B, T), by the plain model's logits."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    chosen = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return chosen[:, -batch["completion_ids"].size(1) :]


def by_definition(
    mask: torch.Tensor,
    scores: list[float],
    old: torch.Tensor,
    ref: torch.Tensor,
    new: torch.Tensor,
    values: torch.Tensor,
    old_values: torch.Tensor,
) -> float:
    """PPO's loss in plain loops: KL .05, gamma 1, lambda .95, clips .2, vf_coef .1, means over tokens."""
    rows = [[t for t in range(mask.size(1)) if mask[b, t]] for b in range(mask.size(0))]
    found: dict[tuple[int, int], float] = {}
    for b, tokens in enumerate(rows):
        following = carried = 0.0
        for t in reversed(tokens):
            reward = -0.05 * float(old[b, t] - ref[b, t]) + (scores[b] if t == tokens[-1] else 0.0)
            carried = reward + following - float(old_values[b, t]) + 0.95 * carried
            following = float(old_values[b, t])
            found[b, t] = carried
    mean = sum(found.values()) / len(found)
    spread = math.sqrt(sum((a - mean) ** 2 for a in found.values()) / (len(found) - 1) + 1e-8)
    policy = critic = 0.0
    for (b, t), advantage in found.items():
        ratio = math.exp(float(new[b, t] - old[b, t]))
        white = (advantage - mean) / spread
        policy += max(-white * ratio, -white * min(max(ratio, 0.8), 1.2))
        value, before, target = float(values[b, t]), float(old_values[b, t]), advantage + float(old_values[b, t])
        near = min(max(value, before - 0.2), before + 0.2)
        critic += 0.5 * max((value - target) ** 2, (near - target) ** 2)
    return (policy + 0.1 * critic) / len(found)


@pytest.mark.parametrize("kind", ["adapter", "shared", "separate"])
def test_the_whole_loss(build: Callable[..., PPOTrainer], kind: str) -> None:
    """From sampled tokens to the loss, of a policy and a critic that have moved since: at most 1e-6 apart."""
    trainer = build(peft_config=lora(), critic=kind)
    assert trainer.critic is not None
    torch.manual_seed(0)
    for parameter in (*trainer.critic.parameters, *(p for p in trainer.model.parameters() if p.requires_grad)):
        torch.nn.init.normal_(parameter, std=0.05)
    batch = rollout(trainer)
    model = trainer.model
    with torch.no_grad():
        old = log_probs(model, batch)
        with model.disable_adapter():
            ref = log_probs(model, batch)
        trainer.critic.unfreeze()
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.05)
        new = log_probs(model, batch)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        values = model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True, with_values=True)
        state_values = values.state_values[:, -old.size(1) :]
    texts = trainer.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    scores = [sum(x.isdigit() for x in text) / 8 for text in texts]
    expected = by_definition(batch["completion_mask"], scores, old, ref, new, state_values, batch["old_values"])
    ratios = (new - old).exp()[batch["completion_mask"].bool()]
    assert ((ratios < 0.8) | (ratios > 1.2)).any(), "nothing is clipped"
    assert float(batch["old_values"].abs().max()) > 1e-3, "a thousand times what is told apart below"
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(model, batch)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)


def test_the_values_of_a_rollout_are_the_critics(build: Callable[..., PPOTrainer]) -> None:
    """Taken from the pass that GRPO makes for the old log-probabilities, in pieces; the same as in one."""
    trainer = build(peft_config=lora(), per_device_train_batch_size=2, steps_per_generation=4)
    assert trainer.critic is not None
    torch.nn.init.normal_(trainer.critic.head.weight)
    batch = rollout(trainer)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        whole = trainer.model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True, with_values=True)
    expected = whole.state_values[:, -batch["completion_ids"].size(1) :] * batch["completion_mask"]
    assert torch.allclose(batch["old_values"], expected, atol=1e-6)


def test_one_pass_of_the_wrapped_model_per_loss(build: Callable[..., PPOTrainer]) -> None:
    """Two would make DDP fail ("mark a variable ready only once")."""
    trainer = build(peft_config=lora())
    batch = rollout(trainer)
    calls = []

    def wrapped(**inputs: Any) -> Any:
        calls.append(inputs)
        return trainer.model(**inputs)

    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(wrapped, batch).backward()
    assert len(calls) == 1
    assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)


# --- training --------------------------------------------------------------------------------------------------------

FIGURES = (
    "reward",
    "kl",
    "kl/coef",
    "kl/completion",
    "value/mean",
    "value/explained_variance",
    "returns/mean",
    "advantages/std",
    "completions/mean_length",
)
PER_STEP = ("value/loss", "value/clip_ratio", "clip_ratio/region_mean", "entropy", "ratio/mean", "ratio/approx_kl")


@pytest.mark.parametrize(
    ("kind", "is_peft"), [(None, True), (None, False), ("shared", True), ("shared", False), ("separate", True)]
)
def test_it_trains_with_every_critic(build: Callable[..., PPOTrainer], kind: Any, is_peft: bool) -> None:
    """Policy and critic both move, the base of an adapter does not, and every figure is logged and finite."""
    trainer = build(peft_config=lora() if is_peft else None, critic=kind, max_steps=4)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    assert trainer.critic is not None
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(trainer.critic.owns(name) for name in moved)
    assert any(not trainer.critic.owns(name) for name in moved)
    if is_peft:
        assert all("lora" in n or trainer.critic.owns(n) for n in moved)
    first, second = history(trainer)[:2]
    assert all(math.isfinite(first[name]) for name in (*FIGURES, *PER_STEP))
    assert "frac_reward_zero_std" not in first
    assert first["ratio/mean"] == pytest.approx(1.0, abs=1e-4)
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert second["ratio/approx_kl"] > 0
    assert set(PER_STEP) <= set(second)


@pytest.mark.parametrize(
    ("estimator", "size"),
    [("gae", 1), ("gae", 4), ("reinforce", 1), ("reinforce_pp", 1), ("remax", 1), ("reinforce_pp_baseline", 2)],
)
def test_every_estimator(build: Callable[..., PPOTrainer], estimator: str, size: int) -> None:
    """Each moves the policy, with one completion per prompt or with several."""
    trainer = build(advantage_estimator=estimator, num_generations=size, max_steps=4)
    prompts = []
    trainer.train_dataset = trainer.train_dataset.select(range(16))
    before = weights(trainer)
    original = trainer._calculate_rewards

    def watched(inputs: Any, *rest: Any) -> Any:
        prompts.append([row["prompt"][-1]["content"] for row in inputs])
        return original(inputs, *rest)

    trainer._calculate_rewards = watched
    trainer.train()
    assert (trainer.critic is None) == (estimator != "gae")
    assert all(len(set(batch)) == 8 // size for batch in prompts)
    assert any(not torch.equal(before[name], p) for name, p in weights(trainer).items())
    assert ("greedy/score" in history(trainer)[0]) == (estimator == "remax")
    assert "returns/mean" in history(trainer)[0]


@pytest.mark.parametrize("estimator", ["reinforce", "reinforce_pp", "remax", "reinforce_pp_baseline"])
def test_an_estimator_by_definition(build: Callable[..., PPOTrainer], estimator: str) -> None:
    """Scores on known completions; gamma 1 and no KL, so that every token of a row has the same advantage."""
    size = 2 if estimator == "reinforce_pp_baseline" else 1
    trainer = build(advantage_estimator=estimator, num_generations=size, kl_coef=0.0)
    batch = rollout(trainer)
    mask = batch["completion_mask"].bool()
    texts = trainer.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    scores = [sum(x.isdigit() for x in text) / 8 for text in texts]
    if estimator == "reinforce":
        raw = [s - sum(scores) / 8 for s in scores]
    elif estimator == "reinforce_pp":
        raw = scores
    elif estimator == "remax":
        raw = [s - g for s, g in zip(scores, greedy_scores(trainer, batch), strict=True)]
    else:
        raw = [s - (scores[i - i % 2] + scores[i - i % 2 + 1]) / 2 for i, s in enumerate(scores)]
    expected = torch.tensor(raw).unsqueeze(1).expand_as(mask)[mask]
    if estimator.startswith("reinforce_pp"):
        expected = (expected - expected.mean()) / expected.std()
    assert len(set(scores)) > 1
    assert torch.allclose(batch["advantages"][mask], expected, atol=1e-4)
    assert not batch["advantages"][~mask].any()


def test_the_running_baseline_by_hand() -> None:
    """The first batch has its own mean; then 0.75 of what was and 0.25 of each batch, before that batch counts."""
    from types import SimpleNamespace

    from posttrain_plugins.trainers.ppo import rollout as module

    args = SimpleNamespace(baseline="running", baseline_decay=0.75)
    trainer = SimpleNamespace(args=args, mean_return=None, model=SimpleNamespace(training=True))
    assert [module._mean_return(trainer, mean) for mean in (8.0, 4.0, 0.0, 1.0)] == [8.0, 8.0, 7.0, 5.25]
    trainer.model.training = False
    assert [module._mean_return(trainer, 100.0) for _ in range(2)] == [4.1875, 4.1875], "an evaluation teaches nothing"
    args.baseline = "batch"
    assert module._mean_return(trainer, 100.0) == 100.0


def greedy_scores(trainer: PPOTrainer, batch: dict[str, torch.Tensor]) -> list[float]:
    found = trainer.model.generate(
        input_ids=batch["prompt_ids"],
        attention_mask=batch["prompt_mask"],
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=trainer.processing_class.pad_token_id,
    )
    tail = found[:, batch["prompt_ids"].size(1) :]
    texts = trainer.processing_class.batch_decode(tail, skip_special_tokens=True)
    return [sum(x.isdigit() for x in text) / 8 for text in texts]


def test_the_greedy_baseline_leaves_no_trace(build: Callable[..., PPOTrainer]) -> None:
    """Neither in what is sampled nor in lengths and token counts: those are the sampled completions' own."""
    runs = [build(advantage_estimator=name, kl_coef=0.0, num_iterations=1) for name in ("remax", "reinforce")]
    batches = []
    for trainer in runs:
        torch.manual_seed(0)
        batches.append(rollout(trainer))
    assert torch.equal(*(batch["completion_ids"] for batch in batches))
    counted = [{k: v for k, v in t._metrics["train"].items() if "/" in k and "comp" in k} for t in runs]
    assert counted[0] == counted[1]
    assert runs[0].state.num_input_tokens_seen == runs[1].state.num_input_tokens_seen > 0


def test_it_learns(build: Callable[..., PPOTrainer]) -> None:
    trainer = build(
        max_steps=24, learning_rate=1e-2, kl_coef=0.0, per_device_train_batch_size=16, lr_scheduler_type="constant"
    )
    trainer.train()
    rewards = [row["reward"] for row in history(trainer) if "reward" in row]
    # 48 completions each, whose share of digits deviates by 0.15: five standard errors of the difference
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 5 * 0.15 * math.sqrt(2 / 48)
    values = [row["value/mean"] for row in history(trainer) if "value/mean" in row]
    assert abs(values[-1] - rewards[-1]) < abs(values[0] - rewards[0])


def test_the_adaptive_coefficient(build: Callable[..., PPOTrainer]) -> None:
    """KL is far below a high target, so the coefficient falls, by 20 % of 8 / 40 completions each rollout."""
    trainer = build(kl_target=50.0, kl_horizon=40.0, kl_coef=0.1, max_steps=6)
    trainer.train()
    coefs = [row["kl/coef"] for row in history(trainer) if "kl/coef" in row]
    assert coefs == pytest.approx([0.1, 0.1 * 0.96, 0.1 * 0.96**2])


def test_warm_up_moves_only_the_critic(build: Callable[..., PPOTrainer]) -> None:
    """Not even weight decay moves the policy; after it, it moves."""
    trainer = build(critic_warmup_steps=2, max_steps=2, weight_decay=0.1)
    before = weights(trainer)
    trainer.train()
    assert trainer.critic is not None
    moved = {name for name, p in weights(trainer).items() if not torch.equal(before[name], p)}
    assert moved
    assert all(trainer.critic.owns(name) for name in moved)
    longer = build(critic_warmup_steps=2, max_steps=3, weight_decay=0.1)
    longer.train()
    assert any(not torch.equal(before[n], p) for n, p in weights(longer).items() if not trainer.critic.owns(n))


def test_the_critics_own_learning_rate(build: Callable[..., PPOTrainer]) -> None:
    trainer = build(peft_config=lora(), critic_learning_rate=5e-3)
    groups = trainer.create_optimizer().param_groups
    assert trainer.critic is not None
    own = {id(p) for p in trainer.critic.parameters}
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {rates[i] for i in own} == {5e-3}
    assert {rate for i, rate in rates.items() if i not in own} == {1e-3}
    assert set(rates) == {id(p) for p in trainer.model.parameters() if p.requires_grad}


def test_scores_are_clipped_and_a_missing_eos_costs(build: Callable[..., PPOTrainer]) -> None:
    """The tiny model rarely writes EOS within 8 tokens; who does pays nothing."""

    def large(completions: list[Any], **columns: Any) -> list[float]:
        return [9.0] * len(completions)

    trainer = build(
        rewards=large, advantage_estimator="reinforce", score_clip=2.0, missing_eos_penalty=0.5, kl_coef=0.0
    )
    batch = rollout(trainer)
    last = [int(row.sum()) - 1 for row in batch["completion_mask"]]
    ended = [int(batch["completion_ids"][i, t]) in trainer.eos_token_ids for i, t in enumerate(last)]
    expected = [2.0 if e else 1.5 for e in ended]
    mean = sum(expected) / 8
    assert [float(batch["advantages"][i, 0]) for i in range(8)] == pytest.approx([e - mean for e in expected], abs=1e-6)


def test_what_no_reward_can_judge_teaches_nothing(build: Callable[..., PPOTrainer]) -> None:
    def half(completions: list[Any], **columns: Any) -> list[float | None]:
        return [None if i % 2 else float(i) for i in range(len(completions))]

    batch = rollout(build(rewards=half))
    assert not batch["advantages"][1::2].any()
    assert not batch["value_mask"][1::2].any()
    assert batch["advantages"][::2].any()


def test_rewards_are_mixed_by_weight(build: Callable[..., PPOTrainer]) -> None:
    def one(completions: list[Any], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    async def two(completions: list[Any], **columns: Any) -> list[float]:
        return [float(i) for i in range(len(completions))]

    options = {"advantage_estimator": "reinforce", "kl_coef": 0.0, "reward_weights": [3.0, 0.5]}
    batch = rollout(build(rewards=[one, two], **options))
    found = [float(row[0]) for row in batch["advantages"]]
    assert found == pytest.approx([0.5 * i - 1.75 for i in range(8)], abs=1e-6)


def test_it_trains_a_4bit_model(tiny_model: Path, rows: Any, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    from posttrain_plugins.models.quantization import keep_packed_weights_exact

    keep_packed_weights_exact()
    trainer = PPOTrainer(
        model=str(tiny_model),
        reward_funcs=digits,
        args=PPOConfig(str(tmp_path / "out"), **{**ARGS, "gradient_checkpointing": True}),
        train_dataset=rows,
        peft_config=lora(),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
    )
    assert trainer.critic is not None
    adapters = [p for n, p in trainer.model.named_parameters() if "lora" in n]
    assert {p.dtype for p in adapters} == {torch.bfloat16}
    before = weights(trainer)
    trainer.train()
    moved = [n for n, p in weights(trainer).items() if not torch.equal(before[n], p)]
    assert any(".critic." in name for name in moved)
    assert any(".default." in name for name in moved)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"advantage_estimator": "gea"}, "expected gae, reinforce"),
        ({"kl_estimator": "k2"}, "expected k1 or k3"),
        ({"critic": "joint"}, "expected adapter, shared, separate or None"),
        ({"loss_type": "vespo"}, "loss_type is 'vespo'"),
        ({"baseline": "mean"}, "expected batch or running"),
        ({"beta": 0.1}, "set kl_coef instead"),
        ({"scale_rewards": "batch"}, "whiten_rewards and whiten_advantages scale here"),
        ({"scale_rewards": False}, "scale_rewards is False"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "by their weights"),
        ({"use_bias_correction_kl": False}, "kl_estimator says how"),
        ({"kl_coef": -0.1}, "kl_coef is -0.1, expected 0 or more"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "set kl_coef to where it should start"),
        ({"kl_target": 0.0}, "expected more than 0"),
        ({"gamma": 1.5}, "gamma is 1.5, expected 0 to 1"),
        ({"lam": -1.0}, "expected 0 to 1"),
        ({"cliprange_value": 0.0}, "expected more than 0"),
        ({"score_clip": -1.0}, "expected more than 0"),
        ({"missing_eos_penalty": -1.0}, "expected 0 or more"),
        ({"step_separator": ""}, "expected some characters"),
        ({"advantage_estimator": "reinforce_pp_baseline"}, "num_generations is 1"),
        ({"advantage_estimator": "remax", "critic": "shared"}, "remax has no critic"),
        ({"advantage_estimator": "reinforce", "critic_warmup_steps": 3}, "reinforce has no critic"),
        ({"per_device_train_batch_size": 1}, "a rollout has one completion"),
    ],
)
def test_a_config_that_cannot_work(tmp_path: Path, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PPOConfig(str(tmp_path), **{**ARGS, **args})


def test_the_tables_have_every_choice() -> None:
    """The docstrings where the choices are explained, a row each."""
    from posttrain_plugins.trainers.ppo import advantages, critic, rules

    for module, choices in ((advantages, rules.Estimator), (critic, rules.CriticKind)):
        rows = re.findall(r"^\| `(\w+)`", str(module.__doc__), re.M)
        assert tuple(rows) == get_args(choices)


def test_grpos_defaults_are_not_refused(tmp_path: Path) -> None:
    from trl import GRPOConfig

    from posttrain_plugins.trainers.ppo import rules

    for name, (allowed, *_) in rules.UNUSED_OF_GRPO.items():
        assert GRPOConfig.__dataclass_fields__[name].default in allowed
    PPOConfig(str(tmp_path), **{**ARGS, "scale_rewards": True})


@pytest.mark.parametrize("name", PPOConfig.renamed)
def test_names_of_trl_1_12_say_where_they_went(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as told:
        PPOConfig(str(tmp_path), **{**ARGS, name: 1})
    assert f"no '{name}'" in told.value.message
    assert PPOConfig.renamed[name] in str(told.value.hint)


def test_the_renamed_names_are_no_fields_and_lead_to_fields() -> None:
    fields = PPOConfig.__dataclass_fields__
    assert not PPOConfig.renamed.keys() & fields.keys()
    plain = {new for new in PPOConfig.renamed.values() if new.isidentifier()}
    assert plain <= fields.keys()


def test_the_defaults_are_trl_1_12s(tmp_path: Path) -> None:
    args = PPOConfig(str(tmp_path), bf16=False)
    names = ("learning_rate", "num_iterations", "epsilon", "kl_coef", "kl_estimator", "vf_coef", "cliprange_value")
    assert [getattr(args, name) for name in names] == [3e-6, 4, 0.2, 0.05, "k1", 0.1, 0.2]
    assert (args.gamma, args.lam, args.whiten_rewards, args.missing_eos_penalty) == (1.0, 0.95, False, None)
    assert (args.num_generations, args.beta, args.whitens, args.has_critic) == (1, 0.05, True, True)


def test_a_group_still_needs_to_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="divisible by num_generations"):
        PPOConfig(str(tmp_path), **{**ARGS, "num_generations": 3})


def test_a_kl_without_a_reference_is_refused(tiny_model: Path, build: Callable[..., PPOTrainer]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(str(tiny_model))
    made = AutoModelForCausalLM.from_config(config)
    made.config._name_or_path = ""
    with pytest.raises(InputError, match="built in memory has no reference"):
        build(model=made)
    changed = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype="float32")
    changed.lm_head.weight.data.add_(0.1)
    with pytest.raises(InputError, match="has other weights"):
        build(model=changed)
    same = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype="float32")
    assert build(model=same).ref_model is not None


@pytest.mark.parametrize(
    ("is_deepspeed", "decay", "refused"), [(True, 0.1, True), (True, 0.0, False), (False, 0.1, False)]
)
def test_warm_up_under_deepspeed(is_deepspeed: bool, decay: float, refused: bool) -> None:
    """There the step is taken before the policy's zero gradients can be taken out."""
    from posttrain_plugins.trainers.ppo import rules

    args = PPOConfig("ppo", bf16=False, critic_warmup_steps=2, weight_decay=decay)
    found = list(rules.engine_concerns(args, is_deepspeed=is_deepspeed, is_fsdp=False))
    assert [issue.message for issue in found] == [
        "critic_warmup_steps under DeepSpeed: weight_decay is 0.1 and moves the policy"
    ] * refused


def test_no_kl_loads_no_reference(build: Callable[..., PPOTrainer]) -> None:
    trainer = build(kl_coef=0.0)
    assert trainer.ref_model is None
    trainer.train()
    assert "kl" not in history(trainer)[0]
    assert any(p.grad is not None or p.requires_grad for p in trainer.critic.parameters)  # type: ignore[union-attr]


def test_an_adapter_that_comes_with_the_model_is_its_own_reference(
    tiny_model: Path, build: Callable[..., PPOTrainer]
) -> None:
    """The KL starts at 0 although the adapter is far from the base; the critic's adapter starts anew beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype="float32")
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = build(model=get_peft_model(base, config), max_steps=4)
    trainer.train()
    first, *_, last = [row for row in history(trainer) if "kl" in row]
    assert first["kl"] == pytest.approx(0.0, abs=1e-6)
    assert last["kl"] != 0.0
    assert sorted(trainer.model.peft_config) == ["critic", "default", "ref"]


def test_a_greedy_answer_needs_no_second_environment(tiny_model: Path, rows: Any, tmp_path: Path) -> None:
    args = PPOConfig(str(tmp_path), **{**ARGS, "advantage_estimator": "remax"})
    with pytest.raises(InputError, match="an environment has no place"):
        PPOTrainer(str(tiny_model), digits, args, rows, environment_factory=object)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_accumulated_gradients_are_the_whole_batchs(
    build: Callable[..., PPOTrainer], monkeypatch: pytest.MonkeyPatch, accumulation: int
) -> None:
    """Policy and value loss of rows of one length: in pieces they move every weight as in one."""
    found = []
    for pieces in (1, accumulation):
        trainer = build(
            kl_coef=0.0,
            max_steps=1,
            num_iterations=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            per_device_train_batch_size=8 // pieces,
            gradient_accumulation_steps=pieces,
            generation_kwargs={"min_new_tokens": 8},
        )
        trainer.train()
        assert history(trainer)[0]["completions/min_length"] == 8
        found.append(weights(trainer))
    one, several = found
    start = weights(build(kl_coef=0.0))
    moved = [n for n in one if not torch.equal(one[n], start[n])]
    assert any("value_head" in name for name in moved)
    assert any("layers" in name for name in moved)
    assert all(torch.allclose(one[name], several[name], atol=1e-6) for name in one)


def test_a_critic_config_without_a_critic(build: Callable[..., PPOTrainer]) -> None:
    with pytest.raises(InputError, match="remax has no critic"):
        build(advantage_estimator="remax", critic_config=lora(2))
    with pytest.raises(InputError, match="the policy trains all parameters"):
        build(critic="adapter")


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "is_peft", "has_config", "args"),
    [
        ("adapter", True, False, {"kl_target": 0.01, "kl_horizon": 20.0}),
        pytest.param(
            "adapter", True, True, {"critic_learning_rate": 5e-3, "critic_warmup_steps": 3}, marks=pytest.mark.slow
        ),
        pytest.param("shared", False, False, {}, marks=pytest.mark.slow),
        pytest.param("separate", False, False, {"kl_target": 0.01, "kl_horizon": 20.0}, marks=pytest.mark.slow),
        pytest.param("separate", False, True, {}, marks=pytest.mark.slow),
        pytest.param("separate", True, False, {}, marks=pytest.mark.slow),
        pytest.param(
            None, False, False, {"advantage_estimator": "reinforce", "baseline": "running"}, marks=pytest.mark.slow
        ),
    ],
)
def test_it_goes_on_from_a_checkpoint(
    build: Callable[..., PPOTrainer], tmp_path: Path, kind: Any, is_peft: bool, has_config: bool, args: dict[str, Any]
) -> None:
    """A fresh trainer, from the generation boundary at step 4 of 8, ends with the very same weights, bit for bit."""
    options = {"peft_config": lora() if is_peft else None, "critic_config": lora(2) if has_config else None}
    options |= {**args, "critic": kind, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = build(**options)
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-4"
    assert (checkpoint / "critic/critic.json").is_file() == (whole.critic is not None)
    again = build(**options)
    torch.manual_seed(99)
    again.train(resume_from_checkpoint=str(checkpoint))
    left, right = weights(whole), weights(again)
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    timeless = [{k: v for k, v in row.items() if k != "step_time"} for row in history(whole)]
    assert [{k: v for k, v in row.items() if k != "step_time"} for row in history(again)] == timeless
    assert (again.kl_coef, again.mean_return) == (whole.kl_coef, whole.mean_return)
    state = json.loads((checkpoint / "ppo_state.json").read_text(encoding="utf-8"))
    assert (state["mean_return"] is None) == ("baseline" not in args)
    assert (state["kl_coef"] == 0.05) == ("kl_target" not in args)


def test_a_checkpoint_within_a_rollout_is_warned_of(build: Callable[..., PPOTrainer], tmp_path: Path) -> None:
    """Its second step is taken on another rollout than the first was."""
    options = {"kl_coef": 0.0, "save_strategy": "steps", "save_steps": 1}
    build(**options, max_steps=1).train()
    with pytest.warns(UserWarning, match="within a rollout.*\n\nhint: set save_steps to a multiple of 2"):
        build(**options, max_steps=2).train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-1"))


def test_the_policys_files_hold_only_the_policy(build: Callable[..., PPOTrainer], tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    trainer = build(critic="separate")
    trainer.save_model(str(tmp_path / "model"))
    names = load_file(tmp_path / "model/model.safetensors")
    assert not [name for name in names if "critic" in name or "value" in name]
    loaded = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"), dtype="float32")
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded(ids).logits, trainer.model(ids).logits)
    assert sorted(f.name for f in (tmp_path / "model/critic").iterdir()) == [
        "config.json",
        "critic.json",
        "model.safetensors",
        "value_head.safetensors",
    ]
    head = load_file(tmp_path / "model/critic/value_head.safetensors")
    assert {name: tuple(t.shape) for name, t in head.items()} == {"weight": (1, 32), "bias": (1,)}
