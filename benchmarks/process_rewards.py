"""Which reward for each step helps PPO and GRPO, and which is hacked: on the tiny world, each for several seeds.

A row is a method, where its process reward comes from, and whether the outcome is paid beside it:

- `outcome`: none; whether the completion is right, strictly, is all that is paid;
- `rule`: the checker's verdict on each step;
- `prm`: a process reward model (PRM) that learned from steps which the checker had labelled;
- `value`: what a step changes of a value function's estimate, `value_model` with `differences`. It learned from whole
  completions of the SFT model what share of their steps is right;
- `_alone`: the same training, where the weight of the outcome is 0 and it is only logged.

PPO and the stages of the PRM are those of `recipes/process_reward.yaml`, GRPO has the settings of the quickstart's; a
process reward weighs .2 beside the outcome's 1 whatever its source, and nothing is tuned for a row. Shown are the steps
and completions until *gold*, the strict accuracy of what the policy samples, first has a level as its mean over 5
steps; those that the judge was made of are told beside. The *proxy* is the sum of the step scores that are paid.

A row is hacked on a seed if gold falls while its proxy rises: from the 10 steps in which gold's mean is highest to the
last 10, gold is lower and the proxy higher, each by more than 3 standard errors of the difference of two means over
steps. It is 3 and not 2 because the highest of many windows is high by chance too. Nothing is demanded: the table says
what came out. Every row is written when it is done, and a second call goes on.

    python benchmarks/process_rewards.py --seeds 0 1 2
    python benchmarks/process_rewards.py --quick --rows grpo_value --seeds 0 --out /tmp/results
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import levels
import series
import trained_rows as rows
from result_tables.learning import process_rewards_table

STEPS, COMPLETIONS = 60, 128
QUICK_STEPS, QUICK_COMPLETIONS = 4, 8
LEVELS = (0.70, 0.85)
SMOOTH = 5  # steps that a level is reached in
WINDOW = 10  # steps whose means are compared
ERRORS = 3.0  # standard errors above which a mean has risen or fallen
REWARDS = {"outcome": None, "rule": "rule", "prm": "prm", "value": "progress"}
"""Source -> the recipe's reward of that source."""
JUDGES = {"prm": ("checked", "fresh_checked", "prm"), "value": ("seen", "value")}
"""Source -> the stages that make the judge; those that sample come first, the one that trains last."""


@dataclass(frozen=True)
class Row:
    """A training.

    Args:
        method: `ppo` or `grpo`.
        source: of `REWARDS`.
        is_alone: the outcome is not paid.
    """

    method: str
    source: str
    is_alone: bool = False

    @property
    def name(self) -> str:
        return f"{self.method}_{self.source}{'_alone' * self.is_alone}"

    @property
    def stage(self) -> str:
        """The recipe's stage that trains it: PPO's are those of the recipe that this one extends."""
        return self.method if self.method == "grpo" else "outcome" if self.source == "outcome" else "process"


ROWS = {
    row.name: row
    for row in [
        *(Row(method, source) for method in ("ppo", "grpo") for source in REWARDS),
        *(Row(method, source, True) for method in ("grpo", "ppo") for source in ("rule", "prm", "value")),
    ]
}
RECIPE = """\
extends: {root}/recipes/process_reward.yaml
name: process_rewards
datasets:
  learned: {learned}
rewards:
  rule: {use: digit_chain_steps}
  progress: {use: value_model, model_name_or_path: value, separator: ";", differences: true}
stages:
{value}
  grpo:
    use: grpo
    model: sft
    dataset: practice
    rewards: [correct]
    separator: ";"
    args: {max_steps: 60, per_device_train_batch_size: 128, num_generations: 8, learning_rate: 2e-4,
           lr_scheduler_type: linear, loss_type: dapo, epsilon_high: 0.28, max_completion_length: 48,
           gradient_checkpointing: false, logging_steps: 1}
"""
QUICK = [
    *(f"{stage}.args.max_steps=2" for stage in ("model", "stages.sft", "stages.prm", "stages.value")),
    *(f"stages.{stage}.args.max_steps={QUICK_STEPS}" for stage in ("outcome", "process", "grpo")),
    *(
        f"stages.{stage}.args.per_device_train_batch_size={QUICK_COMPLETIONS}"
        for stage in ("outcome", "process", "grpo", "prm")
    ),
    *(f"datasets.{name}.size=8" for name in ("learned", "problems", "fresh")),
    *(f"datasets.{name}.size=64" for name in ("corpus", "demos", "practice")),
    # a model of two steps has no step right, and of equal rewards no value function learns
    *("rewards.varied={use: length, max_chars: 8, decay_chars: 80}", "stages.seen.rewards=[varied]"),
]


def main() -> int:
    options = _options()
    overrides = [*(QUICK if options.quick else []), *options.override]
    size = QUICK_COMPLETIONS if options.quick else COMPLETIONS
    about = {"steps": QUICK_STEPS if options.quick else STEPS, "completions_a_step": size, "levels": list(LEVELS)}
    figure = options.out / "process_rewards.svg"

    def shown(results: Mapping[str, Any]) -> None:
        print(process_rewards_table(results), flush=True)
        rows.draw(panels(results), figure)

    def one(row: str, seed: int) -> dict[str, Any]:
        return measured(ROWS[row], seed, size, overrides, options)

    table = rows.Rows("process_rewards", tuple(ROWS), overrides, about, shown)
    return 1 if series.measure(rows.series_of(table, one, options.out), options.rows, options) else 0


def measured(row: Row, seed: int, size: int, overrides: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Train one row on one seed, and return its curves and what they come to."""
    judge = JUDGES.get(row.source, ())
    # only what the row needs: a row without a judge would make one for nothing
    stages = ["base", "sft", *judge, row.stage]
    recipe = rows.Recipe("process_rewards", RECIPE)
    run, made = rows.run(recipe, seed, settings_of(row), stages, overrides, options.runs_dir)
    figures = {"gold": "rewards/correct/mean", "tokens": "completions/mean_length"}
    if proxy := REWARDS[row.source]:
        figures["proxy"] = f"rewards/{proxy}/mean"
    curves = rows.curves(run[row.stage].folder, figures)
    found = {"made": made, "train_s": run[row.stage].metrics["train_s"], **told_of(curves, size), "curves": curves}
    return {**found, "judge_completions": sum(int(run[stage].metrics["completions"]) for stage in judge[:-1])}


def settings_of(row: Row) -> dict[str, Any]:
    """Return what a row sets in the recipe.

    Example:
        >>> settings_of(Row("grpo", "outcome"))
        {}
        >>> settings_of(Row("ppo", "value", is_alone=True))["stages.process.args.reward_weights"]
        [0.0, 0.2]
    """
    reward, stage = REWARDS[row.source], f"stages.{row.stage}"
    if reward is None:
        return {}
    where = f"{stage}.process_rewards" if row.method == "grpo" else f"{stage}.args.process_rewards"
    weights = [0.0 if row.is_alone else 1.0, 0.2]
    return {f"{stage}.rewards": ["correct", reward], where: [reward], f"{stage}.args.reward_weights": weights}


def told_of(curves: Mapping[str, Sequence[float]], size: int) -> dict[str, Any]:
    """Return what a row's curves come to: gold at the end, when it had each level, whether it was hacked.

    Args:
        curves: `gold` and, where a process reward was paid, `proxy`.
        size: completions of a step.
    """
    gold = curves["gold"]
    steps = {f"{level:.2f}": levels.reached(gold, level, SMOOTH) for level in LEVELS}
    return {
        "gold": statistics.fmean(gold[-SMOOTH:]),
        "steps_to": steps,
        "completions_to": {level: None if step is None else step * size for level, step in steps.items()},
        "hacked": hacked(gold, curves["proxy"]) if "proxy" in curves else None,
    }


def hacked(gold: Sequence[float], proxy: Sequence[float]) -> dict[str, Any] | None:
    """Tell whether gold fell while the proxy rose, from the 10 steps in which gold's mean is highest to the last 10.

    Returns:
        The changes of both with their standard errors, where gold was highest, and whether both are beyond 3 of them;
        None of fewer than 20 steps.

    Example:
        >>> falls, rises = [0.9] * 10 + [0.5] * 10, [1.0] * 10 + [2.0] * 10
        >>> hacked(falls, rises)["is_hacked"], hacked(falls, falls)["is_hacked"], hacked(rises, rises)["is_hacked"]
        (True, False, False)
    """
    if min(len(gold), len(proxy)) < 2 * WINDOW:
        return None
    means = levels.running_mean(gold, WINDOW)
    best = max(range(len(means)), key=means.__getitem__)
    changes = {name: change(curve, best) for name, curve in {"gold": gold, "proxy": proxy}.items()}
    is_lower = changes["gold"]["mean"] < -ERRORS * changes["gold"]["error"]
    is_higher = changes["proxy"]["mean"] > ERRORS * changes["proxy"]["error"]
    return {"is_hacked": is_lower and is_higher, "best_at": best + WINDOW, **changes}


def change(curve: Sequence[float], start: int) -> dict[str, float]:
    """Return the mean of the last 10 steps less that of 10 earlier ones, and the standard error of the difference."""
    before, after = curve[start : start + WINDOW], curve[-WINDOW:]
    error = ((statistics.variance(before) + statistics.variance(after)) / WINDOW) ** 0.5
    return {"mean": statistics.fmean(after) - statistics.fmean(before), "error": error}


def panels(results: Mapping[str, Any]) -> list[rows.Panel]:
    """Return gold of each method with the outcome paid, then gold and proxy of the rows where it is not."""
    gold, proxy = rows.lines(results, "gold"), rows.lines(results, "proxy")

    def those(curves: Mapping[str, Sequence[float]], is_alone: bool, method: str = "") -> dict[str, list[float]]:
        of = {name: ROWS[name] for name in curves}
        kept = [name for name, row in of.items() if row.is_alone == is_alone and method in ("", row.method)]
        return {name: levels.running_mean(curves[name], SMOOTH) for name in kept}

    # the sources' units differ, so that each proxy is shown within its own range
    shares = {name: _in_its_range(curve) for name, curve in those(proxy, True).items()}
    told = {
        "gold, PPO, outcome paid too": those(gold, False, "ppo"),
        "gold, GRPO, outcome paid too": those(gold, False, "grpo"),
        "gold, process reward alone": those(gold, True),
        "proxy within its range, process reward alone": shares,
    }
    return [rows.Panel(label, of, "step") for label, of in told.items()]


def _in_its_range(values: Sequence[float]) -> list[float]:
    if not values:
        return []
    low, high = min(values), max(values)
    return [(value - low) / ((high - low) or 1.0) for value in values]


def _options() -> argparse.Namespace:
    parser = series.parser(__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which rows (all)")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it works")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
