"""A GRPO step of SmolLM2-135M with `share_prompts` and `rollouts: engine` beside plain TRL, in interleaved pairs.

One trainer takes steps as TRL's own and with the two, by turns, on LoRA and one group of 8 completions; which goes
first changes from pair to pair, and the file is written after each. Every completion has the same length, since no
token ends it. Taken are CPU seconds (user and system), which a busy machine disturbs less than seconds, of the step and
of its parts: generation, passes for log-probabilities without gradients, the pass with gradients, and the backward.
Settings are TRL's own but for a KL term (`beta`), so that a step takes the reference's log-probabilities too. The file
holds what the formula chose.

    python benchmarks/share_prompts.py --pairs 15
    python benchmarks/share_prompts.py --curves      # what is learned: the quickstart's GRPO both ways, seeds 0, 1, 2

The file keeps what the other command measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import record
from ppo_memory import made_base

CASES = {"64, 64": (64, 64), "256, 16": (256, 16), "16, 128": (16, 128)}
"""Tokens of prompt and completion; in the last the formula declines."""
GROUP = 8
PARTS = ("generation", "log-probabilities", "forward", "backward")
CHANGED = ("_prepare_inputs", "_generate_single_turn", "_get_per_token_logps_and_entropies")
RARE = "<reponame>"  # stands for EOS, so that no completion ends early
GOALS = {"64, 64": (1.3, 1.15), "256, 16": (3.0, 2.5), "16, 128": (1.0, 0.95)}


SHARED = ("stages.grpo.share_prompts=true", "stages.grpo.rollouts=engine")


def main() -> int:
    options = _options()
    file = options.out / "share_prompts.json"
    earlier = json.loads(file.read_text(encoding="utf-8"))["results"] if file.is_file() else {}
    if options.curves:
        curves: dict[str, Any] = {}
        for seed in options.seeds:
            curves[str(seed)] = {**_curves(seed, options.runs_dir.resolve()), **_made_on()}
            file = record.write(
                "share_prompts", {"group": GROUP, "cases": {}, **earlier, "curves": curves}, options.out
            )
        print(file)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or made_base(Path(scratch))
        cases: dict[str, Any] = {}
        for name in options.cases:
            for found in _compare(name, model, options.pairs, Path(scratch)):
                cases[name] = {**found, **_made_on()}
                made = {**earlier, "group": GROUP, "cases": cases}
                file = record.write("share_prompts", made, options.out)
    print(file)
    return 0


def _made_on() -> dict[str, Any]:
    """The commit and the load, of what stands in one file with what another command measured."""
    return {"commit": record.commit(), "load_average": round(os.getloadavg()[0], 2)}


def _curves(seed: int, runs_dir: Path) -> dict[str, list[float]]:
    """Return the mean reward of each step of the quickstart's GRPO, as it is and shared."""
    import series

    from posttrain_plugins.record.figures import read_figures

    found = {}
    for side, overrides in (("plain", ()), ("shared", SHARED)):
        run = series.run_seed(series.Told(seed), "quickstart", runs_dir, overrides, only=["base", "sft", "grpo"])
        found[side] = [line.figures["reward"] for line in read_figures(run["grpo"].folder) if "reward" in line.figures]
    return found


def _compare(name: str, model: Path, pairs: int, scratch: Path) -> Iterator[dict[str, Any]]:
    """Yield what is known of a case after each pair."""
    prompt, completion = CASES[name]
    steps = _Steps(model, prompt, completion, scratch)
    taken: list[dict[str, dict[str, float]]] = []
    for number in range(pairs):
        order = ("shared", "plain") if number % 2 else ("plain", "shared")
        pair = {side: steps.take(side) for side in order}
        print(f"{name}, pair {number + 1}: {json.dumps(pair)}", file=sys.stderr, flush=True)
        taken.append(pair)
        yield _summary(name, taken, steps.sharing.record)


def _summary(name: str, taken: list[dict[str, dict[str, float]]], way: dict[str, Any]) -> dict[str, Any]:
    prompt, completion = CASES[name]
    goal, accepted = GOALS[name]
    return {
        "prompt": prompt,
        "completion": completion,
        "speedup": record.median_interval([pair["plain"]["step"] / pair["shared"]["step"] for pair in taken]),
        "passes_speedup": record.median_interval([_passes(pair["plain"]) / _passes(pair["shared"]) for pair in taken]),
        "goal": goal,
        "accepted": accepted,
        "shares": {side: {part: _median([p[side][part] / p[side]["step"] for p in taken]) for part in PARTS}
                   for side in ("plain", "shared")},
        "step_s": {side: _median([pair[side]["step"] for pair in taken]) for side in ("plain", "shared")},
        "way": way,
        "pairs": taken,
    }  # fmt: skip


def _passes(parts: dict[str, float]) -> float:
    return sum(parts[part] for part in PARTS if part != "generation")


def _median(values: list[float]) -> float:
    return float(record.median_interval(values)["median"])


class _Steps:
    """A GRPO trainer that takes one step at a time, as it is or with both changes, and what the parts took."""

    def __init__(self, model: Path, prompt: int, completion: int, folder: Path) -> None:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer

        from posttrain_plugins.trainers import engine_rollouts, shared_prompts

        tokenizer = AutoTokenizer.from_pretrained(str(model))
        tokenizer.eos_token = RARE
        args = GRPOConfig(
            str(folder / "out"), max_steps=1, per_device_train_batch_size=GROUP, num_generations=GROUP, beta=0.04,
            max_completion_length=completion, gradient_checkpointing=False, save_strategy="no", bf16=False,
            use_cpu=True, report_to=[], seed=0, disable_tqdm=True, dataloader_pin_memory=False, logging_strategy="no",
        )  # fmt: skip
        rows = Dataset.from_dict({"prompt": [_text(tokenizer, prompt)] * GROUP})
        self.trainer = GRPOTrainer(
            str(model), _reward, args, rows, processing_class=tokenizer,
            peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        self.parts = dict.fromkeys((*PARTS, "step"), 0.0)
        self.methods = {"plain": {name: getattr(self.trainer, name) for name in CHANGED}}
        self.sharing = shared_prompts.share(self.trainer, "grpo")
        engine_rollouts.draw_with_engine(self.trainer, "grpo")
        self.methods["shared"] = {name: getattr(self.trainer, name) for name in CHANGED}
        for name in ("backward", "training_step"):
            owner = self.trainer.accelerator if name == "backward" else self.trainer
            part = "step" if name == "training_step" else name
            setattr(owner, name, self._timed(getattr(owner, name), lambda part=part: part))  # type: ignore[misc]

    def take(self, side: str) -> dict[str, float]:
        """Take a step and return CPU seconds by part."""
        parts = {
            "_prepare_inputs": None,
            "_generate_single_turn": lambda: "generation",
            "_get_per_token_logps_and_entropies": _kind_of_pass,
        }
        for name, part in parts.items():
            method = self.methods[side][name]
            setattr(self.trainer, name, self._timed(method, part) if part else method)
        self.parts.update(dict.fromkeys(self.parts, 0.0))
        self.trainer.train()
        return dict(self.parts)

    def _timed(self, function: Callable[..., Any], part: Callable[[], str]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            name, began = part(), time.process_time()
            found = function(*args, **kwargs)
            self.parts[name] += time.process_time() - began
            return found

        return timed


def _kind_of_pass() -> str:
    import torch

    return "forward" if torch.is_grad_enabled() else "log-probabilities"


def _text(tokenizer: Any, count: int) -> str:
    """Return a text of so many tokens."""
    words = tokenizer.convert_ids_to_tokens(range(300, 600))
    spaced = [f" {word[1:]}" for word in words if word[1:].isalpha() and word[1:].isascii() and not word[0].isascii()]
    single = [word for word in spaced if len(tokenizer(word)["input_ids"]) == 1]
    text = "".join(single[(i * 7) % len(single)] for i in range(count))
    assert len(tokenizer(text)["input_ids"]) == count
    return text


def _reward(completions: list[str], **columns: Any) -> list[float]:
    return [float(i % 2) for i in range(len(completions))]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="of each case")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--model", type=Path, help="a folder with SmolLM2; by default it is made")
    parser.add_argument("--curves", action="store_true", help="learning curves in place of times")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the curves (0 1 2)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/seeds"), help="of the curves; what is there stands")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="where the results file goes")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
