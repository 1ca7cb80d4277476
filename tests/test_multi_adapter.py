"""Several adapters on one base: each learns from its own rows, is reached by its name, and they combine into one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import HandoffError, InputError, RecipeErrors

RECIPE = """
model: {model}
adapters: {one: {use: lora, r: 4, lora_alpha: 8}}
datasets: {rows: {path: {rows}}, d: {path: {data}/problems.jsonl, limit: 4}}
rewards: {format: {use: regex, pattern: "[0-9]"}}
stages:
  tasks: {use: multi_adapter_sft, model: base, dataset: rows, eval_dataset: rows, adapter: one,
          args: {max_steps: 4, per_device_train_batch_size: 4, learning_rate: 1e-2}}
  both: {use: combine, models: [tasks+long, tasks+short], weights: [0.5, 0.5], combination_type: linear}
  eval: {use: evaluate, models: [tasks+long, both], dataset: d, rewards: [format], num_generations: 2, max_tokens: 4,
         strategies: [greedy], plot: false}
"""


@pytest.fixture(scope="module")
def rows(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations with a column `task`: `long` and `short`, seven rows each."""
    file = tmp_path_factory.mktemp("tasks") / "rows.jsonl"
    demos = [json.loads(line) for line in (tiny_data / "demos.jsonl").read_text().splitlines()][:14]
    file.write_text(
        "".join(json.dumps({**row, "task": ("long", "short")[i % 2]}) + "\n" for i, row in enumerate(demos))
    )
    return file


def test_a_batch_has_rows_of_one_task_and_an_epoch_has_every_row() -> None:
    from posttrain_plugins.trainers.multi_adapter import TaskBatches

    tasks = [("a", "b", "c")[i % 3] for i in range(10)]
    batches = TaskBatches(tasks, 3, seed=0)
    first = list(batches)
    assert len(first) == len(batches) == 4
    assert all(len({tasks[row] for row in batch}) == 1 and len(batch) == 3 for batch in first)
    assert {row for batch in first for row in batch} == set(range(10))
    assert list(batches) == first, "the same epoch again"
    batches.set_epoch(1)
    assert list(batches) != first


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tasks", r"stage 'tasks' makes several adapters, expected one of them[\s\S]*tasks\+TASK"),
        ("plain+long", "stage 'plain' makes one model"),
        ("task+long", "unknown model 'task\\+long'"),
    ],
)
def test_a_model_that_names_no_adapter_or_one_too_many_is_refused(
    tiny_model: Path, rows: Path, write_recipe: Callable[..., Path], model: str, message: str
) -> None:
    file = write_recipe(
        """
        model: {model}
        adapters: {one: {use: lora, r: 4}}
        datasets: {rows: {path: {rows}}}
        stages:
          tasks: {use: multi_adapter_sft, model: base, dataset: rows, adapter: one}
          plain: {use: sft, model: base, dataset: rows}
          more: {use: sft, model: {named}, dataset: rows}
        """,
        model=tiny_model,
        rows=rows,
        named=model,
    )
    with pytest.raises(RecipeErrors, match=message):
        pp.validate(file)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("weights: [1.0]", "1 weights, expected 2"),
        ("combination_type: ties", r"by ties cannot have density: None[\s\S]*density: 0.5"),
        ("density: 0.5", "by svd cannot have density"),
        ("combination_type: sum", "'combination_type' is 'sum'"),
    ],
)
def test_what_cannot_be_combined_is_told_by_the_check(
    tiny_model: Path, write_recipe: Callable[..., Path], wrong: str, message: str
) -> None:
    file = write_recipe(
        "model: {model}\nstages: {c: {use: combine, models: [base, base], {wrong}}}", model=tiny_model, wrong=wrong
    )
    with pytest.raises(RecipeErrors, match=message):
        pp.validate(file)


def test_each_adapter_gets_the_gradients_of_its_own_rows_alone(tiny_model: Path, rows: Path, tmp_path: Path) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig

    from posttrain_plugins.trainers.multi_adapter import MultiAdapterSFTTrainer

    data = Dataset.from_list([json.loads(line) for line in rows.read_text().splitlines()])
    options = {"use_cpu": True, "bf16": False, "report_to": [], "remove_unused_columns": False, "disable_tqdm": True}
    args = SFTConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, dataloader_pin_memory=False, **options)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = MultiAdapterSFTTrainer(model=str(tiny_model), args=args, train_dataset=data, peft_config=lora)
    assert trainer.args.gradient_checkpointing, "TRL's default: the recomputed layers must have the same adapter"
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # what train() sets
    seen = set()
    for batch in trainer.get_train_dataloader():
        task = batch["task"]
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, dict(batch))
        norms = {name: gradient(trainer.model, name) for name in ("long", "short")}
        seen.add(task)
        assert norms.pop(task) > 0
        assert set(norms.values()) == {0.0}
    assert seen == {"long", "short"}
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert {part for name in trained for part in name.split(".")} >= {"long", "short"}
    assert torch.isfinite(torch.tensor(trainer.evaluate(data)["eval_loss"]))


@pytest.fixture
def build(tiny_model: Path, rows: Path, tmp_path: Path) -> Callable[..., Any]:
    def make(peft_config: Any, **more: Any) -> Any:
        from datasets import Dataset
        from trl import SFTConfig

        from posttrain_plugins.trainers.multi_adapter import MultiAdapterSFTTrainer

        data = Dataset.from_list([json.loads(line) for line in rows.read_text().splitlines()])
        options = {
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "remove_unused_columns": False,
            "disable_tqdm": True,
        }
        options |= {"dataloader_pin_memory": False, "per_device_train_batch_size": 4, "gradient_checkpointing": False}
        args = SFTConfig(output_dir=str(tmp_path / "out"), **{**options, **more})
        return MultiAdapterSFTTrainer(model=str(tiny_model), args=args, train_dataset=data, peft_config=peft_config)

    return make


def test_the_ratio_of_lora_plus_holds_for_every_task(build: Callable[..., Any]) -> None:
    config = pp.load("adapter", "lora", r=2, loraplus_lr_ratio=16)
    trainer = build(config, learning_rate=1e-3)
    config.prepare(trainer)
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in trainer.model.named_parameters() if p.requires_grad}
    for task in ("long", "short"):
        own = {name: rate for name, rate in found.items() if f".{task}." in name}
        assert {rate for name, rate in own.items() if "lora_B" in name} == {16e-3}
        assert {rate for name, rate in own.items() if "lora_A" in name} == {1e-3}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_goes_on_has_the_same_order(
    build: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Two epochs, gone on from within the second, with the batches shared out as for that many processes."""
    from accelerate.data_loader import prepare_data_loader
    from peft import LoraConfig

    from posttrain_plugins.trainers.multi_adapter import TaskBatches

    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    every = 1 + 4 // processes  # of eight batches an epoch
    epochs: list[int] = []
    drawn = TaskBatches.__iter__

    def watched(self: TaskBatches) -> Any:
        epochs.append(self.epoch)
        return drawn(self)

    def trained(resume: str | None = None) -> list[int]:
        epochs.clear()
        trainer = build(lora, per_device_train_batch_size=2, num_train_epochs=2, save_steps=every)
        whole = trainer._loader

        def shared_out(dataset: Any, batches: TaskBatches) -> Any:
            loader = whole(dataset, batches).base_dataloader
            return prepare_data_loader(loader, num_processes=processes, process_index=0, put_on_device=False)

        trainer._loader = shared_out
        trainer.train(resume_from_checkpoint=resume)
        return list(epochs)

    monkeypatch.setattr(TaskBatches, "__iter__", watched)
    assert trained()[-2:] == [0, 1]
    within = tmp_path / "out" / f"checkpoint-{2 * every}"
    assert 1 < json.loads((within / "trainer_state.json").read_text())["epoch"] < 2
    assert trained(str(within)) == [1]


def gradient(model: Any, adapter: str) -> float:
    found = [p.grad for name, p in model.named_parameters() if f".{adapter}." in name and p.grad is not None]
    return sum(float(grad.norm()) for grad in found)


@pytest.mark.slow
def test_adapters_of_several_tasks_from_training_to_serving(
    tiny_model: Path, tiny_data: Path, rows: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM

    from posttrain_plugins.serve.models import open_models

    runs = tmp_path / "runs"
    run = pp.run(write_recipe(RECIPE, model=tiny_model, rows=rows, data=tiny_data), runs_dir=runs)
    folder = run["tasks"].model_path
    assert folder is not None
    assert json.loads((folder / "adapters.json").read_text())["adapters"] == ["long", "short"]
    assert "eval_loss" in run["tasks"].metrics
    ids = torch.arange(10)[None]
    with torch.no_grad():
        long, short, both = (
            AutoPeftModelForCausalLM.from_pretrained(path)(ids).logits
            for path in (folder / "long", folder / "short", run["both"].model_path)
        )
    assert (long - short).abs().max() > 1e-3, "two tasks, two adapters"
    assert 0 < (both - long).abs().max() < (short - long).abs().max()
    assert set(run["eval"].details["models"]) == {"tasks+long", "both"}
    for name, message in (
        ("recipe:tasks", r"tasks\+long, recipe:tasks\+short"),
        ("recipe:tasks+sad", "no adapter 'sad'"),
    ):
        with pytest.raises(InputError, match=message):
            pp.backend(name, runs_dir=runs)
    (answer,) = pp.solve("greedy", ["3|7>2"], backend=pp.backend("recipe:tasks+short", runs_dir=runs), runs_dir=runs)
    assert answer.error is None
    served = open_models({"recipe:tasks": "recipe:tasks"}, runs, {})
    assert list(served) == ["recipe:tasks+long", "recipe:tasks+short"]
    assert len({id(one.backend.model) for one in served.values()}) == 1, "one base in memory"  # type: ignore[union-attr]


def test_adapters_of_two_bases_are_not_combined(
    tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    import shutil

    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    for name, base in (("first", tiny_model), ("second", other)):
        (tmp_path / name).mkdir()
        config = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
        (tmp_path / name / "adapter_model.safetensors").touch()
    file = write_recipe("model: {model}\nstages: {c: {use: combine, models: [./first, ./second]}}", model=tiny_model)
    with pytest.raises(HandoffError) as caught:
        pp.run(file, runs_dir=tmp_path / "runs")
    for value in ("base is", str(other), str(tiny_model)):
        assert value in str(caught.value)
