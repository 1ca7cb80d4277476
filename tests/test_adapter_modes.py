"""Going on from an adapter: continue, stack or merge; and that the reference is what the stage started from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.models.folder import adapters_in, copy_below, digest
from posttrain_plugins.models.load import load_adapted, load_model, load_tokenizer
from posttrain_plugins.models.merge import check_mergeable
from posttrain_plugins.models.stack import attach_frozen, choose_mode, is_wrapped
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.recipe.run.run import Run
from posttrain_plugins.trainers import training

MODES = ("continue", "stack", "merge")
BITS = {"plain": {}, "4-bit": {"load_in_4bit": True, "use_bnb_nested_quant": True}}
ARGS = "learning_rate: 5e-2, per_device_train_batch_size: 4, max_steps: 3, logging_steps: 1, bf16: false"
ROLLS = f"{ARGS}, num_generations: 4, max_completion_length: 6, gradient_checkpointing: false"
METHODS = {
    "dpo": f"dataset: pairs, args: {{{ARGS}}}",
    "grpo": f"dataset: d, rewards: [digits], args: {{{ROLLS}, beta: 0.1}}",
    "ppo": f"dataset: d, rewards: [digits], args: {{{ROLLS}, kl_coef: 0.1, num_iterations: 1}}",
}
RECIPE = """
model: {model_name_or_path: {model}, {loading}}
adapters: {first: {use: lora, r: 4}, second: {use: lora, r: 2}}
datasets:
  demos: {path: {data}/demos.jsonl, limit: 8}
  pairs: {path: {data}/pairs.jsonl, limit: 8}
  d: {path: {data}/problems.jsonl, limit: 4}
rewards: {digits: {use: regex, pattern: "[0-9]"}}
stages:
"""


@pytest.fixture(scope="module")
def sft(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on the tiny model that says other things than its base, with the tokenizer."""
    return _adapter(tiny_model, tmp_path_factory.mktemp("sft"), seed=1)


def _adapter(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    options = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(init_lora_weights=False, **options))
    model.save_pretrained(str(folder))
    load_tokenizer(base).save_pretrained(str(folder))
    return folder


def _loading(bits: str) -> str:
    return ", ".join(f"{k}: {json.dumps(v)}" for k, v in BITS[bits].items())


@torch.no_grad()
def _logps(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Of each token after the first: (B, T - 1)."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]


def _model(path: Path | str, bits: str) -> Any:
    return load_model(path, {**BITS[bits], "dtype": "float32"}, device="cpu").eval()


class Spy:
    """What TRL's trainers compute as the reference: token ids, their mask, and log-probabilities of completions."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def rollouts(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def watched(trainer: Any, inputs: Any) -> Any:
            out = inner(trainer, inputs)
            ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
            mask = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
            self.seen.append((ids, mask, out["completion_mask"], out["ref_per_token_logps"]))
            return out

        return watched

    def fit(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        """DPO's reference on its own batches, after it has learned."""

        def watched(context: Any, trainer: Any, watch: Any) -> Any:
            seconds = inner(context, trainer, watch)
            for batch in trainer.get_train_dataloader() if hasattr(trainer, "compute_ref_log_probs") else ():
                found = trainer.compute_ref_log_probs(trainer.model, dict(batch))
                scored = batch["completion_mask"][:, 1:]
                self.seen.append((batch["input_ids"], batch["attention_mask"], scored, found))
            return seconds

        return watched

    def check(self, model: Any, within: float) -> None:
        """Each reference that was computed, to the last step, scores as the model does."""
        assert len(self.seen) >= 2
        for ids, mask, scored, found in self.seen:
            expected = _logps(model, ids, mask)[:, -scored.shape[1] :]
            if isinstance(found, tuple):  # sums over completions
                difference = torch.cat(found) - (expected * scored).sum(1)
            else:
                difference = (found - expected) * scored
            assert difference.abs().max() <= within


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    import trl

    watching = Spy()
    inner = trl.GRPOTrainer._generate_and_score_completions
    monkeypatch.setattr(trl.GRPOTrainer, "_generate_and_score_completions", watching.rollouts(inner))
    monkeypatch.setattr(training, "_fit", watching.fit(training._fit))
    return watching


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, stage: Any, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def go(write_recipe: Callable[..., Path], tiny_data: Path, tmp_path: Path) -> Callable[..., Run]:
    def run(stages: str, model: Path, bits: str = "plain", observer: Any = None) -> Run:
        file = write_recipe(RECIPE + stages, model=model, data=tiny_data, loading=_loading(bits))
        return pp.run(file, runs_dir=tmp_path / "runs", observer=observer)

    return run


def _within(bits: str, mode: str) -> float:
    return 1e-5 if (bits, mode) != ("plain", "merge") else 5e-5  # sums over a completion's tokens


@pytest.mark.parametrize(
    ("method", "bits", "mode"),
    [
        pytest.param(method, bits, mode, marks=[pytest.mark.slow] if (bits, method) != ("plain", "grpo") else [])
        for method in METHODS
        for bits in BITS
        for mode in MODES
        if bits == "plain" or mode != "merge"
    ],
)
def test_the_reference_is_the_model_that_the_stage_starts_from(
    go: Any, sft: Path, tiny_model: Path, spy: Spy, method: str, bits: str, mode: str
) -> None:
    adapter = "" if mode == "continue" else "adapter: second, "
    run = go(f"  s: {{use: {method}, model: base, {adapter}adapter_mode: {mode}, {METHODS[method]}}}", sft, bits)
    before = _model(sft, bits)
    spy.check(before, _within(bits, mode))
    with pytest.raises(AssertionError), before.disable_adapter():
        spy.check(before, _within(bits, mode))
    ids = torch.arange(10, 40)[None]
    after = _model(run["s"].model_path, bits)
    moved = (_logps(after, ids, torch.ones_like(ids)) - _logps(before, ids, torch.ones_like(ids))).abs().max()
    assert moved > 1e-3, "the policy did learn"
    assert len(adapters_in(run["s"].model_path)) == (2 if mode == "stack" else 1)


# --- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "mode"),
    [
        ({"is_same": True, "has_adapter": True}, "continue"),
        ({"is_same": False, "has_adapter": True}, "stack"),
        ({"is_same": False, "has_adapter": False}, "merge"),
    ],
)
def test_a_safe_mode_is_chosen(facts: dict[str, bool], mode: str) -> None:
    assert choose_mode(None, **facts) == mode
    assert all(choose_mode(given, **facts) == given for given in MODES)  # type: ignore[arg-type]


def test_an_adapter_on_four_bits_is_part_of_the_base_to_the_last_bit(sft: Path, tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    ids = torch.arange(10, 40)[None]
    mask = torch.ones_like(ids)
    expected = _logps(_model(sft, "4-bit"), ids, mask)
    bare = _model(tiny_model, "4-bit")
    assert not torch.equal(_logps(bare, ids, mask), expected)
    frozen = attach_frozen(bare, [sft])
    assert is_wrapped(frozen)
    assert torch.equal(_logps(frozen, ids, mask), expected)
    above = get_peft_model(frozen, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    assert not torch.equal(_logps(above, ids, mask), expected)
    with above.disable_adapter():
        assert torch.equal(_logps(above, ids, mask), expected)
    _logps(above, ids, mask)
    above(input_ids=ids, labels=ids).loss.backward()
    learning = [name for name, p in above.named_parameters() if p.grad is not None]
    assert learning
    assert all(".default." in name for name in learning)
    assert not any(str(sft) in name or "stack" in name for name in above.state_dict())


def test_a_plain_stack_is_merged_in_memory_and_loads_from_its_folder_alone(
    sft: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    top = _adapter(tiny_model, tmp_path / "top", seed=2, r=2)
    lower = shutil.copytree(sft, tmp_path / "lower")
    copy_below([lower], top)
    shutil.rmtree(lower)
    ids = torch.arange(10, 40)[None]
    merged = PeftModel.from_pretrained(_model(tiny_model, "plain"), str(sft)).merge_and_unload()
    expected = PeftModel.from_pretrained(merged, str(top))
    loaded = load_adapted(top, dtype="float32")
    assert not is_wrapped(loaded)
    assert torch.equal(loaded(ids).logits, expected(ids).logits)
    assert [folder.name for folder in adapters_in(top)] == ["0", "top"]
    assert adapters_in(tiny_model) == []


def test_a_prompt_cannot_lie_below(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = _model(tiny_model, "plain")
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="PROMPT_TUNING, which cannot be merged"):
        attach_frozen(model, [tmp_path])


HELD = """
def held(**params):
    from peft import LoraConfig
    return LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, **params)
held.can_merge = False
"""


def test_an_adapter_whose_plugin_says_that_it_cannot_be_merged_is_not(
    go: Any, tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path], tiny_data: Path
) -> None:
    """PEFT would merge this LoRA, its author says no: it is refused at once, and wrapped where another is put on it."""
    (tmp_path / "held.py").write_text(HELD, encoding="utf-8")
    values = {"model": tiny_model, "data": tiny_data, "loading": ""}
    mine = "{use: ./held.py:held}"
    stages = (
        f"  one: {{use: sft, model: base, dataset: demos, adapter: {mine}, args: {{{STILL}}}}}\n"
        f"  top: {{use: sft, model: one, dataset: demos, adapter: second, adapter_mode: stack, args: {{{STILL}}}}}\n"
    )
    run = go(stages, tiny_model)
    first, top = (run[name].model_path for name in ("one", "top"))
    assert is_wrapped(load_adapted(top, dtype="float32"))
    ids = torch.arange(10, 40)[None]
    assert torch.equal(load_adapted(top, dtype="float32").eval()(ids).logits, _model(first, "plain")(ids).logits)
    for folder in (first, top):
        with pytest.raises(InputError, match=r"adapter of 'm' cannot be merged: LORA \(its plugin declares can_merge"):
            check_mergeable("m", folder)
    for then in (
        "use: merge, model: one",
        "use: export, model: one, to: ./never",
        f"use: sft, model: one, dataset: demos, adapter: second, adapter_mode: merge, args: {{{STILL}}}",
    ):
        with pytest.raises(RecipeErrors, match="of stage 'one' cannot be merged"):
            pp.validate(
                write_recipe(RECIPE + stages + f"  m: {{{then}}}", model=tiny_model, data=tiny_data, loading="")
            )
    with pytest.raises(RecipeErrors, match="adapter of 'base' cannot be merged"):
        go(
            f"  s: {{use: sft, model: base, dataset: demos, adapter: second, adapter_mode: merge, args: {{{STILL}}}}}",
            first,
        )
    vllm = f"  g: {{use: grpo, model: base, dataset: d, rewards: [digits], adapter: {mine}, args: {{use_vllm: true}}}}"
    with pytest.raises(RecipeErrors, match="vLLM is sent the weights with the adapter merged"):
        pp.validate(write_recipe(RECIPE + vllm, **values))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("use: sft, dataset: demos, adapter_mode: stack", "adapter_mode 'stack' needs an adapter"),
        ("use: sft, dataset: demos, adapter: first, adapter_mode: stak", "expected 'continue' | 'stack' | 'merge'"),
        ("use: evaluate, models: [base], dataset: d, rewards: [digits], adapter_mode: merge", "unknown key"),
    ],
)
def test_a_mode_that_means_nothing_is_told_at_once(
    write_recipe: Callable[..., Path], tiny_data: Path, sft: Path, stage: str, message: str
) -> None:
    model = "" if "evaluate" in stage else "model: base, "
    file = write_recipe(RECIPE + f"  s: {{{model}{stage}}}", model=sft, data=tiny_data, loading="")
    with pytest.raises(RecipeErrors) as caught:
        pp.validate(file)
    assert message in str(caught.value)


# --- the plan says it -------------------------------------------------------------------------------------------------

CHAIN = """
  sft: {use: sft, model: base, dataset: demos, adapter: first, args: {max_steps: 1}}
  dpo: {use: dpo, model: sft, dataset: pairs, adapter: %s, adapter_mode: %s}
  grpo: {use: grpo, model: dpo, dataset: d, rewards: [digits], adapter: %s, adapter_mode: %s, args: {beta: %s}}
  rm: {use: reward, model: dpo, dataset: pairs, adapter: second}
  full: {use: kto, model: grpo, dataset: pairs}
"""


@pytest.mark.parametrize(
    ("bits", "mode", "expected"),
    [
        (
            "4-bit",
            "stack",
            ["nothing", "the base + adapter of sft", "a new adapter 'second' (lora)", "tiny + adapter of sft"],
        ),
        ("plain", "merge", ["adapter of sft", "the base", "a new adapter 'second' (lora)", "tiny + adapter of sft"]),
        ("plain", "continue", ["nothing", "the base", "continues the adapter of sft", "tiny + adapter of sft"]),
    ],
)
def test_the_plan_says_what_trains_and_what_the_reference_is(
    write_recipe: Callable[..., Path],
    tiny_data: Path,
    tiny_model: Path,
    tmp_path: Path,
    bits: str,
    mode: str,
    expected: Any,
) -> None:
    adapter = "first" if mode == "continue" else "second"
    stages = CHAIN % (adapter, mode, adapter, mode, 0.1)
    if bits == "4-bit":
        stages = stages.replace("  full: {use: kto, model: grpo, dataset: pairs}\n", "")
    file = write_recipe(RECIPE + stages, model=tiny_model, data=tiny_data, loading=_loading(bits))
    planned = {stage.id: stage.to_json().get("starting_point") for stage in pp.plan(file, runs_dir=tmp_path).stages}
    found = planned["dpo"]
    assert found["base"] == "base" + (" (4-bit nf4)" if bits == "4-bit" else "")
    told = [found["merged"], found["frozen"], found["trains"], found["reference"]]
    assert told == [text.replace("tiny", "base") for text in [*expected[:3], expected[3] + ", as it starts"]]
    assert planned["sft"]["reference"] is None
    third = {
        "stack": "base + adapter of sft + adapter of dpo",
        "merge": "base+sft + adapter of dpo",
        "continue": "base + adapter of dpo",
    }[mode]
    assert planned["grpo"]["reference"] == f"{third}, as it starts"
    assert planned["rm"]["trains"] == "a new adapter 'second' (lora) and a new head"
    assert planned["rm"]["adapter_mode"] == "stack", "the default, which stores no second base"
    if bits == "plain":
        assert planned["full"]["trains"] == "all parameters"
        assert planned["full"]["adapter_mode"] == "merge"


JUDGED = """
  sft: {use: sft, model: base, dataset: demos, adapter: first, args: {max_steps: 1}}
  dpo: {use: dpo, model: sft, dataset: pairs, adapter: second}
  rm: {use: reward, model: %(start)s, dataset: pairs, adapter: %(judge)s, %(how)s}
  prm: {use: prm, model: sft, dataset: steps, adapter: second}
  it: {use: %(use)s, model: %(policy)s, dataset: d, rewards: [digits, rm, prm], adapter: %(adapter)s}
"""
DORA = "{use: lora, r: 2, use_dora: true}"


@pytest.mark.parametrize(
    ("given", "rm", "prm"),
    [
        ({}, True, True),  # PPO goes on with SFT's adapter, the judges lie on it
        ({"adapter": "second"}, True, True),  # it lies on it too
        ({"policy": "dpo", "adapter": "second"}, True, True),  # and goes on with DPO's, which does
        ({"policy": "dpo", "adapter": "first"}, False, False),  # DPO's is below the policy and not below the judges
        ({"start": "base"}, True, True),
        ({"start": "base", "adapter": "second"}, False, True),
        ({"start": "dpo"}, True, True),
        ({"how": "adapter_mode: merge"}, False, True),
        ({"judge": DORA}, False, True),
        ({"judge": DORA, "start": "base"}, True, True),
        ({"judge": DORA, "adapter": "second"}, True, True),  # nothing is added to it
        ({"judge": "{use: ia3}", "start": "base"}, False, True),
        ({"judge": "{use: full}"}, False, True),
        ({"use": "grpo"}, True, True),
        ({"use": "rloo", "judge": "{use: full}"}, False, True),
        ({"use": "online_dpo"}, False, False),  # TRL's own trainer holds each as a model of its own
    ],
)
def test_the_plan_says_which_judges_stand_on_the_policys_base(
    write_recipe: Callable[..., Path],
    tiny_data: Path,
    tiny_model: Path,
    tmp_path: Path,
    given: dict[str, str],
    rm: bool,
    prm: bool,
) -> None:
    steps = tmp_path / "steps.jsonl"
    steps.write_text(json.dumps({"prompt": "a", "completions": ["b"], "labels": [True]}) + "\n", encoding="utf-8")
    usual = {"use": "ppo", "policy": "sft", "adapter": "first", "start": "sft", "judge": "second", "how": ""}
    text = RECIPE.replace("datasets:\n", f"datasets:\n  steps: {{path: {steps}}}\n") + JUDGED % {**usual, **given}
    file = write_recipe(text, model=tiny_model, data=tiny_data, loading="")
    point = pp.plan(file, runs_dir=tmp_path)["it"].starting_point
    assert point is not None
    where = {True: "an adapter on the policy's base", False: "a model of its own"}
    assert point.judges == {"rm": where[rm], "prm": where[prm]}


def test_no_reference_where_beta_is_0(
    write_recipe: Callable[..., Path], tiny_data: Path, tiny_model: Path, tmp_path: Path
) -> None:
    stages = CHAIN % ("first", "continue", "first", "continue", 0.0)
    file = write_recipe(RECIPE + stages, model=tiny_model, data=tiny_data, loading="")
    assert pp.plan(file, runs_dir=tmp_path)["grpo"].starting_point.reference == "none (beta is 0)"  # type: ignore[union-attr]


# --- from stage to stage ---------------------------------------------------------------------------------------------

STILL = "learning_rate: 0.0, per_device_train_batch_size: 4, max_steps: 1, bf16: false, gradient_checkpointing: false"
WALK = """
  sft: {use: sft, model: base, dataset: demos, adapter: first,
        args: {max_steps: 3, learning_rate: 5e-2, per_device_train_batch_size: 2, gradient_checkpointing: false}}
  dpo: {use: dpo, model: sft, dataset: pairs, adapter: %(adapter)s, adapter_mode: %(mode)s, args: {%(still)s}}
  grpo: {use: grpo, model: dpo, dataset: d, rewards: [digits], adapter: %(adapter)s, adapter_mode: %(mode)s,
         args: {%(still)s, num_generations: 4, max_completion_length: 4, beta: 0.1}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "mode"), [("plain", mode) for mode in MODES] + [("4-bit", "stack")])
def test_dpo_and_grpo_after_sft_keep_what_sft_learned(go: Any, tiny_model: Path, bits: str, mode: str) -> None:
    stages = WALK % {"adapter": "first" if mode == "continue" else "second", "mode": mode, "still": STILL}
    run = go(stages, tiny_model, bits)
    ids = torch.arange(10, 40)[None]
    said = {
        name: _logps(_model(run[name].model_path, bits), ids, torch.ones_like(ids)) for name in ("sft", "dpo", "grpo")
    }
    base = _logps(_model(tiny_model, bits), ids, torch.ones_like(ids))
    assert (said["sft"] - base).abs().max() > 1e-2
    for later in ("dpo", "grpo"):  # they learned nothing: their learning rate is 0
        assert (said[later] - said["sft"]).abs().max() < 1e-5
    layers = [len(run[name].manifest["handoff"]["adapters"]) for name in ("sft", "dpo", "grpo")]
    assert layers == ([1, 2, 3] if mode == "stack" else [1, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
def test_a_stack_is_loaded_whole_by_all_that_load_it(go: Any, sft: Path, bits: str) -> None:
    """Evaluation, sampling, a reward model on it, PPO on the same stack, and the critic as a reward."""
    args = (
        "per_device_train_batch_size: 4, max_steps: 1, learning_rate: 1e-2, bf16: false, gradient_checkpointing: false"
    )
    run = go(
        f"""
  top: {{use: dpo, model: base, dataset: pairs, adapter: second, adapter_mode: stack, args: {{{args}}}}}
  rm: {{use: reward, model: top, dataset: pairs, eval_dataset: pairs, adapter: second, adapter_mode: stack,
       args: {{{args.replace("bf16: false", "bf16: true, use_cpu: true")}}}}}
  ppo: {{use: ppo, model: top, dataset: d, rewards: [digits, rm], adapter: second, adapter_mode: stack,
        args: {{{args}, num_generations: 4, max_completion_length: 4, num_iterations: 1}}}}
  made: {{use: sample, model: ppo, dataset: d, rewards: [rm], threshold: -1000.0, num_generations: 1, max_tokens: 4}}
  eval: {{use: evaluate, models: [top, ppo], dataset: d, rewards: [digits], verifiers: [rm], num_generations: 2,
         max_tokens: 4, plot: false}}
""",
        sft,
        bits,
    )
    from posttrain_plugins.rewards.value_model import ValueModel
    from posttrain_plugins.trainers.ppo import shared_reward

    path = run["ppo"].model_path
    assert len(adapters_in(path)) == 3
    assert set(run["eval"].details["models"]) == {"top", "ppo"}
    below = tuple(map(digest, adapters_in(path)[:-1]))
    config = load_adapted(path, **({"dtype": "float32"})).peft_config["default"]
    rm = str(run["rm"].model_path)
    beside = shared_reward.shared(rm, str(config.base_model_name_or_path), config, below)
    assert isinstance(beside.classifier, shared_reward.SharedClassifier)
    base = str(config.base_model_name_or_path)
    assert shared_reward.shared(rm, base, config, ("another",) * len(below)) == rm, "it is on another stack"
    whole = shared_reward.shared(rm, base, config).classifier  # of a policy on the bare base: all of its own come along
    assert (len(whole.folders), len(beside.classifier.folders)) == (len(adapters_in(rm)), 1)
    loading = {name: value for name, value in BITS[bits].items() if name.startswith(("load", "use"))}
    critic = ValueModel(str(path), dtype="float32", device="cpu", **loading)
    without = shutil.copytree(path, path.parent / "without")
    shutil.rmtree(without / "stack")
    alone = ValueModel(str(without), dtype="float32", device="cpu", **loading)
    asked = ([[{"role": "user", "content": "3|7"}]], [[{"role": "assistant", "content": "<answer>4"}]])
    assert critic(*asked) != alone(*asked)


def test_a_reward_model_may_go_on_with_the_policys_adapter(go: Any, sft: Path) -> None:
    from safetensors.torch import load_file

    from posttrain_plugins.rewards.reward_model import RewardModel

    run = go(f"  rm: {{use: reward, model: base, dataset: pairs, adapter_mode: continue, args: {{{STILL}}}}}", sft)
    path = run["rm"].model_path
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (sft, path))
    assert set(after) - set(before) == {"base_model.model.score.weight"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    (score,) = RewardModel(str(path), device="cpu")(["3|7"], ["<answer>4</answer>"])
    assert score is not None
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS", "and it is on the base that the policy is on"
    assert (
        config["base_model_name_or_path"]
        == json.loads((sft / "adapter_config.json").read_text())["base_model_name_or_path"]
    )


def test_what_cannot_be_merged_is_wrapped_around_plain_weights_and_moves_with_them(
    tiny_model: Path, tmp_path: Path
) -> None:
    from peft import get_peft_model

    config = pp.load("adapter", "bottleneck", reduction_factor=4)
    torch.manual_seed(3)
    made = get_peft_model(_model(tiny_model, "plain"), config)
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    made.save_pretrained(str(tmp_path))
    ids = torch.arange(10, 40)[None]
    expected = made.eval()(ids).logits
    frozen = attach_frozen(_model(tiny_model, "plain"), [tmp_path])
    assert is_wrapped(frozen)
    assert torch.equal(frozen(ids).logits, expected)
    assert not torch.equal(_model(tiny_model, "plain")(ids).logits, expected)
    moved = frozen.double()(ids).logits
    assert moved.dtype == torch.float64
    assert (moved - expected).abs().max() < 1e-4
