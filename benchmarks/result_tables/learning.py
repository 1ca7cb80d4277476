"""Tables of value functions, of PPO's critics and of process rewards."""

from __future__ import annotations

from collections.abc import Sequence

import levels

from result_tables import text
from result_tables.text import Json

__all__ = ["critic_table", "process_rewards_table", "value_table"]

LEVEL = 0.95
"""Of the reward, that PPO's critics are compared at."""


def critic_table(results: Json) -> str:
    """One row for each setting of PPO's critic: what it explains of held-out completions, and the policy's level."""
    last = max(1, results["rollouts"] // 5)
    rows = []
    for name, seeds in results["rows"].items():
        held_out = [one["held_out"] for one in seeds.values() if one["held_out"] is not None]
        cells = [f"{text.average(held_out)} ({', '.join(f'{value:.2f}' for value in held_out)})" if held_out else ""]
        for key, part in (
            ("explained", slice(0, last)),
            ("explained", slice(-last, None)),
            ("reward", slice(-last, None)),
        ):
            # returns that are all equal explain nothing, and have no line
            ends = [text.mean_of(one["curves"][key][part]) for one in seeds.values() if one["curves"][key]]
            cells.append(text.average(ends) if ends else "")
        reached = [levels.reached(one["curves"]["reward"], LEVEL, 3) for one in seeds.values()]
        cells.append(", ".join("never" if count is None else str(count) for count in reached))
        rows.append([name, *cells])
    explained = ["held-out explained variance (by seed)", f"in the first {last} rollouts", f"in the last {last}"]
    head = ["critic", *explained, "reward", f"rollouts to {LEVEL:.2f}"]
    note = (
        "Each row keeps what the rows above it changed. Held out: completions of the trained policy on other problems, "
        "their reward the return of each state. In rollouts: before the critic has learned from them; reward: of the "
        f"last {last}. Rollouts, of 128 completions each, until the mean reward of three in a row is {LEVEL:.2f}, by "
        "seed."
    )
    return f"{text.table(head, rows)}\n\n{note}"


def value_table(results: Json) -> str:
    """One row for each value function and policy: explained variance, what can be explained, and the share."""
    rows = []
    for name, seeds in results["rows"].items():
        found = list(seeds.values())
        shares = ", ".join(f"{one['share']:.2f} [{one['share_low']:.2f}, {one['share_high']:.2f}]" for one in found)
        cells = [text.average([one[key] for one in found]) for key in ("explained", "bound")]
        share = text.average([one["share"] for one in found], 3)  # .80 is asked for, and two digits may hide a miss
        rows.append([name, *cells, share, shares, text.average([one["states"] for one in found], 0)])
    head = ["value function, of", "explained variance", "bound", "share of the bound", "by seed [95 %]", "states"]
    note = (
        f"Of held-out problems; from each state {results['rollouts']} completions, whose rewards are what is to be "
        "explained. The bound is what the best function of the state could explain; intervals over problems."
    )
    return f"{text.table(head, rows)}\n\n{note}"


def process_rewards_table(results: Json) -> str:
    """One row for each method and process reward: when gold has each level, and whether it fell as the proxy rose."""
    told_levels = [f"{level:.2f}" for level in results["levels"]]
    rows = []
    for name, seeds in results["rows"].items():
        method, source, *alone = name.split("_")
        found = list(seeds.values())
        gold = [one["gold"] for one in found]
        cells = [f"{text.average(gold)} ({', '.join(f'{value:.2f}' for value in gold)})"]
        for level in told_levels:
            cells.append(_when([one["steps_to"][level] for one in found]))
            reached = [one["completions_to"][level] for one in found]
            cells.append("" if None in reached else f"{text.mean_of(reached):,.0f}")
        cells.append(f"{text.mean_of([one['judge_completions'] for one in found]):,.0f}")
        judged = [one["hacked"] for one in found if one["hacked"]]
        for curve in ("gold", "proxy"):
            changes = [one[curve]["mean"] for one in judged]
            told = ", ".join(f"{change:+.2f}" for change in changes)
            cells.append(f"{text.mean_of(changes):+.2f} ({told})" if changes else "")
        count = sum(one["is_hacked"] for one in judged)
        cells.append(f"{'**' * (count > 0)}{count} of {len(judged)}{'**' * (count > 0)}" if judged else "")
        paid = "no" if alone else "yes"
        rows.append([method.upper(), source, paid, *cells, text.average([one["train_s"] for one in found], 0)])
    head = ["method", "process reward", "outcome paid", "gold at the end (by seed)"]
    for level in told_levels:
        head += [f"steps to {level} (by seed)", f"completions to {level}"]
    head += ["completions for the judge", "gold since its best", "proxy since then", "hacked", "train s"]
    note = (
        f"Gold: strict accuracy of the completions of a step, of which there are {results['steps']} with "
        f"{results['completions_a_step']} completions each; at the end and to a level as the mean of 5 steps. Proxy: "
        "the sum of the step scores that are paid, in units of its source. Hacked: from the 10 steps in which gold's "
        "mean is highest to the last 10, gold is lower and the proxy higher, each by more than 3 standard errors. "
        "The outcome's row has no judge and no proxy; nothing was tuned for a row."
    )
    return f"{text.table(head, rows)}\n\n{note}"


def _when(steps: Sequence[int | None]) -> str:
    """Steps to a level by seed, with their mean where every seed has it."""
    told = ", ".join("never" if step is None else str(step) for step in steps)
    known = [step for step in steps if step is not None]
    return f"{text.average(known, 0)} ({told})" if len(known) == len(steps) else told if known else "never"
