"""The recipe `human_feedback` with a script in the place of people, for several seeds.

The script answers through the ledger, as the page does, and nothing of it is in the recipe: a run waits, the script
answers what is asked, the same run goes on. It writes demonstrations as the tiny world's imperfect authors do, and
picks by the world's checker with mistakes: in `--noise` of the questions it takes one at random. Completions are shown
in a random order, which is recorded.

Settings began as those of `rlhf_ppo` and `iterative_dpo`. How many prompts are picked from, and the reward model's
learning rate and steps, were chosen on seed 7 with other held-out problems (`-o datasets.heldout.seed=5`), which are
not reported.

    python benchmarks/human_feedback.py --seeds 0 1 2

What must hold, else exit 1: the reward model orders at least 80 % of held-out pairs as the checker does, and DPO or PPO
gains at least 0.10 over SFT in sampled accuracy.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import series
from result_tables.recipes import recipe_table

from posttrain_plugins.decisions.item import Decision, Item
from posttrain_plugins.decisions.ledger import Ledger
from posttrain_plugins.decisions.questions import latest_questions, read_questions
from posttrain_plugins.errors import WaitsForPerson
from posttrain_plugins.text import to_text
from posttrain_plugins.tiny_world.checker import check, find_expression
from posttrain_plugins.tiny_world.task import Author, format_chat, solve

RECIPE = "human_feedback"
SLOPPY, SLIPS = 0.35, 0.03  # of the tiny world's demonstrations
NOISE = 0.05
LEAST_PAIRS, LEAST_GAIN = 0.80, 0.10


@dataclass(frozen=True)
class Script:
    """An annotator that knows the checker, and errs.

    Args:
        noise: share of questions that it answers without looking.
        seed: of what it writes, and of its mistakes.
    """

    noise: float
    seed: int

    def decide(self, item: Item) -> Decision:
        """Answer one item."""
        rng = random.Random(f"{self.seed}:{item.id}")
        expression = find_expression(to_text(item.prompt))
        assert expression is not None
        shown = tuple(rng.sample(range(len(item.completions)), len(item.completions)))
        about: dict[str, Any] = {"item": item.id, "mode": item.mode, "annotator": "script", "shown": shown}
        if item.mode == "demonstration":
            author = Author(rng.random() < SLOPPY, SLIPS)
            return Decision(str(uuid.uuid4()), text=format_chat(solve(expression, rng, author)), **about)
        right = [place for place in shown if check(expression, to_text(item.completions[place])).strict]
        if rng.random() < self.noise:
            right = [rng.choice(shown)]
        if not right:
            return Decision(str(uuid.uuid4()), none_good=True, **about)
        return Decision(str(uuid.uuid4()), choice=right[0], **about)


def one_seed(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run the recipe until nobody is waited for any more, and collect its figures."""
    folder = options.runs_dir / f"seed-{seed}"
    ledger = folder / "decisions.jsonl"
    names = ("written", "picks", "new_picks")
    overrides = [f"stages.{name}.file={ledger}" for name in names] + options.override
    script, told, waited, began = Script(options.noise, seed), series.Told(seed), [], time.monotonic()
    while True:
        try:
            run = series.run_seed(told, RECIPE, options.runs_dir, overrides)
            break
        except WaitsForPerson as wait:
            waited.append({"stage": wait.stage, "decided": wait.decided})
            print(f"seed {seed}: {wait.message}", file=sys.stderr, flush=True)
            answer(folder / RECIPE, wait.stage, ledger, script)
    manifests = {name: artifact.manifest for name, artifact in run.items()}
    found = {**series.collect(run["eval"].details, manifests), **series.whole(run, told)}
    people = {name: manifests[name]["metrics"] for name in names}
    pairs = manifests["rm"]["metrics"]
    took = {"noise": options.noise, "waited": waited, "wall_s": round(time.monotonic() - began)}
    return {**took, "people": people, "reward_model": pairs, **found}


def over_seeds(seeds: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The pooled gains, and what is missed of what must hold."""
    missed = [f"seed {seed}: {what}" for seed, one in seeds.items() for what in unmet(one)]
    return {"gains": series.gains_of(seeds), "missed": missed}


def answer(run: Path, stage: str, ledger: Path, script: Script) -> None:
    """Answer what a stage asks and nobody has decided."""
    folder = latest_questions(run, stage)
    assert folder is not None
    with Ledger.open(ledger) as opened:
        decided = {decision.item for decision in opened.effective()}
        for item in read_questions(folder).items:
            if item.id not in decided:
                opened.append(script.decide(item))


def unmet(one: dict[str, Any]) -> list[str]:
    """Say what a seed misses of what must hold."""
    accuracy = one["reward_model"]["eval_accuracy"]
    gain = max(one["models"][name]["gain"]["mean"] for name in ("ppo", "dpo"))
    missed = [f"the reward model orders {accuracy:.3f} of the pairs"] if accuracy < LEAST_PAIRS else []
    return missed + ([f"DPO and PPO gain {gain:.3f}"] if gain < LEAST_GAIN else [])


def _options() -> argparse.Namespace:
    parser = series.parser(__doc__)
    parser.add_argument(
        "--noise", type=float, default=NOISE, help="share of questions that are answered without looking"
    )
    return parser.parse_args()


ALONE = series.Alone(RECIPE, one_seed, over_seeds, recipe_table)


if __name__ == "__main__":
    raise SystemExit(series.go({RECIPE: ALONE}, _options()))
