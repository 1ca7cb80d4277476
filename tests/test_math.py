"""The reward `math`: TRL's values, without computer algebra where none is needed."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.errors import InputError
from posttrain_plugins.rewards import math as module
from posttrain_plugins.rewards.math import Math
from posttrain_plugins.text import equivalence

pytest.importorskip("math_verify")

PAIRS = [
    (r"so \boxed{4}", "4", 1.0),
    (r"so \boxed{ -4.0 }", "-4", 1.0),
    (r"so \boxed{\frac{2}{4}}.", "0.5", 1.0),
    (r"so \boxed{0.3333}", "1/3", 0.0),
    (r"so \boxed{0.333333333}", "1/3", 1.0),
    (r"so \boxed{5}", "$4$", 0.0),
    (r"so $x = \boxed{4}$", "4", 1.0),
    (r"so \boxed{50}\%", "0.5", 0.0),
    (r"first \boxed{3}, then \boxed{4}", "4", 0.0),
    (r"\boxed{x+1}", "$1 + x$", 1.0),
    (r"\boxed{x+1}", "$x+1$", 1.0),
    (r"\boxed{(x-1)^2}", "$x^2+2x+1$", 0.0),
    (r"\boxed{\{2, 1\}}", r"$\{1, 2\}$", 1.0),
    ("the answer is $4$.", "4", 1.0),
    ("4", "4", 0.0),
    ("", "4", 0.0),
    (r"\boxed{4", "4", 0.0),
    (r"\boxed{}", "4", 0.0),
    (r"\boxed{4}", "?", None),
]


def test_its_values_are_those_of_trl() -> None:
    from trl.rewards import accuracy_reward

    texts, solutions, scores = map(list, zip(*PAIRS, strict=True))
    assert Math()(completions=texts, solution=solutions) == scores
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert Math()(completions=messages, solution=solutions) == scores
    assert accuracy_reward(messages, solutions) == scores


def test_every_example_gets_its_score() -> None:
    columns = [[example[name] for example in Math.examples] for name in ("completion", "solution", "score")]
    assert Math()(completions=columns[0], solution=columns[1]) == columns[2]


def test_it_cannot_judge_without_a_reference_and_keeps_the_contract() -> None:
    assert Math()(completions=[r"\boxed{4}"] * 2, solution=[None, "4"], trainer_state=None) == [None, 1.0]
    assert Math()(completions=[], solution=[]) == []
    assert pickle.loads(pickle.dumps(Math())) == Math()
    assert Math().__name__ == "math"
    with pytest.raises(InputError, match="math cannot use limit_s: 0"):
        Math(limit_s=0)


def test_numbers_and_equal_answers_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def noted(*words: Any) -> bool:
        asked.append(words)
        return True

    monkeypatch.setattr(module, "is_right", noted)
    texts = [rf"way {i}: \boxed{{{answer}}}" for i in range(3) for answer in ("4", "x+1", r"\frac{8}{2}", "y")]
    assert Math()(completions=texts, solution=["4", "$1+x$", "4", "$y$"] * 3) == [1.0] * 12
    assert [words[:2] for words in asked] == [(r"\boxed{x+1}", "$1+x$")]


def test_what_takes_for_ever_is_wrong() -> None:
    assert Math(limit_s=1.0)(completions=[r"\boxed{9^{9^{9^{9}}}}"], solution=["$x$"]) == [0.0]


def test_without_math_verify_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_available", lambda: False)
    with pytest.raises(InputError) as caught:
        Math()(completions=["4"], solution=["4"])
    assert caught.value.hint == "pip install 'posttrain-plugins[math]'"


def test_it_works_in_any_thread_and_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def judge(i: int) -> list[float | None]:
        return Math()(completions=[rf"\boxed{{x+{i}}}"], solution=[f"${i}+x$"])

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(judge, range(6))) == [[1.0]] * 6
    (pool,) = equivalence._processes.pools.values()
    assert 1 <= len(pool.pids) <= equivalence.MAX_WORKERS


@pytest.mark.slow
def test_the_benchmark_finds_no_other_value(monkeypatch: pytest.MonkeyPatch, load_script) -> None:
    folder = Path(__file__).parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    found = load_script(folder / "math_reward.py").compare(20, 1)
    assert found["different"] == []
    assert found["completions"] == 160
    assert found["distinct"] <= 80
    assert 0 < found["right"] < 160
    sys.modules.pop("record", None)
