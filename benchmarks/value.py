"""How much a value function explains of what can be explained, on held-out problems of the tiny worlds.

From the state behind each step of held-out completions the policy goes on 16 times: what a state is worth is known to
the noise of 16 draws. Of the variance of their rewards no function of the state explains more than what lies between
states (the bound; the draws' own noise is taken off without bias: within a state with a share p of K draws right it is
p (1 - p) K / (K - 1)). The value function's explained variance is of the same draws, which it has never seen. What must
hold, else exit 1: on the mean over seeds, a `value` stage explains at least 80 % of the bound for each policy that it
learned from.

    python benchmarks/value.py --seeds 0 1 2
    python benchmarks/value.py --rows sft --seeds 0
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import series
import trained_rows
from result_tables.learning import value_table

ROLLOUTS = 16
SHARE = 0.8
DRAWS = 2000


@dataclass(frozen=True)
class Row:
    """A value function and the policy whose states it judges.

    Args:
        recipe: a packaged one.
        policy: the stage that goes on from the states.
        scorer: the stage whose values are looked at.
        stages: what both need, in the recipe's order.
        must: is the share of the bound a claim?
    """

    recipe: str
    policy: str
    scorer: str
    stages: tuple[str, ...]
    must: bool = True


_GUIDED = ("base", "sft", "seen", "fresh_seen", "value", "ppo", "seen_of_ppo", "fresh_of_ppo", "ppo_value")
ROWS = {
    "sft": Row("value_guided", "sft", "value", _GUIDED[:5]),
    "ppo": Row("value_guided", "ppo", "ppo_value", _GUIDED),
    "critic": Row("value_guided", "ppo", "ppo", _GUIDED[:6], must=False),
}
RECIPE = """\
extends: {root}/recipes/{recipe}.yaml
name: value_bound
datasets:
  judged: {use: digit_chain, split: test, size: 300, seed: 8}
stages:
  truth:
    use: sample
    model: {policy}
    dataset: judged
    rewards: [correct]
    num_generations: 1
    max_tokens: 48
    keep: steps
    labels: rollouts
    estimate: share
    num_rollouts: {rollouts}
    separator: ";"
"""


def main() -> int:
    options = _options()
    overrides = list(options.override)

    def shown(results: Mapping[str, Any]) -> None:
        print(value_table(results), flush=True)

    def one(row: str, seed: int) -> dict[str, Any]:
        return measured(ROWS[row], seed, overrides, options)

    table = trained_rows.Rows("value", tuple(ROWS), overrides, {"rollouts": ROLLOUTS}, shown, over_seeds)
    of_rows = trained_rows.series_of(table, one, options.out)
    failed = series.measure(of_rows, options.rows, options)
    missed = unmet({name: of_rows.standing(name) for name in options.rows})
    for what in missed:
        print(f"error: missed: {what}", file=sys.stderr)
    return 1 if failed or missed else 0


def over_seeds(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """What the rows miss together."""
    return {"missed": unmet(rows)}


def measured(row: Row, seed: int, overrides: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Make a value function on one seed, and return what it explains and what can be explained."""
    from posttrain_plugins.rewards.value_model import ValueModel

    text = RECIPE
    for name, value in {**vars(row), "rollouts": ROLLOUTS}.items():
        text = text.replace(f"{{{name}}}", str(value))
    recipe = trained_rows.Recipe("value_bound", text)
    run, made = trained_rows.run(recipe, seed, {}, [*row.stages, "truth"], overrides, options.runs_dir)
    data, model = run["truth"].data_path, run[row.scorer].model_path
    assert data is not None
    assert model is not None
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    scorer = ValueModel(str(model))
    steps = [one["completions"] for one in rows]
    values = scorer.step_scores([one["prompt"] for one in rows], ["".join(of_one) for of_one in steps], steps=steps)
    scorer.close()
    # behind the last step there is nothing to go on to
    shares = [one["labels"][:-1] for one in rows]
    return {"made": made, **explained(shares, [of_one[:-1] for of_one in values], ROLLOUTS)}


def explained(shares: Sequence[Sequence[float]], values: Sequence[Sequence[float]], rollouts: int) -> dict[str, Any]:
    """Return the explained variance of a value function, its bound, and their ratio with a 95 % interval.

    Args:
        shares: of each completion, the share of right rollouts from each of its states.
        values: of the same states.
        rollouts: from each state.

    Example:
        >>> found = explained([[1.0, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]], rollouts=4)
        >>> found["explained"], found["bound"], found["share"]
        (1.0, 1.0, 1.0)
    """
    kept = [i for i, of_one in enumerate(shares) if of_one]
    if not kept:
        raise ValueError("no completion has a state to go on from: all of them are one step")
    p, v = ([np.asarray(of[i], dtype=float) for i in kept] for of in (shares, values))
    # a row for each completion: states, rewards, their variance within a state, squared errors; sums, to draw from
    sums = np.array(
        [
            (len(a), a.sum(), (a * (1 - a)).sum() * rollouts / (rollouts - 1), (b * b - 2 * a * b + a).sum())
            for a, b in zip(p, v, strict=True)
        ]
    )

    def ratio(totals: Any) -> tuple[float, float]:
        count, right, within, errors = totals
        mean = right / count
        spread = mean * (1 - mean)
        return (1 - errors / count / spread, 1 - within / count / spread) if spread > 0 else (np.nan, np.nan)

    found, bound = ratio(sums.sum(axis=0))
    rng = np.random.default_rng(0)
    draws = [ratio(sums[rng.integers(0, len(sums), len(sums))].sum(axis=0)) for _ in range(DRAWS)]
    low, high = np.nanquantile([a / b for a, b in draws], [0.025, 0.975])
    return {
        "states": int(sums[:, 0].sum()),
        "accuracy": float(sums[:, 1].sum() / sums[:, 0].sum()),
        "explained": float(found),
        "bound": float(bound),
        "share": float(found / bound),
        "share_low": float(low),
        "share_high": float(high),
    }


def unmet(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """The claims that the figures miss."""
    missed = []
    for name, seeds in rows.items():
        if ROWS[name].must and seeds:
            share = float(np.mean([one["share"] for one in seeds.values()]))
            if share < SHARE:
                missed.append(f"{name}: {share:.3f} of the bound, expected {SHARE:.2f}")
    return missed


def _options() -> argparse.Namespace:
    parser = series.parser(__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which rows (all)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
