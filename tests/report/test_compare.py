"""Two runs: what differs and nothing else, why stages were made again, what was broken, and whether it is noise."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from made_runs import VERSIONS, Made, make

from posttrain_plugins.record.runs import read_run
from posttrain_plugins.report.compare import Comparison, compare, headline
from posttrain_plugins.report.compare_page import compare_page
from posttrain_plugins.report.problems import Answers, paired


def both(tmp_path: Path, a: Made, b: Made) -> Comparison:
    return compare(*(read_run(make(tmp_path / name, made)) for name, made in (("a", a), ("b", b))))


def of(found: Comparison, model: str, way: str = "greedy") -> Any:
    (one,) = [one for one in found.to_json()["results"] if (one["model"], one["way"]) == (model, way)]
    return one


def test_one_other_value_is_one_line_and_names_what_was_made_again_because_of_it(tmp_path: Path) -> None:
    found = both(tmp_path, Made(beta=0.1), Made(beta=0.5))
    assert [str(change) for change in found.recipe] == ["stages.grpo.args.beta: 0.1 → 0.5"]
    assert found.versions == []
    assert [(one.stage, one.reasons()) for one in found.remade] == [
        ("grpo", ["args.beta: 0.1 → 0.5"]),
        ("eval", ["made from another grpo"]),
    ]
    assert headline(found).startswith("One line differs: stages.grpo.args.beta: 0.1 → 0.5.")


def test_the_same_run_twice_has_no_difference(tmp_path: Path) -> None:
    found = both(tmp_path, Made(), Made())
    assert found.is_same
    assert headline(found) == "No difference."
    assert {one["verdict"] for one in found.to_json()["results"]} == {"no difference"}
    assert (found.recipe, found.remade, found.versions, found.moved) == ([], [], [], [])


def test_twenty_planted_regressions_among_two_hundred_problems_are_all_found(tmp_path: Path) -> None:
    draw = random.Random(0)
    before = [float(draw.random() < 0.7) for _ in range(200)]
    planted = sorted(draw.sample([i for i, score in enumerate(before) if score == 1.0], 20))
    after = [0.0 if i in planted else score for i, score in enumerate(before)]
    scores = {"base": [0.0] * 200, "sft": before}
    found = both(tmp_path, Made(scores={**scores, "grpo": before}), Made(scores={**scores, "grpo": after}, beta=0.5))
    grpo = of(found, "grpo")
    assert sorted(map(int, grpo["broken"])) == planted
    assert grpo["fixed"] == []
    mean, low, high = grpo["difference"]
    assert mean == pytest.approx(-0.1)
    assert low < high < 0
    assert grpo["verdict"] == "worse"
    assert "grpo is worse, -0.100" in headline(found)
    assert of(found, "sft")["verdict"] == "no difference"
    html = compare_page((tmp_path / "a", tmp_path / "b"), ("a", "b"))
    block = html.split('data-pair="grpo" data-way="greedy"')[1].split("</section>")[0]
    for problem in planted:
        assert f"#{problem}</span>" in block
    assert block.count('class="badge broken"') == 20


def test_noise_is_called_noise(tmp_path: Path) -> None:
    draw = random.Random(1)
    a, b = ([float(draw.random() < 0.5) for _ in range(200)] for _ in range(2))
    found = both(tmp_path, Made(scores={"base": [0.0] * 200, "sft": a}), Made(scores={"base": [0.0] * 200, "sft": b}))
    sft = of(found, "sft")
    assert sft["difference"][1] < 0 < sft["difference"][2]
    assert sft["verdict"] == "no difference"
    assert "beyond noise" in headline(found)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Made(scores={"base": [0.0] * 19, "sft": [1.0] * 19}), "the test sets differ: 20 problems and 19"),
        (Made(prompts={3: "another question"}), "the test sets differ: 1 of 20 problems have another prompt"),
        (Made(metric="other"), "the metric is correct in one and other in the other"),
    ],
)
def test_what_was_not_measured_alike_has_no_difference_and_it_is_said_why(
    tmp_path: Path, other: Made, told: str
) -> None:
    found = both(tmp_path, Made(), other)
    results = found.to_json()["results"]
    assert results
    for one in results:
        assert one["difference"] is None
        assert told in one["reason"]
    assert found.moved == []
    assert told in headline(found).lower()


def test_a_reward_whose_code_is_another_is_another_metric(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    manifest = tmp_path / "b/latest/eval/manifest.json"
    content = json.loads(manifest.read_text())
    content["parts"]["rewards[0].source"] = "0" * 64
    manifest.write_text(json.dumps(content))
    found = compare(read_run(tmp_path / "a"), read_run(tmp_path / "b"))
    assert {one["reason"] for one in found.to_json()["results"]} == {
        "no difference can be told: what scores is another (rewards[0].source)"
    }


def test_problems_are_paired_by_id_and_not_by_row() -> None:
    def answers(scores: dict[str, float]) -> dict[str, Answers]:
        return {id: Answers(f"q{id}", {}, [f"a{id}"], [score]) for id, score in scores.items()}

    found = paired(answers({"0": 1.0, "1": 0.0, "2": 1.0}), answers({"2": 1.0, "1": 1.0, "0": 0.0}))
    assert {pair.problem: pair.kind for pair in found.pairs} == {"0": "broken", "1": "fixed", "2": "same"}


def test_what_nobody_could_judge_is_no_regression() -> None:
    before = {"0": Answers("q", {}, ["x"], [1.0]), "1": Answers("r", {}, ["x"], [1.0])}
    after = {"0": Answers("q", {}, ["y"], [None]), "1": Answers("r", {}, ["y"], [0.0])}
    assert [pair.problem for pair in paired(before, after).pairs] == ["1"]


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ([1, 1, 0, 0], [1, 0, 0, 0], "broken"),
        ([0, 0, 1], [1, 1, 1], "fixed"),
        ([1, 1, 1, 0], [1, 1, 0, 0], "worse"),
        ([0, 0, 0, 0], [1, 0, 0, 0], "better"),
        ([1, 0], [0, 1], "same"),
        ([7.0], [3.0], "worse"),
        ([-1.0], [0.9], "better"),
    ],
)
def test_broken_and_fixed_are_what_crossed_one_half(before: list[float], after: list[float], kind: str) -> None:
    sides = [{"0": Answers("q", {}, ["x"] * len(scores), list(scores))} for scores in (before, after)]
    assert [pair.kind for pair in paired(*sides).pairs] == [kind]


def test_an_evaluation_of_models_that_were_made_again_since_is_left_out_and_told(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    manifest = tmp_path / "b/latest/grpo/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "key": "e" * 64}))
    found = compare(read_run(tmp_path / "a"), read_run(tmp_path / "b"))
    assert found.measured == []
    assert found.notes == ["b: 'eval' measured models that were made again since; its figures are left out"]


def test_versions_that_differ_are_told_once(tmp_path: Path) -> None:
    found = both(tmp_path, Made(), Made(versions={**VERSIONS, "trl": "1.17.0"}))
    assert [str(change) for change in found.versions] == ["trl: 1.16.0 → 1.17.0"]
    assert not found.is_same


def test_secrets_that_differ_are_no_difference_that_is_shown(tmp_path: Path) -> None:
    a, b = ({"api_key": f"s3cr3tvalue9{i}", "model": {"use": "x", "layers": [1, i]}} for i in (1, 2))
    found = both(tmp_path, Made(recipe=a), Made(recipe=b))
    assert [str(change) for change in found.recipe] == ["model.layers[1]: 1 → 2"]
    assert "s3cr3t" not in json.dumps(found.to_json()) + compare_page((tmp_path / "a", tmp_path / "b"), ("a", "b"))


def test_a_part_that_only_one_has_is_one_line(tmp_path: Path) -> None:
    found = both(tmp_path, Made(), Made(recipe={"rewards": {"x": {"use": "length"}}}))
    assert [str(change) for change in found.recipe] == ["rewards: (absent) → {'x': {'use': 'length'}}"]


def test_the_page_overlays_both_and_names_two_of_one_name_apart(tmp_path: Path) -> None:
    folders = make(tmp_path / "one/r"), make(tmp_path / "two/r", Made(beta=0.7))
    html = compare_page(folders, ("r", "r"))
    data = json.loads(html.split('id="curves-data">')[1].split("</script>")[0])
    assert data["runs"] == ["r (first)", "r (second)"]
    assert set(data["stages"][0]["figures"][0]["runs"]) == set(data["runs"])
