"""Reading answers, comparing them, and the vote."""

from __future__ import annotations

import pytest

from posttrain_plugins.answers import canonical, equivalent, extract, majority


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> no, <answer> 2 </answer>", "2"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{x_{1}}", "x_{1}"),
        ("The answer is 42.", "42"),
        ("I think\nFinal Answer: 3/4\nDone?", "3/4"),
        ("reason\n#### 1,234", "1,234"),
        ("3|7=4;4>2=4\n4", "4"),
        ("7", "7"),
        ("-3.5", "-3.5"),
        ("3|7=4;4>", None),
        (r"\boxed{1", None),
        ("<answer></answer>", None),
        ("", None),
        ("\n\n", None),
        ("I went to the shop and then I went home again, which took a while.", None),
    ],
)
def test_extract(text: str, answer: str | None) -> None:
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("0.5", r"\frac{1}{2}", True),
        ("1,000", "1000.0", True),
        ("$7$", "+7", True),
        (r"\text{Paris}", "paris.", True),
        ("4", "5", False),
        ("1/0", "0", False),
        ("1e3", "1000", True),
        ("9" * 5000, "1", False),
    ],
)
def test_equivalent(a: str, b: str, same: bool) -> None:
    assert equivalent(a, b) is equivalent(b, a) is same
    assert canonical(canonical(a)) == canonical(a)


def test_majority() -> None:
    assert majority(["1", "2", "2.0", None]) == 1
    assert majority(["1", "2"]) == 0  # the first seen wins a tie
    assert majority(["1", "2", "2"], weights=[5.0, 1.0, 1.0]) == 0
    assert majority([None, None]) is majority([]) is None
