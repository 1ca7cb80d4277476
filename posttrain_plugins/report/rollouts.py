"""Chooses among all that a training sampled what a reader should see: whole groups, and why each is there. No paper.

A group is what was sampled of one prompt at one step. All are looked at, a few are kept: of chosen steps, those with
the best and the worst mean, and those whose prompt came again and went differently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain_plugins.report.tail import Tail

__all__ = ["Chosen", "Completion", "Group", "Rollouts"]

MAX_STEPS = 40
COMPLETIONS_PER_STEP = 16
MAX_PER_GROUP = 16
OF_EACH_KIND = 4


@dataclass
class Group:
    """What was sampled of one prompt at one step.

    Args:
        step: the optimizer step that learned from it, from 1, as curves count.
        prompt: a hash of the prompt.
        places: where its lines begin in the file.
        scores: the weighted reward of each, None where nobody could judge.
    """

    step: int
    prompt: bytes
    places: list[int] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    @property
    def mean(self) -> float | None:
        known = [score for score in self.scores if score is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Completion:
    """One completion of a group.

    Args:
        text: of a conversation what the assistant wrote.
        rewards: name -> score, None where it could not judge.
        weighted: their sum by weight.
    """

    text: Any
    rewards: Mapping[str, float | None]
    weighted: float | None


@dataclass(frozen=True)
class Chosen:
    """A group that is shown.

    Args:
        step: as of `Group`.
        kinds: why: `step`, `first`, `last`, `best`, `worst`, `changed`.
        prompt: as the data set has it.
        columns: further columns of the row, such as the solution.
        completions: the first of them.
        left_out: how many more there are.
        mean: weighted reward of all of them.
        prompt_id: the same for groups of one prompt.
    """

    step: int
    kinds: frozenset[str]
    prompt: Any
    columns: Mapping[str, Any]
    completions: Sequence[Completion]
    left_out: int
    mean: float | None
    prompt_id: str


class Rollouts:
    """The index of a `rollouts.jsonl`, which reads each line once, also of a file that grows.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.tail = Tail(path)
        self.groups: list[Group] = []
        self.count = 0
        self.low = self.high = 0.0
        self.names: dict[str, tuple[float, float]] = {}

    def read(self) -> bool:
        """Take in the new lines; tell whether there were any."""
        if self.tail.is_new():
            self.groups, self.count, self.names = [], 0, {}
        before = self.count
        for place, row in self.tail.rows():
            step, rewards = row.get("global_step"), row.get("rewards")
            if not isinstance(step, int) or not isinstance(rewards, dict):
                continue
            self.count += 1
            key = hashlib.blake2b(json.dumps(row.get("prompt")).encode(), digest_size=8).digest()
            last = self.groups[-1] if self.groups else None
            # rows of one prompt stand together: it is how trainers repeat it
            if last is None or last.step != step + 1 or last.prompt != key:
                self.groups.append(last := Group(step + 1, key))
            last.places.append(place)
            score = row.get("weighted_reward")
            last.scores.append(score if isinstance(score, int | float) else None)
            for name, value in rewards.items():
                if isinstance(value, int | float):
                    low, high = self.names.get(name, (value, value))
                    self.names[name] = (min(low, value), max(high, value))
        return self.count > before

    def chosen(self) -> list[Chosen]:
        """Return the groups to show, in the order of their steps, read from the file."""
        kinds: dict[int, set[str]] = {}
        for i, kind in self._kinds():
            kinds.setdefault(i, set()).add(kind)
        try:
            with self.tail.path.open("rb") as stream:
                return [self._read(stream, self.groups[i], frozenset(kinds[i])) for i in sorted(kinds)]
        except (OSError, ValueError):  # a training that went on from a checkpoint has cut it meanwhile
            return []

    def steps(self) -> list[int]:
        """Return the steps of which something was sampled."""
        return list(dict.fromkeys(group.step for group in self.groups))

    def _kinds(self) -> Iterator[tuple[int, str]]:
        by_step: dict[int, list[int]] = {}
        for i, group in enumerate(self.groups):
            by_step.setdefault(group.step, []).append(i)
        steps = list(by_step)
        for place in _spread(len(steps), MAX_STEPS):
            room = COMPLETIONS_PER_STEP
            # the widest first: a group whose completions all score the same teaches nothing, and shows little
            for i in sorted(by_step[steps[place]], key=lambda i: -_width(self.groups[i])):
                if room < COMPLETIONS_PER_STEP and len(self.groups[i].places) > room:
                    break
                room -= len(self.groups[i].places)
                yield i, "step"
                if place in (0, len(steps) - 1):
                    yield i, "first" if place == 0 else "last"
        judged = [(group.mean, i) for i, group in enumerate(self.groups) if group.mean is not None]
        ordered = [i for _, i in sorted(judged)]
        yield from ((i, "worst") for i in ordered[:OF_EACH_KIND])
        yield from ((i, "best") for i in ordered[-OF_EACH_KIND:])
        yield from self._changed()

    def _changed(self) -> Iterator[tuple[int, str]]:
        """Yield the first and the last group of the prompts whose mean reward moved most between them."""
        seen: dict[bytes, tuple[int, int]] = {}
        for i, group in enumerate(self.groups):
            if group.mean is not None:
                seen[group.prompt] = (seen.get(group.prompt, (i, i))[0], i)
        moved = [(abs((self.groups[b].mean or 0) - (self.groups[a].mean or 0)), a, b) for a, b in seen.values()]
        for distance, a, b in sorted(moved, reverse=True)[: 2 * OF_EACH_KIND]:
            if distance > 0 and self.groups[a].step != self.groups[b].step:
                yield a, "changed"
                yield b, "changed"

    def _read(self, stream: Any, group: Group, kinds: frozenset[str]) -> Chosen:
        rows = []
        for place in group.places[:MAX_PER_GROUP]:
            stream.seek(place)
            rows.append(json.loads(stream.readline()))
        known = ("prompt", "completion", "rewards", "weighted_reward", "global_step")
        return Chosen(
            step=group.step,
            kinds=kinds,
            prompt=rows[0].get("prompt"),
            columns={name: value for name, value in rows[0].items() if name not in known},
            completions=[Completion(row.get("completion"), row["rewards"], row.get("weighted_reward")) for row in rows],
            left_out=len(group.places) - len(rows),
            mean=group.mean,
            prompt_id=group.prompt.hex(),
        )


def _spread(count: int, most: int) -> list[int]:
    """Return at most so many places of a list, the first and the last among them, evenly apart."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _width(group: Group) -> float:
    known = [score for score in group.scores if score is not None]
    return max(known) - min(known) if known else -1.0
