"""The conformance kit: for each check a plugin with one fault, which fails that check and no other."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest import SkipTest

import pytest

from posttrain_plugins import testing
from posttrain_plugins.answers import candidates, choose
from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.testing import CHECKS, run_checks
from posttrain_plugins.text import to_text
from posttrain_plugins.types import (
    DataRef,
    Generate,
    Problem,
    StageContext,
    StageResult,
)

MODULE = sys.modules[__name__]
EXAMPLES = (
    {"prompt": "2+2=?", "completion": "so <answer>4</answer>", "solution": "4", "score": 1.0},
    {"prompt": "2+2=?", "completion": "so <answer>5</answer>", "solution": "4", "score": 0.0},
)
FAULTS: dict[str, dict[str, Any]] = {kind: {} for kind in CHECKS}


def fails(kind: str, check: str) -> Callable[[Any], Any]:
    """Plants a fault: the plugin that is decorated fails this check of its kind, and no other."""

    def note(plugin: Any) -> Any:
        assert check not in FAULTS[kind]
        FAULTS[kind][check] = plugin
        return plugin

    return note


# --- rewards ---------------------------------------------------------------------------------------------------------


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


@fails("reward", "check_one_value_per_completion")
@dataclass
class OneTooMany(Sound):
    """Repeats the last value."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        scores = super().__call__(completions, solution)
        return [*scores, *scores[-1:]]


@fails("reward", "check_float_or_none")
@dataclass
class Verdicts(Sound):
    """Says yes where it should say 1.0, on what is no example."""

    def score(self, text: str, solution: str) -> Any:
        return "no" if text.startswith("The") else super().score(text, solution)


@fails("reward", "check_finite")
@dataclass
class PerLength(Sound):
    """Divides by the length."""

    def score(self, text: str, solution: str) -> Any:
        return super().score(text, solution) if text else float("nan")


@fails("reward", "check_within_bounds")
@dataclass
class Proud(Sound):
    """Pays 1.0 and says that 0.9 is the most."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 0.9)


@fails("reward", "check_unknown_columns_are_ignored")
@dataclass
class Closed(Sound):
    """Takes what it knows and nothing else."""

    def __call__(self, prompts: Any, completions: Any, solution: Any) -> list[Any]:  # type: ignore[override]
        return super().__call__(completions, solution)


@fails("reward", "check_required_columns_suffice")
@dataclass
class Undeclared(Sound):
    """Reads a column that it does not declare."""

    requires_columns: ClassVar[tuple[str, ...]] = ()

    def __call__(self, completions: Any, **columns: Any) -> list[Any]:  # type: ignore[override]
        return super().__call__(completions, columns["solution"]) if completions else []


@fails("reward", "check_both_formats")
@dataclass
class PlainOnly(Sound):
    """Sees no text in messages."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        return super().__call__([c if isinstance(c, str) else "" for c in completions], solution)


@fails("reward", "check_empty_batch")
@dataclass
class NeverEmpty(Sound):
    """Takes the length of the longest."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        max(len(to_text(c)) for c in completions)
        return super().__call__(completions, solution)


@fails("reward", "check_order_does_not_matter")
@dataclass
class Neighbourly(Sound):
    """Takes off where the completion before was longer."""

    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        lengths = [0, *(len(to_text(c)) for c in completions)]
        scores = super().__call__(completions, solution)
        return [s - 0.5 * (a > b) for s, a, b in zip(scores, lengths, lengths[1:], strict=False)]


@fails("reward", "check_batch_of_one_agrees")
@dataclass
class Relative(Sound):
    """Takes off the share of right ones among others."""

    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        scores = super().__call__(completions, solution)
        return [s - sum(scores) / len(scores) * (len(scores) > 1) for s in scores]


@fails("reward", "check_same_twice")
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


@fails("reward", "check_inputs_unchanged")
@dataclass
class Emptying(Sound):
    """Empties the list of completions."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        scores = super().__call__(completions, solution)
        completions.clear()
        return scores


@fails("reward", "check_global_rng_untouched")
@dataclass
class Seeding(Sound):
    """Seeds the global generator, to be deterministic."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        random.seed(0)
        return super().__call__(completions, solution)


@fails("reward", "check_odd_text_survived")
@dataclass
class Fragile(Sound):
    """Reads the first word."""

    def score(self, text: str, solution: str) -> Any:
        return super().score(text, solution) if text.split()[0] else 0.0

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> list[Any]:
        return super().__call__(completions, solution)


@fails("reward", "check_examples_get_their_scores")
@dataclass
class Indifferent(Sound):
    """Finds everything half good."""

    oracle: ClassVar[bool] = False

    def score(self, text: str, solution: str) -> Any:
        return 0.5


@fails("reward", "check_not_fooled_by_spam")
@dataclass
class Counting(Sound):
    """Pays for every right answer that it finds."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 100.0)

    def score(self, text: str, solution: str) -> Any:
        return float(text.count(f"<answer>{solution}</answer>"))


@fails("reward", "check_picklable")
@dataclass
class Closure(Sound):
    """Holds a lambda."""

    key: Any = field(default_factory=lambda: lambda text: text)


@fails("reward", "check_has_a_log_name")
@dataclass
class Slashed(Sound):
    """Has a name that makes a group of its own."""

    def __post_init__(self) -> None:
        self.__name__ = "mine/right"


@fails("reward", "check_async_is_visible")
@dataclass
class HiddenAsync(Sound):
    """Returns a coroutine from a plain call."""

    def __call__(self, completions: Any, solution: Any, **columns: Any) -> Any:
        async def later() -> list[Any]:
            return Sound.__call__(self, completions, solution)

        return later()


@fails("reward", "check_step_scores")
@dataclass
class FlatSteps(Sound):
    """Gives a number where a list of numbers belongs."""

    def step_scores(self, completions: Any, **columns: Any) -> Any:
        return [0.5 for _ in completions]


@fails("reward", "check_can_be_made")
@dataclass
class Demanding(Sound):
    """Needs a parameter and shows none."""

    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            raise InputError("demanding has no key", hint="key: abc")


@fails("reward", "check_has_a_docstring")
@dataclass
class Silenced(Sound):
    max_chars: int = 0


@fails("reward", "check_parameters_are_typed")
class Untyped(Sound):
    """Takes something."""

    def __init__(self, threshold=1.0) -> None:  # type: ignore[no-untyped-def]
        self.threshold = threshold


# --- adapters --------------------------------------------------------------------------------------------------------


def lora_config(**params: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **params})


@fails("adapter", "check_gives_a_peft_config")
def as_dict() -> Any:
    """A mapping of options."""
    return {"r": 2}


RANKS = iter(range(2, 10_000))


@fails("adapter", "check_same_config_twice")
def growing() -> Any:
    """One more each time."""
    return lora_config(r=next(RANKS))


@fails("adapter", "check_config_round_trips")
def discreet() -> Any:
    """A config that does not write down its scale."""
    from peft import LoraConfig

    @dataclass
    class Discreet(LoraConfig):
        def to_dict(self) -> dict[str, Any]:
            return {name: value for name, value in super().to_dict().items() if name != "lora_alpha"}

    return Discreet(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


@fails("adapter", "check_attaches")
def nowhere() -> Any:
    """Names modules that no model has."""
    return lora_config(target_modules=["no_such_module"])


@fails("adapter", "check_only_its_weights_train")
def frozen() -> Any:
    """Made for inference."""
    return lora_config(inference_mode=True)


@fails("adapter", "check_saves_and_reloads")
def half_saved() -> Any:
    """A config that writes another scale than its own."""
    from peft import LoraConfig

    @dataclass
    class Forgetful(LoraConfig):
        def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
            saved = LoraConfig(r=2, lora_alpha=99, target_modules="all-linear", task_type="CAUSAL_LM")
            saved.save_pretrained(save_directory, **kwargs)

    return Forgetful(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


@fails("adapter", "check_disabled_gives_the_base")
def principal() -> Any:
    """PiSSA takes its weights out of the base."""
    return lora_config(init_lora_weights="pissa")


@fails("adapter", "check_merges_or_says_so")
def prompts() -> Any:
    """Virtual tokens, which no weight of the base can hold."""
    from peft import PromptTuningConfig

    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)


# --- data sets -------------------------------------------------------------------------------------------------------


def rows(count: int = 8, seed: int = 0, first: int = 0) -> Any:
    import datasets

    numbers = random.Random(seed).sample(range(100), count)
    return datasets.Dataset.from_list([{"prompt": f"{first + n}+1=?", "solution": str(first + n + 1)} for n in numbers])


@fails("dataset", "check_gives_a_dataset")
def a_list() -> Any:
    """Rows in a list."""
    return [{"prompt": "2+2=?"}]


@fails("dataset", "check_trl_format")
def questions() -> Any:
    """Columns of its own."""
    return rows().rename_columns({"prompt": "question", "solution": "answer"})


@fails("dataset", "check_columns_as_declared")
def undeclared_columns() -> Any:
    """Declares a column that is not there."""
    return rows()


undeclared_columns.columns = ("prompt", "solution", "level")  # type: ignore[attr-defined]

NUMBERS = iter(range(10_000))


@fails("dataset", "check_same_seed_same_rows")
def never_again() -> Any:
    """Other rows at each call."""
    return rows(seed=next(NUMBERS))


@fails("dataset", "check_other_seed_other_rows")
def one_seed(seed: int = 0) -> Any:
    """Does not look at its seed."""
    return rows()


@fails("dataset", "check_splits_disjoint")
def overlapping(split: Literal["train", "test"] = "train") -> Any:
    """Two splits that share rows."""
    return rows(seed=3) if split == "train" else rows(8, seed=3)


@fails("dataset", "check_global_rng_untouched")
def shuffling() -> Any:
    """Draws from the global generator."""
    random.random()
    return rows()


# --- strategies ------------------------------------------------------------------------------------------------------


@dataclass
class Once:
    """One answer."""

    def __call__(self, problem: Problem) -> Any:
        among = candidates((yield Generate(problem.prompt, n=2, params=problem.params)))
        return choose(among, 0 if among else None)


@fails("strategy", "check_returns_a_result")
@dataclass
class Bare(Once):
    """Returns its text."""

    def __call__(self, problem: Problem) -> Any:
        result = yield from super().__call__(problem)
        return result.text


@fails("strategy", "check_both_prompt_formats")
@dataclass
class ChatOnly(Once):
    """Reads the last message."""

    def __call__(self, problem: Problem) -> Any:
        assert problem.prompt[-1]["content"]  # type: ignore[index]
        return (yield from super().__call__(problem))


@fails("strategy", "check_budget_kept")
@dataclass
class Greedy(Once):
    """Goes on when the budget has ended."""

    def __call__(self, problem: Problem) -> Any:
        try:
            return (yield from super().__call__(problem))
        except BudgetExhausted:
            return (yield from super().__call__(problem))


@fails("strategy", "check_never_sees_the_reference")
@dataclass
class Peeking(Once):
    """Looks for the answer in the engine."""

    def __call__(self, problem: Problem) -> Any:
        result = yield from super().__call__(problem)
        frame: Any = sys._getframe()
        while frame is not None and "lives" not in frame.f_locals:
            frame = frame.f_back
        told = {**frame.f_locals["lives"][0].columns} if frame is not None else {}
        return replace(result, answer=told.get("solution", result.answer))


CALLS = iter(range(10_000))


@fails("strategy", "check_same_seed_same_answer")
@dataclass
class Moody(Once):
    """Chance of its own."""

    is_stateful: ClassVar[bool] = True

    def __call__(self, problem: Problem) -> Any:
        result = yield from super().__call__(problem)
        return replace(result, answer=next(CALLS))


@fails("strategy", "check_global_rng_untouched")
@dataclass
class Dicing(Once):
    """Draws from the global generator."""

    def __call__(self, problem: Problem) -> Any:
        random.random()
        return (yield from super().__call__(problem))


@fails("strategy", "check_problem_unchanged")
@dataclass
class Appending(Once):
    """Writes into the problem's messages, and takes it away too late."""

    def __call__(self, problem: Problem) -> Any:
        if isinstance(problem.prompt, list) and len(problem.prompt) < 2:
            problem.prompt.append({"role": "user", "content": "Think."})
        return (yield from super().__call__(problem))


@fails("strategy", "check_problems_stay_apart")
@dataclass
class Sharing(Once):
    """Keeps the best text on itself."""

    best: str = ""

    def __call__(self, problem: Problem) -> Any:
        self.best = ""
        result = yield from super().__call__(problem)
        self.best = max(self.best, result.text)
        yield Generate(problem.prompt, params=problem.params)
        return replace(result, text=self.best)


@fails("strategy", "check_empty_completions_survived")
@dataclass
class FirstCharacter(Once):
    """Looks at the first character."""

    def __call__(self, problem: Problem) -> Any:
        among = candidates((yield Generate(problem.prompt, n=2, params=problem.params)))
        return choose(among, int(among[0].text[0] == "x") if among else None)


@fails("strategy", "check_identical_completions_survived")
@dataclass
class Spread(Once):
    """Divides by how many different answers there are, less one."""

    def __call__(self, problem: Problem) -> Any:
        among = candidates((yield Generate(problem.prompt, n=8, params=problem.params)))
        if any(one.answer == "4" for one in among):
            _ = 1 / (len({one.text for one in among}) - 1)
        return choose(among, 0 if among else None)


@fails("strategy", "check_cut_off_completions_survived")
@dataclass
class Finished(Once):
    """Wants one that came to its end."""

    def __call__(self, problem: Problem) -> Any:
        drawn = yield Generate(problem.prompt, n=2, params=problem.params)
        among = candidates(drawn)
        if among:
            next(c for c in drawn if c.finish_reason != "length")
        return choose(among, 0 if among else None)


@fails("strategy", "check_failed_completions_survived")
@dataclass
class Trusting(Once):
    """Takes the first that did not fail."""

    def __call__(self, problem: Problem) -> Any:
        among = candidates((yield Generate(problem.prompt, n=2, params=problem.params)))
        return choose([among[0]], 0)


@fails("strategy", "check_odd_completions_survived")
@dataclass
class Formatting(Once):
    """Fills in completions with str.format."""

    def __call__(self, problem: Problem) -> Any:
        result = yield from super().__call__(problem)
        str(result.text + "{z}" * ("{" in result.text)).format()
        return result


@fails("strategy", "check_composes")
@dataclass
class Outermost(Once):
    """Is driven by hand."""

    def __call__(self, problem: Problem) -> Any:
        return _Driven(super().__call__(problem))


class _Driven:
    def __init__(self, steps: Any) -> None:
        self.steps = steps

    def __next__(self) -> Any:
        return next(self.steps)

    def send(self, value: Any) -> Any:
        return self.steps.send(value)

    def throw(self, error: BaseException) -> Any:
        return self.steps.throw(error)

    def close(self) -> None:
        self.steps.close()


# --- stages ----------------------------------------------------------------------------------------------------------


@dataclass
class Copying:
    """Writes its data again."""

    dataset: DataRef
    produces: ClassVar[str] = "dataset"
    requires_columns: ClassVar[Any] = {"dataset": (("prompt",),)}

    def __call__(self, context: StageContext) -> Any:
        file = context.folder / "rows.jsonl"
        context.inputs["dataset"].to_json(str(file))
        return StageResult(metrics={"rows": float(len(context.inputs["dataset"]))}, data_path=file)


@fails("stage", "check_references_are_annotated")
@dataclass
class Loose(Copying):
    """Names its model by a text."""

    model: str = "base"


@fails("stage", "check_says_what_it_produces")
@dataclass
class Vague(Copying):
    """Makes rows."""

    produces: ClassVar[str] = "rows"


@fails("stage", "check_args_have_a_class")
@dataclass
class Optional(Copying):
    """Takes any options."""

    args: dict[str, Any] = field(default_factory=dict)


@fails("stage", "check_columns_belong_to_its_data")
@dataclass
class Elsewhere(Copying):
    """Needs columns of a field that it does not have."""

    requires_columns: ClassVar[Any] = {"dataset": (("prompt",),), "data": (("prompt",),)}


@fails("stage", "check_picklable")
@dataclass
class Holding(Copying):
    """Holds a lambda."""

    key: Any = field(default_factory=lambda: lambda row: row)


@fails("stage", "check_runs_one_step")
@dataclass
class Stumbling(Copying):
    """Reads a column that it does not ask for."""

    def __call__(self, context: StageContext) -> Any:
        return context.inputs["dataset"]["no_such_column"]


@fails("stage", "check_makes_what_it_says")
@dataclass
class Forgetting(Copying):
    """Says nothing of its file."""

    def __call__(self, context: StageContext) -> Any:
        return replace(super().__call__(context), data_path=None)


@fails("stage", "check_writes_into_its_folder")
@dataclass
class Littering(Copying):
    """Leaves a file in the working directory."""

    def __call__(self, context: StageContext) -> Any:
        Path("notes.txt").write_text("done", encoding="utf-8")
        return super().__call__(context)


@fails("stage", "check_figures_are_numbers")
@dataclass
class Wordy(Copying):
    """Reports in words."""

    def __call__(self, context: StageContext) -> Any:
        return replace(super().__call__(context), metrics={"rows": "many"})


# --- the tests -------------------------------------------------------------------------------------------------------

GENERAL = tuple(check.__name__ for check in testing.general.CHECKS)
PLANTED = [(kind, check) for kind in CHECKS for check in FAULTS[kind]]


@pytest.mark.parametrize(("kind", "check"), PLANTED, ids=lambda value: value)
def test_a_planted_fault_fails_its_check_and_no_other(kind: Any, check: str) -> None:
    outcomes = run_checks(kind, FAULTS[kind][check])
    failed = {outcome.check: outcome.reason for outcome in outcomes if outcome.status == "failed"}
    assert list(failed) == [check], failed
    assert failed[check]


@pytest.mark.parametrize("kind", CHECKS)
def test_every_check_has_a_planted_fault_and_a_reason(kind: Any) -> None:
    names = [check.__name__ for check in CHECKS[kind]]
    own = [name for name in names if name not in GENERAL]
    assert set(own) <= set(FAULTS[kind])
    assert {*GENERAL} - {"check_is_light_to_import"} <= set(FAULTS["reward"])
    for check in CHECKS[kind]:
        first, _, why = (check.__doc__ or "").partition("\n\n")
        assert first.strip(), check.__name__
        assert len(why.split()) >= 8, f"{check.__name__} does not say why it matters"


SOUND = {"reward": Sound, "strategy": Once, "stage": Copying, "dataset": rows, "adapter": lora_config}


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_plugin_passes(kind: Any) -> None:
    failed = {o.check: o.reason for o in run_checks(kind, SOUND[kind]) if o.status == "failed"}
    assert failed.keys() <= {"check_has_a_docstring"}, failed


@pytest.mark.parametrize(("kind", "made"), [("reward", Sound()), ("strategy", Once())], ids=["reward", "strategy"])
def test_an_object_that_was_made_passes(kind: Any, made: Any) -> None:
    assert not [o for o in run_checks(kind, made) if o.status == "failed"]


def test_a_heavy_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_reward.py").write_text(
        'import datasets\n\n\ndef ones(completions, **_):\n    """Ones."""\n    return [1.0 for _ in completions]\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    failed = {o.check: o.reason for o in run_checks("reward", "heavy_reward:ones") if o.status == "failed"}
    assert failed == {"check_is_light_to_import": "importing heavy_reward imports datasets"}


def test_a_file_is_not_asked_to_be_light_to_import(tmp_path: Path) -> None:
    file = tmp_path / "brief.py"
    file.write_text('def ones(completions, **_):\n    """Ones."""\n    return [1.0 for _ in completions]\n')
    skipped = {o.check: o.reason for o in run_checks("reward", f"{file}:ones") if o.status == "skipped"}
    assert skipped["check_is_light_to_import"].startswith("it is a file, not a package")


# --- expected failures -----------------------------------------------------------------------------------------------


def test_an_expected_failure_needs_a_reason_and_an_existing_check() -> None:
    with pytest.raises(InputError, match="'check_finite' has no reason"):
        run_checks("reward", Sound, expected_failures={"check_finite": " "})
    with pytest.raises(InputError, match="no check 'check_finit'"):
        run_checks("reward", Sound, expected_failures={"check_finit": "because"})


def test_an_expected_failure_is_strict() -> None:
    reason = {"check_within_bounds": "the bounds are the paper's"}
    by_name = {o.check: o for o in run_checks("reward", Proud, expected_failures=reason)}
    assert by_name["check_within_bounds"].status == "expected"
    by_name = {o.check: o for o in run_checks("reward", Sound, expected_failures=reason)}
    assert by_name["check_within_bounds"].status == "failed"
    assert "is expected to fail" in by_name["check_within_bounds"].reason


def test_all_checks_in_one_call() -> None:
    testing.check_reward(Sound)
    testing.check_strategy(Once)
    testing.check_dataset(overlapping, {"check_splits_disjoint": "they are one split under two names"})
    with pytest.raises(AssertionError, match=r"1 of \d+ checks failed\ncheck_within_bounds: "):
        testing.check_reward(Proud)


def test_parameters_for_pytest_are_strict() -> None:
    mark = testing.parametrize_with_checks("reward", [Proud], expected_failures={"check_within_bounds": "so it is"})
    names, parameters = mark.args
    assert names == ("plugin", "check")
    assert len(parameters) == len(CHECKS["reward"])
    (marked,) = [p for p in parameters if p.marks]
    assert marked.id == "Proud-check_within_bounds"
    assert marked.marks[0].kwargs == {"reason": "so it is", "strict": True}


def test_a_check_is_a_plain_function() -> None:
    from posttrain_plugins.testing.rewards import check_within_bounds

    check_within_bounds(Sound())
    check_within_bounds("length")
    with pytest.raises(AssertionError, match="outside of"):
        check_within_bounds(Proud)
    with pytest.raises(SkipTest, match="declares no bounds"):
        check_within_bounds(lambda completions, **columns: [1.0 for _ in completions])
    with pytest.raises(TypeError, match="which kind"):
        testing.general.check_can_be_made(Sound)


def test_a_broken_plugin_fails_one_check(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_package\n\n\ndef score(completions, **columns): ...\n")
    outcomes = run_checks("reward", f"{tmp_path}/broken.py:score")
    failed = [o for o in outcomes if o.status == "failed"]
    assert [o.check for o in failed] == ["check_can_be_made"]
    assert "no_such_package" in failed[0].reason
