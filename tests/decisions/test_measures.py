"""Agreement, preference for a place, and questions whose answer is known, against published and exact values."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction
from itertools import permutations
from typing import Any

import pytest

from posttrain_plugins.decisions.agreement import agreement, alpha_of
from posttrain_plugins.decisions.bias import position_preference, preferences
from posttrain_plugins.decisions.formats import rows_of
from posttrain_plugins.decisions.gold import can_be_gold, gold_accuracy, is_chosen, is_right
from posttrain_plugins.decisions.item import Decision, Item, items_of

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: four observers, twelve units, missing
# values; the nominal alpha is given as 0.743.
KRIPPENDORFF = {
    "A": "1 2 3 3 2 1 4 1 2 . . .",
    "B": "1 2 3 3 2 2 4 1 2 5 . 3",
    "C": ". 3 3 3 2 3 4 2 2 5 1 .",
    "D": "1 2 3 3 2 4 4 1 2 5 1 .",
}


def exact_alpha(data: list[tuple[str, str, str]]) -> Fraction:
    """Krippendorff's alpha by his coincidence matrix, in fractions."""
    units: dict[str, list[str]] = {}
    for _, unit, value in data:
        units.setdefault(unit, []).append(value)
    coincidences: Counter[tuple[str, str]] = Counter()
    for values in units.values():
        for a, b in permutations(range(len(values)), 2):
            coincidences[values[a], values[b]] += Fraction(1, len(values) - 1)  # type: ignore[assignment]
    totals: Counter[str] = Counter()
    for (a, _), count in coincidences.items():
        totals[a] += count
    n = sum(totals.values())
    observed = sum(count for (a, b), count in coincidences.items() if a != b)
    expected = sum(totals[a] * totals[b] for a, b in permutations(totals, 2))
    return 1 - Fraction(n - 1) * observed / Fraction(expected)


def test_alpha_of_a_published_table_with_missing_values() -> None:
    data = [
        (who, str(unit), value)
        for who, row in KRIPPENDORFF.items()
        for unit, value in enumerate(row.split())
        if value != "."
    ]
    exact = exact_alpha(data)
    assert round(float(exact), 3) == 0.743
    found = alpha_of(data)
    assert found is not None
    assert abs(found - float(exact)) < 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_alpha_of_random_tables_with_missing_values(seed: int) -> None:
    rng = random.Random(seed)
    data = [(who, str(unit), rng.choice("xyz")) for who in "abc" for unit in range(40) if rng.random() < 0.7]
    found = alpha_of(data)
    assert found is not None
    assert abs(found - float(exact_alpha(data))) < 1e-12


def picked(annotator: str, item: str, choice: int, number: int = 0, **more: Any) -> Decision:
    return Decision(f"{annotator}{item}{number}", item, "pick", annotator, choice=choice, **more)


def test_agreement_says_what_is_not_known() -> None:
    alone = agreement([picked("ann", "x", 0), picked("bob", "y", 0)])
    assert (str(alone), alone.alpha, alone.raw, alone.with_themselves, alone.items) == (
        "not known",
        None,
        None,
        None,
        0,
    )
    assert str(agreement([])) == "not known"
    one_value = agreement([picked(who, item, 0) for who in ("ann", "bob") for item in "xyz"])
    assert (str(one_value), one_value.alpha, one_value.raw) == ("1.0, one value only", 1.0, 1.0)
    texts = agreement([Decision(f"{who}", "x", "demonstration", who, text="t") for who in "ab"])
    assert (str(texts), texts.raw) == ("not known", None)


def test_raw_agreement_stands_beside_an_alpha_that_is_low_where_a_value_is_rare() -> None:
    same = [picked(who, f"i{n}", 0) for who in ("ann", "bob") for n in range(20)]
    found = agreement([*same, picked("ann", "y", 1), picked("bob", "y", 0)])
    assert found.raw == 20 / 21
    assert found.alpha is not None
    assert found.alpha < 0.05
    without = agreement([*same, picked("ann", "y", 1), picked("bob", "y", 0)], needs_alpha=False)
    assert (without.alpha, without.raw) == (None, 20 / 21)


def test_self_agreement_is_of_items_that_one_annotator_saw_again() -> None:
    ledger = [picked("ann", "x", 0), picked("ann", "x", 0, 1), picked("ann", "y", 0), picked("ann", "y", 2, 1)]
    found = agreement([*ledger, picked("bob", "x", 0)])
    assert found.with_themselves == 0.5
    assert (found.raw, found.items) == (1.0, 1)  # the first decision is the one that others are compared with


def test_orders_are_compared_pair_by_pair() -> None:
    def order(who: str, *groups: tuple[int, ...]) -> Decision:
        return Decision(who, "x", "rank", who, order=groups)

    assert agreement([order("a", (0,), (1,), (2,)), order("b", (0,), (2,), (1,))]).raw == pytest.approx(2 / 3)
    assert agreement([order("a", (0,), (1, 2)), order("b", (0,), (2, 1))]).raw == 1.0
    flagged = Decision("f", "x", "rank", "c", flag=True)
    assert agreement([order("a", (0,), (1, 2)), flagged]).raw is None  # nothing that both have judged


# --- a place on the screen --------------------------------------------------------------------------------------------


def session(rule: str, count: int, seed: int, n: int = 2, annotator: str = "ann") -> tuple[list[Item], list[Decision]]:
    """Items with the better completion at place 0 or not, shown in random order, and answered by a rule."""
    rng = random.Random(seed)
    rows = [{"prompt": f"{seed}:{i}", "completions": [f"model{m} {i}" for m in range(n)]} for i in range(count)]
    items, _ = items_of(rows, "pick")
    decisions = []
    for i, item in enumerate(items):
        shown = tuple(rng.sample(range(n), n))
        choice = {"left": shown[0], "right": shown[-1], "fair": rng.randrange(n)}[rule]
        decisions.append(picked(annotator, item.id, choice, i, shown=shown))
    return items, decisions


@pytest.mark.parametrize("n", [2, 3, 5])
def test_who_always_takes_the_left_one_is_exposed(n: int) -> None:
    items, decisions = session("left", 400, seed=n, n=n)
    found = position_preference(decisions)
    assert found is not None
    assert found.mean >= 0.95
    assert 0.95 <= found.low <= found.high <= 1.0
    assert found.is_biased
    # and since the order was drawn, the pairs prefer no model all the same
    answers = {one.item: [one] for one in decisions}
    pairs = rows_of(items, answers).rows
    first = sum(row["chosen"].startswith("model0") for row in pairs) / len(pairs)
    assert abs(first - 1 / n) <= 0.07
    right = position_preference(session("right", 400, seed=n, n=n)[1])
    assert right is not None
    assert right.high <= 0.05
    assert right.is_biased


@pytest.mark.parametrize("n", [2, 3, 5])
def test_who_looks_at_the_texts_is_not(n: int) -> None:
    inside = 0
    for seed in range(30):
        found = position_preference(session("fair", 200, seed, n=n)[1])
        assert found is not None
        inside += not found.is_biased
    assert inside >= 26  # of a 95 % interval, 25 or fewer of 30 have probability 0.01, and it is rather too wide


def test_the_interval_is_wilsons() -> None:
    found = position_preference([picked("a", str(i), int(i < 4), i, shown=(0, 1)) for i in range(10)])
    assert found is not None
    # 6 of 10, as in the textbooks: 0.3127, 0.8318
    assert (found.mean, round(found.low, 4), round(found.high, 4), found.decisions) == (0.6, 0.3127, 0.8318, 10)
    assert str(found) == "0.600 [0.313, 0.832]"


def test_orders_count_and_what_was_not_shown_does_not() -> None:
    order = Decision("r", "x", "rank", "a", shown=(2, 0, 1), order=((0,), (1, 2)))
    found = position_preference([order])
    assert found is not None
    assert found.mean == 0.5  # 0 stood before 1 and behind 2
    assert (
        position_preference([picked("a", "x", 1), Decision("n", "x", "pick", "a", shown=(0, 1), none_good=True)])
        is None
    )
    mixed = session("left", 50, 1)[1] + session("fair", 50, 2, annotator="bob")[1]
    assert {name: one.is_biased for name, one in preferences(mixed).items()} == {"ann": True, "bob": False}


# --- questions whose answer is known ----------------------------------------------------------------------------------

PICK = items_of([{"prompt": "p", "completions": ["a", "b", "c"]}], "pick")[0][0]
RANK = items_of([{"prompt": "p", "completions": ["a", "b", "c"]}], "rank")[0][0]
ACCEPT = items_of([{"prompt": "p", "completion": "a"}], "accept")[0][0]
STEPS = items_of([{"prompt": "p", "completion": "a\n\nb\n\nc"}], "first_wrong")[0][0]


@pytest.mark.parametrize(
    ("item", "truths", "answer", "right"),
    [
        (PICK, (True, False, False), {"choice": 0}, True),
        (PICK, (True, False, False), {"choice": 1}, False),
        (PICK, (True, False, False), {"none_good": True}, False),
        (PICK, (False, False, False), {"none_good": True}, True),
        (PICK, (False, False, False), {"choice": 0}, False),
        (RANK, (True, True, False), {"order": ((0, 1), (2,))}, True),
        (RANK, (True, True, False), {"order": ((1,), (0,), (2,))}, True),
        (RANK, (True, True, False), {"order": ((1,), (2,), (0,))}, False),
        (RANK, (True, True, False), {"order": ((1,), (0, 2))}, True),
        (RANK, (True, False, False), {"order": ((0, 1), (2,))}, False),
        (RANK, (False, False, False), {"order": ((0,), (1,), (2,))}, False),
        (RANK, (False, False, False), {"none_good": True}, True),
        (ACCEPT, (True,), {"verdict": True}, True),
        (ACCEPT, (False,), {"verdict": True}, False),
        (STEPS, (True, False, True), {"first_wrong": 1}, True),
        (STEPS, (True, True, True), {"first_wrong": 3}, True),
        (STEPS, (True, True, True), {"first_wrong": 0}, False),
    ],
)
def test_an_answer_is_compared_with_what_is_known(
    item: Item, truths: tuple, answer: dict[str, Any], right: bool
) -> None:
    decision = Decision("d", item.id, item.mode, "ann", **answer)
    assert is_right(decision, item, truths) is right
    assert gold_accuracy({item.id: item}, {item.id: truths}, [decision]) == {"ann": (int(right), 1)}


def test_nobody_is_measured_where_nobody_can_be_wrong() -> None:
    assert can_be_gold(PICK, (True, False, True))
    assert can_be_gold(PICK, (False, False, False))
    assert not can_be_gold(PICK, (True, True, True))
    assert not can_be_gold(PICK, (True, None, False))
    assert not can_be_gold(PICK, ())
    assert can_be_gold(ACCEPT, (True,))
    flagged = Decision("d", PICK.id, "pick", "ann", flag=True)
    assert gold_accuracy({PICK.id: PICK}, {PICK.id: (True, False, False)}, [flagged]) == {}


def test_a_share_is_chosen_by_the_content_alone() -> None:
    ids = [item.id for item in items_of([{"prompt": str(i)} for i in range(2000)], "demonstration")[0]]
    assert sum(is_chosen(id, 0.1) for id in ids) / 2000 == pytest.approx(0.1, abs=0.03)  # 4.5 standard deviations
    assert not any(is_chosen(id, 0.0) for id in ids)
    assert all(is_chosen(id, 1.0) for id in ids)
