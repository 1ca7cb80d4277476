"""The reward model scores as TRL does."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHATS, CONFIG
from transformers import AutoConfig, AutoModelForSequenceClassification

from posttrain_plugins.models.load_report import expecting
from posttrain_plugins.rewards.reward_model import RewardModel
from posttrain_plugins.testing import tiny


@pytest.fixture(scope="module")
def reward_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("reward")
    config = AutoConfig.for_model("qwen3", **CONFIG, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_the_reward_model_scores_as_trl_does(reward_folder: Path, tokenizer: Any) -> None:
    reward = RewardModel(str(reward_folder), batch_size=2, device="cpu")
    completions = [[{"role": "assistant", "content": text}] for text in ("4", "12345", "1", "777")]
    scores = reward(prompts=CHATS, completions=completions, solution=["1"] * 4)
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
    texts = [tokenizer.apply_chat_template(p + c, tokenize=False) for p, c in zip(CHATS, completions, strict=True)]
    inputs = tokenizer(text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.inference_mode():
        expected = model(**inputs).logits[:, 0].tolist()
    assert scores == pytest.approx(expected, abs=1e-5)
    assert reward.count_tokens(CHATS, completions) == int(inputs["attention_mask"].sum())


def test_the_reward_model_takes_plain_text_and_pickles(reward_folder: Path) -> None:
    reward = RewardModel(str(reward_folder), device="cpu", max_length=3)
    scores = reward(prompts=["1<2", "1<3"], completions=["45", "6"])
    alone = [*reward(prompts=["1<2"], completions=["45"]), *reward(prompts=["1<3"], completions=["6"])]
    assert scores == pytest.approx(alone, abs=1e-5)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward
    assert copy.classifier._model is None
    assert copy(prompts=["1<2"], completions=["45"]) == alone[:1]
    assert reward.__name__ == "reward_model"


def test_a_head_that_comes_with_the_adapter_is_not_reported_as_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever else is missing, and a head that comes from nowhere, is."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    base = str(tiny.model("model"))
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    get_peft_model(model, config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    assert re.search(r"score.weight\s*\| MISSING", caplog.text)
    caplog.clear()
    assert RewardModel(str(tmp_path), device="cpu")(["a"], ["b"])[0] is not None
    assert "LOAD REPORT" not in caplog.text
    with expecting(["another"]):
        AutoModelForTokenClassification.from_pretrained(base, num_labels=1)
    assert re.search(r"score.bias\s*\| MISSING", caplog.text)
