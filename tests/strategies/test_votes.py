"""Strategies of one draw, and those whose answers vote."""

from __future__ import annotations

from dataclasses import replace

import pytest
from by_hand import COMPLETIONS, FAILED, PLAIN, PROBLEM, answers, completions, play_by_hand, user_text

from posttrain_plugins.errors import InputError
from posttrain_plugins.strategies.adaptive_consistency import AdaptiveConsistency, lead_probability
from posttrain_plugins.strategies.chain_of_thought import ChainOfThought
from posttrain_plugins.strategies.greedy import Greedy
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.strategies.universal_self_consistency import UniversalSelfConsistency
from posttrain_plugins.types import Completion, Generate, Problem, SamplingParams


def test_greedy_asks_once_at_temperature_zero() -> None:
    [request], result = play_by_hand(Greedy(), [COMPLETIONS[:1]])
    assert request == Generate(PROBLEM.prompt, params=SamplingParams(temperature=0.0, max_tokens=9))
    assert (result.answer, result.text) == ("5", "so the answer is 5")


def test_chain_of_thought_zero_shot() -> None:
    [request], _ = play_by_hand(ChainOfThought(), [COMPLETIONS[:1]])
    assert request.prompt == [{"role": "user", "content": "2+2=?\nLet's think step by step."}]
    assert request.params.temperature == 0.0
    assert PROBLEM.prompt == [{"role": "user", "content": "2+2=?"}]


def test_chain_of_thought_few_shot_keeps_the_system_message_first() -> None:
    chat = Problem([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2=?"}])
    strategy = ChainOfThought(shots=[{"prompt": "1+1=?", "completion": "2"}])
    [request], _ = play_by_hand(strategy, [COMPLETIONS[:1]], chat)
    assert [m["content"] for m in request.prompt] == ["Be brief.", "1+1=?", "2", "2+2=?"]
    assert [m["role"] for m in request.prompt] == ["system", "user", "assistant", "user"]


def test_chain_of_thought_plain() -> None:
    strategy = ChainOfThought(shots=[{"prompt": "1+1=?", "completion": "2"}], trigger="Think.")
    [request], _ = play_by_hand(strategy, [COMPLETIONS[:1]], Problem("2+2=?"))
    assert request.prompt == "1+1=?\n2\n\n2+2=?\nThink."


def test_chain_of_thought_leaves_a_prefill_at_the_end() -> None:
    begun = Problem([{"role": "user", "content": "2+2=?"}, {"role": "assistant", "content": "<think>"}])
    [request], _ = play_by_hand(ChainOfThought(trigger="Think."), [COMPLETIONS[:1]], begun)
    assert [m["content"] for m in request.prompt] == ["2+2=?\nThink.", "<think>"]


# --- self_consistency and its relatives ------------------------------------------------------------------------------


def test_self_consistency_takes_the_largest_class_of_equivalent_answers() -> None:
    [request], result = play_by_hand(SelfConsistency(n=4), [COMPLETIONS])
    assert request == Generate(PROBLEM.prompt, n=4, params=PROBLEM.params)
    assert (result.answer, result.text) == ("4", COMPLETIONS[1].text)
    assert len(result.candidates) == 4


def test_self_consistency_ties_go_to_the_first_and_the_unparsable_abstain() -> None:
    unparsable = Completion("I wonder about that, and about many other things too.")
    result = play_by_hand(SelfConsistency(n=4), [[unparsable, unparsable, COMPLETIONS[3], COMPLETIONS[0]]])[1]
    assert result.answer == "3"
    assert play_by_hand(SelfConsistency(n=1), [[unparsable]])[1].answer is None


def test_self_consistency_weighted_by_probability_flips_the_majority() -> None:
    sure = Completion("the answer is 7", logprobs=[-0.1, -0.1])
    unsure = [Completion("the answer is 8", logprobs=[-1.0, -1.5, -1.25])] * 2  # e^-1.25 twice is 0.57, e^-0.1 is 0.90
    [request], result = play_by_hand(SelfConsistency(n=3, weights="logprob"), [[*unsure, sure]])
    assert request.params.logprobs
    assert result.answer == "7"
    assert play_by_hand(SelfConsistency(n=3), [[*unsure, sure]])[1].answer == "8"


def test_self_consistency_weights_do_not_depend_on_length() -> None:
    long = Completion("the answer is 7", logprobs=[-0.1] * 20)  # e^-0.1 is more than e^-0.5, e^-2 would be less
    short = Completion("the answer is 8", logprobs=[-0.5])
    assert play_by_hand(SelfConsistency(n=2, weights="logprob"), [[short, long]])[1].answer == "7"


def test_self_consistency_weighted_needs_log_probabilities() -> None:
    with pytest.raises(InputError, match="no log-probabilities"):
        play_by_hand(SelfConsistency(weights="logprob"), [COMPLETIONS])
    empty = Completion("", logprobs=[])
    assert play_by_hand(SelfConsistency(weights="logprob"), [[empty, FAILED]])[1].answer is None


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
    asked, result = play_by_hand(AdaptiveConsistency(n=40), [answers(4, "4.0", 4, 4)])
    assert [request.n for request in asked] == [4]
    assert (result.answer, len(result.candidates)) == ("4", 4)


def test_adaptive_consistency_draws_on_until_the_lead_is_safe() -> None:
    waves = [answers(5, 4, 4, 4), answers(4), answers(4), answers(4)]  # 3:1, 4:1, 5:1 (0.9375), 6:1 (0.965)
    strategy = AdaptiveConsistency(step=1)
    asked, result = play_by_hand(strategy, [[one] for one in waves[0]] + waves[1:])
    assert len(asked) == 7
    assert result.answer == "4"


def test_adaptive_consistency_has_an_end() -> None:
    asked, result = play_by_hand(AdaptiveConsistency(n=6, step=4), [answers(1, 2, 3, 4), answers(5, 6)])
    assert [request.n for request in asked] == [4, 2]
    assert result.answer == "1"
    with pytest.raises(InputError, match="0 at a time"):
        AdaptiveConsistency(step=0)


def test_universal_self_consistency_asks_the_model_to_choose() -> None:
    [first, second], result = play_by_hand(
        UniversalSelfConsistency(n=3),
        [answers(5, 4, 3), completions("The most consistent response is Response 2, not 0.")],
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
    assert (
        play_by_hand(UniversalSelfConsistency(n=4), [answers(4, 5, "4.0", 4), completions(verdict)])[1].answer == answer
    )


def test_universal_self_consistency_needs_no_choice_among_equals() -> None:
    asked, result = play_by_hand(UniversalSelfConsistency(n=3), [completions("4", "4", "4")])
    assert (len(asked), result.answer) == (1, "4")


def test_prompts_leave_dollars_and_braces_alone() -> None:
    strategy = UniversalSelfConsistency(choice_prompt=r"$question | $responses | \boxed{} costs $5 {x}")
    asked, _ = play_by_hand(
        strategy, [completions("$responses", "b"), completions("1")], replace(PLAIN, prompt="$question?")
    )
    text = "$question? | Response 0: $responses\n\nResponse 1: b | " + r"\boxed{} costs $5 {x}"
    assert asked[1].prompt == text
