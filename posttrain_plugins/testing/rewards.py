"""Checks on rewards. Each takes a reward (a name, a class, a function or an object) and fails with what it found."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any
from unittest import SkipTest

from posttrain_plugins.errors import PLUGIN_FAILURES
from posttrain_plugins.nested_rewards import wait_for
from posttrain_plugins.plugins.declarations import declared
from posttrain_plugins.plugins.signature import reward_columns
from posttrain_plugins.testing.noise import assert_untouched
from posttrain_plugins.testing.subject import fail_on_error, subject

__all__ = ["CHECKS", "SPAM", "RewardUnderTest"]

# an answer alone, in a sentence and in tags, and a completion without one
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
    # outside of the basic plane, right to left, NUL, the last code point before the surrogates, a byte order mark
    "unicode": "\U0001f600\u202e\u0000\ud7ff é 答案是四 \ufeff",
    "a bracket tower": "(" * 300,  # a recursive parser runs out of stack
}
"""What a policy writes early in training, and what it finds out later."""


class RewardUnderTest:
    """A reward with rows to call it on, called as TRL calls it.

    `rows` are its examples, and ordinary completions with the first example's prompt and columns. Each call makes a new
    reward unless it is given one: what a call leaves on the object is the business of `check_same_twice` alone.

    Args:
        reward: what a check was given.
        is_deterministic: skip the check for a reward that declares that it is not.
        has_examples: skip the check for a reward that declares none.

    Raises:
        SkipTest: the check does not apply, or the reward cannot be made.
    """

    def __init__(self, reward: Any, *, is_deterministic: bool = False, has_examples: bool = False) -> None:
        self.subject = subject("reward", reward)
        if is_deterministic and not self.subject.declares("is_deterministic"):
            raise SkipTest("it declares is_deterministic = False")
        self.examples: Sequence[Mapping[str, Any]] = self.subject.declares("examples")
        if has_examples and not self.examples:
            raise SkipTest("it declares no examples")
        made = self.subject.make()
        self.columns = reward_columns(_unbound(made))
        parameters = inspect.signature(_unbound(made)).parameters.values()
        self.needed = {p.name for p in parameters if p.default is p.empty}
        # a column that the reward needs and no example has is "4": most needed columns are reference answers
        filled = dict.fromkeys(self.columns, "4")
        like = dict(*self.examples[:1]) or {"prompt": "2+2=?", "completion": ""}
        rows = [*self.examples, *({**like, "completion": text} for text in TEXTS)]
        # shortest first: in reverse each completion has a longer one before it, which a score must not notice
        self.rows = sorted(({**filled, **row} for row in rows), key=lambda row: len(row["completion"]))
        self.form = str(self.subject.declares("formats")[0])
        if not hasattr(self.subject.definition, "formats") and self.raises("plain"):
            # many rewards that others wrote read `completion[0]["content"]`: `check_both_formats` tells it, once
            self.form = "plain" if self.raises("conversational") else "conversational"

    def raises(self, form: str) -> bool:
        """Does it raise on ordinary completions of a form?"""
        try:
            self.call(self.rows, form=form)
        except Exception:
            return True
        return False

    def odd_rows(self) -> list[dict[str, Any]]:
        """Return the first row with what nobody would call an answer."""
        longest = self.subject.declares("longest_text_chars")
        return [{**self.rows[0], "completion": text} for text in SPAM.values() if len(text) <= longest]

    def arguments(self, rows: Sequence[Mapping[str, Any]], form: str = "") -> dict[str, Any]:
        """Return what TRL passes for these rows, all of it copied, so that no call can spoil the next one's."""
        is_chat = (form or self.form) == "conversational"
        prompts = [[{"role": "user", "content": r["prompt"]}] if is_chat else r["prompt"] for r in rows]
        texts = [[{"role": "assistant", "content": r["completion"]}] if is_chat else r["completion"] for r in rows]
        # the `score` of an example is what it should get: no column, unless the reward asks for one of that name
        hidden = {"prompt", "completion", "score"} - set(self.columns)
        names = [name for name in rows[0] if name not in hidden] if rows else self.columns
        columns = {name: copy.deepcopy([row.get(name) for row in rows]) for name in names}
        # what a trainer gives beside the rows, for a reward that cannot be called without
        if "completion_ids" in self.needed:
            columns["completion_ids"] = [list(row["completion"].encode()) for row in rows]
        if "trainer_state" in self.needed:
            from transformers import TrainerState

            columns["trainer_state"] = TrainerState()
        return {"prompts": prompts, "completions": texts, **columns}

    def call(self, rows: Sequence[Mapping[str, Any]], made: Any = None, form: str = "") -> Any:
        """Return what the reward, or `made`, returns for these rows."""
        return _result(self.subject.make() if made is None else made, self.arguments(rows, form))

    def scores(self, rows: Sequence[Mapping[str, Any]], *, is_ordinary: bool = True) -> list[Any]:
        """Return the scores of rows, no more than there are rows: a wrong number of them is another check's business.

        Raises:
            SkipTest: it raises on ordinary rows, which `check_one_value_per_completion` tells. On odd ones it may: that
                is `check_odd_text_survived`'s business, and there are no scores then.
        """
        try:
            return list(self.call(rows))[: len(rows)]
        except PLUGIN_FAILURES as cause:
            if not is_ordinary:
                return []
            if isinstance(cause, SkipTest):
                raise
            raise SkipTest(f"it raises on ordinary completions: {type(cause).__name__}: {cause}") from cause

    def is_equal(self, one: Any, other: Any, least: float = 0.0) -> bool:
        """Are two scores equal within the declared tolerance, or within `least` if that is larger?"""
        if not (_is_number(one) and _is_number(other)):
            return bool(one is other or one == other)
        within = abs(one - other) <= max(least, self.subject.declares("tolerance"))
        # NaN as often as you like is one fault, and `check_finite` tells it
        return bool(one == other or within or (math.isnan(one) and math.isnan(other)))

    def assert_equal(self, one: Sequence[Any], other: Sequence[Any], first: str, second: str) -> None:
        """Compare two lists of the ordinary rows' scores."""
        for row, a, b in zip(self.rows, one, other, strict=False):
            assert self.is_equal(a, b), f"{_short(row['completion'])} scores {a} {first} and {b} {second}"


def _unbound(func: Any) -> Any:
    """Return the function below the parameters that a recipe has bound."""
    while isinstance(func, functools.partial):
        func = func.func
    return func


def _result(function: Any, arguments: Mapping[str, Any], *, is_filtered: bool = True, is_awaited: bool = True) -> Any:
    """Call with keywords, as TRL does, and wait for a coroutine.

    Args:
        function: a reward, or its `step_scores`.
        arguments: by name.
        is_filtered: leave out what a signature without `**columns` does not name.
        is_awaited: return the value of a coroutine, not the coroutine.
    """
    parameters = inspect.signature(function).parameters
    is_open = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    found = function(**{k: v for k, v in arguments.items() if is_open or not is_filtered or k in parameters})
    return wait_for(found) if is_awaited and inspect.isawaitable(found) else found


def _is_number(value: Any) -> bool:
    # True is an int to Python: a score of that kind is a condition that somebody forgot to weigh
    return isinstance(value, Real) and not isinstance(value, bool)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


# --- what TRL gets -----------------------------------------------------------------------------------------------


def check_one_value_per_completion(reward: Any) -> None:
    """As many values as completions.

    TRL puts them into column i of a (B, rewards) tensor: one value too few stops the run at its first step, one too
    many in a reward that drops or repeats rows pays completions for the deeds of others.
    """
    tried = RewardUnderTest(reward)
    found = tried.call(tried.rows)
    # an array or a tensor has a length too: `check_float_or_none` looks at what is in it
    assert isinstance(found, Sequence) or hasattr(found, "__len__"), f"it returned {type(found).__name__}, not a list"
    assert len(found) == len(tried.rows), f"{len(found)} values for {len(tried.rows)} completions"


def check_float_or_none(reward: Any) -> None:
    """Every value is a number, or None where it cannot judge.

    `None` means "cannot judge" and is left out of the mean; 0.0 means "judged, worthless". A tensor keeps its graph
    alive for the whole step, text stops it.
    """
    tried = RewardUnderTest(reward)
    for value in tried.scores(tried.rows):
        is_right = value is None or _is_number(value)
        assert is_right, f"a value is {value!r} ({type(value).__name__}), expected float or None"


def check_finite(reward: Any) -> None:
    """No value is NaN or infinite, whatever the text.

    One infinity makes the group's advantages NaN, and the next optimizer step the weights. Say None instead.
    """
    tried = RewardUnderTest(reward)
    for row in (*tried.rows, *tried.odd_rows()):
        for value in tried.scores([row], is_ordinary=False):
            assert not _is_number(value) or math.isfinite(value), f"{_short(row['completion'])} scores {value}"


def check_within_bounds(reward: Any) -> None:
    """Every value lies within the declared `bounds`.

    Weights, thresholds and plots are chosen by them; a reward that now and then pays 100 where the others pay 1
    decides the whole batch.
    """
    tried = RewardUnderTest(reward)
    if tried.subject.declares("bounds") is None:
        raise SkipTest("it declares no bounds")
    low, high = tried.subject.declares("bounds")
    for row in (*tried.rows, *tried.odd_rows()):
        for value in tried.scores([row], is_ordinary=False):
            # NaN and infinity lie within no bounds either, but fail `check_finite`: one fault, one check
            is_inside = not (_is_number(value) and math.isfinite(value)) or low <= value <= high
            assert is_inside, f"{_short(row['completion'])} scores {value}, outside of [{low}, {high}]"


def check_unknown_columns_are_ignored(reward: Any) -> None:
    """It takes prompts, completions and whatever else comes by name: it ends in `**columns`.

    TRL passes every column of the data set, `completion_ids`, `trainer_state` and more with each version.
    """
    tried = RewardUnderTest(reward)
    tried.scores(tried.rows)
    count = len(tried.rows)
    more = {"completion_ids": [[1]] * count, "trainer_state": None, "a_column_that_nobody_knows": ["x"] * count}
    with fail_on_error("with further columns it raised"):
        _result(tried.subject.make(), {**more, **tried.arguments(tried.rows)}, is_filtered=False)


def check_required_columns_suffice(reward: Any) -> None:
    """With prompt, completion and the columns that it declares it works; it reads no other.

    `posttrain validate` compares them with the data set's. An undeclared one is a KeyError in the first step, after
    the model was loaded.
    """
    tried = RewardUnderTest(reward)
    tried.scores(tried.rows)
    needed = {"prompt", "completion", *tried.columns}
    with fail_on_error(f"with the declared columns ({', '.join(sorted(tried.columns)) or 'none'}) it raised"):
        tried.call([{k: v for k, v in row.items() if k in needed} for row in tried.rows])


def check_both_formats(reward: Any) -> None:
    """Plain texts and chat messages get the same scores.

    The data set decides which of the two TRL hands over. A reward that reads messages with `str()` scores their
    quotes and braces. `posttrain_plugins.text.to_text` reads both.
    """
    tried = RewardUnderTest(reward, is_deterministic=True)
    if set(tried.subject.declares("formats")) != {"plain", "conversational"}:
        raise SkipTest(f"it declares formats = {tried.subject.declares('formats')!r}")
    own = tried.scores(tried.rows)
    names = {"plain": "plain text", "conversational": "a message"}
    [other] = names.keys() - {tried.form}
    cure = f"if they are not for it, declare formats = ['{tried.form}']"
    with fail_on_error(f"with completions as {names[other]} it raised ({cure})"):
        others = list(tried.call(tried.rows, form=other))
    tried.assert_equal(own, others, f"as {names[tried.form]}", f"as {names[other]}")


def check_empty_batch(reward: Any) -> None:
    """No completions, no values.

    A filter, a budget that ended or a rank without rows asks for the scores of nothing.
    """
    tried = RewardUnderTest(reward)
    tried.scores(tried.rows)
    with fail_on_error("without completions it raised"):
        found = tried.call([])
    assert len(found) == 0, f"without completions it returned {found!r}"


# --- a score belongs to its completion -------------------------------------------------------------------------------


def check_order_does_not_matter(reward: Any) -> None:
    """The same completions in another order get the same scores, in that order.

    TRL shuffles prompts and splits batches over processes; a score that leans on its neighbours pays for the order.
    """
    tried = RewardUnderTest(reward, is_deterministic=True)
    forward = tried.scores(tried.rows)
    backward = tried.scores(tried.rows[::-1])[::-1]
    tried.assert_equal(forward, backward, "in order", "in reverse")


def check_batch_of_one_agrees(reward: Any) -> None:
    """A completion alone gets the score that it gets among others.

    The batch size is a matter of memory, not of worth; and at test time, `best_of_n` and evaluations ask for other
    batches than training did. Where a score is meant to be relative, declare `is_relative = True`.
    """
    tried = RewardUnderTest(reward, is_deterministic=True)
    if tried.subject.declares("is_relative"):
        raise SkipTest("it declares is_relative = True")
    together = tried.scores(tried.rows)
    alone = [value for row in tried.rows for value in tried.scores([row])]
    tried.assert_equal(together, alone, "among others", "alone")


def check_same_twice(reward: Any) -> None:
    """The same call twice gives the same scores.

    Runs are cached by content and go on after a kill to the same bits; noise in a reward is noise in every gradient.
    Where it cannot be helped, declare `is_deterministic = False`.
    """
    tried = RewardUnderTest(reward, is_deterministic=True)
    tried.scores(tried.rows[:1])
    made = tried.subject.make()  # one object for both calls: here what it remembers counts
    first, second = (list(tried.call(tried.rows, made)) for _ in range(2))
    tried.assert_equal(first, second, "first", "again")


def check_inputs_unchanged(reward: Any) -> None:
    """Prompts, completions and columns are after the call what they were before it.

    TRL hands the same lists to every reward and logs them afterwards: what one strips, the next one scores.
    """
    tried = RewardUnderTest(reward)
    tried.scores(tried.rows)
    for form in tried.subject.declares("formats"):
        if form != tried.form and tried.raises(form):
            continue  # as `check_both_formats` says
        given = tried.arguments(tried.rows, form)
        before = copy.deepcopy(given)
        _result(tried.subject.make(), given)
        changed = [name for name in before if before[name] != given[name]]
        assert not changed, f"it changed {', '.join(changed)}"


def check_global_rng_untouched(reward: Any) -> None:
    """The global generators of random, numpy and torch are where they were.

    Sampling draws from them: a reward that seeds them makes every step draw the same completions, and one that draws
    from them makes a resumed run another run. Keep a generator of your own.
    """
    tried = RewardUnderTest(reward)
    made = tried.subject.make()
    tried.scores(tried.rows)  # first, so that what it imports or loads once is no draw of the call that is watched
    assert_untouched(lambda: tried.call(tried.rows, made))


# --- what a policy writes --------------------------------------------------------------------------------------------


def check_odd_text_survived(reward: Any) -> None:
    """Empty, spam, 100,000 characters, unicode, half a `\\boxed{`: it scores them, or says None.

    A policy writes all of these. An exception at step 900 ends the run.
    """
    tried = RewardUnderTest(reward)
    made = tried.subject.make()
    tried.scores(tried.rows)
    for row in tried.odd_rows():
        with fail_on_error(f"{_short(row['completion'])}: it raised"):
            tried.call([row], made)


def check_examples_get_their_scores(reward: Any) -> None:
    """Every one of its `examples` gets the `score` that stands beside it, and the best beats the worst.

    They are the reward's own specification: a reward whose sign is wrong, or that cannot tell good from bad, trains a
    model all the same.
    """
    tried = RewardUnderTest(reward, is_deterministic=True, has_examples=True)
    for row in tried.examples:
        missing = [name for name in tried.columns if name not in row]
        assert not missing, f"the example {_short(row['completion'])} lacks what the reward needs: {', '.join(missing)}"
    found: list[Any] = [next(iter(tried.scores([row])), None) for row in tried.examples]
    for row, value in zip(tried.examples, found, strict=True):
        # equal but for the last bits: 2/3 as an author writes it is not the float that a division gives
        is_equal = "score" not in row or tried.is_equal(value, row["score"], least=1e-6)
        assert is_equal, f"{_short(row['completion'])} scores {value}, its example says {row['score']}"
    numbers = [value for value in found if _is_number(value) and math.isfinite(value)]
    assert len(set(numbers)) > 1, f"all examples score {numbers[:1]}: give a good one and a bad one"


def check_not_fooled_by_spam(reward: Any) -> None:
    """Spam, the prompt's echo, a list of all answers or the good example fifty times over never beats that example.

    Whatever pays more than a good answer is what the policy will learn. A reward that knows the answer (`oracle`)
    must give these less, not as much.
    """
    tried = RewardUnderTest(reward, is_deterministic=True, has_examples=True)
    good = max(tried.examples, key=lambda row: -math.inf if row.get("score") is None else row["score"])
    best: Any = next(iter(tried.scores([good])), None)
    if not _is_number(best):
        raise SkipTest("its best example has no score")
    repeated = "the good example fifty times"
    tricks = {
        **SPAM,
        "the prompt's echo": str(good["prompt"]) * 3,
        "a list of answers": " ".join(f"<answer>{n}</answer>" for n in (*range(13), "none of them")),
        repeated: str(good["completion"]) * 50,
    }
    for name, text in tricks.items():
        if len(text) > tried.subject.declares("longest_text_chars"):
            continue
        # fifty right answers are right as well, so that one may tie; spam must not, where the answer is known
        strictly = bool(tried.subject.declares("oracle")) and name != repeated
        for score in tried.scores([{**good, "completion": text}], is_ordinary=False):
            is_fooled = _is_number(score) and math.isfinite(score) and (score >= best if strictly else score > best)
            assert not is_fooled, f"{name} scores {score}, the good example {best}"


# --- how a trainer handles it ----------------------------------------------------------------------------------------


def check_picklable(reward: Any) -> None:
    """It goes through `pickle` and scores the same afterwards.

    Workers in other processes, the guard (`isolate: process`) and several GPUs get it that way. No lambdas, no open
    files: open them at the first call.
    """
    tried = RewardUnderTest(reward)
    made = tried.subject.make()
    tried.scores(tried.rows)
    with fail_on_error("it cannot be pickled:"):
        again = pickle.loads(pickle.dumps(made))
    if tried.subject.declares("is_deterministic"):
        first, second = (list(tried.call(tried.rows, one)) for one in (made, again))
        tried.assert_equal(first, second, "before", "after pickling")


def check_has_a_log_name(reward: Any) -> None:
    """TRL can log it under a name: its `__name__`, or that of its class, a word without slashes.

    Bare TRL writes `rewards/<name>/mean`; two `<lambda>` are one curve.
    """
    func = _unbound(subject("reward", reward).make())
    name = getattr(func, "__name__", type(func).__name__)
    is_word = isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w.-]*", name)
    assert is_word, f"its name is {name!r}, expected a word such as 'brevity'"


def check_async_is_visible(reward: Any) -> None:
    """If calling it gives a coroutine, TRL can see that beforehand.

    TRL awaits what `inspect.iscoroutinefunction` says of the function or of its `__call__`; a plain function that
    returns a coroutine is put into a tensor as it is. Write `async def`.
    """
    tried = RewardUnderTest(reward)
    made = tried.subject.make()
    tried.scores(tried.rows)
    found = _result(made, tried.arguments(tried.rows), is_awaited=False)
    if not inspect.isawaitable(found):
        return
    _result(lambda: found, {})  # a coroutine that nobody waits for is a warning, and warnings are errors here
    func = _unbound(made)
    is_seen = inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(func.__call__)
    assert is_seen, "calling it gives a coroutine, but it is no `async def`"


def check_step_scores(reward: Any) -> None:
    """`step_scores`, if it has one, gives one list of finite floats per completion, empty where there is no step.

    Process-supervised GRPO and PPO place them at the ends of steps; a number in a list's place shifts all others.
    """
    tried = RewardUnderTest(reward)
    made = tried.subject.make()
    if declared(made, "step_scores") is None:
        raise SkipTest("it has no step_scores")
    tried.scores(tried.rows)
    # the empty one has no step, and needs a list all the same
    rows = [*tried.rows, {**tried.rows[0], "completion": ""}]
    found = _result(made.step_scores, tried.arguments(rows))
    assert len(found) == len(rows), f"step_scores gave {len(found)} lists for {len(rows)} completions"
    for row, scores in zip(rows, found, strict=True):
        is_list = isinstance(scores, list | tuple) and all(_is_number(s) and math.isfinite(s) for s in scores)
        assert is_list, f"the steps of {_short(row['completion'])} score {scores!r}, expected a list of floats"


# in the order of this file, in which they run; found by name, so that none is forgotten
CHECKS: tuple[Callable[[Any], None], ...] = tuple(one for name, one in globals().items() if name.startswith("check_"))
