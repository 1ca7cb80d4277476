"""Wrong input and stages that fail: the right error, exit code and hint, and nothing left that looks like a result."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from posttrain_plugins.errors import InputError, NonFiniteLoss, PosttrainError, RecipeErrors, StageFailed
from posttrain_plugins.recipe.plan import PlannedStage
from posttrain_plugins.recipe.run import Silent, run

RECIPE = """
    name: bad
    model: {model}
    stages:
      sft:
        use: sft
        model: base
        dataset: {path: "{data}"}
        args: {max_steps: 40, per_device_train_batch_size: 4, learning_rate: {learning_rate},
               gradient_checkpointing: false}
"""

REINFORCED = """
    name: bad
    model: {model}
    stages:
      grpo:
        use: grpo
        model: base
        dataset: {path: "{data}"}
        rewards: ["./rewards.py:{reward}"]
        args: {max_steps: 2, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 4,
               gradient_checkpointing: false}
"""

REWARDS = """
def broken(completions, **columns):
    return [1 / 0 for _ in completions]


def short(completions, **columns):
    return [0.0]
"""


class Steps(Silent):
    """Counts the optimizer steps that were told."""

    def __init__(self) -> None:
        self.done = 0

    def progress(
        self, stage: PlannedStage, done: int, total: int | None, unit: str, figures: Mapping[str, float]
    ) -> None:
        self.done = done


@pytest.fixture
def sft_recipe(write_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A recipe that fine-tunes the tiny model on `data.jsonl`, whose text is given."""

    def write(text: str, model: Path = tiny_model, learning_rate: str = "1e-3") -> Path:
        data = tmp_path / "data.jsonl"
        data.write_text(text, encoding="utf-8")
        return write_recipe(RECIPE, model=model, data=data, learning_rate=learning_rate)

    return write


def refused(kind: type[PosttrainError], code: int, recipe: Path, runs: Path, **options: object) -> PosttrainError:
    """Runs a recipe that must fail so, and looks at what it left."""
    with pytest.raises(kind) as caught:
        run(recipe, runs_dir=runs, **options)  # type: ignore[arg-type]
    error = caught.value
    assert type(error) is kind
    assert error.exit_code == code
    assert re.search(r"hint: \S", str(error)), f"no hint in: {error}"
    assert left_over(runs) == []
    return error


def left_over(runs: Path) -> list[str]:
    """What a reader would take for a result: anything but hidden files and the resolved recipe."""
    found = [path.relative_to(runs) for path in runs.glob("*/**/*") if path.is_file() or path.is_symlink()]
    return [str(p) for p in found if p.name != "resolved.yaml" and not any(part.startswith(".") for part in p.parts)]


def row(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    return {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": answer}]}


GOOD = json.dumps(row("1>2", "2")) + "\n"


@pytest.mark.parametrize("text", ["", "\n\n\n"], ids=["no bytes", "blank lines"])
def test_empty_data_file(sft_recipe: Callable[..., Path], tmp_path: Path, text: str) -> None:
    error = refused(RecipeErrors, 2, sft_recipe(text), tmp_path / "runs")
    assert "is empty" in error.message
    assert "data.jsonl" in error.message


@pytest.mark.parametrize("missing", [{"completion": row("", "2")["completion"]}, {**row("1>2", "2"), "prompt": None}])
def test_row_without_its_prompt_is_named(
    sft_recipe: Callable[..., Path], tmp_path: Path, missing: dict[str, object]
) -> None:
    text = GOOD * 2 + json.dumps(missing) + "\n" + GOOD
    error = refused(InputError, 2, sft_recipe(text), tmp_path / "runs")
    assert "row 3 has no 'prompt'" in error.message


def test_no_row_has_the_prompt(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Told from the file's head, before a model loads, with the place in the recipe."""
    text = json.dumps({"completion": row("", "2")["completion"]}) + "\n"
    error = refused(RecipeErrors, 2, sft_recipe(text), tmp_path / "runs")
    assert "prompt" in error.message
    assert re.search(r"recipe\.yaml:\d+:\d+: ", error.message)


def test_line_that_is_not_json_is_named(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    error = refused(InputError, 2, sft_recipe(GOOD * 2 + "prompt: not JSON\n" + GOOD), tmp_path / "runs")
    assert f"{tmp_path / 'data.jsonl'}:3" in error.message


def test_first_line_that_is_not_json_is_named(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    error = refused(InputError, 2, sft_recipe('{"prompt": \n' + GOOD), tmp_path / "runs")
    assert f"{tmp_path / 'data.jsonl'}:1" in error.message


def test_model_folder_without_weights(sft_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no-weights"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    error = refused(RecipeErrors, 2, sft_recipe(GOOD, model=folder), tmp_path / "runs")
    assert f"model folder {folder} has no weights" in error.message


def test_model_folder_with_torn_weights(sft_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "torn"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    error = refused(StageFailed, 1, sft_recipe(GOOD, model=folder), tmp_path / "runs")
    assert re.search(r"stage 'sft' failed at .*: SafetensorError: ", error.message)


def test_runs_folder_that_cannot_be_written(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Below a regular file, because permissions do not stop root."""
    (tmp_path / "file").touch()
    error = refused(InputError, 2, sft_recipe(GOOD), tmp_path / "file" / "runs")
    assert "cannot be written" in error.message
    assert "--runs-dir" in str(error.hint)


def test_loss_that_is_nan_stops_at_its_step(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    steps = Steps()
    error = refused(NonFiniteLoss, 1, sft_recipe(GOOD * 8, learning_rate="1e30"), tmp_path / "runs", observer=steps)
    found = re.search(r"loss is (nan|inf) at step (\d+) of stage 'sft'", error.message)
    assert found
    assert int(found[2]) == steps.done + 1
    assert steps.done < 5, "40 steps were planned"
    assert "learning_rate" in str(error.hint)


def test_nan_after_a_checkpoint_leaves_nothing_to_go_on_from(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = sft_recipe(GOOD * 8, learning_rate="1e30")
    saving = {"stages.sft.args.save_steps": 1, "stages.sft.args.save_strategy": "steps"}
    refused(NonFiniteLoss, 1, recipe, tmp_path / "runs", overrides=saving)
    assert not list(tmp_path.glob("runs/bad/.sft-*.partial"))


def test_reward_that_raises(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    recipe = write_recipe(REINFORCED, model=tiny_model, data=tiny_data / "problems.jsonl", reward="broken")
    error = refused(StageFailed, 1, recipe, tmp_path / "runs")
    assert re.search(r"stage 'grpo' failed at rewards\.py:3 in \S+: ZeroDivisionError: division by zero", error.message)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_reward_that_gives_too_few_scores(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    recipe = write_recipe(REINFORCED, model=tiny_model, data=tiny_data / "problems.jsonl", reward="short")
    error = refused(StageFailed, 1, recipe, tmp_path / "runs")
    assert "returned 1 rewards, but 4 were expected" in error.message
