"""What makes PPO's critic poor: one setting after the other is taken away, on the tiny world, each for several seeds.

Each row keeps what the row before it changed:

1. a critic that starts at 0, with as many passes as the policy, both gradients clipped as one at norm 1 with `vf_coef`
   .1, values clipped at .2;
2. `critic_max_grad_norm`: its own clipping;
3. `cliprange_value: null`;
4. `critic_iterations: 4`;
5. `critic: {from: value}`: it starts from a value model of the SFT model's own completions;
6. `normalize_returns`.

Shown are, rollout by rollout, the variance that the critic explains before it learns from them, and the policy's
reward; at the end, the variance that it explains of held-out completions of the policy, whose return is their reward.
Nothing is demanded: the table says what came out. Every row is written when it is done, and a second call goes on.

    python benchmarks/critic.py --seeds 0 1 2
    python benchmarks/critic.py --quick --rows zero --seeds 0 --out /tmp/results
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import series
import trained_rows as rows
from result_tables.learning import critic_table

from posttrain_plugins.text import to_text

ROLLOUTS, MINIBATCHES = 40, 4
ROWS: dict[str, dict[str, Any]] = {
    "zero": {},
    "own_clip": {"args.critic_max_grad_norm": 1.0},
    "no_value_clip": {"args.cliprange_value": None},
    "passes": {"args.critic_iterations": 4},
    "value": {"critic": {"from": "value"}},
    "normalised": {"args.normalize_returns": True},
}
"""Row -> what it changes beside all rows before it."""
QUICK = [
    *("model.args.max_steps=2", "stages.sft.args.max_steps=2", "stages.value.args.max_steps=2"),
    *("datasets.learned.size=8", "datasets.exam.size=4", "stages.ppo.args.per_device_train_batch_size=4"),
]
RECIPE = """\
extends: {root}/recipes/_tiny_sft.yaml
name: critic
datasets:
  learned: {learned}
  exam: {use: digit_chain, split: test, size: 300}
stages:
{value}
  ppo:
    use: ppo
    model: sft
    dataset: practice
    rewards: [steps]
    args: {per_device_train_batch_size: 32, steps_per_generation: 4, num_iterations: 1, learning_rate: 5e-5,
           critic_learning_rate: 1e-3, lr_scheduler_type: constant, kl_coef: 0.0, max_completion_length: 48,
           gradient_checkpointing: false, logging_steps: 1}
  judged: {use: sample, model: ppo, dataset: exam, rewards: [steps], num_generations: 4, max_tokens: 48, keep: all}
"""


def main() -> int:
    options = _options()
    overrides = [*(QUICK if options.quick else []), *options.override]

    def shown(results: Mapping[str, Any]) -> None:
        print(critic_table(results), flush=True)
        labels = {"explained": "explained variance", "reward": "reward"}
        rows.draw([rows.Panel(label, rows.lines(results, key), "rollout") for key, label in labels.items()], figure)

    figure = options.out / "critic.svg"
    table = rows.Rows("critic", tuple(ROWS), overrides, {"rollouts": _rollouts(options)}, shown)
    one = rows.series_of(table, lambda row, seed: measured(row, seed, overrides, options), options.out)
    return 1 if series.measure(one, options.rows, options) else 0


def measured(row: str, seed: int, overrides: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Train one row on one seed, and return its curves and what its critic explains of held-out completions."""
    settings = {f"stages.ppo.{key}": value for key, value in settings_of(row, _rollouts(options)).items()}
    # only what the row needs: a row without a value model would make one for nothing
    stages = ["base", "sft", *(["seen", "value"] if "stages.ppo.critic" in settings else []), "ppo", "judged"]
    run, made = rows.run(rows.Recipe("critic", RECIPE), seed, settings, stages, overrides, options.runs_dir)
    figures = {"explained": "value/explained_variance", "reward": "rewards/steps/mean"}
    curves = rows.curves(run["ppo"].folder, figures)
    if len(curves["reward"]) != _rollouts(options):
        raise ValueError(f"{len(curves['reward'])} rewards were logged of {_rollouts(options)} rollouts")
    model, data = run["ppo"].model_path, run["judged"].data_path
    assert model is not None
    assert data is not None
    texts = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    return {
        "made": made,
        "curves": curves,
        "held_out": explained(model, texts),
        "train_s": run["ppo"].metrics["train_s"],
    }


def settings_of(name: str, rollouts: int) -> dict[str, Any]:
    """Return what a row sets, those before it with it; as many policy steps whatever passes the critic has.

    Example:
        >>> settings_of("own_clip", 2)
        {'args.critic_max_grad_norm': 1.0, 'args.max_steps': 8}
    """
    found: dict[str, Any] = {}
    for row, changes in ROWS.items():
        found |= changes
        if row == name:
            break
    passes = found.get("args.critic_iterations", 1)
    return {**found, "args.max_steps": rollouts * MINIBATCHES * passes}


def explained(model: Path, judged: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the share of the returns' variance that a critic explains, over the states behind each character.

    Args:
        model: the policy's folder, with its critic.
        judged: `prompt`, `completion` and `reward`.

    Returns:
        None where all returns are equal.
    """
    import numpy as np

    from posttrain_plugins.rewards.value_model import ValueModel

    critic = ValueModel(str(model))
    kept = [row for row in judged if to_text(row["completion"])]
    completions = [row["completion"] for row in kept]
    # every character a step: a token ends with one, and its value is that of the state behind it
    steps = [list(to_text(completion)) for completion in completions]
    values = critic.step_scores([row["prompt"] for row in kept], completions, steps=steps)
    critic.close()
    returns = np.concatenate([np.full(len(of), float(row["reward"])) for of, row in zip(values, kept, strict=True)])
    spread = float(np.var(returns))
    # of the squared error, as in `value.py`: one that is too high everywhere explains nothing
    return 1.0 - float(np.mean((returns - np.concatenate(values)) ** 2)) / spread if spread > 0 else None


def _rollouts(options: argparse.Namespace) -> int:
    return 2 if options.quick else int(options.rollouts)


def _options() -> argparse.Namespace:
    parser = series.parser(__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which rows (all)")
    parser.add_argument("--rollouts", type=int, default=ROLLOUTS, help=f"of 128 completions each ({ROLLOUTS})")
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that it works")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
