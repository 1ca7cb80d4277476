"""Every packaged recipe end to end at reduced size, and 4-bit: what stands where, what is cached, what runs again."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import WaitsForPerson
from posttrain_plugins.recipe.read.packaged import packaged_recipes
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record import results

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

LAUNCHED = ("full_deepspeed",)
"""In processes of their own, by what another tier has installed: `test_launched_runs.py`."""

BASE = {"model.args.max_steps": 40, "datasets.corpus.size": 1280}
CHAIN = {
    **BASE,
    "datasets.demos.size": 640,
    "datasets.problems.size": 48,
    "datasets.fresh.size": 32,
    "datasets.practice.size": 64,
    "datasets.heldout.size": 24,
    "stages.sft.args.max_steps": 20,
    "stages.rm.args.max_steps": 4,
    "stages.dpo.args.max_steps": 4,
    "stages.grpo.args.max_steps": 2,
    "stages.grpo.args.per_device_train_batch_size": 32,
    "stages.pairs.threshold": None,  # a model this little trained gets hardly anything right: best against worst
    "stages.fresh_pairs.threshold": None,
    "stages.pairs.rewards": ["steps"],
    "stages.fresh_pairs.rewards": ["steps"],
}
QUICKSTART = {
    **CHAIN,
    "stages.newer_pairs.threshold": None,
    "stages.newer_pairs.rewards": ["steps"],
    "stages.newer_pairs.num_generations": 4,
    "stages.fresh_newer_pairs.threshold": None,
    "stages.fresh_newer_pairs.rewards": ["steps"],
    "stages.newer_rm.args.max_steps": 4,
}
TINY_SFT = {
    **BASE,
    "datasets.demos.size": 640,
    "datasets.problems.size": 24,
    "datasets.fresh.size": 16,
    "datasets.practice.size": 64,
    "datasets.heldout.size": 12,
    "stages.sft.args.max_steps": 20,
}
GRPO = {"args.max_steps": 2, "args.per_device_train_batch_size": 32}
BEST_AGAINST_WORST = {"threshold": None, "rewards": ["steps"]}  # hardly anything is right yet


def reduced(
    *, trained: tuple[str, ...] = (), sampled: tuple[str, ...] = (), pairs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Few steps of what trains, small batches of what draws as well, and pairs where nothing is right."""
    found: dict[str, Any] = {f"stages.{stage}.args.max_steps": 2 for stage in trained}
    found |= {f"stages.{stage}.{key}": value for stage in sampled for key, value in GRPO.items()}
    return found | {f"stages.{stage}.{key}": value for stage in pairs for key, value in BEST_AGAINST_WORST.items()}


REDUCED: dict[str, dict[str, Any]] = {
    "quickstart": QUICKSTART,
    "lora": QUICKSTART,
    "my_own_data": {
        **BASE,
        "stages.sft.args.max_steps": 10,
        "stages.grpo.args.max_steps": 2,
        "datasets.exam.limit": 16,
    },
    "graph": {
        **BASE,
        "datasets.demos.size": 80,
        "datasets.heldout.size": 4,
        "stages.sft.args.max_steps": 20,
        "stages.eval.num_generations": 4,
        "stages.eval.max_tokens": 24,
        "stages.eval.plot": False,
    },
    "grpo": {**TINY_SFT, **reduced(sampled=("grpo",))},
    "rlhf_ppo": {**TINY_SFT, **reduced(trained=("rm",), sampled=("ppo",), pairs=("pairs", "fresh_pairs"))},
    "reinforce": {**TINY_SFT, **reduced(sampled=("reinforce_pp", "remax", "rloo"))},
    "process_reward": {
        **TINY_SFT,
        **reduced(trained=("prm",), sampled=("outcome", "process")),
        "stages.eval.num_generations": 4,
    },
    "value_guided": {
        **TINY_SFT,
        **reduced(trained=("value", "ppo_value"), sampled=("ppo",)),
        **{f"datasets.{name}.size": 24 for name in ("fresh", "learned")},
        # some have to differ
        **{f"stages.{stage}.rewards": ["steps"] for stage in ("seen", "fresh_seen", "seen_of_ppo", "fresh_of_ppo")},
        "stages.ppo.args.steps_per_generation": 2,  # one generation of all prompts: a larger one would be none
        "stages.eval.num_generations": 4,
    },
    "iterated_rlhf": {
        **TINY_SFT,
        **{f"stages.round.stages.pairs.{key}": value for key, value in BEST_AGAINST_WORST.items()},
        "stages.round.stages.rm.args.max_steps": 2,
        **{f"stages.round.stages.ppo.{key}": value for key, value in GRPO.items()},
        **{f"stages.once.{key}": value for key, value in GRPO.items()},
        "stages.eval.num_generations": 4,
    },
    "search": {
        **BASE,
        **reduced(trained=("rm", "prm", "value"), pairs=("pairs",)),
        "datasets.demos.size": 640,
        "stages.sft.args.max_steps": 20,
        **{f"datasets.{name}.size": 16 for name in ("problems", "fresh", "learned")},
        **{f"stages.{stage}.rewards": ["steps"] for stage in ("seen", "fresh_seen")},
        "datasets.heldout.size": 4,
        "stages.eval.num_generations": 4,
        "stages.eval.max_tokens": 24,
        "stages.eval.plot": False,
    },
    "rlaif": {**TINY_SFT, **reduced(trained=("dpo",), sampled=("grpo",), pairs=("pairs",))},
    "r1": {
        **BASE,
        **reduced(trained=("cold_start", "sft", "pupil", "imitation", "distilled"), sampled=("reasoning", "aligned")),
        "datasets.problems.size": 24,
        "datasets.practice.size": 64,
        "datasets.heldout.size": 12,
        "stages.rejected.threshold": None,
        "stages.lessons.threshold": None,
    },
    "rest": {
        **TINY_SFT,
        **reduced(trained=("improved", "improved_more", "improved_most")),
        **{f"stages.filtered{more}.threshold": None for more in ("", "_more", "_most")},
    },
    "offline": {
        **TINY_SFT,
        **reduced(trained=("rejection", "dpo", "kto", "oreo")),
        "stages.saved.rewards": ["steps"],
        "stages.right.threshold": None,
        "stages.pairs.threshold": None,
        "stages.labelled.threshold": 0.01,  # any right step: KTO needs rows of both kinds
    },
    "qlora": {
        **TINY_SFT,
        **reduced(trained=("dpo",), sampled=("grpo",), pairs=("pairs",)),
        **{f"stages.{stage}.args.per_device_train_batch_size": 4 for stage in ("sft", "dpo")},
        "stages.grpo.args.per_device_train_batch_size": 8,
        "stages.eval.num_generations": 2,
    },
    "human_feedback": {
        **BASE,
        **reduced(trained=("rm", "dpo", "dpo_again"), sampled=("ppo",), pairs=("fresh_pairs",)),
        "rewards.steps": {"use": "digit_chain_steps", "mode": "fraction"},  # the recipe itself asks for all or nothing
        **{f"datasets.{name}.size": 16 for name in ("lessons", "problems", "more", "fresh")},
        "datasets.practice.size": 64,
        "datasets.heldout.size": 12,
        "stages.sft.args.max_steps": 20,
    },
    "rlhf_ppo_qlora": {
        **TINY_SFT,
        **reduced(trained=("rm",), sampled=("ppo",), pairs=("pairs", "fresh_pairs")),
        **{f"stages.{stage}.args.per_device_train_batch_size": 4 for stage in ("sft", "rm")},
        "stages.ppo.args.per_device_train_batch_size": 8,
        "stages.eval.num_generations": 2,
    },
    "raft": {
        **TINY_SFT,
        "stages.raft.repeat": 2,
        "stages.raft.stages.right.threshold": None,
        "stages.raft.stages.tuned.args.max_steps": 2,
        "stages.eval.models": ["sft", "raft.1.tuned", "raft"],
    },
    "star": {
        **TINY_SFT,
        "stages.star.repeat": 2,
        "stages.star.stages.rationales.threshold": None,
        "stages.star.stages.tuned.args.max_steps": 2,
    },
    "iterative_dpo": {
        **TINY_SFT,
        "stages.round.repeat": 2,
        "stages.round.stages.pairs.threshold": None,
        "stages.round.stages.pairs.rewards": ["steps"],
        "stages.round.stages.dpo.args.max_steps": 2,
    },
    "test_time": {
        **TINY_SFT,
        "stages.pairs.threshold": None,
        "stages.fresh_pairs.threshold": None,
        "stages.pairs.rewards": ["steps"],
        "stages.fresh_pairs.rewards": ["steps"],
        "stages.rm.args.max_steps": 2,
        "stages.prm.args.max_steps": 2,
        "datasets.heldout.size": 4,
        "stages.eval.num_generations": 4,
        "stages.eval.max_tokens": 24,
        "stages.eval.plot": False,
    },
    "tree": {
        **BASE,
        "datasets.demos.size": 640,
        "datasets.heldout.size": 4,
        "stages.sft.args.max_steps": 20,
        "stages.eval.num_generations": 4,
        "stages.eval.plot": False,
    },
}


class Starts(Observer):
    """Remembers which stages ran."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []

    def started(self, stage: Any, resumes_from: Path | None) -> None:
        self.stages.append(stage.id)

    def note(self, stage: Any, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One runs folder for all recipes, so that the base is made once, as for a user."""
    return tmp_path_factory.mktemp("runs")


def run_with_people(name: str, overrides: dict[str, Any], runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a recipe; where it waits for people, the benchmark's script answers, here at random."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script: Any = importlib.import_module("human_feedback")
    ledger = runs_dir.with_name(f"{name}.jsonl")
    asks = [stage.id for stage in pp.validate(name).stages if stage.plugin.name == "annotate"]
    overrides = overrides | {f"stages.{stage}.file": str(ledger) for stage in asks}
    for stage in asks:
        with pytest.raises(WaitsForPerson) as waits:
            pp.run(name, overrides, runs_dir=runs_dir)
        assert waits.value.stage == stage
        script.answer(runs_dir / name, stage, ledger, script.Script(noise=1.0, seed=0))
    return pp.run(name, overrides, runs_dir=runs_dir)


def test_each_packaged_recipe_has_a_reduced_size_here() -> None:
    assert {name for name in packaged_recipes() if "/" not in name} == {*REDUCED, *LAUNCHED}


@pytest.mark.parametrize("name", sorted(REDUCED))
def test_recipe_runs_end_to_end(name: str, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with_people(name, REDUCED[name], runs_dir, monkeypatch)
    assert list(run) == [stage.id for stage in run.plan.stages]
    for stage in run.plan.stages:
        artifact = run[stage.id]
        assert (artifact.folder / "manifest.json").is_file()
        made = {"model": artifact.model_path, "reward": artifact.model_path, "dataset": artifact.data_path}
        if stage.spec.produces in made:
            made_path = made[stage.spec.produces]
            assert made_path is not None
            assert made_path.exists()
    measured = [row for row in results.rows(run.artifacts) if row.sampled]
    assert [row.stage for row in measured] == run.plan["eval"].spec.params.get("models", [r.stage for r in measured])
    assert all(0.0 <= row.sampled[1] <= row.sampled[0] <= row.sampled[2] <= 1.0 for row in measured if row.sampled)
    assert not list(runs_dir.rglob("*.partial")), "nothing half-written stays"


def test_second_run_is_cached_and_one_argument_reruns_only_its_stages(runs_dir: Path) -> None:
    pp.run("quickstart", QUICKSTART, runs_dir=runs_dir)
    again, changed = Starts(), Starts()
    pp.run("quickstart", QUICKSTART, runs_dir=runs_dir, observer=again)
    assert again.stages == []
    pp.run("quickstart", {**QUICKSTART, "stages.dpo.args.beta": 0.2}, runs_dir=runs_dir, observer=changed)
    assert changed.stages == ["dpo", "newer_pairs", "fresh_newer_pairs", "newer_rm", "eval"]


def test_resolved_recipe_gives_the_same_keys(runs_dir: Path) -> None:
    first = pp.run("my_own_data", REDUCED["my_own_data"], runs_dir=runs_dir)
    resolved = pp.plan(runs_dir / "my_own_data" / "resolved.yaml", runs_dir=runs_dir)
    assert [stage.key for stage in resolved.stages] == [stage.key for stage in first.plan.stages]
    assert not [stage.id for stage in resolved.stages if stage.must_run]


def test_source_of_a_reward_beside_the_recipe_reruns_its_stages(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    reward = tmp_path / "reward.py"
    reward.write_text("def short(completions, **columns):\n    return [0.0 for _ in completions]\n")
    file = write_recipe(
        """
        model: {model}
        datasets: {d: {path: {data}/problems.jsonl, limit: 8}}
        rewards: {r: "./reward.py:short"}
        stages:
          kept: {use: sample, model: base, dataset: d, rewards: [r], threshold: null, num_generations: 2, max_tokens: 4}
          figures: {use: evaluate, models: [base], dataset: d, rewards: [r], num_generations: 2, max_tokens: 4}
        """,
        model=tiny_model,
        data=tiny_data,
    )
    pp.run(file, runs_dir=tmp_path / "runs")
    reward.write_text(
        "# a comment changes nothing\ndef short(completions, **columns):\n    return [0.0 for _ in completions]\n"
    )
    commented, changed = Starts(), Starts()
    pp.run(file, runs_dir=tmp_path / "runs", observer=commented)
    assert commented.stages == []
    reward.write_text("def short(completions, **columns):\n    return [1.0 for _ in completions]\n")
    run = pp.run(file, runs_dir=tmp_path / "runs", observer=changed)
    assert changed.stages == ["kept", "figures"]
    assert run["figures"].metrics["base/sampled"] == 1.0


def test_overlap_of_heldout_problems_with_training_is_told(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_recipe(
        """
        model: {model}
        datasets: {demos: {path: {data}/demos.jsonl, limit: 8}, exam: {path: {data}/demos.jsonl, limit: 12}}
        rewards: {format: {use: regex, pattern: "x"}}
        stages:
          sft: {use: sft, model: base, dataset: demos, args: {max_steps: 1, per_device_train_batch_size: 2}}
          eval: {use: evaluate, models: [sft], dataset: exam, rewards: [format], num_generations: 0, max_tokens: 2}
        """,
        model=tiny_model,
        data=tiny_data,
    )
    starts = Starts()
    run = pp.run(file, runs_dir=tmp_path / "runs", observer=starts)
    assert run["eval"].details["overlap"] == {"sft": 8}
    assert "sft was trained on 8 of the 12 problems" in starts.notes


def test_gate_that_is_not_met_is_told_each_time(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from posttrain_plugins.errors import GateNotMet

    file = write_recipe(
        """
        model: {model}
        datasets: {d: {path: {data}/problems.jsonl, limit: 4}}
        rewards: {format: {use: regex, pattern: "never"}}
        stages:
          eval: {use: evaluate, models: [base], dataset: d, rewards: [format], num_generations: 0, max_tokens: 2,
                 require: {accuracy: ">=0.8"}}
        """,
        model=tiny_model,
        data=tiny_data,
    )
    for _ in range(2):
        with pytest.raises(GateNotMet, match="accuracy") as caught:
            pp.run(file, runs_dir=tmp_path / "runs")
        assert caught.value.exit_code == 3


def test_four_bit_lora_sft_then_grpo_goes_on_with_the_same_adapter(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_recipe(
        """
        model: {model_name_or_path: {model}, load_in_4bit: true, use_bnb_nested_quant: true}
        adapters: {policy: {use: lora, r: 4}}
        datasets: {demos: {path: {data}/demos.jsonl}, d: {path: {data}/problems.jsonl, limit: 8}}
        rewards: {format: {use: regex, pattern: "[0-9]"}}
        stages:
          sft: {use: sft, model: base, dataset: demos, adapter: policy,
                args: {max_steps: 2, per_device_train_batch_size: 2, learning_rate: 1e-2}}
          grpo: {use: grpo, model: sft, dataset: d, adapter: policy, rewards: [format],
                 args: {max_steps: 1, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8}}
          eval: {use: evaluate, models: [base, sft, grpo], dataset: d, rewards: [format],
                 num_generations: 2, max_tokens: 8}
        """,
        model=tiny_model,
        data=tiny_data,
    )
    starts = Starts()
    run = pp.run(file, runs_dir=tmp_path / "runs", observer=starts)
    assert "goes on training the adapter of 'sft'" in starts.notes
    assert [one["type"] for one in run["sft"].manifest["handoff"]["adapters"]] == ["LORA"]
    assert run["sft"].manifest["handoff"]["quantization"]["load_in_4bit"] is True
    config = json.loads((run["grpo"].model_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert set(run["eval"].details["models"]) == {"base", "sft", "grpo"}


def test_another_adapter_is_trained_on_the_merged_model(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM

    file = write_recipe(
        """
        model: {model}
        adapters: {first: {use: lora, r: 4}, second: {use: lora, r: 2}}
        datasets: {demos: {path: {data}/demos.jsonl}, pairs: {path: {data}/pairs.jsonl}}
        stages:
          sft: {use: sft, model: base, dataset: demos, adapter: first,
                args: {max_steps: 3, per_device_train_batch_size: 2, learning_rate: 1e-2}}
          dpo: {use: dpo, model: sft, dataset: pairs, adapter: second, adapter_mode: merge,
                args: {max_steps: 1, per_device_train_batch_size: 2, learning_rate: 0.0}}
        """,
        model=tiny_model,
        data=tiny_data,
    )
    run = pp.run(file, runs_dir=tmp_path / "runs")
    sft = AutoPeftModelForCausalLM.from_pretrained(run["sft"].model_path)
    dpo = AutoPeftModelForCausalLM.from_pretrained(run["dpo"].model_path)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        difference = (sft(ids).logits - dpo(ids).logits).abs().max()
        with sft.disable_adapter():
            base_difference = (sft(ids).logits - dpo(ids).logits).abs().max()
    assert difference < 1e-4, "a DPO of learning rate 0 on the merged SFT model is the SFT model"
    assert base_difference > 10 * difference, "and not the base"


def test_a_lora_reward_model_keeps_its_trained_head_as_reward_and_scorer(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    file = write_recipe(
        """
        model: {model}
        adapters: {judge: {use: lora, r: 4}}
        datasets: {pairs: {path: {data}/pairs.jsonl}, d: {path: {data}/problems.jsonl, limit: 8}}
        stages:
          rm: {use: reward, model: base, dataset: pairs, eval_dataset: pairs, adapter: judge,
               args: {max_steps: 12, per_device_train_batch_size: 8, learning_rate: 2e-2}}
          grpo: {use: grpo, model: base, dataset: d, rewards: [rm],
                 args: {max_steps: 1, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8}}
        """,
        model=tiny_model,
        data=tiny_data,
    )
    run = pp.run(file, runs_dir=tmp_path / "runs")
    rows = [json.loads(line) for line in (tiny_data / "pairs.jsonl").read_text().splitlines()]
    reward = pp.load("reward", "reward_model", model_name_or_path=str(run["rm"].model_path))
    prompts = [row["prompt"] for row in rows]
    chosen = reward(prompts, [row["chosen"] for row in rows])
    rejected = reward(prompts, [row["rejected"] for row in rows])
    accuracy = sum(c > r for c, r in zip(chosen, rejected, strict=True)) / len(rows)
    assert accuracy == pytest.approx(run["rm"].metrics["eval_accuracy"])
    margin = sum(c - r for c, r in zip(chosen, rejected, strict=True)) / len(rows)
    assert margin == pytest.approx(run["rm"].metrics["eval_margin"], abs=1e-3)
    assert "reward" in run["grpo"].metrics


def test_the_template_that_lora_sft_was_given_goes_on_to_the_next_stage(
    tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(bare)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    template, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(bare)
    (tmp_path / "chat.jinja").write_text(template)
    file = write_recipe(
        """
        model: {model}
        adapters: {policy: {use: lora, r: 4}}
        datasets: {demos: {path: {data}/demos.jsonl}, d: {path: {data}/problems.jsonl, limit: 8}}
        rewards: {format: {use: regex, pattern: "[0-9]"}}
        stages:
          sft: {use: sft, model: base, dataset: demos, adapter: policy, chat_template: ./chat.jinja,
                args: {max_steps: 1, per_device_train_batch_size: 2}}
          grpo: {use: grpo, model: sft, dataset: d, adapter: policy, rewards: [format],
                 args: {max_steps: 1, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 8}}
        """,
        model=bare,
        data=tiny_data,
    )
    run = pp.run(file, runs_dir=tmp_path / "runs")
    assert AutoTokenizer.from_pretrained(bare).chat_template is None
    assert AutoTokenizer.from_pretrained(run["grpo"].model_path).chat_template == template
    handoffs = [run[stage].manifest["handoff"]["chat_template"] for stage in ("sft", "grpo")]
    assert handoffs[0] == handoffs[1] is not None
