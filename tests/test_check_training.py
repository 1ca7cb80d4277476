"""What a trainer refuses when it starts is told by `validate`; what it takes is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import RecipeErrors

HEAD = """
    model: {model}
    adapters:
      small: {use: lora, r: 2}
      large: {use: lora, r: 8}
      vera: {use: vera, r: 2}
    datasets:
      demos: {path: ./demos.jsonl}
      some: {path: ./some.jsonl}
      pairs: {path: ./pairs.jsonl}
      steps: {path: ./steps.jsonl}
      ranked: {path: ./ranked.jsonl}
      good: {path: ./liked.jsonl}
      tried: {path: ./tried.jsonl}
      short: {path: ./short.jsonl}
      tasks: {path: ./tasks.jsonl}
    rewards: {any: {use: length, max_chars: 9}}
    stages:
"""
ASK = [{"role": "user", "content": "3"}]
TALK = [{"role": role, "content": "a"} for role in ("assistant", "tool")]
PROMPT = "3|7>2=" * 5  # 30 tokens of the tiny world
RIGHT, WRONG = "<answer>7</answer>", "<answer>4</answer>!"  # 3 and 4 tokens


@pytest.fixture
def told(write_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> Callable[..., list[Any]]:
    rows: dict[str, list[dict[str, Any]]] = {
        "demos": [{"prompt": PROMPT, "completion": RIGHT}] * 3,
        "some": [{"prompt": PROMPT, "completion": RIGHT}, {"prompt": "3", "completion": RIGHT}],
        "pairs": [{"prompt": PROMPT, "chosen": RIGHT, "rejected": WRONG}] * 3,
        "steps": [{"prompt": PROMPT, "completions": ["3;", "7"], "labels": [True, False]}] * 3,
        "ranked": [{"prompt": PROMPT, "completions": [RIGHT, WRONG]}] * 3,
        "tried": [{"prompt": ASK, "completion": TALK, "reward": 1.0}],
        "short": [{"prompt": "3", "completions": ["a", "b"]}, {"prompt": "3", "completions": ["a"]}],
        "tasks": [{"prompt": "3", "completion": "4", "task": "a/b"}],
        "liked": [{"prompt": PROMPT, "completion": RIGHT, "label": True}] * 3,
    }
    for name, of_one in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_one))

    def mistakes(*stages: str, model: Any = tiny_model) -> list[Any]:
        file = write_recipe(HEAD + "".join(f"      {stage}\n" for stage in stages), model=model)
        try:
            pp.validate(file)
        except RecipeErrors as errors:
            return list(errors.mistakes)
        return []

    return mistakes


TWICE = "num_generations: 2, per_device_train_batch_size: 2, steps_per_generation: 2, num_iterations: 2"
SAMPLED = "use: grpo, model: base, dataset: demos, rewards: [any]"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("num_generations: 4, per_device_train_batch_size: 8", None),
        ("num_generations: 4, per_device_train_batch_size: 6", "6 completions on 1 process, which num_generations=4"),
        ("num_generations: 4, per_device_train_batch_size: 2, gradient_accumulation_steps: 2", None),
        ("num_generations: 4, generation_batch_size: 6", "generation_batch_size=6 is no multiple of 8"),
        ("num_generations: 5, generation_batch_size: 16", "16 completions on 1 process, which num_generations=5"),
        ("num_generations: 4, generation_batch_size: 16, steps_per_generation: 2", "both"),
        ("num_generations: 1", "num_generations is 1, expected 2 or more"),
        ("num_generations: 4, generation_batch_size: 32", None),
        # a generation is used for two steps, twice
        (
            f"{TWICE}, save_steps: 3",
            "save_steps=3 is no generation boundary",
        ),
        (
            f"{TWICE}, save_steps: 4",
            None,
        ),
        (
            "num_generations: 2, per_device_train_batch_size: 2, steps_per_generation: 2, save_steps: 3, "
            "save_strategy: 'no'",
            None,
        ),
        ("num_generations: 2, per_device_train_batch_size: 2, steps_per_generation: 2, save_steps: 0.5", None),
        ("num_generations: 2, per_device_train_batch_size: 2, num_train_epochs: 0", "which trains nothing"),
        ("num_generations: 2, per_device_train_batch_size: 2, num_train_epochs: 0, max_steps: 3", None),
        ("num_generations: 2, per_device_train_batch_size: 0", "per_device_train_batch_size is 0, expected 1 or more"),
        ("num_generations: 2, num_iterations: -1", "num_iterations is -1, expected 1 or more"),
    ],
)
def test_sizes_of_a_generation(told: Callable[..., list[Any]], args: str, message: str | None) -> None:
    found = told(f"s: {{{SAMPLED}, args: {{{args}}}}}")
    assert len(found) == (message is not None), found
    assert all(str(message) in mistake.message and mistake.hint for mistake in found)


def test_more_processes_make_a_larger_generation(told: Callable[..., list[Any]]) -> None:
    stage = f"{SAMPLED}, args: {{num_generations: 4, per_device_train_batch_size: 2}}"
    assert len(told(f"s: {{{stage}}}")) == 1
    assert told(f"s: {{{stage}, launch: {{config: ddp, num_processes: 2}}}}") == []


@pytest.mark.parametrize(
    ("stage", "longest"),  # that is left out whole; one more is learned from
    [
        ("use: sft, model: base, dataset: demos", 30),
        ("use: dpo, model: base, dataset: pairs", 30),
        ("use: kto, model: base, dataset: pairs", 30),
        ("use: reward, model: base, dataset: pairs", 33),
        ("use: ranking, model: base, dataset: ranked", 33),
        ("use: prm, model: base, dataset: steps", 32),
    ],
)
def test_a_max_length_that_leaves_nothing(told: Callable[..., list[Any]], stage: str, longest: int) -> None:
    (mistake,) = told(f"s: {{{stage}, args: {{max_length: {longest}}}}}")
    assert f"max_length={longest} leaves nothing to learn from: each of the first 3" in mistake.message
    assert str(mistake.hint).startswith("raise it above ")
    assert told(f"s: {{{stage}, args: {{max_length: {longest + 9}}}}}") == []
    for other in ("max_length: null", "max_length: 9, truncation_mode: keep_end"):
        if other == "max_length: null" or "use: dpo" in stage:
            assert told(f"s: {{{stage}, args: {{{other}}}}}") == []


def test_one_short_row_is_enough(told: Callable[..., list[Any]]) -> None:
    assert told("s: {use: sft, model: base, dataset: some, args: {max_length: 8}}") == []


@pytest.mark.parametrize(("limit", "count"), [(8, 1), (31, 0)])
def test_some_rows_that_are_left_out_are_warned_of(
    told: Callable[..., list[Any]], tmp_path: Path, limit: int, count: int
) -> None:
    assert told(f"s: {{use: sft, model: base, dataset: some, args: {{max_length: {limit}}}}}") == []
    warnings = [str(w) for stage in pp.validate(tmp_path / "recipe.yaml").stages for w in stage.warnings]
    assert warnings == [f"max_length={limit} leaves out 1 of the first 2 prompts (hint: raise it above 30)"] * count


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ("push_to_hub: true", "push_to_hub"),
        ("hub_model_id: me/x", "hub_model_id"),
        ("hub_strategy: end", "hub_strategy"),
        ("push_to_hub: false, hub_private_repo: true", None),
    ],
)
def test_a_training_puts_nothing_on_the_hub(told: Callable[..., list[Any]], args: str, name: str | None) -> None:
    mistakes = told(f"s: {{use: sft, model: base, dataset: demos, args: {{{args}}}}}")
    assert [mistake.message for mistake in mistakes] == [
        f"stage 's': {name} would put checkpoints on the Hub as they come, in a public repository"
    ] * bool(name)
    assert all("use: export" in mistake.hint and "secret" not in str(mistake) for mistake in mistakes)


def test_kto_of_one_class(told: Callable[..., list[Any]]) -> None:
    (mistake,) = told("s: {use: kto, model: base, dataset: good}")
    assert "all 3 labels are true" in mistake.message


@pytest.mark.parametrize(
    ("targets", "is_found"),
    [
        ("[q_proj]", True),
        ("[query, q_proj]", True),
        ("all-linear", True),
        ("'.*attn.*'", True),
        ("[query]", False),
        ("[proj]", False),  # the end of a name is no name
        ("'q_proj'", False),  # a pattern is of the whole name
    ],
)
def test_modules_that_the_base_lacks(told: Callable[..., list[Any]], targets: str, is_found: bool) -> None:
    first = "a: {use: sft, model: base, dataset: demos}"
    second = f"b: {{use: dpo, model: a, dataset: pairs, adapter: {{use: lora, target_modules: {targets}}}}}"
    found = told(first, second)
    assert ["finds no module in 'base'" in mistake.message for mistake in found] == ([] if is_found else [True])
    assert all("q_proj" in str(mistake.hint) for mistake in found)


def test_peft_agrees_on_what_is_found(tiny_model: Path) -> None:
    """The same patterns as above, on the same model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for targets, is_found in (
        (["q_proj"], True),
        (["query", "q_proj"], True),
        (".*attn.*", False),  # it finds modules that LoRA cannot take: PEFT says which
        (["query"], False),
        (["proj"], False),
        ("q_proj", False),
    ):
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        with nullcontext() if is_found else pytest.raises(ValueError, match=r"not found|not supported"):
            get_peft_model(model, LoraConfig(target_modules=targets))


@pytest.mark.parametrize(
    ("adapter", "mode", "is_refused"),
    [
        ("small", "continue", False),
        ("large", "continue", True),
        ("vera", "continue", True),
        ("large", "stack", False),
        ("large", "merge", False),
    ],
)
def test_an_adapter_that_is_another_than_the_one_it_goes_on_with(
    told: Callable[..., list[Any]], adapter: str, mode: str, is_refused: bool
) -> None:
    first = "a: {use: sft, model: base, dataset: demos, adapter: small}"
    found = told(first, f"b: {{use: dpo, model: a, dataset: pairs, adapter: {adapter}, adapter_mode: {mode}}}")
    assert ["is another than that of 'a'" in mistake.message for mistake in found] == [True] * is_refused


def test_of_a_folder_the_type_is_known(told: Callable[..., list[Any]], tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text("")
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_model), "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    stage = "b: {use: dpo, model: base, dataset: pairs, adapter_mode: continue, adapter: "
    assert told(f"{stage}large}}", model=folder) == []
    (mistake,) = told(f"{stage}vera}}", model=folder)
    assert "is another than that of 'base', LORA" in mistake.message


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("use: oreo, model: base, dataset: tried", "row 1 has a completion of several messages"),
        ("use: oreo, model: base, dataset: good, args: {alpha: -1.0}", "alpha is -1.0, expected 0 or more"),
        ("use: oreo, model: base, dataset: good, args: {loss_type: [ipo]}", "OREO does not take loss_type=['ipo']"),
        ("use: listwise_dpo, model: base, dataset: ranked, args: {use_weighting: true}", "listwise DPO does not take"),
        ("use: listwise_dpo, model: base, dataset: short", "row 2 has 1 completions and 1 scores"),
        ("use: ranking, model: base, dataset: short", "row 2 has 1 completions and 1 scores"),
        ("use: multi_adapter_sft, model: base, dataset: tasks, adapter: small", "task 'a/b' cannot name an adapter"),
        (
            "use: multi_adapter_sft, model: base, dataset: tasks, adapter: {use: full}",
            "it trains adapters: found 'full'",
        ),
        ("use: sample, model: base, dataset: demos, rewards: [any], keep: steps", "reward 'any' cannot label steps"),
        ("use: pretrain, dataset: {path: ./text.jsonl}, config: {model_type: qwen3}", "it needs 'tokenizer', or"),
        ("use: pretrain, dataset: {path: ./text.jsonl}, tokenizer: 'json:loads'", "'config' has no 'model_type'"),
        ("use: merge, model: base", "there is nothing to merge: 'base' is no adapter"),
        (
            "use: ppo, model: base, dataset: demos, rewards: [any], args: {per_device_train_batch_size: 1}",
            "a rollout has one completion, expected 2 at least",
        ),
    ],
)
def test_what_a_stage_of_ours_refuses(told: Callable[..., list[Any]], stage: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text('{"text": "a"}\n')
    found = told(f"s: {{{stage}}}")
    assert [mistake.message for mistake in found if message in mistake.message], found


def test_what_they_take_is_not_refused(told: Callable[..., list[Any]]) -> None:
    for stage in (
        "use: oreo, model: base, dataset: good",
        "use: listwise_dpo, model: base, dataset: ranked",
        "use: ranking, model: base, dataset: ranked",
        "use: ppo, model: base, dataset: demos, rewards: [any]",
        "use: sample, model: base, dataset: demos, rewards: [any]",
    ):
        assert told(f"s: {{{stage}}}") == []
    first = "a: {use: sft, model: base, dataset: demos, adapter: small}"
    assert told(first, "b: {use: merge, model: a}") == []
    (mistake,) = told("a: {use: sft, model: base, dataset: demos}", "b: {use: merge, model: a}")
    assert "'a' is no adapter" in mistake.message


def test_a_strategy_with_tools_makes_no_rollouts(told: Callable[..., list[Any]]) -> None:
    stage = "use: grpo, model: base, dataset: demos, rewards: [any], strategy: "
    assert told(f"s: {{{stage}greedy}}") == []
    for strategy in ("react, mode: native", "episodic_memory, strategy: {use: react, tools: [calculator]}"):
        tools = "" if "memory" in strategy else ", tools: [calculator]"
        found = told(f"s: {{{stage}{{use: {strategy}{tools}}}}}")
        refused = [mistake for mistake in found if "has tools, whose answers would be trained on" in mistake.message]
        assert bool(refused) == bool(tools), found  # within another strategy the stage itself finds them, as it starts
    assert told(f"s: {{{stage}{{use: react, tools: [calculator]}}}}") == [], (
        "one conversation, whose answers are masked"
    )


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("use: lora, loraplus_lr_ratio: 0.5", "loraplus_lr_ratio is 0.5, expected 1 or more"),
        ("use: lora, loraplus_lr_ratio: 16", None),
        ("use: adalora, init_r: 4, target_r: 4", "there is no rank to take away"),
        ("use: adalora, init_r: 4", "there is no rank to take away"),
        ("use: adalora", None),
        ("use: bottleneck, reduction_factor: 0", "a bottleneck has a size of 1 or more"),
        ("use: bottleneck, bottleneck_size: 0", "a bottleneck has a size of 1 or more"),
        ("use: bottleneck, placement: middle", "placement"),
        ("use: bottleneck, bottleneck_size: 4", None),
    ],
)
def test_values_that_an_adapters_config_refuses(
    told: Callable[..., list[Any]], adapter: str, message: str | None
) -> None:
    found = told(f"s: {{use: sft, model: base, dataset: demos, adapter: {{{adapter}}}}}")
    assert len(found) == (message is not None), found
    assert all(str(message) in mistake.message for mistake in found)
