"""`sample`: draw completions, score them, and keep the good ones as training data.

Papers: STaR (https://huggingface.co/papers/2203.14465) and rejection sampling as in Llama 2
(https://huggingface.co/papers/2307.09288), section 3.2.3, for SFT data; iterative DPO
(https://huggingface.co/papers/2312.11456) for pairs.

1. Equal completions of one problem are kept once.
2. The first reward says what is right (`threshold`), the weighted sum of all rewards says what is better.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Literal

from posttrain_plugins.errors import StageFailed
from posttrain_plugins.inference.engine import sample, solve
from posttrain_plugins.inference.log import RequestLog
from posttrain_plugins.inference.measure import problems_of, score_texts
from posttrain_plugins.inference.scoring import as_completion
from posttrain_plugins.inference.transformers_backend import opened
from posttrain_plugins.types import (
    DataRef,
    ModelRef,
    Problem,
    ResolvedReward,
    Result,
    RewardRef,
    SamplingParams,
    StageContext,
    StageResult,
    StrategyRef,
)

__all__ = ["Sample"]


@dataclass
class Sample:
    """Make a data set out of a model's own completions.

    Args:
        model: who writes.
        dataset: prompts, and the columns that the rewards need; they are kept.
        rewards: the first decides what is right; their weighted sum ranks.
        strategy: how completions are made; by default `num_generations` plain draws. All finished candidates count.
        num_generations: completions per problem.
        keep: of the right completions the `best`, the best `top_k`, or all (`all_correct`), as prompt and completion;
            or `pairs`, a right one chosen and a wrong one rejected, as preferences.
        top_k: how many of a problem's completions `top_k` keeps.
        threshold: a completion is right where the first reward is at least this; None takes every judged completion,
            and `pairs` then sets the best against the worst by the weighted sum.
        max_pairs_per_prompt: how many pairs `pairs` makes of one problem.
        temperature: of the draws.
        top_p: of the draws.
        max_tokens: per completion.

    Raises:
        StageFailed: where nothing is worth keeping.
    """

    produces: ClassVar[str] = "dataset"
    requires_columns: ClassVar[dict[str, tuple[tuple[str, ...], ...]]] = {"dataset": (("prompt",),)}

    model: ModelRef
    dataset: DataRef
    rewards: list[RewardRef]
    strategy: StrategyRef | None = None
    num_generations: int = 8
    keep: Literal["best", "all_correct", "top_k", "pairs"] = "best"
    top_k: int = 1
    threshold: float | None = 0.5
    max_pairs_per_prompt: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the data set that this makes, before those that it hands through."""
        return ("prompt", "chosen", "rejected") if self.keep == "pairs" else ("prompt", "completion", "reward")

    def __call__(self, context: StageContext) -> StageResult:
        rows = [dict(row) for row in context.inputs["dataset"]]
        problems, columns = problems_of(rows, SamplingParams(self.temperature, self.top_p, self.max_tokens))
        with RequestLog(context.folder / "log.jsonl") as log:
            texts = [_texts(result) for result in self._results(context, problems, columns, log)]
            rewards: list[ResolvedReward] = context.inputs["rewards"]
            scores = [score_texts(reward, problems, columns, texts, log) for reward in rewards]
        judged = [_judge(texts[i], rewards, [of_reward[i] for of_reward in scores]) for i in range(len(rows))]
        kept = [
            row | part for i, row in enumerate(rows) for part in self._keep(row["prompt"], judged[i], context.seed, i)
        ]
        result = StageResult(metrics=self._metrics(judged, len(kept)), data_path=context.folder / "data.jsonl")
        if not kept:
            raise StageFailed(
                f"stage {context.stage!r} kept nothing of {sum(map(len, texts))} completions",
                hint="lower threshold, raise num_generations, or look at log.jsonl for what the model writes",
            )
        _write(result, kept)
        return result

    def _results(
        self, context: StageContext, problems: list[Problem], columns: Mapping[str, Sequence[Any]], log: RequestLog
    ) -> list[Result]:
        strategy = context.inputs.get("strategy")
        options: dict[str, Any] = {"log": log, "seed": context.seed, "should_stop": context.should_stop}
        with opened(context.inputs["model"]) as backend:
            options |= {"backend": backend, "progress": context.reporter.progress}
            if strategy is None:
                return sample(problems, self.num_generations, **options)
            return solve(strategy.strategy, problems, scorers=strategy.scorers, columns=columns, **options)

    def _keep(self, prompt: Any, judged: list[_Judged], seed: int, index: int) -> list[dict[str, Any]]:
        known = {item.text: item for item in judged if item.reward is not None and item.verdict is not None}
        ranked = sorted(known.values(), key=lambda item: -item.total)
        if self.keep == "pairs":
            pairs = self._pairs(ranked, random.Random(f"{seed}:{index}"))
            return [
                {"chosen": as_completion(prompt, chosen.text), "rejected": as_completion(prompt, rejected.text)}
                for chosen, rejected in pairs[: self.max_pairs_per_prompt]
            ]
        right = [item for item in ranked if self._is_right(item)]
        count = {"best": 1, "top_k": self.top_k}.get(self.keep, len(right))
        return [{"completion": as_completion(prompt, item.text), "reward": item.reward} for item in right[:count]]

    def _pairs(self, ranked: list[_Judged], rng: random.Random) -> list[tuple[_Judged, _Judged]]:
        if self.threshold is None:
            return [(a, b) for a, b in zip(ranked, reversed(ranked), strict=True) if a.total > b.total]
        right = [item for item in ranked if self._is_right(item)]
        wrong = [item for item in ranked if not self._is_right(item)]
        rng.shuffle(right)
        rng.shuffle(wrong)
        return list(zip(right, wrong, strict=False))

    def _is_right(self, item: _Judged) -> bool:
        return item.verdict is not None and (self.threshold is None or item.verdict >= self.threshold)

    def _metrics(self, judged: list[list[_Judged]], kept: int) -> dict[str, float]:
        rewards = [item.reward for row in judged for item in row if item.reward is not None]
        solved = sum(any(self._is_right(item) for item in row) for row in judged)
        figures = {
            "problems": len(judged),
            "completions": sum(map(len, judged)),
            "mean_reward": sum(rewards) / max(len(rewards), 1),
            "rows": kept,
            "solved_share": solved / max(len(judged), 1),
        }
        return {name: value for name, value in figures.items() if isfinite(value)}


@dataclass(frozen=True)
class _Judged:
    """A completion, its weighted sum of rewards and its first reward; None where they could not judge."""

    text: str
    reward: float | None
    verdict: float | None

    @property
    def total(self) -> float:
        return float("-inf") if self.reward is None else self.reward


def _texts(result: Result) -> list[str]:
    return [candidate.text for candidate in result.candidates] or ([result.text] if result.text else [])


def _judge(
    texts: Sequence[str], rewards: Sequence[ResolvedReward], scores: Sequence[Sequence[float | None]]
) -> list[_Judged]:
    """The completions of one problem; `scores` has a list for each reward."""
    return [_Judged(text, *_worth(rewards, [row[j] for row in scores])) for j, text in enumerate(texts)]


def _worth(rewards: Sequence[ResolvedReward], values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Weighted sum and first reward; as in TRL, a reward that cannot judge adds nothing to the sum."""
    known = [reward.weight * value for reward, value in zip(rewards, values, strict=True) if value is not None]
    return (sum(known) if known else None), values[0]


def _write(result: StageResult, rows: list[dict[str, Any]]) -> None:
    assert result.data_path is not None
    with result.data_path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
