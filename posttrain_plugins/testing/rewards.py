"""Checks on rewards. Each takes a reward (a name, a class, a function or an object) and fails with what it found."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import math
import pickle
import re
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any
from unittest import SkipTest

from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.plugins.signature import reward_columns
from posttrain_plugins.testing.noise import assert_untouched
from posttrain_plugins.testing.subject import Subject, subject

__all__ = ["CHECKS", "SPAM"]

Row = dict[str, Any]

TEXTS = (
    "4",
    "The answer is 4.",
    "<think>2+2=4</think><answer>4</answer>",
    "I do not know. Let me think about it again.",
)
SPAM = {
    "empty": "",
    "white space": " \n\t" * 20,
    "one word": "the " * 200,
    "100k characters": "a" * 100_000,
    "half a box": r"\boxed{\frac{1}{",
    "half a tag": "<think><answer>",
    "unicode": "\U0001f600\u202e\u0000\ud7ff é 答案是四 \ufeff",
    "a bracket tower": "(" * 300,
}
"""What a policy writes early in training, and what it finds out later."""


# --- what TRL gets -----------------------------------------------------------------------------------------------


def check_one_value_per_completion(reward: Any) -> None:
    """As many values as completions.

    TRL puts them into column i of a (B, rewards) tensor: one value too few stops the run at its first step, one too
    many in a reward that drops or repeats rows pays completions for the deeds of others.
    """
    tried = subject("reward", reward)
    rows = _rows(tried)
    found = _call(tried.make(), rows, _format(tried))
    assert isinstance(found, Sequence) or hasattr(found, "__len__"), f"it returned {type(found).__name__}, not a list"
    assert len(found) == len(rows), f"{len(found)} values for {len(rows)} completions"


def check_float_or_none(reward: Any) -> None:
    """Every value is a number, or None where it cannot judge.

    `None` means "cannot judge" and is left out of the mean; 0.0 means "judged, worthless". A tensor keeps its graph
    alive for the whole step, text stops it.
    """
    tried = subject("reward", reward)
    for value in _scores(tried, _rows(tried)):
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        assert value is None or is_number, f"a value is {value!r} ({type(value).__name__}), expected float or None"


def check_finite(reward: Any) -> None:
    """No value is NaN or infinite, whatever the text.

    One infinity makes the group's advantages NaN, and the next optimizer step the weights. Say None instead.
    """
    tried = subject("reward", reward)
    rows = _rows(tried)
    for row in (*rows, *_odd_rows(tried, rows)):
        for value in _try_scores(tried, [row]):
            assert not _is_number(value) or math.isfinite(value), f"{_short(row['completion'])} scores {value}"


def check_within_bounds(reward: Any) -> None:
    """Every value lies within the declared `bounds`.

    Weights, thresholds and plots are chosen by them; a reward that now and then pays 100 where the others pay 1
    decides the whole batch.
    """
    tried = subject("reward", reward)
    bounds = tried.declares("bounds")
    if bounds is None:
        raise SkipTest("it declares no bounds")
    low, high = bounds
    rows = _rows(tried)
    for row in (*rows, *_odd_rows(tried, rows)):
        for value in _finite(_try_scores(tried, [row])):
            assert low <= value <= high, f"{_short(row['completion'])} scores {value}, outside of [{low}, {high}]"


def check_unknown_columns_are_ignored(reward: Any) -> None:
    """It takes prompts, completions and whatever else comes by name: it ends in `**columns`.

    TRL passes every column of the data set, `completion_ids`, `trainer_state` and more with each version.
    """
    tried = subject("reward", reward)
    rows = _rows(tried)
    many = len(rows)
    more = {"completion_ids": [[1]] * many, "trainer_state": None, "a_column_that_nobody_knows": ["x"] * many}
    made = tried.make()
    _scores(tried, rows)
    try:
        _call(made, rows, _format(tried), more, is_filtered=False)
    except Exception as cause:
        raise AssertionError(f"with further columns it raised {type(cause).__name__}: {cause}") from cause


def check_required_columns_suffice(reward: Any) -> None:
    """With prompt, completion and the columns that it declares it works; it reads no other.

    `posttrain validate` compares them with the data set's. An undeclared one is a KeyError in the first step, after
    the model was loaded.
    """
    tried = subject("reward", reward)
    made = tried.make()
    needed = set(_required(made))
    rows = [{k: v for k, v in row.items() if k in ("prompt", "completion") or k in needed} for row in _rows(tried)]
    _scores(tried, _rows(tried))
    try:
        _call(made, rows, _format(tried))
    except Exception as cause:
        declared = ", ".join(sorted(needed)) or "none"
        raise AssertionError(
            f"with the declared columns ({declared}) it raised {type(cause).__name__}: {cause}"
        ) from cause


def check_both_formats(reward: Any) -> None:
    """Plain texts and chat messages get the same scores.

    The data set decides which of the two TRL hands over. A reward that reads messages with `str()` scores their
    quotes and braces. `posttrain_plugins.text.to_text` reads both.
    """
    tried = subject("reward", reward)
    if set(tried.declares("formats")) != {"plain", "conversational"}:
        raise SkipTest(f"it declares formats = {tried.declares('formats')!r}")
    if not tried.declares("is_deterministic"):
        raise SkipTest("it declares is_deterministic = False")
    rows = _rows(tried)
    plain = _scores(tried, rows)
    try:
        chat = _listed(_call(tried.make(), rows, "conversational"), len(rows))
    except Exception as cause:
        raise AssertionError(f"with chat messages it raised {type(cause).__name__}: {cause}") from cause
    _assert_equal(tried, plain, chat, rows, "as plain text", "as a message")


def check_empty_batch(reward: Any) -> None:
    """No completions, no values.

    A filter, a budget that ended or a rank without rows asks for the scores of nothing.
    """
    tried = subject("reward", reward)
    _scores(tried, _rows(tried))
    columns: dict[str, Any] = {name: [] for name in _required(tried.make())}
    try:
        found = _resolved(_keyword_call(tried.make(), {"prompts": [], "completions": [], **columns}, True))
    except Exception as cause:
        raise AssertionError(f"without completions it raised {type(cause).__name__}: {cause}") from cause
    assert len(found) == 0, f"without completions it returned {found!r}"


# --- a score belongs to its completion -------------------------------------------------------------------------------


def check_order_does_not_matter(reward: Any) -> None:
    """The same completions in another order get the same scores, in that order.

    TRL shuffles prompts and splits batches over processes; a score that leans on its neighbours pays for the order.
    """
    tried = _deterministic(reward)
    rows = _rows(tried)
    forward = _scores(tried, rows)
    backward = _scores(tried, rows[::-1])[::-1]
    _assert_equal(tried, forward, backward, rows, "in order", "in reverse")


def check_batch_of_one_agrees(reward: Any) -> None:
    """A completion alone gets the score that it gets among others.

    The batch size is a matter of memory, not of worth; and at test time, `best_of_n` and evaluations ask for other
    batches than training did. Where a score is meant to be relative, declare `is_relative = True`.
    """
    tried = _deterministic(reward)
    if tried.declares("is_relative"):
        raise SkipTest("it declares is_relative = True")
    rows = _rows(tried)
    together = _scores(tried, rows)
    alone = [value for row in rows for value in _scores(tried, [row])]
    _assert_equal(tried, together, alone, rows, "among others", "alone")


def check_same_twice(reward: Any) -> None:
    """The same call twice gives the same scores.

    Runs are cached by content and go on after a kill to the same bits; noise in a reward is noise in every gradient.
    Where it cannot be helped, declare `is_deterministic = False`.
    """
    tried = _deterministic(reward)
    rows, made = _rows(tried), tried.make()
    _scores(tried, rows[:1])
    first, second = (_listed(_call(made, rows, _format(tried)), len(rows)) for _ in range(2))
    _assert_equal(tried, first, second, rows, "first", "again")


def check_inputs_unchanged(reward: Any) -> None:
    """Prompts, completions and columns are after the call what they were before it.

    TRL hands the same lists to every reward and logs them afterwards: what one strips, the next one scores.
    """
    tried = subject("reward", reward)
    _scores(tried, _rows(tried))
    for form in tried.declares("formats"):
        given = _arguments(_rows(tried), form)
        before = copy.deepcopy(given)
        try:
            _resolved(_keyword_call(tried.make(), given, True))
        except Exception as cause:
            raise SkipTest(f"it raises on {form} completions") from cause
        changed = [name for name in before if before[name] != given[name]]
        assert not changed, f"it changed {', '.join(changed)}"


def check_global_rng_untouched(reward: Any) -> None:
    """The global generators of random, numpy and torch are where they were.

    Sampling draws from them: a reward that seeds them makes every step draw the same completions, and one that draws
    from them makes a resumed run another run. Keep a generator of your own.
    """
    tried = subject("reward", reward)
    rows, made = _rows(tried), tried.make()
    _scores(tried, rows)
    assert_untouched(lambda: _call(made, rows, _format(tried)))


# --- what a policy writes --------------------------------------------------------------------------------------------


def check_odd_text_survived(reward: Any) -> None:
    """Empty, spam, 100,000 characters, unicode, half a `\\boxed{`: it scores them, or says None.

    A policy writes all of these. An exception at step 900 ends the run.
    """
    tried = subject("reward", reward)
    rows, made = _rows(tried), tried.make()
    _scores(tried, rows)
    for row in _odd_rows(tried, rows):
        try:
            _call(made, [row], _format(tried))
        except Exception as cause:
            text = _short(row["completion"])
            raise AssertionError(f"{text}: it raised {type(cause).__name__}: {cause}") from cause


def check_examples_get_their_scores(reward: Any) -> None:
    """Every one of its `examples` gets the `score` that stands beside it, and the best beats the worst.

    They are the reward's own specification: a reward whose sign is wrong, or that cannot tell good from bad, trains a
    model all the same.
    """
    tried = _with_examples(reward)
    rows = tried.declares("examples")
    found = [_single(tried, row) for row in rows]
    tolerance = max(1e-6, tried.declares("tolerance"))
    for row, value in zip(rows, found, strict=True):
        if "score" in row:
            is_equal = _is_close(value, row["score"], tolerance)
            assert is_equal, f"{_short(row['completion'])} scores {value}, its example says {row['score']}"
    numbers = _finite(found)
    assert len(set(numbers)) > 1, f"all examples score {numbers[:1]}: give a good one and a bad one"


def check_not_fooled_by_spam(reward: Any) -> None:
    """Spam, the prompt's echo, a list of all answers or the good example fifty times over never beats that example.

    Whatever pays more than a good answer is what the policy will learn. A reward that knows the answer (`oracle`)
    must give these less, not as much.
    """
    tried = _with_examples(reward)
    good = max(tried.declares("examples"), key=lambda row: -math.inf if row.get("score") is None else row["score"])
    best = _single(tried, good)
    if not _is_number(best):
        raise SkipTest("its best example has no score")
    for name, text in _tricks(good).items():
        if len(text) > tried.declares("longest_text_chars"):
            continue
        value = _try_scores(tried, [{**good, "completion": text}])
        strictly = bool(tried.declares("oracle")) and name != "the good example fifty times"
        for score in _finite(value):
            is_fooled = score >= best if strictly else score > best
            assert not is_fooled, f"{name} scores {score}, the good example {best}"


# --- how a trainer handles it ----------------------------------------------------------------------------------------


def check_picklable(reward: Any) -> None:
    """It goes through `pickle` and scores the same afterwards.

    Workers in other processes, the guard (`isolate: process`) and several GPUs get it that way. No lambdas, no open
    files: open them at the first call.
    """
    tried = subject("reward", reward)
    made, rows = tried.make(), _rows(tried)
    _scores(tried, rows)
    try:
        again = pickle.loads(pickle.dumps(made))
    except Exception as cause:
        raise AssertionError(f"it cannot be pickled: {type(cause).__name__}: {cause}") from cause
    if tried.declares("is_deterministic"):
        first, second = (_listed(_call(one, rows, _format(tried)), len(rows)) for one in (made, again))
        _assert_equal(tried, first, second, rows, "before", "after pickling")


def check_has_a_log_name(reward: Any) -> None:
    """TRL can log it under a name: its `__name__`, or that of its class, a word without slashes.

    Bare TRL writes `rewards/<name>/mean`; two `<lambda>` are one curve.
    """
    func = subject("reward", reward).make()
    while isinstance(func, functools.partial):
        func = func.func
    name = getattr(func, "__name__", type(func).__name__)
    is_word = isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w.-]*", name)
    assert is_word, f"its name is {name!r}, expected a word such as 'brevity'"


def check_async_is_visible(reward: Any) -> None:
    """If calling it gives a coroutine, TRL can see that beforehand.

    TRL awaits what `inspect.iscoroutinefunction` says of the function or of its `__call__`; a plain function that
    returns a coroutine is put into a tensor as it is. Write `async def`.
    """
    tried = subject("reward", reward)
    made = tried.make()
    _scores(tried, _rows(tried))
    found = _keyword_call(made, _arguments(_rows(tried), _format(tried)), True)
    if not inspect.isawaitable(found):
        return
    _resolved(found)
    func = made
    while isinstance(func, functools.partial):
        func = func.func
    is_seen = inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(func.__call__)
    assert is_seen, "calling it gives a coroutine, but it is no `async def`"


def check_step_scores(reward: Any) -> None:
    """`step_scores`, if it has one, gives one list of finite floats per completion, empty where there is no step.

    Process-supervised GRPO and PPO place them at the ends of steps; a number in a list's place shifts all others.
    """
    tried = subject("reward", reward)
    made = tried.make()
    if declared(made, "step_scores") is None:
        raise SkipTest("it has no step_scores")
    _scores(tried, _rows(tried))
    rows = [*_rows(tried), {**_rows(tried)[0], "completion": ""}]
    found = _resolved(_keyword_call(made.step_scores, _arguments(rows, _format(tried)), True))
    assert len(found) == len(rows), f"step_scores gave {len(found)} lists for {len(rows)} completions"
    for row, scores in zip(rows, found, strict=True):
        is_list = isinstance(scores, list | tuple) and all(_is_number(s) and math.isfinite(s) for s in scores)
        assert is_list, f"the steps of {_short(row['completion'])} score {scores!r}, expected a list of floats"


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_one_value_per_completion,
    check_float_or_none,
    check_finite,
    check_within_bounds,
    check_unknown_columns_are_ignored,
    check_required_columns_suffice,
    check_both_formats,
    check_empty_batch,
    check_order_does_not_matter,
    check_batch_of_one_agrees,
    check_same_twice,
    check_inputs_unchanged,
    check_global_rng_untouched,
    check_odd_text_survived,
    check_examples_get_their_scores,
    check_not_fooled_by_spam,
    check_picklable,
    check_has_a_log_name,
    check_async_is_visible,
    check_step_scores,
)


# --- rows and calls --------------------------------------------------------------------------------------------------


def _rows(tried: Subject) -> list[Row]:
    """Its examples, and ordinary completions with the first example's prompt and columns; the shortest first."""
    examples = [{k: v for k, v in row.items() if k != "score"} for row in tried.declares("examples")]
    like = examples[0] if examples else {"prompt": "2+2=?", "completion": ""}
    filled = dict.fromkeys(_required(tried.make()), "4")
    rows = [*examples, *({**like, "completion": text} for text in TEXTS)]
    return sorted(({**filled, **row} for row in rows), key=lambda row: len(row["completion"]))


def _odd_rows(tried: Subject, rows: Sequence[Row]) -> list[Row]:
    """The first row with what nobody would call an answer."""
    longest = tried.declares("longest_text_chars")
    return [{**rows[0], "completion": text} for text in SPAM.values() if len(text) <= longest]


def _required(made: Any) -> tuple[str, ...]:
    while isinstance(made, functools.partial):
        made = made.func
    return reward_columns(made)


def _format(tried: Subject) -> str:
    return str(tried.declares("formats")[0])


def _arguments(rows: Sequence[Row], form: str) -> dict[str, Any]:
    """What TRL would pass for these rows, all of it copied."""
    chat = form == "conversational"
    prompts = [[{"role": "user", "content": r["prompt"]}] if chat else r["prompt"] for r in rows]
    texts = [[{"role": "assistant", "content": r["completion"]}] if chat else r["completion"] for r in rows]
    names = [name for name in rows[0] if name not in ("prompt", "completion")] if rows else []
    columns = {name: copy.deepcopy([row.get(name) for row in rows]) for name in names}
    return {"prompts": prompts, "completions": texts, **columns}


def _call(made: Any, rows: Sequence[Row], form: str, more: Any = None, is_filtered: bool = True) -> Any:
    return _resolved(_keyword_call(made, {**_arguments(rows, form), **(more or {})}, is_filtered))


def _keyword_call(made: Any, arguments: dict[str, Any], is_filtered: bool) -> Any:
    """Calls with keywords, as TRL does; `is_filtered` leaves out what a signature without `**columns` does not name."""
    parameters = inspect.signature(made).parameters.values()
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    named = {p.name for p in parameters}
    return made(**{k: v for k, v in arguments.items() if is_open or not is_filtered or k in named})


def _resolved(found: Any) -> Any:
    async def wait() -> Any:
        return await found

    return asyncio.run(wait()) if inspect.isawaitable(found) else found


def _listed(found: Any, count: int) -> list[Any]:
    """The values that belong to completions; a wrong number of them is another check's business."""
    return list(found)[:count]


def _scores(tried: Subject, rows: Sequence[Row]) -> list[Any]:
    """Scores of ordinary rows; a reward that cannot give them fails in `check_one_value_per_completion`."""
    try:
        return _listed(_call(tried.make(), rows, _format(tried)), len(rows))
    except SkipTest:
        raise
    except Exception as cause:
        raise SkipTest(f"it raises on ordinary completions: {type(cause).__name__}: {cause}") from cause


def _try_scores(tried: Subject, rows: Sequence[Row]) -> list[Any]:
    """Scores of odd rows; none where it raises, which is `check_odd_text_survived`'s business."""
    try:
        return _scores(tried, rows)
    except SkipTest:
        return []


def _single(tried: Subject, row: Row) -> Any:
    found = _scores(tried, [{k: v for k, v in row.items() if k != "score"}])
    return found[0] if found else None


def _deterministic(reward: Any) -> Subject:
    tried = subject("reward", reward)
    if not tried.declares("is_deterministic"):
        raise SkipTest("it declares is_deterministic = False")
    return tried


def _with_examples(reward: Any) -> Subject:
    tried = _deterministic(reward)
    if not tried.declares("examples"):
        raise SkipTest("it declares no examples")
    return tried


def _tricks(good: Row) -> dict[str, str]:
    listed = " ".join(f"<answer>{n}</answer>" for n in (*range(13), "none of them"))
    return {
        **SPAM,
        "the prompt's echo": str(good["prompt"]) * 3,
        "a list of answers": listed,
        "the good example fifty times": str(good["completion"]) * 50,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _finite(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values if _is_number(value) and math.isfinite(value)]


def _is_close(a: Any, b: Any, tolerance: float) -> bool:
    if not (_is_number(a) and _is_number(b)):
        return bool(a is b or a == b)
    return bool(a == b or abs(a - b) <= tolerance or (math.isnan(a) and math.isnan(b)))


def _assert_equal(
    tried: Subject, one: Sequence[Any], other: Sequence[Any], rows: Sequence[Row], first: str, second: str
) -> None:
    tolerance = tried.declares("tolerance")
    for row, a, b in zip(rows, one, other, strict=False):
        assert _is_close(a, b, tolerance), f"{_short(row['completion'])} scores {a} {first} and {b} {second}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
