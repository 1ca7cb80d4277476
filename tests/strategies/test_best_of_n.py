"""Best of N: by a scorer, by steps, by a judge's ratings and in pairs."""

from __future__ import annotations

from typing import Any

import pytest
from by_hand import COMPLETIONS, PLAIN, PROBLEM, ScriptedModel, answers, completions, play_by_hand, user_text

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import InputError
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.types import Budget, Generate, Score, ScoreSteps


def test_best_of_n_takes_the_best_score() -> None:
    asked, result = play_by_hand(BestOfN("rm", n=4), [COMPLETIONS, [0.1, -2.0, 3.0, None]])
    assert asked[1] == Score(PROBLEM.prompt, tuple(completion.text for completion in COMPLETIONS), "rm")
    assert (result.answer, [candidate.score for candidate in result.candidates]) == ("4.0", [0.1, -2.0, 3.0, None])


def test_best_of_n_weighted_sums_scores_of_equivalent_answers() -> None:
    scores = [0.6, 0.4, 0.3, 0.1]
    assert play_by_hand(BestOfN("rm", n=4), [COMPLETIONS, scores])[1].answer == "5"
    assert play_by_hand(BestOfN("rm", n=4, weighted=True), [COMPLETIONS, scores])[1].answer == "4"


def test_best_of_n_weighted_takes_negative_scores_for_logits() -> None:
    logits = [1.0, -0.5, -0.5, -1000.0]  # sigmoid: .73 against .38 + .38
    assert play_by_hand(BestOfN("rm", n=4, weighted=True), [COMPLETIONS, logits])[1].answer == "4"


def test_best_of_n_without_any_judgement_takes_the_first() -> None:
    for weighted in (False, True):
        result = play_by_hand(BestOfN("rm", n=4, weighted=weighted), [COMPLETIONS, [None] * 4])[1]
        assert result.text == COMPLETIONS[0].text


def test_best_of_n_needs_one_of_scorer_and_judge() -> None:
    with pytest.raises(InputError, match="found neither"):
        BestOfN()
    with pytest.raises(InputError, match="found both"):
        BestOfN("rm", judge="policy")
    for wrong in ({"judge": "policy", "step_separator": ";"}, {"scorer": "rm", "step_separator": ""}):
        with pytest.raises(InputError, match="cannot score steps"):
            BestOfN(**wrong)
    with pytest.raises(InputError, match="cannot weigh"):
        BestOfN(judge="policy", judging="pairwise", weighted=True)


STEPPED = completions("a;b;answer is 5", "a;answer is 4", "", "c;answer is 3")
STEP_SCORES = [[0.9, 0.1, 0.8], [0.6, 0.7], [0.5, 0.75]]  # min .1 .6 .5, prod .07 .42 .38, last .8 .7 .75


@pytest.mark.parametrize(("aggregate", "answer"), [("last", "5"), ("min", "4"), ("prod", "4"), ("mean", "4")])
def test_best_of_n_by_the_worth_of_steps(aggregate: Any, answer: str) -> None:
    strategy = BestOfN("prm", n=4, step_separator=";", aggregate=aggregate)
    asked, result = play_by_hand(strategy, [STEPPED, STEP_SCORES])
    steps = (("a;", "b;", "answer is 5"), ("a;", "answer is 4"), ("c;", "answer is 3"))
    assert asked[1] == ScoreSteps(PROBLEM.prompt, steps, "prm")
    assert result.answer == answer
    assert [candidate.step_scores for candidate in result.candidates] == [*STEP_SCORES[:2], [], STEP_SCORES[2]]
    assert result.candidates[2].score is None


def test_best_of_n_without_steps_asks_for_no_scores() -> None:
    asked, result = play_by_hand(BestOfN("prm", step_separator=";"), [completions("", "")])
    assert (len(asked), result.text) == (1, "")
    assert play_by_hand(BestOfN("prm", step_separator=";"), [STEPPED[:1], [[]]])[1].answer == "5"


def test_best_of_n_rated_by_a_judge() -> None:
    strategy = BestOfN(judge="critic", n=4, ratings=2)
    replies = [
        completions("Rating: 8", "Rating: **3/10**"),
        completions("I would say 2. Rating: 7.5", "10"),
        completions("Rating: 99", "no idea"),
    ]
    asked, result = play_by_hand(strategy, [answers(5, 4, 3, 5), replies])
    assert [(request.n, request.model, request.purpose) for request in asked[1]] == [(2, "critic", "judgement")] * 3
    assert asked[1][0].params.temperature == PROBLEM.params.temperature
    assert [candidate.score for candidate in result.candidates] == [5.5, 8.75, None, 5.5]
    assert result.answer == "4"
    one = play_by_hand(BestOfN(judge="critic", n=1), [answers(5), [completions("Rating: 1")]])[0]
    assert one[1][0].params.temperature == 0.0


def test_best_of_n_ratings_may_vote() -> None:
    strategy = BestOfN(judge="policy", n=3, weighted=True)
    replies = [completions("Rating: 9"), completions("Rating: 5"), completions("Rating: 5")]
    assert play_by_hand(strategy, [answers(5, 4, "4.0"), replies])[1].answer == "4"


def test_best_of_n_knockout_order() -> None:
    """Five: 0-1 and 2-3 meet, 4 waits; then the winners 1-2, 4 waits; then 2-4."""
    strategy = BestOfN(judge="critic", judging="pairwise", n=5, swap=False)
    rounds = [[completions("[[B]]"), completions("[[A]]")], [completions("[[B]]")], [completions("[[A]]")]]
    asked, result = play_by_hand(strategy, [answers(0, 1, 2, 3, 4), *rounds])
    met = [[[c for c in "01234" if f"answer is {c}" in user_text(r)] for r in wave] for wave in asked[1:]]
    assert met == [[["0", "1"], ["2", "3"]], [["1", "2"]], [["2", "4"]]]
    assert result.answer == "2"
    assert [candidate.score for candidate in result.candidates] == [None, 1.0, 3.0, None, 2.0]


@pytest.mark.parametrize(
    ("verdicts", "winner"),
    [(("[[B]]", "[[A]]"), "4"), (("[[A]]", "[[B]]"), "5"), (("[[A]]", "[[A]]"), "5"), (("[[B]]", "well"), "4")],
)
def test_best_of_n_pairs_in_both_orders(verdicts: tuple[str, str], winner: str) -> None:
    """A judge that always says A, whoever that is, decides nothing: the earlier one stays."""
    strategy = BestOfN(judge="policy", judging="pairwise", n=2)
    asked, result = play_by_hand(strategy, [answers(5, 4), [completions(verdict) for verdict in verdicts]])
    orders = [user_text(request).index("answer is 5") < user_text(request).index("answer is 4") for request in asked[1]]
    assert orders == [True, False]
    assert result.answer == winner


def test_best_of_n_knockout_cut_short_keeps_who_came_furthest() -> None:
    def reply(request: Generate, draw: int) -> str:
        return "[[B]]" if request.purpose == "judgement" else f"answer is {draw}"

    strategy = BestOfN(judge="policy", judging="pairwise", n=4, swap=False)
    result = solve(strategy, [PLAIN], backend=ScriptedModel(reply), budget=Budget(calls=3))[0]
    assert (result.answer, result.stopped_by) == ("1", "calls")  # 1 and 3 won a round each
