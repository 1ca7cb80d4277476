"""Figures over k completions from one log, the Pareto front and the plot: hand-made and enumerated numbers."""

from __future__ import annotations

import math
import random
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.evaluation import curves as curves_module
from posttrain_plugins.evaluation import plot
from posttrain_plugins.evaluation.curves import Draws, classes, curves, powers
from posttrain_plugins.evaluation.figures import pareto
from posttrain_plugins.evaluation.measure import Measure, mark_pareto
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.types import Completion, Problem

# --- over k ----------------------------------------------------------------------------------------------------------


def test_three_draws_by_hand() -> None:
    draws = Draws(metric=[1.0, 0.0, 0.0], answers=["a", "b", "b"], verifiers={"rm": [0.9, 0.3, 0.4]})
    found = curves([draws], 3)
    assert list(found) == ["pass", "maj", "weighted/rm", "best/rm", "proxy/rm"]
    assert [found["proxy/rm"][k][0] for k in (1, 2, 3)] == pytest.approx([1.6 / 3, 2.2 / 3, 0.9])
    assert found["pass"] == {1: [pytest.approx(1 / 3)], 2: [pytest.approx(2 / 3)], 3: [1.0]}
    assert found["maj"] == {1: [pytest.approx(1 / 3)], 2: [pytest.approx(2 / 3)], 3: [0.0]}  # of 1 to 1 the first
    assert found["weighted/rm"] == {1: [pytest.approx(1 / 3)], 2: [pytest.approx(2 / 3)], 3: [1.0]}  # 0.9 against 0.7
    assert found["best/rm"] == {1: [pytest.approx(1 / 3)], 2: [pytest.approx(2 / 3)], 3: [1.0]}


LONG = "this line is far too long to be taken for what was asked for"


def chosen(strategy: Any, texts: list[str], scores: list[float | None]) -> int:
    """Which of these completions a strategy answers with, told by its text."""
    steps = strategy(Problem("p"))
    response: Any = [Completion(text) for text in texts]
    next(steps)
    while True:
        try:
            request = steps.send(response)
        except StopIteration as stop:
            return texts.index(stop.value.text)
        response = [scores[texts.index(text)] for text in request.completions]


STRATEGIES = {
    "maj": SelfConsistency(),
    "weighted/rm": BestOfN("rm", weighted=True),
    "best/rm": BestOfN("rm"),
}


@pytest.mark.parametrize("seed", range(12))
def test_every_curve_is_the_mean_of_the_strategy_over_all_subsets(seed: int) -> None:
    rng = random.Random(seed)
    n = 6
    answers = [rng.choice(["7", "8", "7.0", None]) for _ in range(n)]
    texts = [f"try {i}, and so on\n" + (LONG if a is None else f"<answer>{a}</answer>") for i, a in enumerate(answers)]
    metric = [float(a in ("7", "7.0")) for a in answers]
    low = -2.0 if seed % 2 else 0.0  # half of the verifiers give logits
    scores = [rng.choice([None, rng.uniform(low, 2.0), 0.5]) for _ in range(n)]
    if seed % 2:
        scores[0] = -1.0
    draws = Draws(metric, answers, {"rm": scores})
    found = curves([draws], n)
    for name, strategy in STRATEGIES.items():
        for k in (1, 2, 4, 6):
            values = []
            for subset in combinations(range(n), k):
                of_subset = [scores[i] for i in subset]
                if (
                    name == "weighted/rm"
                    and any(s is not None and s < 0 for s in scores)
                    and min((s for s in of_subset if s is not None), default=-1.0) >= 0
                ):
                    of_subset = [None if s is None else _sigmoid(s) for s in of_subset]  # logits, whatever the subset
                at = chosen(strategy, [texts[i] for i in subset], of_subset)
                values.append(metric[subset[at]])
            assert found[name][k] == [pytest.approx(sum(values) / len(values))], (name, k)


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score))


def test_equal_verifier_scores_go_to_the_first_drawn() -> None:
    found = curves([Draws([0.0, 1.0, 1.0], ["a", "b", "c"], {"rm": [0.5, 0.5, None]})], 3)
    assert found["best/rm"][3] == [0.0]
    assert found["best/rm"][2] == [pytest.approx(1 / 3)]  # (0,1) -> 0, (0,2) -> 0, (1,2) -> 1
    assert found["weighted/rm"][3] == [0.0]


def test_what_the_metric_cannot_judge_is_left_out() -> None:
    found = curves(
        [Draws([None, 1.0], ["a", "a"], {"rm": [0.9, 0.1]}), Draws([None, None], [None, None], {"rm": [None, None]})], 2
    )
    assert found["best/rm"][1][0] == 1.0
    assert math.isnan(found["best/rm"][2][0])
    assert found["pass"] == {1: [0.5, 0.0], 2: [1.0, 0.0]}
    assert math.isnan(found["maj"][2][1])


def test_many_subsets_are_sampled_with_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    answers = [rng.choice("aab") for _ in range(12)]
    problems = [Draws([float(a == "b") for a in answers], answers)] * 2
    first = curves(problems, 12, seed=3)
    assert first == curves(problems, 12, seed=3)
    assert first["maj"][4] != curves(problems, 12, seed=4)["maj"][4]
    monkeypatch.setattr(curves_module, "SUBSETS", 10**6)
    exact = curves(problems, 12)
    assert first["maj"][1] == exact["maj"][1]
    assert first["maj"][12] == exact["maj"][12]
    assert first["maj"][4][0] == pytest.approx(exact["maj"][4][0], abs=0.1)
    assert first["pass"] == exact["pass"]


def test_powers_end_with_n() -> None:
    assert (powers(1), powers(5), powers(16)) == ([1], [1, 2, 4, 5], [1, 2, 4, 8, 16])


def test_classes_are_those_of_equivalent_answers() -> None:
    assert classes(["0.5", "x", None, "1/2", r"\frac{1}{2}", "X"]) == [0, 1, None, 0, 0, 1]


# --- the front -------------------------------------------------------------------------------------------------------


def test_pareto_by_hand() -> None:
    points = [(0.5, 10.0), (0.5, 12.0), (0.6, 12.0), (0.6, 12.0), (0.4, 9.0), (0.9, 90.0), (math.nan, 1.0)]
    assert pareto(points) == [True, False, True, True, True, True, False]


def test_an_oracle_does_not_compete() -> None:
    measures = [
        Measure("greedy", {"m": [0.0, 1.0]}, tokens_per_problem=10),
        Measure("vote", {"m": [1.0, 1.0]}, tokens_per_problem=80),
        Measure("slow", {"m": [1.0, 1.0]}, tokens_per_problem=90),
        Measure("best (oracle)", {"m": [1.0, 1.0]}, tokens_per_problem=5, is_oracle=True),
    ]
    mark_pareto(measures)
    assert [measure.is_pareto for measure in measures] == [True, True, False, False]
    assert [measure.summary()["pareto"] for measure in measures] == [True, True, False, False]


# --- the plot --------------------------------------------------------------------------------------------------------


def told(mean: float, tokens: float, **flags: Any) -> dict[str, Any]:
    interval = {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}
    return {"rewards": {"correct": interval}, "tokens_per_problem": tokens, "oracle": False, "pareto": False} | flags


POINTS = {str(k): {"mean": 0.4 + 0.1 * i, "low": 0.0, "high": 1.0, "tokens": 20.0 * k} for i, k in enumerate((1, 2, 4))}
MEASURES = {
    "sampled": told(0.4, 20, at_k={"maj": POINTS, "best/rm": POINTS, "pass": POINTS, "best/x (oracle)": POINTS}),
    "greedy": told(0.5, 18, pareto=True),
    "self_consistency(n=4) @ tokens=90": told(0.6, 80, pareto=True),
    "best_of_n(n=4, scorer=correct) (oracle)": told(0.9, 80, oracle=True),
    "took nothing": told(0.0, 0),
    "not judged": {**told(0.9, 9), "rewards": {}},
}
DETAILS = {"metric": "correct", "models": {name: {"measures": MEASURES} for name in ("base", "sft", "dpo", "grpo")}}


def test_the_plot_has_every_measure_and_is_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    svg, png = plot.draw(DETAILS, tmp_path / "accuracy_tokens")
    assert (svg.name, png.name) == ("accuracy_tokens.svg", "accuracy_tokens.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = svg.read_text()
    shown = [name for name in MEASURES if name not in ("not judged", "took nothing")]
    for label in [*shown, *DETAILS["models"], "Pareto front", "tokens per problem", "best of k by rm", "majority of k"]:  # type: ignore[misc]
        assert f">{label}<" in drawn, label
    assert ">not judged<" not in drawn
    again, _ = plot.draw(DETAILS, tmp_path / "again")
    assert again.read_text() == drawn


def test_an_oracle_is_hollow_and_the_front_is_a_line() -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    plot._panel(panel, "base", MEASURES, "correct", plot._looks(DETAILS["models"]))  # type: ignore[arg-type]
    points = {container.get_label(): container.lines[0] for container in panel.containers}
    assert "took nothing" not in points
    hollow = {name for name, line in points.items() if line.get_markerfacecolor() == "white"}
    assert hollow == {"best_of_n(n=4, scorer=correct) (oracle)"}
    (low,), (high,) = (bar[:, 1] for bar in _ends(panel.containers[0]))
    assert (low, high) == (pytest.approx(0.3), pytest.approx(0.5))
    lines = {line.get_label(): line for line in panel.get_lines()}
    assert list(lines["Pareto front"].get_xydata()[:, 0]) == [18, 80]
    assert list(lines["majority of k"].get_xydata()[:, 0]) == [20, 40, 80]


def test_a_strategy_has_one_colour_and_a_marker_for_each_budget() -> None:
    names = ["greedy", "greedy @ tokens=9", "bon @ tokens=9 (oracle)", "bon (oracle)", *map(str, range(20))]
    looks = plot._looks({"m": {"measures": dict.fromkeys(names)}})
    assert looks["greedy"] == ("C0", "o")
    assert looks["greedy @ tokens=9"] == ("C0", "s")
    assert (looks["bon @ tokens=9 (oracle)"], looks["bon (oracle)"]) == (("C1", "s"), ("C1", "o"))
    assert len(set(looks.values())) == len(names)


def test_long_labels_are_wrapped(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    long = f"compute_optimal(strategies=[{', '.join(['self_consistency(n=8)'] * 5)}])"
    svg, _ = plot.draw({"metric": "correct", "models": {"m": {"measures": {long: told(0.5, 9)}}}}, tmp_path / "a")
    assert f">{long}<" not in svg.read_text()
    assert ">compute_optimal(strategies=[" in svg.read_text()


def _ends(container: Any) -> Any:
    """The lower and upper end of an error bar."""
    ((segment,),) = (bars.get_segments() for bars in container.lines[2])
    return segment[:1], segment[1:]


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError):
        plot.draw(DETAILS, tmp_path / "accuracy_tokens")
