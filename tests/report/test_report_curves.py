"""Curves keep each minimum and maximum in few points; what grows is read once; what was sampled is chosen from."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from posttrain_plugins.record.figures import StepFigures
from posttrain_plugins.report.curves import MAX_POINTS, Curves, thinned
from posttrain_plugins.report.rollouts import MAX_STEPS, Rollouts
from posttrain_plugins.report.tail import Tail

# --- curves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 999, 1000, 1001, 1500, 9_999, 20_000])
@pytest.mark.parametrize("spike", [0.0, 0.37, 1.0])
@pytest.mark.parametrize("height", [1000.0, -1000.0])
def test_a_single_spike_is_kept_wherever_it_is(count: int, spike: float, height: float) -> None:
    values = [random.Random(i).random() for i in range(count)]
    place = round(spike * (count - 1))
    values[place] = height
    steps, kept = thinned(range(1, count + 1), values)
    assert len(kept) <= MAX_POINTS
    assert (place + 1, height) in zip(steps, kept, strict=True)
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, count)


def test_of_every_stretch_the_lowest_and_the_highest_stand() -> None:
    draw = random.Random(3)
    values = [draw.gauss(0, 1) for _ in range(10_000)]
    steps, kept = thinned(range(10_000), values)
    width = 10_000 // 499 + 1  # of a stretch: two points of each
    for begin in range(1, 9_900, 500):
        among = [value for step, value in zip(steps, kept, strict=True) if begin - width <= step <= begin + 2 * width]
        assert max(among) >= max(values[begin : begin + width])
        assert min(among) <= min(values[begin : begin + width])


def steps(*rows: tuple[int, dict[str, float]]) -> Curves:
    curves = Curves()
    curves.feed(StepFigures(step, 10, step * 0.5, None, figures) for step, figures in rows)
    return curves


def test_what_is_no_number_is_counted_and_not_drawn() -> None:
    curves = steps((1, {"loss": 2.0}), (2, {"loss": float("nan")}), (3, {"loss": float("inf")}), (4, {"loss": 1.0}))
    found = curves.by_name["loss"]
    assert (found.steps, found.values, found.lost) == ([1, 4], [2.0, 1.0], 2)


def test_a_step_that_comes_again_replaces_what_came_after_it() -> None:
    curves = steps((1, {"loss": 3.0}), (2, {"loss": 2.0}), (3, {"loss": 1.0}), (2, {"loss": 2.5}), (2, {"kl": 0.1}))
    assert (curves.by_name["loss"].steps, curves.by_name["loss"].values) == ([1, 2], [3.0, 2.5])
    assert curves.by_name["kl"].values == [0.1]


def test_what_tells_most_comes_first_and_a_figure_without_a_value_not_at_all() -> None:
    names = ("a", "learning_rate", "kl", "rewards/x/mean", "loss", "reward", "gone")
    curves = steps((1, {name: float("nan") if name == "gone" else 1.0 for name in names}))
    assert curves.names() == ["reward", "loss", "rewards/x/mean", "kl", "learning_rate", "a"]


def test_one_value_is_no_curve_and_comes_last() -> None:
    curves = steps((1, {"zeta": 1.0, "reward": 1.0}), (2, {"zeta": 2.0}))
    assert curves.names() == ["zeta", "reward"]


# --- files that grow -------------------------------------------------------------------------------------------------


def line(**values: object) -> str:
    return json.dumps(values) + "\n"


def test_each_line_is_read_once_and_a_torn_one_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    tail = Tail(file)
    assert list(tail.rows()) == []  # not there yet
    file.write_text(line(a=1) + '{"a": ')
    assert [row for _, row in tail.rows()] == [{"a": 1}]
    assert list(tail.rows()) == []
    with file.open("a") as stream:
        stream.write("2}\nno json\n[1]\n" + line(a=3))
    assert [row for _, row in tail.rows()] == [{"a": 2}, {"a": 3}]


def test_a_file_that_was_cut_or_replaced_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(line(a=1) + line(a=2))
    tail = Tail(file)
    assert tail.is_new() is False
    assert len(list(tail.rows())) == 2
    file.write_text(line(a=9))
    assert tail.is_new() is True
    assert [row for _, row in tail.rows()] == [{"a": 9}]
    (tmp_path / "b").write_text(line(a=7) * 9)
    (tmp_path / "b").replace(file)
    assert tail.is_new() is True
    assert len(list(tail.rows())) == 9


# --- what was sampled ------------------------------------------------------------------------------------------------


def sampled(step: int, prompt: str, scores: Sequence[float | None]) -> str:
    return "".join(
        line(
            prompt=prompt,
            completion=f"{prompt} {i}",
            rewards={"correct": score},
            weighted_reward=score,
            global_step=step,
            solution="7",
        )
        for i, score in enumerate(scores)
    )


def test_groups_are_those_of_one_prompt_at_one_step(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text(sampled(0, "a", [1, 0]) + sampled(0, "b", [0, None]) + sampled(1, "b", [None, None]))
    found = Rollouts(file)
    assert found.read() is True
    assert found.read() is False
    groups = found.chosen()
    assert [(group.step, group.prompt, group.mean) for group in groups] == [
        (1, "a", 0.5),
        (1, "b", 0.0),
        (2, "b", None),
    ]
    assert groups[0].columns == {"solution": "7"}
    assert [one.rewards for one in groups[1].completions] == [{"correct": 0}, {"correct": None}]


def test_the_best_the_worst_and_what_changed_are_found_among_many(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    lines = [sampled(step, f"p{step % 50}", [0.5, 0.5]) for step in range(2_000)]
    lines[777] = sampled(777, "good", [0.95, 0.95])
    lines[888] = sampled(888, "bad", [0.05, 0.05])
    lines[3], lines[1_203] = sampled(3, "moved", [0.3, 0.3]), sampled(1_203, "moved", [0.8, 0.8])
    file.write_text("".join(lines))
    found = Rollouts(file)
    found.read()
    kinds = {(group.step, group.prompt): group.kinds for group in found.chosen()}
    assert "best" in kinds[778, "good"]
    assert "worst" in kinds[889, "bad"]
    assert "changed" in kinds[4, "moved"] & kinds[1_204, "moved"]
    assert "first" in kinds[1, "p0"]
    assert "last" in kinds[2_000, "p49"]
    assert sum("step" in kind for kind in kinds.values()) == MAX_STEPS
    assert found.count == 4_000


def test_more_completions_than_a_page_can_hold_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text(sampled(0, "a", [1.0] * 64))
    found = Rollouts(file)
    found.read()
    (group,) = found.chosen()
    assert (len(group.completions), group.left_out) == (16, 48)
    assert group.mean == 1.0


def test_a_training_that_went_on_from_a_checkpoint_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(sampled(step, "a", [0.0, 1.0]) for step in range(9)))
    found = Rollouts(file)
    found.read()
    file.write_text("".join(sampled(step, "a", [1.0, 1.0]) for step in range(4)))
    found.read()
    assert found.steps() == [1, 2, 3, 4]
    assert all(group.mean == 1.0 for group in found.chosen())
