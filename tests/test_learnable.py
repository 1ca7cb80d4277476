"""Training that trained nothing is an error; rows that a trainer leaves out are counted, told and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError, RewardFailed
from posttrain_plugins.recipe.run.observer import Observer
from posttrain_plugins.record.lines import json_line
from posttrain_plugins.trainers import learnable

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([[None, 1.0], [None, 0.0]], None),  # one reward judges, and that is learned from
        ([[NAN, NAN], [1.0, NAN]], None),  # one completion of the generation is judged
        ([[1.0, 1.0], [1.0, 1.0]], None),  # equal scores are judgements
        ([[INF, 1.0], [0.0, 0.0]], None),
        ([[None, NAN]] * 2, "reward 'a' gave 2 None or NaN of 2 scores; reward 'b' gave 2 None or NaN"),
        ([[INF, 1.0], [-INF, 1.0]], "reward 'a' gave 2 infinite of 2 scores"),
        ([[None, INF], [INF, 0.0]], "reward 'a' gave 1 None or NaN and 1 infinite of 2 scores; reward 'b' gave 1 inf"),
    ],
)
def test_a_generation_without_a_number_names_the_rewards(scores: Any, told: str | None) -> None:
    if told is None:
        learnable.check_scores("s", ["a", "b"], scores)
        return
    with pytest.raises(RewardFailed) as raised:
        learnable.check_scores("s", ["a", "b"], scores)
    assert told in raised.value.message


@pytest.mark.parametrize(
    ("labels", "is_one"), [([True, True], True), ([0, 0, 0], True), ([True, False], False), ([], False)]
)
def test_one_class(labels: list[Any], is_one: bool) -> None:
    assert (learnable.one_class(labels) is not None) == is_one


def test_a_line_of_the_log_is_json() -> None:
    row = {"loss": NAN, "rewards": {"a": INF, "b": 1.5}, "list": [-INF, 2, "NaN"], "step": 3, "none": None}
    text = json_line(row)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "loss": None,
        "rewards": {"a": None, "b": 1.5},
        "list": [None, 2, "NaN"],
        "step": 3,
        "none": None,
    }
    assert text.endswith("}\n")


# --- in every stage --------------------------------------------------------------------------------------------------

PROMPT = "3|7>2" * 8
REWARDS = """
def nothing(completions, **columns):
    return [None] * len(completions)


def infinite(completions, **columns):
    return [float("inf")] * len(completions)


def equal(completions, **columns):
    return [1.0] * len(completions)
"""
RECIPE = """
    name: nothing
    model: {model}
    adapters: {policy: {use: lora, r: 2}}
    datasets:
      demos: {path: ./demos.jsonl}
      pairs: {path: ./pairs.jsonl}
      liked: {path: ./liked.jsonl}
      steps: {path: ./steps.jsonl}
      ranked: {path: ./ranked.jsonl}
      tried: {path: ./tried.jsonl}
      few: {path: ./demos.jsonl, limit: 1}
    rewards:
      nothing: {use: "./rewards.py:nothing"}
      infinite: {use: "./rewards.py:infinite"}
      equal: {use: "./rewards.py:equal"}
    stages:
      sft: {use: sft, model: base, dataset: demos, args: {args}}
      dpo: {use: dpo, model: base, dataset: pairs, args: {args}}
      kto: {use: kto, model: base, dataset: pairs, args: {args}}
      reward: {use: reward, model: base, dataset: pairs, args: {args}}
      prm: {use: prm, model: base, dataset: steps, args: {args}}
      ranking: {use: ranking, model: base, dataset: ranked, args: {args}}
      listwise: {use: listwise_dpo, model: base, dataset: ranked, args: {args}}
      oreo: {use: oreo, model: base, dataset: tried, args: {args}}
      orpo: {use: orpo, model: base, dataset: pairs, args: {args}}
      cpo: {use: cpo, model: base, dataset: pairs, args: {args}}
      good: {use: kto, model: base, dataset: liked, args: {args}}
      no_epoch: {use: sft, model: base, dataset: demos, args: {num_train_epochs: 0, max_steps: -1}}
      too_few: {use: grpo, model: base, dataset: few, rewards: [equal], args: {sampled}}
      grpo: {use: grpo, model: base, dataset: demos, rewards: [{rewards}], args: {sampled}}
      rloo: {use: rloo, model: base, dataset: demos, rewards: [{rewards}], args: {sampled}}
      ppo: {use: ppo, model: base, dataset: demos, rewards: [{rewards}], adapter: policy, args: {sampled}}
      online: {use: online_dpo, model: base, dataset: demos, rewards: [{rewards}], args: {online}}
"""
SHARED = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_checkpointing": False}
SAMPLED = {**SHARED, "num_generations": 2, "max_completion_length": 4}
ONLINE = {**SHARED, "max_new_tokens": 4, "max_length": 200}


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, stage: Any, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def run_stage(
    write_recipe: Callable[..., Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Eight rows of each data set: six with a prompt of 40 tokens, two with one of 1.

    The stage runs unchecked: what `validate` tells of the first rows, the run has to see in all of them.
    """
    monkeypatch.setattr("posttrain_plugins.recipe.check.check.check_training", lambda *_: {})
    prompts = [PROMPT] * 6 + ["3", "4"]
    right, wrong = "<answer>7</answer>", "<answer>4</answer>"
    rows: dict[str, list[dict[str, Any]]] = {
        "demos": [{"prompt": p, "completion": right} for p in prompts],
        "pairs": [{"prompt": p, "chosen": right, "rejected": wrong} for p in prompts],
        "liked": [{"prompt": p, "completion": right, "label": True} for p in prompts],
        "steps": [{"prompt": p, "completions": ["3|7=4", "4>2=4"], "labels": [True, False]} for p in prompts],
        "ranked": [{"prompt": p, "completions": [right, wrong]} for p in prompts],
        "tried": [{"prompt": p, "completion": right, "reward": float(i % 2)} for i, p in enumerate(prompts)],
    }
    for name, of_one in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_one))
    (tmp_path / "rewards.py").write_text(REWARDS)

    def run(stage: str, rewards: str = "equal", observer: Any = None, **args: Any) -> Any:
        recipe = "".join(
            line
            for line in RECIPE.splitlines(keepends=True)
            if "{use: " not in line or line.split(":")[0].strip() in (stage, "adapters", "nothing", "infinite", "equal")
        )
        file = write_recipe(
            recipe,
            model=tiny_model,
            args=json.dumps({**SHARED, **args}),
            sampled=json.dumps(SAMPLED),
            online=json.dumps(ONLINE),
            rewards=rewards,
        )
        return pp.run(file, only=[stage], runs_dir=tmp_path / "runs", observer=observer)[stage]

    return run


CUTTING = ["sft", "dpo", "kto", "reward", "prm", "ranking", "listwise", "oreo", "orpo", "cpo"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*rows are left out:UserWarning")  # by trainers of our own, outside of stages too
@pytest.mark.parametrize("stage", CUTTING)
def test_rows_that_max_length_empties_are_counted(stage: str, run_stage: Callable[..., Any]) -> None:
    """Six of eight prompts alone fill it; ORPO and CPO keep such rows, and ORPO's loss of them is NaN."""
    seen, count = Notes(), 2 if stage == "kto" else 1
    made = run_stage(stage, observer=seen, max_length=30)
    assert made.manifest["details"]["rows"] == {"dataset": {"given": 8 * count, "left_out": 6 * count}}
    (told,) = [note for note in seen.notes if "are left out" in note]
    assert told.startswith(f"{6 * count} of {8 * count} rows of dataset are left out: too long for max_length=30")
    assert f"-o stages.{stage}.args.max_length=60" in told


@pytest.mark.slow
@pytest.mark.parametrize("stage", CUTTING)
def test_no_row_left_is_an_error(stage: str, run_stage: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"no row of its dataset has a token to learn from|no .* fits into max_length"):
        run_stage(stage, max_length=1)


@pytest.mark.slow
def test_kto_of_one_class_is_an_error(run_stage: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="all 8 labels are true"):
        run_stage("good")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["no_epoch", "too_few"])
def test_no_step_is_an_error(stage: str, run_stage: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match=r"0 steps of|trains nothing"):
        run_stage(stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["grpo", "rloo", "ppo", "online"])
def test_rewards_without_a_number_end_the_stage(stage: str, run_stage: Callable[..., Any]) -> None:
    with pytest.raises(RewardFailed, match=r"reward 'nothing' gave .* None or NaN"):
        run_stage(stage, "nothing")
    with pytest.raises(RewardFailed, match=r"reward 'infinite' gave .* infinite"):
        run_stage(stage, "nothing, infinite")
    assert run_stage(stage, "equal, nothing").metrics["steps"] == 1.0


def test_a_training_that_took_a_step_is_none_of_these() -> None:
    context: Any = SimpleNamespace(stage="s")
    args = SimpleNamespace(max_steps=0, num_train_epochs=1, per_device_train_batch_size=8)
    trainer = SimpleNamespace(state=SimpleNamespace(global_step=1), args=args, train_dataset=[1, 2])
    learnable.check_steps(context, trainer)
    trainer.state.global_step = 0
    with pytest.raises(InputError, match=r"0 steps of 2 rows with max_steps=0, num_train_epochs=1, per_device"):
        learnable.check_steps(context, trainer)
