"""Cards: each kind of model, the licence of its base or none, figures as manifests have them, texts that stay text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.publish.card import Exported, model_card
from posttrain_plugins.publish.markdown import fenced, plain, table
from posttrain_plugins.publish.recipe import write_recipe
from posttrain_plugins.types import ModelArtifact

HOSTILE = "| a | ![x](http://evil.test/x.png)\n---\n<script>alert(1)</script> `b` [c](javascript:1) *d* $e$ \ud800"
ALLOWED_FRONT = {
    *("license", "license_name", "license_link", "language", "library_name", "pipeline_tag", "base_model"),
    *("base_model_relation", "datasets", "tags", "model-index"),
}


def read(card: Path | str) -> tuple[dict[str, Any], str]:
    """Front matter and text; what `huggingface_hub` makes of it is the same."""
    text = card.read_text(encoding="utf-8") if isinstance(card, Path) else card
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    again = yaml.safe_load(str(ModelCard(text)).split("---\n", 2)[1])
    assert again == values
    assert values.keys() <= ALLOWED_FRONT
    return values, body


def rows(body: str, section: str) -> list[list[str]]:
    """Cells of a section's table, as a reader sees them."""
    part = body.partition(f"## {section}\n")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    return [[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in line] for line in cells]


def manifest(folder: Path, **values: Any) -> Path:
    """A stage's folder with a manifest."""
    (folder / "model").mkdir(parents=True)
    whole = {
        "format": 2,
        "stage": folder.name.rpartition("-")[0],
        "use": "sft",
        "key": "0" * 64,
        "start": None,
        "from": [],
        "metrics": {},
        "details": {},
        "parts": {},
        "versions": {},
        "handoff": {},
        "finished": "",
        **values,
    }
    (folder / "manifest.json").write_text(json.dumps(whole))
    return folder


KINDS = """
    name: kinds
    seed: 7
    model: {model}
    adapters: {small: {use: lora, r: 2}}
    rewards: {format: {use: regex, pattern: "[0-9]"}}
    stages:
      sft: {use: sft, model: base, dataset: {path: {data}/demos.jsonl}, adapter: small, args: {{args}}}
      rm: {use: reward, model: base, dataset: {path: {data}/pairs.jsonl}, adapter: small, args: {{args}}}
      prm: {use: prm, model: base, dataset: {path: ./steps.jsonl}, adapter: small, args: {{args}}}
      ppo: {use: ppo, model: sft, dataset: {path: {data}/problems.jsonl}, rewards: [format], adapter: small,
            args: {{args}, max_completion_length: 4}}
      eval: {use: evaluate, models: [base, sft], dataset: {path: {data}/problems.jsonl, limit: 8}, rewards: [format],
             num_generations: 2, max_tokens: 4}
      merged: {use: export, model: sft, to: {to}/merged}
      adapter: {use: export, model: sft, to: {to}/adapter, merge: false}
      four: {use: export, model: sft, to: {to}/four, quantization: {load_in_4bit: true}}
      judge: {use: export, reward: rm, to: {to}/judge}
      steps: {use: export, reward: prm, to: {to}/steps}
      critic: {use: export, model: ppo, critic: true, to: {to}/critic}
"""


@pytest.mark.slow
def test_the_card_of_each_kind(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_model.iterdir():
        (base / file.name).symlink_to(file)
    (base / "README.md").write_text("---\nlicense: gemma\nlanguage:\n- en\n---\n# A base")
    step = {"prompt": "3|7>2=", "completions": ["3;", "7"], "labels": [True, False]}
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for _ in range(16)))
    args = "max_steps: 2, per_device_train_batch_size: 4, gradient_checkpointing: false"
    file = write_recipe(KINDS, model=base, data=tiny_data, to=tmp_path, args=args)
    done = pp.run(file, runs_dir=tmp_path / "runs")
    kinds = {
        "merged": ("transformers", "text-generation", "AutoModelForCausalLM"),
        "adapter": ("peft", "text-generation", "AutoPeftModelForCausalLM"),
        "four": ("transformers", "text-generation", "AutoModelForCausalLM"),
        "judge": ("transformers", "text-classification", "AutoModelForSequenceClassification"),
        "steps": ("transformers", "token-classification", "AutoModelForTokenClassification"),
        "critic": ("transformers", "token-classification", "AutoModelForTokenClassification"),
    }
    for name, (library, pipeline, loader) in kinds.items():
        front, body = read(tmp_path / name / "README.md")
        assert (front["library_name"], front["pipeline_tag"]) == (library, pipeline), name
        assert (front["license"], front["language"]) == ("gemma", ["en"])
        assert "base_model" not in front, "a folder of one's own is no Hub id"
        assert f"from {library} import {loader}" in body
        assert str(tmp_path) not in body, "no path of ours"
        found = yaml.safe_load((tmp_path / name / "resolved.yaml").read_text())
        assert (found["name"], found["seed"]) == ("kinds", 7)
    _, body = read(tmp_path / "merged" / "README.md")
    (stage,) = rows(body, "Stages")
    assert stage[:5] == ["sft", "sft", "base", "7", done["sft"].manifest["key"][:12]]
    assert stage[5] == ", ".join(f"{name} {value:.4g}" for name, value in done["sft"].metrics.items())
    (data,) = rows(body, "Data")
    assert data[:3] == ["sft", "demos.jsonl", "file"]
    assert done["sft"].manifest["parts"]["dataset"].startswith(data[3])
    measured = rows(body, "Evaluation")
    score = done["eval"].details["models"]["sft"]["measures"]["sampled"]["rewards"]["format"]
    expected = f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
    assert [row[2:] for row in measured if row[2] == "sampled"] == [["sampled", "format (main)", expected, "8"]]
    assert measured[0][1].startswith("problems.jsonl (")
    assert "load_in_4bit: True" in read(tmp_path / "four" / "README.md")[1].replace("\\", "")
    assert "the critic of a policy" in read(tmp_path / "critic" / "README.md")[1]
    assert len(rows(read(tmp_path / "critic" / "README.md")[1], "Stages")) == 2, "the whole chain"
    from peft import AutoPeftModelForCausalLM

    assert AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter")).peft_config["default"].r == 2


def test_an_adapter_alone_is_refused_where_it_is_none(
    tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    text = "model: {model}\nstages: {out: {use: export, model: base, to: {to}, merge: false, {more}}}"
    with pytest.raises(InputError, match="'base' has no adapters, expected one"):
        pp.run(write_recipe(text, model=tiny_model, to=tmp_path / "out", more=""), runs_dir=tmp_path / "runs")
    with pytest.raises(RecipeErrors, match="written as it was trained"):
        pp.validate(write_recipe(text, model=tiny_model, to=tmp_path / "out", more="dtype: bfloat16"))


@pytest.mark.parametrize(
    ("card", "licence", "line"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0", "apache-2.0, as the card of the base"),
        ("---\nlicense: other\nlicense_name: qwen\n---\n", "other", "qwen, as the card of the base"),
        ("---\nlicence: license\n---\n", None, "Not known"),
        ("---\nlicense: [a, {b: c}]\n---\n", None, "Not known"),
        ("---\nlicense: : :\n---\n", None, "Not known"),
        ("no front matter", None, "Not known"),
        (None, None, "Not known"),
    ],
)
def test_a_licence_is_the_bases_or_none(tmp_path: Path, card: str | None, licence: str | None, line: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    if card is not None:
        (base / "README.md").write_text(card)
    (tmp_path / "runs/r").mkdir(parents=True)
    (tmp_path / "runs/r/resolved.yaml").write_text(
        json.dumps({"model": str(base), "stages": {"sft": {"model": "base"}}})
    )
    made = manifest(tmp_path / "runs/r/sft-000000000000", start="base")
    front, body = read(model_card(ModelArtifact("sft", str(made / "model")), Exported("x", "LlamaForCausalLM")))
    assert front.get("license") == licence
    assert line in body.partition("## Licence")[2].partition("##")[0].replace("\\", "")


def test_what_a_hub_base_and_hub_data_say_is_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    cards = {"me/base": "---\nlicense: mit\n---\n", "me/data": "---\nlicense: cc-by-4.0\n---\n"}

    def cached(id: str, name: str, **options: Any) -> str:
        file = tmp_path / id.replace("/", "-")
        file.write_text(cards[id])
        return str(file)

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    recipe = {"model": "me/base", "datasets": {"d": {"path": "me/data"}}}
    recipe["stages"] = {"sft": {"model": "base", "dataset": "d"}, "eval": {"dataset": "d"}}  # type: ignore[assignment]
    (tmp_path / "runs/r/latest").mkdir(parents=True)
    (tmp_path / "runs/r/resolved.yaml").write_text(json.dumps(recipe))
    made = manifest(tmp_path / "runs/r/sft-000000000000", start="base", parts={"dataset": "c0ffee", "args.x": "1"})
    score = {"mean": 0.5, "low": 0.4, "high": 0.6}
    details = {"metric": "m", "problems": 9, "models": {"sft": {"measures": {"greedy": {"rewards": {"m": score}}}}}}
    parts = {"models[0]": "0" * 64, "dataset": "beef"}
    evaluation = manifest(tmp_path / "runs/r/eval-111111111111", use="evaluate", details=details, parts=parts)
    (tmp_path / "runs/r/latest/eval").symlink_to(evaluation)
    front, body = read(model_card(ModelArtifact("sft", str(made / "model")), Exported("x", "LlamaForCausalLM")))
    assert (front["base_model"], front["base_model_relation"]) == ("me/base", "finetune")
    assert (front["license"], front["datasets"]) == ("mit", ["me/data"])
    assert rows(body, "Data") == [["sft", "me/data", "Hub", "c0ffee", "cc-by-4.0"]]
    (result,) = front["model-index"][0]["results"]
    assert (result["dataset"]["type"], result["dataset"]["revision"]) == ("me/data", "beef")
    assert result["metrics"][0]["value"] == 0.5
    assert ModelCard(model_card(ModelArtifact("sft", str(made / "model")), Exported("x", "A"))).data.eval_results
    adapter = Exported("x", "LORA", is_adapter=True)
    assert read(model_card(ModelArtifact("sft", str(made / "model")), adapter))[0]["base_model_relation"] == "adapter"


def test_texts_of_others_stay_text(tmp_path: Path) -> None:
    run = tmp_path / "runs/r"
    key = "a" * 64
    labels = manifest(
        run / f"labels-{key[:12]}",
        stage=HOSTILE,
        use="annotate",
        key=key,
        details={"decisions": {"mode": HOSTILE, "agreement": "alpha 0.61", "annotators": 2.0, "sha256": "f" * 64}},
        metrics={"decided": 200.0},
        parts={"guideline": json.dumps("Be kind")},
    )
    made = manifest(
        run / "sft-000000000000",
        stage=HOSTILE,
        use=HOSTILE,
        metrics={HOSTILE: 0.25},
        parts={"dataset": key, "seed": HOSTILE},
    )
    assert labels.is_dir()
    front, body = read(model_card(ModelArtifact(HOSTILE, str(made / "model")), Exported(HOSTILE, "LlamaForCausalLM")))
    seen = " ".join(HOSTILE.encode("utf-8", "replace").decode().split())
    (stage,) = rows(body, "Stages")
    assert (len(stage), stage[0], stage[3], stage[5]) == (6, seen, seen, f"{seen} 0.25")
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or ()}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "em_open", "strong_open", "hr"}
    assert sum(token.type == "heading_open" for token in tokens) == 7, "ours"
    people = dict(rows(body, "Made by people"))
    assert {"decided": "200", "annotators": "2", "agreement": "alpha 0.61"}.items() <= people.items()
    assert len(people["guideline (sha256)"]) == 64
    assert "license" not in front


def test_markdown() -> None:
    assert plain("a_b _c_ d|e") == r"a_b \_c\_ d\|e"
    assert table(("a",), []) == []
    assert fenced("x\n````\ny") == ["`````", "x", "````", "y", "`````"]


def test_a_recipe_for_others_has_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    given = {"name": "r", "rewards": {"judge": {"api_key": "abc", "max_tokens": 3}}, "model": "/home/ann/m"}
    (tmp_path / "resolved.yaml").write_text(yaml.safe_dump(given))
    (tmp_path / "out").mkdir()
    write_recipe(tmp_path, tmp_path / "out")
    found = yaml.safe_load((tmp_path / "out/resolved.yaml").read_text())
    assert found == {"name": "r", "rewards": {"judge": {"api_key": "***", "max_tokens": 3}}, "model": "~/m"}
