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
    rewards: {any: {use: length, max_chars: 9}}
    stages:
"""
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
    ],
)
def test_sizes_of_a_generation(told: Callable[..., list[Any]], args: str, message: str | None) -> None:
    found = told(f"s: {{{SAMPLED}, args: {{{args}}}}}")
    assert len(found) == (message is not None), found
    assert all(str(message) in mistake.message and mistake.hint for mistake in found)


def test_more_processes_make_a_larger_generation(
    told: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = f"s: {{{SAMPLED}, args: {{num_generations: 4, per_device_train_batch_size: 2}}}}"
    assert len(told(stage)) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert told(stage) == []


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
