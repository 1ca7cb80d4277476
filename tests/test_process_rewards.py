"""Rewards that judge steps: where their scores go, in PPO and in process-supervised GRPO; and rewards as adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from posttrain_plugins.errors import InputError  # noqa: E402
from posttrain_plugins.rewards.digit_chain_steps import DigitChainSteps  # noqa: E402
from posttrain_plugins.rewards.reward_model import RewardModel  # noqa: E402
from posttrain_plugins.tiny_world.tokenizer import tokenizer  # noqa: E402
from posttrain_plugins.trainers.ppo import process_rewards  # noqa: E402
from posttrain_plugins.trainers.ppo.shared_reward import SharedClassifier  # noqa: E402
from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer  # noqa: E402
from posttrain_plugins.trainers.process_grpo import ProcessGRPOTrainer  # noqa: E402

COMMON: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "max_completion_length": 40,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
}
PROMPT = [{"role": "user", "content": "3|7>2"}]
WRONG = "<think>3|7=7;7>2=7</think><answer>7</answer>"  # the first step is wrong, the second right
RIGHT = "<think>3|7=4;4>2=4</think><answer>4</answer>"


@pytest.fixture
def dataset() -> Any:
    from datasets import Dataset

    return Dataset.from_list([{"prompt": PROMPT}] * 4)


def writes(texts: list[str]) -> Callable[..., Any]:
    """A rollout that writes these texts, whatever the model."""
    words = tokenizer()

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        head = words.apply_chat_template(prompts[0], add_generation_prompt=True)["input_ids"]
        ids = [[*words(text)["input_ids"], words.eos_token_id] for text in texts]
        return {"prompt_ids": [head] * len(prompts), "completion_ids": ids, "logprobs": None}

    return rollout


def ends(text: str) -> list[int]:
    return process_rewards.step_end_tokens(tokenizer(), tokenizer()(text)["input_ids"], ";")


def rollout_of(trainer: Any) -> dict[str, torch.Tensor]:
    trainer.model.train()
    return trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(4)])


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is experimental


def test_where_steps_end() -> None:
    words = tokenizer()
    for text in (RIGHT, "", ";;", "4", "<think>3|7=4;"):
        ids = words(text)["input_ids"]
        found = process_rewards.step_end_tokens(words, [*ids, words.eos_token_id], ";")
        assert [words.decode(ids[: i + 1]) for i in found] == [
            text[:end] for end in process_rewards.step_ends(text, ";")
        ]


def test_ppo_pays_steps_where_they_end(tiny_model: Path, dataset: Any, tmp_path: Path) -> None:
    """Reward-to-go of each token, by hand: no critic, no KL, gamma 1, the steps at half weight, and an outcome of 2."""

    def two(completions: list[Any], **columns: Any) -> list[float]:
        return [2.0] * len(completions)

    args = PPOConfig(
        str(tmp_path),
        advantage_estimator="reinforce_pp",
        whiten_advantages=False,
        kl_coef=0.0,
        process_rewards=["DigitChainSteps"],
        step_separator=";",
        reward_weights=[1.0, 0.5],
        **COMMON,
    )
    trainer = PPOTrainer(
        str(tiny_model), [two, DigitChainSteps()], args, dataset, rollout_func=writes([WRONG, RIGHT] * 2)
    )
    batch = rollout_of(trainer)
    length = len(tokenizer()(WRONG)["input_ids"]) + 1
    first, second = ends(WRONG)
    assert first < second == length - 2
    for row, (one, two_) in {0: (0.0, 0.5), 1: (0.5, 0.5)}.items():
        expected = [2.0 + (one if t <= first else 0.0) + (two_ if t <= second else 0.0) for t in range(length)]
        assert batch["advantages"][row, :length].tolist() == expected
    figures = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert figures["rewards/DigitChainSteps/mean"] == 1.5, "logged is the sum of the steps: 1, 2, 1, 2"
    assert figures["steps/mismatch"] == 0.0
    assert trainer.reward_funcs[1].__class__ is DigitChainSteps


def test_grpo_with_process_supervision(tiny_model: Path, dataset: Any, tmp_path: Path) -> None:
    """DeepSeekMath 4.1.3 by hand: R = [0, 1, 1, 1] in each group of two, mean 3/4, deviation 1/2."""
    from trl import GRPOConfig

    trainer = ProcessGRPOTrainer(
        str(tiny_model),
        [DigitChainSteps()],
        GRPOConfig(str(tmp_path), num_generations=2, **COMMON),
        dataset,
        rollout_func=writes([WRONG, RIGHT] * 2),
        process_rewards=["DigitChainSteps"],
        step_separator=";",
    )
    batch = rollout_of(trainer)
    first, second = ends(WRONG)
    wrong, right = -0.75 / 0.5001, 0.25 / 0.5001
    for row, (one, two) in {0: (wrong, right), 1: (right, right), 2: (wrong, right)}.items():
        found = batch["advantages"][row]
        expected = [(one if t <= first else 0.0) + (two if t <= second else 0.0) for t in range(found.numel())]
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    trainer.train()
    assert trainer.state.global_step == 1


def test_another_aggregation_is_refused(dataset: Any, tmp_path: Path) -> None:
    from trl import GRPOConfig

    args = GRPOConfig(str(tmp_path), num_generations=2, multi_objective_aggregation="normalize_then_sum", **COMMON)
    for given, more in (((args,), {}), ((), {"args": args})):
        with pytest.raises(InputError, match="process_rewards leave no choice"):
            ProcessGRPOTrainer("no/model", [DigitChainSteps()], *given, process_rewards=["DigitChainSteps"], **more)


def test_outcome_and_process_are_added(tiny_model: Path, dataset: Any, tmp_path: Path) -> None:
    """The outcome's part alone is what `trl.GRPOTrainer` itself gives."""
    from trl import GRPOConfig, GRPOTrainer

    def by_place(completions: list[Any], **columns: Any) -> list[float]:
        return [0.0, 1.0, 3.0, 5.0]

    args = GRPOConfig(str(tmp_path), num_generations=2, reward_weights=[1.0, 0.25], **COMMON)
    plain_args = GRPOConfig(str(tmp_path), num_generations=2, **COMMON)
    texts = writes([WRONG, RIGHT] * 2)
    both = ProcessGRPOTrainer(
        str(tiny_model), [by_place, DigitChainSteps()], args, dataset,
        rollout_func=texts, process_rewards=["DigitChainSteps"], step_separator=";",
    )  # fmt: skip
    plain = GRPOTrainer(str(tiny_model), [by_place], plain_args, dataset, rollout_func=texts)
    found, outcome = rollout_of(both)["advantages"], rollout_of(plain)["advantages"]
    last = len(tokenizer()(WRONG)["input_ids"])  # EOS, behind every step
    assert found[:, last].tolist() == pytest.approx(outcome.tolist(), abs=1e-6)
    assert float(found[1, 0] - outcome[1]) == pytest.approx(0.25 * 2 * 0.25 / 0.5001, abs=1e-5)


@pytest.mark.parametrize(
    ("names", "message"),
    [(["prm"], "names no reward: 'prm', expected one of judge"), (["judge"], "it has no step_scores")],
)
def test_a_name_that_cannot_judge_steps(
    tiny_model: Path, dataset: Any, tmp_path: Path, names: list[str], message: str
) -> None:
    def judge(completions: list[Any], **columns: Any) -> list[float]:
        raise AssertionError("nothing may be sampled before the names are checked")

    trainer = PPOTrainer(str(tiny_model), judge, PPOConfig(str(tmp_path), process_rewards=names, **COMMON), dataset)
    with pytest.raises(InputError, match=message):
        trainer.train()


def test_the_wrong_separator_is_told(tiny_model: Path, dataset: Any, tmp_path: Path) -> None:
    args = PPOConfig(str(tmp_path), process_rewards=["DigitChainSteps"], **COMMON)
    trainer = PPOTrainer(str(tiny_model), DigitChainSteps(), args, dataset, rollout_func=writes([WRONG, RIGHT] * 2))
    with pytest.raises(InputError, match="2 for 1") as told:
        rollout_of(trainer)
    assert "step_separator" in str(told.value.hint)


def test_scores_too_many_or_too_few() -> None:
    """What is over is paid at the end, what is missing is nothing; a text without steps earns nothing."""
    assert process_rewards._row([1.0, 2.0, 4.0], [1, 3], 5) == [0.0, 1.0, 0.0, 6.0, 0.0]
    assert process_rewards._row([1.0], [1, 3], 4) == [0.0, 1.0, 0.0, 0.0]
    assert process_rewards._row([1.0], [], 2) == [0.0, 0.0]


# --- a reward model as one more adapter ------------------------------------------------------------------------------


def lora(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **options)


@pytest.fixture
def judge(tiny_model: Path, tmp_path: Path) -> Path:
    """A reward model that is an adapter on the tiny model, with a trained head."""
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(str(tiny_model), num_labels=1, dtype="float32")
    model = get_peft_model(base, lora(task_type="SEQ_CLS", modules_to_save=["score"]))
    torch.nn.init.normal_(model.get_base_model().score.modules_to_save["default"].weight)
    model.save_pretrained(str(tmp_path / "judge"))
    tokenizer().save_pretrained(str(tmp_path / "judge"))
    return tmp_path / "judge"


@pytest.mark.parametrize("as_path", [False, True])
def test_a_reward_adapter_shares_the_base(
    tiny_model: Path, dataset: Any, judge: Path, tmp_path: Path, as_path: bool
) -> None:
    """It gives what the model on its own gives, stays as it is while the others train, and is not saved with them."""
    reward: Any = str(judge) if as_path else RewardModel(str(judge), batch_size=3)
    args = PPOConfig(
        str(tmp_path / "out"), learning_rate=1e-2, **{**COMMON, "max_steps": 4, "gradient_checkpointing": True}
    )
    trainer = PPOTrainer(str(tiny_model), [reward], args, dataset, peft_config=lora(task_type="CAUSAL_LM"))
    (shared,) = trainer.reward_funcs
    assert isinstance(shared.classifier, SharedClassifier)
    assert sorted(trainer.model.peft_config) == ["critic", "default", "reward_0"]
    chats = [[{"role": "assistant", "content": text}] for text in (RIGHT, WRONG, "4", RIGHT[:9])]
    alone = RewardModel(str(judge))([PROMPT] * 4, chats)
    assert shared(prompts=[PROMPT] * 4, completions=chats) == pytest.approx(alone, abs=1e-5)
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if ".reward_0." in n}
    trainer.train()
    assert frozen
    assert all(torch.equal(p, trainer.model.get_parameter(n)) for n, p in frozen.items())
    assert shared(prompts=[PROMPT] * 4, completions=chats) == pytest.approx(alone, abs=1e-5)
    name = "judge" if as_path else "reward_model"
    assert any(f"rewards/{name}/mean" in row for row in trainer.state.log_history)
    trainer.save_model(str(tmp_path / "model"))
    assert sorted(f.name for f in (tmp_path / "model").iterdir() if f.is_dir()) == ["critic"]


def test_another_base_is_not_shared(tiny_model: Path, dataset: Any, judge: Path, tmp_path: Path) -> None:
    """Nor is a reward model shared with a policy that trains the base; a copy of the same bytes is the same base."""
    import shutil

    from safetensors.torch import load_file, save_file

    reward = RewardModel(str(judge))
    args = PPOConfig(str(tmp_path / "out"), **COMMON)
    full = PPOTrainer(str(tiny_model), [reward], args, dataset)
    assert full.reward_funcs == [reward]
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    again = PPOTrainer(str(copy), [reward], args, dataset, peft_config=lora(task_type="CAUSAL_LM"))
    assert isinstance(again.reward_funcs[0].classifier, SharedClassifier)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    other = PPOTrainer(str(copy), [reward], args, dataset, peft_config=lora(task_type="CAUSAL_LM"))
    assert other.reward_funcs == [reward]


def test_an_adapter_without_a_head_is_told(tiny_model: Path, judge: Path, dataset: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = judge / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "score" not in k}, file)
    with pytest.raises(InputError, match="no trained score head"):
        PPOTrainer(
            str(tiny_model),
            [str(judge)],
            PPOConfig(str(tmp_path), **COMMON),
            dataset,
            peft_config=lora(task_type="CAUSAL_LM"),
        )
