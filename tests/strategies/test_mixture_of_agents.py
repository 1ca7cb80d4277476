"""Mixture of agents: its layers, and what happens without the last one."""

from __future__ import annotations

import pytest
from by_hand import FAILED, PLAIN, PROBLEM, ScriptedModel, answers, play_by_hand, user_text

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import InputError
from posttrain_plugins.strategies.mixture_of_agents import MixtureOfAgents
from posttrain_plugins.types import Budget


def test_mixture_of_agents_layers() -> None:
    strategy = MixtureOfAgents(proposers=["small", "large"], aggregator="chief", aggregate_prompt="Read:\n$proposals")
    replies = [[answers(5), answers(4)], [answers(3), answers(2)], [answers(1)]]
    asked, result = play_by_hand(strategy, replies)
    assert [[request.model for request in wave] for wave in asked] == [["small", "large"]] * 2 + [["chief"]]
    assert [user_text(wave[0]) for wave in asked] == [
        "2+2=?",
        "2+2=?\n\nRead:\n1. so the answer is 5\n2. so the answer is 4",
        "2+2=?\n\nRead:\n1. so the answer is 3\n2. so the answer is 2",
    ]
    assert (result.answer, len(result.candidates)) == ("1", 5)


def test_mixture_of_agents_of_one_model() -> None:
    asked, result = play_by_hand(MixtureOfAgents(n=3, layers=2), [[answers(5, 4, 4)], [answers(3)]])
    assert [(wave[0].n, wave[0].model) for wave in asked] == [(3, "policy"), (1, "policy")]
    assert result.answer == "3"
    assert play_by_hand(MixtureOfAgents(layers=1), [[answers(3)]])[1].answer == "3"
    with pytest.raises(InputError, match="0 layers"):
        MixtureOfAgents(layers=0)


def test_mixture_of_agents_without_its_aggregator_votes() -> None:
    replies = [[[FAILED, *answers(5, 4, 4)]], [[FAILED]]]
    asked, result = play_by_hand(MixtureOfAgents(layers=2), replies)
    assert "4. " not in user_text(asked[1][0])
    assert (result.answer, result.text) == ("4", "so the answer is 4")
    assert play_by_hand(MixtureOfAgents(layers=2), [[answers(4, 4, 5)], [[FAILED]]])[1].answer == "4"
    asked, result = play_by_hand(MixtureOfAgents(layers=2), [[[FAILED]], [answers(7)]])
    assert (asked[1][0].prompt, result.answer) == (PROBLEM.prompt, "7")
    strategy = MixtureOfAgents(n=3, layers=2)
    backend = ScriptedModel(lambda _, draw: f"answer is {[5, 4, 4][draw]}")
    assert solve(strategy, [PLAIN], backend=backend, budget=Budget(completions=3))[0].answer == "4"
    assert solve(strategy, [PLAIN], backend=ScriptedModel(lambda _, i: "answer is 5"), budget=Budget(completions=1))[
        0
    ].answer
