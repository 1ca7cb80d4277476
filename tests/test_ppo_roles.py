"""Around PPO's core: what stands on one base, other tokenizers, tools, vLLM, continuous batching, plain scripts."""

from __future__ import annotations

import gc
import math
import re
import runpy
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_training import SMALL

torch = pytest.importorskip("torch")

import posttrain_plugins as pp  # noqa: E402
from posttrain_plugins.models.folder import copy_below, digest  # noqa: E402
from posttrain_plugins.models.load import load_adapted, load_base  # noqa: E402
from posttrain_plugins.models.stack import attach_frozen  # noqa: E402
from posttrain_plugins.rewards.process_reward_model import ProcessRewardModel  # noqa: E402
from posttrain_plugins.rewards.reward_model import RewardModel  # noqa: E402
from posttrain_plugins.tiny_world.tokenizer import tokenizer  # noqa: E402
from posttrain_plugins.trainers.ppo import process_rewards  # noqa: E402
from posttrain_plugins.trainers.ppo.shared_reward import SharedClassifier, shared  # noqa: E402
from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer  # noqa: E402

ARGS: dict[str, Any] = SMALL | {"num_iterations": 2}


def digits(completions: list[Any], **columns: Any) -> list[float]:
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(x.isdigit() for x in text) / 8 for text in texts]


def lora(rank: int = 4, task_type: str = "CAUSAL_LM", **options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, target_modules="all-linear", task_type=task_type, init_lora_weights=False, **options)


@pytest.fixture(scope="session")
def rows(tiny_data: Path) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(tiny_data / "problems.jsonl"), split="train")


def build(model: Path, rows: Any, folder: Path, rewards: Any = digits, **options: Any) -> PPOTrainer:
    """Keywords that are the trainer's go there, the others into the config."""
    own = {k: options.pop(k) for k in ("peft_config", "quantization_config", "rollout_func", "tools") if k in options}
    return PPOTrainer(str(model), rewards, PPOConfig(str(folder / "out"), **{**ARGS, **options}), rows, **own)


def rollout(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    trainer.model.train()
    return trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(8)])


def losses(trainer: PPOTrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


# --- one base, many roles --------------------------------------------------------------------------------------------


def alive() -> dict[int, Any]:
    """Every parameter in memory, also of 4-bit layers."""
    gc.collect()
    found = [x for x in gc.get_objects() if issubclass(type(x), torch.nn.Parameter)]
    return {p.data_ptr(): p for p in found if p.numel()}


def test_policy_critic_reward_and_reference_stand_on_one_4bit_base(tiny_model: Path, rows: Any, tmp_path: Path) -> None:
    """All numbers that the trainer brings into memory: the base once, three adapters and a value head."""
    pytest.importorskip("bitsandbytes")
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

    from posttrain_plugins.models.quantization import keep_packed_weights_exact

    keep_packed_weights_exact()
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    judge = AutoModelForSequenceClassification.from_pretrained(str(tiny_model), num_labels=1, dtype="float32")
    judge = get_peft_model(judge, lora(2, "SEQ_CLS", modules_to_save=["score"]))
    judge.save_pretrained(str(tmp_path / "judge"))
    tokenizer().save_pretrained(str(tmp_path / "judge"))
    plain = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype="float32", quantization_config=quantization)
    base = sum(p.numel() for p in plain.parameters())
    del judge, plain
    before = alive()
    trainer = build(
        tiny_model, rows, tmp_path, [str(tmp_path / "judge"), digits],
        peft_config=lora(), quantization_config=quantization, gradient_checkpointing=True,
    )  # fmt: skip
    trainer.train()
    brought = {at: p for at, p in alive().items() if at not in before}
    named = dict(trainer.model.named_parameters())
    adapters = {name: p.numel() for name, p in named.items() if "lora_" in name}
    assert {name.rpartition(".weight")[0].rpartition(".")[2] for name in adapters} == {"default", "critic", "reward_0"}
    assert trainer.ref_model is None
    assert "kl" in trainer.state.log_history[0]
    assert sum(p.numel() for p in brought.values()) == base + sum(adapters.values()) + 33  # 32 weights and a bias
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for n, p in named.items() if "default" in n or "critic" in n or "value_head" in n}


# What a reward model of each kind lies on: SFT's adapter, as the default of the stages `reward` and `prm` leaves it.
JUDGES = {"SequenceClassification": ("SEQ_CLS", RewardModel), "TokenClassification": ("TOKEN_CLS", ProcessRewardModel)}


@pytest.fixture
def sft(tiny_model: Path, tmp_path: Path) -> Path:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(tiny_model)), lora())
    model.save_pretrained(str(tmp_path / "sft"))
    tokenizer().save_pretrained(str(tmp_path / "sft"))
    return tmp_path / "sft"


@pytest.fixture
def judge_on(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Save a judge of a kind that lies on other adapters, each layer with weights that tell."""

    def make(kind: str, *below: Path, name: str = "judge", **options: Any) -> Path:
        import transformers
        from peft import get_peft_model

        base = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(str(tiny_model), num_labels=1)
        torch.manual_seed(len(below) + 7)
        own = {"modules_to_save": ["score"], "exclude_modules": ["score"], **options}
        model = get_peft_model(attach_frozen(base, below), lora(2, JUDGES[kind][0], **own))
        for part in ("weight", "bias"):
            tensor = getattr(model.get_base_model().score.modules_to_save["default"], part, None)
            if tensor is not None:
                torch.nn.init.normal_(tensor)
        folder = tmp_path / f"{name}-{kind}"
        model.save_pretrained(str(folder))
        tokenizer().save_pretrained(str(folder))
        copy_below(below, folder)
        return folder

    return make


@pytest.mark.parametrize("goes_on_by", ["continue", "stack"])
def test_judges_on_the_sft_model_stand_on_the_policys_base(
    tiny_model: Path, rows: Any, tmp_path: Path, sft: Path, judge_on: Any, goes_on_by: str
) -> None:
    """A reward model and a PRM score as they do alone, through the one base, before and after a step of the policy."""
    folders = {kind: judge_on(kind, sft) for kind in JUDGES}
    alone = [JUDGES[kind][1](str(folder), dtype="float32", device="cpu") for kind, folder in folders.items()]
    if goes_on_by == "continue":
        model, options = load_adapted(sft, is_trainable=True, dtype="float32"), {}
    else:
        model, options = load_base(sft, with_newest=True, dtype="float32"), {"peft_config": lora()}
    args = {"process_rewards": ["process_reward_model"], "step_separator": "\n"}
    trainer = PPOTrainer(model, list(alone), PPOConfig(str(tmp_path / "out"), **{**ARGS, **args}), rows, **options)
    assert all(isinstance(one.classifier, SharedClassifier) for one in trainer.reward_funcs)
    below = {"reward_0_below_0", "reward_1_below_0"} if goes_on_by == "continue" else set()
    assert {"default", "critic", "reward_0", "reward_1"} | below == set(trainer.model.peft_config) - {"ref"}
    prompts = [[{"role": "user", "content": "3|7"}]] * 3
    chats = [[{"role": "assistant", "content": text}] for text in ("<answer>7</answer>", "3|\n7>", "1")]
    expected = [reward(prompts, chats) for reward in alone]
    assert len({round(score, 4) for scores in expected for score in scores}) > 4, "they do tell texts apart"

    def check() -> None:
        for reward, scores in zip(trainer.reward_funcs, expected, strict=True):
            assert reward(prompts=prompts, completions=chats) == pytest.approx(scores, abs=1e-5)

    check()
    weights = {name: p for name, p in trainer.model.named_parameters() if ".reward_" in name}
    before = {name: p.clone() for name, p in weights.items()}
    trainer.train()
    check()
    assert before
    assert all(torch.equal(weights[name], p) for name, p in before.items())
    trainer.save_model(str(tmp_path / "model"))
    assert {f.name for f in (tmp_path / "model").iterdir() if f.is_dir()} - {"ref"} == {"critic"}


def test_a_judge_that_would_be_another_beside_the_policy_is_a_model_of_its_own(
    tiny_model: Path, tmp_path: Path, sft: Path, judge_on: Any
) -> None:
    """Of magnitudes and whole modules no two are in force at once; and what the policy lies on cannot be taken away."""
    kind = "SequenceClassification"
    base, policy = str(tiny_model), lora()
    on_sft = digest(sft)
    plain, stacked = judge_on(kind, name="plain"), judge_on(kind, sft, name="stacked")
    sums = judge_on(kind, sft, name="dora", use_dora=True)
    wholes = judge_on(kind, sft, name="whole", modules_to_save=["score", "embed_tokens"])
    shares = {
        (plain, ()): True, (stacked, ()): True, (stacked, (on_sft,)): True,
        (plain, (on_sft,)): False, (stacked, ("another",)): False,
        (sums, ()): False, (sums, (on_sft,)): True, (wholes, ()): False,
    }  # fmt: skip
    for (folder, below), expected in shares.items():
        found = shared(RewardModel(str(folder)), base, policy, below)
        assert isinstance(found.classifier, SharedClassifier) == expected, (folder.name, below)
    assert shared(str(plain), base, lora(use_dora=True)).classifier.adapters == ()
    ia3 = pp.load("adapter", "ia3")
    assert shared(str(plain), base, ia3) == str(plain), "of another type"


# --- rewards ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign_judge(tmp_path: Path) -> Path:
    """A reward model with a tokenizer of its own: a character is a token, numbered from the other end."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification

    characters = [chr(code) for code in range(126, 31, -1)]
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate([*characters, "[UNK]", "[PAD]"])}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", eos_token="~")
    fast.chat_template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% endfor %}"
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=len(fast), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=16, num_labels=1, pad_token_id=fast.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    Qwen3ForSequenceClassification(config).save_pretrained(str(tmp_path / "foreign"))
    fast.save_pretrained(str(tmp_path / "foreign"))
    return tmp_path / "foreign"


@pytest.mark.parametrize("as_path", [False, True])
def test_a_reward_model_reads_text_with_its_own_tokenizer(
    tiny_model: Path, rows: Any, tmp_path: Path, foreign_judge: Path, as_path: bool
) -> None:
    """By hand: the policy's text, in the judge's template, in the judge's tokens, through the judge."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    reward: Any = str(foreign_judge) if as_path else RewardModel(str(foreign_judge), batch_size=3)
    trainer = build(
        tiny_model, rows, tmp_path, reward, advantage_estimator="reinforce_pp", whiten_advantages=False, kl_coef=0.0
    )
    batch = rollout(trainer)
    texts = trainer.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    words = AutoTokenizer.from_pretrained(str(foreign_judge))
    judge = AutoModelForSequenceClassification.from_pretrained(str(foreign_judge), dtype="float32").eval()
    for i, text in enumerate(texts):
        ids = words("u:" + rows[i]["prompt"][-1]["content"] + "a:" + text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = float(judge(input_ids=ids).logits[0, 0])
        assert float(batch["advantages"][i, 0]) == pytest.approx(expected, abs=1e-4)
    assert len({round(float(a), 4) for a in batch["advantages"][:, 0]}) > 4


def test_functions_reward_models_and_process_reward_models_are_mixed(
    tiny_model: Path, rows: Any, tmp_path: Path, foreign_judge: Path
) -> None:
    """Each by its weight: two at the end of a completion, the third where the steps end; reward-to-go by hand."""
    from transformers import AutoModelForTokenClassification

    torch.manual_seed(2)
    classifier = AutoModelForTokenClassification.from_pretrained(str(tiny_model), num_labels=1, dtype="float32")
    torch.nn.init.normal_(classifier.score.weight)
    classifier.save_pretrained(str(tmp_path / "steps"))
    tokenizer().save_pretrained(str(tmp_path / "steps"))
    prm, rm = ProcessRewardModel(str(tmp_path / "steps"), separator="7"), RewardModel(str(foreign_judge))
    args = {"process_rewards": ["process_reward_model"], "step_separator": "7", "reward_weights": [2.0, 0.5, 0.25]}
    trainer = build(
        tiny_model, rows, tmp_path, [digits, rm, prm],
        advantage_estimator="reinforce_pp", whiten_advantages=False, kl_coef=0.0, max_completion_length=32, **args,
    )  # fmt: skip
    batch = rollout(trainer)
    words = trainer.processing_class
    prompts = [rows[i]["prompt"] for i in range(8)]
    texts = words.batch_decode(batch["completion_ids"], skip_special_tokens=True)
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    judged = zip(digits(chats), rm(prompts, chats), prm.step_scores(prompts, chats), strict=True)
    most = 0
    for i, (by_function, by_model, by_step) in enumerate(judged):
        ids = batch["completion_ids"][i, : int(batch["completion_mask"][i].sum())].tolist()
        ends = process_rewards.step_end_tokens(words, ids, "7")
        most = max(most, len(ends))
        for t in range(len(ids)):
            later = sum(score for score, end in zip(by_step, ends, strict=True) if end >= t)
            expected = 2.0 * by_function + 0.5 * float(by_model or 0.0) + 0.25 * later
            assert float(batch["advantages"][i, t]) == pytest.approx(expected, abs=1e-4)
    assert most > 1


# --- prompts and tools -----------------------------------------------------------------------------------------------


def test_plain_prompts(tiny_model: Path, rows: Any, tmp_path: Path) -> None:
    plain = rows.map(lambda row: {"prompt": row["prompt"][-1]["content"]})
    seen = []

    def noting(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        seen.extend([*prompts, *completions])
        return digits(completions)

    trainer = build(tiny_model, plain, tmp_path, noting)
    trainer.train()
    assert all(isinstance(text, str) for text in seen)
    assert len(losses(trainer)) == 2


def test_what_a_tool_wrote_is_stepped_over(
    tiny_model: Path, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens 2 and 3 of each row are a tool's: no advantage, no value target, no KL, and the same score behind them."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is experimental
    words = tokenizer()
    ids = words("<answer>7</answer>")["input_ids"]
    written = [int(i not in (2, 3)) for i in range(len(ids))]

    def with_tool(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        head = words.apply_chat_template(prompts[0], add_generation_prompt=True)["input_ids"]
        count = len(prompts)
        return {
            "prompt_ids": [head] * count, "completion_ids": [ids] * count, "logprobs": None,
            "env_mask": [written] * count,
        }  # fmt: skip

    trainer = build(tiny_model, rows, tmp_path, rollout_func=with_tool, peft_config=lora(), whiten_advantages=False)
    assert trainer.critic is not None
    torch.nn.init.normal_(trainer.critic.head.weight)
    batch = rollout(trainer)
    mask = torch.tensor(written, dtype=torch.bool).expand_as(batch["completion_ids"])
    for name in ("advantages", "returns", "value_mask", "old_values"):
        assert not batch[name][~mask].any(), name
        assert batch[name][mask].all(), name
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, batch)
    batch["returns"] = batch["returns"].masked_fill(~mask, 99.0)
    batch["advantages"] = batch["advantages"].masked_fill(~mask, 99.0)
    trainer.last_pass = None
    assert torch.equal(trainer._compute_loss(trainer.model, batch), loss)


# --- other ways to generate ------------------------------------------------------------------------------------------


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """vLLM's place in TRL: its own walk over the weights, and completions with log-probabilities."""
    import trl.trainer.grpo_trainer as module
    from trl.generation.vllm_generation import VLLMGeneration

    class Engine(VLLMGeneration):  # type: ignore[misc]
        """Writes the same digits for everyone."""

        def __init__(self, model: Any, accelerator: Any, **options: Any) -> None:
            self.model, self.accelerator, self.mode = model, accelerator, options["mode"]
            self.temperature = options["temperature"]
            self._dist = module.DistributedBackend(accelerator)
            self.sent: dict[str, torch.Tensor] = {}
            self.temperatures: list[float] = []

        def sync_weights(self) -> None:
            self.sent = {name: tensor.clone() for name, tensor in self._iter_named_params()}

        def generate(self, prompts: list[Any], **options: Any) -> tuple[Any, Any, Any, Any]:
            self.temperatures.append(self.temperature)
            ids = [tokenizer()("1234"[: 1 + i % 4])["input_ids"] for i in range(len(prompts))]
            return prompts, ids, [[[-1.0]] * len(row) for row in ids], None

    monkeypatch.setattr(module, "VLLMGeneration", Engine)
    return Engine


@pytest.mark.parametrize(
    ("is_peft", "args"),
    [(True, {}), (False, {"critic": "separate"}), (True, {"advantage_estimator": "remax"})],
    ids=["adapter", "separate", "remax"],
)
def test_vllm(tiny_model: Path, rows: Any, tmp_path: Path, engine: Any, is_peft: bool, args: dict[str, Any]) -> None:
    """It is sent the policy's weights, adapter merged, and nothing else; its log-probabilities correct the loss."""
    from transformers import AutoModelForCausalLM

    options = {"peft_config": lora()} if is_peft else {}
    trainer = build(tiny_model, rows, tmp_path, use_vllm=True, vllm_mode="colocate", **options, **args)
    trainer.train()
    fake = trainer.vllm_generation
    plain = AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype="float32")
    assert set(fake.sent) == {name for name, _ in plain.named_parameters()}
    changed = [n for n, p in plain.named_parameters() if "proj" in n and not torch.equal(fake.sent[n], p)]
    assert bool(changed) == is_peft
    assert ("sampling/importance_sampling_ratio/mean" in trainer.state.log_history[0]) is True
    assert all(map(math.isfinite, losses(trainer)))
    assert (0.0 in fake.temperatures) == ("advantage_estimator" in args)
    assert fake.temperature == 1.0


def test_continuous_batching(tiny_model: Path, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flag goes to transformers' `generate_batch`, and PPO trains on what that gives."""
    trainer = build(tiny_model, rows, tmp_path, use_transformers_continuous_batching=True)
    assert trainer.critic is not None
    calls = []

    def generate_batch(inputs: list[list[int]], **options: Any) -> dict[str, Any]:
        from types import SimpleNamespace

        calls.append(len(inputs))
        ids = tokenizer()("1234")["input_ids"]
        return {str(i): SimpleNamespace(generated_tokens=ids[: 1 + i % 4]) for i in range(len(inputs))}

    monkeypatch.setattr(trainer.model, "generate_batch", generate_batch)
    trainer.train()
    assert calls == [8]
    assert len(losses(trainer)) == 2


# --- a script --------------------------------------------------------------------------------------------------------


@pytest.fixture
def example(tiny_model: Path, tiny_data: Path) -> Callable[[], str]:
    """The docstring's own, on the tiny model and data, for two steps."""

    def write() -> str:
        found = re.search(r"```python\n(.*?)```", PPOTrainer.__doc__ or "", re.DOTALL)
        assert found is not None
        script = textwrap.dedent(found.group(1))
        small = ", ".join(f"{name}={ARGS[name]!r}" for name in ("max_steps", "max_completion_length", "bf16"))
        for old, new in {
            '"Qwen/Qwen2.5-0.5B-Instruct"': repr(str(tiny_model)),
            '"trl-lib/DeepMath-103K"': f'"json", data_files={str(tiny_data / "problems.jsonl")!r}',
            'PPOConfig("ppo", ': f'PPOConfig("ppo", {small}, report_to=[], dataloader_pin_memory=False, ',
        }.items():
            assert script.count(old) == 1
            script = script.replace(old, new)
        return script

    return write


def test_the_docstrings_example_is_a_script(
    example: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("math_verify")
    (tmp_path / "script.py").write_text(example(), encoding="utf-8")
    trainer = runpy.run_path(str(tmp_path / "script.py"))["trainer"]
    assert trainer.state.global_step == 2
    assert trainer.critic.kind == "adapter"
    assert {"kl", "reward", "value/loss"} <= trainer.state.log_history[0].keys()
