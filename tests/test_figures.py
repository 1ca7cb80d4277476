"""Intervals, differences, and pass @ k."""

from __future__ import annotations

import math

import numpy as np
import pytest

from posttrain_plugins.evaluation import figures


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    found = [figures.mean_interval((rng.random(60) < 0.7).astype(float).tolist(), draws=500) for _ in range(200)]
    assert 0.88 <= np.mean([interval.low <= 0.7 <= interval.high for interval in found]) <= 0.99


def test_pairing_narrows_a_difference() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(100)
    after = before + 0.1 + 0.01 * rng.standard_normal(100)
    gain = figures.difference_interval(after.tolist(), before.tolist())
    assert gain.low < 0.1 < gain.high
    assert gain.high - gain.low < 0.01


def test_figures_leave_out_what_nobody_could_judge() -> None:
    assert figures.mean_interval([1.0, math.nan]).mean == 1.0
    assert math.isnan(figures.mean_interval([]).mean)
    assert figures.sampled_accuracy([[1.0, None], [0.0, 1.0]]) == [1.0, 0.5]
    assert math.isnan(figures.sampled_accuracy([[None]])[0])


def test_pass_at_k_is_the_mean_over_subsets() -> None:
    from itertools import combinations

    right = [True, False, True, False, False]
    for k in range(1, 6):
        subsets = list(combinations(right, k))
        assert figures.pass_at_k(5, 2, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
