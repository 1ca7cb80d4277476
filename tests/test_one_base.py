"""GRPO and RLOO with reward models that are adapters on the policy's base: the same scores, the base once in memory."""

from __future__ import annotations

import gc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_training import SMALL

torch = pytest.importorskip("torch")

from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer  # noqa: E402

import posttrain_plugins as pp  # noqa: E402
from posttrain_plugins.backends.transformers.classifier import Classifier  # noqa: E402
from posttrain_plugins.models.folder import copy_below  # noqa: E402
from posttrain_plugins.models.load import load_adapted, load_base  # noqa: E402
from posttrain_plugins.models.stack import attach_frozen  # noqa: E402
from posttrain_plugins.rewards.reward_model import RewardModel  # noqa: E402
from posttrain_plugins.tiny_world.tokenizer import tokenizer  # noqa: E402
from posttrain_plugins.trainers.one_base import ON_ONE_BASE, on_one_base  # noqa: E402
from posttrain_plugins.trainers.ppo.shared_reward import SharedClassifier, WithSharedRewards  # noqa: E402
from posttrain_plugins.types import ResolvedReward  # noqa: E402

ARGS: dict[str, Any] = SMALL | {
    "num_generations": 4,
    "learning_rate": 0.1,
    "optim": "sgd",  # Adam's first step is the sign of a gradient, also of one that is 0 but for rounding
    "beta": 0.05,
}
CONFIGS: dict[Any, Any] = {GRPOTrainer: GRPOConfig, RLOOTrainer: RLOOConfig}


def lora(rank: int = 4, task_type: str = "CAUSAL_LM", **options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, target_modules="all-linear", task_type=task_type, init_lora_weights=False, **options)


@pytest.fixture(scope="module")
def rows(tiny_data: Path) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(tiny_data / "problems.jsonl"), split="train")


@pytest.fixture(scope="module")
def sft(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("sft")
    torch.manual_seed(5)
    get_peft_model(AutoModelForCausalLM.from_pretrained(str(tiny_model)), lora()).save_pretrained(str(folder))
    tokenizer().save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def judge(tiny_model: Path, sft: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model as the stage `reward` leaves it: an adapter stacked on SFT's, with a head."""
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    folder = tmp_path_factory.mktemp("judge")
    base = AutoModelForSequenceClassification.from_pretrained(str(tiny_model), num_labels=1)
    torch.manual_seed(7)
    own = {"modules_to_save": ["score"], "exclude_modules": ["score"]}
    model = get_peft_model(attach_frozen(base, [sft]), lora(2, "SEQ_CLS", **own))
    torch.nn.init.normal_(model.get_base_model().score.modules_to_save["default"].weight)
    model.save_pretrained(str(folder))
    tokenizer().save_pretrained(str(folder))
    copy_below([sft], folder)
    return folder


def start(sft: Path, goes_on_by: str) -> tuple[Any, dict[str, Any]]:
    if goes_on_by == "continue":
        return load_adapted(sft, is_trainable=True, dtype="float32"), {}
    return load_base(sft, with_newest=True, dtype="float32"), {"peft_config": lora()}


def alone(judge: Path) -> RewardModel:
    return RewardModel(str(judge), dtype="float32", device="cpu")


def trained(trainer_class: Any, theirs: Any, sft: Path, judge: Path, rows: Any, out: Path, mode: str) -> Any:
    torch.manual_seed(11)
    model, options = start(sft, mode)
    reward = alone(judge)
    assert reward.classifier.model is not None  # loaded here: what it draws for its head is no number of a rollout's
    trainer = trainer_class(model, [reward], CONFIGS[theirs](str(out), **ARGS), rows, **options)
    trainer.train()
    return trainer


def bases_alive(size: int) -> int:
    """How many whole bases stand in memory, by their embedding."""
    gc.collect()
    found = [x for x in gc.get_objects() if issubclass(type(x), torch.nn.Parameter)]
    return len({p.data_ptr() for p in found if p.numel() == size})


@pytest.mark.parametrize("mode", ["continue", "stack"])
@pytest.mark.parametrize("theirs", ON_ONE_BASE, ids=lambda one: one.__name__)
def test_training_is_that_of_trl_with_a_reward_model_of_its_own(
    theirs: Any, sft: Path, judge: Path, rows: Any, tmp_path: Path, mode: str
) -> None:
    plain = trained(theirs, theirs, sft, judge, rows, tmp_path / "plain", mode)
    ours = trained(ON_ONE_BASE[theirs], theirs, sft, judge, rows, tmp_path / "ours", mode)
    assert isinstance(ours.reward_funcs[0].classifier, SharedClassifier)
    for name in ("loss", "grad_norm", "reward", "reward_std", "kl"):
        found, expected = ([row[name] for row in one.state.log_history if name in row] for one in (ours, plain))
        assert len(expected) == 2
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), name
    assert len({row["reward"] for row in plain.state.log_history if "reward" in row}) == 2, (
        "rewards do tell texts apart"
    )
    weights = {name: p for name, p in plain.model.named_parameters() if p.requires_grad}
    moved = {name: p for name, p in ours.model.named_parameters() if p.requires_grad}
    assert weights.keys() == moved.keys(), "the policy's adapter alone is trained"
    assert all(torch.allclose(weights[name], moved[name], atol=1e-3) for name in weights)


@pytest.mark.parametrize("theirs", ON_ONE_BASE, ids=lambda one: one.__name__)
def test_the_base_is_once_in_memory_and_the_judge_is_not_saved(
    theirs: Any, sft: Path, judge: Path, rows: Any, tmp_path: Path
) -> None:
    model, _ = start(sft, "continue")
    size = model.get_input_embeddings().weight.numel()
    before = bases_alive(size)
    trainer = ON_ONE_BASE[theirs](model, [alone(judge)], CONFIGS[theirs](str(tmp_path / "out"), **ARGS), rows)
    trainer.train()
    assert bases_alive(size) == before
    own = {name: p for name, p in trainer.model.named_parameters() if ".reward_" in name}
    assert own
    assert not any(p.requires_grad for p in own.values())
    assert all(trainer.is_beside_the_policy(name) for name in own)
    trainer.save_model(str(tmp_path / "model"))
    assert {f.name for f in (tmp_path / "model").iterdir() if f.is_dir()} <= {"ref"}


def test_sharded_weights_are_not_shared(sft: Path, judge: Path) -> None:
    class Theirs:
        def __init__(self, model: Any, rewards: Any, args: Any, dataset: Any) -> None:
            self.model, self.reward_funcs = model, rewards

    class Ours(WithSharedRewards, Theirs):
        pass

    shared = {}
    for fsdp in ("", "full_shard"):
        model, _ = start(sft, "continue")
        trainer = Ours(model, [alone(judge)], SimpleNamespace(fsdp=fsdp), None)
        shared[fsdp] = isinstance(trainer.reward_funcs[0].classifier, SharedClassifier)
        assert bool(trainer.reward_adapters) == shared[fsdp]
    assert shared == {"": True, "full_shard": False}


def test_trls_own_class_stays_where_no_adapter_judges(tiny_model: Path, judge: Path) -> None:
    def of(*rewards: Any) -> Any:
        return on_one_base(GRPOTrainer, [ResolvedReward("it", reward) for reward in rewards])

    assert of(lambda completions, **columns: [0.0] * len(completions)) is GRPOTrainer
    whole = SimpleNamespace(classifier=Classifier(str(tiny_model), "SequenceClassification"))
    assert of(whole) is GRPOTrainer
    assert of(len, alone(judge)) is ON_ONE_BASE[GRPOTrainer]
    assert on_one_base(RLOOTrainer, [ResolvedReward("it", alone(judge))]) is ON_ONE_BASE[RLOOTrainer]


RECIPE = """
name: one-base
model: {model}
adapters: {policy: {use: lora, r: 2}, judge: {use: lora, r: 2}}
datasets:
  pairs: {path: "{data}/pairs.jsonl"}
  problems: {path: "{data}/problems.jsonl"}
  demos: {path: "{data}/demos.jsonl"}
stages:
  sft: {use: sft, model: base, dataset: demos, adapter: policy, args: {args}}
  rm: {use: reward, model: sft, dataset: pairs, adapter: judge, args: {args}}
  grpo: {use: grpo, model: sft, dataset: problems, adapter: policy, rewards: [rm], args: {sampled}}
"""


def test_the_stage_shares_what_the_plan_says(
    tiny_model: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = "{max_steps: 1, per_device_train_batch_size: 4, learning_rate: 1e-2, gradient_checkpointing: false}"
    sampled = args.replace("}", ", num_generations: 4, max_completion_length: 8}")
    given = {"{model}": str(tiny_model), "{data}": str(tiny_data), "{args}": args, "{sampled}": sampled}
    text = RECIPE
    for name, value in given.items():
        text = text.replace(name, value)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    bound: list[tuple[str, ...]] = []
    inner = SharedClassifier.bind

    def bind(self: SharedClassifier, model: Any, number: int) -> None:
        inner(self, model, number)
        bound.append(self.adapters)

    monkeypatch.setattr(SharedClassifier, "bind", bind)
    run = pp.run(tmp_path / "recipe.yaml", runs_dir=tmp_path / "runs")
    assert run.plan["grpo"].starting_point.judges == {"rm": "an adapter on the policy's base"}
    assert bound == [("reward_0_below_0", "reward_0")]
    model = run["grpo"].model_path
    assert model is not None
    assert not list(model.rglob("reward_*"))
