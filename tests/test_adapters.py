"""Adapter plugins: what each gives PEFT, the bottleneck tuner, what is frozen, and LoRA+'s and AdaLoRA's trainers."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError
from posttrain_plugins.models import adapter_types
from posttrain_plugins.plugins import registry
from posttrain_plugins.trainers.ppo.route import Route

TYPES = {
    "adalora": "ADALORA",
    "bottleneck": "BOTTLENECK",
    "ia3": "IA3",
    "lora": "LORA",
    "oft": "OFT",
    "p_tuning": "P_TUNING",
    "prefix": "PREFIX_TUNING",
    "prompt": "PROMPT_TUNING",
    "vera": "VERA",
}
IDS = torch.arange(4, 28).reshape(2, 12)
PLACEMENTS = ("houlsby", "pfeiffer", "parallel")


@pytest.mark.parametrize("name", TYPES)
def test_a_plugin_gives_the_config_of_its_type(name: str) -> None:
    config = pp.load("adapter", name)
    assert config.peft_type.value == TYPES[name]
    plugin = registry.load("adapter", name)
    found = adapter_types.abilities(plugin.params_of)
    assert found is not None
    assert found.name == TYPES[name]
    assert adapter_types.abilities(f"{type(config).__module__}:{type(config).__qualname__}") == found


def test_every_adapter_plugin_is_tried() -> None:
    others = {"full", "freeze", "peft"}
    assert {plugin.name for plugin in registry.installed("adapter")} == set(TYPES) | others


def test_any_type_of_peft_by_its_name() -> None:
    assert pp.load("adapter", "peft", peft_type="LOHA", r=3).r == 3
    with pytest.raises(InputError, match="no type 'LOHAA'"):
        pp.load("adapter", "peft", peft_type="LOHAA")


# --- the bottleneck tuner --------------------------------------------------------------------------------------------


@pytest.fixture
def base(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def shaken(model: Any, seed: int = 0) -> Any:
    """The adapter's weights away from their start."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_bottleneck_starts_as_the_base_and_comes_back_from_its_file(
    base: Any, placement: str, tmp_path: Path
) -> None:
    from peft import PeftModel, get_peft_model

    plain, fresh = logits(base), copy.deepcopy(base)
    model = get_peft_model(base, pp.load("adapter", "bottleneck", placement=placement, reduction_factor=8)).eval()
    assert torch.equal(logits(model), plain)
    trained = logits(shaken(model))
    assert not torch.equal(trained, plain)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(fresh, tmp_path)), trained)
    with pytest.raises(NotImplementedError, match="non-linearity"):
        model.merge_and_unload()
    assert torch.equal(logits(model.unload()), plain)


def test_a_bottleneck_is_what_its_paper_writes(base: Any) -> None:
    """Houlsby: h + up(f(down(h))) on a sublayer's output h; parallel: s times the same of its input (He et al.)."""
    from peft import get_peft_model

    hidden = torch.randn(2, 3, 32)
    for placement in ("pfeiffer", "parallel"):
        config = pp.load("adapter", "bottleneck", placement=placement, bottleneck_size=5, non_linearity="relu")
        model = shaken(get_peft_model(copy.deepcopy(base), config))
        layer = model.base_model.model.model.layers[0].mlp
        down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
        assert down.weight.shape == (5, 32)
        output = layer.base_layer(hidden)
        read, scale = (hidden, 4.0) if placement == "parallel" else (output, 1.0)
        expected = output + scale * up(torch.relu(down(read)))
        assert torch.allclose(layer(hidden), expected, atol=1e-6)


def test_where_the_placements_stand(base: Any) -> None:
    from peft import get_peft_model

    from posttrain_plugins.models.tuners.bottleneck import BottleneckLayer

    def places(**params: Any) -> set[str]:
        model = get_peft_model(copy.deepcopy(base), pp.load("adapter", "bottleneck", **params))
        return {name for name, module in model.named_modules() if isinstance(module, BottleneckLayer)}

    assert {name.rpartition(".")[2] for name in places(placement="houlsby")} == {"self_attn", "mlp"}
    assert {name.rpartition(".")[2] for name in places(placement="pfeiffer")} == {"mlp"}
    assert len(places(placement="pfeiffer", layers_to_transform=[1])) == 1
    with pytest.raises(InputError, match="whole sublayers"):
        places(target_modules=["q_proj"])


def test_two_bottlenecks_on_one_base_are_routed(base: Any) -> None:
    """As policy and critic are; with gradient checkpointing, each pass's gradients reach its own adapter alone."""
    from peft import get_peft_model

    model = get_peft_model(base, pp.load("adapter", "bottleneck", bottleneck_size=4))
    model.add_adapter("critic", pp.load("adapter", "bottleneck", bottleneck_size=2))
    model.set_requires_grad("critic", True)
    shaken(model).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with Route(model, "critic"):
        hidden = model.get_base_model().base_model(IDS, use_cache=False).last_hidden_state
    hidden.sum().backward()
    grads = {name: p.grad is not None for name, p in model.named_parameters() if p.requires_grad}
    assert all(has == ("critic" in name) for name, has in grads.items())
    assert any(grads.values())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"placement": "above"}, "placement is 'above'"),
        ({"non_linearity": "bend"}, "non_linearity is 'bend'"),
        ({"reduction_factor": 0}, "a bottleneck has a size"),
    ],
)
def test_a_bottleneck_refuses_what_it_cannot_be(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pp.load("adapter", "bottleneck", **params)


def test_a_saved_bottleneck_loads_where_nothing_has_named_it(base: Any, tmp_path: Path) -> None:
    """PEFT alone raises KeyError: 'BOTTLENECK'."""
    from peft import get_peft_model

    get_peft_model(base, pp.load("adapter", "bottleneck")).save_pretrained(tmp_path)
    code = (
        "from posttrain_plugins.models.load import load_model\n"
        f"print(type(load_model({str(tmp_path)!r}, device='cpu').base_model).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "BottleneckModel", done.stderr


def test_an_adapter_of_a_type_that_nobody_brings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "NOVEL"}))
    with pytest.raises(InputError, match="of type NOVEL, which neither PEFT"):
        adapter_types.ensure_registered(tmp_path)


def test_the_manifest_names_a_strangers_plugin_by_its_file(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "FOREIGN"}))
    (tmp_path / "mine.py").write_text(
        "from posttrain_plugins.models.tuners.bottleneck import BottleneckConfig, BottleneckModel\n"
        "from posttrain_plugins.models.tuners.registration import register\n"
        "class Model(BottleneckModel):\n    prefix = 'foreign_'\n"
        "register('foreign', BottleneckConfig, Model)\n"
        "def foreign(): return None\n"
    )
    manifest = {"handoff": {"adapter": {"plugin": f"{tmp_path / 'mine.py'}:foreign"}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    adapter_types.ensure_registered(model)
    from peft import PeftType

    assert "FOREIGN" in PeftType.__members__


# --- freeze ----------------------------------------------------------------------------------------------------------

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}.weight" for i in range(3) for part in ("mlp.up_proj", "self_attn.q_proj")),
    "model.norm.weight",
    "score.weight",
]


@pytest.mark.parametrize(
    ("params", "trained"),
    [
        ({"frozen_layers": 2}, {"embed", "layers.2", "norm", "score"}),
        ({"frozen_layers": [-1]}, {"embed", "layers.0", "layers.1", "norm", "score"}),
        ({"frozen_parameters": ["embed", r"\.mlp\."]}, {"self_attn", "norm", "score"}),
        ({"trainable_parameters": [r"layers\.2\."]}, {"layers.2", "score"}),
        (
            {"trainable_parameters": ["q_proj"], "frozen_layers": [0]},
            {"layers.1.self_attn", "layers.2.self_attn", "score"},
        ),
        ({"trainable_parameters": ["norm"], "frozen_parameters": ["score"]}, {"norm"}),
    ],
)
def test_what_is_frozen(params: dict[str, Any], trained: set[str]) -> None:
    kept = set(NAMES) - pp.load("adapter", "freeze", **params).frozen(NAMES)
    assert kept == {name for name in NAMES if any(part in name for part in trained)}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "nothing is frozen"),
        ({"frozen_parameters": ["("]}, "no regular expression"),
        ({"frozen_parameters": ["nowhere"]}, "no parameter of the model fits 'nowhere'"),
        ({"frozen_layers": 4}, "the model has 3 layers"),
    ],
)
def test_freeze_refuses_what_names_nothing(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pp.load("adapter", "freeze", **params).frozen(NAMES)


# --- what sets up the trainer ----------------------------------------------------------------------------------------


def test_lora_plus_splits_the_optimizers_groups(base: Any) -> None:
    from types import SimpleNamespace

    from peft import get_peft_model

    config = pp.load("adapter", "lora", r=2, loraplus_lr_ratio=16)
    assert "loraplus_lr_ratio" not in config.to_dict()
    model = get_peft_model(base, config)
    model.add_adapter("critic", pp.load("adapter", "lora", r=2))
    model.set_requires_grad("critic", True)
    every = [p for p in model.parameters() if p.requires_grad]
    trainer = SimpleNamespace(model=model, create_optimizer=lambda: torch.optim.AdamW(every, lr=1e-3, weight_decay=0.1))
    config.prepare(trainer)
    slow, fast = trainer.create_optimizer().param_groups
    named = {id(p): name for name, p in model.named_parameters()}
    assert {"lora_B.default" in named[id(p)] for p in fast["params"]} == {True}
    assert {"lora_B.default" in named[id(p)] for p in slow["params"]} == {False}
    assert (slow["lr"], fast["lr"], fast["weight_decay"]) == (1e-3, 16e-3, 0.1)


def test_a_ratio_below_one_and_ranks_that_cannot_shrink_are_refused() -> None:
    with pytest.raises(InputError, match=r"loraplus_lr_ratio is 0\.5"):
        pp.load("adapter", "lora", loraplus_lr_ratio=0.5)
    with pytest.raises(InputError, match="no rank to take away"):
        pp.load("adapter", "adalora", init_r=4, target_r=8)


# --- refusals --------------------------------------------------------------------------------------------------------

RECIPE = """
    model: {model_name_or_path: "{model}", {loading}}
    datasets: {demos: {use: digit_chain, part: demonstrations}, problems: {use: digit_chain},
               pairs: {path: "{pairs}"}}
    rewards: {correct: exact_answer}
    stages:
      it: {model: base, {stage}}
"""
SFT = "use: sft, dataset: demos, adapter: "
GRPO = "use: grpo, dataset: problems, rewards: [correct], adapter: "
OREO = "use: oreo, dataset: {path: '{pairs}'}, adapter: lora, critic: "
PPO = "use: ppo, dataset: problems, rewards: [correct], adapter: lora, critic: "


@pytest.mark.parametrize(
    ("loading", "stage", "message", "hint"),
    [
        ("", f"{SFT} prefix", "PREFIX_TUNING hands its tokens on as a cache", "gradient_checkpointing: false"),
        ("", f"{GRPO} bottleneck, args: {{use_vllm: true}}", "which BOTTLENECK cannot be", "use_vllm: false"),
        ("", f"{GRPO} {{use: peft, peft_type: LILY}}, args: {{use_vllm: true}}", "which LILY cannot be", "use: lora"),
        ("load_in_4bit: true", f"{SFT} {{use: peft, peft_type: LOHA}}", "LOHA reads or trains", "remove load_in_4bit"),
        ("load_in_8bit: true", f"{SFT} full", "trains all parameters", "use: lora"),
        ("load_in_4bit: true", f"{SFT} {{use: freeze, frozen_layers: 1}}", "trains all parameters", "use: lora"),
        (
            "load_in_4bit: true",
            f"{SFT} {{use: lora, init_lora_weights: loftq, loftq_config: {{loftq_bits: 4}}}}",
            "loftq computes the adapter from the weights that load_in_4bit packs",
            "init_lora_weights: true",
        ),
        ("", f"{GRPO} {{use: lora, init_lora_weights: pissa}}, args: {{beta: 0.1}}", "is another model", "beta: 0"),
        ("", "use: reward, dataset: pairs, adapter: prompt", "does not see where the padding starts", "use: lora"),
        ("", "use: orpo, dataset: pairs, adapter: p_tuning", "the learned tokens come first", "use: lora"),
        ("load_in_4bit: true", f"{PPO[: -len('lora, critic: ')]} adalora", "the critic is a copy", "critic: shared"),
        ("", f"{PPO} adalora", "which ADALORA cannot be", "leave critic out"),
        ("", f"{PPO} prompt", "which PROMPT_TUNING cannot be", "leave critic out"),
        ("", f"{PPO} {{use: lora, loraplus_lr_ratio: 4}}", "would do nothing for a critic's", "critic_learning_rate"),
        ("", f"{PPO} {{use: freeze, frozen_layers: 1}}", "sets up the trainer for the policy", "critic_learning_rate"),
        ("", f"{OREO} {{use: freeze, frozen_layers: 1}}", "sets up the trainer for the policy", "critic_learning_rate"),
        ("", f"{PPO} {{use: lora, init_lora_weights: olora}}", "out of the base that the policy shares", "true"),
        ("", f"{SFT} {{use: peft}}", "needs 'peft_type'", ""),
        ("", f"{SFT} {{use: peft, peft_type: LOHAA}}", "PEFT has no type 'LOHAA'", "LOHA"),
        ("", f"{SFT} {{use: peft, peft_type: LOHA, rr: 2}}", "unknown key 'rr' in adapter 'peft'", "did you mean 'r'"),
        ("", f"{SFT} {{use: bottleneck, placement: above}}", "'placement' is 'above'", ""),
    ],
)
def test_what_cannot_work_is_refused_before_anything_loads(
    write_recipe: Callable[..., Path],
    tiny_model: Path,
    tiny_data: Path,
    loading: str,
    stage: str,
    message: str,
    hint: str,
) -> None:
    from posttrain_plugins import validate

    file = write_recipe(
        RECIPE, model=tiny_model, pairs=tiny_data / "pairs.jsonl", loading=loading or "dtype: float32", stage=stage
    )
    with pytest.raises(InputError) as caught:
        validate(file)
    assert message in str(caught.value)
    assert hint in str(caught.value)
    assert "recipe.yaml:" in str(caught.value)


@pytest.mark.parametrize(
    "stage",
    [
        f"{SFT} prefix, args: {{gradient_checkpointing: false}}",
        f"{GRPO} {{use: lora, init_lora_weights: pissa}}",
        f"{GRPO} lora, args: {{use_vllm: true, beta: 0.1}}",
        f"{SFT} {{use: peft, peft_type: LOHA, r: 2}}",
    ],
)
def test_what_can_work_is_not_refused(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, stage: str
) -> None:
    from posttrain_plugins import validate

    validate(
        write_recipe(RECIPE, model=tiny_model, pairs=tiny_data / "pairs.jsonl", loading="dtype: float32", stage=stage)
    )


def test_a_strangers_adapter_that_sets_up_the_trainer_is_no_critic(tmp_path: Path) -> None:
    """Its plugin lies in a file that no check imports; the stage refuses it before its model is loaded."""
    from posttrain_plugins.stages import oreo, ppo
    from posttrain_plugins.types import ResolvedAdapter, StageContext

    critic = ResolvedAdapter("mine", pp.load("adapter", "lora"), "mine", lambda trainer: None)
    inputs = {"critic": critic, "rewards": []}
    context = StageContext("it", tmp_path, 3, inputs, None, None, lambda: False)  # type: ignore[arg-type]
    for stage in (ppo.PPO("base", "data", []), oreo.OREO("base", "data")):
        with pytest.raises(InputError, match="stage 'it': adapter 'mine' sets up the trainer") as caught:
            stage(context)
        assert "critic_learning_rate" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("adapter", "loading", "args", "message"),
    [
        ({"use": "vera"}, {"load_in_8bit": True}, {}, "VERA mixes its bfloat16"),
        ({"use": "ia3"}, {"load_in_4bit": True, "dtype": "bfloat16"}, {}, "IA3 mixes its bfloat16"),
        ({"use": "lora", "use_dora": True}, {"load_in_8bit": True}, {"bf16": True}, "DoRA reads the base's weights"),
        ({"use": "vera"}, {"load_in_8bit": True}, {"bf16": True}, None),
        ({"use": "vera"}, {"load_in_4bit": True, "dtype": "float32"}, {}, None),
        (
            {"use": "peft", "peft_type": "PVERA"},
            {"load_in_4bit": True, "dtype": "float32"},
            {},
            "PVERA mixes its bfloat16",
        ),
    ],
)
def test_what_a_cpu_cannot(
    adapter: dict[str, Any], loading: dict[str, Any], args: dict[str, Any], message: str | None
) -> None:
    from types import SimpleNamespace

    from posttrain_plugins.models.adapter_compatibility import check_fits

    config = pp.load("adapter", str(adapter["use"]), **{k: v for k, v in adapter.items() if k != "use"})
    check_fits("it", config, SimpleNamespace(**args), loading, is_on_cpu=False)
    if message is None:
        check_fits("it", config, SimpleNamespace(**args), loading, is_on_cpu=True)
    else:
        with pytest.raises(InputError, match=message):
            check_fits("it", config, SimpleNamespace(**args), loading, is_on_cpu=True)


def test_a_strangers_plugin_without_params_of_is_refused_by_its_config(tiny_model: Path) -> None:
    from types import SimpleNamespace

    from posttrain_plugins.models.adapter_compatibility import check_fits

    with pytest.raises(InputError, match="stage 'it': PREFIX_TUNING hands"):
        check_fits("it", pp.load("adapter", "prefix"), SimpleNamespace(gradient_checkpointing=True), {})
    check_fits("it", pp.load("adapter", "lora"), SimpleNamespace(gradient_checkpointing=True), {})


def test_a_type_that_cannot_leave_out_a_token_classifiers_head_is_refused() -> None:
    from posttrain_plugins.trainers.start import _for_task

    with pytest.raises(InputError, match="VeraConfig has no exclude_modules") as caught:
        _for_task(pp.load("adapter", "vera"), "TOKEN_CLS")
    assert "target_modules: [q_proj, v_proj]" in str(caught.value.hint)
    assert _for_task(pp.load("adapter", "vera", target_modules=["q_proj"]), "TOKEN_CLS").task_type == "TOKEN_CLS"
