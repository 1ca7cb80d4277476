"""What a stage is given against what it was made for: told before weights are loaded, with both values and a fix."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import HandoffError, RecipeErrors
from posttrain_plugins.recipe.check.template import template_text, templates
from posttrain_plugins.recipe.handoff import record, short_hash
from posttrain_plugins.recipe.spec import Object
from posttrain_plugins.tiny_world.tokenizer import CHAT_TEMPLATE

TINY = "posttrain_plugins.tiny_world.tokenizer:CHAT_TEMPLATE"


def _folder(
    folder: Path, *, head: str = "CausalLM", tokens: int = 3, template: str | None = None, **words: Any
) -> Path:
    """A model as far as a check looks: its weights are one byte."""
    folder.mkdir(parents=True)
    config = {"architectures": [f"Qwen3For{head}"], "eos_token_id": 1, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {f"t{i}": i for i in range(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "t1", **words}))
    (folder / "model.safetensors").write_text("x")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture
def told(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., list[Any]]:
    """The mistakes of a recipe on the folder `base`, or of none."""
    (tmp_path / "demos.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    (tmp_path / "plain.jsonl").write_text('{"prompt": "a", "completion": "b", "text": "c"}\n')
    (tmp_path / "other.jinja").write_text("other")

    def told(stages: str, model: str = "./base") -> list[Any]:
        try:
            pp.validate(write_recipe(f"model: {model}\nstages:\n{stages}"))
        except RecipeErrors as errors:
            return errors.mistakes
        return []

    return told


FIRST = "  sft: {use: sft, model: base, dataset: demos.jsonl, chat_template: tiny_world, args: {eos_token: t2}}\n"
SECOND = "  dpo: {use: sft, model: sft, dataset: demos.jsonl}\n"


@pytest.mark.parametrize(
    ("third", "values"),
    [
        ("chat_template: ./other.jinja", ("chat_template", short_hash("other"), short_hash(CHAT_TEMPLATE))),
        ("args: {chat_template_path: ./other.jinja}", ("chat_template", short_hash("other"), "")),
        ("args: {eos_token: t0}", ("eos_token", "t0", "t2")),
    ],
)
def test_a_third_stage_with_another_template_or_eos_is_refused(
    told: Callable[..., list[Any]], tmp_path: Path, third: str, values: tuple[str, ...]
) -> None:
    _folder(tmp_path / "base")
    (mistake,) = told(f"{FIRST}{SECOND}  third: {{use: sft, model: dpo, dataset: demos.jsonl, {third}}}\n")
    assert mistake.line == 5
    assert all(value in mistake.message for value in values)
    assert mistake.message.startswith("stage 'third' sets")
    assert mistake.hint == "remove it, or set it where 'dpo' got its own"


def test_the_same_again_and_what_comes_from_outside_may_be_set(told: Callable[..., list[Any]], tmp_path: Path) -> None:
    _folder(tmp_path / "base", template="its own")
    again = f"third: {{use: sft, model: dpo, dataset: demos.jsonl, chat_template: '{TINY}', args: {{eos_token: t2}}}}"
    assert told(f"{FIRST}{SECOND}  {again}\n") == []


def test_another_tokenizer_is_refused(told: Callable[..., list[Any]], tmp_path: Path) -> None:
    _folder(tmp_path / "base")
    third = (
        "use: pretrain, model: sft, dataset: plain.jsonl, tokenizer: 'posttrain_plugins.tiny_world.tokenizer:tokenizer'"
    )
    (mistake,) = told(f"{FIRST}  third: {{{third}}}\n")
    assert "sets tokenizer to posttrain_plugins.tiny_world.tokenizer:tokenizer" in mistake.message
    assert str(record(tmp_path / "base", {})["tokenizer"]) in mistake.message


def test_a_reward_model_is_no_policy(told: Callable[..., list[Any]], tmp_path: Path) -> None:
    _folder(tmp_path / "base", head="SequenceClassification", tokens=9)
    (mistake,) = told("  s: {use: sft, model: base, dataset: plain.jsonl}\n")
    assert "'base' is a reward model (score head on Qwen3ForSequenceClassification)" in mistake.message


@pytest.mark.parametrize("tokens", [3, 5])
def test_a_teacher_reads_the_same_tokens(told: Callable[..., list[Any]], tmp_path: Path, tokens: int) -> None:
    ours, theirs = _folder(tmp_path / "base"), _folder(tmp_path / "teacher", tokens=tokens)
    mistakes = told("  s: {use: distill, model: base, teacher: ./teacher, dataset: plain.jsonl}\n")
    if tokens == 3:
        assert mistakes == []
        return
    (mistake,) = mistakes
    records = record(theirs, {}), record(ours, {})
    assert all(f"{r['vocabulary']} ({r['tokens']} tokens)" in mistake.message for r in records)
    assert "sft" in str(mistake.hint)


def test_a_third_stage_with_a_teacher_of_another_tokenizer(told: Callable[..., list[Any]], tmp_path: Path) -> None:
    _folder(tmp_path / "base"), _folder(tmp_path / "teacher", tokens=5)
    third = "  third: {use: distill, model: dpo, teacher: ./teacher, dataset: plain.jsonl}\n"
    (mistake,) = told(f"{FIRST}{SECOND}{third}")
    assert "as 'dpo' has it" in mistake.message
    assert str(record(tmp_path / "base", {})["vocabulary"]) in mistake.message


def test_messages_need_a_template(told: Callable[..., list[Any]], tmp_path: Path) -> None:
    _folder(tmp_path / "base")
    stage = "  s: {use: sft, model: base, dataset: demos.jsonl}\n"
    (mistake,) = told(stage)
    assert "has messages to learn from, but 'base' has no chat template" in mistake.message
    assert mistake.hint.startswith("chat_template: NAME")
    assert told("  s: {use: sft, model: base, dataset: plain.jsonl}\n") == []
    assert told(stage, "{model_name_or_path: ./base, chat_template: qwen3}") == []
    mistake = told(stage, "{model_name_or_path: ./base, chat_template: qwen33}")[0]
    assert (mistake.message, "qwen3" in mistake.hint) == ("no chat template is named 'qwen33'", True)


def test_templates_have_names() -> None:
    known = templates()
    assert {"tiny_world", "chatml", "chatml_training", "qwen3", "llama3", "qwen3_training"} <= set(known)
    for name, where in known.items():
        assert "{" in (template_text(Object(where)) or ""), name


@pytest.fixture
def bare(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model without its chat template."""
    folder = shutil.copytree(tiny_model, tmp_path / "bare")
    (folder / "chat_template.jinja").unlink()
    return folder


def test_the_recipes_template_is_recorded_and_carried_on_through_data_and_training(
    bare: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    # KTO needs both classes
    text = "def in_turn(completions, **columns):\n    return [float(i % 2) for i in range(len(completions))]\n"
    (tmp_path / "r.py").write_text(text)
    file = write_recipe(
        """
        model: {model_name_or_path: {model}, chat_template: tiny_world}
        datasets: {d: {path: {data}/problems.jsonl, limit: 2}}
        rewards: {any: {use: "./r.py:in_turn"}}
        stages:
          made: {use: sample, model: base, dataset: d, rewards: [any], num_generations: 4, max_tokens: 2,
                 keep: labelled, threshold: 0.5}
          kto: {use: kto, model: base, dataset: made, args: {max_steps: 1, per_device_train_batch_size: 2}}
        """,
        model=bare,
        data=tiny_data,
    )
    run = pp.run(file, runs_dir=tmp_path / "runs")
    assert AutoTokenizer.from_pretrained(run["kto"].model_path).chat_template == CHAT_TEMPLATE
    assert run["kto"].manifest["handoff"]["chat_template"] == short_hash(CHAT_TEMPLATE)
    assert run.plan["kto"].parts["model.chat_template"] == run.plan["made"].parts["model.chat_template"]


ADAPTED = """
model: {model}
adapters: {first: {use: lora, r: 4}, second: {use: lora, r: 2}}
datasets: {demos: {path: {data}/demos.jsonl, limit: 4}}
stages:
  sft: {use: sft, model: base, dataset: demos, adapter: first, args: {max_steps: 1, per_device_train_batch_size: 2}}
  more: {use: sft, model: sft, dataset: demos, adapter: second, adapter_mode: merge,
         args: {max_steps: 1, per_device_train_batch_size: 2}}
  last: {use: sft, model: more, dataset: demos, adapter: second, args: {max_steps: 1, per_device_train_batch_size: 2}}
"""


def test_an_adapter_whose_base_changed_is_refused_before_it_is_used(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    file = write_recipe(ADAPTED, model=base, data=tiny_data)
    run = pp.run(file, runs_dir=tmp_path / "runs", until="more")
    made = run["more"].manifest["handoff"]
    assert Path(made["base"]).is_dir(), "the merged base is where the record says"
    assert made["base_weights"] != run["sft"].manifest["handoff"]["base_weights"]
    weights = Path(made["base"]) / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(HandoffError, match="its base changed") as caught:
        pp.run(file, runs_dir=tmp_path / "runs", only=["last"])
    assert made["base_weights"][:16] in caught.value.message
    shutil.rmtree(made["base"])
    with pytest.raises(HandoffError, match="its base is gone"):
        pp.run(file, runs_dir=tmp_path / "runs", only=["last"])


PINNED: list[dict[str, str]] = [{"model_revision": "v1"}, {}]


def test_the_base_of_an_adapter_is_told_apart_by_the_pinned_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain_plugins.recipe.run import run

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    references = tmp_path / "hub/models--org--name/refs"
    references.mkdir(parents=True)
    (references / "v1").write_text("a" * 40)
    chosen: Any = SimpleNamespace(store=SimpleNamespace(root=tmp_path))
    stages: list[Any] = [SimpleNamespace(spec=SimpleNamespace(loading=loading)) for loading in PINNED]
    pinned, newest = (run._weights_of(chosen, stage)("org/name") for stage in stages)
    (references / "main").write_text("b" * 40)  # the Hub moved on
    assert run._weights_of(chosen, stages[0])("org/name") == pinned == f"hub:org/name@{'a' * 40}"
    assert run._weights_of(chosen, stages[1])("org/name") != newest


def test_a_language_model_is_no_judge(told: Callable[..., list[Any]], tmp_path: Path) -> None:
    base = _folder(tmp_path / "base")
    rewards = f"rewards: [{{use: reward_model, model_name_or_path: {base}}}]"
    (mistake,) = told(f"  g: {{use: grpo, model: base, dataset: plain.jsonl, {rewards}}}\n")
    assert "reward_model has no trained head" in mistake.message


def test_an_editor_knows_the_words_of_a_stage() -> None:
    from posttrain_plugins.recipe.describe.json_schema import recipe_schema

    known = recipe_schema()["$defs"]
    assert {"adapter_mode", "chat_template"} <= set(known["stage.dpo"]["properties"])
    assert known["stage.dpo"]["properties"]["adapter_mode"]["enum"] == ["continue", "stack", "merge"]
    assert "adapter_mode" not in known["stage.evaluate"]["properties"]


THINKS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>{% if thinks %}<think>{% endif %}"
)
OPTED = """
model: {model_name_or_path: {model}}
adapters: {first: {use: lora, r: 2}}
datasets: {d: {path: {data}/problems.jsonl, limit: 4}}
rewards: {digits: {use: regex, pattern: "[0-9]"}}
stages:
  grpo: {use: grpo, model: base, dataset: d, rewards: [digits], adapter: first, chat_template: {template},
         args: {max_steps: 1, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 4,
                gradient_checkpointing: false, chat_template_kwargs: {thinks: true}}}
  plain: {use: merge, model: grpo}
"""


def test_a_policy_is_asked_as_its_prompts_were_rendered(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """The options of the chat template go with the weights: recorded, merged along, and applied by who answers."""
    from posttrain_plugins.backends.transformers.backend import TransformersBackend, render
    from posttrain_plugins.models.load import load_tokenizer

    (tmp_path / "thinks.jinja").write_text(THINKS, encoding="utf-8")
    file = write_recipe(OPTED, model=tiny_model, data=tiny_data, template=tmp_path / "thinks.jinja")
    run = pp.run(file, runs_dir=tmp_path / "runs")
    assert run["grpo"].manifest["handoff"]["chat_template_kwargs"] == {"thinks": True}
    assert "chat_template_kwargs" not in record(tiny_model, {})
    for name in ("grpo", "plain"):
        backend = TransformersBackend(run[name].model_path)
        ids = render(backend.tokenizer, [{"role": "user", "content": "3|7"}])
        assert backend.tokenizer.decode(ids) == "<|user|>3|7<|assistant|><think>"
        assert backend.opens_thought
    bare = load_tokenizer(tiny_model)
    assert "<think>" not in bare.decode(render(bare, [{"role": "user", "content": "3|7"}]))
