"""What is scored is what was trained on: token ids of training and of asking, for every scorer, tokenizer, template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOTrainer, RewardConfig, RewardTrainer

from posttrain_plugins.evaluation.calibration import score_pairs
from posttrain_plugins.plugins.source import package_file
from posttrain_plugins.rewards.perplexity import Perplexity
from posttrain_plugins.rewards.process_reward_model import ProcessRewardModel
from posttrain_plugins.rewards.reward_model import RewardModel
from posttrain_plugins.rewards.value_model import ValueModel
from posttrain_plugins.testing import tiny
from posttrain_plugins.tiny_world.tokenizer import tokenizer as tiny_tokenizer
from posttrain_plugins.trainers import oreo, prm, training
from posttrain_plugins.trainers.listwise_dpo import ListwiseDPOTrainer
from posttrain_plugins.trainers.ranking import encode_ranking
from posttrain_plugins.types import ResolvedReward, StageContext

WITH_TOOLS = (
    "{%- if tools %}{{- 'tools:' + tools | map(attribute='name') | join(',') + ';' }}{% endif %}"
    "{%- for m in messages %}{{- '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}"
    "{%- if thinks is defined and not thinks %}{{- '<answer>' }}{% endif %}{% endif %}"
)
TOOLS = [{"name": "calculator"}]
CHATS = [
    [{"role": "user", "content": "3|7>2"}],
    [{"role": "system", "content": "be short"}, {"role": "user", "content": "3|7>2"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>b</think>c"},
        {"role": "user", "content": "d"},
    ],
]
PLAIN = ["3|7>2=\n", "Is it?  ", ""]


def byte_level(bos: bool, eos: bool = False) -> Any:
    """A tokenizer of bytes; it puts BOS before a text, and EOS behind it, as Llama's and T5's do."""
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>"])
    parts = ["<s>"] * bos + ["$A"] + ["</s>"] * eos
    ids = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
    core.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single=" ".join(parts), special_tokens=ids),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def with_template(tokenizer: Any, template: str) -> Any:
    folder = package_file("trl").parent / "chat_templates"
    tokenizer.chat_template = (
        (folder / f"{template}.jinja").read_text(encoding="utf-8") if template.isidentifier() else template
    )
    return tokenizer


TOKENIZERS = {
    "tiny": tiny_tokenizer,
    "bytes": lambda: with_template(byte_level(bos=False), "qwen3"),
    "bos": lambda: with_template(byte_level(bos=True), "llama3"),
    "bos and eos": lambda: with_template(byte_level(bos=True, eos=True), WITH_TOOLS),
    "no thought": lambda: with_template(byte_level(bos=True), "qwen2_5"),
}


@pytest.fixture(params=list(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def pairs(tokenizer: Any) -> Iterator[list[dict[str, Any]]]:
    """Data sets, each of one form: text with and without EOS and prompt, messages with tools and template options."""
    yield [{"prompt": p, "chosen": "7", "rejected": f"4{tokenizer.eos_token}"} for p in PLAIN]
    yield [{"chosen": f"{p}7", "rejected": f"{p}4"} for p in PLAIN]
    chosen, rejected = ([{"role": "assistant", "content": f"<think>x</think>{a}"}] for a in "74")
    chats = [{"prompt": chat, "chosen": chosen, "rejected": rejected} for chat in CHATS]
    yield chats
    yield [{name: [*row["prompt"], *row[name]] for name in ("chosen", "rejected")} for row in chats]
    yield [{**row, "tools": json.dumps(TOOLS), "chat_template_kwargs": {"thinks": False}} for row in chats]


def trained_on(tokenizer: Any, rows: list[dict[str, Any]]) -> list[list[int]]:
    """What TRL's own trainer of reward models makes of the rows: chosen and rejected in turn."""
    made = RewardTrainer._prepare_dataset(
        None, Dataset.from_list(rows), tokenizer, RewardConfig("out", bf16=False, max_length=None), "train"
    )
    return [row[name] for row in made for name in ("chosen_ids", "rejected_ids")]


def asked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How a trainer asks a reward for the completions of these rows."""
    columns = {name: [row[name] for row in rows for _ in range(2)] for name in rows[0] if name not in ("chosen",)}
    given = {name: values for name, values in columns.items() if name in ("tools", "chat_template_kwargs")}
    prompts = [row.get("prompt", "") for row in rows for _ in range(2)]
    return {"prompts": prompts, "completions": [row[n] for row in rows for n in ("chosen", "rejected")], **given}


def test_a_reward_model_reads_what_it_was_trained_on(tokenizer: Any) -> None:
    reward = RewardModel(str(tiny.model("classifier")))
    reward.classifier._tokenizer = tokenizer
    counted = 0
    for rows in pairs(tokenizer):
        asks = asked(rows)
        found = reward._encode(asks.pop("prompts"), asks.pop("completions"), asks)
        assert found == trained_on(tokenizer, rows)
        counted += len(found)
    assert counted == 30


def test_held_out_pairs_are_measured_on_the_same(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    class Spy:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.tokenizer = tokenizer

        def logits(self, ids: Any, batch_size: int) -> Iterator[tuple[int, list[float]]]:
            seen.extend(ids)
            return ((i, [0.0]) for i in range(len(ids)))

        def close(self) -> None: ...

    monkeypatch.setattr("posttrain_plugins.evaluation.calibration.Classifier", Spy)
    for rows in pairs(tokenizer):
        seen.clear()
        score_pairs("any", rows, {}, 8)
        assert seen == trained_on(tokenizer, rows)


def test_rankings_are_read_as_pairs_are(tokenizer: Any) -> None:
    for rows in pairs(tokenizer):
        if "prompt" not in rows[0]:  # a ranking has one
            continue
        found = []
        for i, row in enumerate(rows):
            ranking = {**row, "completions": [row["chosen"], row["rejected"]]}
            found += encode_ranking(tokenizer, ranking, i)["ranked_ids"]
        assert found == trained_on(tokenizer, rows)


def test_listwise_dpo_reads_what_dpo_does(tokenizer: Any) -> None:
    """A tokenizer that puts EOS behind every text makes no prompt of a text, in TRL neither."""
    for rows in pairs(tokenizer):
        if "prompt" not in rows[0] or "tools" in rows[0]:
            continue
        trainer = SimpleNamespace(_tokenizer=tokenizer, _is_vision_dataset=False)
        args = DPOConfig("out", bf16=False, max_length=None)
        theirs = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, "train")
        for i, (row, other) in enumerate(zip(rows, theirs, strict=True)):
            ranking = {"prompt": row["prompt"], "completions": [row["chosen"], row["rejected"]]}
            ours = ListwiseDPOTrainer.encode_row(object.__new__(ListwiseDPOTrainer), tokenizer, ranking, i, args)
            assert ours["ranked_ids"] == [other["prompt_ids"] + other[name] for name in ("chosen_ids", "rejected_ids")]
            assert min(ours["prompt_lengths"]) == len(other["prompt_ids"])


def test_steps_are_read_as_they_were_trained(tokenizer: Any) -> None:
    reward = ProcessRewardModel(str(tiny.model("tokens")), separator=";")
    reward.classifier._tokenizer = tokenizer
    steps = ["3|7=4;", "4>2=4;", "so 4"]
    for prompt in (*PLAIN, *CHATS):
        row = {"prompt": prompt, "completions": steps, "labels": [True, True, False]}
        trained = prm.encode(tokenizer, row, 0, ";")
        seen: list[list[int]] = []

        def logits(ids: list[list[int]], batch_size: int, seen: Any = seen) -> Iterator[tuple[int, Any]]:
            import torch

            seen.extend(ids)
            # each token says its own place, so the scores say where they were read
            return ((i, torch.arange(len(one), dtype=torch.float64)[:, None]) for i, one in enumerate(ids))

        reward.classifier.logits = logits  # type: ignore[method-assign, assignment]
        completion = "".join(steps) if isinstance(prompt, str) else [{"role": "assistant", "content": "".join(steps)}]
        (scores,) = reward.step_scores([prompt], [completion])
        assert seen == [trained["input_ids"]]
        import torch

        places = [i for i, label in enumerate(trained["step_labels"]) if label != prm.IGNORED]
        assert scores == torch.tensor(places, dtype=torch.float64).sigmoid().tolist()


@pytest.mark.parametrize("options", [{}, {"thinks": False}])
def test_a_critic_and_perplexity_read_prompts_as_rollouts_have_them(
    tokenizer: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    """By `GRPOTrainer`, of which PPO is one; what its template was told stands beside the critic."""
    trainer = SimpleNamespace(
        processing_class=tokenizer, chat_template=None, chat_template_kwargs=options, tools=None, _is_vlm=False
    )
    trainer.environment_factories = None
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic/critic.json").write_text(json.dumps({"kind": "shared", "chat_template_kwargs": options}))
    critic = ValueModel(str(tmp_path))
    critic._critic._tokenizer = tokenizer
    likelihood = Perplexity("any")
    likelihood._tokenizer = tokenizer
    for prompt in (*PLAIN[:2], *CHATS):
        ((rollout, *_), *_) = GRPOTrainer._tokenize_prompts(trainer, [prompt])
        ids, head, _ = critic._encode(prompt, "4")
        assert ids[:head] == rollout
        if not options:  # no model says what its own template was told
            assert likelihood._encode([prompt], ["4"])[0][0] == rollout
            assert (
                oreo.encode(tokenizer, {"prompt": prompt, "completion": "4", "reward": 1.0}, 0, "token", ";")[
                    "input_ids"
                ][:head]
                == rollout
            )


@pytest.mark.parametrize(
    ("row", "args", "is_path"),
    [
        ({"prompt": CHATS[0]}, {}, True),  # TRL renders it as it was trained, so a plain script's numbers come out
        ({"prompt": "3|7>2"}, {}, False),
        ({"prompt": CHATS[0], "tools": "[]"}, {}, False),
        ({"prompt": CHATS[0]}, {"chat_template_kwargs": {"thinks": False}}, False),
    ],
)
def test_trl_scores_by_itself_only_what_it_renders_as_it_trained(
    row: dict[str, Any], args: dict[str, Any], is_path: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(training, "train", lambda *_, **kwargs: given.update(kwargs))
    reward = ResolvedReward("rm", print, model_path="rm/model")
    inputs = {"rewards": [reward], "dataset": Dataset.from_list([row])}
    context = StageContext("s", Path(), 0, inputs, None, None, lambda: False, args)  # type: ignore[arg-type]
    training.train_with_rewards(context, None, None, args)
    assert given["reward_funcs"] == ["rm/model" if is_path else print]
