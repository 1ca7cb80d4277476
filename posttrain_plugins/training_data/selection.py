"""What is kept of judged completions, and in which of TRL's formats; and completions that were saved before.

| keep                           | columns beside the prompt         | for                              |
|--------------------------------|-----------------------------------|----------------------------------|
| `best`, `top_k`, `all_correct` | `completion`, `reward`            | SFT                              |
| `all`                          | `completion`, `reward`            | offline value methods (OREO)     |
| `pairs`                        | `chosen`, `rejected`              | DPO, reward models               |
| `labelled`                     | `completion`, `label` (a bool)    | KTO                              |
| `ranked`                       | `completions` (best first), `scores` | listwise reward models, listwise DPO |
| `steps`                        | `completions` (steps), `labels`   | process reward models (`step_labels.py`) |

Papers: STaR (https://huggingface.co/papers/2203.14465) and rejection sampling as in Llama 2
(https://huggingface.co/papers/2307.09288), section 3.2.3, for SFT data; iterative DPO
(https://huggingface.co/papers/2312.11456) for pairs.

1. Equal completions of one problem are kept once.
2. The first reward says what is right (`threshold`), the weighted sum of all rewards says what is better.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from posttrain_plugins.engine.scoring import as_completion
from posttrain_plugins.errors import InputError
from posttrain_plugins.text import is_conversational, to_text
from posttrain_plugins.types import Prompt, ResolvedReward

__all__ = ["COLUMNS", "Judged", "Keep", "Keeping", "Saved", "distinct", "judge", "read_saved", "without_texts"]

Keep: TypeAlias = Literal["best", "top_k", "all_correct", "all", "pairs", "labelled", "ranked", "steps"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "best": ("prompt", "completion", "reward"),
    "top_k": ("prompt", "completion", "reward"),
    "all_correct": ("prompt", "completion", "reward"),
    "all": ("prompt", "completion", "reward"),
    "pairs": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
    "ranked": ("prompt", "completions", "scores"),
    "steps": ("prompt", "completions", "labels"),
}
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
    """

    text: str
    completion: Any
    reward: float | None
    verdict: float | None

    @property
    def total(self) -> float:
        return float("-inf") if self.reward is None else self.reward


def judge(
    completions: Sequence[Any],
    prompt: Prompt,
    rewards: Sequence[ResolvedReward],
    scores: Sequence[Sequence[float | None]],
) -> list[Judged]:
    """The completions of one problem, as texts or as they were saved; `scores` has a list for each reward."""
    return [
        Judged(to_text(completion), _formatted(prompt, completion), *_worth(rewards, [row[j] for row in scores]))
        for j, completion in enumerate(completions)
    ]


def _worth(rewards: Sequence[ResolvedReward], values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Weighted sum and first reward; as in TRL, a reward that cannot judge adds nothing to the sum."""
    known = [reward.weight * value for reward, value in zip(rewards, values, strict=True) if value is not None]
    return (sum(known) if known else None), values[0]


def _formatted(prompt: Prompt, completion: Any) -> Any:
    """In its prompt's format; messages that were saved stay whole (tool calls, several turns)."""
    if is_conversational(prompt):
        return as_completion(prompt, completion) if isinstance(completion, str) else list(completion)
    return to_text(completion)


# --- Keeping ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keeping:
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
        """The new columns of what is kept of problem `number`, a row each."""
        ranked = sorted(distinct(judged), key=lambda item: -item.total)
        if self.keep == "pairs":
            pairs = self._pairs(ranked, random.Random(f"{self.seed}:{number}"))
            return [
                {"chosen": chosen.completion, "rejected": rejected.completion}
                for chosen, rejected in pairs[: self.max_pairs_per_prompt]
            ]
        if self.keep == "labelled":
            return [{"completion": item.completion, "label": self.is_right(item)} for item in ranked]
        if self.keep == "ranked":
            is_order = len({item.total for item in ranked}) > 1  # all equal: nothing to learn
            told = {"completions": [i.completion for i in ranked], "scores": [i.reward for i in ranked]}
            return [told] if is_order else []
        right = [item for item in ranked if self.keep == "all" or self.is_right(item)]
        count = {"best": 1, "top_k": self.top_k}.get(self.keep, len(right))
        return [{"completion": item.completion, "reward": item.reward} for item in right[:count]]

    def is_right(self, item: Judged) -> bool:
        return item.verdict is not None and (self.threshold is None or item.verdict >= self.threshold)

    def _pairs(self, ranked: list[Judged], rng: random.Random) -> list[tuple[Judged, Judged]]:
        if self.threshold is None:
            return [(a, b) for a, b in zip(ranked, reversed(ranked), strict=True) if a.total > b.total]
        right = [item for item in ranked if self.is_right(item)]
        wrong = [item for item in ranked if not self.is_right(item)]
        rng.shuffle(right)
        rng.shuffle(wrong)
        return list(zip(right, wrong, strict=False))


def without_texts(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the data set without the completions that it brought along: TRL would take them for the data."""
    return {name: value for name, value in row.items() if name not in TEXTS}


def distinct(judged: Iterable[Judged]) -> list[Judged]:
    """Every text once, those that no reward could judge left out."""
    return list({i.text: i for i in judged if i.reward is not None and i.verdict is not None}.values())


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
        """By the saved rewards."""
        prompt = self.row["prompt"]
        return [
            Judged(to_text(completion), _formatted(prompt, completion), *_told(reward))
            for completion, reward in zip(self.completions, self.rewards, strict=True)
        ]


def read_saved(rows: Sequence[Mapping[str, Any]], needs_rewards: bool) -> list[Saved]:
    """The problems of a data set with a column `completion`, or with several `completions` to a row.

    Rows with the same prompt are one problem. Rewards stand in `reward`, `rewards` or `scores`: as many as completions.

    Raises:
        InputError: a row has rewards that do not fit its completions, or none where they are needed.
    """
    found: dict[str, Saved] = {}
    for number, row in enumerate(rows, start=1):
        key = json.dumps(row["prompt"], sort_keys=True, default=str)
        others = {name: value for name, value in row.items() if name not in (*TEXTS, *VERDICTS)}
        saved = found.setdefault(key, Saved(others))
        completions, rewards = _completions_and_rewards(row, number, needs_rewards)
        saved.completions += completions
        saved.rewards += rewards
    return list(found.values())


def _completions_and_rewards(row: Mapping[str, Any], number: int, needs_rewards: bool) -> tuple[list[Any], list[Any]]:
    """Of one row; a row of a data set has every column, with None for what it lacks."""
    is_many = row.get("completions") is not None
    completions = list(row["completions"]) if is_many else [row["completion"]]
    told = next((row[name] for name in ("reward", "rewards", "scores") if row.get(name) is not None), None)
    rewards = list(told) if is_many and isinstance(told, Sequence) else [told] * (1 if not is_many else 0)
    if not needs_rewards:
        return completions, [None] * len(completions)
    if len(rewards) != len(completions) or not all(map(_is_reward, rewards)):
        message = f"row {number} of the data set has {len(completions)} completions and the rewards {told!r}"
        raise InputError(f"{message}, expected a number for each", hint="or name rewards that score them anew")
    return completions, rewards


def _is_reward(value: Any) -> bool:
    values = list(value.values()) if isinstance(value, Mapping) else [value]
    is_number = [v is None or (isinstance(v, int | float) and not isinstance(v, str)) for v in values]
    return bool(values) and all(is_number)


def _told(reward: Any) -> tuple[float | None, float | None]:
    """Sum and first of what was saved."""
    values = list(reward.values()) if isinstance(reward, Mapping) else [reward]
    known = [float(value) for value in values if value is not None]
    return (sum(known) if known else None), (None if values[0] is None else float(values[0]))
