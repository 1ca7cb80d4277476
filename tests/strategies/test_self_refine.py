"""Self-refine: its history, its end, and its budget."""

from __future__ import annotations

from dataclasses import replace

from by_hand import FAILED, PLAIN, PROBLEM, ScriptedModel, answers, completions, play_by_hand

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.strategies.self_refine import SelfRefine
from posttrain_plugins.types import Budget, Score


def test_self_refine_keeps_the_whole_history_and_stops_at_the_phrase() -> None:
    replies = [answers(5), completions("too much"), answers(4), completions("All right: NO ISSUES")]
    asked, result = play_by_hand(SelfRefine(feedback_prompt="F", refine_prompt="R"), replies)
    assert [request.purpose for request in asked] == ["answer", "feedback", "answer", "feedback"]
    contents = [m["content"] for m in asked[3].prompt]
    assert contents == ["2+2=?", "so the answer is 5", "F", "too much", "R", "so the answer is 4", "F"]
    assert [m["role"] for m in asked[3].prompt] == ["user", *["assistant", "user"] * 3]
    assert (result.answer, len(result.candidates)) == ("4", 2)


def test_self_refine_has_rounds_and_a_scorer_may_prefer_an_earlier_answer() -> None:
    replies = [answers(5), completions("no"), answers(4), completions("no"), answers(3)]
    asked, result = play_by_hand(SelfRefine(rounds=2), replies)
    assert (len(asked), result.answer) == (5, "3")
    asked, result = play_by_hand(SelfRefine(rounds=2, scorer="rm"), [*replies, [0.1, 0.9, 0.9]])
    assert asked[5] == Score(PROBLEM.prompt, tuple(f"so the answer is {d}" for d in "543"), "rm")
    assert result.answer == "3"  # of equals the later
    assert play_by_hand(SelfRefine(rounds=2, scorer="rm"), [*replies, [0.1, 0.9, None]])[1].answer == "4"


def test_self_refine_in_plain_text_and_behind_a_prefill() -> None:
    replies = [completions("It is 5"), completions("NO ISSUES")]
    asked, _ = play_by_hand(SelfRefine(feedback_prompt="F"), replies, PLAIN)
    assert asked[1].prompt == "2+2=?\n\nIt is 5\n\nF\n\n"
    begun = replace(PROBLEM, prompt=[*PROBLEM.prompt, {"role": "assistant", "content": "Well: "}])
    asked, _ = play_by_hand(SelfRefine(feedback_prompt="F"), replies, begun)
    assert [m["content"] for m in asked[1].prompt] == ["2+2=?", "Well: It is 5", "F"]


def test_self_refine_ends_well_where_something_is_missing() -> None:
    assert play_by_hand(SelfRefine(), [answers(5), completions("")])[1].answer == "5"  # no feedback
    assert play_by_hand(SelfRefine(), [answers(5), [FAILED]])[1].answer == "5"
    assert play_by_hand(SelfRefine(), [answers(5), completions("no"), [FAILED]])[1].answer == "5"
    remark = completions("I have changed the second step of it, as was asked for")
    assert play_by_hand(SelfRefine(rounds=1), [answers(5), completions("no"), remark])[1].answer == "5"


def test_self_refine_at_the_end_of_its_budget_gives_its_latest_answer() -> None:
    replies = ["answer is 5", "no", "answer is 4", "no"]
    strategy = SelfRefine(scorer="rm")
    result = solve(
        strategy, [PLAIN], backend=ScriptedModel(lambda _, draw: replies[draw]), budget=Budget(completions=4)
    )[0]
    assert (result.answer, result.stopped_by) == ("4", "completions")


def test_self_refine_whose_budget_ends_at_the_score_gives_its_latest_answer() -> None:
    replies = ["answer is 5", "no", "answer is 4"]
    model = ScriptedModel(lambda _, draw: replies[draw])
    [result] = solve(SelfRefine(rounds=1, scorer="rm"), [PLAIN], backend=model, budget=Budget(calls=3))
    assert (result.answer, result.stopped_by, len(model.asked)) == ("4", "calls", 3)
