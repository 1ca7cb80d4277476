"""The checks on rewards, and those on every kind, against rewards with one fault each."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from planted import GENERAL, Planted

from posttrain_plugins.errors import InputError
from posttrain_plugins.testing import run_checks
from posttrain_plugins.text import to_text

PLANTED = Planted("reward")
EXAMPLES = (
    {"prompt": "2+2=?", "completion": "so <answer>4</answer>", "solution": "4", "score": 1.0},
    {"prompt": "2+2=?", "completion": "so <answer>5</answer>", "solution": "4", "score": 0.0},
)


@dataclass
class Sound:
    """Right answers score 1.0."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires_columns: ClassVar[tuple[str, ...]] = ("solution",)
    oracle: ClassVar[bool] = True
    examples: ClassVar[tuple[dict[str, Any], ...]] = EXAMPLES

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        return [self.score(to_text(c), s) for c, s in zip(completions, solution, strict=True)]

    def score(self, text: str, solution: str) -> Any:
        found = text.rpartition("<answer>")[2].partition("</answer>")[0]
        return float(found == solution and "<answer>" in text)


@PLANTED.fails("check_one_value_per_completion")
@dataclass
class OneTooMany(Sound):
    """Repeats the last value."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        scores = super().__call__(completions, solution)
        return [*scores, *scores[-1:]]


@PLANTED.fails("check_float_or_none")
@dataclass
class Verdicts(Sound):
    """Says yes where it should say 1.0, on what is no example."""

    def score(self, text: str, solution: str) -> Any:
        return "no" if text.startswith("The") else super().score(text, solution)


@PLANTED.fails("check_finite")
@dataclass
class PerLength(Sound):
    """Divides by the length."""

    def score(self, text: str, solution: str) -> Any:
        return super().score(text, solution) if text else float("nan")


@PLANTED.fails("check_within_bounds")
@dataclass
class Proud(Sound):
    """Pays 1.0 and says that 0.9 is the most."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 0.9)


@PLANTED.fails("check_unknown_columns_are_ignored")
@dataclass
class Closed(Sound):
    """Takes what it knows and nothing else."""

    def __call__(self, prompts: Any, completions: Any, solution: Any) -> list[Any]:  # type: ignore[override]
        return super().__call__(completions, solution)


@PLANTED.fails("check_required_columns_suffice")
@dataclass
class Undeclared(Sound):
    """Reads a column that it does not declare."""

    requires_columns: ClassVar[tuple[str, ...]] = ()

    def __call__(self, completions: Any, **columns: Any) -> list[Any]:  # type: ignore[override]
        return super().__call__(completions, columns["solution"]) if completions else []


@PLANTED.fails("check_both_formats")
@dataclass
class PlainOnly(Sound):
    """Sees no text in messages."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        return super().__call__([c if isinstance(c, str) else "" for c in completions], solution)


@PLANTED.fails("check_empty_batch")
@dataclass
class NeverEmpty(Sound):
    """Takes the length of the longest."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        max(len(to_text(c)) for c in completions)
        return super().__call__(completions, solution)


@PLANTED.fails("check_order_does_not_matter")
@dataclass
class Neighbourly(Sound):
    """Takes off where the completion before was longer."""

    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        lengths = [0, *(len(to_text(c)) for c in completions)]
        scores = super().__call__(completions, solution)
        return [s - 0.5 * (a > b) for s, a, b in zip(scores, lengths, lengths[1:], strict=False)]


@PLANTED.fails("check_batch_of_one_agrees")
@dataclass
class Relative(Sound):
    """Takes off the share of right ones among others."""

    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        scores = super().__call__(completions, solution)
        return [s - sum(scores) / len(scores) * (len(scores) > 1) for s in scores]


@PLANTED.fails("check_same_twice")
@dataclass
class Tiring(Sound):
    """Pays less each time that it sees the same batch."""

    seen: Counter[str] = field(default_factory=Counter)

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        key = str([to_text(c) for c in completions])
        self.seen[key] += len(completions) > 2
        return [s / max(1, self.seen[key]) for s in super().__call__(completions, solution)]

    def __reduce__(self) -> Any:
        return Tiring, ()


@PLANTED.fails("check_inputs_unchanged")
@dataclass
class Emptying(Sound):
    """Empties the list of completions."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        scores = super().__call__(completions, solution)
        completions.clear()
        return scores


@PLANTED.fails("check_global_rng_untouched")
@dataclass
class Seeding(Sound):
    """Seeds the global generator, to be deterministic."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        random.seed(0)
        return super().__call__(completions, solution)


@PLANTED.fails("check_odd_text_survived")
@dataclass
class Fragile(Sound):
    """Reads the first word."""

    def score(self, text: str, solution: str) -> Any:
        return super().score(text, solution) if text.split()[0] else 0.0

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        return super().__call__(completions, solution)


@PLANTED.fails("check_examples_get_their_scores")
@dataclass
class Indifferent(Sound):
    """Finds everything half good."""

    oracle: ClassVar[bool] = False

    def score(self, text: str, solution: str) -> Any:
        return 0.5


@PLANTED.fails("check_not_fooled_by_spam")
@dataclass
class Counting(Sound):
    """Pays for every right answer that it finds."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 100.0)

    def score(self, text: str, solution: str) -> Any:
        return float(text.count(f"<answer>{solution}</answer>"))


@PLANTED.fails("check_picklable")
@dataclass
class Closure(Sound):
    """Holds a lambda."""

    key: Any = field(default_factory=lambda: lambda text: text)


@PLANTED.fails("check_has_a_log_name")
@dataclass
class Slashed(Sound):
    """Has a name that makes a group of its own."""

    def __post_init__(self) -> None:
        self.__name__ = "mine/right"


@PLANTED.fails("check_async_is_visible")
@dataclass
class HiddenAsync(Sound):
    """Returns a coroutine from a plain call."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> Any:
        async def later() -> list[Any]:
            return Sound.__call__(self, completions, solution)

        return later()


@PLANTED.fails("check_step_scores")
@dataclass
class FlatSteps(Sound):
    """Gives a number where a list of numbers belongs."""

    def step_scores(self, completions: Any, **columns: Any) -> Any:
        return [0.5 for _ in completions]


@PLANTED.fails("check_can_be_made")
@dataclass
class Demanding(Sound):
    """Needs a parameter and shows none."""

    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            raise InputError("demanding has no key", hint="key: abc")


@PLANTED.fails("check_has_a_docstring")
@dataclass
class Silenced(Sound):
    max_chars: int = 0


@PLANTED.fails("check_parameters_are_typed")
class Untyped(Sound):
    """Takes something."""

    def __init__(self, threshold=1.0) -> None:  # type: ignore[no-untyped-def]
        self.threshold = threshold


@pytest.mark.parametrize("check", PLANTED.plugins)
def test_a_planted_fault_fails_its_check_and_no_other(check: str) -> None:
    PLANTED.assert_fails_alone(check)


def test_every_check_has_a_planted_fault() -> None:
    PLANTED.assert_every_check_has_one()


def test_a_sound_plugin_passes() -> None:
    PLANTED.assert_passes(Sound)


def test_the_checks_on_every_kind_have_planted_faults_here() -> None:
    assert GENERAL - {"check_is_light_to_import"} <= set(PLANTED.plugins)  # that one needs a module of its own


# --- rewards that others wrote ---------------------------------------------------------------------------------------


def starts_with_thought(completions, **kwargs):  # type: ignore[no-untyped-def]
    """Reward function in the style of Open R1."""
    return [float(completion[0]["content"].startswith("<think>")) for completion in completions]


def counts_tokens(prompts, completions, completion_ids, trainer_state, **kwargs):  # type: ignore[no-untyped-def]
    """Needs what only a trainer gives."""
    contents = [completion[0]["content"] for completion in completions]
    return [
        len(ids) + trainer_state.global_step + 0.0 * len(c) for ids, c in zip(completion_ids, contents, strict=True)
    ]


def scaled(max_chars: int = 1000):  # type: ignore[no-untyped-def]
    """Make a reward."""
    return Scaled(max_chars)


@dataclass
class Scaled:
    """Pays for the room that is left."""

    max_chars: int
    __name__ = "scaled"

    def __call__(self, completions: Any, **kwargs: Any) -> list[float]:
        return [1 - len(to_text(completion)) / self.max_chars for completion in completions]


@pytest.mark.parametrize("reward", [starts_with_thought, counts_tokens])
def test_a_reward_for_messages_alone_is_checked_on_messages(reward: Any) -> None:
    outcomes = {outcome.check: outcome for outcome in run_checks("reward", reward)}
    failed = [name for name, outcome in outcomes.items() if outcome.status == "failed"]
    assert failed == ["check_both_formats"]
    assert "TypeError" in outcomes["check_both_formats"].reason
    assert "formats = ['conversational']" in outcomes["check_both_formats"].reason
    for name in ("check_one_value_per_completion", "check_inputs_unchanged", "check_picklable", "check_empty_batch"):
        assert outcomes[name].status == "passed"


def test_a_function_that_makes_a_reward_is_called_first() -> None:
    PLANTED.assert_passes(scaled)


def test_a_reward_that_raises_on_both_is_told_once() -> None:
    def broken(completions: Any, **kwargs: Any) -> list[float]:
        """Raise."""
        raise KeyError("x")

    failed = {outcome.check: outcome.reason for outcome in run_checks("reward", broken) if outcome.status == "failed"}
    assert failed == {"check_one_value_per_completion": "it raised KeyError: 'x'"}


class Lacking(Sound):
    """Sound, but for its examples."""

    examples: ClassVar[Any] = tuple({k: v for k, v in row.items() if k != "solution"} for row in EXAMPLES)


def test_an_example_without_a_needed_column_is_told() -> None:
    failed = {outcome.check: outcome.reason for outcome in run_checks("reward", Lacking) if outcome.status == "failed"}
    assert list(failed) == ["check_examples_get_their_scores"]
    assert failed["check_examples_get_their_scores"].endswith("lacks what the reward needs: solution")
