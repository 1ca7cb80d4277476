"""The strategies, worked by hand: what each one asks for, and what it makes of the answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.strategies.adaptive_consistency import AdaptiveConsistency, lead_probability
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.budget_forcing import BudgetForcing
from posttrain_plugins.strategies.chain_of_thought import ChainOfThought
from posttrain_plugins.strategies.compute_optimal import ComputeOptimal, calibrate, vote_entropy
from posttrain_plugins.strategies.confidence_filtering import ConfidenceFiltering, confidence
from posttrain_plugins.strategies.episodic_memory import EpisodicMemory, bm25
from posttrain_plugins.strategies.greedy import Greedy
from posttrain_plugins.strategies.mixture_of_agents import MixtureOfAgents
from posttrain_plugins.strategies.react import ReAct
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.strategies.self_refine import SelfRefine
from posttrain_plugins.strategies.universal_self_consistency import UniversalSelfConsistency
from posttrain_plugins.types import (
    Budget,
    Completion,
    Generate,
    Problem,
    ResolvedReward,
    Result,
    SamplingParams,
    Score,
    ScoreSteps,
    Strategy,
    Usage,
)

PROBLEM = Problem([{"role": "user", "content": "2+2=?"}], SamplingParams(temperature=0.7, max_tokens=9))
PLAIN = Problem("2+2=?", SamplingParams(temperature=0.7, max_tokens=9))
COMPLETIONS = [Completion(f"so the answer is {answer}") for answer in ("5", "4", "4.0", "3")]
FAILED = Completion("", finish_reason="error", error="oh")


def play(strategy: Strategy, responses: Sequence[Any], problem: Problem = PROBLEM) -> tuple[list[Any], Result]:
    """Run a strategy by hand: what it asks for, and its result."""
    steps = strategy(problem)
    asked: list[Any] = [next(steps)]
    for response in responses:
        try:
            asked.append(steps.send(response))
        except StopIteration as stop:
            return asked, stop.value
    raise AssertionError(f"the strategy wants more: {asked[-1]}")


def says(*texts: str, **more: Any) -> list[Completion]:
    return [Completion(text, **more) for text in texts]


def answers(*digits: Any) -> list[Completion]:
    return says(*(f"so the answer is {digit}" for digit in digits))


def user_text(request: Generate) -> str:
    """What the user says last."""
    return request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]


@dataclass
class Scripted:
    """Answers with `reply(request, draw)`; `draw` counts the completions of all."""

    reply: Callable[[Generate, int], Completion | str]
    identity: str = "scripted"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(tools=True))
    asked: list[Generate] = field(default_factory=list)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        for i, request in enumerate(batch):
            for j in range(request.n):
                self.asked.append(request)
                reply = self.reply(request, len(self.asked) - 1)
                yield i, j, Completion(reply, usage=Usage(1, 1)) if isinstance(reply, str) else reply


# --- greedy, chain_of_thought ----------------------------------------------------------------------------------------


def test_greedy_asks_once_at_temperature_zero() -> None:
    [request], result = play(Greedy(), [COMPLETIONS[:1]])
    assert request == Generate(PROBLEM.prompt, params=SamplingParams(temperature=0.0, max_tokens=9))
    assert (result.answer, result.text) == ("5", "so the answer is 5")


def test_chain_of_thought_zero_shot() -> None:
    [request], _ = play(ChainOfThought(), [COMPLETIONS[:1]])
    assert request.prompt == [{"role": "user", "content": "2+2=?\nLet's think step by step."}]
    assert request.params.temperature == 0.0
    assert PROBLEM.prompt == [{"role": "user", "content": "2+2=?"}]


def test_chain_of_thought_few_shot_keeps_the_system_message_first() -> None:
    chat = Problem([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2=?"}])
    strategy = ChainOfThought(shots=[{"prompt": "1+1=?", "completion": "2"}])
    [request], _ = play(strategy, [COMPLETIONS[:1]], chat)
    assert [m["content"] for m in request.prompt] == ["Be brief.", "1+1=?", "2", "2+2=?"]
    assert [m["role"] for m in request.prompt] == ["system", "user", "assistant", "user"]


def test_chain_of_thought_plain() -> None:
    strategy = ChainOfThought(shots=[{"prompt": "1+1=?", "completion": "2"}], trigger="Think.")
    [request], _ = play(strategy, [COMPLETIONS[:1]], Problem("2+2=?"))
    assert request.prompt == "1+1=?\n2\n\n2+2=?\nThink."


def test_chain_of_thought_leaves_a_prefill_at_the_end() -> None:
    begun = Problem([{"role": "user", "content": "2+2=?"}, {"role": "assistant", "content": "<think>"}])
    [request], _ = play(ChainOfThought(trigger="Think."), [COMPLETIONS[:1]], begun)
    assert [m["content"] for m in request.prompt] == ["2+2=?\nThink.", "<think>"]


# --- self_consistency and its relatives ------------------------------------------------------------------------------


def test_self_consistency_takes_the_largest_class_of_equivalent_answers() -> None:
    [request], result = play(SelfConsistency(n=4), [COMPLETIONS])
    assert request == Generate(PROBLEM.prompt, n=4, params=PROBLEM.params)
    assert (result.answer, result.text) == ("4", COMPLETIONS[1].text)
    assert len(result.candidates) == 4


def test_self_consistency_ties_go_to_the_first_and_the_unparsable_abstain() -> None:
    unparsable = Completion("I wonder about that, and about many other things too.")
    result = play(SelfConsistency(n=4), [[unparsable, unparsable, COMPLETIONS[3], COMPLETIONS[0]]])[1]
    assert result.answer == "3"
    assert play(SelfConsistency(n=1), [[unparsable]])[1].answer is None


def test_self_consistency_weighted_by_probability_flips_the_majority() -> None:
    sure = Completion("the answer is 7", logprobs=[-0.1, -0.1])
    unsure = [Completion("the answer is 8", logprobs=[-1.0, -1.5, -1.25])] * 2  # e^-1.25 twice is 0.57, e^-0.1 is 0.90
    [request], result = play(SelfConsistency(n=3, weights="logprob"), [[*unsure, sure]])
    assert request.params.logprobs
    assert result.answer == "7"
    assert play(SelfConsistency(n=3), [[*unsure, sure]])[1].answer == "8"


def test_self_consistency_weights_do_not_depend_on_length() -> None:
    long = Completion("the answer is 7", logprobs=[-0.1] * 20)  # e^-0.1 is more than e^-0.5, e^-2 would be less
    short = Completion("the answer is 8", logprobs=[-0.5])
    assert play(SelfConsistency(n=2, weights="logprob"), [[short, long]])[1].answer == "7"


def test_self_consistency_weighted_needs_log_probabilities() -> None:
    with pytest.raises(InputError, match="no log-probabilities"):
        play(SelfConsistency(weights="logprob"), [COMPLETIONS])
    empty = Completion("", logprobs=[])
    assert play(SelfConsistency(weights="logprob"), [[empty, FAILED]])[1].answer is None


@pytest.mark.parametrize(
    ("votes", "probability"),
    [((4, 0), 0.96875), ((3, 0), 0.9375), ((6, 1), 247 / 256), ((5, 1), 120 / 128), ((2, 2), 0.5), ((0, 0), 0.5)],
)
def test_lead_probability(votes: tuple[int, int], probability: float) -> None:
    assert lead_probability(*votes) == probability


def test_lead_probability_is_the_papers_integral() -> None:
    """P(Beta(v1 + 1, v2 + 1) > 1/2), by the midpoint rule."""
    for first, second in ((5, 2), (9, 4)):
        points = [(i + 0.5) / 20_000 for i in range(20_000)]
        density = [p**first * (1 - p) ** second for p in points]
        above = sum(density[10_000:]) / sum(density)
        assert lead_probability(first, second) == pytest.approx(above, abs=1e-6)


def test_adaptive_consistency_stops_at_four_of_one_mind() -> None:
    asked, result = play(AdaptiveConsistency(n=40), [answers(4, "4.0", 4, 4)])
    assert [request.n for request in asked] == [4]
    assert (result.answer, len(result.candidates)) == ("4", 4)


def test_adaptive_consistency_draws_on_until_the_lead_is_safe() -> None:
    waves = [answers(5, 4, 4, 4), answers(4), answers(4), answers(4)]  # 3:1, 4:1, 5:1 (0.9375), 6:1 (0.965)
    strategy = AdaptiveConsistency(step=1)
    asked, result = play(strategy, [[one] for one in waves[0]] + waves[1:])
    assert len(asked) == 7
    assert result.answer == "4"


def test_adaptive_consistency_has_an_end() -> None:
    asked, result = play(AdaptiveConsistency(n=6, step=4), [answers(1, 2, 3, 4), answers(5, 6)])
    assert [request.n for request in asked] == [4, 2]
    assert result.answer == "1"
    with pytest.raises(InputError, match="0 at a time"):
        AdaptiveConsistency(step=0)


def test_universal_self_consistency_asks_the_model_to_choose() -> None:
    [first, second], result = play(
        UniversalSelfConsistency(n=3), [answers(5, 4, 3), says("The most consistent response is Response 2, not 0.")]
    )
    assert first == Generate(PROBLEM.prompt, n=3, params=PROBLEM.params)
    assert (second.purpose, second.params.temperature, second.n) == ("vote", 0.0, 1)
    assert "Response 1: so the answer is 4\n\nResponse 2:" in user_text(second)
    assert "2+2=?" in user_text(second)
    assert result.answer == "3"


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [
        ("Response 0 is odd. The most consistent response is **Response 1**.", "5"),
        ("2", "4.0"),
        ("Response 2 because of its steps", "4.0"),
        ("The most consistent response is Response 9.", "4"),  # there is none: the majority
        ("They differ.", "4"),
        ("", "4"),
    ],
)
def test_universal_self_consistency_reads_the_choice_or_counts(verdict: str, answer: str) -> None:
    assert play(UniversalSelfConsistency(n=4), [answers(4, 5, "4.0", 4), says(verdict)])[1].answer == answer


def test_universal_self_consistency_needs_no_choice_among_equals() -> None:
    asked, result = play(UniversalSelfConsistency(n=3), [says("4", "4", "4")])
    assert (len(asked), result.answer) == (1, "4")


def test_prompts_leave_dollars_and_braces_alone() -> None:
    strategy = UniversalSelfConsistency(choice_prompt=r"$question | $responses | \boxed{} costs $5 {x}")
    asked, _ = play(strategy, [says("$responses", "b"), says("1")], replace(PLAIN, prompt="$question?"))
    text = "$question? | Response 0: $responses\n\nResponse 1: b | " + r"\boxed{} costs $5 {x}"
    assert asked[1].prompt == text


# --- best_of_n -------------------------------------------------------------------------------------------------------


def test_best_of_n_takes_the_best_score() -> None:
    asked, result = play(BestOfN("rm", n=4), [COMPLETIONS, [0.1, -2.0, 3.0, None]])
    assert asked[1] == Score(PROBLEM.prompt, tuple(completion.text for completion in COMPLETIONS), "rm")
    assert (result.answer, [candidate.score for candidate in result.candidates]) == ("4.0", [0.1, -2.0, 3.0, None])


def test_best_of_n_weighted_sums_scores_of_equivalent_answers() -> None:
    scores = [0.6, 0.4, 0.3, 0.1]
    assert play(BestOfN("rm", n=4), [COMPLETIONS, scores])[1].answer == "5"
    assert play(BestOfN("rm", n=4, weighted=True), [COMPLETIONS, scores])[1].answer == "4"


def test_best_of_n_weighted_takes_negative_scores_for_logits() -> None:
    logits = [1.0, -0.5, -0.5, -1000.0]  # sigmoid: .73 against .38 + .38
    assert play(BestOfN("rm", n=4, weighted=True), [COMPLETIONS, logits])[1].answer == "4"


def test_best_of_n_without_any_judgement_takes_the_first() -> None:
    for weighted in (False, True):
        result = play(BestOfN("rm", n=4, weighted=weighted), [COMPLETIONS, [None] * 4])[1]
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


STEPPED = says("a;b;answer is 5", "a;answer is 4", "", "c;answer is 3")
STEP_SCORES = [[0.9, 0.1, 0.8], [0.6, 0.7], [0.5, 0.75]]  # min .1 .6 .5, prod .07 .42 .38, last .8 .7 .75


@pytest.mark.parametrize(("aggregate", "answer"), [("last", "5"), ("min", "4"), ("prod", "4"), ("mean", "4")])
def test_best_of_n_by_the_worth_of_steps(aggregate: Any, answer: str) -> None:
    strategy = BestOfN("prm", n=4, step_separator=";", aggregate=aggregate)
    asked, result = play(strategy, [STEPPED, STEP_SCORES])
    steps = (("a;", "b;", "answer is 5"), ("a;", "answer is 4"), ("c;", "answer is 3"))
    assert asked[1] == ScoreSteps(PROBLEM.prompt, steps, "prm")
    assert result.answer == answer
    assert [candidate.step_scores for candidate in result.candidates] == [*STEP_SCORES[:2], [], STEP_SCORES[2]]
    assert result.candidates[2].score is None


def test_best_of_n_without_steps_asks_for_no_scores() -> None:
    asked, result = play(BestOfN("prm", step_separator=";"), [says("", "")])
    assert (len(asked), result.text) == (1, "")
    assert play(BestOfN("prm", step_separator=";"), [STEPPED[:1], [[]]])[1].answer == "5"


def test_best_of_n_rated_by_a_judge() -> None:
    strategy = BestOfN(judge="critic", n=4, ratings=2)
    replies = [
        says("Rating: 8", "Rating: **3/10**"),
        says("I would say 2. Rating: 7.5", "10"),
        says("Rating: 99", "no idea"),
    ]
    asked, result = play(strategy, [answers(5, 4, 3, 5), replies])
    assert [(request.n, request.model, request.purpose) for request in asked[1]] == [(2, "critic", "judgement")] * 3
    assert asked[1][0].params.temperature == PROBLEM.params.temperature
    assert [candidate.score for candidate in result.candidates] == [5.5, 8.75, None, 5.5]
    assert result.answer == "4"
    one = play(BestOfN(judge="critic", n=1), [answers(5), [says("Rating: 1")]])[0]
    assert one[1][0].params.temperature == 0.0


def test_best_of_n_ratings_may_vote() -> None:
    strategy = BestOfN(judge="policy", n=3, weighted=True)
    replies = [says("Rating: 9"), says("Rating: 5"), says("Rating: 5")]
    assert play(strategy, [answers(5, 4, "4.0"), replies])[1].answer == "4"


def test_best_of_n_knockout_order() -> None:
    """Five: 0-1 and 2-3 meet, 4 waits; then the winners 1-2, 4 waits; then 2-4."""
    strategy = BestOfN(judge="critic", judging="pairwise", n=5, swap=False)
    rounds = [[says("[[B]]"), says("[[A]]")], [says("[[B]]")], [says("[[A]]")]]
    asked, result = play(strategy, [answers(0, 1, 2, 3, 4), *rounds])
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
    asked, result = play(strategy, [answers(5, 4), [says(verdict) for verdict in verdicts]])
    orders = [user_text(request).index("answer is 5") < user_text(request).index("answer is 4") for request in asked[1]]
    assert orders == [True, False]
    assert result.answer == winner


def test_best_of_n_knockout_cut_short_keeps_who_came_furthest() -> None:
    def reply(request: Generate, draw: int) -> str:
        return "[[B]]" if request.purpose == "judgement" else f"answer is {draw}"

    strategy = BestOfN(judge="policy", judging="pairwise", n=4, swap=False)
    result = solve(strategy, [PLAIN], backend=Scripted(reply), budget=Budget(calls=3))[0]
    assert (result.answer, result.stopped_by) == ("1", "calls")  # 1 and 3 won a round each


# --- self_refine -----------------------------------------------------------------------------------------------------


def test_self_refine_keeps_the_whole_history_and_stops_at_the_phrase() -> None:
    replies = [answers(5), says("too much"), answers(4), says("All right: NO ISSUES")]
    asked, result = play(SelfRefine(feedback_prompt="F", refine_prompt="R"), replies)
    assert [request.purpose for request in asked] == ["answer", "feedback", "answer", "feedback"]
    contents = [m["content"] for m in asked[3].prompt]
    assert contents == ["2+2=?", "so the answer is 5", "F", "too much", "R", "so the answer is 4", "F"]
    assert [m["role"] for m in asked[3].prompt] == ["user", *["assistant", "user"] * 3]
    assert (result.answer, len(result.candidates)) == ("4", 2)


def test_self_refine_has_rounds_and_a_scorer_may_prefer_an_earlier_answer() -> None:
    replies = [answers(5), says("no"), answers(4), says("no"), answers(3)]
    asked, result = play(SelfRefine(rounds=2), replies)
    assert (len(asked), result.answer) == (5, "3")
    asked, result = play(SelfRefine(rounds=2, scorer="rm"), [*replies, [0.1, 0.9, 0.9]])
    assert asked[5] == Score(PROBLEM.prompt, tuple(f"so the answer is {d}" for d in "543"), "rm")
    assert result.answer == "3"  # of equals the later
    assert play(SelfRefine(rounds=2, scorer="rm"), [*replies, [0.1, 0.9, None]])[1].answer == "4"


def test_self_refine_in_plain_text_and_behind_a_prefill() -> None:
    replies = [says("It is 5"), says("NO ISSUES")]
    asked, _ = play(SelfRefine(feedback_prompt="F"), replies, PLAIN)
    assert asked[1].prompt == "2+2=?\n\nIt is 5\n\nF\n\n"
    begun = replace(PROBLEM, prompt=[*PROBLEM.prompt, {"role": "assistant", "content": "Well: "}])
    asked, _ = play(SelfRefine(feedback_prompt="F"), replies, begun)
    assert [m["content"] for m in asked[1].prompt] == ["2+2=?", "Well: It is 5", "F"]


def test_self_refine_ends_well_where_something_is_missing() -> None:
    assert play(SelfRefine(), [answers(5), says("")])[1].answer == "5"  # no feedback
    assert play(SelfRefine(), [answers(5), [FAILED]])[1].answer == "5"
    assert play(SelfRefine(), [answers(5), says("no"), [FAILED]])[1].answer == "5"
    remark = says("I have changed the second step of it, as was asked for")
    assert play(SelfRefine(rounds=1), [answers(5), says("no"), remark])[1].answer == "5"


def test_self_refine_at_the_end_of_its_budget_gives_its_latest_answer() -> None:
    replies = ["answer is 5", "no", "answer is 4", "no"]
    strategy = SelfRefine(scorer="rm")
    result = solve(strategy, [PLAIN], backend=Scripted(lambda _, draw: replies[draw]), budget=Budget(completions=4))[0]
    assert (result.answer, result.stopped_by) == ("4", "completions")


# --- react -----------------------------------------------------------------------------------------------------------


def add(a: int, b: int = 0) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


def look_up(word: str) -> str:
    """Say what a word means."""
    if word == "nothing":
        raise KeyError(word)
    return word + ": see elsewhere"


def calls_of(result: Result) -> list[tuple[str, Any, str]]:
    return [(e["tool"], e["arguments"], e["answer"]) for e in result.trace if e["kind"] == "tool"]


def react(replies: Sequence[str | Completion], problem: Problem = PROBLEM, **options: Any) -> tuple[Scripted, Result]:
    backend = Scripted(lambda request, draw: replies[draw])
    [result] = solve(ReAct(tools=[add, look_up], **options), [problem], backend=backend)
    assert result.error is None
    return backend, result


def test_react_text_calls_tools_and_finishes() -> None:
    replies = [
        'I add.\nAction: add[{"a": 2, "b": 2}]',
        "I look it up.\nAction: look_up[four]",
        "Now I know.\nAction: Finish[4]",
    ]
    backend, result = react(replies)
    first, second, third = backend.asked
    assert "add[a: integer, b: integer]: Add two numbers." in user_text(first)
    assert first.params.stop == ("\nObservation:",)
    assert [m["role"] for m in third.prompt] == ["user", "assistant", "user", "assistant", "user"]
    assert user_text(second) == "Observation: 4"
    assert user_text(third) == "Observation: four: see elsewhere"
    assert result.answer == "4"
    assert result.text.endswith("Observation: four: see elsewhere\nNow I know.\nAction: Finish[4]\n<answer>4</answer>")


def test_react_plain_text_goes_on_from_its_own_transcript() -> None:
    backend, result = react([" one more.\nAction: add[2]", " done.\nAction: Finish[2]"], PLAIN)
    assert backend.asked[1].prompt.endswith("\nThought: one more.\nAction: add[2]\nObservation: 2\nThought:")
    assert result.answer == "2"


@pytest.mark.parametrize(
    ("action", "observation"),
    [
        ('Action: look_up["a ] b"]', "a ] b: see elsewhere"),
        ("Action: look_up[1984]", "1984: see elsewhere"),
        ("Action 1 : look_up[ f[0] ]", "f[0]: see elsewhere"),
        ("  Action: add[-3]", "-3"),
        ("Action: add[3] Action: Finish[9]", "3"),  # what follows the first action is imagined
        ("Action: add[x]", "error: TypeError"),
        ("Action: look_up[nothing]", "error: KeyError"),
        ("Action: fly[home]", "error: no tool 'fly'"),
        ("Action: add[]", "error: TypeError"),
        ("Action: add[{1}]", "error: TypeError"),
        ("Action: look_up[", "error: no action"),
        ("Action: look up four", "error: no action"),
        ("Action: Finish[ ]", "error: no action"),
        ("Action: look_up[" + "[" * 3000, "error: no action"),
        ("I think it is 4.", "error: no action"),
        ("", "error: no action"),
    ],
)
def test_react_reads_an_action_or_says_what_is_wrong(action: str, observation: str) -> None:
    backend, result = react([f"Hm.\n{action}", "Action: Finish[4]"])
    assert user_text(backend.asked[1]).startswith(f"Observation: {observation}")
    assert "imagined" not in str(backend.asked[1].prompt)
    assert "Finish[9]" not in str(backend.asked[1].prompt[1:])
    assert result.answer == "4"


@pytest.mark.parametrize(
    ("inside", "answer"),
    [
        ("[0, 1)", "[0, 1)"),
        ('{"x": [1]}', '{"x": [1]}'),
        ("<answer>7</answer>", "7"),
        ("Jane [Austen]", "Jane [Austen]"),
    ],
)
def test_react_finishes_with_brackets_inside(inside: str, answer: str) -> None:
    assert react([f"Action: Finish[{inside}]"])[1].answer == answer


def test_react_out_of_steps_is_asked_for_its_answer() -> None:
    backend, result = react(["Action: add[1]", "Action: add[2]", "Action: Finish[3]"], max_steps=2)
    assert user_text(backend.asked[2]).startswith("Observation: 2\nThere are no steps left.")
    assert [request.purpose for request in backend.asked] == ["thought", "thought", "answer"]
    assert result.answer == "3"
    assert react(["Action: add[1]", "so the answer is 8"], max_steps=1)[1].answer == "8"
    assert react(["Action: add[1]", "Action: add[2] and so on and on, as ever"], max_steps=1)[1].answer is None


def test_react_a_failed_sample_is_a_step_lost_and_long_observations_are_cut() -> None:
    backend, result = react([FAILED, "Action: look_up[abcdef]", "Action: Finish[4]"], max_observation_chars=4)
    assert user_text(backend.asked[2]) == "Observation: abcd"
    assert result.answer == "4"
    assert react([FAILED] * 3, max_steps=2)[1].text == ""


def native(*calls: tuple[str, Any]) -> Completion:
    return Completion(
        "", finish_reason="tool_calls", tool_calls=[{"name": name, "arguments": given} for name, given in calls]
    )


def test_react_native_calls() -> None:
    replies = [native(("add", {"a": 2, "b": 2}), ("look_up", {"word": "four"})), "The answer is 4."]
    backend, result = react(replies, mode="native")
    first, second = backend.asked
    assert [tool["function"]["name"] for tool in first.tools] == ["add", "look_up"]
    asked, *told = second.prompt[1:]
    assert asked["role"] == "assistant"
    assert [call["function"] for call in asked["tool_calls"]] == [
        {"name": "add", "arguments": {"a": 2, "b": 2}},
        {"name": "look_up", "arguments": {"word": "four"}},
    ]
    assert [(m["role"], m["content"]) for m in told] == [("tool", "4"), ("tool", "four: see elsewhere")]
    assert [m["tool_call_id"] for m in told] == [call["id"] for call in asked["tool_calls"]]
    assert (result.answer, result.text) == ("4", "The answer is 4.")


def test_react_native_malformed_and_endless_calls() -> None:
    replies = [native(("fly", {}), ("add", "no mapping")), native(("add", {"a": 1})), "Action: Finish[1]"]
    backend, result = react(replies, PLAIN, mode="native", max_steps=2)
    observations = [m["content"] for m in backend.asked[1].prompt if m["role"] == "tool"]
    assert observations[0].startswith("error: no tool 'fly'")
    assert observations[1].startswith("error: TypeError")
    assert backend.asked[2].tools == ()
    assert user_text(backend.asked[2]).startswith("There are no steps left")
    assert result.answer == "1"
    assert react([FAILED, "It is 4\n4"], mode="native")[1].answer == "4"


def test_react_native_observations_are_cut() -> None:
    replies = [native(("look_up", {"word": "abcdef"})), "The answer is 4."]
    backend, _ = react(replies, mode="native", max_observation_chars=4)
    assert user_text(backend.asked[1]) == "abcd"


# --- episodic_memory -------------------------------------------------------------------------------------------------


def test_episodic_memory_shows_its_reflections_to_the_next_trial() -> None:
    strategy = EpisodicMemory(scorer="right", trials=3, own=1, similar=0, memory_prompt="Notes:\n$reflections")
    replies = [answers(5), [0.0], says("count"), answers(3), [0.0], says("count again"), answers(4), [1.0]]
    asked, result = play(strategy, replies)
    assert [request.purpose for request in asked if isinstance(request, Generate)] == [
        *["answer", "reflection"] * 2,
        "answer",
    ]
    assert "Your answer: so the answer is 5" in user_text(asked[2])
    assert "a score of 0" in user_text(asked[2])
    assert [user_text(asked[i]) for i in (0, 3, 6)] == [
        "2+2=?",
        "2+2=?\n\nNotes:\n- count",
        "2+2=?\n\nNotes:\n- count again",
    ]
    assert (result.answer, [c.score for c in result.candidates]) == ("4", [0.0, 0.0, 1.0])


def test_episodic_memory_gives_its_best_where_none_passes_and_does_not_reflect_at_the_end() -> None:
    strategy = EpisodicMemory(scorer="right", trials=2, similar=0)
    asked, result = play(strategy, [answers(5), [0.4], says("hm"), answers(3), [0.1]])
    assert (len(asked), result.answer) == (5, "5")
    assert play(strategy, [answers(5), [None]])[1].answer == "5"  # no verdict, nothing to learn from
    assert len(play(strategy, [answers(5), [0.5]])[0]) == 2  # the threshold itself passes


def test_episodic_memory_shows_its_own_reflections_once() -> None:
    strategy = EpisodicMemory(scorer="right", trials=2, similar=1)
    replies = ["[]", answers(5), [0.0], says("count"), '["count", "other", "more"]', answers(4), [1.0]]
    asked, _ = play(strategy, replies)
    assert (asked[0].arguments["count"], asked[4].arguments["count"]) == (1, 2)
    assert user_text(asked[5]).endswith(":\n- other\n- count")
    assert len(play(strategy, ["error: no tool", answers(5), [1.0]])[0]) == 3


@pytest.mark.parametrize(
    ("verdict", "passes"), [("It is correct.", True), ("Correct? No: INCORRECT", False), ("well", False), ("", False)]
)
def test_episodic_memory_judged_by_a_model(verdict: str, passes: bool) -> None:
    strategy = EpisodicMemory(judge="critic", trials=2, similar=0)
    more = [] if passes else [says("hm"), answers(4), says("correct")]
    asked, result = play(strategy, [answers(5), says(verdict), *more])
    assert (asked[1].model, asked[1].purpose, asked[1].params.temperature) == ("critic", "judgement", 0.0)
    assert result.answer == ("5" if passes else "4")
    with pytest.raises(InputError, match="found both"):
        EpisodicMemory(scorer="right", judge="critic")


def test_bm25_by_hand() -> None:
    """N=2, both of length 2, so the norm is 1.5; `a` is in one (idf ln 2), `b` in both (idf ln 1.2)."""
    assert bm25("a b", ["a b", "b b"]) == pytest.approx([math.log(2) + math.log(1.2), math.log(1.2) * 5 / 3.5])
    assert bm25("a", []) == []
    assert bm25("", ["a"]) == bm25("a", [""]) == [0.0]


def lesson(request: Generate, draw: int) -> str:
    """Right only with a lesson on the same operation; every reflection names its question."""
    if request.purpose == "reflection":
        return "carry the one for " + user_text(request).splitlines()[0].removeprefix("Question: ")
    return "answer is 1" if "carry the one" in user_text(request) else "answer is 0"


def is_one(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return [float(completion.endswith("1")) for completion in completions]


def remember(problems: Sequence[str], log: Path | None = None, budget: Budget | None = None, **options: Any) -> Any:
    strategy = EpisodicMemory(scorer="one", trials=2, **options)
    backend = Scripted(lesson)
    results = [
        solve(
            strategy,
            [Problem(text, id=text)],
            backend=backend,
            scorers={"one": ResolvedReward("one", is_one)},
            log=log,
            total_budget=budget,
        )[0]
        for text in problems
    ]
    assert [result.error for result in results] == [None] * len(problems)
    return strategy, backend, results


def test_episodic_memory_helps_the_next_problem_of_the_run() -> None:
    _, backend, results = remember(["add 17 and 25", "add 19 and 24", "name a bird"])
    assert [len(result.candidates) for result in results] == [2, 1, 2]  # the second knows at once, the third nothing
    assert [result.answer for result in results] == ["1", "1", "1"]
    assert "carry the one for add 17 and 25" in user_text(backend.asked[3])


def test_episodic_memory_is_bounded_and_kept_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "memory.jsonl"
    remember(["add 1", "sing 2", "fly 3"], memory_file=str(file), size=2)
    assert [json.loads(line)["problem"] for line in file.read_text().splitlines()] == ["add 1", "sing 2", "fly 3"]
    small, _, _ = remember(["add 1", "sing 2", "fly 3"], size=2)
    assert [problem for problem, _ in small._memory] == ["sing 2", "fly 3"]
    kept = EpisodicMemory(scorer="one", memory_file=str(file), size=2)
    assert json.loads(kept.recall_reflections("fly, sing and add", 9)) == [
        "carry the one for fly 3",
        "carry the one for sing 2",
    ]
    _, _, [result] = remember(["fly 4"], memory_file=str(file))
    assert len(result.candidates) == 1  # learned from an earlier run
    file.write_bytes(file.read_bytes() + b'{"problem": "to')  # killed while writing
    EpisodicMemory(memory_file=str(file))
    assert len(file.read_text().splitlines()) == 3
    file.write_text("nonsense\n")
    with pytest.raises(InputError, match=r"memory\.jsonl:1"):
        EpisodicMemory(memory_file=str(file))


def test_episodic_memory_replay_is_exact(tmp_path: Path) -> None:
    """The log answers all that was asked, so a second run is the first, and ends with the same memory."""
    texts = ["add 17 and 25", "add 19 and 24", "name a bird"]
    first, _, results = remember(texts, log=tmp_path / "log")
    again, backend, replayed = remember(texts, log=tmp_path / "log")
    assert backend.asked == []
    assert [r.candidates for r in replayed] == [r.candidates for r in results]
    assert first._memory == again._memory != {}


def test_episodic_memory_killed_and_started_again(tmp_path: Path) -> None:
    """After every line that the log may end with; a memory file is not added to by a replay."""
    texts = ["add 17 and 25", "add 19 and 24"]
    file = tmp_path / "memory.jsonl"
    whole, _, results = remember(texts, log=tmp_path / "whole", memory_file=str(file))
    written = file.read_text()
    remember(texts, log=tmp_path / "whole", memory_file=str(file))
    assert file.read_text() == written != ""
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for cut in range(len(lines)):
        log = tmp_path / f"log{cut}"
        log.write_bytes(b"".join(lines[:cut]))
        part, _, replayed = remember(texts, log=log)
        assert [r.candidates for r in replayed] == [r.candidates for r in results]
        assert part._memory == whole._memory


def test_episodic_memory_replay_is_exact_among_many_problems(tmp_path: Path) -> None:
    """All in one wave each; killed after any line of the log, the run goes on as if nothing had been."""
    problems = [Problem(text, id=text) for text in ("add 17 and 25", "add 19 and 24", "sing 3", "sing 4")]
    scorers = {"one": ResolvedReward("one", is_one)}

    def run(log: Path) -> tuple[list[Result], Any]:
        strategy = EpisodicMemory(scorer="one", trials=3, own=0)  # helped by others alone
        return solve(strategy, problems, backend=Scripted(lesson), scorers=scorers, log=log), strategy._memory

    whole, memory = run(tmp_path / "whole")
    assert [result.answer for result in whole] == ["1"] * 4
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for cut in range(len(lines)):
        (tmp_path / str(cut)).write_bytes(b"".join(lines[:cut]))
        results, remembered = run(tmp_path / str(cut))
        assert [r.candidates for r in results] == [r.candidates for r in whole]
        assert list(remembered) == list(memory)


def test_episodic_memory_begins_anew() -> None:
    strategy, _, _ = remember(["add 17 and 25"])
    assert strategy._memory
    strategy.begin_run()
    assert not strategy._memory


def test_episodic_memory_around_another_strategy() -> None:
    inner = ReAct(tools=[add])
    strategy = EpisodicMemory(scorer="one", strategy=inner, trials=2)
    assert sorted(strategy.tools) == ["add", "recall_reflections"]

    def reply(request: Generate, draw: int) -> str:
        return ["Action: Finish[0]", "try one", "Action: Finish[1]"][draw]

    def one(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [float("<answer>1" in completion) for completion in completions]

    backend = Scripted(reply)
    [result] = solve(strategy, [PLAIN], backend=backend, scorers={"one": ResolvedReward("one", one)})
    assert (result.error, result.answer) == (None, "1")
    assert "add[a: integer" in backend.asked[0].prompt
    assert "recall_reflections" not in backend.asked[0].prompt
    assert "- try one" in backend.asked[2].prompt


# --- budget_forcing --------------------------------------------------------------------------------------------------


def thought(text: str, tokens: int = 4, ended: bool = True) -> list[Completion]:
    """A piece of thinking: ended by its tag, or cut off."""
    if ended:
        return says(text, stop_reason="</think>", usage=Usage(completion_tokens=tokens))
    return says(text, finish_reason="length", usage=Usage(completion_tokens=tokens))


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_budget_forcing_says_wait_exactly_so_often(waits: int) -> None:
    replies = [thought(f"t{i}") for i in range(waits + 1)]
    asked, result = play(BudgetForcing(waits=waits, max_tokens=99), [*replies, says("answer is 4")], PLAIN)
    assert [request.prompt.count("\nWait") for request in asked] == [*range(waits + 1), waits]
    assert [request.params.max_tokens for request in asked] == [*(99 - 4 * i for i in range(waits + 1)), 9]
    assert asked[-1].prompt.endswith(f"t{waits}</think>")
    assert "Final Answer" not in result.text
    assert (result.text.count("Wait"), result.answer) == (waits, "4")
    assert result.text == asked[-1].prompt.removeprefix(PLAIN.prompt) + "answer is 4"


def test_budget_forcing_waits_only_below_the_least_length() -> None:
    strategy = BudgetForcing(waits=5, min_tokens=8, max_tokens=99)
    asked, _ = play(strategy, [thought("a"), thought("b"), answers(4)])
    assert len(asked) == 3
    assert asked[2].prompt[-1] == {"role": "assistant", "content": "a\nWaitb</think>"}


def test_budget_forcing_ends_thinking_that_is_too_long() -> None:
    strategy = BudgetForcing(start="<think>", waits=2, max_tokens=10)
    asked, result = play(strategy, [thought("a", 4), thought("b", 6, ended=False), says(" 4")], PLAIN)
    assert [request.params.max_tokens for request in asked] == [10, 6, 9]
    assert asked[2].prompt == "2+2=?<think>a\nWaitb</think>\nFinal Answer:"
    assert (result.answer, result.text) == ("4", "<think>a\nWaitb</think>\nFinal Answer: 4")
    assert [request.purpose for request in asked] == ["step", "step", "answer"]


def test_budget_forcing_takes_an_answer_without_the_tag() -> None:
    asked, result = play(BudgetForcing(waits=1), [answers(5), answers(4)])
    assert len(asked) == 2
    assert (result.answer, result.text) == ("4", "so the answer is 5\nWaitso the answer is 4")


def test_budget_forcing_goes_on_from_a_prefill_of_the_problem() -> None:
    begun = replace(PROBLEM, prompt=[*PROBLEM.prompt, {"role": "assistant", "content": "<think>"}])
    asked, result = play(BudgetForcing(waits=0), [thought("a"), answers(4)], begun)
    assert asked[1].prompt[1:] == [{"role": "assistant", "content": "<think>a</think>"}]
    assert result.text == "a</think>so the answer is 4"


def test_budget_forcing_keeps_what_was_thought() -> None:
    result = play(BudgetForcing(waits=0), [thought("2+2 is 4\n4"), [FAILED]])[1]
    assert (result.text, result.answer) == ("2+2 is 4\n4", "4")
    replies = [Completion("2+2 is 4\n4", stop_reason="</think>", usage=Usage(1, 1))]
    backend = Scripted(lambda _, draw: replies[draw])
    [result] = solve(BudgetForcing(), [PLAIN], backend=backend, budget=Budget(completions=1))
    assert (result.answer, result.stopped_by) == ("4", "completions")


# --- confidence_filtering --------------------------------------------------------------------------------------------


def sure(answer: Any, *confidences: float, **more: Any) -> Completion:
    return Completion(f"so the answer is {answer}", confidences=list(confidences), **more)


@pytest.mark.parametrize(
    ("measure", "value"), [("mean", 8.0), ("lowest_group", 2.0), ("bottom_tenth", 3.0), ("tail", 7.0)]
)
def test_confidence_by_hand(measure: Any, value: float) -> None:
    """Groups of two, 11 of them: 9 7 5 2 4 10 12 10 11 10.5 7; the lowest tenth are two, 2 and 4."""
    assert confidence([8, 10, 4, 6, -2, 10, 10, 14, 6, 16, 5, 9], measure, 2) == value
    assert confidence([], measure, 2) == 0.0
    assert confidence([3.0], measure, 2) == 3.0


def test_confidence_filtering_offline_keeps_the_surest_and_weighs_their_votes() -> None:
    drawn = [sure(5, 1.0), sure(5, 1.0), sure(5, 1.0), sure(4, 9.0), sure(3, 5.0), Completion("", confidences=[99.0])]
    [request], result = play(ConfidenceFiltering(n=6, keep=0.4), [drawn])
    assert request == Generate(PROBLEM.prompt, n=6, params=replace(PROBLEM.params, top_logprobs=20))
    assert result.answer == "4"
    assert [candidate.score for candidate in result.candidates] == [1.0, 1.0, 1.0, 9.0, 5.0, 99.0]
    assert play(ConfidenceFiltering(keep=1.0), [drawn])[1].answer == "4"  # 3 votes of 1.0 against one of 9.0
    assert play(ConfidenceFiltering(keep=1.0), [[*drawn, sure(5, 7.0)]])[1].answer == "5"
    assert play(SelfConsistency(n=5), [drawn])[1].answer == "5"


def test_confidence_filtering_measure_decides() -> None:
    drawn = [sure(5, 9.0, 9.0, 1.0, 1.0), sure(4, 4.0, 4.0, 4.0, 4.0)]
    by = {m: play(ConfidenceFiltering(keep=0.5, measure=m, group_size=2), [drawn])[1].answer for m in ("mean", "tail")}
    assert by == {"mean": "5", "tail": "4"}


def test_confidence_filtering_online_stops_unsure_traces() -> None:
    """Warm-up: lowest groups 5, 4 and 1, of which two are kept: the floor is 4. Then three traces, group by group."""
    warmup = [sure(5, 5.0, 5.0), sure(4, 4.0, 4.0), sure(4, 1.0, 1.0)]
    strategy = ConfidenceFiltering(n=6, keep=0.5, warmup=3, group_size=2)
    problem = replace(PLAIN, params=replace(PLAIN.params, max_tokens=5))
    unsure = [sure(5, 3.9, 3.9, finish_reason="length")]
    waves = [
        [unsure, [Completion("x", "length", confidences=[7.0, 7.0])], unsure],
        [[Completion("z", "length", confidences=[7.0, 7.0])]],
        [[sure(" 4", 7.0)]],
    ]
    asked, result = play(strategy, [warmup, *waves], problem)
    assert asked[0].n == 3
    assert [[(r.prompt, r.params.max_tokens) for r in wave] for wave in asked[1:]] == [
        [("2+2=?", 2)] * 3,
        [("2+2=?x", 2)],
        [("2+2=?xz", 1)],
    ]
    assert [c.text for c in result.candidates[3:]] == [unsure[0].text, "xzso the answer is  4", unsure[0].text]
    assert result.answer == "4"  # 4 and 7 against 5; with the unsure it were 5 and 3.9 and 3.9


def test_confidence_filtering_online_ends_where_the_vote_is_decided_or_the_budget_ends() -> None:
    warmup = [sure(4, 5.0), sure(4, 4.0)]
    assert len(play(ConfidenceFiltering(n=9, warmup=2), [warmup])[0]) == 1
    steps = ConfidenceFiltering(n=9, warmup=2)(PROBLEM)
    next(steps)
    assert len(steps.send([sure(4, 5.0), sure(5, 4.0)])) == 2
    with pytest.raises(StopIteration) as stop:
        steps.throw(BudgetExhausted("spent"))
    assert stop.value.value.answer == "4"


def test_confidence_filtering_refuses() -> None:
    with pytest.raises(InputError, match="no confidences"):
        play(ConfidenceFiltering(), [COMPLETIONS])
    with pytest.raises(InputError, match="share"):
        ConfidenceFiltering(keep=0)
    with pytest.raises(InputError, match="1 or more"):
        ConfidenceFiltering(warmup=0)


# --- mixture_of_agents -----------------------------------------------------------------------------------------------


def test_mixture_of_agents_layers() -> None:
    strategy = MixtureOfAgents(proposers=["small", "large"], aggregator="chief", aggregate_prompt="Read:\n$proposals")
    replies = [[answers(5), answers(4)], [answers(3), answers(2)], [answers(1)]]
    asked, result = play(strategy, replies)
    assert [[request.model for request in wave] for wave in asked] == [["small", "large"]] * 2 + [["chief"]]
    assert [user_text(wave[0]) for wave in asked] == [
        "2+2=?",
        "2+2=?\n\nRead:\n1. so the answer is 5\n2. so the answer is 4",
        "2+2=?\n\nRead:\n1. so the answer is 3\n2. so the answer is 2",
    ]
    assert (result.answer, len(result.candidates)) == ("1", 5)


def test_mixture_of_agents_of_one_model() -> None:
    asked, result = play(MixtureOfAgents(n=3, layers=2), [[answers(5, 4, 4)], [answers(3)]])
    assert [(wave[0].n, wave[0].model) for wave in asked] == [(3, "policy"), (1, "policy")]
    assert result.answer == "3"
    assert play(MixtureOfAgents(layers=1), [[answers(3)]])[1].answer == "3"
    with pytest.raises(InputError, match="0 layers"):
        MixtureOfAgents(layers=0)


def test_mixture_of_agents_without_its_aggregator_votes() -> None:
    replies = [[[FAILED, *answers(5, 4, 4)]], [[FAILED]]]
    asked, result = play(MixtureOfAgents(layers=2), replies)
    assert "4. " not in user_text(asked[1][0])
    assert (result.answer, result.text) == ("4", "so the answer is 4")
    assert play(MixtureOfAgents(layers=2), [[answers(4, 4, 5)], [[FAILED]]])[1].answer == "4"
    asked, result = play(MixtureOfAgents(layers=2), [[[FAILED]], [answers(7)]])
    assert (asked[1][0].prompt, result.answer) == (PROBLEM.prompt, "7")
    strategy = MixtureOfAgents(n=3, layers=2)
    backend = Scripted(lambda _, draw: f"answer is {[5, 4, 4][draw]}")
    assert solve(strategy, [PLAIN], backend=backend, budget=Budget(completions=3))[0].answer == "4"
    assert solve(strategy, [PLAIN], backend=Scripted(lambda _, i: "answer is 5"), budget=Budget(completions=1))[
        0
    ].answer


# --- compute_optimal -------------------------------------------------------------------------------------------------


def test_vote_entropy() -> None:
    assert vote_entropy(["4", "4.0", "4", None]) == pytest.approx((0.75 * math.log2(4 / 3) + 0.25 * 2) / 2)
    assert vote_entropy([None, None]) == 1.0
    assert vote_entropy([]) == math.inf
    assert (vote_entropy(["4"]), vote_entropy([None])) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("pilot", "asks"),
    [
        (answers(4, 4), "greedy"),
        (answers(4, 5), "self_consistency"),
        ([FAILED, FAILED], "self_consistency"),
        ([FAILED, *answers(4)], "greedy"),
    ],
)
def test_compute_optimal_by_the_entropy_of_votes(pilot: list[Completion], asks: str) -> None:
    strategy = ComputeOptimal([Greedy(), SelfConsistency(n=6)], [0.5], n0=2)
    asked, result = play(strategy, [pilot, [answers(7)] if asks == "greedy" else [answers(7, 7, 7, 7)]])
    assert asked[0] == Generate(PROBLEM.prompt, n=2, params=PROBLEM.params)
    [request] = asked[1]
    assert (request.params.temperature, request.n) == ((0.0, 1) if asks == "greedy" else (0.7, 4))
    assert result.answer == "7"


@pytest.mark.parametrize(
    ("scores", "asks"), [([0.9, 0.7], ["2+2=?"]), ([0.5, None], ["think"]), ([0.1, 0.1], []), ([None, None], [])]
)
def test_compute_optimal_by_a_scorer(scores: list[float | None], asks: list[str]) -> None:
    """The hardest get two samples, which the pilot has drawn already."""
    strategies = [Greedy(), ChainOfThought(trigger="think"), SelfConsistency(n=2)]
    strategy = ComputeOptimal(strategies, [0.4, 0.6], n0=2, scorer="rm")
    asked, _ = play(strategy, [answers(4, 5), scores, *([answers(7)] for _ in asks)])
    assert asked[1] == Score(PROBLEM.prompt, ("so the answer is 4", "so the answer is 5"), "rm")
    assert [user_text(wave[0]).splitlines()[-1] for wave in asked[2:]] == asks


def test_compute_optimal_shares_the_pilots_draws() -> None:
    """The chosen strategy sees the very completions that it would have drawn alone."""
    backend = Scripted(lambda request, draw: f"answer is {draw % 7}")
    alone = solve(SelfConsistency(n=8), [PLAIN], backend=backend)[0]
    other = Scripted(backend.reply)
    [result] = solve(ComputeOptimal([Greedy(), SelfConsistency(n=8)], [0.1], n0=3), [PLAIN], backend=other)
    assert [c.text for c in result.candidates] == [c.text for c in alone.candidates]
    assert len(other.asked) == 8


def test_compute_optimal_hands_on_lists_budgets_and_ends() -> None:
    @dataclass
    class Wide:
        """The pilot's request twice, and another one, in one wave; then it takes the news of the budget."""

        def __call__(self, problem: Problem) -> Any:
            same = Generate(problem.prompt, n=2, params=problem.params)
            [one, two, [other]] = yield [same, same, Generate("other")]
            nothing = yield []
            try:
                yield Generate("more")
            except BudgetExhausted:
                return Result(answer=[c.text for c in (*one, *two, other)], text=str(nothing))

    steps = ComputeOptimal([Wide()], [], n0=3)(PLAIN)
    next(steps)
    [rest, other] = steps.send(says("a", "b", "c"))
    assert (rest.n, other.prompt) == (1, "other")
    assert steps.send([says("d"), says("e")]) == [Generate("more")]
    with pytest.raises(StopIteration) as stop:
        steps.throw(BudgetExhausted("spent"))
    assert (stop.value.value.answer, stop.value.value.text) == (["a", "b", "c", "d", "e"], "[]")


def test_compute_optimal_refuses_and_hands_on_tools() -> None:
    with pytest.raises(InputError, match="2 strategies and 0 thresholds"):
        ComputeOptimal([Greedy(), Greedy()], [])
    with pytest.raises(InputError, match="ascend"):
        ComputeOptimal([Greedy(), Greedy(), Greedy()], [0.5, 0.1])
    memory = EpisodicMemory()
    memory._memory["a", "b"] = None
    strategy = ComputeOptimal([ReAct(tools=[add]), memory], [0.5])
    assert sorted(strategy.tools) == ["add", "recall_reflections"]
    strategy.begin_run()
    assert not memory._memory


def test_calibrate() -> None:
    difficulties = [0.9, 0.1, 0.5, 0.1, 0.5, 0.9]
    accuracies = {"cheap": [0, 1, 0, 1, 1, 0], "wide": [0, 1, 1, 1, 1, 0], "deep": [1, 0, 1, 0, 0, 0]}
    assert calibrate(difficulties, accuracies, bins=3) == (["cheap", "wide", "deep"], [0.5, 0.9])
    assert calibrate(difficulties, {"wide": accuracies["wide"]}) == (["wide"], [])
    assert calibrate([0.3] * 4, {"a": [0] * 4, "b": [1] * 4}) == (["b"], [])  # one difficulty cannot be parted
    strategies, thresholds = calibrate(difficulties, accuracies, bins=3)
    ComputeOptimal(list(strategies), thresholds)
    with pytest.raises(InputError, match="2 of a"):
        calibrate([0.1], {"a": [1, 1]})


# --- What all must survive -------------------------------------------------------------------------------------------

EASY = SelfConsistency(n=2)
ALL: dict[str, Callable[[], Any]] = {
    "greedy": Greedy,
    "chain_of_thought": ChainOfThought,
    "self_consistency": lambda: SelfConsistency(n=3),
    "self_consistency by logprob": lambda: SelfConsistency(n=3, weights="logprob"),
    "adaptive_consistency": lambda: AdaptiveConsistency(n=6),
    "universal_self_consistency": lambda: UniversalSelfConsistency(n=3),
    "best_of_n": lambda: BestOfN("rm", n=3),
    "best_of_n weighted": lambda: BestOfN("rm", n=3, weighted=True),
    "best_of_n by steps": lambda: BestOfN("rm", n=3, step_separator=";"),
    "best_of_n rated": lambda: BestOfN(judge="policy", n=3, ratings=2),
    "best_of_n in pairs": lambda: BestOfN(judge="policy", n=3, judging="pairwise"),
    "self_refine": SelfRefine,
    "self_refine scored": lambda: SelfRefine(scorer="rm"),
    "react": lambda: ReAct(tools=[add]),
    "react native": lambda: ReAct(tools=[add], mode="native"),
    "episodic_memory": EpisodicMemory,
    "episodic_memory scored": lambda: EpisodicMemory(scorer="rm"),
    "episodic_memory of votes": lambda: EpisodicMemory(scorer="rm", strategy=EASY),
    "budget_forcing": BudgetForcing,
    "confidence_filtering": lambda: ConfidenceFiltering(n=3),
    "confidence_filtering online": lambda: ConfidenceFiltering(n=5, warmup=2, group_size=2),
    "mixture_of_agents": lambda: MixtureOfAgents(n=2),
    "compute_optimal": lambda: ComputeOptimal([Greedy(), EASY], [0.5], n0=2),
    "compute_optimal scored": lambda: ComputeOptimal([Greedy(), EASY], [0.5], n0=2, scorer="rm"),
}
"""By name, those with options of their own as well; each call makes a new one."""

PROBLEMS = [replace(PLAIN, id="plain"), replace(PROBLEM, id="chat")]


def completion(text: str, **more: Any) -> Completion:
    return Completion(text, usage=Usage(1, 1), logprobs=[-1.0], confidences=[2.0], **more)


REPLIES: dict[str, Callable[[Generate, int], Completion]] = {
    "failed": lambda request, draw: FAILED,
    "some failed": lambda request, draw: FAILED if draw % 3 else completion("the answer is 4"),
    "first failed": lambda request, draw: FAILED if draw < 2 else completion("the answer is 4"),
    "empty": lambda request, draw: Completion("", logprobs=[], confidences=[]),
    "identical": lambda request, draw: completion("the answer is 4"),
    "cut off": lambda request, draw: completion("and so on and so forth, until", finish_reason="length"),
    "unparsable": lambda request, draw: completion("$x {y} [[C]] \\boxed{ <answer> [" * 3),
    "different": lambda request, draw: completion(f"step;the answer is {draw}"),
}


def half(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return [0.5 if i % 2 else None for i in range(len(completions))]


@dataclass
class Half:
    """A scorer that judges every second completion, and no steps at all in every second."""

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return half(prompts, completions)

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        return [[0.5] * len(of) if i % 2 else [] for i, of in enumerate(steps)]


SCORERS = {"rm": ResolvedReward("rm", Half())}


@pytest.mark.parametrize("replies", REPLIES)
@pytest.mark.parametrize("name", ALL)
def test_nothing_that_a_model_says_is_an_error(name: str, replies: str) -> None:
    backend = Scripted(REPLIES[replies])
    results = solve(ALL[name](), PROBLEMS, backend=backend, scorers=SCORERS)
    assert 0 < len(backend.asked) < 100
    for result in results:
        assert (result.error, result.stopped_by) == (None, None)
        assert result.text in ["", *(candidate.text for candidate in result.candidates)]
        if replies == "failed":
            assert (result.answer, result.text, result.candidates) == (None, "", [])
        if replies == "identical":
            assert result.answer == "4"


@pytest.mark.parametrize("spent", [Budget(calls=i) for i in range(6)] + [Budget(completions=i) for i in (1, 3, 5)])
@pytest.mark.parametrize("name", ALL)
def test_a_budget_may_end_at_any_yield(name: str, spent: Budget) -> None:
    backend = Scripted(REPLIES["different"])
    results = solve(ALL[name](), PROBLEMS, backend=backend, scorers=SCORERS, budget=spent)
    for result in results:
        assert result.error is None
        assert result.stopped_by in (None, "calls", "completions")
        if spent != Budget(calls=0) and not name.startswith(("react", "episodic")):
            assert result.answer is not None


@pytest.mark.parametrize("name", ALL)
def test_strategies_keep_nothing_between_problems_and_replay_from_the_log(name: str, tmp_path: Path) -> None:
    """The same object, asked again, asks the same; the memory is the one that keeps something, and says so."""
    strategy = ALL[name]()

    def run(backend: Scripted) -> list[Result]:
        getattr(strategy, "begin_run", lambda: None)()
        return solve(strategy, PROBLEMS, backend=backend, scorers=SCORERS, log=tmp_path / "log")

    first = run(Scripted(REPLIES["different"]))
    silent = Scripted(REPLIES["failed"])
    again = run(silent)
    assert silent.asked == []
    assert [(r.answer, r.text, r.candidates) for r in again] == [(r.answer, r.text, r.candidates) for r in first]


def test_every_strategy_is_here_or_with_the_searches() -> None:
    import posttrain_plugins.strategies as folder

    files = {file.stem for file in Path(str(folder.__path__[0])).glob("[!_]*.py")}
    searches = {
        "beam_search",
        "dvts",
        "graph_of_thoughts",
        "mcts",
        "particle_filtering",
        "prm_beam_search",
        "tree_of_thoughts",
        "value_guided_search",
    }
    assert files == {name.split()[0] for name in ALL} | searches
