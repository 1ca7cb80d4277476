"""Rewards looked at from outside: tried, stressed, replayed on saved rollouts, audited; and the commands that do it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from posttrain_plugins.auditing import saved, trial
from posttrain_plugins.auditing.audit import audit
from posttrain_plugins.auditing.scoring import CHUNK, scores_of
from posttrain_plugins.cli.commands import app
from posttrain_plugins.errors import InputError, PluginBroken
from posttrain_plugins.types import ResolvedReward

REWARDS = """
from dataclasses import dataclass
from typing import ClassVar

def digits(completions, **columns):
    return [float(sum(c.isdigit() for c in text)) for text in completions]

async def later(completions, **columns):
    return [None if text == "?" else 1.0 for text in completions]

def gullible(completions, **columns):
    return [float(len(text)) for text in completions]

def by_signature(completions, solution, **columns):
    return [float(text == wanted) for text, wanted in zip(completions, solution)]

by_signature.examples = ({"prompt": "p", "completion": "7", "score": 1.0},)

def for_messages(completions, solution, **columns):
    return [float(c[0]["content"] == wanted) for c, wanted in zip(completions, solution)]

gullible.examples = ({"prompt": "p", "completion": "good", "score": 4.0}, {"prompt": "p", "completion": "", "score": 1})

def fragile(completions, **columns):
    return [1.0 / len(text) for text in completions]

@dataclass
class Exact:
    requires_columns: ClassVar = ("solution",)
    oracle: ClassVar = True
    examples: ClassVar = (
        {"prompt": "p", "completion": "7", "solution": "7", "score": 1.0},
        {"prompt": "p", "completion": "8", "solution": "7", "score": 0.0},
    )

    def __call__(self, completions, solution, **columns):
        return [float(text == wanted) for text, wanted in zip(completions, solution)]
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    file = tmp_path / "rewards.py"
    file.write_text(REWARDS, encoding="utf-8")
    return file


@pytest.fixture
def reward(rewards: Path) -> Callable[[str], ResolvedReward]:
    from posttrain_plugins import api

    return lambda name: api.reward(f"{rewards}:{name}")


def rollout(step: int, completion: str, hacked: float, **columns: Any) -> dict[str, Any]:
    told = {"rewards": {"hacked": hacked, "silent": None}, "weighted_reward": 0.5 * hacked}
    return {"global_step": step, "prompt": "p", "completion": completion, **told, **columns}


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


# --- one reward on rows ----------------------------------------------------------------------------------------------


def test_rows_are_scored_in_order_over_all_pieces(reward: Callable[[str], ResolvedReward]) -> None:
    rows = [{"prompt": "p", "completion": "1" * (i % 7)} for i in range(2 * CHUNK + 3)]
    told: list[tuple[int, int | None]] = []
    scores = scores_of(reward("digits"), rows, lambda done, total, unit, figures: told.append((done, total)))
    assert scores == [float(i % 7) for i in range(len(rows))]
    assert told == [(CHUNK, len(rows)), (2 * CHUNK, len(rows)), (len(rows), len(rows))]


def test_an_async_reward_is_awaited_and_none_stays_none(reward: Callable[[str], ResolvedReward]) -> None:
    rows = [{"prompt": "p", "completion": text} for text in ("?", "x")]
    assert scores_of(reward("later"), rows) == [None, 1.0]


def test_a_missing_column_is_told_before_anything_is_scored(reward: Callable[[str], ResolvedReward]) -> None:
    for name in ("Exact", "by_signature"):  # declared, or an argument without a default
        with pytest.raises(InputError, match="needs the column 'solution', the rows have answer"):
            scores_of(reward(name), [{"prompt": "p", "completion": "7", "answer": "7"}])


def test_a_reward_for_messages_alone_is_tried_on_messages(reward: Callable[[str], ResolvedReward]) -> None:
    mine = reward("for_messages")
    assert {(tried.score, tried.problem) for tried in trial.stress(mine)} == {(0.0, "")}
    mine.func.examples = ({"prompt": "p", "completion": "7", "solution": "7", "score": 1.0},)
    [tried] = trial.on_examples(mine)
    assert (tried.completion, tried.score, tried.problem) == ("7", 1.0, "")


def test_an_example_without_a_needed_column_is_named(reward: Callable[[str], ResolvedReward]) -> None:
    [tried] = trial.on_examples(reward("by_signature"))
    assert tried.problem == "its example lacks what it needs: solution"


def test_what_a_reward_raises_bears_its_name(reward: Callable[[str], ResolvedReward]) -> None:
    with pytest.raises(PluginBroken, match="fragile' failed: ZeroDivisionError"):
        scores_of(reward("fragile"), [{"prompt": "p", "completion": ""}])


# --- test and stress -------------------------------------------------------------------------------------------------


def test_examples_against_what_they_say(reward: Callable[[str], ResolvedReward]) -> None:
    assert [(t.score, t.problem) for t in trial.on_examples(reward("Exact"))] == [(1.0, ""), (0.0, "")]
    good, bad = trial.on_examples(reward("gullible"))
    assert (good.problem, bad.score, bad.expected) == ("", 0.0, 1)
    assert bad.problem == "another score than its example says"
    with pytest.raises(InputError, match="has no examples"):
        trial.on_examples(reward("digits"))


def test_a_reference_must_beat_another_rows(reward: Callable[[str], ResolvedReward]) -> None:
    rows = [{"prompt": "p", "solution": "7"}, {"prompt": "q", "solution": "8"}]
    assert [t.problem for t in trial.on_data(reward("Exact"), rows)] == ["", ""]
    assert {t.problem for t in trial.on_data(reward("gullible"), rows)} == {"another row's reference scores as much"}
    with pytest.raises(InputError, match="the data has no reference, it has prompt, gold"):
        trial.on_data(reward("Exact"), [{"prompt": "p", "gold": "7"}])
    with pytest.raises(InputError, match="the data has no 'prompt', it has question, solution"):
        trial.on_data(reward("Exact"), [{"question": "p", "solution": "7"}])


def test_stress_finds_what_raises_and_what_spam_pays(reward: Callable[[str], ResolvedReward]) -> None:
    found = {t.name: t.problem for t in trial.stress(reward("fragile"))}
    assert found["empty"] == "raises ZeroDivisionError: float division by zero"
    assert found["one word"] == ""
    found = {t.name: t.problem for t in trial.stress(reward("gullible"))}
    assert found["100k characters"] == "pays more than a good answer"
    assert found["empty"] == ""
    assert not [t for t in trial.stress(reward("Exact")) if t.problem]


def test_stress_without_examples_says_that_nothing_was_compared(rewards: Path) -> None:
    done = invoke("stress", f"{rewards}:digits")
    assert done.exit_code == 0, done.output
    assert "no examples: only that nothing raises was checked" in " ".join(done.output.split())
    assert "as they should be" not in done.output
    assert not re.search(r"│ +none │", done.output), "a dash where nothing is expected"
    assert "as they should be" in invoke("stress", f"{rewards}:Exact").output


def test_an_example_that_cannot_be_judged_is_expected_to_be_none(reward: Callable[[str], ResolvedReward]) -> None:
    unsure = reward("later")
    unsure.func.examples = ({"prompt": "p", "completion": "?", "score": None},)
    assert [(t.score, t.expected, t.problem) for t in trial.on_examples(unsure)] == [(None, "none", "")]


# --- saved rollouts --------------------------------------------------------------------------------------------------


def test_rollouts_of_a_stage_under_way_are_found_and_its_torn_line_is_passed_over(tmp_path: Path) -> None:
    file = written(tmp_path / "runs/mine/.grpo-0123456789ab.partial/rollouts.jsonl", [rollout(0, "a", 1.0)])
    file.write_text(file.read_text() + '{"prompt": "p", "compl', encoding="utf-8")
    found = saved.read_one("mine", tmp_path / "runs")
    assert (found.name, len(found.rows), found.rewards) == ("mine:grpo", 1, ["hacked", "silent"])
    with pytest.raises(InputError, match="no rollouts of a stage 'grop'"):
        saved.find("mine:grop", tmp_path / "runs")
    with pytest.raises(InputError, match="run 'other' has saved no rollouts"):
        saved.find("other", tmp_path / "runs")


def test_a_bad_line_is_told_with_its_place(tmp_path: Path) -> None:
    file = written(tmp_path / "r.jsonl", [{"prompt": "p"}, {"prompt": "p", "completion": "c"}])
    with pytest.raises(InputError, match=r"r.jsonl:1: no 'completion'"):
        saved.read("r", file)
    file.write_text('{"torn\n{"prompt": "p", "completion": "c"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"r.jsonl:1: not JSON"):
        saved.read("r", file)


# --- audit -----------------------------------------------------------------------------------------------------------


def rollouts(true: Callable[[int, int], str]) -> saved.Rollouts:
    """Eight completions at each of ten steps; the trained reward rises by a tenth a step."""
    rows = [rollout(step, true(step, i), step / 10 + i / 100) for step in range(10) for i in range(8)]
    return saved.Rollouts("mine:grpo", Path("rollouts.jsonl"), rows)


@pytest.mark.parametrize(
    ("true", "verdict"),
    [
        (lambda step, i: "1" * (step + i % 2), "rises with it"),
        (lambda step, i: "1" * (20 - step + i % 2), "falls while it rises"),
        (lambda step, i: "1" * (i % 3), "does not rise with it"),
    ],
)
def test_what_became_of_the_independent_reward(
    reward: Callable[[str], ResolvedReward], true: Callable[[int, int], str], verdict: str
) -> None:
    given = rollouts(true)
    found = audit(given, scores_of(reward("digits"), given.rows), "digits", parts=5)
    assert found.verdict == verdict
    assert [(part.first, part.last, part.completions) for part in found.parts] == [
        (0, 1, 16), (2, 3, 16), (4, 5, 16), (6, 7, 16), (8, 9, 16)
    ]  # fmt: skip
    assert found.parts[0].trained.mean == pytest.approx(0.5 * (0.05 + 0.035)), "the weighted sum"
    assert found.trained_change.mean == pytest.approx(0.5 * 0.8)


def test_rank_correlation_by_hand(reward: Callable[[str], ResolvedReward]) -> None:
    """Ranks 1 2 3 4 against 2 1 4 3: rho = 1 - 6 * 4 / (4 * 15) = 0.6."""
    texts = ("11", "1", "1111", "111")
    rows = [rollout(step, text, value) for step in (0, 1) for value, text in enumerate(texts)]
    given = saved.Rollouts("mine:grpo", Path("x"), rows)
    found = audit(given, scores_of(reward("digits"), rows), "digits", "hacked")
    assert [part.agreement for part in found.parts] == pytest.approx([0.6, 0.6])


def test_what_cannot_be_audited_is_told(reward: Callable[[str], ResolvedReward]) -> None:
    one_step = saved.Rollouts("mine:grpo", Path("x"), [rollout(3, "1", 1.0)])
    with pytest.raises(InputError, match="has 1 steps that both rewards judge"):
        audit(one_step, [1.0], "digits")
    with pytest.raises(InputError, match="no reward 'other' was trained"):
        audit(one_step, [1.0], "digits", "other")
    with pytest.raises(InputError, match="without 'global_step' and 'rewards'"):
        audit(saved.Rollouts("x", Path("x"), [{"prompt": "p", "completion": "c"}]), [1.0], "digits")


# --- the commands ----------------------------------------------------------------------------------------------------


def invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["rewards", *map(str, arguments)])


def test_the_commands_end_to_end(rewards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    given = rollouts(lambda step, i: "1" * step)
    file = written(runs / "mine/.grpo-0123456789ab.partial/rollouts.jsonl", given.rows)
    tested = invoke("test", f"{rewards}:Exact", "--json")
    assert tested.exit_code == 0, tested.output
    assert json.loads(tested.stdout)["problems"] == 0
    assert invoke("stress", f"{rewards}:gullible").exit_code == 1
    rescored = tmp_path / "rescored.jsonl"
    replayed = invoke("replay", "mine", "--reward", f"n={rewards}:digits", "--out", rescored, "--runs-dir", runs)
    assert replayed.exit_code == 0, replayed.output
    rows = [json.loads(line) for line in rescored.read_text(encoding="utf-8").splitlines()]
    assert [row["rewards"]["n"] for row in rows[::8]] == [float(step) for step in range(10)]
    assert rows[0]["rewards"]["hacked"] == 0.0
    with monkeypatch.context() as patch:
        patch.setattr("posttrain_plugins.auditing.scoring.scores_of", lambda *_: pytest.fail("scored for nothing"))
        refused = invoke("replay", "mine", "--reward", f"n={rewards}:digits", "--out", rescored, "--runs-dir", runs)
    assert "is there already" in str(refused.exception)
    told = invoke("audit", file, "--against", f"{rewards}:digits", "--out", tmp_path / "plots", "--json")
    assert json.loads(told.stdout)["verdict"] == "rises with it"


@pytest.mark.parametrize("command", ["test", "stress"])
def test_the_examples_of_the_help_work(command: str) -> None:
    """`posttrain rewards test exact_answer --dataset ...` as it stands there, from its docstring."""
    by_name = typer.main.get_command(app).commands["rewards"].commands  # type: ignore[attr-defined]
    examples = re.findall(r"`posttrain rewards (.*?)`", str(by_name[command].help))
    assert examples
    for example in examples:
        done = invoke(*shlex.split(example))
        assert done.exit_code in (0, 1), done.output
        assert "as they should be" in done.output or "raise nothing" in done.output, done.output


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        ("digit_chian(size=4)", "did you mean 'digit_chain'?"),
        ("digit_chain(splt=test)", "unknown key 'splt' in dataset 'digit_chain'"),
        ("nowhere.jsonl", "no file nowhere.jsonl"),
    ],
)
def test_data_that_is_not_there_is_told_without_a_recipe(dataset: str, told: str) -> None:
    from posttrain_plugins import api

    with pytest.raises(InputError) as caught:
        api.rows(dataset)
    assert told in str(caught.value)
    assert "recipe" not in str(caught.value)
    assert "stage" not in str(caught.value)


def test_data_with_questions_and_answers_alone_is_enough(rewards: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "mine.jsonl", [{"prompt": "p", "answer": "7"}, {"prompt": "q", "answer": "88"}])
    tested = invoke("test", f"{rewards}:gullible", "--dataset", file, "--json")
    assert len(json.loads(tested.stdout)["tried"][str(file)]) == 2, tested.output


def test_the_audit_is_drawn(rewards: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = written(tmp_path / "rollouts.jsonl", rollouts(lambda step, i: "1" * (20 - step)).rows)
    done = invoke("audit", file, "--against", f"n={rewards}:digits", "--out", tmp_path / "plots")
    assert done.exit_code == 0, done.output
    assert "falls while it rises" in done.output
    assert "falls while it rises" in (tmp_path / "plots/rollouts-n.svg").read_text(encoding="utf-8")
