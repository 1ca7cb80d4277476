"""Adapters merged and models exported: the same logits, in plain transformers, and nothing of another's overwritten."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.recipe.run.observer import Observer

IDS = [[5, 9, 14, 20, 31, 7, 40, 11]]
ROUNDING = 1e-5  # of float32 (eps 1.2e-7) through two layers, relative
PLAIN = """
import json, sys, torch, transformers
for loader, path in json.loads(sys.argv[1]):
    model = getattr(transformers, loader).from_pretrained(path).eval()
    # with gradients: without, bitsandbytes on AVX-512 BF16 takes a kernel that weights under 64 wide have no form for
    logits = model(torch.tensor(json.loads(sys.argv[2]))).logits.detach().float().flatten().tolist()
    template = transformers.AutoTokenizer.from_pretrained(path).chat_template
    eos = model.generation_config.eos_token_id if model.can_generate() else None
    print(json.dumps({"logits": logits, "template": template, "class": type(model).__name__, "eos": eos}))
assert "posttrain_plugins" not in sys.modules
"""


def in_plain_transformers(*models: tuple[str, Path]) -> list[dict[str, Any]]:
    """What a fresh process reads, `(loader, folder)` each, that knows nothing of this package."""
    given = json.dumps([(loader, str(folder)) for loader, folder in models])
    done = subprocess.run([sys.executable, "-c", PLAIN, given, json.dumps(IDS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def lora(model: Path, folder: Path, **options: Any) -> Path:
    """A LoRA with random weights on a model, saved as a training stage saves one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, **options)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    peft.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora(tiny_model, tmp_path_factory.mktemp("adapter") / "lora")


RECIPE = """
model: {model_name_or_path: {adapter}, {loading}dtype: float32}
datasets: {d: {path: {data}/problems.jsonl, limit: 4}}
stages:
  merged: {use: merge, model: base, dataset: d, num_prompts: 2}
  out: {use: export, model: merged, to: {to}}
"""


@pytest.mark.parametrize("loading", ["", "load_in_4bit: true, "])
def test_a_merged_model_has_the_logits_of_the_adapter_on_its_base(
    adapter: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path, loading: str
) -> None:
    file = write_recipe(RECIPE, adapter=adapter, data=tiny_data, to=tmp_path / "out", loading=loading)
    merged = pp.run(file, runs_dir=tmp_path / "runs", until="merged")["merged"]
    assert merged.model_path is not None
    assert 0 < merged.metrics["logits_relative_difference"] < 1e-5
    assert merged.metrics["logits_max_difference"] < 1e-3
    assert not (merged.model_path / "adapter_config.json").exists()
    assert (merged.manifest["handoff"]["adapters"], merged.manifest["handoff"]["quantization"]) == ([], None)


def test_an_export_is_written_again_when_it_is_gone(
    adapter: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    to = tmp_path / "out"
    file = write_recipe(RECIPE, adapter=adapter, data=tiny_data, to=to, loading="")
    assert pp.run(file, runs_dir=tmp_path / "runs")["out"].model_path == to
    card = (to / "README.md").read_text()
    assert "of the recipe recipe." in card
    assert re.search(r"\| merged \| merge \| base \| 0 \| [0-9a-f]{12} \| logits_max_difference", card)
    assert not [stage.id for stage in pp.plan(file, runs_dir=tmp_path / "runs").stages if stage.must_run]
    shutil.rmtree(to)
    assert [stage.id for stage in pp.plan(file, runs_dir=tmp_path / "runs").stages if stage.must_run] == ["out"]
    pp.run(file, runs_dir=tmp_path / "runs")
    assert (to / "README.md").read_text() == card


def test_an_export_refuses_what_it_did_not_write(
    tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    to = tmp_path / "mine"
    to.mkdir()
    (to / "thesis.txt").write_text("years of work")
    file = write_recipe("model: {model}\nstages: {out: {use: export, model: base, to: {to}}}", model=tiny_model, to=to)
    with pytest.raises(RecipeErrors, match=r"files that no export wrote[\s\S]*choose another folder"):
        pp.validate(file)
    (to / "thesis.txt").rename(to / "posttrain_export.json")
    (to / "posttrain_export.json").write_text('{"made_by": "other/out-0123456789ab"}')
    with pytest.raises(InputError, match="other/out-0123456789ab exported"):
        pp.run(file, runs_dir=tmp_path / "runs")
    assert sorted(path.name for path in to.iterdir()) == ["posttrain_export.json"]


def test_exports_are_read_by_plain_transformers(
    adapter: Path, tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_recipe(
        """
        model: {model}
        stages:
          adapter: {use: export, model: {adapter}, to: {to}/adapter}
          shards: {use: export, model: base, to: {to}/shards, max_shard_size: 40KB, dtype: bfloat16}
          four: {use: export, model: base, to: {to}/four,
                 quantization: {load_in_4bit: true, use_bnb_nested_quant: true}}
        """,
        adapter=adapter,
        model=tiny_model,
        to=tmp_path,
    )
    run = pp.run(file, runs_dir=tmp_path / "runs")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 1
    assert json.loads((tmp_path / "shards" / "config.json").read_text())["dtype"] == "bfloat16"
    config = json.loads((tmp_path / "four" / "config.json").read_text())["quantization_config"]
    assert (config["load_in_4bit"], config["bnb_4bit_use_double_quant"]) == (True, True)
    assert run["four"].manifest["handoff"]["quantization"]["load_in_4bit"] is True
    folders = (tiny_model, *(tmp_path / name for name in ("adapter", "shards", "four")))
    base, merged, shards, four = in_plain_transformers(*(("AutoModelForCausalLM", folder) for folder in folders))
    assert {model["eos"] for model in (base, merged, shards, four)} == {1}
    assert {model["template"] for model in (merged, shards, four)} == {base["template"]}
    assert distance(shards, {"logits": logits_in_bfloat16(tiny_model)}) < ROUNDING
    assert distance(four, {"logits": logits_on_four_bits(tiny_model)}) < ROUNDING
    assert distance(base, four) > 1000 * ROUNDING, "4 bits are not the model"
    assert distance(merged, {"logits": logits_of(adapter)}) < ROUNDING
    assert distance(base, merged) > 1000 * ROUNDING, "the adapter is in it"


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The norm of the difference over the norm."""
    pairs = list(zip(one["logits"], other["logits"], strict=True))
    return (sum((a - b) ** 2 for a, b in pairs) / sum(a * a for a, _ in pairs)) ** 0.5


def logits_on_four_bits(folder: Path) -> list[float]:
    """Of a model whose layers, but for the head, went through bitsandbytes' 4 bits and back."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert len(layers) == 2 * 7 + 1
    with torch.no_grad():
        for name, layer in layers.items():
            if name != "lm_head":
                packed = quantize_4bit(layer.weight, quant_type="nf4", compress_statistics=True)
                layer.weight.copy_(dequantize_4bit(*packed))
        found: list[float] = model(torch.tensor(IDS)).logits.flatten().tolist()
    return found


def logits_in_bfloat16(folder: Path) -> list[float]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
    found: list[float] = model(torch.tensor(IDS)).logits.detach().float().flatten().tolist()
    return found


def logits_of(adapter: Path) -> list[float]:
    import torch
    from peft import AutoPeftModelForCausalLM

    with torch.no_grad():
        found: list[float] = (
            AutoPeftModelForCausalLM.from_pretrained(adapter)(torch.tensor(IDS)).logits.flatten().tolist()
        )
    return found


def test_prompt_learning_is_refused_before_anything_is_loaded(
    tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "prompt"
    folder.mkdir()
    config = {"peft_type": "PREFIX_TUNING", "base_model_name_or_path": str(tiny_model)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").touch()
    file = write_recipe("model: {model}\nstages: {m: {use: merge, model: base}}", model=folder)
    with pytest.raises(RecipeErrors, match=r"adapter of 'base' cannot be merged: PREFIX_TUNING[\s\S]*with lora"):
        pp.validate(file)


@pytest.mark.parametrize("adapter", ["{use: prefix, num_virtual_tokens: 2}", "{use: bottleneck}"])
@pytest.mark.parametrize("stage", ["{use: merge, model: sft}", "{use: export, model: sft, to: ./never}"])
def test_the_check_refuses_to_merge_what_cannot_be(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], adapter: str, stage: str
) -> None:
    file = write_recipe(
        """
        model: {model}
        adapters: {mine: {adapter}}
        datasets: {demos: {path: {data}/demos.jsonl}}
        stages:
          sft: {use: sft, model: base, dataset: demos, adapter: mine, args: {gradient_checkpointing: false}}
          plain: {stage}
        """,
        model=tiny_model,
        data=tiny_data,
        adapter=adapter,
        stage=stage,
    )
    with pytest.raises(RecipeErrors, match=r"adapter 'mine' of stage 'sft' cannot be merged[\s\S]*with lora"):
        pp.validate(file)
    file.write_text(file.read_text().replace(adapter, "{use: lora}"))
    pp.validate(file)


@pytest.mark.parametrize(
    ("adapter", "second", "mistake"),
    [
        (
            "{use: bottleneck}",
            "adapter: more, adapter_mode: merge",
            "cannot be merged: BOTTLENECK[\\s\\S]*adapter_mode: stack",
        ),
        ("{use: bottleneck}", "adapter: more", None),  # it is stacked
        ("{use: bottleneck}", "adapter: mine", None),  # the same one is trained on
        ("{use: bottleneck}", "eval_dataset: demos", "cannot be merged: BOTTLENECK[\\s\\S]*adapter_mode: continue"),
        ("{use: bottleneck}", "adapter_mode: continue", None),
        ("{use: prefix, num_virtual_tokens: 2}", "adapter: more", "cannot lie below another: PREFIX"),
        (
            "{use: prefix, num_virtual_tokens: 2}",
            "adapter: more, adapter_mode: merge",
            "cannot be merged: PREFIX_TUNING",
        ),
        ("{use: lora}", "adapter: more", None),
    ],
)
def test_the_check_tells_what_a_stage_cannot_merge_by_default(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], adapter: str, second: str, mistake: str | None
) -> None:
    file = write_recipe(
        """
        model: {model}
        adapters: {mine: {adapter}, more: {use: lora, r: 2}}
        datasets: {demos: {path: {data}/demos.jsonl}}
        stages:
          one: {use: sft, model: base, dataset: demos, adapter: mine, args: {gradient_checkpointing: false}}
          two: {use: sft, model: one, dataset: demos, {second}, args: {gradient_checkpointing: false}}
        """,
        model=tiny_model,
        data=tiny_data,
        adapter=adapter,
        second=second,
    )
    if mistake is None:
        pp.validate(file)
        return
    with pytest.raises(RecipeErrors, match=f"the adapter 'mine' of stage 'one' {mistake}") as told:
        pp.validate(file)
    assert len(told.value.mistakes) == 1


def test_the_check_finds_what_cannot_be_merged_below_the_newest(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path]
) -> None:
    file = write_recipe(
        """
        model: {model}
        adapters: {mine: {use: bottleneck}, more: {use: lora, r: 2}}
        datasets: {demos: {path: {data}/demos.jsonl}}
        stages:
          one: {use: sft, model: base, dataset: demos, adapter: mine, args: {gradient_checkpointing: false}}
          two: {use: sft, model: one, dataset: demos, adapter: more}
          three: {use: sft, model: two, dataset: demos, adapter: mine, adapter_mode: merge}
          plain: {use: merge, model: two}
        """,
        model=tiny_model,
        data=tiny_data,
    )
    with pytest.raises(RecipeErrors) as told:
        pp.validate(file)
    assert ["adapter 'mine' of stage 'one' cannot be merged" in str(one) for one in told.value.mistakes] == [True, True]


def test_a_full_model_has_nothing_to_merge(tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    file = write_recipe("model: {model}\nstages: {m: {use: merge, model: base}}", model=tiny_model)
    with pytest.raises(InputError, match="'base' is no adapter"):
        pp.run(file, runs_dir=tmp_path / "runs", observer=Observer())


@pytest.mark.slow
def test_reward_models_and_critics_are_exported_as_classifiers(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_recipe(
        """
        model: {model}
        adapters: {judge: {use: lora, r: 4}}
        datasets: {pairs: {path: {data}/pairs.jsonl}, d: {path: {data}/problems.jsonl, limit: 8}}
        rewards: {format: {use: regex, pattern: "[0-9]"}}
        stages:
          rm: {use: reward, model: base, dataset: pairs, adapter: judge,
               args: {max_steps: 2, per_device_train_batch_size: 8, learning_rate: 2e-2}}
          ppo: {use: ppo, model: base, dataset: d, rewards: [format], adapter: judge,
                args: {max_steps: 2, per_device_train_batch_size: 4, max_completion_length: 8, learning_rate: 1e-2}}
          judge_out: {use: export, reward: rm, to: {to}/rm}
          critic_out: {use: export, model: ppo, critic: true, to: {to}/critic}
        """,
        model=tiny_model,
        data=tiny_data,
        to=tmp_path,
    )
    run = pp.run(file, runs_dir=tmp_path / "runs")
    rows = [json.loads(line) for line in (tiny_data / "pairs.jsonl").read_text().splitlines()][:4]
    prompts, chosen = ([row[key] for row in rows] for key in ("prompt", "chosen"))
    scores = {
        name: pp.load("reward", "reward_model", model_name_or_path=str(path))(prompts, chosen)
        for name, path in (("stage", run["rm"].model_path), ("export", run["judge_out"].model_path))
    }
    assert scores["export"] == pytest.approx(scores["stage"], abs=1e-5)
    judge, critic = in_plain_transformers(
        ("AutoModelForSequenceClassification", tmp_path / "rm"),
        ("AutoModelForTokenClassification", tmp_path / "critic"),
    )
    assert (judge["class"], len(judge["logits"])) == ("Qwen3ForSequenceClassification", 1)
    value = pp.load("reward", "value_model", model_name_or_path=str(run["ppo"].model_path))
    expected = dict(value._critic.logits(IDS, 1))[0][:, 0].tolist()
    assert critic["logits"] == pytest.approx(expected, abs=1e-5)
    assert any(abs(v) > 1e-4 for v in expected), "a trained critic"
