"""What could not be answered is missing and not wrong: in figures, intervals, samples, and above a share a failure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_sample_evaluate import Scripted, artifact, run_evaluate, run_sample, script

from posttrain_plugins.engine.trace import failures_of, unanswered
from posttrain_plugins.errors import InputError, StageFailed
from posttrain_plugins.evaluation.figures import difference_interval, mean_interval
from posttrain_plugins.evaluation.missing import Missing
from posttrain_plugins.stages.evaluate import Evaluate
from posttrain_plugins.stages.sample import Sample
from posttrain_plugins.strategies.greedy import Greedy
from posttrain_plugins.types import Completion, ModelArtifact, ResolvedReward, ResolvedStrategy, Result


@dataclass
class Flaky(Scripted):
    """A script in which `x` is a completion that the server did not give."""

    def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
        for i, j, completion in super().generate(batch, seeds):
            failed = Completion("", finish_reason="error", error="HTTP 503: overloaded")
            yield i, j, failed if completion.text == "<answer>x</answer>" else completion


# right of what came: 2 of 3, 1 of 2, none came, 4 of 4
FLAKY = script("00x1", "x1x0", "xxxx", "3333")


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> dict[str, Scripted]:
    models = {"sft": Flaky("sft", FLAKY), "base": Flaky("base", script("0000", "2222", "2222", "4444"))}

    @contextmanager
    def opened(artifact: ModelArtifact, *_: Any) -> Iterator[Scripted]:
        yield models[artifact.name]

    monkeypatch.setattr("posttrain_plugins.backends.open.opened", opened)
    return models


def test_figures_are_over_what_was_answered(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    greedy = [ResolvedStrategy("greedy", Greedy())]
    models = [artifact("base"), artifact("sft", ancestors=("base",))]
    result, told = run_evaluate(tmp_path, greedy, models=models, max_missing=0.5)
    figures = result.metrics
    assert figures["sft/sampled"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert figures["sft/sampled_low"] == mean_interval([2 / 4, 1 / 4, 0.0, 1.0]).low
    assert figures["sft/sampled_high"] == mean_interval([3 / 4, 3 / 4, 1.0, 1.0]).high
    assert figures["sft/sampled/missing"] == 7
    assert figures["sft/greedy"] == figures["accuracy"] == 1.0  # 0 and 3 came, both right
    assert figures["sft/greedy_low"] == mean_interval([1.0, 0.0, 0.0, 1.0]).low
    assert figures["sft/greedy_high"] == 1.0
    assert figures["sft/greedy/missing"] == 2
    assert figures["sft/majority/missing"] == 1
    assert figures["sft/pass@4"] == 1.0  # of the one problem of which 4 came
    assert figures["sft/pass@2"] == pytest.approx((1 + 1 + 1) / 3)
    base = [1.0, 0.0, 1.0, 0.0]
    gain = [2 / 3 - 1, 1 / 2, 1.0]
    assert figures["sft/gain"] == pytest.approx(sum(gain) / 3)
    assert figures["sft/gain_low"] == difference_interval([2 / 4, 1 / 4, 0.0, 1.0], base).low
    assert figures["sft/gain_high"] == difference_interval([3 / 4, 3 / 4, 1.0, 1.0], base).high
    assert told.notes == [
        "sampled: 7 of 16 are missing (43.8 %): HTTP 503: overloaded",
        "majority: 1 of 4 are missing (25 %): HTTP 503: overloaded",
        "greedy: 2 of 4 are missing (50 %): HTTP 503: overloaded",
    ]
    measure = result.details["models"]["sft"]["measures"]["sampled"]
    assert (measure["asked"], measure["missing"]) == (16, 7)
    assert measure["missing_because"] == {"HTTP 503: overloaded": 7}
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert sum(line["model"] == "sft" and line["measure"] == "sampled" for line in lines) == 9
    assert all(line["completion"] for line in lines)


def test_nothing_is_wider_where_nothing_is_missing(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    result, told = run_evaluate(tmp_path, [], models=[artifact("base")])
    found = mean_interval([1.0, 0.0, 1.0, 0.0])
    assert result.metrics["base/sampled_low"] == found.low
    assert result.metrics["base/sampled_high"] == found.high
    assert not any("missing" in name for name in result.metrics)
    assert told.notes == []


def test_without_bounds_what_is_missing_is_as_far_as_the_others_went(
    tmp_path: Path, backends: dict[str, Scripted]
) -> None:
    def doubled(completions: list[Any], **columns: Any) -> list[float | None]:
        return [2.0 * float(completion[0]["content"][len("<answer>")]) for completion in completions]

    rewards = [ResolvedReward("doubled", doubled)]
    result, _ = run_evaluate(tmp_path, [], models=[artifact("sft")], rewards=rewards, max_missing=1.0)
    assert result.metrics["sft/sampled_low"] == mean_interval([2 / 4, 2 / 4, 0.0, 6.0]).low
    assert result.metrics["sft/sampled_high"] == mean_interval([8 / 4, 14 / 4, 6.0, 6.0]).high


def test_above_a_share_the_stage_fails_and_goes_on_in_the_next_run(
    tmp_path: Path, backends: dict[str, Scripted]
) -> None:
    options: dict[str, Any] = {"models": [artifact("sft")], "max_missing": 0.4}
    with pytest.raises(StageFailed, match=r"sampled: 7 of 16 are missing .*expected 40 % at most") as caught:
        run_evaluate(tmp_path, [], **options)
    assert "max_missing" in str(caught.value.hint)
    drawn = backends["sft"].drawn
    backends["sft"].script = script("0000", "1111", "2222", "3333")
    result, _ = run_evaluate(tmp_path, [], **options)
    assert backends["sft"].drawn - drawn == 7
    assert not any("missing" in name for name in result.metrics)


def test_sample_says_how_many_are_missing(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    with pytest.raises(StageFailed, match=r"completions: 7 of 16 are missing \(43.8 %\): HTTP 503: overloaded"):
        run_sample(tmp_path / "strict")
    metrics, rows = run_sample(tmp_path / "loose", max_missing=0.5)
    assert (metrics["missing_completions"], metrics["completions"], metrics["problems"]) == (7, 9, 4)
    assert [row["level"] for row in rows] == [0, 1, 3]
    strategy = ResolvedStrategy("greedy", Greedy())
    with pytest.raises(StageFailed, match="completions: 2 of 4 are missing"):
        run_sample(tmp_path / "greedy", strategy=strategy)
    assert run_sample(tmp_path / "again", strategy=strategy, max_missing=0.5)[0]["missing_completions"] == 2


@pytest.mark.parametrize("stage", [Evaluate, Sample])
@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_a_share(stage: Any, share: float) -> None:
    options: dict[str, Any] = {"models": ["m"]} if stage is Evaluate else {"model": "m"}
    with pytest.raises(InputError, match=r"max_missing is .*expected a share"):
        stage(dataset="d", rewards=["r"], max_missing=share, **options)


def drawn(*completions: dict[str, Any], **fields: Any) -> Result:
    trace = [{"kind": "generate", "completions": list(completions)}]
    return Result(**{"answer": None, "text": "", "trace": trace, **fields})


def test_an_empty_answer_of_a_model_that_was_heard_is_an_answer() -> None:
    failed, empty = {"text": "", "error": "HTTP 503"}, {"text": ""}
    assert unanswered(drawn(failed)) == "HTTP 503"
    assert unanswered(drawn(empty)) is None
    assert unanswered(drawn(failed, empty, text="7")) is None
    assert unanswered(drawn(empty, error="ValueError: oh")) == "ValueError: oh"
    assert unanswered(Result(answer=None, text="", stopped_by="tokens")) is None
    assert failures_of(drawn(failed, empty, failed)) == ["HTTP 503", "HTTP 503"]


def test_the_most_common_reason_is_told() -> None:
    assert str(Missing(200, ("a", "b", "b"))) == "3 of 200 are missing (1.5 %): b, and 1 for other reasons"
    Missing(200, ("a", "b")).check("it", 0.01)
    with pytest.raises(StageFailed, match="it: 3 of 200"):
        Missing(200, ("a", "b", "b")).check("it", 0.01)
