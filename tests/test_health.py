"""Verdicts on made-up trainings: each can fire, each can stay quiet, and noise fires none."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping

import pytest

from posttrain_plugins.record.figures import StepFigures
from posttrain_plugins.record.health import MIN_POINTS, Verdict, health

Curve = Callable[[float], float]  # of the share of the training that is done

RISING: Curve = lambda t: 0.2 + 0.6 * t  # noqa: E731
LEVEL: Curve = lambda t: 0.5  # noqa: E731
WELL: dict[str, Curve] = {
    "reward": RISING,
    "rewards/correct/mean": RISING,
    "rewards/steps/mean": RISING,
    "kl": lambda t: 0.02 * t,
    "entropy": lambda t: 0.8 - 0.3 * t,
    "completions/mean_length": lambda t: 100 + 20 * t,
    "completions/clipped_ratio": lambda t: 0.02,
    "frac_reward_zero_std": lambda t: 0.1 + 0.2 * t,
    "value/explained_variance": lambda t: 0.6 * t,
    "clip_ratio/region_mean": lambda t: 0.05,
    "grad_norm": lambda t: 1.0,
    "loss": lambda t: 0.0,
    "eval_reward": RISING,
}


def training(curves: Mapping[str, Curve], steps: int = 100, noise: float = 0.02, seed: int = 0) -> list[StepFigures]:
    chance = random.Random(seed)
    return [
        StepFigures(
            step,
            steps,
            float(step),
            0.0,
            {name: curve(step / steps) + chance.gauss(0, noise) for name, curve in curves.items()},
        )
        for step in range(1, steps + 1)
    ]


def ill(verdicts: list[Verdict]) -> dict[str, str]:
    return {verdict.name: verdict.state for verdict in verdicts if verdict.state != "ok"}


def test_a_training_that_is_well() -> None:
    found = health(training(WELL))
    assert ill(found) == {}
    names = {"kl", "truncated", "no_signal", "value", "clip_fraction", "entropy", "length", "proxy", "gradient"}
    assert {verdict.name for verdict in found} == names
    assert all(verdict.since_step is None for verdict in found)


CASES: dict[str, tuple[dict[str, Curve], str, int | None]] = {
    # what differs from a training that is well -> the state, and about the step since which it is so
    "kl": ({"kl": lambda t: 0.5 * t}, "warn", 45),
    "kl ": ({"kl": lambda t: 3 * t}, "bad", 38),
    "truncated": ({"completions/clipped_ratio": lambda t: 0.2 if t > 0.5 else 0.0}, "warn", 55),
    "truncated ": ({"completions/clipped_ratio": lambda t: 0.9}, "bad", 10),
    "no_signal": ({"frac_reward_zero_std": lambda t: 0.7}, "warn", 10),
    "no_signal ": ({"frac_reward_zero_std": lambda t: 0.98}, "bad", 10),
    "value": ({"value/explained_variance": lambda t: 0.1}, "warn", 10),
    "value ": ({"value/explained_variance": lambda t: -0.5}, "bad", 10),
    "clip_fraction": ({"clip_ratio/region_mean": lambda t: 0.3}, "warn", 10),
    "clip_fraction ": ({"clip_ratio/region_mean": lambda t: 0.6}, "bad", 10),
    "entropy": ({"reward": LEVEL, "entropy": lambda t: 0.8 * max(0.12, 1 - 3 * t)}, "warn", 31),
    "entropy ": ({"reward": LEVEL, "entropy": lambda t: 0.8 * max(0.01, 1 - 3 * t)}, "bad", 36),
    "length": ({"reward": LEVEL, "completions/mean_length": lambda t: 100 + 100 * t}, "warn", 60),
    "length ": ({"reward": LEVEL, "completions/mean_length": lambda t: 100 + 400 * t}, "bad", 71),
    "proxy": ({"rewards/correct/mean": lambda t: 0.6 - 0.12 * abs(t - 0.4) / 0.6}, "warn", 43),
    "proxy ": ({"rewards/correct/mean": lambda t: 0.2 + t if t < 0.4 else 0.6 - 0.8 * (t - 0.4)}, "bad", 44),
    "gradient": ({"grad_norm": lambda t: 40.0 if t == 0.95 else 1.0}, "warn", 95),
    "gradient ": ({"grad_norm": lambda t: 1.0 if t < 0.5 else 30.0}, "bad", None),
}


@pytest.mark.parametrize("case", CASES)
def test_each_verdict_can_fire(case: str) -> None:
    changed, state, since = CASES[case]
    name = case.strip()
    curves = {**WELL, **changed}
    found = health(training(curves, noise=0.01))
    assert ill(found) == {name: state}
    (verdict,) = [verdict for verdict in found if verdict.state != "ok"]
    assert verdict.cure
    assert verdict.source
    if since is not None:
        assert verdict.since_step is not None
        assert abs(verdict.since_step - since) <= 8, str(verdict)
    text = str(verdict)
    assert verdict.figure in text
    assert f"{verdict.threshold:g}" in text
    assert verdict.cure in text


def test_a_held_out_reward_that_falls_while_the_trained_one_rises() -> None:
    """Evaluations are few."""
    lines = training({**WELL, "eval_reward": lambda t: 0.5 + t if t < 0.4 else 0.9 - 0.7 * (t - 0.4)}, noise=0.005)
    rare = [
        StepFigures(
            line.step, line.total, line.seconds, line.at, {n: v for n, v in line.figures.items() if n != "eval_reward"}
        )
        if line.step % 10
        else line
        for line in lines
    ]
    (verdict,) = [verdict for verdict in health(rare) if verdict.state != "ok"]
    assert (verdict.name, verdict.figure, verdict.state) == ("proxy", "eval_reward", "bad")


@pytest.mark.parametrize(
    ("curve", "state"),
    [
        (lambda t: 2 - t, {}),
        (lambda t: 2 - t if t < 0.5 else 1.5 + 0.6 * (t - 0.5), {"loss": "ok"}),
        (lambda t: 2 - 2 * t if t < 0.5 else 1 + 1.2 * (t - 0.5), {"loss": "warn"}),
        (lambda t: 2 - 2 * t if t < 0.5 else 1 + 6 * (t - 0.5), {"loss": "bad"}),
    ],
    ids=["falls", "up a little", "up again", "diverges"],
)
def test_a_loss_that_goes_up_again(curve: Curve, state: dict[str, str]) -> None:
    found = health(training({"loss": curve, "grad_norm": WELL["grad_norm"]}))
    assert {verdict.name for verdict in found} == {"loss", "gradient"}
    assert ill(found) == {name: one for name, one in state.items() if one != "ok"}


def test_what_falls_while_the_reward_rises_is_its_price() -> None:
    spent: dict[str, Curve] = {
        "entropy": lambda t: 0.8 * max(0.01, 1 - t),
        "completions/mean_length": lambda t: 100 + 400 * t,
    }
    assert ill(health(training({**WELL, **spent}))) == {}


@pytest.mark.parametrize("steps", [1, 5, MIN_POINTS - 1])
def test_a_short_training_gets_no_verdict(steps: int) -> None:
    awful: dict[str, Curve] = {**WELL, "kl": lambda t: 9.0, "completions/clipped_ratio": lambda t: 1.0}
    assert [verdict for verdict in health(training(awful, steps)) if not verdict.figure.startswith("eval_")] == []
    assert health([]) == []


def test_figures_that_are_no_numbers_are_passed_over() -> None:
    lines = training({**WELL, "kl": lambda t: math.nan, "reward": lambda t: math.inf})
    names = {verdict.name for verdict in health(lines)}
    assert not {"kl", "entropy", "length", "proxy"} & names
    assert "truncated" in names


@pytest.mark.parametrize("steps", [25, 60, 400])
def test_noise_is_no_illness(steps: int) -> None:
    """A training in which nothing happens: no alarm in any of sixty."""
    still: dict[str, Curve] = {name: (lambda t, curve=curve: curve(0.5)) for name, curve in WELL.items()}  # type: ignore[misc]
    still |= {"frac_reward_zero_std": lambda t: 0.2, "completions/clipped_ratio": lambda t: 0.0}
    alarms = [ill(health(training(still, steps, noise=0.05, seed=seed))) for seed in range(60)]
    assert [found for found in alarms if found] == []
