"""Is a training well? Verdicts over its figures: each with its threshold, where that is from, and what cures it.

No paper has one number that holds for every model, so a threshold is either a paper's own remedy taken for when it is
needed, or what practice looks for; `source` says which. A figure that a trainer does not log, or that has fewer than
`MIN_POINTS` points, gets no verdict. Of a series the ends are compared as means of a tenth of it, so that one odd step
is no verdict, and what must be a change has to exceed twice its standard error; four times, where one end is the best
of many windows, which noise alone makes better than the last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import isfinite, sqrt
from statistics import fmean, median, variance
from typing import Literal, TypeAlias

from posttrain_plugins.record.figures import StepFigures

__all__ = ["CHECKS", "MIN_POINTS", "Check", "Verdict", "health"]

MIN_POINTS = 20
MIN_EVALUATIONS = 8
"""Of held-out figures: there are few, and each is a mean of many."""
SURE, SURE_OF_BEST = 2.0, 4.0  # standard errors of a difference
AGO = 0.67  # of a training: what is compared with its end to see whether it still learns

HealthState: TypeAlias = Literal["ok", "warn", "bad"]

DAPO = "DAPO, https://huggingface.co/papers/2503.14476"
GAO = "Gao et al. 2022, https://huggingface.co/papers/2210.10760"


@dataclass(frozen=True)
class Verdict:
    """What one figure says of a training.

    Args:
        name: of the check.
        figure: that it looks at.
        state: `ok`, `warn` or `bad`.
        what: is found, in words.
        value: that was compared, of the end of the training.
        threshold: that it is beyond, or that it stays within.
        since_step: from here on it was beyond it; None where it is not.
        source: of the threshold.
        cure: what to write into the recipe.
    """

    name: str
    figure: str
    state: HealthState
    what: str
    value: float
    threshold: float
    since_step: int | None
    source: str
    cure: str

    def __str__(self) -> str:
        since = "" if self.since_step is None else f" since step {self.since_step}"
        found = f"{self.value:.3g}, threshold {self.threshold:g}"
        return f"health: {self.what} ({self.figure}: {found}{since}); cure: {self.cure}; from {self.source}"


def health(lines: Iterable[StepFigures]) -> list[Verdict]:
    """Judge a training by its figures, also while it runs.

    Args:
        lines: of the stage, `StageRecord.figures()`.

    Returns:
        A verdict for each check whose figures are there, also those that are `ok`.
    """
    found: dict[str, _Series] = {}
    for line in lines:
        for name, value in line.figures.items():
            if isfinite(value):
                found.setdefault(name, _Series(name, [], [])).add(line.step, value)
    least = {name: MIN_EVALUATIONS if name.startswith("eval_") else MIN_POINTS for name in found}
    series = {name: one for name, one in found.items() if len(one.values) >= least[name]}
    return [verdict for limit in CHECKS for verdict in limit.judge(limit, series)]


@dataclass(frozen=True)
class _Series:
    """A figure over the steps that have it."""

    name: str
    steps: list[int]
    values: list[float]

    def add(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)

    @property
    def width(self) -> int:
        return max(5 if len(self.values) >= MIN_POINTS else 3, len(self.values) // 10)

    @property
    def first(self) -> list[float]:
        return self.values[: self.width]

    @property
    def last(self) -> list[float]:
        return self.values[-self.width :]

    @property
    def ago(self) -> list[float]:
        """The window that ends where the last third begins."""
        end = max(self.width, int(AGO * len(self.values)))
        return self.values[end - self.width : end]

    def means(self) -> list[float]:
        """The mean of each window, by the step at which it ends, from the first that is whole."""
        sums = [0.0, *accumulate(self.values)]
        return [(sums[i] - sums[i - self.width]) / self.width for i in range(self.width, len(sums))]

    def since(self, is_beyond: Callable[[float], bool]) -> int | None:
        """The step from which the windows' means were beyond a threshold up to the end."""
        means = self.means()
        within = next((i for i in range(len(means) - 1, -1, -1) if not is_beyond(means[i])), -1)
        return None if within == len(means) - 1 else self.steps[within + self.width]


def _exceeds(larger: Sequence[float], smaller: Sequence[float], sure: float = SURE) -> bool:
    """Is one mean above another by more than chance?"""
    error = sqrt(sum(variance(part) / len(part) for part in (larger, smaller)))
    return fmean(larger) - fmean(smaller) > max(sure * error, 1e-9)


# --- how a figure is judged ------------------------------------------------------------------------------------------


def _verdict(
    check: Check, series: _Series, value: float, unit: float = 1.0, is_excused: bool = False, figure: str = ""
) -> Verdict:
    """Compare a value with a check's thresholds; of the series they are `unit` times as large."""

    def is_beyond(threshold: float) -> Callable[[float], bool]:
        return lambda mean: (mean > threshold) if check.bad > check.warn else (mean < threshold)

    state: HealthState = "bad" if is_beyond(check.bad)(value) else "warn" if is_beyond(check.warn)(value) else "ok"
    state = "ok" if is_excused else state
    threshold = check.bad if state == "bad" else check.warn
    since = None if state == "ok" else series.since(is_beyond(threshold * unit))
    name = figure or series.name
    return Verdict(check.name, name, state, check.what, value, threshold, since, check.source, check.cure)


def _level(check: Check, series: Mapping[str, _Series]) -> Iterator[Verdict]:
    """Yield a verdict on the mean at the end."""
    if check.figure in series:
        yield _verdict(check, series[check.figure], fmean(series[check.figure].last))


def _change(check: Check, series: Mapping[str, _Series]) -> Iterator[Verdict]:
    """Yield a verdict on the mean at the end, in those of the start, where nothing is learned for it."""
    figure, reward = series.get(check.figure), series.get("reward")
    if figure is None or reward is None or fmean(figure.first) <= 0:
        return
    began = fmean(figure.first)
    # entropy that falls is the price of what is learned (https://huggingface.co/papers/2505.22617), so that only the
    # end counts; of length, what was gained all in all
    learns = _exceeds(reward.last, reward.ago if check.bad < check.warn else reward.first)
    yield _verdict(check, figure, fmean(figure.last) / began, began, is_excused=learns)


def _proxy(check: Check, series: Mapping[str, _Series]) -> Iterator[Verdict]:
    """Yield a verdict on each reward, and each held-out one, that falls while what is optimised rises."""
    reward = series.get("reward")
    if reward is None:
        return
    parts = [name for name in series if name.startswith("rewards/") and name.endswith("/mean")]
    held_out = [name for name in series if name == "eval_reward" or re.fullmatch("eval_rewards/.*/mean", name)]
    for name in [*(parts if len(parts) > 1 else ()), *held_out]:
        gold = series[name]
        means = gold.means()
        peak = max(range(len(means)), key=means.__getitem__)
        at_peak, at_step = gold.values[peak : peak + gold.width], gold.steps[peak + gold.width - 1]
        then = [v for step, v in zip(reward.steps, reward.values, strict=True) if step <= at_step][-reward.width :]
        falls = _exceeds(at_peak, gold.last, SURE_OF_BEST) and len(then) > 1 and _exceeds(reward.last, then)
        verdict = _verdict(check, gold, (means[peak] - means[-1]) / max(abs(means[peak]), 1e-9), is_excused=not falls)
        yield verdict if verdict.state == "ok" else replace(verdict, since_step=at_step)


def _jump(check: Check, series: Mapping[str, _Series]) -> Iterator[Verdict]:
    """Yield a verdict on a gradient that jumps, or has grown for good."""
    norm = series.get(check.figure)
    usual = median(norm.values) if norm else 0.0
    if norm is None or usual <= 0:
        return
    grown = median(norm.last) / max(median(norm.first), 1e-12)
    worst = max(norm.last) / usual
    at = next((step for step, v in zip(norm.steps, norm.values, strict=True) if v > check.warn * usual), None)
    state: HealthState = "bad" if grown > check.bad else "warn" if worst > check.warn else "ok"
    since = None if state == "ok" else at
    value, threshold = (grown, check.bad) if state == "bad" else (worst, check.warn)
    yield Verdict(check.name, norm.name, state, check.what, value, threshold, since, check.source, check.cure)


def _risen(check: Check, series: Mapping[str, _Series]) -> Iterator[Verdict]:
    """Yield a verdict on a loss that has gone up again; of RL it is no measure, but a surrogate about 0."""
    loss = series.get(check.figure)
    if loss is None or "reward" in series:
        return
    means = loss.means()
    lowest = min(means)
    if lowest <= 0:
        return
    at = means.index(lowest)
    is_up = _exceeds(loss.last, loss.values[at : at + loss.width], SURE_OF_BEST)
    yield _verdict(check, loss, fmean(loss.last) / lowest, lowest, is_excused=not is_up)


# --- the checks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """What is looked at.

    Args:
        name: of the check.
        figure: TRL's name of it.
        warn: the threshold; where `bad` is below it, less is worse.
        bad: of what is worse.
        what: is found beyond it.
        source: of the thresholds.
        cure: what to write into the recipe.
        judge: yields the verdicts.
    """

    name: str
    figure: str
    warn: float
    bad: float
    what: str
    source: str
    cure: str
    judge: Callable[[Check, Mapping[str, _Series]], Iterator[Verdict]] = _level


CHECKS = (
    Check(
        name="kl",
        figure="kl",
        warn=0.2,
        bad=1.0,
        what="the policy is far from its reference, in nats a token",
        source=f"practice; that gold falls beyond some KL: {GAO}, section 3",
        cure="raise args.beta (grpo, rloo, online_dpo) or args.kl_coef (ppo, sft), or lower args.learning_rate",
    ),
    Check(
        name="entropy",
        figure="entropy",
        warn=0.2,
        bad=0.05,
        what="the policy tries nothing new and its reward does not rise: share of the entropy at the start",
        source=f"practice; why: {DAPO}, section 3.1, and https://huggingface.co/papers/2505.22617",
        cure="args.epsilon_high: 0.28 (grpo, ppo), args.temperature: 1.0, or fewer steps",
        judge=_change,
    ),
    Check(
        name="length",
        figure="completions/mean_length",
        warn=1.5,
        bad=3.0,
        what="completions grow and the reward does not: times the length at the start",
        source="practice; why: https://huggingface.co/papers/2503.20783, section 3.1, "
        "and https://huggingface.co/papers/2310.03716",
        cure="args.loss_type: dr_grpo (grpo), or a reward {use: soft_overlong, ...} or {use: length, ...} beside yours",
        judge=_change,
    ),
    Check(
        name="truncated",
        figure="completions/clipped_ratio",
        warn=0.1,
        bad=0.3,
        what="completions are cut at the limit, and judged by what they had not finished",
        source=f"practice; the remedies: {DAPO}, section 3.4",
        cure="raise args.max_completion_length, or args.mask_truncated_completions: true (grpo), or a reward "
        "{use: soft_overlong, max_completion_len: LIMIT, soft_punish_cache: LIMIT / 5}",
    ),
    Check(
        name="no_signal",
        figure="frac_reward_zero_std",
        warn=0.5,
        bad=0.9,
        what="groups have equal rewards and teach nothing",
        source=f"practice; why: {DAPO}, section 3.2",
        cure="take out of the data what is always or never solved, or raise args.num_generations, or grade the reward",
    ),
    Check(
        name="proxy",
        figure="rewards/NAME/mean",
        warn=0.1,
        bad=0.25,
        what="it falls while the sum that is optimised rises: share of its peak that is lost",
        source=f"over-optimisation: {GAO}, section 3; shares: practice",
        cure="raise the weight of this reward or args.beta, use {use: ensemble} of reward models, or stop earlier",
        judge=_proxy,
    ),
    Check(
        name="value",
        figure="value/explained_variance",
        warn=0.2,
        bad=0.0,
        what="the critic explains little of the returns",
        source="Stable-Baselines3's logger: 0 is no better than to predict nothing, below 0 worse",
        cure="critic: {from: STAGE} of a stage `value`, or args.critic_iterations: 4, or "
        "args.critic_warmup_steps: 20, or args.critic_learning_rate: ten times the policy's",
    ),
    Check(
        name="clip_fraction",
        figure="clip_ratio/region_mean",
        warn=0.2,
        bad=0.4,
        what="tokens are moved past the clip within one generation, and get no gradient",
        source="practice: https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, debug variables",
        cure="lower args.learning_rate, args.num_iterations or args.steps_per_generation",
    ),
    Check(
        name="gradient",
        figure="grad_norm",
        warn=10.0,
        bad=10.0,
        what="the gradient jumps to many times its median, or (bad) has grown to many times that of the start",
        source="practice; spikes and what was done of them: PaLM, https://huggingface.co/papers/2204.02311, 5.1",
        cure="lower args.learning_rate, args.max_grad_norm: 0.5, or args.warmup_steps: 50",
        judge=_jump,
    ),
    Check(
        name="loss",
        figure="loss",
        warn=1.3,
        bad=2.0,
        what="the loss has gone up again: times its lowest (not of RL, where it is no measure)",
        source="practice",
        cure="lower args.learning_rate, or args.warmup_steps: 50, or look at the rows of these steps",
        judge=_risen,
    ),
)
"""In the order in which they are told."""
