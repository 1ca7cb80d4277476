"""One base, many roles: each role's gradients are its own, with checkpointing, other ranks and 4-bit weights too."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from posttrain_plugins.errors import InputError  # noqa: E402
from posttrain_plugins.trainers.ppo.critic import Critic  # noqa: E402
from posttrain_plugins.trainers.ppo.route import Route  # noqa: E402
from posttrain_plugins.trainers.ppo.rules import choose_kind  # noqa: E402

IDS = [[3, 9, 12, 20, 31, 7, 40, 11], [5, 6, 7, 8, 9, 10, 11, 12]]


def causal_lm(path: Path, is_quantized: bool = False) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl.trainer.utils import add_fused_lm_head

    options: dict[str, Any] = {"dtype": torch.float32}
    if is_quantized:
        from posttrain_plugins.models.quantization import keep_packed_weights_exact

        keep_packed_weights_exact()
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
    model = AutoModelForCausalLM.from_pretrained(str(path), **options)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model


def lora(rank: int, targets: Any = "all-linear") -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)


def with_critic(
    path: Path, rank: int = 4, targets: Any = "all-linear", is_quantized: bool = False
) -> tuple[Any, Critic]:
    """A LoRA policy of rank 4 with a critic adapter, none of them at zero."""
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(causal_lm(path, is_quantized), lora(4))
    critic = Critic(model, "adapter", lora(rank, targets))
    torch.nn.init.normal_(critic.head.weight)
    return model.train(), critic


def loss_of(model: Any, roles: str = "policy critic") -> Any:
    ids = torch.tensor(IDS)
    output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True, with_values=True)
    parts = {"policy": -output.log_probs.mean(), "critic": output.state_values.square().mean()}
    return sum(parts[role] for role in roles.split())


def gradients(model: Any, roles: str = "policy critic") -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    loss_of(model, roles).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize(
    ("rank", "targets", "is_quantized"),
    [
        (4, "all-linear", False),
        (2, "all-linear", False),
        (4, ["q_proj", "down_proj"], False),
        (4, "all-linear", True),
        (2, "all-linear", True),
    ],
    ids=["same rank", "other rank", "other layers", "4 bit, same rank", "4 bit, other rank"],
)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_each_role_has_its_own_gradients(
    tiny_model: Path, rank: int, targets: Any, is_quantized: bool, use_reentrant: bool
) -> None:
    """Bit for bit what they are without checkpointing; the policy's loss moves the policy, the critic's the critic."""
    model, critic = with_critic(tiny_model, rank, targets, is_quantized)
    plain = {roles: gradients(model, roles) for roles in ("policy", "critic", "policy critic")}
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(plain["policy critic"]) == set(adapters)
    assert set(plain["policy"]) == {name for name in adapters if not critic.owns(name)}
    assert set(plain["critic"]) == {name for name in adapters if critic.owns(name)}
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    again = gradients(model)
    assert set(again) == set(adapters)
    assert [name for name in adapters if not torch.equal(again[name], plain["policy critic"][name])] == []
    for name in adapters:
        role = "critic" if critic.owns(name) else "policy"
        assert torch.equal(again[name], plain[role][name]), f"the other role's loss moves {name}"


def test_checkpoints_are_really_computed_again(tiny_model: Path) -> None:
    """A layer runs for the policy and for the critic, and for each of them once more in backward."""
    model, _ = with_critic(tiny_model)
    layer = model.get_base_model().model.layers[0]
    calls: list[list[str]] = []
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(layer.mlp.up_proj.active_adapters))
    gradients(model)
    assert calls == [["default"], ["critic"]]
    calls.clear()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    gradients(model)
    assert calls[:2] == [["default"], ["critic"]]
    assert sorted(calls[2:]) == [["critic"], ["default"]]


@pytest.mark.parametrize(
    ("rank", "checkpointed", "mended", "outcome"),
    [
        (4, False, False, "nothing"),
        (4, True, False, "nothing"),
        (2, True, False, "CheckpointError"),
        (4, False, True, "right"),
        (4, True, True, "wrong"),
        (2, True, True, "CheckpointError"),
    ],
)
def test_what_set_adapter_would_do(tiny_model: Path, rank: int, checkpointed: bool, mended: bool, outcome: str) -> None:
    """The traps that the route is for: PEFT's own way, alone and with `requires_grad` set again on both adapters."""
    model, critic = with_critic(tiny_model, rank)
    right = gradients(model, "critic")
    model, critic = with_critic(tiny_model, rank)
    critic.route = None
    if checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.tensor(IDS)
    values = None
    for adapter in ("critic", "default"):
        model.set_adapter(adapter)
        if mended:
            model.set_requires_grad(["critic", "default"], True)
        if values is None:
            values = critic.values({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, None)
    if outcome == "CheckpointError":
        with pytest.raises(torch.utils.checkpoint.CheckpointError):
            values.square().mean().backward()
        return
    values.square().mean().backward()
    found = {n: p.grad for n, p in model.named_parameters() if ".critic." in n and p.grad is not None}
    names = [name for name in right if ".critic." in name]
    assert len(names) == 28
    assert [name for name in names if name in found and found[name].any()] == ([] if outcome == "nothing" else names)
    if outcome != "nothing":
        assert [torch.equal(found[name], right[name]) for name in names] == [outcome == "right"] * 28


@pytest.mark.parametrize("is_quantized", [False, True], ids=["", "4 bit"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_third_role_disturbs_neither(tiny_model: Path, is_quantized: bool, checkpointed: bool) -> None:
    """A reward model's pass between the others' forward and backward: theirs are what they were, and it has none."""
    model, critic = with_critic(tiny_model, 2, is_quantized=is_quantized)
    alone = gradients(model)
    model.add_adapter("reward_0", lora(8))
    model.set_requires_grad("reward_0", False)
    critic.unfreeze()
    if checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.zero_grad(set_to_none=True)
    loss = loss_of(model)
    ids = torch.tensor(IDS)
    with torch.no_grad(), Route(model, "reward_0"):
        judged = model.get_base_model().base_model(input_ids=ids).last_hidden_state
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert set(found) == set(alone)
    assert [name for name in alone if not torch.equal(found[name], alone[name])] == []
    with torch.no_grad():
        assert not torch.equal(judged, model.get_base_model().base_model(input_ids=ids).last_hidden_state)


def test_a_route_leaves_everything_as_it_was(tiny_model: Path) -> None:
    from posttrain_plugins.trainers import compat

    model, _ = with_critic(tiny_model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layers = compat.checkpointed_layers(model)
    before = [layer._gradient_checkpointing_func for layer in layers]
    assert len(layers) >= 2
    with contextlib.suppress(KeyError), Route(model, "critic"):
        assert {tuple(s.active_adapters) for s in compat.adapter_layers(model)} == {("critic",)}
        raise KeyError
    assert {tuple(s.active_adapters) for s in compat.adapter_layers(model)} == {("default",)}
    assert [layer._gradient_checkpointing_func for layer in layers] == before


def test_the_reference_pass_freezes_the_critic_and_unfreeze_mends_it(tiny_model: Path) -> None:
    model, critic = with_critic(tiny_model)
    with model.disable_adapter(), torch.no_grad():
        loss_of(model, "policy")
    frozen = [p for p in critic.parameters if not p.requires_grad]
    assert frozen, "PEFT no longer freezes it: unfreeze() can go"
    critic.unfreeze()
    assert all(p.requires_grad for p in critic.parameters)
    assert any(critic.owns(name) for name in gradients(model))


def test_unfreeze_reaches_parameters_that_stand_in_the_place_of_the_first_ones(tiny_model: Path) -> None:
    """FSDP2 replaces each by its shard: the critic once let the old objects learn, and its adapter stayed at zero."""
    model, critic = with_critic(tiny_model)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
    with model.disable_adapter(), torch.no_grad():
        loss_of(model, "policy")
    critic.unfreeze()
    own = {name: p for name, p in model.named_parameters() if critic.owns(name)}
    assert len(own) > 20
    assert [name for name, p in own.items() if not p.requires_grad] == []
    assert {*map(id, critic.parameters)} == {*map(id, own.values())}


@pytest.mark.parametrize("kind", ["adapter", "shared", "separate"])
def test_a_critic_in_shards_reads_what_a_whole_one_has_saved(
    tiny_model: Path, tmp_path: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain_plugins.trainers import compat

    if kind == "adapter":
        model, critic = with_critic(tiny_model)
        model.save_pretrained(tmp_path)
    else:
        model = causal_lm(tiny_model)
        critic = Critic(model, kind)
    critic.save(tmp_path / "critic", model.state_dict())
    saved = [p.detach().clone() for p in critic.parameters]
    with torch.no_grad():
        for parameter in critic.parameters:
            parameter.add_(1.0)
    monkeypatch.setattr(compat, "is_sharded", lambda model: True)
    critic.load(tmp_path / "critic")
    assert len(saved) > (1 if kind == "shared" else 20)
    assert all(torch.equal(own, value) for own, value in zip(critic.parameters, saved, strict=True))


@pytest.mark.parametrize("kind", ["adapter", "shared", "separate"])
def test_a_value_is_of_the_state_before_its_token(tiny_model: Path, kind: str) -> None:
    """Other tokens from the sixth on change no value up to the sixth, and those behind."""
    model, critic = policy(tiny_model, kind, is_peft=True)
    ids = torch.tensor(IDS[:1])
    other = ids.clone()
    other[0, 5:] = 2
    with torch.no_grad():
        one, two = (
            model(input_ids=i, attention_mask=torch.ones_like(i), labels=i, fused_lm_head=True, with_values=True)
            for i in (ids, other)
        )
    assert one.state_values.shape == one.log_probs.shape == (1, 7)
    assert torch.equal(one.state_values[:, :5], two.state_values[:, :5])  # before tokens 2 to 6
    assert not torch.isclose(one.state_values[:, 5:], two.state_values[:, 5:]).any()
    assert critic.kind == kind


def policy(path: Path, kind: str, is_peft: bool, config: Any = None) -> tuple[Any, Critic]:
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(causal_lm(path), lora(4)) if is_peft else causal_lm(path)
    critic = Critic(model, kind, config)  # type: ignore[arg-type]
    torch.nn.init.normal_(critic.head.weight)
    return model, critic


def test_without_the_asking_the_model_is_what_it_was(tiny_model: Path) -> None:
    ids = torch.tensor(IDS)
    plain = causal_lm(tiny_model)
    model, _ = policy(tiny_model, "separate", is_peft=False)
    assert torch.equal(plain(input_ids=ids).logits, model(input_ids=ids).logits)
    written = [m.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0) for m in (plain, model)]
    assert torch.equal(*written)


@pytest.mark.parametrize(
    ("kind", "is_peft", "has_config"),
    [
        ("adapter", True, False),
        ("adapter", True, True),
        ("shared", True, False),
        ("shared", False, False),
        ("separate", True, False),
        ("separate", False, False),
        ("separate", False, True),
    ],
)
def test_what_is_saved_is_read_again(
    tiny_model: Path, tmp_path: Path, kind: str, is_peft: bool, has_config: bool
) -> None:
    """Into a fresh critic with other weights; the same values, bit for bit."""
    config = lora(2) if has_config else None
    model, critic = policy(tiny_model, kind, is_peft, config)
    for parameter in critic.parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    before = loss_of(model, "critic")
    if is_peft:
        model.save_pretrained(str(tmp_path))
    critic.save(tmp_path / "critic", model.state_dict())
    fresh, other = policy(tiny_model, kind, is_peft, config)
    assert not torch.equal(loss_of(fresh, "critic"), before)
    identities = [id(p) for p in other.parameters]
    other.load(tmp_path / "critic")
    if kind == "shared" and is_peft:
        fresh.load_adapter(str(tmp_path), "default", is_trainable=True)
    assert torch.equal(loss_of(fresh, "critic"), before)
    assert [id(p) for p in other.parameters] == identities, "an optimizer would no longer know them"
    assert all(p.requires_grad for p in other.parameters)
    owned = [name for name, p in fresh.named_parameters() if other.owns(name) and p.requires_grad]
    assert len(owned) == len(identities)


def test_the_copy_of_an_adapter_policy_starts_from_what_the_policy_is(tiny_model: Path) -> None:
    """The adapter it comes with is merged into the copy, and no adapter layer is left in it."""
    model, critic = policy(tiny_model, "separate", is_peft=True)
    ids = torch.tensor(IDS)
    with torch.no_grad():
        theirs = model.get_base_model().model(input_ids=ids).last_hidden_state
        ours = critic.body(input_ids=ids).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not any("lora" in name for name, _ in critic.body.named_parameters())


@pytest.mark.parametrize("name", ["PrefixTuningConfig", "PromptTuningConfig", "PromptEncoderConfig"])
def test_the_copy_reads_the_text_and_not_the_policys_virtual_tokens(tiny_model: Path, name: str) -> None:
    """No value moves them, and none sees its own token or a later one, as the policy's cache would show."""
    import peft

    config = getattr(peft, name)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(causal_lm(tiny_model), config)
    critic = Critic(model, "separate")
    torch.nn.init.normal_(critic.head.weight)
    ids = torch.tensor(IDS)
    other = ids.clone()
    other[:, -1] = 2
    given = {"attention_mask": torch.ones_like(ids), "use_cache": False, "with_values": True}
    values, others = (model(input_ids=i, **given).state_values for i in (ids, other))
    assert torch.equal(values, others)
    alone = critic.head(critic.body(input_ids=ids).last_hidden_state[:, :-1])
    assert torch.allclose(values, alone, atol=1e-5)
    values.sum().backward()
    tokens = list(model.prompt_encoder.parameters())
    assert tokens
    assert all(p.grad is None or not p.grad.any() for p in tokens)
    assert any(p.grad is not None and p.grad.any() for p in critic.parameters)


def test_the_copied_config_trains_no_whole_modules(tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    model = get_peft_model(causal_lm(tiny_model), config)
    critic = Critic(model, "adapter")
    assert model.peft_config["critic"].modules_to_save is None
    assert not any("norm" in name for name, p in model.named_parameters() if critic.owns(name))
    assert gradients(model)  # the wrapped norm passes the critic through


@pytest.mark.parametrize(
    ("kind", "policy_rank", "critic_rank", "is_quantized", "chosen"),
    [
        (None, 4, None, False, "adapter"),
        (None, 4, 2, True, "adapter"),
        (None, None, None, False, "separate"),
        (None, None, 2, False, "separate"),
        ("shared", 4, None, True, "shared"),
        ("separate", 4, None, False, "separate"),
    ],
)
def test_the_kind(kind: Any, policy_rank: Any, critic_rank: Any, is_quantized: bool, chosen: str) -> None:
    configs = [lora(rank) if rank else None for rank in (policy_rank, critic_rank)]
    assert choose_kind(kind, *configs, is_quantized) == chosen


def test_a_prompt_tuned_policy_gets_a_copy() -> None:
    from peft import PromptTuningConfig

    assert choose_kind(None, PromptTuningConfig(num_virtual_tokens=2), None, False) == "separate"


@pytest.mark.parametrize(
    ("kind", "policy_rank", "critic_rank", "is_quantized", "message"),
    [
        ("adapter", None, None, False, "the policy trains all parameters"),
        ("shared", 4, 2, False, "has no adapter"),
        ("separate", 4, 2, False, "use critic='adapter'"),
        ("separate", 4, None, True, "quantized"),
        (None, None, None, True, "quantized"),
    ],
)
def test_a_kind_that_cannot_be_had(
    kind: Any, policy_rank: Any, critic_rank: Any, is_quantized: bool, message: str
) -> None:
    configs = [lora(rank) if rank else None for rank in (policy_rank, critic_rank)]
    with pytest.raises(InputError, match=message):
        choose_kind(kind, *configs, is_quantized)


def test_two_types_of_adapter_cannot_share() -> None:
    from peft import IA3Config

    with pytest.raises(InputError, match="expected the policy's type LORA"):
        choose_kind("adapter", lora(4), IA3Config(), False)


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_freeze_leaves_the_critic_to_learn(tiny_model: Path, kind: str) -> None:
    from types import SimpleNamespace

    from posttrain_plugins.adapters.freeze import Freeze

    model, critic = policy(tiny_model, kind, is_peft=False)
    every = sum(p.numel() for name, p in model.named_parameters() if not critic.owns(name))
    freeze = Freeze(frozen_layers=1, frozen_parameters=["embed"], trainable_parameters=["norm"])
    told = freeze.prepare(SimpleNamespace(model=model, critic=critic))
    assert all(p.requires_grad for p in critic.parameters)
    learning = {name for name, p in model.named_parameters() if p.requires_grad and not critic.owns(name)}
    assert learning
    assert all("norm" in name and "layers.0" not in name for name in learning)
    assert told["frozen"] + told["trainable"] == every
