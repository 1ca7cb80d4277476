"""What PPO's critic starts from: the same values on the same tokens, learned on, saved, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_training import SMALL

torch = pytest.importorskip("torch")

from posttrain_plugins.errors import InputError  # noqa: E402
from posttrain_plugins.models.folder import adapters_in, copy_below  # noqa: E402
from posttrain_plugins.models.value_form import ValueForm  # noqa: E402
from posttrain_plugins.rewards.value_model import ValueModel  # noqa: E402
from posttrain_plugins.trainers.ppo.critic import ValueHead  # noqa: E402
from posttrain_plugins.trainers.ppo.critic_start import saved_values  # noqa: E402
from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer  # noqa: E402

ARGS: dict[str, Any] = SMALL | {"max_steps": 1, "num_iterations": 1}
IDS = [[3, 9, 12, 20, 31, 7, 40, 11], [5, 6, 7, 8, 9, 10, 11, 12]]
FORMS = {
    "regression": ValueForm("regression", -1.0, 3.0),
    "binary": ValueForm("binary", 0.0, 2.0, slope=1.5, intercept=-0.25),
    "two_hot": ValueForm("two_hot", 0.0, 1.0, 5, slope=0.5),
}
Save = Callable[..., Path]


def length(completions: list[Any], **columns: Any) -> list[float]:
    return [len(c[0]["content"]) / 8 for c in completions]


def lora(rank: int = 4, **more: Any) -> Any:
    from peft import LoraConfig

    given = {"r": rank, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**given, "init_lora_weights": False, **more})


@pytest.fixture
def save(tiny_model: Path, tmp_path: Path) -> Save:
    """Saves a classifier on the tiny model with a random head: whole, or as an adapter on it and on what is below."""
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    from posttrain_plugins.models.stack import attach_frozen
    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    def saved(
        name: str, form: ValueForm | None = None, adapter: bool = False, below: Any = (), base: Any = None, **more: Any
    ) -> Path:
        torch.manual_seed(7)
        labels = more.pop("labels", 1 if form is None else form.num_labels)
        is_reward = more.pop("is_reward", form is None)
        kind = AutoModelForSequenceClassification if is_reward else AutoModelForTokenClassification
        model = kind.from_pretrained(str(base or tiny_model), num_labels=labels, dtype=torch.float32)
        torch.nn.init.normal_(model.score.weight, std=0.5)
        if adapter:
            task = "SEQ_CLS" if is_reward else "TOKEN_CLS"
            model = attach_frozen(model, below)
            model = get_peft_model(model, lora(**{"task_type": task, "modules_to_save": ["score"], **more}))
            for name_, parameter in model.named_parameters():
                if "modules_to_save" in name_:
                    torch.nn.init.normal_(parameter, std=0.5)
        else:
            for parameter in model.model.parameters():
                parameter.data.mul_(1.1)  # a body of its own
        folder = tmp_path / name
        model.save_pretrained(str(folder))
        tokenizer().save_pretrained(str(folder))
        copy_below(list(below), folder) if below else None
        if form is not None:
            form.write(folder)
        return folder

    return saved


@pytest.fixture
def sft(tiny_model: Path, tmp_path: Path) -> Path:
    """A causal adapter on the tiny model, as a stage `sft` leaves it."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    torch.manual_seed(5)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(str(tiny_model), dtype=torch.float32), lora(3))
    model.save_pretrained(str(tmp_path / "sft"))
    tokenizer().save_pretrained(str(tmp_path / "sft"))
    return tmp_path / "sft"


@pytest.fixture(scope="session")
def task_rows(tiny_data: Path) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(tiny_data / "problems.jsonl"), split="train")


@pytest.fixture
def start(tiny_model: Path, task_rows: Any, tmp_path: Path) -> Callable[..., PPOTrainer]:
    """A trainer whose critic starts from a folder."""

    def made(path: Any, model: Any = None, peft_config: Any = None, out: str = "out", **args: Any) -> PPOTrainer:
        return PPOTrainer(
            str(model or tiny_model) if model is None or isinstance(model, Path) else model,
            length,
            PPOConfig(str(tmp_path / out), **{**ARGS, **args}),
            task_rows,
            peft_config=peft_config,
            critic_from=None if path is None else str(path),
        )

    return made


def states(trainer: PPOTrainer) -> torch.Tensor:
    """The values of the states before each token but the first, (2, 7)."""
    ids = torch.tensor(IDS)
    trainer.model.eval()
    with torch.no_grad():
        output = trainer.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True, with_values=True
        )
    found: torch.Tensor = output.state_values
    return found


def by_reader(folder: Path) -> torch.Tensor:
    """The same by the reward plugin, which reads the folder by itself."""
    model = ValueModel(str(folder), device="cpu", dtype="float32")
    rows = dict(model._critic.logits(IDS, 2))
    return torch.stack([rows[i][:-1, 0] for i in range(2)])


def by_reward_model(folder: Path) -> torch.Tensor:
    """What a reward model says of each begun text: its score with the rest cut off."""
    from posttrain_plugins.backends.transformers.classifier import Classifier

    judge = Classifier(str(folder), "SequenceClassification", device="cpu", loading={"dtype": "float32"})
    begun = [row[: end + 1] for row in IDS for end in range(7)]
    found = dict(judge.logits(begun, 14))
    return torch.stack([found[i][0] for i in range(14)]).view(2, 7)


# --- the same values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", FORMS)
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "whole"])
def test_a_critic_has_the_values_of_its_value_model(save: Save, start: Any, loss: str, adapter: bool) -> None:
    folder = save("value", FORMS[loss], adapter)
    trainer = start(folder, peft_config=lora() if adapter else None)
    assert trainer.critic.kind == ("adapter" if adapter else "separate")
    found = states(trainer)
    assert torch.allclose(found, by_reader(folder), atol=1e-5)
    assert float(found.std()) > 1e-3
    assert not torch.allclose(found, states(start(None, peft_config=lora() if adapter else None)), atol=1e-3)


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "whole"])
def test_a_critic_has_the_scores_of_its_reward_model(save: Save, start: Any, adapter: bool) -> None:
    folder = save("reward", None, adapter)
    trainer = start(folder, peft_config=lora() if adapter else None)
    found = states(trainer)
    assert torch.allclose(found, by_reward_model(folder), atol=1e-5)
    assert float(found.std()) > 1e-3


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "whole"])
def test_a_separate_critic_beside_an_adapter_has_its_own_body(save: Save, start: Any, adapter: bool) -> None:
    """Of an adapter the body is its base with it merged in; the policy is neither."""
    folder = save("value", FORMS["binary"], adapter)
    trainer = start(folder, peft_config=lora(), critic="separate")
    assert torch.allclose(states(trainer), by_reader(folder), atol=1e-5)
    body = trainer.critic.body
    assert body is not trainer.model.get_base_model().model
    assert all(p.requires_grad for p in body.parameters())


def test_what_lies_below_its_adapter_alone_comes_with_it(save: Save, start: Any, sft: Path, tmp_path: Path) -> None:
    """A policy that goes on with the SFT adapter, and a value model on top of that adapter as SFT left it."""
    from posttrain_plugins.models.load import load_adapted

    folder = save("value", FORMS["binary"], True, below=[sft])
    policy = load_adapted(str(sft), is_trainable=True, dtype="float32")
    trainer = start(folder, model=policy, max_steps=2)
    assert trainer.critic.adapters == ("critic_below_0", "critic")
    assert torch.allclose(states(trainer), by_reader(folder), atol=1e-5)
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "critic_below_0" in n}
    assert len(frozen) > 4
    trainer.train()
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.named_parameters() if n in frozen)
    trainer.save_model(str(tmp_path / "made"))
    made = tmp_path / "made"
    assert not list(made.glob("critic_below*"))
    assert [path.name for path in adapters_in(made / "critic")] == ["0", "critic"]
    assert torch.allclose(by_reader(made), states(trainer), atol=1e-4), "read again with all that it lies on"
    again = start(made, model=load_adapted(str(sft), is_trainable=True, dtype="float32"), out="again")
    assert torch.allclose(states(again), states(trainer), atol=1e-5)


def test_a_stacked_policy_and_a_stacked_value_model_share_what_is_below(save: Save, start: Any, sft: Path) -> None:
    from posttrain_plugins.models.load import load_base

    folder = save("value", FORMS["binary"], True, below=[sft])
    policy = load_base(str(sft), with_newest=True, dtype="float32")
    trainer = start(folder, model=policy, peft_config=lora(), kl_coef=0.0)
    assert trainer.critic.adapters == ("critic",)
    assert torch.allclose(states(trainer), by_reader(folder), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "is_peft"), [("adapter", True), ("separate", False), ("shared", False), ("shared", True)]
)
def test_a_critic_goes_on_from_the_one_that_ppo_saved(start: Any, tmp_path: Path, kind: str, is_peft: bool) -> None:
    from posttrain_plugins.models.load import load_adapted
    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    first = start(None, peft_config=lora() if is_peft else None, critic=kind, normalize_returns=True, max_steps=2)
    first.train()
    first.save_model(str(tmp_path / "first"))
    tokenizer().save_pretrained(str(tmp_path / "first"))

    def policy() -> Any:
        return load_adapted(str(tmp_path / "first"), is_trainable=True, dtype="float32") if is_peft else None

    second = start(tmp_path / "first", model=policy() or tmp_path / "first", out="second", normalize_returns=True)
    assert second.critic.kind == kind
    assert torch.allclose(states(second), states(first), atol=1e-5)
    assert second.critic.returns == first.critic.returns
    plain = start(tmp_path / "first", model=policy() or tmp_path / "first", out="third")
    assert plain.critic.returns is None
    assert torch.allclose(states(plain), states(first), atol=1e-5)


def test_it_learns_on_through_its_form_and_is_read_again(save: Save, start: Any, tmp_path: Path) -> None:
    folder = save("value", FORMS["two_hot"], True)
    trainer = start(folder, peft_config=lora(), max_steps=3, critic_learning_rate=1e-2, normalize_returns=True)
    before = states(trainer)
    trainer.train()
    after = states(trainer)
    assert not torch.allclose(before, after, atol=1e-3)
    assert float(after.min()) >= 0.0
    assert float(after.max()) <= 1.0
    trainer.save_model(str(tmp_path / "made"))
    said = json.loads((tmp_path / "made/critic/critic.json").read_text(encoding="utf-8"))
    assert said["form"]["loss"] == "two_hot"
    assert torch.allclose(by_reader(tmp_path / "made"), after, atol=1e-5)


def test_a_resumed_run_goes_on_with_what_it_started_from(save: Save, start: Any, tmp_path: Path) -> None:
    folder = save("value", FORMS["binary"], True)
    args: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "normalize_returns": True}
    whole = start(folder, peft_config=lora(), **args)
    whole.train()
    again = start(folder, peft_config=lora(), out="again", **args)
    again.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    ours, theirs = (dict(trainer.model.named_parameters()) for trainer in (again, whole))
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_units_move_no_value_of_a_form() -> None:
    head = ValueHead(8, FORMS["two_hot"])
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    before = head(hidden)
    head.rescale(10.0, 5.0)
    assert torch.equal(head(hidden), before)
    assert torch.allclose(head.normalized(before) * 10 + 5, before, atol=1e-6)


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_what_holds_no_values_is_refused(save: Save, start: Any, tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"critic\.from '.*' is a language model without a critic"):
        start(tiny_model)
    steps = save("steps", is_reward=False, labels=2)
    with pytest.raises(InputError, match="is a process reward model"):
        start(steps)
    classes = save("classes", labels=3)
    with pytest.raises(InputError, match="has 3 labels, expected 1"):
        start(classes)


def test_a_body_that_the_policy_does_not_have_is_refused(save: Save, start: Any, sft: Path, tmp_path: Path) -> None:
    from peft import LoHaConfig

    whole, adapter = save("whole", FORMS["binary"]), save("adapter", FORMS["binary"], True)
    with pytest.raises(InputError, match=r"critic 'adapter' stands on the policy's base, but .* is a whole model"):
        start(whole, peft_config=lora(), critic="adapter")
    for folder in (whole, adapter):
        with pytest.raises(InputError, match="critic 'shared' reads the policy's own body, but"):
            start(folder, peft_config=lora(), critic="shared")
    stacked = save("stacked", FORMS["binary"], True, below=[sft], use_dora=True)
    with pytest.raises(InputError, match="lies on an adapter that the policy's base has not"):
        start(stacked, peft_config=lora())
    with pytest.raises(InputError, match="its adapter is LORA, the policy's LOHA"):
        start(adapter, peft_config=LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    elsewhere = save("elsewhere", FORMS["binary"], True, base=_other_base(tmp_path))
    with pytest.raises(InputError, match=r"critic\.from '.*' does not fit on the policy's base: its base is"):
        start(elsewhere, peft_config=lora())


def _other_base(tmp_path: Path) -> Path:
    from transformers import AutoModelForCausalLM, Qwen3Config

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    torch.manual_seed(11)
    words = tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen3Config(vocab_size=len(words), num_key_value_heads=2, head_dim=16, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(str(tmp_path / "other"))
    words.save_pretrained(str(tmp_path / "other"))
    return tmp_path / "other"


def test_other_tokens_are_refused(save: Save, start: Any) -> None:
    from transformers import AutoTokenizer

    folder = save("value", FORMS["binary"])
    words = AutoTokenizer.from_pretrained(str(folder))
    words.add_tokens(["another"])
    words.save_pretrained(str(folder))
    with pytest.raises(InputError, match="has another vocabulary, of"):
        start(folder)


def test_values_without_a_critic_to_give_them_to_are_refused(save: Save, start: Any) -> None:
    folder = save("value", FORMS["binary"], True)
    with pytest.raises(InputError, match="critic_from is given, but remax has no critic"):
        start(folder, peft_config=lora(), advantage_estimator="remax")
    assert saved_values(str(folder)).body == "adapter"
