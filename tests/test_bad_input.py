"""Wrong input and stages that fail: the right error, exit code and hint, and nothing left that looks like a result."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins import run
from posttrain_plugins.errors import (
    InputError,
    Interrupted,
    NonFiniteLoss,
    PluginBroken,
    PosttrainError,
    RecipeErrors,
    StageFailed,
)
from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.plan.plan import PlannedStage
from posttrain_plugins.recipe.read import document
from posttrain_plugins.recipe.run.data import _with_options
from posttrain_plugins.recipe.run.inputs import Resolver
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.record.figures import read_figures
from posttrain_plugins.stages.pretrain import Pretrain
from posttrain_plugins.trainers import training
from posttrain_plugins.trainers.watch import _Watch
from posttrain_plugins.types import StageContext

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


class Steps(Observer):
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
    is_foreign = isinstance(error, StageFailed) and error.__cause__ is not None  # told with where it failed instead
    assert is_foreign or re.search(r"hint: \S", str(error)), f"no hint in: {error}"
    assert left_over(runs) == []
    return error


def left_over(runs: Path) -> list[str]:
    """What a reader would take for a result: anything but hidden files and what a run tells of itself."""
    found = [path.relative_to(runs) for path in runs.glob("*/**/*") if path.is_file() or path.is_symlink()]
    return [
        str(p)
        for p in found
        if p.name not in ("resolved.yaml", "run.jsonl") and not any(part.startswith(".") for part in p.parts)
    ]


def row(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    return {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": answer}]}


GOOD = json.dumps(row("1>2", "2")) + "\n"


@pytest.mark.parametrize("text", ["", "\n\n\n"], ids=["no bytes", "blank lines"])
def test_empty_data_file(sft_recipe: Callable[..., Path], tmp_path: Path, text: str) -> None:
    error = refused(RecipeErrors, 2, sft_recipe(text), tmp_path / "runs")
    assert "is empty" in error.message
    assert "data.jsonl" in error.message


def test_row_without_its_prompt_is_named(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    text = GOOD * 2 + json.dumps({"completion": row("", "2")["completion"]}) + "\n" + GOOD
    error = refused(InputError, 2, sft_recipe(text), tmp_path / "runs")
    assert "row 3 has no 'prompt'" in error.message


def test_a_prompt_of_null_is_told_before_anything_runs(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    text = GOOD * 2 + json.dumps({**row("1>2", "2"), "prompt": None}) + "\n" + GOOD
    error = refused(RecipeErrors, 2, sft_recipe(text), tmp_path / "runs")
    assert f"{tmp_path / 'data.jsonl'}:3: 'prompt' is null, expected text or a list of messages" in error.message


def test_a_row_behind_the_head_is_found_by_the_run(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    text = GOOD * 60 + json.dumps({**row("1>2", "2"), "completion": 2}) + "\n" + GOOD
    error = refused(InputError, 2, sft_recipe(text), tmp_path / "runs")
    assert "data.jsonl" in error.message


def test_no_row_has_the_prompt(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Told from the file's head, before a model loads, with the place in the recipe."""
    text = json.dumps({"completion": row("", "2")["completion"]}) + "\n"
    error = refused(RecipeErrors, 2, sft_recipe(text), tmp_path / "runs")
    assert "prompt" in error.message
    assert re.search(r"recipe\.yaml:\d+:\d+: ", error.message)


def test_line_that_is_not_json_is_named(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    error = refused(RecipeErrors, 2, sft_recipe(GOOD * 2 + "prompt: not JSON\n" + GOOD), tmp_path / "runs")
    assert f"{tmp_path / 'data.jsonl'}:3" in error.message


def test_first_line_that_is_not_json_is_named(sft_recipe: Callable[..., Path], tmp_path: Path) -> None:
    error = refused(RecipeErrors, 2, sft_recipe('{"prompt": \n' + GOOD), tmp_path / "runs")
    assert f"{tmp_path / 'data.jsonl'}:1" in error.message


def test_model_folder_without_weights(sft_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no-weights"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    error = refused(RecipeErrors, 2, sft_recipe(GOOD, model=folder), tmp_path / "runs")
    assert f"model folder {folder} has no weights" in error.message


@pytest.mark.parametrize("inside", ["manifest.json", None])
def test_a_folder_that_is_no_model_is_told_wherever_it_is_named(inside: str | None, tmp_path: Path) -> None:
    """A stage's own folder is what a shell completes; transformers would tell of a tokenizer's files."""
    folder = tmp_path / "sft-0123"
    (folder / "model").mkdir(parents=True)
    if inside:
        (folder / inside).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="has no config") as caught:
        pp.backend(folder)
    assert (f"the model is in {folder / 'model'}" in caught.value.message) is (inside is not None)


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
    (partial,) = tmp_path.glob("runs/bad/.sft-*.partial")
    assert [path.name for path in partial.iterdir()] == ["figures.jsonl"], "the curve shows why"
    last = list(read_figures(partial))[-1]
    assert not isfinite(last.figures["loss"]), "with the step that spoiled it"


def test_reward_that_raises(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    recipe = write_recipe(REINFORCED, model=tiny_model, data=tiny_data / "problems.jsonl", reward="broken")
    error = refused(StageFailed, 1, recipe, tmp_path / "runs")
    where = r"in reward 'rewards\.py:broken' at rewards\.py:3 in \S+"
    assert re.search(rf"stage 'grpo' failed {where}: ZeroDivisionError: division by zero", error.message)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_reward_that_gives_too_few_scores(
    write_recipe: Callable[..., Path], tiny_model: Path, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    recipe = write_recipe(REINFORCED, model=tiny_model, data=tiny_data / "problems.jsonl", reward="short")
    error = refused(StageFailed, 1, recipe, tmp_path / "runs")
    assert "returned 1 rewards, but 4 were expected" in error.message


# --- plugins and data sets that fail ---------------------------------------------------------------------------------

USES_A_FILE = """
    name: bad
    model: {model}
    adapters: {mine: {use: "./mine.py:adapter"}}
    stages:
      sft: {use: sft, model: base, dataset: {data}, adapter: {adapter}}
"""
MINE = """
def rows():
    raise OSError("no disk")


def adapter():
    raise KeyError("r")
"""


@pytest.mark.parametrize(
    ("data", "adapter", "told"),
    [
        ('{use: "./mine.py:rows"}', "null", "dataset 'mine.py:rows' failed: OSError: no disk"),
        ("demos.jsonl", "mine", "adapter 'mine' failed: KeyError: 'r'"),
    ],
)
def test_plugin_that_fails_is_named(
    write_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path, data: str, adapter: str, told: str
) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "demos.jsonl").write_text(GOOD, encoding="utf-8")
    recipe = write_recipe(USES_A_FILE, model=tiny_model, data=data, adapter=adapter)
    error = refused(PluginBroken, 1, recipe, tmp_path / "runs")
    assert error.message == told


def with_system_prompt(row: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset

    rows: list[dict[str, Any]] = _with_options(Dataset.from_list([row]), {"system_prompt": "Be brief."}, "d").to_list()
    return rows[0]


def test_system_prompt_makes_the_whole_row_conversational() -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1>2"}
    told = {name: [{"role": "assistant", "content": name}] for name in ("completion", "chosen", "rejected")}
    made = with_system_prompt({"prompt": "1>2", **{name: name for name in told}, "solution": "2"})
    assert made == {"prompt": [system, user], **told, "solution": "2"}
    assert with_system_prompt(row("1>2", "2")) == {**row("1>2", "2"), "prompt": [system, user]}
    assert with_system_prompt({"messages": [user]}) == {"messages": [system, user]}


def test_system_prompt_without_a_prompt() -> None:
    with pytest.raises(InputError, match=r"'d' has no 'prompt' or 'messages' .* it has text") as caught:
        with_system_prompt({"text": "1>2"})
    assert "rename" in str(caught.value.hint)


# --- names that stand for two things ---------------------------------------------------------------------------------

TWO_NAMES = """
    name: bad
    model: {model}
    datasets: {d: {path: data.jsonl}}
    stages:
      sft: {use: sft, model: base, dataset: d}
      eval: {use: evaluate, models: [{models}], dataset: d, rewards: [{rewards}], strategies: [{strategies}]}
"""


@pytest.mark.parametrize(
    ("models", "rewards", "strategies", "told"),
    [
        ("./a/model, ./b/model", "length", "greedy", "two models are named 'model': {0}/b/model and {0}/a/model"),
        ("base, ./a/base", "length", "greedy", "two models are named 'base': {0}/a/base and the recipe's base"),
        ("sft, ./a/sft", "length", "greedy", "the model {0}/a/sft has the name of stage 'sft'"),
        ("sft", "./a/r.py:f, ./b/r.py:f", "greedy", "two different rewards are named 'r.py:f'"),
        ("sft", "./a/r.py:f", '{use: best_of_n, scorer: "./b/r.py:f"}', "two different rewards are named 'r.py:f'"),
        ("sft", "./a/r.py:f", "./a/r.py:s, ./b/r.py:s", "two different strategies are named 'r.py:s'"),
    ],
)
def test_two_of_one_name(
    write_recipe: Callable[..., Path],
    tiny_model: Path,
    tmp_path: Path,
    models: str,
    rewards: str,
    strategies: str,
    told: str,
) -> None:
    for folder in ("a", "b"):
        for name in ("model", "base", "sft"):
            shutil.copytree(tiny_model, tmp_path / folder / name)
        file = "def f(completions, **columns): ...\ndef s(problem): ...\n"
        (tmp_path / folder / "r.py").write_text(file, encoding="utf-8")
    (tmp_path / "data.jsonl").write_text(GOOD, encoding="utf-8")
    recipe = write_recipe(TWO_NAMES, model=tiny_model, models=models, rewards=rewards, strategies=strategies)
    with pytest.raises(RecipeErrors) as caught:
        check(document.load(recipe, ()))
    messages = [mistake.message for mistake in caught.value.mistakes]
    assert messages == [told.replace("{0}", str(tmp_path))]
    assert "rename" in str(caught.value.mistakes[0].hint)


def test_the_same_thing_twice_is_no_clash(write_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(GOOD, encoding="utf-8")
    shutil.copytree(tiny_model, tmp_path / "base")
    twice = {"models": "base, ./base", "rewards": "length, length", "strategies": "greedy, best_of_n(scorer=length)"}
    check(document.load(write_recipe(TWO_NAMES, model="./base", **twice), ()))


# --- what was not finished, and what is no longer there --------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "saves_optimizer", "is_complete"),
    [(4, True, True), (6, True, False), (8, True, False), (4, False, False)],
    ids=["between generations", "within a generation", "last step", "weights only"],
)
def test_only_a_checkpoint_that_can_be_gone_on_from_is_complete(
    tmp_path: Path, step: int, saves_optimizer: bool, is_complete: bool
) -> None:
    args = SimpleNamespace(
        save_strategy="epoch",
        save_only_model=not saves_optimizer,
        steps_per_generation=2,
        num_iterations=2,
        gradient_accumulation_steps=1,
        output_dir=str(tmp_path),
        world_size=1,
        process_index=0,
    )
    (tmp_path / f"checkpoint-{step}").mkdir()
    state = SimpleNamespace(global_step=step, max_steps=8, is_world_process_zero=True)
    accelerator = SimpleNamespace(wait_for_everyone=None)  # of one process nobody waits
    trainer = SimpleNamespace(args=args, accelerator=accelerator, state=state, _tr_loss=0.0)  # no other figures
    _Watch(context(tmp_path), trainer).on_save(args, state, None)
    assert (tmp_path / f"checkpoint-{step}" / "complete").is_file() == is_complete


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("stops", "saves"), [(True, False), (False, True), (False, False)])
def test_the_first_process_says_when_all_save_and_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int, stops: bool, saves: bool
) -> None:
    """This one, the second, finds the opposite; asked once a boundary, and not at all where it is alone."""
    asked: list[list[bool]] = []

    def broadcast(found: list[bool]) -> list[bool]:
        asked.append(found)
        return [stops, saves]

    monkeypatch.setattr("accelerate.utils.broadcast_object_list", broadcast)
    args = SimpleNamespace(
        save_strategy="no", save_only_model=False, gradient_accumulation_steps=1, num_iterations=2, world_size=processes
    )
    reporter = SimpleNamespace(progress=lambda *_: None)
    of_its_own = StageContext("it", tmp_path, 3, {}, None, reporter, lambda: not stops)  # type: ignore[arg-type]
    accelerator = SimpleNamespace(wait_for_everyone=None, reduce=lambda loss, reduction: loss)
    state = SimpleNamespace(global_step=0)
    watch = _Watch(of_its_own, SimpleNamespace(args=args, accelerator=accelerator, state=state))
    watch.saved_at -= 0 if saves else 3600
    control = SimpleNamespace(should_save=False, should_training_stop=False, should_log=False)
    for step in (1, 2, 4):
        watch.observe(1.0)
        watch.on_step_end(args, SimpleNamespace(global_step=step, max_steps=4), control)
    own = [not stops, not saves]
    assert asked == ([own] if processes > 1 else [])
    decided = (stops, saves) if processes > 1 else tuple(own)
    assert watch.is_stopped == control.should_training_stop == decided[0]
    assert control.should_save == any(decided)


@pytest.mark.parametrize("logging_steps", [1, 2])
def test_a_step_is_shown_with_its_own_figures(tmp_path: Path, logging_steps: int) -> None:
    """The log of a step comes after its end, so a step that is logged is shown then; once each."""
    shown: list[tuple[int, dict[str, float]]] = []
    reporter = SimpleNamespace(progress=lambda done, total, unit, figures: shown.append((done, dict(figures))))
    args = SimpleNamespace(
        save_strategy="no", save_only_model=False, gradient_accumulation_steps=1, num_iterations=1, world_size=1
    )
    of_its_own = StageContext("it", tmp_path, 3, {}, None, reporter, lambda: False)  # type: ignore[arg-type]
    accelerator, trained = SimpleNamespace(wait_for_everyone=None), SimpleNamespace(global_step=0)
    watch = _Watch(of_its_own, SimpleNamespace(args=args, accelerator=accelerator, state=trained))
    for step in (1, 2, 3, 4):
        state = SimpleNamespace(global_step=step, max_steps=4, log_history=[], is_world_process_zero=True)
        is_logged = step % logging_steps == 0
        watch.observe(step / 2)
        watch.on_step_end(args, state, SimpleNamespace(should_log=is_logged))
        if is_logged:
            watch.on_log(args, state, None, {"loss": step / 2, "reward": float(step), "epoch": 1.0})
    watch.on_log(args, state, None, {"train_runtime": 9.0})  # of the end, which is no step
    assert [done for done, _ in shown] == [1, 2, 3, 4]
    assert [figures["loss"] for _, figures in shown] == [0.5, 1.0, 1.5, 2.0]
    assert [figures.get("reward") for done, figures in shown if done % logging_steps == 0] == list(
        map(float, range(logging_steps, 5, logging_steps))
    )


@pytest.mark.parametrize(
    ("args", "strategy"),
    [({}, "no"), ({"save_total_limit": 2}, "no"), ({"save_steps": 5}, "steps"), ({"save_strategy": "epoch"}, "epoch")],
)
def test_ours_saves_unless_the_recipe_says_when(tmp_path: Path, args: dict[str, Any], strategy: str) -> None:
    from trl import SFTConfig

    assert training._config(context(tmp_path), SFTConfig, args, {}).save_strategy == strategy


def test_save_steps_may_be_a_share_of_the_training(tmp_path: Path) -> None:
    from trl import SFTConfig

    assert training._config(context(tmp_path), SFTConfig, {"save_steps": 0.1}, {}).save_steps == 0.1


@pytest.mark.parametrize(("can_resume", "told"), [(True, "a checkpoint stands"), (False, "no checkpoint stands")])
def test_a_stop_says_whether_a_checkpoint_stands(tmp_path: Path, can_resume: bool, told: str) -> None:
    watch: Any = SimpleNamespace(is_stopped=True, can_resume=can_resume)
    trainer = SimpleNamespace(train=lambda **_: None, state=SimpleNamespace(global_step=4))
    with pytest.raises(Interrupted, match=f"at step 4, {told}"):
        training._fit(context(tmp_path), trainer, watch)


def test_a_new_model_stands_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Qwen3ForCausalLM

    from posttrain_plugins.tiny_world.tokenizer import tokenizer

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    stage = Pretrain("d", config={"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8, **sizes})
    told = context(tmp_path, tokenizer=tokenizer)

    def killed(model: Any, folder: str) -> None:
        model.config.save_pretrained(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Qwen3ForCausalLM, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            stage._new_model(told)
    assert not (tmp_path / "initial").exists()
    made = Path(stage._new_model(told).path)
    assert made == tmp_path / "initial"
    assert (made / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["initial"]


def test_a_lineage_goes_on_past_a_model_that_is_gone(
    write_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    text = """
        model: {model}
        stages:
          a: {use: sft, model: base, dataset: data.jsonl}
          b: {use: sft, model: a, dataset: data.jsonl}
          c: {use: sft, model: b, dataset: data.jsonl}
    """
    (tmp_path / "data.jsonl").write_text(GOOD, encoding="utf-8")
    (tmp_path / "seen.txt").touch()
    recipe = check(document.load(write_recipe(text, model=tiny_model), ()))
    lineage = Resolver(recipe, {"c": Artifact(tmp_path, {})})._lineage("c")
    assert lineage == (("b", "a", "base"), (tmp_path / "seen.txt",))


def test_prompts_inside_pairs_are_remembered(tmp_path: Path) -> None:
    from datasets import Dataset

    from posttrain_plugins.text import fingerprint

    chosen = [*row("1>2", "")["prompt"], {"role": "assistant", "content": "2"}]
    rejected = [chosen[0], {"role": "assistant", "content": "1"}]
    training._write_seen(tmp_path / "seen.txt", Dataset.from_list([{"chosen": chosen, "rejected": rejected}]))
    assert (tmp_path / "seen.txt").read_text().split() == [fingerprint("1>2")]


def test_figures_that_are_no_numbers_are_no_figures() -> None:
    history = [{"eval_loss": 1.0, "reward": 0.5}, {"eval_loss": float("nan"), "kl": float("inf")}]
    assert training._last_figures(history) == {"reward": 0.5}


def context(folder: Path, **inputs: Any) -> StageContext:
    return StageContext("it", folder, 3, inputs, None, SimpleNamespace(), lambda: False)  # type: ignore[arg-type]
