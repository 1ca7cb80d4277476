"""Ratings that a judge could not be asked for: told apart from bad ones, not logged, counted by stages and trainers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_judge import Scripted as ScriptedJudge
from test_missing import backends
from test_sample_evaluate import Scripted, artifact, run_evaluate, run_sample, script

from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.scoring import Scored, score, score_steps
from posttrain_plugins.errors import StageFailed
from posttrain_plugins.evaluation.figures import mean_interval
from posttrain_plugins.rewards.judge import Judge
from posttrain_plugins.types import Completion, Generate, ResolvedReward

__all__ = ["backends"]  # a fixture

DOWN = "HTTP 503: overloaded"


class FlakyJudge(ScriptedJudge):
    """Fails where it would say `down`."""

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        for i, j, completion in super().generate(batch, seeds):
            failed = Completion("", finish_reason="error", error=DOWN)
            yield i, j, failed if completion.text == "down" else completion


def flaky(says: Callable[[str], str], **options: Any) -> Judge:
    made = Judge(model="judge", **options)
    made._backend = FlakyJudge(says)
    return made


def said(text: str) -> str:
    """What the completion in a question says is what the judge answers."""
    return text.partition("Answer:\n")[2].partition("\n\nJudge")[0]


def test_a_rating_that_failed_is_told_from_one_that_cannot_be_read() -> None:
    judge = flaky(said)
    assert judge(["q"] * 4, ["[[10]]", "hm", "down", "[[1]]"]) == [1.0, None, None, 0.0]
    assert judge.failures == [DOWN]
    judge._backend.says = lambda text: "[[10]]"
    assert judge(["q"] * 2, ["hm", "down"]) == [None, 1.0]  # what was heard is not asked again
    assert judge.failures == [DOWN]


def test_some_of_several_ratings_are_enough() -> None:
    says = iter(["down", "[[10]]", "down", "down"])
    judge = flaky(lambda text: next(says), ratings=2, temperature=1.0)
    assert judge(["q"] * 2, ["a", "b"]) == [1.0, None]
    assert judge.failures == [DOWN]


def test_pairs_and_steps_that_failed() -> None:
    pairs = flaky(lambda text: "down" if "bad" in text else "[[A]]", judging="pairwise", swap=False)
    assert pairs(["q"] * 3, ["one", "two", "bad"]) == [1.0, 0.0, None]
    assert pairs.failures == [DOWN]
    steps = flaky(lambda text: "down" if "bad" in text else "[[10]]", judging="steps", separator=";")
    assert steps(["q"] * 3, ["a;b", "a;bad;c", ""]) == [1.0, None, None]
    assert steps.failures == [DOWN]


def test_what_failed_is_not_logged_and_asked_again_by_the_next_run(tmp_path: Path) -> None:
    judge = flaky(said)
    reward, items = ResolvedReward("judge", judge), [Scored("0", "q", text) for text in ("[[10]]", "down")]
    with RequestLog(tmp_path / "log") as log:
        assert score(reward, items, log) == [1.0, None]
        assert score(reward, items, log) == [1.0, None]  # within a run it is known to be missing
        assert list(log.missing.values()) == [DOWN]
    judge = flaky(lambda text: "[[1]]")
    with RequestLog(tmp_path / "log") as log:
        assert score(ResolvedReward("judge", judge), items, log) == [1.0, 0.0]
        assert log.missing == {}
        assert len(judge._backend.asked) == 1


def test_a_judgement_that_is_none_is_logged(tmp_path: Path) -> None:
    with RequestLog(tmp_path / "log") as log:
        assert score(ResolvedReward("judge", flaky(said)), [Scored("0", "q", "hm")], log) == [None]
    assert json.loads((tmp_path / "log").read_text())["value"] is None


def test_steps_that_failed_are_asked_again(tmp_path: Path) -> None:
    judge = flaky(lambda text: "down" if "bad" in text else "[[10]]")
    item = Scored("0", "q", "a;bad", steps=("a;", "bad"))
    with RequestLog(tmp_path / "log") as log:
        assert score_steps(ResolvedReward("judge", judge), [item], log) == [[1.0, 0.0]]
        assert list(log.missing.values()) == [DOWN]
    assert (tmp_path / "log").read_bytes() == b""


def test_a_trainer_is_told_how_many() -> None:
    told: list[tuple[str, float]] = []
    judge = flaky(said)
    judge(["q"] * 2, ["down", "[[1]]"], log_metric=lambda name, value: told.append((name, value)))
    judge(["q"], ["[[10]]"], log_metric=lambda name, value: told.append((name, value)))
    assert told == [("judge/missing", 1.0)]


def rating(text: str) -> str:
    """Ten for an answer of 1, one for a 2, and nothing for a 3."""
    return {"<answer>1</answer>": "[[10]]", "<answer>2</answer>": "[[1]]", "<answer>3</answer>": "down"}[said(text)]


def test_stages_count_what_the_judge_was_not_told(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    backends["sft"].script = script("1111", "1122", "1233", "3333")
    rewards = [ResolvedReward("judge", flaky(rating))]
    models = [artifact("sft")]
    with pytest.raises(StageFailed, match=r"sampled: 6 of 16 are missing .*overloaded"):
        run_evaluate(tmp_path / "strict", [], models=models, rewards=rewards)
    result, _ = run_evaluate(tmp_path / "loose", [], models=models, rewards=rewards, max_missing=0.5)
    assert result.metrics["sft/sampled"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert result.metrics["sft/sampled_low"] == mean_interval([1.0, 2 / 4, 1 / 4, 0.0]).low
    assert result.metrics["sft/sampled_high"] == mean_interval([1.0, 2 / 4, 3 / 4, 1.0]).high
    with pytest.raises(StageFailed, match="ratings/judge: 6 of 16 are missing"):
        run_sample(tmp_path / "sample", rewards=rewards)
    metrics, rows = run_sample(tmp_path / "kept", rewards=rewards, keep="all", max_missing=0.5)
    assert (metrics["completions"], metrics["missing_ratings/judge"]) == (16, 6)
    assert metrics["mean_reward"] == pytest.approx(7 / 10)
    assert rows
