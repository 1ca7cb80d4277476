"""Figures of a value model on held-out trajectories: what it explains, how far its values can be believed, calibration.

Papers: explained variance as PPO logs it; expected calibration error, Guo et al., 2017
(https://huggingface.co/papers/1706.04599), equation 3, here in the unit of the returns and with bins of equal size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

from posttrain_plugins.models.value_form import ValueForm

__all__ = ["HeldOut", "fitted", "measured"]

BINS = 10
STEPS = 50  # of Newton's method, which has two unknowns
HALVINGS = 30
RIDGE = 1.0
"""How many states of an uncalibrated model stand beside the held-out ones: where those can be told apart without a
mistake, the slope would have no bound."""
LEAST_SLOPE = 1e-3  # a negative one would turn the order of all values round


@dataclass(frozen=True)
class HeldOut:
    """A held-out trajectory.

    Args:
        number: of its row.
        group: the same for the same prompt.
        raw: (T,), what `ValueForm.raw` says of the states before its tokens.
        returns: (T,), what came.
    """

    number: int
    group: int
    raw: Sequence[float]
    returns: Sequence[float]


def fitted(form: ValueForm, rows: Sequence[HeldOut]) -> ValueForm:
    """Return the form with slope and intercept of the greatest likelihood (of `regression`, the least squares).

    Args:
        form: of the model, uncalibrated.
        rows: held-out trajectories; without any the form is returned as it is.
    """
    if not rows:
        return form
    raw, returns = _flat(rows)
    shares = form.share(returns)
    x = torch.stack([raw, torch.ones_like(raw)], 1)  # (S, 2)
    prior = torch.tensor([form.slope, form.intercept], dtype=torch.float64)
    if form.loss == "regression":
        eye = RIDGE * torch.eye(2, dtype=torch.float64)
        found = torch.linalg.solve(x.T @ x + eye, x.T @ shares + eye @ prior)
    else:
        found = _likeliest(x, shares.clamp(0.0, 1.0), prior)
    slope = max(float(found[0]), LEAST_SLOPE)
    return replace(form, slope=slope, intercept=float(found[1]))


def _likeliest(x: Tensor, shares: Tensor, prior: Tensor) -> Tensor:
    """Fit a logistic regression (2,) of shares (S,) on x (S, 2) by Newton's method, near to a prior."""

    def loss(at: Tensor) -> float:
        fit = functional.binary_cross_entropy_with_logits(x @ at, shares, reduction="sum")
        return float(fit + RIDGE / 2 * (at - prior).square().sum())

    found, now = prior, loss(prior)
    for _ in range(STEPS):
        predicted = (x @ found).sigmoid()
        gradient = x.T @ (predicted - shares) + RIDGE * (found - prior)
        curve = x.T @ ((predicted * (1 - predicted))[:, None] * x) + RIDGE * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(curve, gradient)
        # a full step overshoots where all predictions are near 0 and 1, and the curve is flat
        tried = next((s for s in (0.5**k * step for k in range(HALVINGS)) if loss(found - s) < now), None)
        if tried is None:
            break
        found, now = found - tried, loss(found - tried)
    return found


def measured(form: ValueForm, rows: Sequence[HeldOut], calibrate: bool) -> dict[str, float]:
    """Measure values of held-out trajectories against their returns.

    Args:
        form: of the model, uncalibrated.
        rows: held-out trajectories.
        calibrate: fit the calibration on half of the prompts for the other half, and the other way round.

    Returns:
        `explained_variance` of all states, `_start` of those before the first token, `_end` of those before the last;
        `calibration_error`; `ranked`, the share of pairs of a prompt's completions that the last value orders as their
        returns; `states`, `prompts`. Where returns do not vary, and where there is no such pair, a figure is left out.
    """
    if not rows:
        return {}
    values = _cross_fitted(form, rows) if calibrate else [form_values(form, row) for row in rows]
    returns = [torch.tensor(row.returns, dtype=torch.float64) for row in rows]
    found = {
        "explained_variance": _explained(torch.cat(values), torch.cat(returns)),
        "explained_variance_start": _explained(_at(values, 0), _at(returns, 0)),
        "explained_variance_end": _explained(_at(values, -1), _at(returns, -1)),
        "calibration_error": _calibration_error(torch.cat(values), torch.cat(returns)),
        "ranked": _ranked(rows, _at(values, -1).tolist(), _at(returns, -1).tolist()),
        "states": float(sum(map(len, values))),
        "prompts": float(len({row.group for row in rows})),
    }
    return {name: value for name, value in found.items() if value is not None}


def form_values(form: ValueForm, row: HeldOut) -> Tensor:
    """Return the values of a trajectory's states, (T,)."""
    return form.low + form.span * form.calibrated(torch.tensor(row.raw, dtype=torch.float64))


def _cross_fitted(form: ValueForm, rows: Sequence[HeldOut]) -> list[Tensor]:
    """Return the values of each row by the calibration of the prompts of the other half."""
    half = {group: i % 2 for i, group in enumerate(sorted({row.group for row in rows}))}
    forms = [fitted(form, [row for row in rows if half[row.group] != side]) for side in (0, 1)]
    return [form_values(forms[half[row.group]], row) for row in rows]


def _flat(rows: Sequence[HeldOut]) -> tuple[Tensor, Tensor]:
    parts = ([x for row in rows for x in of(row)] for of in (lambda row: row.raw, lambda row: row.returns))
    raw, returns = (torch.tensor(part, dtype=torch.float64) for part in parts)
    return raw, returns


def _at(rows: Sequence[Tensor], place: int) -> Tensor:
    return torch.stack([row[place] for row in rows])


def _explained(values: Tensor, returns: Tensor) -> float | None:
    spread = float(returns.var(unbiased=False))
    return 1.0 - float((returns - values).var(unbiased=False)) / spread if spread > 0 else None


def _calibration_error(values: Tensor, returns: Tensor) -> float:
    order = values.argsort()
    bins = [part for part in order.tensor_split(BINS) if len(part)]
    apart = [len(part) * abs(float(values[part].mean() - returns[part].mean())) for part in bins]
    return sum(apart) / len(values)


def _ranked(rows: Sequence[HeldOut], values: Sequence[float], returns: Sequence[float]) -> float | None:
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.group, []).append(i)
    pairs = [(i, j) for members in groups.values() for i, j in combinations(members, 2) if returns[i] != returns[j]]
    agreed = [
        0.5 if values[i] == values[j] else float((values[i] > values[j]) is (returns[i] > returns[j])) for i, j in pairs
    ]
    return sum(agreed) / len(agreed) if agreed else None
