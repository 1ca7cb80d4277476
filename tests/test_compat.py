"""What `trainers/compat.py` expects of TRL, PEFT and transformers; a release that breaks one of these fails here."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import Trainer  # noqa: E402
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, SFTConfig  # noqa: E402

from posttrain_plugins import trainers  # noqa: E402
from posttrain_plugins.checkpoints import generation_period  # noqa: E402
from posttrain_plugins.plugins.registry import import_object  # noqa: E402
from posttrain_plugins.trainers import compat  # noqa: E402
from posttrain_plugins.trainers.ppo.trainer import PPOConfig  # noqa: E402


def lora_model(path: Path) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(path), dtype="float32")
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    return get_peft_model(model, config)


@pytest.fixture
def trainer(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> GRPOTrainer:
    from datasets import load_dataset

    def reward(completions: list[Any], log_metric: Any, log_extra: Any, **columns: Any) -> list[float]:
        log_metric("mine", 1.0)
        log_extra("column", ["x"] * len(completions))
        return [float(i % 2) for i in range(len(completions))]

    rows = load_dataset("json", data_files=str(tiny_data / "problems.jsonl"), split="train")
    options: dict[str, Any] = {"max_completion_length": 4, "num_generations": 2, "per_device_train_batch_size": 4}
    args = GRPOConfig(str(tmp_path), bf16=False, beta=0.1, report_to=[], dataloader_pin_memory=False, **options)
    return GRPOTrainer(str(tiny_model), reward, args, rows)


# --- what our trainers override --------------------------------------------------------------------------------------


def trainer_classes() -> list[type]:
    """Every class below `trainers/` that is one of transformers' trainers."""
    found = []
    for module in pkgutil.walk_packages(trainers.__path__, f"{trainers.__name__}."):
        members = vars(importlib.import_module(module.name)).values()
        found += [c for c in members if isinstance(c, type) and c.__module__ == module.name and issubclass(c, Trainer)]
    return found


def overrides(ours: type) -> Iterator[tuple[str, str, Any]]:
    """What a class of ours, or one that goes before, defines again: the class of theirs, the name, our value."""
    own = [c for c in ours.__mro__ if c.__module__.startswith("posttrain_plugins.")]
    theirs = [c for c in ours.__mro__ if c not in own and c is not object]
    for name, value in {name: v for c in reversed(own) for name, v in vars(c).items()}.items():
        owner = next((c for c in theirs if name in vars(c)), None)
        if owner is not None and not name.startswith("__"):
            yield f"{owner.__module__.split('.')[0]}:{owner.__name__}", name, value


LOSS = ("model", "inputs", "return_outputs", "num_items_in_batch")
DATASET = ("dataset", "processing_class", "args", "dataset_name")
TAKES: dict[str, tuple[str, ...]] = {
    "trl:GRPOTrainer._calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "trl:GRPOTrainer._compute_loss": ("model", "inputs"),
    "trl:GRPOTrainer._generate_and_score_completions": ("inputs",),
    "trl:GRPOTrainer._get_per_token_logps_and_entropies": (
        *("model", "input_ids", "attention_mask", "logits_to_keep"),
        *("batch_size", "compute_entropy", "compute_aux_loss", *compat.FORWARD_EXTRAS),
    ),
    "trl:GRPOTrainer._load_optimizer_and_scheduler": ("checkpoint",),
    "trl:GRPOTrainer._save_checkpoint": ("model", "trial"),
    "trl:DPOTrainer._prepare_dataset": DATASET,
    "trl:DPOTrainer._set_signature_columns_if_needed": (),
    "trl:DPOTrainer.compute_loss": LOSS,
    "trl:RewardTrainer._prepare_dataset": DATASET,
    "trl:RewardTrainer._set_signature_columns_if_needed": (),
    "trl:RewardTrainer.compute_loss": LOSS,
    "trl:RewardTrainer.evaluate": ("eval_dataset", "ignore_keys", "metric_key_prefix"),
    "trl:SFTTrainer.compute_loss": LOSS,
    "trl:SFTTrainer.prediction_step": ("model", "inputs", "prediction_loss_only", "ignore_keys"),
    "trl:SFTTrainer.training_step": ("args", "kwargs"),
    "transformers:Trainer._clip_grad_norm": ("model",),
    "transformers:Trainer._load_best_model": (),
    "transformers:Trainer._load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "transformers:Trainer._save": ("output_dir", "state_dict"),
    "transformers:Trainer.create_optimizer": ("model",),
    "transformers:Trainer.evaluation_loop": (
        *("dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"),
    ),
    "transformers:Trainer.get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "transformers:Trainer.get_eval_dataloader": ("eval_dataset",),
    "transformers:Trainer.get_train_dataloader": (),
    "transformers:Trainer.save_model": ("output_dir", "_internal_call"),
    "transformers:Trainer.train": ("resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
}
"""Method that ours override -> its arguments, `self` aside."""


def test_every_override_has_its_arguments() -> None:
    assert set(TAKES) == {f"{owner}.{name}" for owner, names in compat.OVERRIDDEN.items() for name in names}


@pytest.mark.parametrize("method", TAKES)
def test_an_overridden_method_takes_what_it_took(method: str) -> None:
    owner, _, name = method.rpartition(".")
    assert tuple(inspect.signature(getattr(import_object(owner), name)).parameters)[1:] == TAKES[method]


@pytest.mark.parametrize("ours", trainer_classes(), ids=lambda ours: ours.__name__)
def test_every_override_is_listed(ours: type) -> None:
    listed = {(owner, name) for owner, names in compat.OVERRIDDEN.items() for name in names}
    methods = {(owner, name) for owner, name, value in overrides(ours) if inspect.isfunction(value)}
    assert methods <= listed
    others = {name for _, name, value in overrides(ours) if not inspect.isfunction(value)}
    assert {name for name in others if name.startswith("_")} <= set(compat.CLASS_ATTRIBUTES)


def test_every_listed_method_is_overridden() -> None:
    classes = trainer_classes()
    assert len(classes) >= 7
    used = {(owner, name) for ours in classes for owner, name, value in overrides(ours) if inspect.isfunction(value)}
    assert used == {(owner, name) for owner, names in compat.OVERRIDDEN.items() for name in names}


READ: dict[str, str] = {
    "trl:GRPOTrainer._calculate_rewards": "736ae29b0838",
    "trl:GRPOTrainer._compute_loss": "80295546bbdb",
    "trl:GRPOTrainer._generate_and_score_completions": "1fa48922792d",
    "trl:GRPOTrainer._get_per_token_logps_and_entropies": "ea73c3909275",
    "trl:GRPOTrainer._load_optimizer_and_scheduler": "5c1772becdfd",
    "trl:GRPOTrainer._save_checkpoint": "ec91bde12364",
    "trl:DPOTrainer._prepare_dataset": "35e349e8e826",
    "trl:DPOTrainer._set_signature_columns_if_needed": "71225a628bae",
    "trl:DPOTrainer.compute_loss": "c453890e84be",
    "trl:RewardTrainer._prepare_dataset": "d753a196b9cf",
    "trl:RewardTrainer._set_signature_columns_if_needed": "1e6682d036a6",
    "trl:RewardTrainer.compute_loss": "ec4fad890ecf",
    "trl:RewardTrainer.evaluate": "24bf1ee05995",
    "trl:SFTTrainer.compute_loss": "ca448211ff65",
    "trl:SFTTrainer.prediction_step": "2db888fb0567",
    "trl:SFTTrainer.training_step": "bba41f264647",
}
"""Method of TRL's that ours override -> the start of the hash of its source when it was last read.

A new release that changes one fails here: read what changed, then `python tests/test_compat.py` prints the new table.
"""


def source_hash(method: str) -> str:
    owner, _, name = method.rpartition(".")
    return hashlib.sha256(inspect.getsource(getattr(import_object(owner), name)).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    "method", [f"{o}.{name}" for o, names in compat.OVERRIDDEN.items() if o.startswith("trl:") for name in names]
)
def test_an_overridden_method_of_trls_is_as_it_was_read(method: str) -> None:
    assert READ[method] == source_hash(method), f"{method} has changed: read it, then take over the new hash"


def test_the_new_metrics_are_those_since_the_last_call(trainer: GRPOTrainer) -> None:
    """Also over a line of TRL's log, which empties its table, and of a figure whose list is replaced."""
    trainer.model.train()
    train = trainer._metrics["train"]
    seen: dict[str, tuple[Any, int]] = {}
    assert compat.new_metrics(trainer, seen) == {}
    train["reward"] += [1.0, float("nan"), 2.0]
    train["num_tokens"] = [5]
    trainer._metrics["eval"]["reward"].append(9.0)
    assert compat.new_metrics(trainer, seen) == {"reward": 1.5, "num_tokens": 5.0}
    assert compat.new_metrics(trainer, seen) == {}
    train["reward"] += [float("nan")]
    train["num_tokens"] = [7]
    assert compat.new_metrics(trainer, seen) == {"num_tokens": 7.0}
    trainer.log({"loss": 1.0})
    assert trainer.state.log_history[-1]["reward"] == 1.5, "what TRL logs is as it was"
    trainer._metrics["train"]["reward"].append(4.0)
    assert compat.new_metrics(trainer, seen) == {"reward": 4.0}
    assert compat.new_metrics(SimpleNamespace(), {}) == {}


def test_generation_is_timed_in_training_alone(trainer: GRPOTrainer) -> None:
    told: list[float] = []
    assert compat.observe_generation(trainer, told.append)
    trainer.model.eval()
    trainer._generate([[{"role": "user", "content": "1+1"}]])
    assert told == []
    trainer.model.train()
    trainer._generate([[{"role": "user", "content": "1+1"}]])
    assert len(told) == 1
    assert told[0] > 0
    assert not compat.observe_generation(SimpleNamespace(), told.append)


def test_a_rollout_holds_what_ppo_reads(trainer: GRPOTrainer) -> None:
    trainer.model.train()
    seen = []
    original = trainer._calculate_rewards

    def watched(inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        seen.append((prompts, completions, completion_ids_list))
        return original(inputs, prompts, completions, completion_ids_list)

    trainer._calculate_rewards = watched
    output = trainer._generate_and_score_completions([trainer.train_dataset[i // 2] for i in range(4)])
    width = output["completion_ids"].shape
    assert width == output["completion_mask"].shape == output["ref_per_token_logps"].shape
    assert output["advantages"].shape == (4,)
    assert output["prompt_ids"].shape == output["prompt_mask"].shape
    ((prompts, completions, ids),) = seen
    assert [len(x) for x in (prompts, completions, ids)] == [4, 4, 4]
    assert [len(row) for row in ids] == output["completion_mask"].sum(1).tolist()
    assert {*trainer.eos_token_ids} == {trainer.processing_class.eos_token_id}


def test_the_loss_takes_advantages_of_tokens(trainer: GRPOTrainer) -> None:
    """And shuffles and splits every tensor that a rollout holds."""
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    trainer.model.train()
    output = trainer._generate_and_score_completions([trainer.train_dataset[i // 2] for i in range(4)])
    trainer.current_gradient_accumulation_steps = 1
    output["advantages"] = output["advantages"].unsqueeze(1)
    whole = trainer._compute_loss(trainer.model, output)
    wide = {**output, "advantages": output["advantages"].expand_as(output["completion_ids"])}
    assert torch.equal(whole, trainer._compute_loss(trainer.model, wide))
    wide["ours"] = wide["completion_ids"].float()
    parts = split_tensor_dict(shuffle_sequence_dict(wide), 2)
    assert all(torch.equal(part["ours"], part["completion_ids"].float()) for part in parts)


def test_beta_alone_says_whether_the_loss_has_kl(trainer: GRPOTrainer) -> None:
    trainer.model.train()
    output = trainer._generate_and_score_completions([trainer.train_dataset[i // 2] for i in range(4)])
    trainer.current_gradient_accumulation_steps = 1
    output["ref_per_token_logps"] -= 1.0
    with_kl = trainer._compute_loss(trainer.model, output)
    trainer.beta = 0.0
    assert float((with_kl - trainer._compute_loss(trainer.model, output)).detach()) > 0.01


def test_extra_inputs_are_arguments_of_the_pass() -> None:
    given = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
    assert set(compat.FORWARD_EXTRAS) <= set(given)
    assert "batch_size" in given


@pytest.mark.parametrize("processes", [1, 2])
def test_the_order_of_prompts_goes_on_with_the_epoch(trainer: GRPOTrainer, processes: int) -> None:
    """TRL's sampler begins its first epoch again in a new process, also where each process has its share of it."""
    from accelerate.data_loader import prepare_data_loader
    from torch.utils.data import DataLoader

    def order(epochs: int, begins_at: int = 0) -> list[list[int]]:
        rows = DataLoader(list(range(len(trainer.train_dataset))), 4, sampler=trainer._get_train_sampler())
        loader = prepare_data_loader(rows, num_processes=processes, process_index=0, put_on_device=False)
        trainer.state.global_step = begins_at * trainer.set_initial_training_values(trainer.args, loader)[1]
        compat.replay_order(trainer, loader)
        return [[int(row) for batch in loader for row in batch] for _ in range(epochs)]

    whole = order(3)
    assert whole[0] != whole[1] != whole[2]
    assert order(2, begins_at=1) == whole[1:]
    assert order(1, begins_at=2) == whole[2:]


# --- metrics and second rollouts -------------------------------------------------------------------------------------


def test_metrics_come_and_go(trainer: GRPOTrainer) -> None:
    trainer.model.train()
    compat.add_metric(trainer, "ours", 1.0)
    compat.add_metric(trainer, "ours", 3.0)
    compat.add_metric(trainer, "theirs", 3.0)
    compat.drop_metric(trainer, "theirs")
    compat.drop_metric(trainer, "nothing")
    trainer.log({"loss": 0.0})
    assert trainer.state.log_history[-1]["ours"] == 2.0
    assert "theirs" not in trainer.state.log_history[-1]


def test_a_rollout_aside_leaves_no_trace(trainer: GRPOTrainer) -> None:
    """With it, greedy: the same every time, without a draw."""
    trainer.model.train()
    rows = [trainer.train_dataset[i] for i in range(4)]
    prompts = [row["prompt"] for row in rows]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with compat.without_side_effects(trainer):
        completions, ids = compat.rollout_greedily(trainer, prompts)
        trainer._calculate_rewards(rows, prompts, completions, ids)
    assert compat.rollout_greedily(trainer, prompts)[1] == ids
    assert torch.equal(torch.get_rng_state(), before)
    trainer._metrics["train"].clear()
    with compat.without_side_effects(trainer):
        compat.rollout_greedily(trainer, prompts)
        trainer._calculate_rewards(rows, prompts, completions, ids)
    assert not trainer._metrics["train"]
    assert not trainer._pending_metrics
    assert not trainer._pending_extra_logs
    assert [c[0]["role"] for c in completions] == ["assistant"] * 4
    assert trainer.generation_config.do_sample


def test_an_observer_sees_what_was_scored_but_nothing_that_is_done_aside(trainer: GRPOTrainer) -> None:
    trainer.model.train()
    seen: list[Any] = []
    compat.observe_rewards(trainer, lambda *scored: seen.append(scored))
    rows = [trainer.train_dataset[i // 2] for i in range(4)]
    trainer._generate_and_score_completions(rows)
    ((inputs, prompts, completions, rewards),) = seen
    assert inputs == rows
    assert [len(x) for x in (prompts, completions)] == [4, 4]
    assert rewards.shape == (4, len(trainer.reward_funcs))
    with compat.without_side_effects(trainer):
        trainer._calculate_rewards(rows, prompts, completions, [[1]] * 4)
    assert len(seen) == 1
    trainer._calculate_rewards(rows, prompts, completions, [[1]] * 4)
    assert len(seen) == 2


def test_trackers_that_trl_calls_itself_have_a_stand_in(trainer: GRPOTrainer) -> None:
    root = Path(str(importlib.import_module("trl").__file__)).parent
    calls = [file for file in root.glob("[!e]*/*.py") if "logging_backend" in file.read_text(encoding="utf-8")]
    assert {file.stem for file in calls} == {"grpo_trainer", "rloo_trainer", "distillation_trainer"}, "of trainers"
    homes = [vars(importlib.import_module(name)) for name in ("trl.trainer.grpo_trainer", "trl.extras.profiling")]
    stand_in, before = object(), [home.get("trackio") for home in homes]
    with compat.modules_as(trainer, {"trackio": stand_in}):
        assert all(home["trackio"] is stand_in for home in homes)
    assert [home.get("trackio") for home in homes] == before
    with pytest.raises(KeyError), compat.modules_as(trainer, {"no_such_module": stand_in}):
        raise KeyError
    assert all("no_such_module" not in home for home in homes)


def test_reward_names(trainer: GRPOTrainer) -> None:
    compat.set_reward_names(trainer, ["mine"])
    trainer.model.train()
    trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    assert "rewards/mine/mean" in trainer._metrics["train"]


@pytest.mark.parametrize(
    ("size", "rewards", "share"),
    [
        (6, [[1.0, 0.2]] * 6, 1.0),  # TRL says 0.0: the mean of six float32 of 1.2 is another one
        (3, [[1.0, 0.2]] * 3 + [[1.0, 0.2], [1.0, 0.2], [1.0, 0.3]], 0.5),
        (3, [[0.1, 0.2], [0.2, 0.1], [0.3, 0.0], [0.7, None], [None, 0.7], [0.35, 0.35]], 1.0),
        (3, [[1.0, 1e-6], [1.0, 0.0], [1.0, 0.0], [None, None], [1.2, 0.0], [1.2, 0.0]], 0.5),
        (2, [[None, None]] * 2, 0.0),
        (2, [[1e9, -1e9], [0.0, 64.0]], 1.0),  # as near as float32 tells numbers of that size apart
    ],
)
def test_groups_whose_rewards_are_equal_are_counted_exactly(
    trainer: GRPOTrainer, size: int, rewards: list[list[float | None]], share: float
) -> None:
    given = torch.tensor([[torch.nan if value is None else value for value in row] for row in rewards])
    trainer.reward_funcs, trainer.reward_func_names = trainer.reward_funcs * 2, ["a", "b"]
    trainer.reward_processing_classes, trainer.reward_weights = [None, None], torch.ones(2)
    trainer._calculate_rewards = lambda *args: given
    trainer.num_generations = size
    compat.count_equal_groups(trainer)
    trainer.model.train()
    trainer._generate_and_score_completions([trainer.train_dataset[0]] * len(rewards))
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [share]


def test_vllm_is_not_sent_what_it_lacks() -> None:
    from trl.generation.vllm_generation import VLLMGeneration

    assert inspect.isgeneratorfunction(VLLMGeneration._iter_named_params)
    assert "temperature" in inspect.signature(VLLMGeneration.__init__).parameters

    class Engine:
        def _iter_named_params(self) -> Iterator[tuple[str, int]]:
            yield from {"model.a": 1, "value_head.weight": 2, "critic_model.a": 3}.items()

    trainer = SimpleNamespace(vllm_generation=Engine())
    compat.hide_from_vllm(trainer, lambda name: name.startswith(("value_head", "critic_model")))
    assert list(trainer.vllm_generation._iter_named_params()) == [("model.a", 1)]
    compat.hide_from_vllm(SimpleNamespace(), lambda name: True)


# --- models ----------------------------------------------------------------------------------------------------------


def test_switches_are_what_chooses_an_adapter(tiny_model: Path) -> None:
    """LoRA layers and modules that PEFT trains whole; setting the field alone changes what is computed."""
    model = lora_model(tiny_model)
    assert {type(layer).__name__ for layer in compat.adapter_layers(model)} == {"Linear", "ModulesToSaveWrapper"}
    torch.nn.init.normal_(next(p for n, p in model.named_parameters() if "lora_B" in n))
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        on = model(input_ids=ids).logits
        with compat.routed(compat.adapter_layers(model), "no such adapter"):
            off = model(input_ids=ids).logits
        with model.disable_adapter():
            assert torch.equal(model(input_ids=ids).logits, off)
        assert torch.equal(model(input_ids=ids).logits, on)
    assert not torch.equal(on, off)


def test_which_adapter_is_in_force(tiny_model: Path) -> None:
    model = lora_model(tiny_model)
    assert compat.active_adapter(model) == "default"
    with model.disable_adapter():
        assert compat.active_adapter(model) is None
    assert compat.active_adapter(model.get_base_model()) is None
    assert compat.active_adapter(model) == "default"


def test_checkpointed_layers_call_the_function_that_they_hold(tiny_model: Path) -> None:
    model = lora_model(tiny_model).train()
    assert compat.checkpointed_layers(model) == []
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = compat.checkpointed_layers(model)
    ran = []

    def within(layer: Any, forward: Any) -> Any:
        ran.append(layer)
        return forward

    with compat.recomputed_with(layers, within):
        model(input_ids=torch.tensor([[3, 4, 5]]))
    decoders = [layer for layer in layers if type(layer).__name__.endswith("DecoderLayer")]
    assert ran == decoders
    assert len(decoders) == 2
    ran.clear()
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert ran == []


def test_the_output_with_values_is_one_of_trls(tiny_model: Path) -> None:
    from trl.trainer.utils import FusedCausalLMOutput

    made = compat.value_output_class()(log_probs=torch.zeros(1), state_values=torch.ones(1))
    assert isinstance(made, FusedCausalLMOutput)
    assert made["state_values"] is made.state_values
    assert callable(made.values)


def test_the_fused_head_runs_the_body_once(tiny_model: Path) -> None:
    """Under the name that transformers gives it, from which we take the hidden states."""
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    model = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype="float32")
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    seen = []
    model.base_model.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state.shape))
    ids = torch.tensor([[3, 4, 5]])
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True)
    assert seen == [(1, 3, 32)]
    assert output.log_probs.shape == (1, 2)


def test_dropout_is_switched_off(tiny_model: Path) -> None:
    model = lora_model(tiny_model)
    model.dropout = torch.nn.Dropout(0.5)
    compat.disable_dropout(model)
    assert model.dropout.p == 0


def test_checkpointing_is_off_for_a_pass(trainer: GRPOTrainer) -> None:
    trainer.model.gradient_checkpointing_enable()
    with compat.without_checkpointing(trainer):
        assert compat.checkpointed_layers(trainer.model) == []
    assert compat.checkpointed_layers(trainer.model)


def test_a_model_is_whole_where_nothing_is_in_pieces(tiny_model: Path) -> None:
    """DeepSpeed's own part is in `test_two_processes.py`; here that transformers tells whether it is on."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    assert not is_deepspeed_zero3_enabled()
    with compat.gathered_parameters(lora_model(tiny_model)):
        pass


def test_where_a_model_comes_from(tiny_model: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    assert compat.model_path(AutoModelForCausalLM.from_pretrained(str(tiny_model))) == str(tiny_model)
    config = AutoConfig.from_pretrained(str(tiny_model))
    config._name_or_path = ""
    assert compat.model_path(AutoModelForCausalLM.from_config(config)) == ""


# --- any trainer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "options", "period"),
    [
        (SFTConfig, {}, 1),
        (GRPOConfig, {"num_generations": 2}, 1),
        (GRPOConfig, {"num_generations": 2, "num_iterations": 2, "steps_per_generation": 2}, 4),
        (GRPOConfig, {"num_generations": 2, "num_iterations": 3, "gradient_accumulation_steps": 2}, 3),
        (RLOOConfig, {"num_generations": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2}, 2),
        (PPOConfig, {}, 4),
        (PPOConfig, {"num_iterations": 1}, 1),
    ],
)
def test_the_generation_period(config: Any, options: dict[str, Any], period: int, tmp_path: Path) -> None:
    assert generation_period(config(str(tmp_path), bf16=False, **options)) == period


if __name__ == "__main__":
    for owner, names in compat.OVERRIDDEN.items():
        for method in names if owner.startswith("trl:") else ():
            print(f'    "{owner}.{method}": "{source_hash(f"{owner}.{method}")}",')
