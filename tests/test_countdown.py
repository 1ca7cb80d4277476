"""The task of recipe `tree`: its rows by a check of their own, its splits, and the rule that looks one step ahead."""

from __future__ import annotations

import doctest
import itertools
from typing import Any

import pytest
from recipe_files import load

import posttrain_plugins as pp
from posttrain_plugins.errors import InputError
from posttrain_plugins.testing.scripted import ScriptedModel
from posttrain_plugins.text import last_user_text
from posttrain_plugins.types import Completion, ResolvedReward

countdown = load("countdown")
SPLITS = ("train", "development", "exam")


def numbers_of(question: str) -> tuple[list[int], int]:
    numbers, _, target = question.partition("=")
    return [int(number, 36) for number in numbers], int(target, 36)


def is_solution(question: str, steps: str, *, is_aimed: bool = True) -> bool:
    """What the numbers come to as Python reads the steps: no code is shared with what is tested."""
    left, target = numbers_of(question)
    for step in steps.split(";"):
        made, _, kept = step.partition("=")
        first, second = int(made[0], 36), int(made[2:], 36)
        left.remove(first)
        left.remove(second)
        left.append(eval(f"{first}{made[1]}{second}"))
        if sorted(left) != sorted(int(number, 36) for number in kept) or not 1 <= left[-1] <= 12:
            return False
    return left == [target] if is_aimed else len(left) == 1


def ends(numbers: tuple[int, ...], largest: int = 12) -> set[int]:
    """Every number that `numbers` can come to, by all orders of them and all ways to put brackets."""
    if len(numbers) == 1:
        return set(numbers)
    found = set()
    for order in itertools.permutations(numbers):
        for cut in range(1, len(order)):
            for left, right in itertools.product(ends(order[:cut], largest), ends(order[cut:], largest)):
                found |= {value for value in (left + right, left - right, left * right) if 1 <= value <= largest}
    return found


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_demonstrations_are_solutions(count: int) -> None:
    size = 30 if count == 2 else 200
    rows = countdown.Countdown("train", "demonstrations", size=size, count=count)()
    assert len({last_user_text(row["prompt"]) for row in rows}) == size
    for row in rows:
        question, steps = last_user_text(row["prompt"]), row["completion"][0]["content"]
        assert len(numbers_of(question)[0]) == count
        assert is_solution(question, steps), (question, steps)


def test_the_corpus_has_right_steps_from_any_position_whatever_the_target() -> None:
    texts = countdown.Countdown("train", "corpus", size=300)()["text"]
    assert all(text.startswith("<eos>") and text.endswith("<eos>") for text in texts)
    found = [text[5:-5].split("\n") for text in texts]
    assert all(is_solution(question, steps, is_aimed=False) for question, steps in found)
    assert 0 < sum(is_solution(question, steps) for question, steps in found) < 100
    assert {len(numbers_of(question)[0]) for question, _ in found} == {2, 3, 4}
    assert any(max(numbers_of(question)[0]) > 9 for question, _ in found)


def test_problems_can_be_solved_and_say_their_target() -> None:
    for row in countdown.Countdown("development", size=20, count=3)():
        numbers, target = numbers_of(last_user_text(row["prompt"]))
        assert int(row["solution"], 36) == target
        assert target in ends(tuple(numbers))


@pytest.mark.parametrize("numbers", [(1, 1, 1), (7, 7, 3), (2, 9, 8), (6, 5, 4, 9), (9, 9, 9, 9), (1, 2, 2, 3)])
def test_what_can_be_reached_is_what_brackets_can_make(numbers: tuple[int, ...]) -> None:
    found = {target for target in range(1, 23) if countdown.is_reachable(target, numbers)}
    assert found == ends(numbers)


def test_no_problem_is_in_two_splits_whatever_its_order_seed_and_part() -> None:
    found: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split, seed, part in itertools.product(SPLITS, (0, 1), ("problems", "demonstrations", "corpus")):
        for row in countdown.Countdown(split, part, size=150, seed=seed)():
            question = row["text"][5:] if part == "corpus" else last_user_text(row["prompt"])
            numbers, target = numbers_of(question.partition("\n")[0])
            found[split].add(f"{sorted(numbers)}={target}")
    assert all(len(of) > 300 for of in found.values())
    assert not any(found[one] & found[other] for one, other in itertools.combinations(SPLITS, 2))


def test_same_seed_same_rows_other_seed_others() -> None:
    first, again, other = (countdown.Countdown("train", size=20, seed=seed)().to_list() for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("part", "columns"),
    [("problems", ["prompt", "solution"]), ("demonstrations", ["prompt", "completion"]), ("corpus", ["text"])],
)
def test_columns_are_known_without_the_rows(part: Any, columns: list[str]) -> None:
    data = countdown.Countdown("train", part, size=2)
    assert list(data.columns) == columns == data().column_names


@pytest.mark.parametrize(
    ("steps", "values"),
    [
        ("8+3=b52", [0.5]),
        ("8+3=b52;", [0.5]),
        ("8-5=332", [0.5]),  # 3, 3 and 2 never make 14, but that is not one step ahead
        ("8+3=b52;5-2=3b", [0.5, 1]),
        ("3+8=b25;5-2=3b", [0.5, 1]),  # in any order
        ("8+3=b52;5+2=7b", [0.5, 0]),  # 7 and 11 do not make 14
        ("8+3=b52;5+2=7b;b+7=i", [0.5, 0, 0]),  # what can be done there is right, and in vain
        ("8+3=b52;5-2=3b;b+3=e", [0.5, 1, 1]),
        ("8+3=b52;5-2=3b;b+3=e;", [0.5, 1, 1]),
        ("8+3=b52;5-2=3b;b-3=8", [0.5, 1, 0]),  # b+3 would have been right
        ("8+3=b52;5-2=3b;b+3=e;e+1=f", [0.5, 1, 1, 0]),
        ("8+3=b52;5-2=3b;e", [0.5, 1, 0]),
        ("8+3=b52;2-5=3b;b+3=e", [0.5, 0, 0]),
        ("8+3=c52;5-2=3c;c+2=e", [0, 0, 0]),  # arithmetic
        ("8+3=b5;5+b=g;g-2=e", [0, 0, 0]),  # a number is lost
        ("5+5=a832;8-2=6a3;a+6=g", [0, 0, 0]),  # one that is there once is taken twice
        ("8+3=b52;5+5=ab;a+b=l", [0.5, 0, 0]),  # later on, too
        ("8+3=5b2;5-2=3b;b+3=e", [0, 0, 0]),  # another number first than was made
        ("nonsense", [0]),
        ("9" * 5000 + "+1=2", [0]),
        ("8+3=b52;;5-2=3b;b+3=e", [0.5, 0, 0, 0]),
        (";;", [0, 0]),
        ("", []),
    ],
)
def test_steps_are_worth_what_can_be_seen_one_step_ahead(steps: str, values: list[float]) -> None:
    asked: dict[str, Any] = {"prompts": ["3852=e"], "completions": [steps]}
    assert countdown.CountdownSteps(largest=20).step_scores(**asked) == [values]
    whole = 1.0 if len(values) == 3 else 0.5  # one that ends early is no solution
    assert countdown.CountdownSteps("ahead", largest=20)(**asked) == [min(values[-1], whole) if values else 0.0]
    assert countdown.CountdownSteps(largest=20)(**asked) == [float(values == [0.5, 1, 1])]


@pytest.mark.parametrize(
    ("question", "steps", "is_right"),
    [
        ("444=c", "4+4=84;8+4=c", True),
        ("444=c", "4+4=844;8+4=c", False),
        ("43=c", "4*3=c", True),
        ("45=f", "5*3=f", False),
        ("55=a", "5+5=a", True),
        ("995=5", "9-9=05;5+0=5", False),  # numbers begin at 1
        ("994=k", "9+9=i4;i+4=m", False),
        ("58=k", "5*8=k", False),  # and end at 20
    ],
)
def test_equal_numbers_and_bounds(question: str, steps: str, is_right: bool) -> None:
    assert countdown.CountdownSteps(largest=20)(prompts=[question], completions=[steps]) == [float(is_right)]


def test_bounds_are_those_of_the_data() -> None:
    asked: dict[str, Any] = {"prompts": ["57=z"], "completions": ["5*7=z"]}
    assert countdown.CountdownSteps(largest=35)(**asked) == [1.0]
    assert countdown.CountdownSteps()(**asked) == [0.0]


@pytest.mark.parametrize("prompt", ["", "Hello", "14", "3852", "3=3", "1" * 400 + "=1", "38=14", "30=3", "3 8=b"])
def test_a_prompt_without_a_problem_is_not_judged(prompt: str) -> None:
    asked: dict[str, Any] = {"prompts": [prompt], "completions": ["8+3=b52"]}
    assert countdown.CountdownSteps()(**asked) == [None]
    assert countdown.CountdownSteps().step_scores(**asked) == [[]]


@pytest.mark.parametrize("strategy", ["tree_of_thoughts", "mcts"])
def test_a_search_by_the_rule_solves_what_random_steps_do_not(strategy: str) -> None:
    """The model draws any step that can be written: the rule alone tells where they lead."""
    problems = countdown.Countdown("development", size=6)()

    def draw(request: Any, seed: int) -> Completion:
        asked = request.prompt
        written = asked[-1]["content"] if asked[-1]["role"] == "assistant" else ""
        left = numbers_of(last_user_text([asked[0]]))[0]
        for step in written.split(";")[:-1]:
            left = [int(number, 36) for number in step.partition("=")[2]]
        found = [step for step, _ in countdown.moves(tuple(left))]
        if not found:
            return Completion("", finish_reason="stop")
        step = found[seed % len(found)]
        return Completion(step, stop_reason=";" if len(left) > 2 else None)

    of_search: dict[str, dict[str, Any]] = {
        "mcts": {"num_simulations": 24, "select": "value"},
        "tree_of_thoughts": {"breadth": 4},
    }
    results = pp.solve(
        pp.load("strategy", strategy, scorer="rule", branches=64, separator=";", **of_search[strategy]),
        [row["prompt"] for row in problems],
        backend=ScriptedModel(draw),
        scorers={"rule": ResolvedReward("rule", countdown.CountdownSteps("ahead"))},
    )
    right = countdown.CountdownSteps()(prompts=problems["prompt"], completions=[one.text for one in results])
    assert right == [1.0] * 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: countdown.Countdown("train", size=0),
        lambda: countdown.Countdown("train", count=1),
        lambda: countdown.Countdown("train", count=7),
        lambda: countdown.Countdown("train", largest=8),
        lambda: countdown.Countdown("train", largest=36),
        lambda: countdown.CountdownSteps(mode="all"),
        lambda: countdown.Countdown("exam", size=1000, count=2)(),
    ],
)
def test_what_makes_no_data_is_refused(make: Any) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.hint


def test_examples_of_its_docstrings_hold() -> None:
    assert doctest.testmod(countdown) == (0, 10)
