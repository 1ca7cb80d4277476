"""The measurements of rows: each is a training that can be made, and what its curves come to is told as it is."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_each_row_of_the_critics_ablation_keeps_the_ones_before(benchmark: Any) -> None:
    critic, tables = benchmark("critic"), benchmark("result_tables.learning")
    changed = [critic.settings_of(name, rollouts=10) for name in critic.ROWS]
    assert changed[0] == {"args.max_steps": 40}
    assert all(len(more) > len(less) for less, more in itertools.pairwise(changed))
    assert changed[-1]["args.max_steps"] == 160, "as many steps of the policy with four passes of the critic"
    one = {"curves": {"explained": [0.0, 0.5], "reward": [0.1, 0.3]}, "held_out": 0.25, "train_s": 12.0}
    results = {"rollouts": 2, "rows": {"zero": {"0": one, "1": {**one, "held_out": 0.75}}}}
    assert "| zero | 0.50 (0.25, 0.75) | 0.00 | 0.50 | 0.30 | never, never |" in tables.critic_table(results)
    fast = {**one, "curves": {"explained": [0.5], "reward": [0.8, 0.9, 0.96, 1.0, 0.9]}}
    told = tables.critic_table({"rollouts": 5, "rows": {"zero": {"0": fast}}})
    assert "| zero | 0.25 (0.25) | 0.50 | 0.50 | 0.90 | 4 |" in told
    nothing = {**one, "held_out": None, "curves": {"explained": [], "reward": [0.0]}}
    assert "| zero |  |  |  | 0.00 | never |" in tables.critic_table({"rollouts": 2, "rows": {"zero": {"0": nothing}}})


def process_rewards() -> dict[str, Any]:
    """What `process_rewards.py` writes: a row without a process reward, and one that was hacked on one of two seeds."""
    reach = {"steps_to": {"0.70": 10, "0.85": None}, "completions_to": {"0.70": 1280, "0.85": None}}
    change = {"gold": {"mean": -0.5, "error": 0.01}, "proxy": {"mean": 1.5, "error": 0.1}, "best_at": 20}
    one = {"gold": 0.75, **reach, "train_s": 60.0, "judge_completions": 8000, "curves": {"gold": [0.5] * 20}}
    hacked = {
        seed: {**one, "hacked": {**change, "is_hacked": is_hacked}} for seed, is_hacked in (("0", True), ("1", False))
    }
    outcome = {**one, "hacked": None, "judge_completions": 0}
    outcome |= {"steps_to": {"0.70": 10, "0.85": 30}, "completions_to": {"0.70": 1280, "0.85": 3840}}
    rows = {"ppo_outcome": {"0": outcome}, "grpo_prm_alone": hacked}
    return {"steps": 60, "completions_a_step": 128, "levels": [0.7, 0.85], "rows": rows}


def test_process_rewards_say_when_a_level_is_reached_and_what_is_hacked(benchmark: Any) -> None:
    table = benchmark("result_tables.learning").process_rewards_table(process_rewards())
    first, second = [line for line in table.splitlines() if line.startswith(("| PPO", "| GRPO"))]
    assert first == "| PPO | outcome | yes | 0.75 (0.75) | 10 (10) | 1,280 | 30 (30) | 3,840 | 0 |  |  |  | 60 |"
    told = "0.75 (0.75, 0.75) | 10 (10, 10) | 1,280 | never |  | 8,000 | -0.50 (-0.50, -0.50) | +1.50 (+1.50, +1.50)"
    assert second == f"| GRPO | prm | no | {told} | **1 of 2** | 60 |"
    script = benchmark("process_rewards")
    curves = {"gold": [0.9] * 10 + [0.6] * 20, "proxy": [1.0] * 10 + [2.0] * 20}
    found = script.told_of(curves, size=128)
    assert found["steps_to"] == {"0.70": 5, "0.85": 5}
    assert found["completions_to"]["0.85"] == 640
    assert found["hacked"]["is_hacked"]
    assert found["hacked"]["best_at"] == 10
    assert found["hacked"]["gold"] == {"mean": pytest.approx(-0.3), "error": pytest.approx(0.0, abs=1e-9)}
    noisy = [0.9 + 0.02 * (-1) ** i for i in range(30)]
    assert not script.told_of({**curves, "gold": noisy}, size=128)["hacked"]["is_hacked"], "gold stands still"
    assert script.told_of({"gold": [0.1]}, size=128)["steps_to"] == {"0.70": None, "0.85": None}


def test_the_figure_of_the_process_rewards_has_every_row_once_and_proxies_within_their_range(benchmark: Any) -> None:
    script = benchmark("process_rewards")
    curves = {"gold": [i / 20 for i in range(20)], "proxy": [4.0 + i for i in range(20)]}
    results = {"rows": {name: {"0": {"curves": curves}} for name in script.ROWS}}
    *gold, proxy = script.panels(results)
    assert sorted(name for panel in gold for name in panel.lines) == sorted(script.ROWS)
    assert [len(panel.lines) for panel in (*gold, proxy)] == [4, 4, 6, 6]
    assert {(values[0], values[-1]) for values in proxy.lines.values()} == {(0.0, 1.0)}
    assert all(len(values) == 16 for panel in gold for values in panel.lines.values()), "means of 5 steps"


def test_each_row_of_the_process_rewards_is_a_training_that_can_be_made(benchmark: Any, tmp_path: Path) -> None:
    """All are valid; what is equal to a packaged recipe's is made once for both."""
    from posttrain_plugins.api import plan

    script, rows, critic = benchmark("process_rewards"), benchmark("trained_rows"), benchmark("critic")
    packaged, keys = plan("process_reward"), {}
    for name, row in script.ROWS.items():
        settings = [f"{key}={json.dumps(value)}" for key, value in script.settings_of(row).items()]
        made = plan(rows.write(rows.Recipe("process_rewards", script.RECIPE), tmp_path), settings)
        keys[name] = made[row.stage].key
        assert {stage: made[stage].key for stage in ("prm", "checked")} == {
            stage: packaged[stage].key for stage in ("prm", "checked")
        }
    assert len(set(keys.values())) == len(keys) == 14
    assert keys["ppo_outcome"] == packaged["outcome"].key
    assert keys["ppo_prm"] == packaged["process"].key
    others = plan(rows.write(rows.Recipe("critic", critic.RECIPE), tmp_path))
    assert others["value"].key == made["value"].key
