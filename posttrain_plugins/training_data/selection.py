"""Select judged completions, write them in one of TRL's formats, and read those that were saved before.

| keep                           | columns beside the prompt         | for                              |
|--------------------------------|-----------------------------------|----------------------------------|
| `best`, `top_k`, `all_correct` | `completion`, `reward`            | SFT                              |
| `all`                          | `completion`, `reward`            | value models, offline RL (OREO)  |
| `pairs`                        | `chosen`, `rejected`              | DPO, reward models               |
| `labelled`                     | `completion`, `label` (a bool)    | KTO                              |
| `ranked`                       | `completions` (best first), `scores` | listwise reward models, listwise DPO |
| `unjudged`                     | `completions`                     | people (stage `annotate`)        |
| `steps`                        | `completions` (steps), `labels`   | process reward models (`step_labels.py`) |

Papers: STaR (https://huggingface.co/papers/2203.14465) and rejection sampling as in Llama 2
(https://huggingface.co/papers/2307.09288), section 3.2.3, for SFT data; iterative DPO
(https://huggingface.co/papers/2312.11456) for pairs.

1. Equal completions of one problem are kept once, of several models by the last that wrote it; but `all`, and `steps`
   with shares of rollouts, keep every draw: what a begun completion is worth is a mean over what the policy draws, and
   not over what is distinct among it.
2. The first reward says what is right (`threshold`), the weighted sum of all rewards says what is better.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from posttrain_plugins.errors import InputError
from posttrain_plugins.text import in_format_of, to_text
from posttrain_plugins.types import Prompt, ResolvedReward

__all__ = [
    "COLUMNS",
    "WRITERS",
    "Judged",
    "Keep",
    "Saved",
    "Selection",
    "distinct",
    "judge",
    "judgeable",
    "read_saved",
    "without_texts",
    "writer",
]

Keep: TypeAlias = Literal["best", "top_k", "all_correct", "all", "pairs", "labelled", "ranked", "unjudged", "steps"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "best": ("prompt", "completion", "reward"),
    "top_k": ("prompt", "completion", "reward"),
    "all_correct": ("prompt", "completion", "reward"),
    "all": ("prompt", "completion", "reward"),
    "pairs": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
    "ranked": ("prompt", "completions", "scores"),
    "unjudged": ("prompt", "completions"),
    "steps": ("prompt", "completions", "labels"),
}
WRITERS = {"pairs": ("chosen_model", "rejected_model"), "ranked": ("models",), "unjudged": ("models",)}
"""The columns that say who wrote a completion, where there are several models and it is not `model`."""
TEXTS = ("completion", "completions", "chosen", "rejected")
VERDICTS = ("reward", "rewards", "scores", "label", "labels")


# --- Judged completions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A completion with its weighted sum of rewards and its first reward; None where they could not judge.

    Args:
        text: what was scored.
        completion: as it is handed out, in its prompt's format.
        reward: the weighted sum.
        verdict: the first reward.
        model: who wrote it, where there are several.
    """

    text: str
    completion: Any
    reward: float | None
    verdict: float | None
    model: str = ""

    @property
    def total(self) -> float:
        return float("-inf") if self.reward is None else self.reward


def judge(
    completions: Sequence[Any],
    prompt: Prompt,
    rewards: Sequence[ResolvedReward],
    scores: Sequence[Sequence[float | None]],
) -> list[Judged]:
    """Return the judged completions of one problem.

    Args:
        completions: N of them, as texts or as they were saved.
        prompt: what they answer.
        rewards: R rewards; the first gives the verdict.
        scores: R lists of N scores.
    """
    judged = []
    for j, completion in enumerate(completions):
        values = [row[j] for row in scores]
        # as in TRL, a reward that cannot judge adds nothing to the sum
        known = [reward.weight * value for reward, value in zip(rewards, values, strict=True) if value is not None]
        total = sum(known) if known else None
        judged.append(Judged(to_text(completion), in_format_of(prompt, completion), total, values[0]))
    return judged


# --- Selection -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Which completions of a problem are kept, and how.

    Args:
        keep: see the table above; not `steps`.
        top_k: how many `top_k` keeps.
        threshold: a completion is right where the first reward is at least this; None takes every judged completion.
        max_pairs_per_prompt: how many pairs `pairs` makes.
        seed: of the pairs.
    """

    keep: Keep = "best"
    top_k: int = 1
    threshold: float | None = 0.5
    max_pairs_per_prompt: int = 1
    seed: int = 0

    def rows(self, judged: Iterable[Judged], number: int) -> list[dict[str, Any]]:
        """Return the new columns of what is kept of problem `number`, a row each."""
        if self.keep == "unjudged":
            items = list({item.text: item for item in judged}.values())
            return [{"completions": [i.completion for i in items], **_writers(items)}] if items else []
        found = judgeable(judged) if self.keep == "all" else distinct(judged)
        ranked = sorted(found, key=lambda item: -item.total)
        if self.keep == "pairs":
            # seeded by the problem's number: a problem's pairs stay the same when others are added or fail
            pairs = self._pairs(ranked, random.Random(f"{self.seed}:{number}"))
            return [
                {"chosen": chosen.completion, "rejected": rejected.completion}
                | ({"chosen_model": chosen.model, "rejected_model": rejected.model} if chosen.model else {})
                for chosen, rejected in pairs[: self.max_pairs_per_prompt]
            ]
        if self.keep == "labelled":
            return [{"completion": i.completion, "label": self.is_right(i), **writer(i)} for i in ranked]
        if self.keep == "ranked":
            is_order = len({item.total for item in ranked}) > 1  # all equal: nothing to learn
            columns = {"completions": [i.completion for i in ranked], "scores": [i.reward for i in ranked]}
            return [{**columns, **_writers(ranked)}] if is_order else []
        # the verdict says who is right before the sum says who is best: a fluent wrong answer is no SFT data
        right = [item for item in ranked if self.keep == "all" or self.is_right(item)]
        count = {"best": 1, "top_k": self.top_k}.get(self.keep, len(right))
        return [{"completion": item.completion, "reward": item.reward, **writer(item)} for item in right[:count]]

    def is_right(self, item: Judged) -> bool:
        """Tell whether the first reward passes the threshold; one that could not judge is no pass."""
        return item.verdict is not None and (self.threshold is None or item.verdict >= self.threshold)

    def _pairs(self, ranked: list[Judged], rng: random.Random) -> list[tuple[Judged, Judged]]:
        """Pair right with wrong completions at random, or without a threshold the best with the worst."""
        if self.threshold is None:
            return [(a, b) for a, b in zip(ranked, reversed(ranked), strict=True) if a.total > b.total]
        right = [item for item in ranked if self.is_right(item)]
        wrong = [item for item in ranked if not self.is_right(item)]
        # shuffled: in order of reward, the few pairs that are kept would always be those of the best of both
        rng.shuffle(right)
        rng.shuffle(wrong)
        return list(zip(right, wrong, strict=False))


def writer(item: Judged) -> dict[str, str]:
    """Return the column that says who wrote a completion; none where there is one model alone."""
    return {"model": item.model} if item.model else {}


def _writers(items: Sequence[Judged]) -> dict[str, list[str]]:
    return {"models": [item.model for item in items]} if any(item.model for item in items) else {}


def without_texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the data set without the completions that it has: TRL would take them for the data."""
    return {name: value for name, value in row.items() if name not in TEXTS}


def judgeable(judged: Iterable[Judged]) -> list[Judged]:
    """Return the completions without those that no reward could judge."""
    return [item for item in judged if item.reward is not None and item.verdict is not None]


def distinct(judged: Iterable[Judged]) -> list[Judged]:
    """Return every text once, without those that no reward could judge."""
    return list({item.text: item for item in judgeable(judged)}.values())


# --- Saved completions -----------------------------------------------------------------------------------------------


@dataclass
class Saved:
    """One problem with the completions that a data set holds.

    Args:
        row: its other columns.
        completions: text or messages.
        rewards: what was saved with them: a number, numbers by name (the first decides), or None.
    """

    row: dict[str, Any]
    completions: list[Any] = field(default_factory=list)
    rewards: list[Any] = field(default_factory=list)

    def judged(self) -> list[Judged]:
        """Return the completions, judged by the saved rewards."""
        prompt, judged = self.row["prompt"], []
        for completion, reward in zip(self.completions, self.rewards, strict=True):
            values = list(reward.values()) if isinstance(reward, Mapping) else [reward]
            known = [float(value) for value in values if value is not None]
            # summed as they are: weights belong to rewards that the recipe names, and here it names none
            total, verdict = (sum(known) if known else None), (None if values[0] is None else float(values[0]))
            judged.append(Judged(to_text(completion), in_format_of(prompt, completion), total, verdict))
        return judged


def read_saved(rows: Sequence[Mapping[str, Any]], needs_rewards: bool) -> list[Saved]:
    """Group the rows of a data set, with `completion` or several `completions` each, by problem.

    Rows with the same prompt are one problem. Rewards stand in `reward`, `rewards` or `scores`: as many as completions.

    Raises:
        InputError: a row has rewards that do not fit its completions, or none where they are needed.
    """
    found: dict[str, Saved] = {}
    for number, row in enumerate(rows, start=1):
        # by text, since messages cannot be keys of a dict
        key = json.dumps(row["prompt"], sort_keys=True, default=str)
        others = {name: value for name, value in row.items() if name not in (*TEXTS, *VERDICTS)}
        saved = found.setdefault(key, Saved(others))
        completions, rewards = _completions_and_rewards(row, number, needs_rewards)
        saved.completions += completions
        saved.rewards += rewards
    return list(found.values())


def _completions_and_rewards(row: Mapping[str, Any], number: int, needs_rewards: bool) -> tuple[list[Any], list[Any]]:
    """Read one row; a row of a data set has every column, with None for what it lacks."""
    is_many = row.get("completions") is not None
    completions = list(row["completions"]) if is_many else [row["completion"]]
    saved = next((row[name] for name in ("reward", "rewards", "scores") if row.get(name) is not None), None)
    rewards = list(saved) if is_many and isinstance(saved, Sequence) else [saved] * (1 if not is_many else 0)
    if not needs_rewards:
        return completions, [None] * len(completions)
    # a number, or numbers by the rewards' names, of which at least one; None is "could not judge" and is allowed
    values = [list(reward.values()) if isinstance(reward, Mapping) else [reward] for reward in rewards]
    is_number = [bool(of) and all(v is None or isinstance(v, int | float) for v in of) for of in values]
    if len(rewards) != len(completions) or not all(is_number):
        message = f"row {number} of the data set has {len(completions)} completions and the rewards {saved!r}"
        raise InputError(f"{message}, expected a number for each", hint="or name rewards that score them anew")
    return completions, rewards
