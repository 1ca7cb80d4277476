"""The critic that PPO saved is a reward again: the same values as in training, for whole and partial completions."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from posttrain_plugins.errors import InputError  # noqa: E402
from posttrain_plugins.rewards.value_model import ValueModel  # noqa: E402
from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer  # noqa: E402

PROMPT = [{"role": "user", "content": "3|7>2"}]
TEXT = "<think>3|7=4;4>2=4</think><answer>4</answer>"
PLAIN = "3|7>2\n"


def lora(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


def saved(model: Path, folder: Path, kind: Any, is_peft: bool, has_config: bool) -> PPOTrainer:
    from datasets import Dataset

    trainer = PPOTrainer(
        model=str(model),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=PPOConfig(str(folder / "out"), critic=kind, bf16=False, dataloader_pin_memory=False, report_to=[]),
        train_dataset=Dataset.from_list([{"prompt": PROMPT}] * 8),
        peft_config=lora(4) if is_peft else None,
        critic_config=lora(2) if has_config else None,
    )
    assert trainer.critic is not None
    torch.manual_seed(0)
    for parameter in trainer.critic.parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    trainer.save_model(str(folder / "model"))
    return trainer


def values(trainer: PPOTrainer, prompt: Any, text: str) -> list[float]:
    """V of the state before each token of the completion and, behind it, of the state that the whole leaves."""
    words = trainer.processing_class
    head = (
        words(prompt)["input_ids"]
        if isinstance(prompt, str)
        else words.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    )
    ids = torch.tensor([[*head, *words(text, add_special_tokens=False)["input_ids"]]])
    critic = trainer.critic
    assert critic is not None
    trainer.model.eval()
    with torch.no_grad(), critic.route or nullcontext():
        hidden = critic.body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return critic.head(hidden)[0, len(head) - 1 :].tolist()


@pytest.mark.parametrize(
    ("kind", "is_peft", "has_config"),
    [
        ("adapter", True, True),
        ("shared", True, False),
        ("shared", False, False),
        ("separate", True, False),
        ("separate", False, False),
        ("separate", False, True),
    ],
)
def test_the_values_are_those_of_the_trainer(
    tiny_model: Path, tmp_path: Path, kind: str, is_peft: bool, has_config: bool
) -> None:
    """Difference 0.0: at the end of the whole, of its beginnings, and at the ends of its steps."""
    trainer = saved(tiny_model, tmp_path, kind, is_peft, has_config)
    model = ValueModel(str(tmp_path / "model"), separator=";", batch_size=1)
    for prompt in (PROMPT, PLAIN):
        expected = values(trainer, prompt, TEXT)
        length = len(expected) - 1
        assert len(set(expected)) > length / 2
        assert model(prompts=[prompt], completions=[TEXT]) == [expected[-1]]
        assert model(prompts=[prompt], completions=[""]) == pytest.approx([expected[0]], abs=1e-6)
        (steps,) = model.step_scores(prompts=[prompt], completions=[TEXT])
        words = trainer.processing_class
        first = len(words("<think>3|7=4;", add_special_tokens=False)["input_ids"])
        assert steps == [expected[first], expected[-1]]


def test_a_batch_gives_what_each_alone_gives(tiny_model: Path, tmp_path: Path) -> None:
    saved(tiny_model, tmp_path, "adapter", True, False)
    model = ValueModel(str(tmp_path / "model"), separator=";", batch_size=3)
    texts = [TEXT, TEXT[:9], "", TEXT[:20]]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    together = model(prompts=[PROMPT] * 4, completions=chats)
    apart = [model(prompts=[PROMPT], completions=[text])[0] for text in texts]
    assert together == pytest.approx(apart, abs=1e-6)
    assert len({round(value, 6) for value in apart if value is not None}) == 4
    given = [("<think>3|7", "=4;4>2=4</think>", "<answer>4</answer>")]
    (steps,) = model.step_scores(prompts=[PROMPT], completions=[TEXT], steps=given)
    beginnings = ["<think>3|7", "<think>3|7=4;4>2=4</think>", TEXT]
    assert steps == pytest.approx(model([PROMPT] * 3, beginnings), abs=1e-6)
    assert model.step_scores(prompts=[PROMPT], completions=[""]) == [[]]


class Values:
    """A critic whose values are written down: of the state behind each token, for sequences of these lengths."""

    class tokenizer:  # noqa: N801
        """A token is two characters; a prompt has no template around it."""

        def __call__(self, text: str, add_special_tokens: bool = False, **options: Any) -> dict[str, Any]:
            starts = range(0, len(text), 2)
            return {"input_ids": [ord(text[i]) for i in starts], "offset_mapping": [(i, i + 2) for i in starts]}

    path = "nowhere"

    def __init__(self, by_length: dict[int, list[float]]) -> None:
        self.by_length = by_length

    def logits(self, ids: Any, batch_size: int) -> Any:
        for i, row in reversed([*enumerate(ids)]):  # in an order of its own, as batches by length are
            yield i, torch.tensor(self.by_length[len(row)], dtype=torch.float64).unsqueeze(1)


def with_values(by_length: dict[int, list[float]]) -> ValueModel:
    model = ValueModel("nowhere", separator=";", differences=True)
    model._critic = Values(by_length)  # type: ignore[assignment]
    model._critic.tokenizer = Values.tokenizer()  # type: ignore[misc]
    model._template_kwargs = {}
    return model


def test_differences_are_what_each_step_changes_of_the_value() -> None:
    """By hand: a prompt of two tokens whose value is 0.5, and completions whole, cut, empty and with steps given."""
    model = with_values({2: [0.125, 0.5], 5: [9.0, 0.5, 0.25, 0.75, 1.0], 4: [9.0, 0.5, 0.25, 0.125]})
    # "a;b;c!" is the tokens "a;", "b;", "c!"; "a;b1" is cut within its second step
    completions = ["a;b;c!", "", "a;b1"]
    found = model.step_scores(["p?q?"] * 3, completions)
    assert found == [[0.25 - 0.5, 0.75 - 0.25, 1.0 - 0.75], [], [0.25 - 0.5, 0.125 - 0.25]]
    whole = model(["p?q?"] * 3, completions)
    assert whole == [1.0, 0.5, 0.125], "the whole is worth its value still"
    assert [sum(steps) for steps in found] == [1.0 - 0.5, 0.0, 0.125 - 0.5], "the steps sum to V(end) - V(prompt)"
    chats = [[{"role": "assistant", "content": text}] for text in completions]
    assert model.step_scores(["p?q?"] * 3, chats) == found
    # steps of another separator; the first two end within one token, which cannot tell them apart
    given = [["a", ";", "b;c!"]]
    assert model.step_scores(["p?q?"], completions[:1], steps=given) == [[-0.25, 0.0, 0.75]]


def test_differences_from_a_prompt_without_a_token_start_at_nothing() -> None:
    model = with_values({3: [0.25, 0.75, 1.0]})
    assert model.step_scores([""], ["a;b;c!"]) == [[0.25, 0.5, 0.25]]


def test_differences_are_of_the_trainers_values(tiny_model: Path, tmp_path: Path) -> None:
    """V of a prompt, chat or plain, is that of the state before the first token."""
    trainer = saved(tiny_model, tmp_path, "adapter", True, False)
    model = ValueModel(str(tmp_path / "model"), separator=";", differences=True, batch_size=1)
    for prompt in (PROMPT, PLAIN):
        expected = values(trainer, prompt, TEXT)
        first = len(trainer.processing_class("<think>3|7=4;", add_special_tokens=False)["input_ids"])
        (steps,) = model.step_scores(prompts=[prompt], completions=[TEXT])
        assert steps == [expected[first] - expected[0], expected[-1] - expected[first]]
        assert model(prompts=[prompt], completions=[TEXT]) == [expected[-1]]


def test_it_is_a_reward_like_the_others(tiny_model: Path, tmp_path: Path) -> None:
    """Lazy, picklable without the model, counts its tokens, and loads again after `close`."""
    trainer = saved(tiny_model, tmp_path, "adapter", True, False)
    model = ValueModel(str(tmp_path / "model"))
    before = model([PROMPT], [TEXT])
    assert len(pickle.dumps(model)) < 10_000
    assert pickle.loads(pickle.dumps(model))([PROMPT], [TEXT]) == before
    model.close()
    assert model([PROMPT], [TEXT]) == before
    words = trainer.processing_class
    text = words.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True) + TEXT
    assert model.count_tokens([PROMPT], [TEXT]) == len(words(text)["input_ids"])
    assert model.__name__ == "value_model"


def test_a_model_without_a_critic_is_refused(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="finds no critic") as told:
        ValueModel(str(tiny_model))([PROMPT], [TEXT])
    assert "ppo" in str(told.value.hint)
