"""How partial completions grow: by a step or a block, to their end, and never beyond a limit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from posttrain_plugins.search import Expander, PartialCompletion, deduplicate, split_draws
from posttrain_plugins.text import replace_question
from posttrain_plugins.types import Completion, Generate, Problem, SamplingParams, Usage

QUESTION = "Q: "
PARAMS = SamplingParams(temperature=0.7, max_tokens=200)
PROBLEM = Problem(QUESTION, PARAMS)


def completion(text: str, stop_reason: str | None = None, finish_reason: Any = "stop", tokens: int = 4) -> Completion:
    usage = Usage(completion_tokens=tokens)
    return Completion(text, finish_reason=finish_reason, stop_reason=stop_reason, usage=usage)


def expand_one(
    expander: Expander, path: PartialCompletion, *completions: Completion, **options: Any
) -> tuple[Generate, list[PartialCompletion]]:
    steps = expander.expand([path], len(completions), **options)
    [request] = next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send([list(completions)])
    return request, stop.value.value[0]


def test_a_step_goes_on_and_an_end_of_text_or_an_own_stop_string_ends_the_path() -> None:
    expander = Expander(replace(PROBLEM, params=replace(PARAMS, stop=("END",))), 9, ";")
    asked, paths = expand_one(
        expander,
        PartialCompletion("a;", 1, 10),
        completion("b", ";"),
        completion("4"),
        completion("5", "END"),
        completion("6", tokens=0),
    )
    assert asked == Generate("Q: a;", 4, replace(PARAMS, stop=("END", ";"), max_tokens=190), purpose="step")
    assert [(p.text, p.ended, p.num_tokens) for p in paths] == [
        ("a;b;", None, 14),
        ("a;4", "stop", 14),
        ("a;5", "stop", 14),
        ("a;6", "stop", 11),
    ]


def test_the_path_is_a_prefill_in_a_chat() -> None:
    user = {"role": "user", "content": "Q"}
    chat = Problem([user])
    assert expand_one(Expander(chat, 9), PartialCompletion(), completion("4"))[0].prompt == [user]
    assert expand_one(Expander(chat, 9), PartialCompletion("a\n\n"), completion("4"))[0].prompt == [
        user,
        {"role": "assistant", "content": "a\n\n"},
    ]
    begun = Problem([user, {"role": "assistant", "content": "Well, "}])
    assert (
        expand_one(Expander(begun, 9), PartialCompletion("a\n\n"), completion("4"))[0].prompt[-1]["content"]
        == "Well, a\n\n"
    )
    assert begun.prompt[-1] == {"role": "assistant", "content": "Well, "}


def test_failed_samples_are_no_children() -> None:
    failed = Completion("", finish_reason="error", error="oh")
    assert [p.text for p in expand_one(Expander(PROBLEM, 9, ";"), PartialCompletion(), failed, completion("4"))[1]] == [
        "4"
    ]


def test_a_path_never_asks_for_more_than_remains_and_ends_where_nothing_does() -> None:
    expander = Expander(replace(PROBLEM, params=replace(PARAMS, max_tokens=12)), 9, ";")
    asked, [path] = expand_one(expander, PartialCompletion("a;", 1, 10), completion("b", ";", tokens=2))
    assert asked.params.max_tokens == 2
    assert (path.text, path.ended) == ("a;b;", "length")
    assert (
        expand_one(expander, PartialCompletion("a;", 1, 10), completion("bc", finish_reason="length", tokens=2))[1][
            0
        ].ended
        == "length"
    )


def test_the_last_step_runs_to_the_end() -> None:
    expander = Expander(PROBLEM, 2, ";")
    assert expand_one(expander, PartialCompletion(), completion("a", ";"))[0].purpose == "step"
    asked, [path] = expand_one(expander, PartialCompletion("a;", 1), completion("b;4"))
    assert (asked.params.stop, asked.purpose, path.ended) == ((), "answer", "stop")


def test_a_prefill_whose_separator_is_trimmed_does_not_loop() -> None:
    expander = Expander(PROBLEM, 99, ";")
    asked, [path] = expand_one(expander, PartialCompletion("a;", 1), completion("", ";"))
    assert (asked.params.stop, path.text) == ((";",), "a;;")
    assert expand_one(expander, path, completion("4"))[0].params.stop == ()


def test_blocks_go_on_at_their_length_and_are_cut_before_a_broken_character() -> None:
    expander = Expander(PROBLEM, 9, block_tokens=4)
    asked, [path] = expand_one(
        expander, PartialCompletion("é", 1, 4), completion("ab\N{REPLACEMENT CHARACTER}", finish_reason="length")
    )
    assert (asked.params.max_tokens, asked.params.stop) == (4, ())
    assert (path.text, path.ended, path.num_tokens) == ("éab", None, 8)
    assert (
        expand_one(expander, PartialCompletion(), completion("ab", finish_reason="stop", tokens=2))[1][0].ended
        == "stop"
    )
    full = expand_one(expander, PartialCompletion(), completion("a", finish_reason="length", tokens=1))[1][
        0
    ]  # the model's context was full
    assert full.ended == "length"
    assert (
        expand_one(expander, PartialCompletion("x", 1, 196), completion("ab", finish_reason="length"))[1][0].ended
        == "length"
    )


def test_log_probabilities_add_up_and_are_unknown_where_one_is() -> None:
    expander = Expander(PROBLEM, 9, ";", logprobs=True)
    asked, paths = expand_one(
        expander,
        PartialCompletion("a;", 1, 1, logprob=-1.0),
        replace(completion("b", ";"), logprobs=[-0.5, -1.5]),
        completion("4"),
    )
    assert asked.params.logprobs
    assert [path.logprob for path in paths] == [-3.0, None]


def test_distinct_keeps_votes_apart_and_merges_what_is_still_to_be_drawn() -> None:
    paths = [
        PartialCompletion("a;"),
        PartialCompletion("a;"),
        PartialCompletion("a;", ended="stop"),
        PartialCompletion("a;", ended="stop"),
    ]
    assert len(deduplicate(paths)) == 2
    assert len(deduplicate(paths, are_votes=True)) == 3


@pytest.mark.parametrize(("total", "count", "expected"), [(8, 2, [4, 4]), (8, 3, [3, 3, 2]), (4, 1, [4])])
def test_shares(total: int, count: int, expected: list[int]) -> None:
    assert split_draws(total, count) == expected


def test_fill_takes_words_literally_and_keeps_the_system_message() -> None:
    system = {"role": "system", "content": "Be brief."}
    chat = [system, {"role": "user", "content": "cost $path?"}, {"role": "assistant", "content": "Well"}]
    filled = replace_question(chat, "$question | $path | $5", path="$question")
    assert filled == [system, {"role": "user", "content": "cost $path? | $question | $5"}]
    assert replace_question("2+2=?", "$question!") == "2+2=?!"
