"""Group-relative policy optimisation with TRL alone: what the stage `grpo` comes to.

python examples/plain_trl/grpo.py MODEL DATA.jsonl OUT
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer


def contains_solution(completions: list[Any], solution: list[str], **columns: Any) -> list[float]:
    """Pay 1 where the solution stands in the completion: the reward, if this script is run by hand."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [float(right in text) for text, right in zip(texts, solution, strict=True)]


def build(
    model: Any, rows: Any, out: str, reward_funcs: Any, *, peft_config: Any = None, tools: Any = None, **options: Any
) -> GRPOTrainer:
    """Build the trainer; `options` are fields of its config."""
    # TRL trains in bfloat16 and refuses to start where there is no GPU; its checkpoints are of no use to a short run
    args = GRPOConfig(out, **{"bf16": torch.accelerator.is_available(), "save_strategy": "no", **options})
    given = {"reward_funcs": reward_funcs, "peft_config": peft_config, "tools": tools}
    return GRPOTrainer(model=model, args=args, train_dataset=rows, **given)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or Hub id")
    parser.add_argument("data", help="JSONL: `prompt` and `solution`")
    parser.add_argument("out", help="the folder that the trained model is saved to")
    parser.add_argument("--args", type=json.loads, default={}, help="fields of trl.GRPOConfig, as JSON")
    given = parser.parse_args()
    rows = load_dataset("json", data_files=given.data, split="train")
    trainer = build(given.model, rows, given.out, contains_solution, **given.args)
    trainer.train()
    trainer.save_model(given.out)
