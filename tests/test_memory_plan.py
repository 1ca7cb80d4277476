"""What a recipe's stages take: counted on the meta device, held against a step that is really taken."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins import api
from posttrain_plugins.errors import InputError, StageFailed
from posttrain_plugins.memory_plan.advice import advise, changes, fits
from posttrain_plugins.memory_plan.estimate import Estimator, Machine, StageMemory
from posttrain_plugins.memory_plan.sizes import parse_size, shown
from posttrain_plugins.memory_plan.work import work_of
from posttrain_plugins.models.training_memory import (
    Moments,
    Sharding,
    packed_bytes,
    peak_of,
    training_bytes,
)
from posttrain_plugins.recipe.plan.plan import Plan

LARGE = 80 * 10**9
ON_CPU = Machine(LARGE, False)
RECIPE = """
name: m
seed: 0
model: {model_name_or_path: "MODEL"}
adapters: {policy: {use: lora, r: 4}, judge: {use: lora, r: 2}}
datasets: {demos: {path: demos.jsonl}, pairs: {path: pairs.jsonl}, prompts: {path: prompts.jsonl}}
rewards: {short: {use: length, max_chars: 20}}
stages:
  full: {use: sft, model: base, dataset: demos, args: {max_steps: 3, gradient_checkpointing: false}}
  lora: {use: sft, model: base, dataset: demos, adapter: policy, args: {max_length: 64}}
  dpo:  {use: dpo, model: full, dataset: pairs, args: {max_length: 64}}
  rm:   {use: reward, model: lora, dataset: pairs, adapter: judge, args: {max_length: 64}}
  grpo: {use: grpo, model: lora, dataset: prompts, adapter: policy, rewards: [short], args: {max_completion_length: 32}}
  ppo:  {use: ppo, model: full, dataset: prompts, rewards: [short, rm], args: {max_completion_length: 32}}
  eval: {use: evaluate, models: [base], dataset: demos, rewards: [short], strategies: [greedy]}
"""
ROWS = {
    "demos": {"prompt": "1|2>3", "completion": "4", "solution": "4"},
    "pairs": {"prompt": "1|2>3", "chosen": "4", "rejected": "5"},
    "prompts": {"prompt": "1|2>3"},
}


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Path:
    for name, row in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    file = tmp_path / "m.yaml"
    file.write_text(RECIPE.replace("MODEL", str(tiny_model)))
    return file


def planned(recipe: Path, overrides: Any = ()) -> Plan:
    return api.plan(recipe, overrides, runs_dir=recipe.parent / "runs")


def of(recipe: Path, stage: str, overrides: Any = (), machine: Machine = ON_CPU) -> StageMemory:
    plan = planned(recipe, overrides)
    return Estimator(machine, 16).stage(plan, plan[stage].spec)


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("80GB", 80 * 10**9),
        ("80 gb", 80 * 10**9),
        ("79.6GiB", int(79.6 * 2**30)),
        ("512M", 512 * 10**6),
        ("1TiB", 2**40),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "80", "lots", "-1GB", "80 GBs", "0GB", "1e3GB"])
def test_what_is_no_size_is_told_with_one_that_is(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_size(text)
    assert "80GB" in str(caught.value.hint)


def test_a_size_is_shown_with_three_digits() -> None:
    assert [shown(n) for n in (0, 999, 2**20, 3 * 2**29, 15 * 2**30, 200 * 2**30, 2**40)] == [
        "0 B", "999 B", "1.00 MiB", "1.50 GiB", "15.0 GiB", "200 GiB", "1.00 TiB",
    ]  # fmt: skip


# --- the formula -----------------------------------------------------------------------------------------------------


def test_the_peak_is_the_larger_moment_over_what_stays() -> None:
    moments = Moments(activations=50, loss=70, last=60, end=40)
    assert peak_of(100, moments, gradients=30) == 170
    assert peak_of(100, moments, gradients=30, accumulates=True) == 200
    assert peak_of(100, replace(moments, end=90), gradients=30) == 190
    assert moments.head == 20
    few, more = replace(moments, kept=52, left=31), replace(moments, activations=60, loss=83, last=69, kept=64, left=36)
    # the loss is where all is kept, the last layer is gone back through when the critic's pass is over
    assert few.extended(more, 3) == Moments(80, 106, 90, 55, 88, 46)
    early = replace(more, loss=81)  # the policy's head alone, and more is kept afterwards
    assert few.extended(early, 30).loss == 412


def test_what_an_engine_shards() -> None:
    assert Sharding.of("zero1", 8) == Sharding(1, 1, 8)
    assert Sharding.of("zero2", 8) == Sharding(1, 8, 8)
    assert Sharding.of("zero3", 8) == Sharding.of("fsdp2", 8) == Sharding(8, 8, 8)
    assert Sharding.of("ddp", 8) == Sharding.of(None, 8) == Sharding()


def test_packed_weights_are_as_large_as_bitsandbytes_makes_them() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    import torch

    weight = torch.randn(72, 130)
    for is_nested in (False, True):
        packed, state = bitsandbytes.functional.quantize_4bit(
            weight, compress_statistics=is_nested, quant_type="nf4", blocksize=64
        )
        size = packed.nbytes + state.absmax.nbytes + state.code.nbytes
        size += state.state2.absmax.nbytes + state.state2.code.nbytes + state.offset.nbytes if is_nested else 0
        assert packed_bytes(weight.numel(), 4, is_nested=is_nested) == size
    assert packed_bytes(weight.numel(), 8, rows=72) == weight.numel() + 4 * 72


# --- a traced step ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=320, tie_word_embeddings=True,
    )  # fmt: skip


def in_force(moments: Moments) -> dict[str, int]:
    """The moments but the end's, which counts only where it is most: it begins with nearly all activations."""
    return {**vars(moments), "end": max(moments.loss, moments.last, moments.end)}


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("has_adapter", [False, True])
def test_few_layers_tell_what_all_take(llama: Any, is_checkpointed: bool, has_adapter: bool) -> None:
    from peft import LoraConfig

    from posttrain_plugins.memory_plan.model import Subject, on_meta
    from posttrain_plugins.memory_plan.trace import Pass, trace

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if has_adapter else None

    def build(layers: int | None) -> Any:
        model = on_meta(Subject(llama, "CAUSAL_LM", "float32", adapter=lora), "CausalLM", layers_kept=layers)
        if is_checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        return model

    given = Pass(2, 48, lambda model, ids, mask: model(input_ids=ids, attention_mask=mask, labels=ids).loss)
    few, whole = (trace(build(None), cut, given) for cut in (build, None))
    # when Python lets go of the last temporary number is not the same in each layer
    assert in_force(few) == pytest.approx(in_force(whole), rel=0.02)


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_few_layers_tell_what_a_critic_on_the_same_base_takes(llama: Any, is_checkpointed: bool) -> None:
    """Its pass begins when the policy's head is through, and is over when that is gone back through."""
    import torch
    from peft import LoraConfig
    from trl.trainer.utils import add_fused_lm_head

    from posttrain_plugins.memory_plan.model import Subject, on_meta
    from posttrain_plugins.memory_plan.trace import Pass, trace
    from posttrain_plugins.trainers.ppo.critic import Critic

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    # so many that the head takes more than the critic's pass leaves, which is not there at the same time
    config = copy.deepcopy(llama)
    config.vocab_size = 1024

    def build(layers: int | None) -> Any:
        subject = Subject(config, "CAUSAL_LM", "float32", adapter=lora)
        model = on_meta(subject, "CausalLM", layers_kept=layers, prepare_base=add_fused_lm_head)
        if is_checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        with torch.device("meta"):
            object.__setattr__(model, "critic_of_plan", Critic(model, "adapter", lora))
        return model

    def call(model: Any, ids: Any, mask: Any) -> Any:
        out = model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True, with_values=True)
        return out.log_probs.sum() + out.state_values.sum()

    few, whole = (trace(build(None), cut, Pass(2, 48, call)) for cut in (build, None))
    assert in_force(few) == pytest.approx(in_force(whole), rel=0.05)


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("has_adapter", [False, True])
def test_a_traced_step_is_a_real_one(llama: Any, is_checkpointed: bool, has_adapter: bool) -> None:
    """The same counts on tensors that hold numbers: torch's own attention, a mask of padding, TRL's fused head."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    from posttrain_plugins.memory_plan.model import Subject, on_meta
    from posttrain_plugins.memory_plan.trace import Pass, count_step, trace

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if has_adapter else None

    def ready(model: Any) -> Any:
        if is_checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        return model

    def build(layers: int | None) -> Any:
        subject = Subject(llama, "CAUSAL_LM", "float32", adapter=lora)
        return ready(on_meta(subject, "CausalLM", layers_kept=layers, prepare_base=add_fused_lm_head))

    def call(model: Any, ids: Any, mask: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs.sum()

    real = AutoModelForCausalLM.from_config(llama, attn_implementation="sdpa")
    add_fused_lm_head(real)
    real = ready(get_peft_model(real, lora) if lora is not None else real)
    mask = torch.ones(3, 96, dtype=torch.long)
    mask[0, -10:] = 0
    found = trace(build(None), build, Pass(3, 96, call))
    counted = count_step(real, call, torch.zeros(3, 96, dtype=torch.long), mask)
    assert in_force(found) == pytest.approx(in_force(counted), rel=0.05)
    learns = sum(p.nbytes for p in real.parameters() if p.requires_grad)
    assert counted.left == pytest.approx(learns, rel=0.01)
    if is_checkpointed:  # a layer leaves what goes into it; its weights, of which it takes views, are no part of that
        few, more = (trace(build(count), None, Pass(3, 96, call)).activations for count in (2, 3))
        assert more - few == pytest.approx(3 * 96 * 64 * 4, rel=0.1)  # and the state of the random numbers


def test_parameters_gradients_and_optimizer_are_those_of_a_real_step(recipe: Path, tiny_model: Path) -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    for stage in ("full", "lora"):
        model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        if stage == "lora":
            model = get_peft_model(model, api.load("adapter", "lora", r=4))
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning)
        ids = torch.zeros(1, 8, dtype=torch.long)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        states = [s for of_one in optimizer.state.values() for s in of_one.values() if s.numel() > 1]
        found = of(recipe, stage)
        assert found.gradients == sum(p.grad.nbytes for p in learning)
        assert found.optimizer == sum(s.nbytes for s in states)
        assert found.weights + found.adapters == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        assert found.learns == sum(p.numel() for p in learning)


IN_MEMORY = {  # of the model, of the stage
    "qlora": ("load_in_4bit: true", "use: sft, dataset: demos, adapter: policy, args: {max_steps: 1, bf16: false}"),
    "nested": (
        "load_in_4bit: true, use_bnb_nested_quant: true",
        "use: sft, dataset: demos, adapter: policy, args: {max_steps: 1, bf16: false}",
    ),
    "vera": ("", "use: sft, dataset: demos, adapter: {use: vera, r: 8}, args: {max_steps: 1}"),
    "ppo": ("", "use: ppo, dataset: prompts, rewards: [short], args: {max_steps: 1, max_completion_length: 8}"),
}


@pytest.mark.parametrize("case", IN_MEMORY)
def test_what_a_stage_holds_is_planned_to_the_byte(
    case: str, tiny_model: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the trainer that the stage builds, just before it trains: packed weights, tables, buffers, a critic's body."""
    if case in ("qlora", "nested"):
        pytest.importorskip("bitsandbytes")
    from transformers import Trainer

    loading, stage = IN_MEMORY[case]
    head, _, _ = RECIPE.partition("stages:")
    model = f'model: {{model_name_or_path: "{tiny_model}", {loading}}}'
    text = head.replace('model: {model_name_or_path: "MODEL"}', model)
    recipe.write_text(f"{text}stages:\n  it: {{model: base, {stage}}}\n")
    seen: list[int] = []

    def count(trainer: Trainer, **given: Any) -> None:
        tensors = [*trainer.model.parameters(), *trainer.model.buffers()]
        states = [one.quant_state for one in tensors if getattr(one, "quant_state", None) is not None]
        nested = [state for state in states if state.nested]
        tensors += [part for state in states for part in (state.absmax, state.code)]
        tensors += [part for one in nested for part in (one.offset, one.state2.absmax, one.state2.code)]
        seen.append(sum(one.nbytes for one in {id(one): one for one in tensors}.values()))
        raise MemoryError  # what there is to see has been seen

    monkeypatch.setattr(Trainer, "train", count)
    with pytest.raises(StageFailed):
        api.run(recipe, runs_dir=recipe.parent / "runs")
    found = of(recipe, "it")
    assert found.weights + found.adapters + found.critic == seen[0]


def test_the_closed_formula_is_near_a_traced_step(llama: Any) -> None:
    """For sizes that `doctor` shows; in a traced step each op's own temporary numbers count too."""
    from trl.trainer.utils import add_fused_lm_head

    from posttrain_plugins.memory_plan.model import Subject, on_meta
    from posttrain_plugins.memory_plan.trace import Pass, trace
    from posttrain_plugins.models.training_memory import Shape

    wide = {"num_hidden_layers": 24, "hidden_size": 256, "intermediate_size": 688, "vocab_size": 40960}
    config = type(llama)(**{**llama.to_dict(), **wide})
    shape = Shape(24, 256, 688, 256, 128, 40960)

    def build(layers: int | None) -> Any:
        subject = Subject(config, "CAUSAL_LM", "float32")
        return on_meta(subject, "CausalLM", layers_kept=layers, prepare_base=add_fused_lm_head)

    def call(model: Any, ids: Any, mask: Any) -> Any:
        return model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs.sum()

    given = Pass(1, 512, call, has_mask=False)
    stays = 12 * shape.parameters
    traced = peak_of(stays, trace(build(None), build, given), gradients=4 * shape.parameters)
    formula = training_bytes(shape, "all parameters", tokens=512)
    assert abs(formula / traced - 1) < 0.1


# --- stages ----------------------------------------------------------------------------------------------------------


def test_each_stage_has_what_its_method_holds(recipe: Path) -> None:
    found: Any = Estimator(ON_CPU, 16).all(planned(recipe))
    assert list(found) == ["full", "lora", "dpo", "rm", "grpo", "ppo", "eval"]
    base = found["full"].weights
    assert found["eval"].peak == found.pop("eval").weights == base
    assert all(one.weights >= base for one in found.values())
    assert found["full"].adapters == found["full"].reference == found["full"].rollout == 0
    assert 0 < found["lora"].adapters < base
    assert found["dpo"].reference == base  # a copy, as all of the policy trains
    assert found["grpo"].reference == 0
    assert found["grpo"].cache > 0
    assert found["ppo"].reference == base
    assert found["ppo"].critic > 0.9 * base
    assert found["ppo"].rewards > base  # a reward model that has no base to share with a policy without adapter
    for one in found.values():
        assert one.update >= one.stays + one.gradients
        assert one.rollout in (0, one.stays + one.cache + one.sampling)
        assert one.peak == max(one.update, one.rollout)  # the phases are never summed


@pytest.mark.slow
def test_what_saves_memory_does(recipe: Path) -> None:
    peaks = [
        of(recipe, "full", more).update
        for more in ([], ["stages.full.args.gradient_checkpointing=true"], ["stages.full.args.max_length=128"])
    ]
    assert peaks[0] > peaks[1]
    assert peaks[0] > peaks[2]
    whole, half = (of(recipe, "dpo", m) for m in ([], ["stages.dpo.args.precompute_ref_log_probs=true"]))
    assert (whole.reference > 0, half.reference) == (True, 0)
    separate, shared = (of(recipe, "ppo", m) for m in ([], ["stages.ppo.args.critic=shared"]))
    assert shared.critic < separate.critic / 10
    sharded = of(recipe, "full", machine=replace(ON_CPU, sharding=Sharding.of("zero3", 4)))
    assert sharded.optimizer == of(recipe, "full").optimizer // 4
    assert of(recipe, "full", ["stages.full.args.optim=sgd"]).optimizer == 0
    assert of(recipe, "full", machine=Machine(LARGE, True)).activations < of(recipe, "full").activations  # bfloat16


def test_a_model_that_nobody_knows_yet_is_told(recipe: Path) -> None:
    (recipe.parent / "own.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n\n\n@dataclass\nclass Own:\n"
        "    size: int = 1\n    produces: ClassVar[str] = 'model'\n\n    def __call__(self, context):\n        ...\n"
    )
    text = recipe.read_text().replace("  full:", "  own: {use: ./own.py:Own}\n  full:")
    recipe.write_text(text.replace("model: base, dataset: demos, args", "model: own, dataset: demos, args"))
    found = Estimator(ON_CPU, 16).all(planned(recipe))
    assert found["full"] == "unknown until 'own' has run"
    assert isinstance(found["lora"], StageMemory)


def test_a_model_of_parameters_is_known_before_it_is_made(tiny_model: Path, recipe: Path) -> None:
    made = (
        '{use: random_init, tokenizer: "MODEL", config: {model_type: qwen3, hidden_size: 32, num_hidden_layers: 2, '
        "intermediate_size: 64, num_attention_heads: 2, num_key_value_heads: 2, head_dim: 16, "
        "tie_word_embeddings: true}}"
    )
    text = RECIPE.replace('{model_name_or_path: "MODEL"}', made).replace("MODEL", str(tiny_model))
    before = of(recipe, "full")
    recipe.write_text(text)
    assert of(recipe, "full").parameters == before.parameters


# --- advice ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_change_that_fits_is_the_line_to_write(recipe: Path) -> None:
    plan = planned(recipe)
    spec = plan["full"].spec
    lines = [change.line for change in changes(plan, spec, is_gpu=False)]
    assert lines[0] == "-o stages.full.args.gradient_checkpointing=true"
    assert lines[1] == (
        "-o stages.full.args.per_device_train_batch_size=4 -o stages.full.args.gradient_accumulation_steps=2"
    )
    assert "-o 'stages.full.adapter={use: lora}'" in lines
    whole, less = of(recipe, "full"), of(recipe, "full", ["stages.full.args.gradient_checkpointing=true"])
    room = Machine(int((whole.peak + less.peak) / 2 / 0.9), False)
    assert not fits(whole, room.memory)
    found = advise(plan, spec, Estimator(room, 16))
    assert found is not None
    assert (found.line, found.fits, found.peak) == (lines[0], True, less.peak)
    none = advise(plan, spec, Estimator(Machine(1000, False), 16))
    assert none is not None
    assert not none.fits
    assert none.peak < whole.peak


@pytest.mark.parametrize("stage", ["full", "lora", "dpo", "grpo", "ppo"])
def test_every_line_is_taken_by_the_recipe(recipe: Path, stage: str) -> None:
    """Each `-o` of a line, given to the recipe, makes the stage that the advice was computed for."""
    import shlex

    plan = planned(recipe)
    found = [change for change in changes(plan, plan[stage].spec, is_gpu=True) if change.processes == 1]
    assert len(found) >= 3
    for change in found:
        words = shlex.split(change.line)
        changed = planned(recipe, words[1::2])[stage].spec
        assert changed.params == change.spec.params, change.line
        assert changed.loading == change.spec.loading, change.line


def test_out_of_memory_comes_with_the_change_that_fits(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain_plugins.recipe.run.out_of_memory import stage_out_of_memory

    plan = planned(recipe)

    class OutOfMemoryError(RuntimeError):
        """As torch's."""

    told = "CUDA out of memory. Tried to allocate 2 GiB.\nmore"
    for cause in (MemoryError(), OutOfMemoryError(told), RuntimeError("can't allocate memory")):
        failed = stage_out_of_memory(cause, plan, plan["full"])
        assert failed is not None
        assert failed.message.startswith("stage 'full' ran out of memory: ")
        assert "\n" not in failed.message
        assert "posttrain run RECIPE -o stages.full.args.gradient_checkpointing=true" in str(failed.hint)
    assert stage_out_of_memory(ValueError("no"), plan, plan["full"]) is None
    other = stage_out_of_memory(MemoryError(), plan, plan["eval"])
    assert other is not None
    assert "num_generations" in str(other.hint)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a fault in the plan")

    monkeypatch.setattr(Estimator, "stage", fails)
    still = stage_out_of_memory(MemoryError(), plan, plan["full"])
    assert still is not None
    assert "per_device_train_batch_size" in str(still.hint)


# --- work ------------------------------------------------------------------------------------------------------------


def test_work_is_told_from_the_options_and_the_last_run(recipe: Path) -> None:
    plan = planned(recipe)
    work = work_of(plan, prompt_tokens=16)
    assert list(work) == ["full", "lora", "dpo", "rm", "grpo", "ppo"]
    assert (work["full"].steps, work["full"].tokens, work["full"].seconds) == (3, 3 * 8 * 1024, None)
    assert (work["lora"].steps, work["lora"].tokens) == (None, None)
    assert work["dpo"].tokens_per_step == 2 * 8 * 64
    assert work["grpo"].tokens_per_step == 8 * (16 + 32)
    plan.store.prepare()
    stage = plan["full"]
    manifest = {"key": stage.key, "parts": {}, "finished": "2026", "metrics": {"steps": 3, "train_s": 6.0}}
    with plan.store.locked(stage.id, stage.key):
        plan.store.publish(stage.id, stage.key, manifest)
    assert work_of(planned(recipe))["full"].is_cached
    more = work_of(planned(recipe, ["stages.full.args.max_steps=10"]))["full"]
    assert (more.steps, more.seconds, more.is_cached) == (10, 20.0, False)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plan_shows_memory_in_eighty_columns(recipe: Path, capsys: Any) -> None:
    from rich.console import Console

    from posttrain_plugins.cli.memory_tables import memory_lines, memory_tables, work_table
    from posttrain_plugins.cli.recipes import plan as command

    runs, small = recipe.parent / "runs", Machine(4 * 10**6, False)
    plan = planned(recipe)
    estimator = Estimator(small, 16)
    found = estimator.all(plan)
    console = Console(width=80)
    for table in (work_table(work_of(plan)), *memory_tables(found, small)):
        console.print(table)
    text = capsys.readouterr().out
    for word in ("weights", "activations", "KV cache", "update, peak", "too large", "tokens, at most", "by rows"):
        assert word in text, word
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("weights") == 2  # seven stages beside each other would be broken in two
    advice = {"full": advise(plan, plan["full"].spec, estimator), "lora": None}
    lines = list(memory_lines({**found, "dpo": "unknown until 'own' has run"}, advice, small))
    assert "dpo: unknown until 'own' has run" in lines
    assert any(line.startswith("full: no single change makes it fit; most saves") for line in lines)
    command(str(recipe), memory="80GB", prompt_tokens=16, runs_dir=runs, as_json=True)
    stages = {one["stage"]: one for one in json.loads(capsys.readouterr().out)}
    assert stages["full"]["memory"]["fits"]
    assert stages["full"]["work"]["steps"] == 3
    assert stages["eval"]["memory"]["fits"]
    assert "work" not in stages["eval"]
    command(str(recipe), runs_dir=runs, as_json=True)
    plain = {one["stage"]: one for one in json.loads(capsys.readouterr().out)}
    assert "memory" not in plain["full"]
    with pytest.raises(InputError, match="'much' is no size of memory"):
        command(str(recipe), memory="much", runs_dir=runs)
