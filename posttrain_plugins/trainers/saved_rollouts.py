"""What an RL stage sampled and what each reward said of it, one JSON line a completion, as it trains. No paper.

`rollouts.jsonl` is a data set: `prompt`, `completion`, `rewards` by name, `weighted_reward`, their sum by weight, the
columns of the row that the prompt came from, and `global_step`, the optimizer steps done when it was sampled. So it can
be scored again without a model (`posttrain rewards replay`), audited (`posttrain rewards audit`), or kept from and
trained on (stage `sample`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from posttrain_plugins.record.lines import json_line
from posttrain_plugins.trainers import compat
from posttrain_plugins.types import StageContext

__all__ = ["ANSWER", "ROLLOUTS", "save"]

ROLLOUTS = "rollouts.jsonl"
ANSWER = "strategy_answer"
"""The column in which a strategy's conversation brings its answer, which rewards judge in the conversation's place."""


def save(context: StageContext, trainer: Any) -> None:
    """Let a trainer that samples write `rollouts.jsonl` below the stage's folder; evaluations are not written.

    Where a stage goes on from a checkpoint, what was sampled after it is written anew.
    """
    from accelerate.utils import gather_object

    file = context.folder / ROLLOUTS
    if trainer.accelerator.is_main_process:  # the one that writes
        _forget_after(file, context.resume_from)

    def write(rows: Sequence[Mapping[str, Any]], prompts: Any, completions: Any, rewards: Any) -> None:
        if not trainer.model.training:
            return
        step = trainer.state.global_step
        made = zip(rows, prompts, completions, strict=True)
        own = [{"global_step": step, "prompt": prompt, **_judged(row, text)} for row, prompt, text in made]
        everyone = gather_object(own)  # in the order of the processes, as `rewards` (N, F) is; all have to take part
        if not trainer.accelerator.is_main_process:
            return
        names, weights = trainer.reward_func_names, trainer.reward_weights.tolist()
        with file.open("a", encoding="utf-8") as lines:
            for row, values in zip(everyone, rewards.tolist(), strict=True):
                # NaN is how TRL's tensor holds the None of a reward that cannot judge; its sum passes it over too
                scores = {name: None if isnan(value) else value for name, value in zip(names, values, strict=True)}
                known = [w * value for w, value in zip(weights, values, strict=True) if not isnan(value)]
                judged = {"rewards": scores, "weighted_reward": sum(known) if known else None}
                lines.write(json_line({**row, **judged}))

    compat.observe_rewards(trainer, write)


def _judged(row: Mapping[str, Any], completion: Any) -> dict[str, Any]:
    """Return the columns and the completion as the rewards were given it, so that the file can be scored again."""
    others = {name: value for name, value in row.items() if name not in (ANSWER, "prompt", "completion", "global_step")}
    return {**others, "completion": [{"role": "assistant", "content": row[ANSWER]}] if ANSWER in row else completion}


def _forget_after(file: Path, checkpoint: Path | None) -> None:
    """Keep the lines of the steps that the checkpoint holds, none where there is no checkpoint."""
    if not file.is_file():
        return
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    lines = file.read_text(encoding="utf-8").split("\n")  # `splitlines` also breaks at U+2028 within a string
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["global_step"] < done]
    file.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
