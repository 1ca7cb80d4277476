"""Preference methods, rankings and distillation: the losses by hand, and each stage against plain TRL."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from posttrain_plugins import run
from posttrain_plugins.errors import InputError
from posttrain_plugins.recipe.run.run import Run
from posttrain_plugins.trainers.ranking import (
    RankingCollator,
    RankingConfig,
    RankingTrainer,
    concordance,
    encode_ranking,
    plackett_luce_loss,
)

PROMPT = [{"role": "user", "content": "3|7>2"}]
RIGHT = "<think>3|7=4;4>2=4</think><answer>4</answer>"
ORDER = [RIGHT, "<answer>4</answer>", "<answer>7</answer>"]
TRAINER = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "gradient_checkpointing": False,
}


# --- The Plackett-Luce loss ------------------------------------------------------------------------------------------


def test_the_loss_is_the_likelihood_of_the_order() -> None:
    """The probability of an order is a product of softmaxes, and sums to one over all orders."""
    scores = torch.tensor([0.3, -1.2, 0.8, 0.1])

    def log_likelihood(order: tuple[int, ...]) -> float:
        levels = torch.zeros(4)
        for place, item in enumerate(order):
            levels[item] = 4.0 - place
        return -float(plackett_luce_loss(scores, levels)) * 3  # the mean over the three that are above another

    first = (2, 0, 3, 1)
    by_hand = sum(
        math.log(math.exp(scores[i]) / sum(math.exp(scores[j]) for j in first[at:])) for at, i in enumerate(first)
    )
    assert log_likelihood(first) == pytest.approx(by_hand, abs=1e-6)
    total = sum(math.exp(log_likelihood(order)) for order in itertools.permutations(range(4)))
    assert total == pytest.approx(1.0, abs=1e-5)


def test_two_completions_are_bradley_terry() -> None:
    scores = torch.tensor([0.4, 1.0])
    expected = -torch.nn.functional.logsigmoid(scores[0] - scores[1])
    assert float(plackett_luce_loss(scores, torch.tensor([2.0, 1.0]))) == pytest.approx(float(expected))


def test_ties_are_not_held_against_each_other() -> None:
    scores = torch.tensor([0.4, 1.0, -3.0], requires_grad=True)
    plackett_luce_loss(scores, torch.tensor([1.0, 1.0, 1.0])).backward()
    assert scores.grad is not None
    assert scores.grad.abs().sum() == 0
    scores.grad = None
    plackett_luce_loss(scores, torch.tensor([1.0, 1.0, 0.0])).backward()
    assert scores.grad[0] < 0
    assert scores.grad[1] < 0
    assert scores.grad[2] > 0


def test_concordance_counts_ordered_pairs() -> None:
    assert concordance(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([3.0, 2.0, 1.0])) == (2, 3)
    assert concordance(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0])) == (0, 0)


# --- The trainers ----------------------------------------------------------------------------------------------------


def rankings(count: int = 8) -> list[dict[str, Any]]:
    return [{"prompt": PROMPT, "completions": ORDER} for _ in range(count)]


def test_a_ranking_is_read_as_a_reward_model_reads_it(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = encode_ranking(tokenizer, rankings()[0], 0)
    whole = tokenizer.apply_chat_template([*PROMPT, {"role": "assistant", "content": RIGHT}], tokenize=False)
    assert tokenizer.decode(row["ranked_ids"][0]) == whole
    assert row["levels"] == [3.0, 2.0, 1.0]
    assert encode_ranking(tokenizer, {**rankings()[0], "scores": [1, 1, 0]}, 0)["levels"] == [1.0, 1.0, 0.0]
    with pytest.raises(InputError, match="row 3 has 1 completions"):
        encode_ranking(tokenizer, {"prompt": PROMPT, "completions": ["a"]}, 2)


def test_rankings_of_different_lengths_share_a_batch() -> None:
    batch = RankingCollator(0)(
        [{"ranked_ids": [[5], [6, 7]], "levels": [2, 1]}, {"ranked_ids": [[1], [2], [3]], "levels": [3, 2, 1]}]
    )
    assert batch["sizes"] == [2, 3]
    assert batch["input_ids"].tolist() == [[5, 0], [6, 7], [1, 0], [2, 0], [3, 0]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1], [1, 0], [1, 0], [1, 0]]


def test_a_pair_trains_as_trls_reward_trainer_does(tiny_model: Path, tmp_path: Path) -> None:
    """With two completions, Plackett-Luce is Bradley-Terry: the same first loss as TRL on the same pair."""
    from trl import RewardConfig, RewardTrainer

    args = {**TRAINER, "max_steps": 1, "per_device_train_batch_size": 1, "seed": 3}
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ORDER[:2])
    plain = RewardTrainer(
        str(tiny_model),
        RewardConfig(str(tmp_path / "a"), **args),
        train_dataset=Dataset.from_list([{"prompt": PROMPT, "chosen": chosen, "rejected": rejected}]),
    )
    ours = RankingTrainer(
        str(tiny_model),
        RankingConfig(str(tmp_path / "b"), **args),
        train_dataset=Dataset.from_list([{"prompt": PROMPT, "completions": ORDER[:2]}]),
    )
    losses = [float(trainer.train().training_loss) for trainer in (plain, ours)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_listwise_dpo_of_a_pair_is_dpo(tiny_model: Path, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    from posttrain_plugins.trainers.listwise_dpo import ListwiseDPOTrainer

    args = {**TRAINER, "max_steps": 3, "per_device_train_batch_size": 1, "seed": 3, "learning_rate": 1e-3}
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ORDER[:2])
    plain = DPOTrainer(
        str(tiny_model),
        args=DPOConfig(str(tmp_path / "a"), **args),
        train_dataset=Dataset.from_list([{"prompt": PROMPT, "chosen": chosen, "rejected": rejected}]),
    )
    ours = ListwiseDPOTrainer(
        str(tiny_model),
        args=DPOConfig(str(tmp_path / "b"), **args),
        train_dataset=Dataset.from_list([{"prompt": PROMPT, "completions": ORDER[:2]}]),
    )
    losses = [float(trainer.train().training_loss) for trainer in (plain, ours)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize(
    "option",
    [
        {"loss_type": "ipo"},
        {"precompute_ref_log_probs": True},
        {"ld_alpha": 0.5},
        {"f_divergence_type": "js_divergence"},
        {"router_aux_loss_coef": 0.01},
    ],
)
def test_listwise_dpo_refuses_what_only_pairs_have(tiny_model: Path, tmp_path: Path, option: dict[str, Any]) -> None:
    from trl import DPOConfig

    from posttrain_plugins.trainers.listwise_dpo import ListwiseDPOTrainer

    with pytest.raises(InputError, match=next(iter(option))):
        ListwiseDPOTrainer(
            str(tiny_model),
            args=DPOConfig(str(tmp_path), **TRAINER, **option),
            train_dataset=Dataset.from_list(rankings()),
        )


def test_listwise_dpo_counts_the_rankings_that_are_too_long(tiny_model: Path, tmp_path: Path) -> None:
    from trl import DPOConfig

    from posttrain_plugins.trainers.listwise_dpo import ListwiseDPOTrainer

    long = {"prompt": PROMPT, "completions": [ORDER[0], "7" * 300]}
    with pytest.warns(UserWarning, match=f"1 of {len(rankings()) + 1} rows are left out: no ranking of the train"):
        trainer = ListwiseDPOTrainer(
            str(tiny_model),
            args=DPOConfig(str(tmp_path), **{**TRAINER, "max_length": 200}),
            train_dataset=Dataset.from_list([*rankings(), long]),
        )
    assert len(trainer.train_dataset) == len(rankings())


# --- DPO's losses ----------------------------------------------------------------------------------------------------

LOSSES: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "hinge": {},
    "ipo": {},
    "exo_pair": {"label_smoothing": 1e-3},
    "nca_pair": {},
    "robust": {"label_smoothing": 0.1},
    "bco_pair": {},
    "sppo_hard": {},
    "aot": {},
    "aot_unpaired": {},
    "apo_zero": {},
    "apo_down": {},
    "discopop": {},
    "sft": {},
    "sigmoid_norm": {},
}


def test_every_loss_of_trl_is_named_here() -> None:
    import inspect
    import re

    from trl import DPOTrainer

    assert set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(DPOTrainer))) == set(LOSSES)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_recipe_may_ask_for_every_loss(loss: str, tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    from posttrain_plugins.api import validate

    stage = {"use": "dpo", "model": "base", "dataset": "pairs", "args": {"loss_type": [loss], **LOSSES[loss]}}
    data = {"pairs": {"path": str(tiny_data / "pairs.jsonl")}}
    recipe = {"name": "dpo", "model": str(tiny_model), "datasets": data, "stages": {"dpo": stage}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    assert validate(tmp_path / "r.yaml").stage("dpo")


def test_every_loss_moves_the_policy(tiny_model: Path, tiny_data: Path, tmp_path: Path) -> None:
    """One step of each, from a policy that is no longer the reference."""
    from trl import DPOConfig, DPOTrainer

    args = {**TRAINER, "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "max_length": 96}
    trainer = DPOTrainer(
        str(tiny_model),
        args=DPOConfig(str(tmp_path), **args),
        train_dataset=Dataset.from_json(str(tiny_data / "pairs.jsonl")).select(range(4)),
    )
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    for loss, more in LOSSES.items():
        trainer.loss_types, trainer.label_smoothing = [loss], more.get("label_smoothing", 0.0)
        trainer.model.zero_grad()
        value = trainer.compute_loss(trainer.model, dict(batch))
        value.backward()
        moved = sum(float(p.grad.abs().sum()) for p in trainer.model.parameters() if p.grad is not None)
        assert math.isfinite(value.item()), loss
        assert 0 < moved < math.inf, loss


# --- The stages ------------------------------------------------------------------------------------------------------

SHARED = {
    "max_steps": 3,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "max_length": 96,
}
SAMPLED = {**SHARED, "max_completion_length": 8}
ARGS: dict[str, dict[str, Any]] = {
    "kto": SHARED,
    "orpo": SHARED,
    "cpo": {**SHARED, "loss_type": "simpo", "cpo_alpha": 0.0},
    "online_dpo": {k: v for k, v in {**SHARED, "max_new_tokens": 8}.items() if k != "max_length"},
    "distill": {k: v for k, v in SAMPLED.items() if k != "max_length"},
    "ranking": SHARED,
    "listwise_dpo": SHARED,
}


@pytest.fixture(scope="module")
def methods(tiny_model: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    folder = tmp_path_factory.mktemp("methods")
    (folder / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rankings(16)), encoding="utf-8")
    pairs = [json.loads(line) for line in (tiny_data / "pairs.jsonl").read_text().splitlines()]
    labelled = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in pairs
        for name in ("chosen", "rejected")
    ]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled), encoding="utf-8")
    (folder / "r.py").write_text(
        "def digits(completions, **_):\n    return [float(len(str(c))) for c in completions]\n"
    )
    recipe = {
        "name": "methods",
        "seed": 5,
        "model": str(tiny_model),
        "adapters": {"small": {"use": "lora", "r": 4}},
        "datasets": {
            "pairs": {"path": str(tiny_data / "pairs.jsonl")},
            "problems": {"path": str(tiny_data / "problems.jsonl"), "columns": ["prompt"]},
            "labelled": {"path": "labelled.jsonl"},
            "rankings": {"path": "rankings.jsonl"},
        },
        "rewards": {"digits": {"use": "./r.py:digits"}},
        "stages": {
            "kto": {"use": "kto", "model": "base", "dataset": "labelled", "args": ARGS["kto"]},
            "orpo": {"use": "orpo", "model": "base", "dataset": "pairs", "args": ARGS["orpo"]},
            "cpo": {"use": "cpo", "model": "base", "dataset": "pairs", "args": ARGS["cpo"]},
            "online_dpo": {
                "use": "online_dpo",
                "model": "base",
                "dataset": "problems",
                "rewards": ["digits"],
                "args": ARGS["online_dpo"],
            },
            "distill": {
                "use": "distill",
                "model": "base",
                "teacher": "kto",
                "dataset": "problems",
                "args": ARGS["distill"],
            },
            "ranking": {
                "use": "ranking",
                "model": "base",
                "dataset": "rankings",
                "eval_dataset": "rankings",
                "args": {**ARGS["ranking"], "max_steps": 30},
            },
            "listwise_dpo": {
                "use": "listwise_dpo",
                "model": "base",
                "dataset": "rankings",
                "adapter": "small",
                "args": ARGS["listwise_dpo"],
            },
        },
    }
    (folder / "r.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return run(folder / "r.yaml", runs_dir=folder / "runs"), folder


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kto", "orpo", "cpo", "online_dpo", "distill"])
def test_a_stage_gives_the_weights_of_a_plain_trl_script(
    methods: tuple[Run, Path], tiny_model: Path, tiny_data: Path, tmp_path: Path, name: str
) -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import trl
    from transformers import AutoTokenizer
    from trl.experimental import cpo, online_dpo, orpo

    made, folder = methods
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, padding_side="left")
    options = {**TRAINER, **ARGS[name], "seed": 5, "save_strategy": "no"}
    float32 = {"model_init_kwargs": {"dtype": "float32"}}
    data = {"kto": folder / "labelled.jsonl", "orpo": tiny_data / "pairs.jsonl", "cpo": tiny_data / "pairs.jsonl"}
    dataset = Dataset.from_json(str(data.get(name, tiny_data / "problems.jsonl")))
    if name in ("online_dpo", "distill"):
        dataset = dataset.select_columns(["prompt"])

    def digits(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(str(c))) for c in completions]

    scripts: dict[str, Callable[[], Any]] = {
        "kto": lambda: trl.KTOTrainer(
            str(tiny_model), args=trl.KTOConfig(str(tmp_path), **options), train_dataset=dataset
        ),
        "orpo": lambda: orpo.ORPOTrainer(
            str(tiny_model),
            orpo.ORPOConfig(str(tmp_path), **options, **float32),
            train_dataset=dataset,
            processing_class=tokenizer,
        ),
        "cpo": lambda: cpo.CPOTrainer(
            str(tiny_model),
            cpo.CPOConfig(str(tmp_path), **options, **float32),
            train_dataset=dataset,
            processing_class=tokenizer,
        ),
        "online_dpo": lambda: online_dpo.OnlineDPOTrainer(
            str(tiny_model),
            reward_funcs=digits,
            args=online_dpo.OnlineDPOConfig(str(tmp_path), **options, **float32),
            train_dataset=dataset,
            processing_class=tokenizer,
        ),
        "distill": lambda: trl.DistillationTrainer(
            str(tiny_model),
            str(made["kto"].model_path),
            trl.DistillationConfig(str(tmp_path), **options),
            train_dataset=dataset,
        ),
    }
    trainer = scripts[name]()
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    plain, ours = weights(tmp_path / "model"), weights(made[name].model_path)
    before = weights(tiny_model)
    assert plain.keys() == ours.keys()
    assert all(torch.equal(plain[key], ours[key]) for key in plain)
    assert any(not torch.equal(before[key], ours[key]) for key in ours)


@pytest.mark.slow
def test_a_ranking_model_orders_what_it_was_trained_on(methods: tuple[Run, Path]) -> None:
    import posttrain_plugins as pp

    made, _ = methods
    assert made["ranking"].metrics["eval_accuracy"] == 1.0
    reward = pp.load("reward", "reward_model", model_name_or_path=str(made["ranking"].model_path))
    scores = reward([PROMPT] * 3, [[{"role": "assistant", "content": text}] for text in ORDER])
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_listwise_dpo_trains_an_adapter_towards_the_order(methods: tuple[Run, Path]) -> None:
    made, _ = methods
    assert (made["listwise_dpo"].model_path / "adapter_config.json").is_file()
    assert made["listwise_dpo"].metrics["rewards/margins"] > 0
