"""`sample` beyond fresh draws: saved completions, labelled and ranked ones, and steps with labels; all by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.errors import InputError, StageFailed
from posttrain_plugins.rewards.digit_chain_steps import DigitChainSteps
from posttrain_plugins.rewards.exact_answer import ExactAnswer
from posttrain_plugins.stages.sample import Sample
from posttrain_plugins.training_data.selection import Judged, Selection, read_saved
from posttrain_plugins.types import Completion, ModelArtifact, ResolvedReward, StageContext, Usage

CORRECT = ResolvedReward("correct", ExactAnswer())
STEPS = ResolvedReward("steps", DigitChainSteps())


@dataclass
class Told:
    notes: list[str] = field(default_factory=list)

    def progress(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None: ...

    def note(self, message: str) -> None:
        self.notes.append(message)


@dataclass
class Completer:
    """A model with a list of completions for each text that it goes on from; it counts what it is asked."""

    script: Mapping[str, list[str]]
    identity: str = "sft"
    capabilities: Capabilities = field(default_factory=Capabilities)
    asked: list[str] = field(default_factory=list)

    def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
        for i, request in enumerate(batch):
            prompt = request.prompt
            begun = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
            self.asked.append(begun)
            for j in range(request.n):
                text = self.script[begun][j]
                reason: Any = "error" if text == "error" else "stop"
                yield i, j, Completion(text, finish_reason=reason, usage=Usage(1, 1))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that were loaded."""
    names: list[str] = []

    @contextmanager
    def open_model(artifact: ModelArtifact, *_: Any) -> Iterator[Any]:
        names.append(artifact.name)
        yield MODELS[artifact.name]

    monkeypatch.setattr("posttrain_plugins.backends.open.opened", open_model)
    return names


MODELS: dict[str, Any] = {}


def run(folder: Path, data: list[dict[str, Any]], rewards: list[ResolvedReward], **options: Any) -> Any:
    """Metrics, rows and notes of the stage."""
    model = options.get("model")
    stage = Sample(dataset="d", rewards=[reward.name for reward in rewards], **options)
    inputs: dict[str, Any] = {"dataset": Dataset.from_list(data), "rewards": rewards}
    inputs |= {"model": ModelArtifact(model, f"/nowhere/{model}")} if model else {}
    told = Told()
    result = stage(StageContext("it", folder, 3, inputs, None, told, lambda: False))
    assert result.data_path is not None
    return result.metrics, [json.loads(line) for line in result.data_path.read_text().splitlines()], told.notes


def tagged(*answers: str) -> list[str]:
    return [f"<answer>{answer}</answer>" for answer in answers]


# --- saved completions -----------------------------------------------------------------------------------------------

SAVED = [
    {"prompt": "p", "solution": "1", "completion": "<answer>1</answer>", "reward": 0.0},
    {"prompt": "q", "solution": "2", "completion": "<answer>1</answer>", "reward": 0.2},
    {"prompt": "p", "solution": "1", "completion": "<answer>3</answer>", "reward": 0.9},
]


def test_saved_completions_are_scored_anew(tmp_path: Path, opened: list[str]) -> None:
    metrics, rows, _ = run(tmp_path, SAVED, [CORRECT])
    assert rows == [{"prompt": "p", "solution": "1", "completion": "<answer>1</answer>", "reward": 1.0}]
    assert metrics == {"problems": 2, "completions": 3, "mean_reward": 1 / 3, "rows": 1, "solved_share": 0.5}
    assert opened == []


def test_saved_rewards_decide_where_none_are_named(tmp_path: Path, opened: list[str]) -> None:
    _, rows, _ = run(tmp_path / "best", SAVED, [])
    assert rows == [{"prompt": "p", "solution": "1", "completion": "<answer>3</answer>", "reward": 0.9}]
    _, rows, _ = run(tmp_path / "pairs", SAVED, [], keep="pairs")
    assert rows == [{"prompt": "p", "solution": "1", "chosen": "<answer>3</answer>", "rejected": "<answer>1</answer>"}]
    assert opened == []


def test_a_row_may_hold_several_completions(tmp_path: Path, opened: list[str]) -> None:
    data = [
        {"prompt": "p", "solution": "1", "completions": tagged("3", "1", "1"), "rewards": [0.1, 0.9, 0.9]},
        {"prompt": "q", "solution": "2", "completions": tagged("2"), "rewards": [1.0]},
    ]
    _, rows, _ = run(tmp_path / "ranked", data, [], keep="ranked")
    assert rows == [{"prompt": "p", "solution": "1", "completions": tagged("1", "3"), "scores": [0.9, 0.1]}]
    _, rows, _ = run(tmp_path / "anew", data, [CORRECT], keep="labelled")
    assert [(row["completion"], row["label"]) for row in rows] == [
        ("<answer>1</answer>", True),
        ("<answer>3</answer>", False),
        ("<answer>2</answer>", True),
    ]
    assert all("rewards" not in row and "completions" not in row for row in rows)
    _, again, _ = run(tmp_path / "again", [{**row, "note": "x"} for row in rows], [CORRECT], keep="pairs")
    assert [(row["prompt"], row["note"]) for row in again] == [("p", "x")]


def test_the_ranked_rows_of_sample_are_saved_completions_too(tmp_path: Path, opened: list[str]) -> None:
    ranked = [{"prompt": "p", "completions": ["b", "a"], "scores": [0.9, 0.2]}]
    _, rows, _ = run(tmp_path, ranked, [], keep="pairs")
    assert rows == [{"prompt": "p", "chosen": "b", "rejected": "a"}]


def test_rewards_by_name_as_an_evaluation_saves_them(tmp_path: Path, opened: list[str]) -> None:
    data = [
        {"prompt": "p", "completion": "a", "rewards": {"correct": 1.0, "short": -3.0}},
        {"prompt": "p", "completion": "b", "rewards": {"correct": 1.0, "short": -1.0}},
        {"prompt": "p", "completion": "c", "rewards": {"correct": 0.0, "short": 9.0}},
    ]
    _, rows, _ = run(tmp_path, data, [])
    assert rows == [{"prompt": "p", "completion": "b", "reward": 0.0}]


def test_messages_stay_whole(tmp_path: Path, opened: list[str]) -> None:
    prompt = [{"role": "user", "content": "1+0?"}]
    called = [{"role": "assistant", "content": "let me see"}, {"role": "assistant", "content": "<answer>1</answer>"}]
    data = [{"prompt": prompt, "solution": "1", "completion": called}]
    _, (row,), _ = run(tmp_path / "chat", data, [CORRECT])
    assert row["completion"] == called
    _, (row,), _ = run(tmp_path / "text", [{**data[0], "completion": "<answer>1</answer>"}], [CORRECT])
    assert row["completion"] == [{"role": "assistant", "content": "<answer>1</answer>"}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completions": ["a", "b"], "rewards": [1.0]}, "row 2 .* has 2 completions and the rewards"),
        ({"prompt": "p", "completions": ["a"], "rewards": None}, "row 2 .* has 1 completions and the rewards None"),
        ({"prompt": "p", "completion": "a", "rewards": "good"}, "the rewards 'good', expected a number for each"),
    ],
)
def test_rewards_that_do_not_fit_are_told_with_their_row(row: dict[str, Any], message: str) -> None:
    first = {"prompt": "q", "completion": "a", "reward": 1.0}
    with pytest.raises(InputError, match=message) as caught:
        read_saved([first, row], needs_rewards=True)
    assert caught.value.hint
    assert len(read_saved([first, row], needs_rewards=False)) == 2


def test_no_draws_at_all_take_the_saved_ones_even_with_a_model(tmp_path: Path, opened: list[str]) -> None:
    _, rows, _ = run(tmp_path, SAVED, [CORRECT], model="sft", num_generations=0)
    assert len(rows) == 1
    assert opened == []


# --- labelled, ranked ------------------------------------------------------------------------------------------------


def judged(*values: tuple[str, float | None]) -> list[Judged]:
    return [Judged(text, text, value, value) for text, value in values]


def test_labelled_and_ranked_leave_out_what_nobody_could_judge() -> None:
    items = judged(("a", 0.2), ("b", None), ("c", 0.9), ("a", 0.2))
    assert Selection("labelled").rows(items, 0) == [
        {"completion": "c", "label": True},
        {"completion": "a", "label": False},
    ]
    assert Selection("ranked").rows(items, 0) == [{"completions": ["c", "a"], "scores": [0.9, 0.2]}]
    assert Selection("ranked").rows(judged(("a", 0.5), ("b", 0.5)), 0) == []


def test_all_keeps_right_and_wrong_with_what_they_are_worth() -> None:
    """Equal ones too: a value is a mean over what is drawn, and without them it would be one over what is distinct."""
    items = judged(("a", 0.2), ("b", None), ("c", 0.9), ("a", 0.2))
    kept = [{"completion": "c", "reward": 0.9}, {"completion": "a", "reward": 0.2}]
    assert Selection("all").rows(items, 0) == [*kept, kept[1]]
    assert Selection("all_correct").rows(items, 0) == kept[:1]


def test_what_people_are_to_judge_is_judged_by_no_reward(tmp_path: Path, opened: list[str]) -> None:
    chat = [{"role": "user", "content": "q"}]
    MODELS["sft"] = Completer({"p": ["a", "b", "a"], "q": ["c", "c", "error"]})
    for name, prompt, expected in (
        ("plain", "p", ["a", "b"]),
        ("chat", chat, [[{"role": "assistant", "content": "c"}]]),
    ):
        data = [{"prompt": prompt, "solution": "1", "completion": "old"}]
        options: dict[str, Any] = {"keep": "unjudged", "num_generations": 3, "model": "sft", "max_missing": 0.5}
        metrics, rows, _ = run(tmp_path / name, data, [], **options)
        assert rows == [{"prompt": prompt, "solution": "1", "completions": expected}]
        assert {"mean_reward", "solved_share"}.isdisjoint(metrics)  # nobody has said what is right


def test_a_data_sets_own_completions_do_not_come_along(tmp_path: Path, opened: list[str]) -> None:
    MODELS["sft"] = Completer({"p": tagged("1", "2")})
    data = [{"prompt": "p", "solution": "1", "completion": "gold", "level": 3}]
    _, rows, _ = run(tmp_path, data, [CORRECT], model="sft", num_generations=2, keep="pairs")
    assert rows == [{"prompt": "p", "solution": "1", "level": 3, "chosen": tagged("1")[0], "rejected": tagged("2")[0]}]


# --- steps by rules --------------------------------------------------------------------------------------------------

RIGHT = "<think>3|7=4;4>2=4</think><answer>4</answer>"
LATE = "<think>3|7=4;4>2=2</think><answer>2</answer>"
EARLY = "<think>3|7=5;5>2=5</think><answer>5</answer>"
CHAIN = [{"prompt": "3|7>2", "completions": [RIGHT, LATE, EARLY, RIGHT]}]


def test_steps_by_rules(tmp_path: Path, opened: list[str]) -> None:
    metrics, rows, notes = run(tmp_path, CHAIN, [STEPS], keep="steps", separator=";")
    assert rows == [
        {
            "prompt": "3|7>2",
            "completions": ["<think>3|7=4;", "4>2=4</think><answer>4</answer>"],
            "labels": [True, True],
        },
        {
            "prompt": "3|7>2",
            "completions": ["<think>3|7=4;", "4>2=2</think><answer>2</answer>"],
            "labels": [True, False],
        },
        {
            "prompt": "3|7>2",
            "completions": ["<think>3|7=5;", "5>2=5</think><answer>5</answer>"],
            "labels": [False, True],  # the second follows from the first, which is wrong
        },
    ]
    assert (metrics["rows"], metrics["steps"], metrics["right_steps_share"]) == (3, 6, 4 / 6)
    assert notes == []


def test_steps_may_end_with_the_first_error(tmp_path: Path, opened: list[str]) -> None:
    _, rows, _ = run(tmp_path, CHAIN, [STEPS], keep="steps", separator=";", stop_at_first_error=True)
    assert [row["labels"] for row in rows] == [[True, True], [True, False], [False]]
    assert [len(row["completions"]) for row in rows] == [2, 2, 1]


def test_completions_whose_steps_do_not_fit_are_told(tmp_path: Path, opened: list[str]) -> None:
    data = [{"prompt": "3|7>2", "completions": [RIGHT, "no step", ""]}]
    _, rows, notes = run(tmp_path / "some", data, [STEPS], keep="steps", separator=";")
    assert len(rows) == 1
    assert notes == [
        "1 of 3 completions have no answer that can be read",
        "2 of 3 completions have no labels: reward 'steps' sees other steps in them than separator ';' makes",
    ]
    with pytest.raises(StageFailed, match="kept nothing of 3"):
        run(tmp_path / "none", data, [STEPS], keep="steps", separator="\n")


def test_a_reward_without_steps_is_told_before_anything_is_drawn(tmp_path: Path, opened: list[str]) -> None:
    with pytest.raises(InputError, match="reward 'correct' cannot label steps: it has no step_scores") as caught:
        run(tmp_path, CHAIN, [CORRECT], model="sft", keep="steps")
    assert "rollouts" in (caught.value.hint or "")
    assert opened == []


# --- steps by rollouts -----------------------------------------------------------------------------------------------

FIRST = "a\n\nb\n\n<answer>1</answer>"
SECOND = "a\n\nc\n\n<answer>2</answer>"
ROLLOUTS = {
    "a\n\n": tagged("2", "1", "2", "2"),  # 1 of 4
    "a\n\nb\n\n": tagged("1", "1", "1", "2"),  # 3 of 4
    "a\n\nc\n\n": tagged("2", "2", "3", "2"),  # none
}
LABELS = {
    "hard": ([True, True, True], [True, False, False]),
    "soft": ([False, True, True], [False, False, False]),
    "share": ([0.25, 0.75, 1.0], [0.25, 0.0, 0.0]),
}


@pytest.mark.parametrize("estimate", LABELS)
@pytest.mark.parametrize("is_chat", [False, True])
def test_monte_carlo_labels(tmp_path: Path, opened: list[str], estimate: Any, is_chat: bool) -> None:
    MODELS["sft"] = model = Completer({"p": [FIRST, SECOND, FIRST], **{f"p{k}": v for k, v in ROLLOUTS.items()}})
    prompt: Any = [{"role": "user", "content": "p"}] if is_chat else "p"
    options = {"model": "sft", "keep": "steps", "labels": "rollouts", "num_rollouts": 4, "estimate": estimate}
    data = [{"prompt": prompt, "solution": "1"}]
    _, rows, notes = run(tmp_path, data, [CORRECT], num_generations=3, **options)
    # a share is what is to be expected, a mean over draws; a verdict is of what is written
    drawn = [0, 1, 0] if estimate == "share" else [0, 1]
    steps = [["a\n\n", "b\n\n", "<answer>1</answer>"], ["a\n\n", "c\n\n", "<answer>2</answer>"]]
    assert [row["labels"] for row in rows] == [LABELS[estimate][i] for i in drawn]
    assert [row["completions"] for row in rows] == [steps[i] for i in drawn]
    assert all(row["prompt"] == prompt and row["solution"] == "1" for row in rows)
    assert sorted(model.asked) == ["p", "pa\n\n", "pa\n\nb\n\n", "pa\n\nc\n\n"]  # the shared prefix once
    assert notes == []
    assert opened == ["sft"]


def test_rollouts_of_saved_completions(tmp_path: Path, opened: list[str]) -> None:
    MODELS["sft"] = model = Completer({f"p{k}": v for k, v in ROLLOUTS.items()})
    data = [{"prompt": "p", "solution": "1", "completions": [FIRST, SECOND]}]
    options = {"model": "sft", "keep": "steps", "labels": "rollouts", "num_rollouts": 4, "num_generations": 0}
    _, rows, _ = run(tmp_path, data, [CORRECT], **options, stop_at_first_error=True)
    assert [row["labels"] for row in rows] == [[True, True, True], [True, False]]
    assert "p" not in model.asked


def test_rollouts_that_all_fail_give_no_labels(tmp_path: Path, opened: list[str]) -> None:
    script = {"p": [FIRST, SECOND, "<answer>1</answer>"], **{f"p{k}": v for k, v in ROLLOUTS.items()}}
    MODELS["sft"] = Completer({**script, "pa\n\nb\n\n": ["error"] * 4, "pa\n\n": ["error", *tagged("1", "2", "2")]})
    options = {"model": "sft", "keep": "steps", "labels": "rollouts", "num_rollouts": 4, "estimate": "share"}
    _, rows, notes = run(tmp_path, [{"prompt": "p", "solution": "1"}], [CORRECT], num_generations=3, **options)
    assert [row["labels"] for row in rows] == [[1 / 3, 0.0, 0.0], [1.0]]  # a failed rollout does not count
    assert notes == [
        "1 of 3 completions have no labels: they are empty, or every rollout from one of their steps failed"
    ]


def test_a_rollout_that_cannot_be_judged_is_no_wrong_one(tmp_path: Path, opened: list[str]) -> None:
    def picky(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if "3" in text else float("1" in text) for text in completions]

    script = {"pa\n\n": tagged("1", "3", "2", "1"), "pa\n\nb\n\n": tagged("3", "3", "3", "1")}
    MODELS["sft"] = Completer({"p": [FIRST, FIRST, SECOND], **script, "pa\n\nc\n\n": tagged("3", "3", "3", "3")})
    options = {"model": "sft", "keep": "steps", "labels": "rollouts", "num_rollouts": 4, "estimate": "share"}
    reward = ResolvedReward("picky", picky)
    _, rows, notes = run(tmp_path, [{"prompt": "p", "solution": "1"}], [reward], num_generations=3, **options)
    assert [row["labels"] for row in rows] == [[2 / 3, 1.0, 1.0]] * 2, "drawn twice"
    assert len(notes) == 1  # of the other completion nobody can say whether its second step is right


# --- fields that do not go together ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "greedy", "rewards": ["r"]}, "sample has a strategy, but no model"),
        ({"model": "m"}, "sample has no rewards"),
        ({"keep": "steps"}, "sample has no rewards"),
        ({"keep": "steps", "labels": "rollouts", "rewards": ["r"]}, "sample has labels: rollouts, but no model"),
        ({"keep": "labelled", "rewards": ["r"], "threshold": None}, "keep: labelled tells right from wrong"),
        ({"keep": "unjudged"}, "sample keeps unjudged completions, but has no model"),
        ({"keep": "unjudged", "model": "m", "rewards": ["r"]}, "but has rewards"),
        ({"rewards": ["r"], "top_k": 0}, "sample cannot use top_k: 0, expected 1 or more"),
    ],
)
def test_what_does_not_go_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sample("d", **fields)


def test_the_columns_that_are_needed() -> None:
    assert Sample("d", ["r"], "m").requires_columns == {"dataset": (("prompt",),)}
    assert Sample("d", ["r"]).requires_columns == {"dataset": (("prompt", "completion"), ("prompt", "completions"))}
    assert ("prompt", "completions", "scores") in Sample("d").requires_columns["dataset"]
    assert ("prompt", "completion") not in Sample("d").requires_columns["dataset"]


def test_a_rollout_goes_on_from_a_prompt_that_is_begun() -> None:
    """One assistant message: two in a row are refused by many chat templates."""
    from posttrain_plugins.training_data.step_labels import _Rollouts
    from posttrain_plugins.types import Problem

    question = {"role": "user", "content": "2+2=?"}
    problem = Problem([question, {"role": "assistant", "content": "It "}], id="a")
    [request] = next(_Rollouts({"a": ["is"]}, 1)(problem))  # type: ignore[misc]
    assert request.prompt == [question, {"role": "assistant", "content": "It is"}]  # type: ignore[union-attr]
