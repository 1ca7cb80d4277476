"""Supervised fine-tuning with TRL alone: what the stage `sft` comes to.

python examples/plain_trl/sft.py MODEL DATA.jsonl OUT
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer


def build(
    model: Any, rows: Any, out: str, *, peft_config: Any = None, quantization_config: Any = None, **options: Any
) -> SFTTrainer:
    """Build the trainer; `options` are fields of its config."""
    # TRL trains in bfloat16 and refuses to start where there is no GPU; its checkpoints are of no use to a short run
    args = SFTConfig(out, **{"bf16": torch.accelerator.is_available(), "save_strategy": "no", **options})
    adapted = {"peft_config": peft_config, "quantization_config": quantization_config}
    return SFTTrainer(model=model, args=args, train_dataset=rows, **adapted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or Hub id")
    parser.add_argument("data", help="JSONL: `messages`, `prompt` and `completion`, or `text`")
    parser.add_argument("out", help="the folder that the trained model is saved to")
    parser.add_argument("--args", type=json.loads, default={}, help="fields of trl.SFTConfig, as JSON")
    given = parser.parse_args()
    rows = load_dataset("json", data_files=given.data, split="train")
    trainer = build(given.model, rows, given.out, **given.args)
    trainer.train()
    trainer.save_model(given.out)
