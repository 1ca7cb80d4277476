"""`plan --masks`: which tokens carry loss, by TRL's own preparation, without weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins import api
from posttrain_plugins.errors import RecipeErrors
from posttrain_plugins.tiny_world.tokenizer import CHAT_TEMPLATE

TALK = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}] * 2


@pytest.fixture
def weightless(tiny_model: Path, tmp_path: Path) -> Path:
    """A model whose weights nothing could load."""
    folder = shutil.copytree(tiny_model, tmp_path / "weightless")
    (folder / "model.safetensors").write_text("no weights")
    return folder


@pytest.fixture
def shown(
    write_recipe: Callable[..., Path], weightless: Path, tiny_data: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    (tmp_path / "talk.jsonl").write_text((json.dumps({"messages": TALK}) + "\n") * 2)
    steps = {"prompt": "1", "completions": ["ab", "c"], "labels": [True, False]}
    (tmp_path / "steps.jsonl").write_text((json.dumps(steps) + "\n") * 2)

    def shown(stages: str, rows: int = 2) -> dict[str, Any]:
        head = """
        model: {model}
        adapters: {policy: {use: lora, r: 2}}
        datasets: {demos: {data}/demos.jsonl, pairs: {data}/pairs.jsonl, d: {data}/problems.jsonl}
        rewards: {any: {use: length, max_chars: 9}}
        stages:
        """
        text = "\n".join(line.strip() for line in head.splitlines()) + "\n" + stages
        file = write_recipe(text, model=weightless, data=tiny_data)
        return api.masks(pp.plan(file, runs_dir=tmp_path / "runs"), rows)

    return shown


def _parts(row: dict[str, Any]) -> tuple[str, str]:
    """What is read and what is learned of a row."""
    read, learned = ("".join(text for text, on in row["tokens"] if on is wanted) for wanted in (False, True))
    return read, learned


def test_sft_learns_what_its_options_say(shown: Callable[..., dict[str, Any]]) -> None:
    found = shown(
        "  completion: {use: sft, model: base, dataset: demos}\n"
        "  whole: {use: sft, model: base, dataset: ./talk.jsonl}\n"
        "  turns: {use: sft, model: base, dataset: ./talk.jsonl, args: {assistant_only_loss: true}}\n"
        "  later: {use: sft, model: completion, dataset: made}\n"
        "  made: {use: sample, model: completion, dataset: d, rewards: [any], keep: best}\n"
    )
    row = found["completion"]["rows"][0]
    read, learned = _parts(row)
    assert read.startswith("<|user|>")
    assert read.endswith("<|assistant|>")
    assert learned.startswith("<think>")
    assert learned.endswith("</answer><eos>")
    assert found["completion"]["warnings"] == []
    assert _parts(found["turns"]["rows"][0]) == ("<|user|>1<|assistant|>" * 2, "2<eos>2<eos>")
    assert _parts(found["whole"]["rows"][0])[1].count("<|assistant|>") == 2
    assert found["later"] == {"missing": "its data is made by stage 'made', which has not run"}
    assert set(found) == {"completion", "whole", "turns", "later"}


def test_what_is_never_learned_is_told(shown: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "endless.jinja").write_text(CHAT_TEMPLATE.replace(" + '<eos>'", ""))
    (tmp_path / "unmarked.jinja").write_text(
        CHAT_TEMPLATE.replace("{%- generation -%}", "{%- if loop.first or loop.last -%}{%- generation -%}", 1).replace(
            "{%- endgeneration -%}", "{%- endgeneration -%}{%- else -%}{{- message['content'] -}}{%- endif -%}", 1
        )
    )
    found = shown(
        "  endless: {use: sft, model: base, dataset: demos, chat_template: ./endless.jinja}\n"
        "  half: {use: sft, model: base, dataset: ./talk.jsonl, chat_template: ./unmarked.jinja,\n"
        "         args: {assistant_only_loss: true}}\n"
    )
    (warning,) = found["endless"]["warnings"]
    assert warning.startswith("EOS (<eos>) is never learned in these rows")
    assert "2 of 4 assistant turns have no loss" in found["half"]["warnings"]
    with pytest.raises(RecipeErrors, match="max_length=4 leaves nothing to learn from"):  # before any mask is made
        shown("  cut: {use: sft, model: base, dataset: demos, args: {max_length: 4, completion_only_loss: true}}\n")


@pytest.mark.slow
def test_each_method_shows_what_it_learns(shown: Callable[..., dict[str, Any]]) -> None:
    found = shown(
        "  dpo: {use: dpo, model: base, dataset: pairs, adapter: policy}\n"
        "  kto: {use: kto, model: base, dataset: pairs}\n"
        "  orpo: {use: orpo, model: base, dataset: pairs}\n"
        "  rm: {use: reward, model: base, dataset: pairs}\n"
        "  prm: {use: prm, model: base, dataset: ./steps.jsonl, separator: ';'}\n"
        "  grpo: {use: grpo, model: base, dataset: d, rewards: [any, rm], args: {beta: 0.1}}\n"
        "  ppo: {use: ppo, model: base, dataset: d, rewards: [any], adapter: policy, critic: policy}\n"
        "  distill: {use: distill, model: base, teacher: base, dataset: d}\n"
        "  online: {use: online_dpo, model: base, dataset: d, rewards: [any]}\n"
    )
    assert {stage: rows.get("error") for stage, rows in found.items()} == dict.fromkeys(found)
    for stage in ("dpo", "orpo", "rm"):
        assert [row["part"] for row in found[stage]["rows"]] == ["chosen"] * 2 + ["rejected"] * 2
    assert _parts(found["dpo"]["rows"][0])[1].endswith("</answer><eos>")
    assert _parts(found["rm"]["rows"][0])[1] == "<eos>"
    assert _parts(found["prm"]["rows"][0]) == ("1ab", ";c")
    for stage in ("grpo", "ppo", "distill"):
        row = found[stage]["rows"][0]
        read, learned = _parts(row)
        assert read.endswith("<|assistant|>")
        assert learned
        assert found[stage]["is_drawn"]
        assert found[stage]["warnings"] == []
    assert found["online"]["is_drawn"]
    assert _parts(found["online"]["rows"][0])[0].endswith("<|assistant|>")


STRANGER = '''
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from posttrain_plugins.trainers import training
from posttrain_plugins.types import AdapterRef, ConfigOf, DataRef, ModelRef


@dataclass
class Mine:
    """A stranger's stage."""

    model: ModelRef
    dataset: DataRef
    adapter: AdapterRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl:SFTConfig")] = field(default_factory=dict)
    produces: ClassVar[str] = "model"

    def __call__(self, context):
        from trl import SFTConfig, SFTTrainer

        return training.train(context, SFTTrainer, SFTConfig, self.args)
'''


def test_a_strangers_stage_has_masks_modes_and_templates_too(
    shown: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(STRANGER)
    words = "adapter: policy, adapter_mode: stack, chat_template: tiny_world"
    found = shown(f"  s: {{use: './mine.py:Mine', model: base, dataset: demos, {words}}}\n")
    assert found["s"].get("error") is None
    assert _parts(found["s"]["rows"][0])[1].endswith("<eos>")


def test_the_command_marks_what_is_learned(
    write_recipe: Callable[..., Path], weightless: Path, tiny_data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    from typer.testing import CliRunner

    from posttrain_plugins.cli.commands import app

    file = write_recipe(
        "model: {model}\nstages:\n  sft: {use: sft, model: base, dataset: {data}/demos.jsonl}\n",
        model=weightless,
        data=tiny_data,
    )
    options = ["plan", str(file), "--masks", "--runs-dir", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "<|assistant|>⟦<think>" in done.output.replace("\n", "")
    assert "all parameters" in done.output
    found = json.loads(CliRunner().invoke(app, [*options, "--json"]).stdout)
    assert found[0]["masks"]["rows"][0]["tokens"][0] == ["<|user|>", False]
    assert found[0]["starting_point"]["trains"] == "all parameters"
