"""A scorer that is followed too far: told where it is, and not where best of k rises, or falls by noise alone."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from posttrain_plugins.evaluation.curves import Draws, curves
from posttrain_plugins.evaluation.proxy import best_of_k_kl, find_fall, proxy_against_gold


def draws(likes_right: float, count: int = 200, n: int = 8) -> list[Draws]:
    """Problems with half of the completions right; the scorer is the truth with this weight, and noise."""
    rng = random.Random(3)
    made = []
    for _ in range(count):
        metric = [float(rng.random() < 0.5) for _ in range(n)]
        scores = [likes_right * value + rng.gauss(0, 1) for value in metric]
        made.append(Draws(metric, [None] * n, {"rm": scores}))
    return made


@pytest.mark.parametrize(("likes_right", "is_over"), [(2.0, False), (0.0, False), (-1.0, True)])
def test_a_fall_is_told_where_the_scorer_likes_what_is_wrong(likes_right: float, is_over: bool) -> None:
    found = curves(draws(likes_right), 8)
    fall = find_fall(found["best/rm"])
    assert (fall is not None) == is_over
    if fall is not None:
        assert (fall.k, fall.over) == (8, 1)
        assert fall.change.high < 0
    told = proxy_against_gold(found["proxy/rm"], found["best/rm"])
    proxies = [told[str(k)]["proxy"]["mean"] for k in (1, 2, 4, 8)]
    assert proxies == sorted(proxies), "by its own word every scorer's best grows"
    gold = [told[str(k)]["gold"]["mean"] for k in (1, 8)]
    assert (gold[1] < gold[0] - 0.1) == is_over


def test_a_curve_that_rises_and_falls_again_is_over_optimised_from_its_top() -> None:
    values = {1: [0.4] * 50, 2: [0.6] * 50, 4: [0.7] * 50, 8: [0.5] * 50}
    fall = find_fall(values)
    assert fall is not None
    assert (fall.over, fall.change.mean) == (4, pytest.approx(-0.2))


def test_nothing_to_tell_of_one_draw_and_of_what_nobody_can_judge() -> None:
    assert find_fall({}) is None
    assert find_fall({1: [0.5, 0.5]}) is None
    assert find_fall({1: [math.nan] * 3, 2: [math.nan] * 3}) is None
    assert proxy_against_gold({1: [math.nan]}, {1: [math.nan]}) == {}


def test_the_kl_of_best_of_k_is_that_of_its_density() -> None:
    """Of a scorer without ties: the density of the best's quantile u is k u^(k-1)."""
    k, steps = 5, 200_000
    by_hand = sum(k * u ** (k - 1) * math.log(k * u ** (k - 1)) for u in ((i + 0.5) / steps for i in range(steps)))
    assert best_of_k_kl(k) == pytest.approx(by_hand / steps, abs=1e-6)


def test_both_curves_are_drawn_with_the_word(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from posttrain_plugins.evaluation.proxy_plot import draw_proxies

    found = curves(draws(-1.0), 8)
    told = proxy_against_gold(found["proxy/rm"], found["best/rm"])
    sampled = {"proxy": {"rm": told}, "over_optimised": {"rm": {"k": 8}}}
    details = {"metric": "correct", "models": {"dpo": {"measures": {"sampled": sampled}}, "sft": {"measures": {}}}}
    files = draw_proxies(details, tmp_path / "proxy_gold")
    assert ">dpo, best of k by rm: over-optimised<" in files[0].read_text()
    assert files[1].stat().st_size > 10_000
    assert draw_proxies({"metric": "correct", "models": {"sft": {"measures": {}}}}, tmp_path / "none") == []


def test_evaluate_says_it(tmp_path: Path) -> None:
    """In its notes, its record and its table, and not of a scorer that knows the answer."""
    from rich.console import Console

    from posttrain_plugins.cli.tables import at_k_table
    from posttrain_plugins.evaluation.measure import Curve, Measure

    found = curves(draws(-1.0), 8)
    tokens = dict.fromkeys((1, 2, 4, 8), 10.0)
    measure = Measure("sampled", {"correct": found["best/rm"][1]})
    measure.curves = {"best/rm": Curve(found["best/rm"], tokens)}
    measure.proxies = {"rm": found["proxy/rm"]}
    summary = measure.summary()
    assert summary["over_optimised"]["rm"]["high"] < 0
    console = Console(width=120, record=True)
    console.print(at_k_table({"models": {"dpo": {"measures": {"sampled": summary}}}}))
    assert "best@k by rm  over-optimised" in console.export_text()
    measure.curves = {"best/rm (oracle)": Curve(found["best/rm"], tokens, is_oracle=True)}
    assert measure.falls() == {}
