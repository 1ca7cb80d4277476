"""`share_prompts`: the numbers of plain passes, in every way and around everything that stands on the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_training import SMALL, digits

torch = pytest.importorskip("torch")

from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from posttrain_plugins.errors import InputError  # noqa: E402
from posttrain_plugins.trainers import compat, shared_prompts  # noqa: E402
from posttrain_plugins.trainers.prompt_layout import Batch, cheapest, costs  # noqa: E402
from posttrain_plugins.trainers.shared_prompts import Sharing, share  # noqa: E402

ARGS: dict[str, Any] = SMALL | {"num_generations": 4}
WIDTH = 9


def lora(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options})


@pytest.fixture(scope="session")
def rows(tiny_data: Path) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(tiny_data / "problems.jsonl"), split="train")


@pytest.fixture
def build(tiny_model: Path, rows: Any, tmp_path: Path) -> Callable[..., GRPOTrainer]:
    def make(model: Any = None, peft_config: Any = None, **args: Any) -> GRPOTrainer:
        config = GRPOConfig(str(tmp_path / "out"), **{**ARGS, **args})
        return GRPOTrainer(model or str(tiny_model), digits, config, rows, peft_config=peft_config)

    return make


def batch() -> dict[str, torch.Tensor]:
    """Eight rows of three prompts, in no order: one row is alone, one completion is a token, one is none."""
    draw = torch.Generator().manual_seed(1)
    of, lengths = [0, 1, 0, 2, 1, 0, 0, 1], [WIDTH, WIDTH - 4, 2]
    ends = [5, 3, 1, 6, 6, 0, 2, 4]
    prompts = torch.randint(40, (3, WIDTH), generator=draw)
    ids = torch.cat([prompts[of], torch.randint(40, (8, 7), generator=draw)], dim=1)
    columns = torch.arange(ids.shape[1])
    begins = torch.tensor([WIDTH - lengths[i] for i in of])
    mask = (columns >= begins[:, None]) & (columns < WIDTH + torch.tensor(ends)[:, None])
    return {"input_ids": ids, "attention_mask": mask.long()}


@contextlib.contextmanager
def forced(sharing: Sharing, way: str) -> Iterator[None]:
    """Within, passes go this way whatever it costs."""
    sharing.ways, sharing.pairs = ([] if way == "plain" else [way]), float("inf")
    sharing.passes.clear()
    yield
    assert set(sharing.passes) == {way}


def taken(trainer: Any, sharing: Sharing, way: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probabilities, entropies, and what the trained weights get of a loss of both."""
    given = batch()
    mask = given["attention_mask"][:, WIDTH:]
    trainer.model.zero_grad()
    with forced(sharing, way):
        logps, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, given["input_ids"], given["attention_mask"], mask.shape[1], compute_entropy=True
        )
    weights = torch.linspace(-1, 1, mask.numel()).view(mask.shape)
    (((logps + 0.1 * entropies) * mask * weights).sum()).backward()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return logps.detach() * mask, entropies.detach() * mask, gradients


def assert_equal(trainer: Any, sharing: Sharing, way: str) -> None:
    logps, entropies, gradients = taken(trainer, sharing, "plain")
    shared_logps, shared_entropies, shared_gradients = taken(trainer, sharing, way)
    torch.testing.assert_close(shared_logps, logps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shared_entropies, entropies, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == shared_gradients.keys()
    assert any(gradient.abs().max() > 0 for gradient in gradients.values())
    size = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (shared_gradients[name] - gradient).norm() <= 1e-3 * size, name


def stir(model: Any) -> None:
    """An adapter that was trained: LoRA's B is 0 at first, and its A has no gradient."""
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)


@pytest.mark.parametrize("way", ["cached", "block"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_log_probabilities_and_gradients_are_the_plain_ones(build: Callable[..., Any], way: str, adapter: str) -> None:
    trainer = build(peft_config=None if adapter == "full" else lora())
    sharing = share(trainer, "grpo")
    assert sharing.refused == {}
    stir(trainer.model)
    assert_equal(trainer, sharing, way)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_each_attention_takes_the_masks(build: Callable[..., Any], attention: str) -> None:
    trainer = build(model_init_kwargs={"attn_implementation": attention})
    sharing = share(trainer, "grpo")
    for way in ("cached", "block"):
        assert_equal(trainer, sharing, way)


def test_with_gradient_checkpointing_a_group_is_one_row(build: Callable[..., Any]) -> None:
    trainer = build(peft_config=lora(), gradient_checkpointing=True)
    sharing = share(trainer, "grpo")
    stir(trainer.model)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer.model.train()
    assert compat.checkpointed_layers(trainer.model)
    assert_equal(trainer, sharing, "block")
    sharing.ways = ["cached", "block"]
    given = batch()
    one = Batch.of(given["input_ids"], given["attention_mask"], WIDTH)
    base = trainer.model.get_base_model()
    assert sharing._way(base, one, {}) == "block"


def test_a_training_goes_as_the_plain_one(build: Callable[..., Any]) -> None:
    """With a reference, old log-probabilities and several batches of a rollout; groups stay together in both."""
    found = []
    for is_shared in (False, True):
        args = {"beta": 0.1, "num_iterations": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 2}
        trainer = build(peft_config=lora(), **args)
        if is_shared:
            sharing = share(trainer, "grpo")
        else:
            compat.deal_groups(trainer)
        trainer.train()
        found.append({n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})
    assert sharing.passes["plain"] == 0
    assert sharing.tokens["read"] < sharing.tokens["plain"]
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-2, atol=1e-4)


def test_the_model_is_as_it_was_after_a_pass(build: Callable[..., Any]) -> None:
    trainer = build(peft_config=lora())
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    sharing = share(trainer, "grpo")
    base = trainer.model.get_base_model()
    assert "forward" not in vars(base.base_model)
    assert all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    assert trainer.model.training
    taken(trainer, sharing, "cached")
    assert "forward" not in vars(base.base_model)


def test_a_model_that_reads_its_mask_otherwise_is_refused(build: Callable[..., Any]) -> None:
    """One that takes positions from how many tokens stand before, and one that keeps no cache."""
    trainer = build()
    body = trainer.model.base_model
    read = body.forward

    def forward(*args: Any, **given: Any) -> Any:
        if given.get("past_key_values") is not None:
            raise TypeError("no cache here")
        mask = given["attention_mask"]
        return read(*args, **{**given, "attention_mask": mask if mask.dim() == 2 else None})

    body.forward = forward
    with pytest.raises(InputError, match=r"stage 'train'.*cached: TypeError: no cache here; block: log-prob"):
        share(trainer, "train")


def test_checkpointing_needs_the_block(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(gradient_checkpointing=True)
    monkeypatch.setattr(shared_prompts, "_difference", lambda sharing, way: "" if way == "cached" else "no such mask")
    with pytest.raises(InputError, match="checkpointing leaves only block"):
        share(trainer, "train")


def test_virtual_tokens_are_refused(build: Callable[..., Any]) -> None:
    from peft import PromptTuningConfig

    trainer = build(peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(InputError, match="does not hand the tokens on"):
        share(trainer, "train")


def test_groups_are_dealt_whole() -> None:
    ids = torch.arange(4).repeat_interleave(3)[:, None] + 7
    rows = {"prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "name": list(range(12)), "none": None}
    torch.manual_seed(0)
    plain = torch.randperm(12).tolist()
    torch.manual_seed(0)
    dealt = compat._shuffled_groups({**rows, "count": torch.tensor(3.0)})
    groups = [name // 3 for name in dealt["name"]]
    assert sorted(dealt["name"]) == list(range(12))
    assert groups == [group for group in dict.fromkeys(i // 3 for i in plain) for _ in range(3)]
    assert dealt["prompt_ids"].flatten().tolist() == [group + 7 for group in groups]
    assert (dealt["none"], float(dealt["count"])) == (None, 3.0)


def test_every_batch_of_a_rollout_holds_whole_groups(build: Callable[..., Any]) -> None:
    """By the name of TRL's own function that deals them out."""
    trainer = build(per_device_train_batch_size=4, steps_per_generation=4)
    compat.deal_groups(trainer)
    compat.first_batch(trainer)
    dealt = [batch["prompt_ids"].unique(dim=0) for batch in trainer._buffered_inputs]
    assert [len(prompts) for prompts in dealt] == [1, 1, 1, 1]
    assert len({tuple(prompts[0].tolist()) for prompts in dealt}) > 1


def sizes(prompt: int, completion: int, group: int, prompts: int = 1) -> Batch:
    ids = torch.cat([torch.arange(prompts).repeat_interleave(group)[:, None].expand(-1, prompt)] * 1, dim=1)
    ids = torch.cat([ids, torch.zeros(prompts * group, completion, dtype=torch.long)], dim=1)
    return Batch.of(ids, torch.ones_like(ids), prompt)


def test_the_formula_shares_long_prompts_and_declines_long_completions() -> None:
    pairs = 2000.0
    assert cheapest(sizes(256, 16, 8), pairs, ("cached", "block")) != "plain"
    assert cheapest(sizes(64, 64, 8), pairs, ("cached", "block")) != "plain"
    assert cheapest(sizes(16, 512, 8), pairs, ("cached", "block")) == "plain"
    assert cheapest(sizes(64, 64, 1), pairs, ("cached", "block")) == "plain", "nothing is shared"
    assert cheapest(sizes(256, 16, 8), pairs, ()) == "plain"
    known = costs(sizes(10, 5, 4, prompts=2), float("inf"))
    assert known == {"plain": 8 * 15, "cached": 1.15 * (20 + 8 * 4), "block": 1.1 * 2 * (10 + 16)}


def test_padding_in_the_middle_makes_a_pass_plain() -> None:
    given = batch()
    mask = given["attention_mask"].clone()
    assert Batch.of(given["input_ids"], mask, WIDTH).is_regular
    mask[0, WIDTH + 1] = 0
    assert not Batch.of(given["input_ids"], mask, WIDTH).is_regular
    assert cheapest(Batch.of(given["input_ids"], mask, WIDTH), 1e9, ("cached",)) == "plain"


# --- other trainers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["adapter", "shared", "separate"])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_ppo_gives_the_same_values_and_gradients(
    tiny_model: Path, rows: Any, tmp_path: Path, critic: str, is_checkpointed: bool
) -> None:
    from posttrain_plugins.trainers.ppo.trainer import PPOConfig, PPOTrainer

    args = {**ARGS, "critic": critic, "gradient_checkpointing": is_checkpointed}
    trainer = PPOTrainer(str(tiny_model), digits, PPOConfig(str(tmp_path), **args), rows, peft_config=lora())
    sharing = share(trainer, "ppo")
    stir(trainer.model)
    trainer.model.train()
    if is_checkpointed:
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    given = batch()
    mask = given["attention_mask"][:, WIDTH:]
    found = []
    for way in ("plain", "block") if is_checkpointed else ("plain", "cached", "block"):
        trainer.model.zero_grad()
        with forced(sharing, way):
            trainer._get_per_token_logps_and_entropies(
                trainer.model, given["input_ids"], given["attention_mask"], mask.shape[1]
            )
        seen = trainer.last_pass
        assert seen.values.shape == mask.shape
        weights = torch.linspace(-1, 1, mask.numel()).view(mask.shape) * mask
        (seen.values * weights).sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in trainer.critic.parameters if p.grad is not None])
        found.append((seen.values.detach() * mask, seen.logps * mask, gradients))
    assert found[0][2].norm() > 0
    for values, logps, gradients in found[1:]:
        torch.testing.assert_close(values, found[0][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logps, found[0][1], rtol=1e-4, atol=1e-4)
        assert (gradients - found[0][2]).norm() <= 1e-3 * found[0][2].norm()


def test_rloo_shares_its_passes(tiny_model: Path, rows: Any, tmp_path: Path) -> None:
    from trl import RLOOConfig, RLOOTrainer

    trainer = RLOOTrainer(str(tiny_model), digits, RLOOConfig(str(tmp_path), **ARGS), rows, peft_config=lora())
    sharing = share(trainer, "rloo")
    trainer.train()
    assert sharing.passes["plain"] == 0
    assert sum(sharing.passes.values()) >= 4, "old, reference and current, in two steps"
    assert sharing.record["tokens"]["read"] < sharing.record["tokens"]["plain"]


# --- as a stage ------------------------------------------------------------------------------------------------------

RECIPE = """
model: {model_name_or_path: {model}}
adapters: {first: {use: lora, r: 4}, second: {use: lora, r: 2}}
datasets:
  demos: {path: {data}/demos.jsonl, limit: 8}
  d: {path: {data}/problems.jsonl, limit: 4}
rewards: {digits: {use: regex, pattern: "[0-9]"}}
stages:
  sft: {use: sft, model: base, dataset: demos, adapter: first, args: {{args}, learning_rate: 5e-2}}
  grpo:
    use: grpo
    model: sft
    dataset: d
    adapter: second
    adapter_mode: stack
    rewards: [digits]
    rollouts: engine
    args: {{args}, learning_rate: 1e-2, beta: 0.1, num_iterations: 2, num_generations: 4, max_completion_length: 6,
           gradient_checkpointing: false}
"""
STEPS = "per_device_train_batch_size: 8, max_steps: 3, logging_steps: 1, bf16: false"


def test_a_stage_on_a_stack_of_adapters_learns_the_same(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """The engine's draws depend on the weights alone, so both trainings see the same completions."""
    import posttrain_plugins as pp

    recipe = write_recipe(RECIPE, model=str(tiny_model), data=str(tiny_data), args=STEPS)
    plain = pp.run(recipe, runs_dir=tmp_path / "runs")["grpo"]
    shared = pp.run(recipe, {"stages.grpo.share_prompts": True}, runs_dir=tmp_path / "runs")["grpo"]
    found = shared.details["share_prompts"]
    assert "plain = B (P+C)" in found["formula"]
    assert found["refused"] == {}
    assert set(found["passes"]) <= {"cached", "block"}
    assert found["tokens"]["read"] < found["tokens"]["plain"]
    assert "share_prompts" not in plain.details
    assert shared.folder != plain.folder
    for one, other in zip(weights_of(plain), weights_of(shared), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-4)


def weights_of(artifact: Any) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    weights = load_file(Path(artifact.model_path) / "adapter_model.safetensors")
    return [weights[name] for name in sorted(weights)]


@pytest.mark.real
def test_on_a_real_model(tmp_path: Path) -> None:
    """SmolLM2, 30 layers of grouped-query attention."""
    import posttrain_plugins as pp

    base = pp.run("real/chain", runs_dir=tmp_path / "runs", until="base")["base"].model_path
    from datasets import Dataset

    rows = Dataset.from_dict({"prompt": ["3 + 4 ="] * 8})
    config = GRPOConfig(str(tmp_path / "out"), **ARGS)
    trainer = GRPOTrainer(
        str(base), lambda completions, **columns: [0.0] * len(completions), config, rows, peft_config=lora()
    )
    sharing = share(trainer, "grpo")
    stir(trainer.model)
    for way in ("cached", "block"):
        assert_equal(trainer, sharing, way)
