"""The strategies that search: each one's own definition worked by hand, and what all of them must survive."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path as File
from typing import Any

import pytest

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.engine.trace import tree as trace_tree
from posttrain_plugins.errors import BudgetExhausted, InputError
from posttrain_plugins.search import (
    Expander,
    PartialCompletion,
    deduplicate,
    judge_paths,
    select_answer,
    split_draws,
)
from posttrain_plugins.strategies.beam_search import BeamSearch
from posttrain_plugins.strategies.dvts import DVTS
from posttrain_plugins.strategies.graph_of_thoughts import GraphOfThoughts
from posttrain_plugins.strategies.mcts import MCTS
from posttrain_plugins.strategies.particle_filtering import ParticleFiltering
from posttrain_plugins.strategies.prm_beam_search import PRMBeamSearch
from posttrain_plugins.strategies.tree_of_thoughts import TreeOfThoughts
from posttrain_plugins.strategies.value_guided_search import ValueGuidedSearch
from posttrain_plugins.text import replace_question
from posttrain_plugins.text.steps import aggregate
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

QUESTION = "Q: "
PARAMS = SamplingParams(temperature=0.7, max_tokens=200)
PROBLEM = Problem(QUESTION, PARAMS)


@dataclass
class Script:
    """Draws continuations from a table, in the order in which they stand there.

    `steps[path]` are the continuations of a path; one that ends with ";" is a step, another one ends the completion. At
    temperature 0 the first of them is drawn. A token is a character. Judgements are answered by `judge`.
    """

    steps: Mapping[str, Sequence[str]] = field(default_factory=dict)
    judge: Callable[[Generate], str] = lambda request: ""
    logprobs: Mapping[str, float] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    identity: str = "script"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(values=True))
    calls: list[list[Generate]] = field(default_factory=list)
    draws: Counter[str] = field(default_factory=Counter)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        self.calls.append(list(batch))
        for i, request in enumerate(batch):
            for j in range(request.n):
                yield i, j, self.complete(request)

    def complete(self, request: Generate) -> Completion:
        if request.purpose not in ("step", "answer"):
            return Completion(self.judge(request), usage=Usage(completion_tokens=1))
        begun = path_of(request)
        text, is_over = "", False
        while not is_over:
            options = self.steps[begun + text]
            key = str(request.prompt) + text
            option = options[0 if request.params.temperature == 0 else self.draws[key] % len(options)]
            self.draws[key] += 1
            text += option
            is_over = not option.endswith(";") or ";" in request.params.stop
        return self.cut(request, begun, text)

    def cut(self, request: Generate, begun: str, text: str) -> Completion:
        room = request.params.max_tokens
        is_step = text.endswith(";") and ";" in request.params.stop
        return Completion(
            text[:room].removesuffix(";") if is_step else text[:room],
            finish_reason="length" if len(text) > room else "stop",
            stop_reason=";" if is_step and len(text) <= room else None,
            usage=Usage(prompt_tokens=1, completion_tokens=min(len(text), room)),
            logprobs=[self.logprobs.get(begun + text, -1.0)] if request.params.logprobs else None,
            value=self.values.get(begun + text[:room]) if request.params.values else None,
        )


@dataclass
class Table:
    """A step scorer: the score of a path is the score of its last step."""

    scores: Mapping[str, float | None]
    asked: list[str] = field(default_factory=list)

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        self.asked += texts
        return [self.scores.get(text) for text in texts]

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        rows = [["".join(of[: i + 1]) for i in range(len(of))] for of in steps]
        self.asked += [row[-1] for row in rows]
        return [[score for text in row if (score := self.scores.get(text)) is not None] for row in rows]


def path_of(request: Generate) -> str:
    """What the completion goes on from."""
    if isinstance(request.prompt, str):
        return request.prompt.partition(QUESTION)[2]
    last = request.prompt[-1]
    return str(last["content"]) if last["role"] == "assistant" else ""


def wave(call: Sequence[Generate]) -> list[tuple[str, int]]:
    return [(path_of(request), request.n) for request in call]


def waves(backend: Script) -> list[list[tuple[str, int]]]:
    return [wave(call) for call in backend.calls]


def run(
    strategy: Strategy, backend: Script, scores: Mapping[str, float | None] | None = None, **options: Any
) -> Result:
    scorers = {"prm": ResolvedReward("prm", Table(scores or {}))}
    [result] = solve(strategy, [PROBLEM], backend=backend, scorers=scorers, **options)
    assert result.error is None
    return result


def texts(result: Result) -> list[str]:
    return [candidate.text for candidate in result.candidates]


# --- Growing ---------------------------------------------------------------------------------------------------------


def grow(
    expander: Expander, path: PartialCompletion, *completions: Completion, **options: Any
) -> tuple[Generate, list[PartialCompletion]]:
    steps = expander.expand([path], len(completions), **options)
    [request] = next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send([list(completions)])
    return request, stop.value.value[0]


def drawn(text: str, stop_reason: str | None = None, finish_reason: Any = "stop", tokens: int = 4) -> Completion:
    usage = Usage(completion_tokens=tokens)
    return Completion(text, finish_reason=finish_reason, stop_reason=stop_reason, usage=usage)


def test_a_step_goes_on_and_an_end_of_text_or_an_own_stop_string_ends_the_path() -> None:
    expander = Expander(replace(PROBLEM, params=replace(PARAMS, stop=("END",))), 9, ";")
    asked, paths = grow(
        expander, PartialCompletion("a;", 1, 10), drawn("b", ";"), drawn("4"), drawn("5", "END"), drawn("6", tokens=0)
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
    assert grow(Expander(chat, 9), PartialCompletion(), drawn("4"))[0].prompt == [user]
    assert grow(Expander(chat, 9), PartialCompletion("a\n\n"), drawn("4"))[0].prompt == [
        user,
        {"role": "assistant", "content": "a\n\n"},
    ]
    begun = Problem([user, {"role": "assistant", "content": "Well, "}])
    assert grow(Expander(begun, 9), PartialCompletion("a\n\n"), drawn("4"))[0].prompt[-1]["content"] == "Well, a\n\n"
    assert begun.prompt[-1] == {"role": "assistant", "content": "Well, "}


def test_failed_samples_are_no_children() -> None:
    failed = Completion("", finish_reason="error", error="oh")
    assert [p.text for p in grow(Expander(PROBLEM, 9, ";"), PartialCompletion(), failed, drawn("4"))[1]] == ["4"]


def test_a_path_never_asks_for_more_than_remains_and_ends_where_nothing_does() -> None:
    expander = Expander(replace(PROBLEM, params=replace(PARAMS, max_tokens=12)), 9, ";")
    asked, [path] = grow(expander, PartialCompletion("a;", 1, 10), drawn("b", ";", tokens=2))
    assert asked.params.max_tokens == 2
    assert (path.text, path.ended) == ("a;b;", "length")
    assert (
        grow(expander, PartialCompletion("a;", 1, 10), drawn("bc", finish_reason="length", tokens=2))[1][0].ended
        == "length"
    )


def test_the_last_step_runs_to_the_end() -> None:
    expander = Expander(PROBLEM, 2, ";")
    assert grow(expander, PartialCompletion(), drawn("a", ";"))[0].purpose == "step"
    asked, [path] = grow(expander, PartialCompletion("a;", 1), drawn("b;4"))
    assert (asked.params.stop, asked.purpose, path.ended) == ((), "answer", "stop")


def test_a_prefill_whose_separator_is_trimmed_does_not_loop() -> None:
    expander = Expander(PROBLEM, 99, ";")
    asked, [path] = grow(expander, PartialCompletion("a;", 1), drawn("", ";"))
    assert (asked.params.stop, path.text) == ((";",), "a;;")
    assert grow(expander, path, drawn("4"))[0].params.stop == ()


def test_blocks_go_on_at_their_length_and_are_cut_before_a_broken_character() -> None:
    expander = Expander(PROBLEM, 9, block_tokens=4)
    asked, [path] = grow(
        expander, PartialCompletion("é", 1, 4), drawn("ab\N{REPLACEMENT CHARACTER}", finish_reason="length")
    )
    assert (asked.params.max_tokens, asked.params.stop) == (4, ())
    assert (path.text, path.ended, path.num_tokens) == ("éab", None, 8)
    assert grow(expander, PartialCompletion(), drawn("ab", finish_reason="stop", tokens=2))[1][0].ended == "stop"
    full = grow(expander, PartialCompletion(), drawn("a", finish_reason="length", tokens=1))[1][
        0
    ]  # the model's context was full
    assert full.ended == "length"
    assert grow(expander, PartialCompletion("x", 1, 196), drawn("ab", finish_reason="length"))[1][0].ended == "length"


def test_log_probabilities_add_up_and_are_unknown_where_one_is() -> None:
    expander = Expander(PROBLEM, 9, ";", logprobs=True)
    asked, paths = grow(
        expander,
        PartialCompletion("a;", 1, 1, logprob=-1.0),
        replace(drawn("b", ";"), logprobs=[-0.5, -1.5]),
        drawn("4"),
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


# --- Scores and results ----------------------------------------------------------------------------------------------


def test_aggregate() -> None:
    assert [aggregate([0.5, 0.25, 1.0], how) for how in ("last", "min", "prod")] == [1.0, 0.25, 0.125]
    assert aggregate([0.5, 1.0], "mean") == 0.75
    assert aggregate([], "min") is None


@pytest.mark.parametrize("how", ["last", "min", "prod", "mean"])
def test_a_path_with_a_step_score_that_is_no_number_is_not_judged(how: Any) -> None:
    steps = judge_paths(PROBLEM, [PartialCompletion("a;b;"), PartialCompletion("c;d;")], "prm", how, ";")
    next(steps)
    with pytest.raises(StopIteration) as stop:
        steps.send([[[0.5, math.nan], [math.nan, 0.5]]])
    assert [path.score for path in stop.value.value] == [None, None]


def test_judged_asks_each_text_once_and_never_the_empty_one() -> None:
    paths = [
        PartialCompletion("a;b;"),
        PartialCompletion("", ended="stop"),
        PartialCompletion("a;b;", ended="stop"),
        PartialCompletion("c"),
    ]
    steps = judge_paths(PROBLEM, paths, "prm", "min", ";")
    assert next(steps) == [ScoreSteps(QUESTION, (("a;", "b;"), ("c",)), "prm")]
    with pytest.raises(StopIteration) as stop:
        steps.send([[[0.5, 0.25], []]])
    assert [path.score for path in stop.value.value] == [0.25, None, 0.25, None]
    with pytest.raises(StopIteration):
        next(judge_paths(PROBLEM, [PartialCompletion()], "prm", "min", ";"))


def ended(answer: str, score: float | None) -> PartialCompletion:
    return PartialCompletion(f"answer is {answer}", ended="stop", score=score)


def test_settle_takes_the_best_or_lets_the_scores_vote() -> None:
    paths = [ended("3", 0.3), ended("5", 0.5), ended("3", 0.3), ended("4", None), PartialCompletion("a;", score=0.9)]
    assert select_answer(paths, "best").answer == "5"
    assert select_answer(paths, "weighted_vote").answer == "3"
    assert select_answer(paths, "majority").answer == "3"
    assert len(select_answer(paths, "best").candidates) == 4  # only what is finished
    same = [replace(ended("3", 0.1), text="3.0\nanswer is 3.0"), ended("3", 0.4)]
    assert (
        select_answer([*same, ended("5", 0.45)], "weighted_vote").text == "answer is 3"
    )  # the best of those that agree
    assert select_answer(paths, "weighted_vote", weights=[0.1, 0.7, 0.1, 0.0, 0.1]).answer == "5"


def test_settle_takes_negative_scores_for_logits() -> None:
    paths = [ended("3", 1.0), ended("4", -0.5), ended("4", -0.5)]  # sigmoid: .73 against .38 + .38
    assert select_answer(paths, "weighted_vote").answer == "4"


def test_settle_prefers_an_answer_and_ties_go_to_the_first() -> None:
    silent = PartialCompletion("I wonder about that, and about many other things too.", ended="length", score=0.9)
    assert select_answer([silent, ended("4", 0.1), ended("5", 0.1)], "best").answer == "4"
    assert select_answer([silent, ended("4", 0.0), ended("5", 0.0), ended("5", None)], "weighted_vote").answer == "5"
    assert select_answer([silent], "majority").text == silent.text


def test_settle_without_anything_finished_stands_on_the_best_begun_path() -> None:
    result = select_answer(
        [PartialCompletion(), PartialCompletion("a;", score=0.1), PartialCompletion("b;", score=0.2)], "weighted_vote"
    )
    assert (result.text, [c.finish_reason for c in result.candidates]) == ("b;", ["length"])
    assert select_answer([PartialCompletion()], "best") == select_answer([], "best") == Result(answer=None, text="")


# --- prm_beam_search -------------------------------------------------------------------------------------------------

BEAM = {
    "": ["a;", "b;", "c;", "a;"],
    "a;": ["d;", "answer is 1"],
    "b;": ["e;", "f;"],
    "c;": ["g;"],
    "a;d;": ["answer is 2", "answer is 3"],
    "b;e;": ["answer is 2", "answer is 2"],
}
BEAM_SCORES = {"a;": 0.5, "b;": 0.9, "c;": 0.1, "a;d;": 0.6, "a;answer is 1": 0.2, "b;e;": 0.4, "b;f;": 0.3}
BEAM_SCORES |= {"a;d;answer is 2": 0.5, "a;d;answer is 3": 0.8, "b;e;answer is 2": 0.4}


def test_prm_beam_search_keeps_the_best_and_pools_the_finished() -> None:
    backend, table = Script(BEAM), Table(BEAM_SCORES)
    strategy = PRMBeamSearch("prm", n=4, beam_width=2, separator=";")
    [result] = solve(strategy, [PROBLEM], backend=backend, scorers={"prm": ResolvedReward("prm", table)})
    assert waves(backend) == [
        [("", 4)],
        [("b;", 2), ("a;", 2)],  # c; is pruned, the second a; is merged
        [("a;d;", 2), ("b;e;", 2)],  # "a;answer is 1" is in the pool, b;f; is pruned
    ]
    assert len(table.asked) == len(set(table.asked))
    assert texts(result) == [
        "a;answer is 1",
        "a;d;answer is 2",
        "a;d;answer is 3",
        "b;e;answer is 2",
        "b;e;answer is 2",
    ]
    assert result.answer == "2"  # .5 + .4 + .4 against .8 and .2
    assert [c.step_scores for c in result.candidates][2] == [0.5, 0.6, 0.8]


def test_prm_beam_search_best_and_majority() -> None:
    strategy = PRMBeamSearch("prm", n=4, beam_width=2, separator=";", select="best")
    assert run(strategy, Script(BEAM), BEAM_SCORES).answer == "3"
    assert run(replace(strategy, select="majority"), Script(BEAM), BEAM_SCORES).answer == "2"


def test_prm_beam_search_aggregate_ranks_the_beams() -> None:
    def kept(aggregate: Any) -> list[tuple[str, int]]:
        backend = Script({"": ["a;", "b;"], "a;": ["c;"], "b;": ["d;"], "a;c;": ["1"], "b;d;": ["2"]})
        strategy = PRMBeamSearch("prm", n=2, beam_width=1, separator=";", aggregate=aggregate, max_steps=3)
        result = run(strategy, backend, {"a;": 0.1, "b;": 0.5, "a;c;": 0.9, "b;d;": 0.6})
        return waves(backend)[2] if result else []

    assert [path for path, _ in kept("last")] == ["a;c;", "b;d;"]
    assert [path for path, _ in kept("min")] == ["b;d;", "a;c;"]
    assert [path for path, _ in kept("mean")] == ["b;d;", "a;c;"]  # .55 over .5
    assert [path for path, _ in kept("whole")] == ["a;c;", "b;d;"]


def test_prm_beam_search_lookahead_changes_the_choice() -> None:
    table = {"": ["a;", "b;"], "a;": ["c;"], "b;": ["d;"], "a;c;": ["answer is 1"], "b;d;": ["answer is 2"]}
    scores = {"a;": 0.9, "b;": 0.1, "a;c;": 0.2, "b;d;": 0.8, "a;c;answer is 1": 0.2, "b;d;answer is 2": 0.8}
    strategy = PRMBeamSearch("prm", n=2, beam_width=2, separator=";", max_steps=3)
    assert run(strategy, Script(table), scores).answer == "1"
    backend = Script(table)
    assert run(replace(strategy, lookahead=1), backend, scores).answer == "2"
    assert waves(backend)[1] == [("a;", 1), ("b;", 1)]  # the rollouts
    assert {request.params.temperature for request in backend.calls[1]} == {0.0}
    assert waves(backend)[2] == [("b;", 2)]  # goes on from the step, not from its rollout


def test_prm_beam_search_stops_when_the_pool_is_full() -> None:
    backend = Script({"": ["answer is 1", "a;"], "a;": ["answer is 2", "b;"]})
    run(PRMBeamSearch("prm", n=2, beam_width=1, separator=";"), backend, {})
    assert waves(backend) == [[("", 2)], [("a;", 2)]]  # then one beam is still live, and two are in the pool


# --- dvts ------------------------------------------------------------------------------------------------------------

FOREST = {
    "": ["a;", "b;", "c;", "d;"],
    **{f"{x};": [f"{x}1;", f"{x}2;"] for x in "abcd"},
    **{f"{x};{x}{i};": [f"answer is {x}{i}"] for x in "abcd" for i in (1, 2)},
}
FOREST_SCORES = {"a;": 0.9, "b;": 0.8, "c;": 0.1, "d;": 0.2, "a;a1;": 0.9, "a;a2;": 0.8, "d;d1;": 0.1, "d;d2;": 0.3}
FOREST_SCORES |= {"b;b1;": 0.1, "b;b2;": 0.1}


def test_dvts_never_mixes_subtrees_whereas_a_beam_search_does() -> None:
    trees, beams = Script(FOREST), Script(FOREST)
    run(DVTS("prm", n=4, beam_width=2, separator=";"), trees, FOREST_SCORES)
    run(PRMBeamSearch("prm", n=4, beam_width=2, separator=";"), beams, FOREST_SCORES)
    assert waves(trees) == [[("", 2), ("", 2)], [("a;", 2), ("d;", 2)], [("a;a1;", 2), ("d;d2;", 2)]]
    assert waves(beams) == [[("", 4)], [("a;", 2), ("b;", 2)], [("a;a1;", 2), ("a;a2;", 2)]]


def test_dvts_votes_with_the_leaves_of_each_subtrees_last_expansion() -> None:
    table = {"": ["a;", "answer is 9", "answer is 1", "answer is 2"], "a;": ["answer is 2", "answer is 2"]}
    scores = {"a;": 0.9, "answer is 9": 0.8, "answer is 1": 0.7, "answer is 2": 0.3, "a;answer is 2": 0.3}
    backend = Script(table)
    result = run(DVTS("prm", n=4, beam_width=2, separator=";"), backend, scores)
    assert waves(backend) == [[("", 2), ("", 2)], [("a;", 2)]]  # the second subtree is finished
    assert sorted(texts(result)) == ["a;answer is 2", "a;answer is 2", "answer is 1", "answer is 2"]
    assert result.answer == "2"  # .3 * 3 against .7; 9 was outscored by a;
    assert (
        run(replace(DVTS("prm", n=4, beam_width=2, separator=";"), select="best"), Script(table), scores).answer == "1"
    )


# --- particle_filtering ----------------------------------------------------------------------------------------------


def particles(*scores: float | None) -> list[PartialCompletion]:
    return [PartialCompletion(f"{i};", 1, score=score) for i, score in enumerate(scores)]


def test_particle_weights_are_the_softmax_of_logits() -> None:
    weights = ParticleFiltering("prm").weights(particles(0.8, 0.5, None))
    assert weights == pytest.approx([0.8, 0.2, 0.0])  # odds 4 and 1
    assert ParticleFiltering("prm", temperature=2.0).weights(particles(0.8, 0.5)) == pytest.approx([2 / 3, 1 / 3])
    logits = ParticleFiltering("prm").weights(particles(math.log(4), -0.0, -800.0))
    assert logits == pytest.approx([0.8, 0.2, 0.0])
    assert ParticleFiltering("prm").weights(particles(None, None)) == [0.5, 0.5]
    assert ParticleFiltering("prm").weights(particles(1.0, 0.0))[0] > 0.999


def counts(strategy: ParticleFiltering, population: Sequence[PartialCompletion], seed: int = 0) -> list[int]:
    drawn = Counter(path.text for path in strategy.resample(population, random.Random(seed)))
    return [drawn[path.text] for path in population]


def test_systematic_resampling_with_a_fixed_number() -> None:
    strategy = ParticleFiltering("prm", resampling="systematic")
    population = particles(0.5, 0.5, 0.6, 2 / 3, 0.0, 0.0, 0.0, 0.0)  # odds 1, 1, 1.5, 2: ends .18, .36, .64, 1
    assert 0.84 < random.Random(0).random() < 0.85  # the points are .1055 + i / 8
    assert counts(strategy, population) == [1, 2, 2, 3, 0, 0, 0, 0]
    assert all(2 <= counts(strategy, population, seed)[3] <= 3 for seed in range(50))  # 2.9 on average


def test_multinomial_resampling_draws_in_proportion() -> None:
    strategy = ParticleFiltering("prm")
    population = particles(0.8, 0.5)
    total = sum(counts(strategy, population, seed)[0] for seed in range(2000))
    assert total / 4000 == pytest.approx(0.8, abs=0.02)
    assert any(counts(strategy, population, seed) == [0, 2] for seed in range(200))  # it is not greedy


def test_particles_are_drawn_anew_only_below_the_effective_sample_size() -> None:
    strategy = ParticleFiltering("prm", ess_threshold=0.75)
    even = particles(0.5, 0.6)  # weights .4 and .6: 1.92 of 2
    assert strategy.resample(even, random.Random(0)) == even
    uneven = particles(0.5, 0.99)  # 1.02 of 2
    assert counts(strategy, uneven) == [0, 2]


def test_particles_that_are_copies_are_one_request_and_the_weights_vote() -> None:
    table = {"": ["a;", "b;"], "a;": ["answer is 1"], "b;": ["answer is 2", "answer is 3"]}
    scores = {"a;": 0.0, "b;": 1.0, "b;answer is 2": 0.5, "b;answer is 3": 0.9}
    backend = Script(table)
    result = run(ParticleFiltering("prm", num_particles=4, separator=";"), backend, scores)
    assert waves(backend) == [[("", 4)], [("b;", 4)]]
    assert sorted(texts(result)) == ["b;answer is 2"] * 2 + ["b;answer is 3"] * 2
    assert result.answer == "3"


def test_a_finished_particle_may_be_drawn_in_place_of_a_live_one() -> None:
    table = {"": ["answer is 1", "a;"], "a;": ["answer is 2"]}
    backend = Script(table)
    result = run(ParticleFiltering("prm", num_particles=4, separator=";"), backend, {"answer is 1": 1.0, "a;": 0.0})
    assert waves(backend) == [[("", 4)]]
    assert texts(result) == ["answer is 1"] * 4


def test_a_particle_whose_sample_failed_has_no_weight() -> None:
    failed = Completion("", finish_reason="error", error="oh")
    steps = ParticleFiltering("prm", num_particles=3, separator=";")(PROBLEM)
    next(steps)
    assert steps.send([[drawn("a", ";"), failed, failed]]) == [ScoreSteps(QUESTION, (("a;",),), "prm")]
    [request] = steps.send([[[0.01]]])
    assert (path_of(request), request.n) == ("a;", 3)


# --- beam_search -----------------------------------------------------------------------------------------------------


def test_beam_search_keeps_the_likeliest_and_merges_what_is_drawn_twice() -> None:
    table = {"": ["a;", "b;", "a;", "c;"], "a;": ["answer is 1"], "b;": ["answer is 2"]}
    logprobs = {"a;": -1.0, "b;": -2.0, "c;": -3.0, "a;answer is 1": -4.0, "b;answer is 2": -1.0}
    backend = Script(table, logprobs=logprobs)
    result = run(BeamSearch(beam_width=2, branches=4, separator=";", length_penalty=0.0), backend)
    assert waves(backend) == [[("", 4)], [("a;", 4), ("b;", 4)]]
    assert [(c.text, c.score) for c in result.candidates] == [("b;answer is 2", -3.0), ("a;answer is 1", -5.0)]
    assert result.answer == "2"


def test_beam_search_length_penalty_is_the_exponent_of_the_length() -> None:
    table = {"": ["answer is 1", "a;"], "a;": ["bbbbbbbbbb answer is 2"]}
    logprobs = {"answer is 1": -5.0, "a;": -1.0, "a;bbbbbbbbbb answer is 2": -8.0}
    for penalty, answer, score in ((0.0, "1", -5.0), (1.0, "2", -9.0 / 24)):
        strategy = BeamSearch(beam_width=2, branches=2, separator=";", length_penalty=penalty)
        result = run(strategy, Script(table, logprobs=logprobs))
        assert (result.answer, result.candidates[0].score) == (answer, score)


def test_beam_search_finished_beams_compete_and_end_the_search() -> None:
    table = {"": ["answer is 1", "a;", "b;"]}
    logprobs = {"answer is 1": -1.0, "a;": -2.0, "b;": -3.0}
    backend = Script(table, logprobs=logprobs)
    strategy = BeamSearch(beam_width=1, branches=3, separator=";", length_penalty=0.0)
    assert run(strategy, backend).answer == "1"
    assert len(backend.calls) == 1


def test_beam_search_by_blocks() -> None:
    table = {"": ["abcdanswer is 1"], "abcd": ["answer is 1"], "abcdansw": ["er is 1"], "abcdanswer i": ["s 1"]}
    backend = Script(table)
    assert run(BeamSearch(beam_width=1, branches=2, block_tokens=4), backend).answer == "1"
    assert [path for call in waves(backend) for path, _ in call] == list(table)
    assert [call[0].params.stop for call in backend.calls] == [()] * 4


def test_beam_search_without_log_probabilities_is_a_clear_error() -> None:
    steps = BeamSearch(separator=";")(PROBLEM)
    next(steps)
    with pytest.raises(InputError, match="no log-probabilities"):
        steps.send([[drawn("a", ";")]])


# --- value_guided_search ---------------------------------------------------------------------------------------------

BLOCKS = {
    "": ["aaaa....", "bbbb....", "cccc....", "dddd...."],
    "aaaa": ["1 is wrong", "answer is 1"],
    "bbbb": ["\nanswer is 2", "\nanswer is 3"],
    "cccc": ["\nanswer is 4"],
    "aaaa1 is": [" so answer is 1"],
    "aaaaansw": ["er is 1"],
    "bbbb\nans": ["wer is 2", "wer is 3"],
}
VALUES = {"aaaa": 0.8, "bbbb": 0.9, "cccc": 0.1, "aaaa1 is": 0.1, "aaaaansw": 0.5, "bbbb\nans": 0.7}


def test_value_guided_search_keeps_the_most_valuable_blocks() -> None:
    backend = Script(BLOCKS, values=VALUES)
    steps = ValueGuidedSearch(n=4, beam_width=2, block_tokens=4)(PROBLEM)
    [request] = next(steps)
    assert (request.n, request.params.max_tokens, request.params.values) == (4, 4, True)
    blocks = [replace(c, finish_reason="length") for c in (backend.complete(request) for _ in range(4))]
    second = steps.send([blocks])
    assert wave(second) == [("bbbb", 2), ("aaaa", 2)]


def test_value_guided_search_ends_with_a_vote_of_its_beams() -> None:
    table = {
        "": ["aaaa", "bbbb", "cccc", "dddd"],
        "aaaa": ["answer is 1"],
        "bbbb": ["answer is 2"],
        "cccc": ["answer is 2"],
    }

    class Blocks(Script):
        def cut(self, request: Generate, begun: str, text: str) -> Completion:
            done = super().cut(request, begun, text)
            return replace(done, finish_reason="length") if len(done.text) == 4 else done

    values = {"aaaa": 0.9, "bbbb": 0.8, "cccc": 0.7, "dddd": 0.1}
    values |= {"aaaaanswer is 1": 0.5, "bbbbanswer is 2": 0.3, "ccccanswer is 2": 0.4}
    strategy = ValueGuidedSearch(n=6, beam_width=2, block_tokens=16)
    for select, answer in (("best", "1"), ("weighted_vote", "2")):
        backend = Blocks(table, values=values)
        result = run(replace(strategy, select=select, block_tokens=4, max_steps=2), backend)
        assert waves(backend) == [[("", 6)], [("aaaa", 2), ("bbbb", 2), ("cccc", 2)]]
        assert len(result.candidates) == 3  # n / beam_width; identical blocks are merged
        assert result.answer == answer


def test_value_guided_search_a_finished_beam_keeps_its_slot() -> None:
    table = {"": ["answer is 1", "a;", "b;"], "a;": ["answer is 2"], "b;": ["answer is 3"]}
    steps = ValueGuidedSearch("vm", n=4, beam_width=2, block_tokens=8)(PROBLEM)
    [request] = next(steps)
    assert not request.params.values
    long = [drawn(text, finish_reason="length", tokens=8) for text in ("a", "b", "b")]
    [score] = steps.send([[drawn("answer is 1"), *long]])
    assert score == Score(QUESTION, ("answer is 1", "a", "b"), "vm")
    second = steps.send([[0.9, 0.2, 0.6]])
    assert wave(second) == [("b", 2)]  # one slot is taken
    assert table


def test_value_guided_search_without_values_is_a_clear_error() -> None:
    steps = ValueGuidedSearch()(PROBLEM)
    next(steps)
    with pytest.raises(InputError, match="no values"):
        steps.send([[drawn("a")]])


# --- mcts ------------------------------------------------------------------------------------------------------------


def tree(depth: int, branches: str = "abc") -> dict[str, list[str]]:
    """Every path of `branches`, `depth` steps deep, then an answer."""
    table: dict[str, list[str]] = {}
    level = [""]
    for _ in range(depth):
        table |= {path: [f"{x};" for x in branches] for path in level}
        level = [f"{path}{x};" for path in level for x in branches]
    return table | {path: [f"answer is {path[0]}"] for path in level}


def expanded(strategy: MCTS, scores: Mapping[str, float | None], depth: int = 4, **script: Any) -> list[list[str]]:
    """The leaves that each wave expands."""
    backend = Script(tree(depth), **script)
    run(replace(strategy, scorer="prm", branches=3, separator=";"), backend, scores)
    return [[path for path, _ in call] for call in waves(backend)]


UCT_SCORES = {"a;": 0.9, "b;": 0.5, "c;": 0.1, **{f"a;{x};": 0.2 for x in "abc"}, **{f"b;{x};": 0.4 for x in "abc"}}


def test_uct_goes_where_the_bound_is_largest() -> None:
    # Root: N = 3. After a: Q(a) = (.9 + .2 * 3) / 4 = .375, N(a) = 4, N = 6.
    # c = 1: a .375 + sqrt(ln 6 / 4) = 1.04, b .5 + sqrt(ln 6) = 1.84, c .1 + 1.34 = 1.44: b.
    # After b: Q(b) = (.5 + .4 * 3) / 4 = .425, N = 9: a 1.12, b 1.17, c .1 + sqrt(ln 9) = 1.58: c.
    strategy = MCTS(num_simulations=4, leaves_per_wave=1, exploration_constant=1.0)
    assert expanded(strategy, UCT_SCORES)[:4] == [[""], ["a;"], ["b;"], ["c;"]]
    # c = .1: a .375 + .07, b .5 + .13: b. Then a .375 + .07, b .425 + .07, c .1 + .15: below b.
    greedy = replace(strategy, exploration_constant=0.1)
    assert expanded(greedy, UCT_SCORES)[:4] == [[""], ["a;"], ["b;"], ["b;a;"]]


def test_max_backup_holds_on_to_the_best_value_seen() -> None:
    strategy = MCTS(num_simulations=3, leaves_per_wave=1, exploration_constant=0.3, backup="max")
    # a .9 + .3 * sqrt(ln 6 / 4) = 1.10, b .5 + .3 * sqrt(ln 6) = .90: below a.
    assert expanded(strategy, UCT_SCORES)[:3] == [[""], ["a;"], ["a;a;"]]
    assert expanded(replace(strategy, backup="mean"), UCT_SCORES)[:3] == [[""], ["a;"], ["b;"]]


def test_puct_follows_the_prior_and_the_visits() -> None:
    paths = ("a;", "b;", "c;", *(f"{above}{x};" for above in ("b;", "b;a;") for x in "abc"))
    scores = dict.fromkeys(paths, 0.5)
    logprobs = {"a;": math.log(0.2), "b;": math.log(0.7), "c;": math.log(0.1)}
    strategy = MCTS(num_simulations=4, leaves_per_wave=1, exploration_constant=1.0, rule="puct", prior="logprob")
    # All Q are .5, so P / (1 + N) decides: b .7 / 2, a .2 / 2. Then N(b) = 4: b .7 / 5 = .14, a .1. Then N(b) = 7:
    # b .7 / 8 = .09, a .1.
    assert expanded(strategy, scores, logprobs=logprobs)[:4] == [[""], ["b;"], ["b;a;"], ["a;"]]
    uniform = replace(strategy, prior="uniform")
    assert expanded(uniform, scores, logprobs=logprobs)[:3] == [[""], ["a;"], ["b;"]]


def test_virtual_loss_gives_different_leaves_in_one_wave() -> None:
    strategy = MCTS(num_simulations=4, leaves_per_wave=3, exploration_constant=1.0)
    assert expanded(strategy, UCT_SCORES)[:2] == [[""], ["a;", "b;", "c;"]]
    one_by_one = replace(strategy, leaves_per_wave=1)
    assert [len(call) for call in expanded(one_by_one, UCT_SCORES)[:4]] == [1, 1, 1, 1]


def test_virtual_loss_leaves_a_subtree_that_is_being_searched() -> None:
    scores = {"a;": 0.8, "b;": 0.65, "c;": 0.0, **{f"a;{x};": 0.8 for x in "abc"}, **{f"b;{x};": 0.65 for x in "abc"}}
    strategy = MCTS(num_simulations=5, leaves_per_wave=2, exploration_constant=0.2)
    # Root 9, a and b 4 visits. a .8 + .2 * sqrt(ln 9 / 4) = .95, b .65 + .15: a;a; is chosen, and a is reserved once.
    # Then a .8 * 4 / 5 + .2 * sqrt(ln 10 / 5) = .78, b .65 + .2 * sqrt(ln 10 / 4) = .80: so b;a;, though a is better.
    assert expanded(strategy, scores)[:3] == [[""], ["a;", "b;"], ["a;a;", "b;a;"]]
    assert expanded(replace(strategy, leaves_per_wave=1), scores)[1:3] == [["a;"], ["a;a;"]]


def test_a_finished_leaf_costs_nothing_when_it_is_chosen_again() -> None:
    backend = Script({"": ["answer is 1", "answer is 2"]})
    scores = {"answer is 1": 0.2, "answer is 2": 0.9}
    for select in ("value", "visits", "weighted_vote"):
        strategy = MCTS("prm", branches=2, separator=";", num_simulations=20, select=select)
        assert run(strategy, backend, scores).answer == "2"
    assert [len(call) for call in backend.calls] == [1, 1, 1]


def test_visits_gather_at_the_best_leaf_however_many_are_chosen_in_a_wave() -> None:
    table = {"": ["a;", "b;"], "a;": ["answer is 1"], "b;": ["answer is 2", "answer is 3", "answer is 4"]}
    scores = {"a;": 0.9, "a;answer is 1": 0.9} | {"b;": 0.4, **{f"b;answer is {i}": 0.4 for i in (2, 3, 4)}}
    for width in (1, 4, 8):
        strategy = MCTS("prm", branches=3, separator=";", num_simulations=40, leaves_per_wave=width, select="visits")
        assert run(strategy, Script(table), scores).answer == "1"


def test_mcts_selects_by_value_by_visits_or_by_vote() -> None:
    table = {"": ["a;", "b;"], "a;": ["answer is 1", "answer is 2"], "b;": ["answer is 3", "x answer is 3"]}
    scores = {"a;": 0.9, "b;": 0.5, "a;answer is 1": 0.6, "a;answer is 2": 0.65}
    scores |= {"b;answer is 3": 0.7, "b;x answer is 3": 0.1}
    strategy = MCTS("prm", branches=2, separator=";", num_simulations=3, leaves_per_wave=1, exploration_constant=1.0)
    by = {select: run(replace(strategy, select=select), Script(table), scores) for select in ("value", "weighted_vote")}
    assert by["value"].answer == "3"
    assert by["weighted_vote"].answer == "3"  # .8 against .65 and .6
    more = replace(strategy, num_simulations=40, exploration_constant=0.1, select="visits")
    assert run(more, Script(table), {**scores, "b;x answer is 3": 0.0}).answer == "2"  # the best of the better subtree


def test_mcts_rollouts_give_the_value_and_are_candidates() -> None:
    table = {"": ["a;", "b;"], "a;": ["c;"], "b;": ["d;"], "a;c;": ["answer is 1"], "b;d;": ["answer is 2"]}
    backend, judge = Script(table), Table({"a;c;answer is 1": 0.1, "b;d;answer is 2": 0.9})
    strategy = MCTS("orm", branches=2, separator=";", rollout=True, aggregate="whole", num_simulations=2)
    [result] = solve(strategy, [PROBLEM], backend=backend, scorers={"orm": ResolvedReward("orm", judge)})
    assert waves(backend)[:3] == [[("", 2)], [("a;", 1), ("b;", 1)], [("b;", 2)]]
    assert [request.params.stop for request in backend.calls[1]] == [(), ()]
    assert set(judge.asked) == {"a;c;answer is 1", "b;d;answer is 2"}
    assert result.answer == "2"


def test_mcts_judges_itself_without_a_scorer() -> None:
    def judge(request: Generate) -> str:
        assert (request.n, request.params.stop) == (1, ())
        return "Impossible.\nsure" if "b;" in str(request.prompt) else "sure? no:\nImpossible."

    table = {"": ["a;", "b;"], "a;": ["answer is 1"], "b;": ["answer is 2"]}
    result = run(MCTS(branches=2, separator=";", select="value", num_simulations=3), Script(table, judge))
    assert (result.answer, result.candidates[0].score) == ("2", 1.0)


def test_mcts_scales_values_that_leave_the_unit_interval() -> None:
    large = {path: None if score is None else 100 * score - 50 for path, score in UCT_SCORES.items()}
    large |= {"a;": 50.0, "c;": -50.0}
    strategy = MCTS(num_simulations=4, leaves_per_wave=1, exploration_constant=1.0)
    assert expanded(strategy, large)[:4] == [[""], ["a;"], ["b;"], ["c;"]]


def test_mcts_turns_away_from_a_leaf_whose_samples_all_failed() -> None:
    class Holed(Script):
        def complete(self, request: Generate) -> Completion:
            done = super().complete(request)
            return replace(done, finish_reason="error") if path_of(request).startswith("a;") else done

    backend = Holed({"": ["a;", "b;"], "a;": ["answer is 1"], "b;": ["answer is 2"]})
    strategy = MCTS("prm", branches=2, separator=";", leaves_per_wave=1, exploration_constant=0.1, num_simulations=9)
    assert run(strategy, backend, {"a;": 0.9, "b;": 0.6, "b;answer is 2": 0.6}).answer == "2"
    assert waves(backend) == [[("", 2)], [("a;", 2)], [("b;", 2)]]


def test_mcts_completes_its_best_leaf_where_nothing_is_finished() -> None:
    backend = Script(tree(4))
    result = run(MCTS("prm", branches=3, separator=";", num_simulations=2), backend, UCT_SCORES)
    assert waves(backend)[-1][0][1] == 1
    assert backend.calls[-1][0].params.stop == ()
    assert result.answer in ("a", "b")


# --- tree_of_thoughts ------------------------------------------------------------------------------------------------

THOUGHTS = {
    "": ["a;", "b;", "a;"],
    "a;": ["c;", "answer is 1"],
    "b;": ["d;"],
    "a;c;": ["answer is 2"],
    "b;d;": ["answer is 3"],
}
VERDICTS = {
    "a;": "likely",
    "b;": "sure",
    "a;c;": "impossible",
    "b;d;": "likely",
    "a;answer is 1": "likely",
    "a;so the answer is 1": "likely",
}


def verdict(request: Generate) -> str:
    path = str(request.prompt).partition("come:\n\n")[2].partition("\n\nCan it")[0]
    return f"It could be sure or not.\n{VERDICTS.get(path, 'sure')}"


def test_tot_bfs_keeps_the_best_states_of_each_depth() -> None:
    backend = Script(THOUGHTS, verdict)
    strategy = TreeOfThoughts(branches=3, breadth=2, num_evaluations=2, separator=";")
    result = run(strategy, backend)
    steps = [[(path, n) for path, n in wave(call)] for call in backend.calls if call[0].purpose == "step"]
    assert steps == [[("", 3)], [("b;", 3), ("a;", 3)], [("b;d;", 3)]]
    verdicts = [call for call in backend.calls if call[0].purpose == "value"]
    assert [len(call) for call in verdicts] == [
        2,
        3,
        1,
    ]  # a; once, though it came twice; what is finished is not asked again
    assert {request.n for call in verdicts for request in call} == {2}
    assert (result.answer, result.candidates[0].score) == ("3", 20.0)  # duplicates keep their true value


def test_tot_dfs_backtracks_at_the_threshold() -> None:
    table = {
        "": ["a;", "b;"],
        "a;": ["c;", "d;"],
        "b;": ["answer is 2"],
        "a;c;": ["answer is 1"],
        "a;d;": ["answer is 1"],
    }
    verdicts = {"a;": "sure", "b;": "likely", "a;c;": "impossible", "a;d;": "impossible", "b;answer is 2": "likely"}
    asked: list[str] = []

    def judge(request: Generate) -> str:
        asked.append(str(request.prompt).partition("come:\n\n")[2].partition("\n\nCan it")[0])
        return verdicts[asked[-1]]

    backend = Script(table, judge)
    strategy = TreeOfThoughts(search="dfs", branches=2, num_evaluations=1, separator=";")
    assert run(strategy, backend).answer == "2"
    steps = [path for call in backend.calls for path, _ in wave(call) if call[0].purpose == "step"]
    assert steps == ["", "a;", "b;"]  # both children of a; are pruned
    lenient = replace(strategy, threshold=0.0)
    backend = Script(
        table, lambda r: verdicts.get(str(r.prompt).partition("come:\n\n")[2].partition("\n\n")[0], "sure")
    )
    assert run(lenient, backend).answer == "1"


def test_tot_dfs_stops_at_its_limits() -> None:
    strategy = TreeOfThoughts(search="dfs", scorer="prm", branches=2, separator=";", max_expansions=2)
    backend = Script(THOUGHTS)
    scores = {"a;": 0.5, "b;": 0.9, "b;d;": 0.8, "a;answer is 1": 0.9, "b;d;answer is 3": 0.1, "a;c;": 0.2}
    assert run(strategy, backend, scores).answer == "3"  # b; and root were expanded, then b; is completed
    assert [call[0].purpose for call in backend.calls] == ["step", "step", "answer"]
    both = run(replace(strategy, max_expansions=9, num_solutions=2), Script(THOUGHTS), scores)
    assert {candidate.answer for candidate in both.candidates} == {"3", "1"}
    assert both.answer == "1"


def test_tot_proposes_several_thoughts_in_one_prompt() -> None:
    def reply(request: Generate) -> str:
        if request.purpose == "value":
            return verdict(request)
        assert (request.purpose, request.n) == ("thought", 1)
        path = str(request.prompt).partition("come:\n\n")[2].partition("\n\nPropose up to 2 ")[0]
        return {"": "1. a\n- b\n\n* b\n2) z", "a;": "so the answer is 1", "b;": "d"}.get(path, "the answer is 3\nx")

    strategy = TreeOfThoughts(generate="propose", branches=2, breadth=2, num_evaluations=1, separator=";", max_steps=3)
    backend = Script({"b;d;": ["answer is 4"]}, reply)
    result = run(strategy, backend)
    assert [len(call) for call in backend.calls if call[0].purpose == "thought"] == [1, 2, 1]
    assert texts(result) == ["b;d;the answer is 3"]  # beside b;d;x; in the breadth
    assert result.answer == "3"
    short = run(replace(strategy, max_steps=2, breadth=1), Script({"b;d;": ["answer is 4"]}, reply))
    assert short.text == "b;d;answer is 4"  # the best state has no answer, so it is completed


def test_tot_votes_among_the_states_that_compete() -> None:
    def judge(request: Generate) -> str:
        assert (request.purpose, request.n) == ("vote", 3)
        return "Both are fine.\nThe best choice is **2**." if "Choice 2:\nb;" in str(request.prompt) else "no idea"

    backend = Script(THOUGHTS, judge)
    result = run(TreeOfThoughts(evaluate="vote", branches=2, breadth=1, separator=";"), backend)
    assert [len(call) for call in backend.calls if call[0].purpose == "vote"] == [1, 1, 1]
    assert [path for call in backend.calls for path, _ in wave(call) if call[0].purpose == "step"] == ["", "b;", "b;d;"]
    assert result.answer == "3"


# --- graph_of_thoughts -----------------------------------------------------------------------------------------------


class Solver(Script):
    """Answers whole questions: `reply(request, draw)`."""

    def __init__(self, reply: Callable[[Generate, int], str]) -> None:
        super().__init__()
        self.reply = reply

    def complete(self, request: Generate) -> Completion:
        number = self.draws[str(request.prompt)]
        self.draws[str(request.prompt)] += 1
        return Completion(self.reply(request, number), usage=Usage(completion_tokens=1))


def solution(request: Generate, number: int) -> str:
    text = str(request.prompt)
    if "Put what is right" in text:
        return f"merged {number}, answer is 8"
    if "mend its mistakes" in text:
        return "improved, " + text.partition("solution:\n\n")[2].partition("\n\n")[0]
    return f"draft {number}, answer is {number}"


def test_got_default_graph_merges_the_two_best_drafts() -> None:
    scores = {f"draft {i}, answer is {i}": i / 10 for i in range(4)}
    scores |= {"improved, merged 0, answer is 8": 0.9, "improved, merged 1, answer is 8": 0.7}
    backend = Solver(solution)
    result = run(GraphOfThoughts(scorer="prm"), backend, scores)
    assert [[request.n for request in call] for call in backend.calls] == [[4], [2], [1, 1]]
    merging = str(backend.calls[1][0].prompt)
    assert "draft 3" in merging  # two parents
    assert "draft 2" in merging
    assert "draft 1" not in merging
    assert (result.text, result.candidates[0].score) == ("improved, merged 0, answer is 8", 0.9)
    worse = run(
        GraphOfThoughts(scorer="prm"), Solver(solution), {**scores, result.text: 0.1, "draft 3, answer is 3": 0.8}
    )
    assert worse.answer == "3"  # the drafts take part in the last choice


def test_got_thoughts_have_parents_in_the_trace() -> None:
    scores = {f"draft {i}, answer is {i}": 0.4 - i / 10 for i in range(4)}
    nodes = list(trace_tree(run(GraphOfThoughts(scorer="prm"), Solver(solution), scores)).walk())
    text_of = {node.id: node.text for node in nodes}
    parents = {node.text: [text_of[parent] for parent in node.parents] for node in nodes}
    for i in range(2):
        assert parents[f"merged {i}, answer is 8"] == ["draft 0, answer is 0", "draft 1, answer is 1"]
        assert parents[f"improved, merged {i}, answer is 8"] == [f"merged {i}, answer is 8"]


def test_got_operations_whose_inputs_are_there_run_in_one_wave() -> None:
    graph = [
        {"op": "generate", "name": "start", "k": 2},
        {"op": "select", "name": "left", "inputs": ["start"], "indices": [0]},
        {"op": "select", "name": "right", "inputs": ["start"], "indices": [-1, 5, -5]},
        {"op": "improve", "name": "a", "inputs": ["left"]},
        {"op": "improve", "name": "b", "inputs": ["right"], "k": 2},
        {"op": "generate", "name": "other", "inputs": [], "prompt": "$question Again."},
        {"op": "aggregate", "inputs": ["a", "b", "other"]},
    ]
    backend = Solver(solution)
    result = run(GraphOfThoughts(operations=graph), backend)
    assert [[request.n for request in call] for call in backend.calls] == [[2, 1], [1, 2], [1]]
    merging = str(backend.calls[2][0].prompt)
    assert merging.count("Solution ") == 4
    assert str(backend.calls[0][1].prompt) == "Q:  Again."
    assert result.answer == "8"


def test_got_validates_and_tries_again() -> None:
    def reply(request: Generate, number: int) -> str:
        if request.purpose == "value":
            text = str(request.prompt)
            return "Out of 10 it gets\n" + ("9" if "better better" in text else "7.5" if "draft 1" in text else "2")
        if "mend its mistakes" in str(request.prompt):
            return "better " + str(request.prompt).partition("solution:\n\n")[2].partition("\n\n")[0]
        return f"draft {number}, answer is {number}"

    graph = [{"op": "generate", "k": 2}, {"op": "validate", "threshold": 0.7, "retries": 3}]
    backend = Solver(reply)
    result = run(GraphOfThoughts(operations=graph), backend)
    assert sorted(texts(result)) == ["better better draft 0, answer is 0", "draft 1, answer is 1"]
    assert (result.answer, max(c.score or 0 for c in result.candidates)) == ("0", 0.9)
    assert [request.purpose for call in backend.calls for request in call] == [
        "answer", "value", "value", "answer", "value", "answer", "value",
    ]  # fmt: skip
    once = run(GraphOfThoughts(operations=[graph[0], {**graph[1], "retries": 0}]), Solver(reply))
    assert texts(once) == ["draft 1, answer is 1"]  # what stays bad is dropped
    never = run(GraphOfThoughts(operations=[graph[0], {**graph[1], "threshold": 2}]), Solver(reply))
    assert all(text.startswith("better better better draft") for text in texts(never))  # unless nothing else is left
    assert len(texts(never)) == 2


def test_got_a_spent_budget_returns_the_best_scored_thought() -> None:
    scores = {f"draft {i}, answer is {i}": -((i - 2.0) ** 2) for i in range(4)}
    result = run(GraphOfThoughts(scorer="prm"), Solver(solution), scores, budget=Budget(completions=5))
    assert (result.answer, result.stopped_by) == ("2", "completions")


def test_got_a_spent_budget_knows_the_models_own_scores() -> None:
    def reply(request: Generate, number: int) -> str:
        return (
            ("9" if "draft 2" in str(request.prompt) else "1")
            if request.purpose == "value"
            else solution(request, number)
        )

    result = run(GraphOfThoughts(), Solver(reply), budget=Budget(completions=9))
    assert (result.answer, result.stopped_by) == ("2", "completions")


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        ([], "at least one"),
        ([{"op": "think"}], "expected 'generate' or"),
        ([{"op": "generate", "width": 3}], "'width', expected one of op, name, inputs, k, prompt"),
        ([{"op": "generate"}, {"op": "score", "inputs": ["dratfs"]}], "dratfs"),
        ([{"op": "generate", "name": "a"}, {"op": "score", "name": "a"}], "a name of its own"),
        ([{"op": "score"}], "it reads no other operation"),
        (["generate"], "a mapping with 'op'"),
        ([{"op": "generate", "k": 0}], "operations[0].k: 0, expected at least 1"),
        ([{"op": "generate"}, {"op": "select", "indices": ["a"]}], "whole numbers"),
    ],
)
def test_got_refuses_a_graph_that_cannot_run(graph: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match="graph_of_thoughts cannot use operations") as error:
        GraphOfThoughts(operations=graph)
    assert message in str(error.value)


# --- All of them -----------------------------------------------------------------------------------------------------

ALL: dict[str, Strategy] = {
    "tree_of_thoughts": TreeOfThoughts(branches=3, breadth=2, separator=";", max_steps=4),
    "tree_of_thoughts_dfs": TreeOfThoughts(search="dfs", scorer="prm", branches=3, separator=";", max_steps=4),
    "tree_of_thoughts_propose": TreeOfThoughts(generate="propose", evaluate="vote", branches=2, max_steps=3),
    "graph_of_thoughts": GraphOfThoughts(),
    "graph_of_thoughts_scorer": GraphOfThoughts(scorer="prm"),
    "beam_search": BeamSearch(beam_width=2, branches=3, separator=";", max_steps=4),
    "beam_search_blocks": BeamSearch(beam_width=2, branches=2, block_tokens=3, max_steps=6),
    "prm_beam_search": PRMBeamSearch("prm", n=4, beam_width=2, separator=";", max_steps=4),
    "prm_beam_search_lookahead": PRMBeamSearch("prm", n=4, beam_width=2, separator=";", max_steps=4, lookahead=2),
    "dvts": DVTS("prm", n=4, beam_width=2, separator=";", max_steps=4),
    "particle_filtering": ParticleFiltering("prm", num_particles=4, separator=";", max_steps=4),
    "particle_filtering_systematic": ParticleFiltering(
        "prm", num_particles=4, separator=";", max_steps=4, resampling="systematic", ess_threshold=0.5
    ),
    "mcts": MCTS("prm", branches=2, separator=";", max_steps=4, num_simulations=8),
    "mcts_rollout": MCTS(
        "prm", rollout=True, branches=2, separator=";", max_steps=4, select="visits", aggregate="whole"
    ),
    "mcts_self": MCTS(rule="puct", prior="logprob", branches=2, separator=";", max_steps=4, num_simulations=8),
    "value_guided_search": ValueGuidedSearch(n=4, beam_width=2, block_tokens=3, max_steps=6),
    "value_guided_search_scorer": ValueGuidedSearch("prm", n=4, beam_width=2, block_tokens=3, max_steps=6),
}


@dataclass
class Noisy:
    """A model with a mind of its own: what it writes is a function of the request and its seed."""

    kind: str = "mixed"
    identity: str = "noisy"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(values=True))
    calls: int = 0
    asked: list[Generate] = field(default_factory=list)

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        self.calls += 1
        self.asked += batch
        for i, (request, of_request) in enumerate(zip(batch, seeds, strict=True)):
            for j, seed in enumerate(of_request):
                yield i, j, self._complete(request, random.Random(f"{self.kind}{seed}"))

    def _complete(self, request: Generate, rng: random.Random) -> Completion:
        if self.kind == "failed" or (self.kind == "flaky" and rng.random() < 0.5):
            return Completion("", finish_reason="error", error="scripted")
        if request.purpose not in ("step", "answer"):
            words = ["sure", "likely", "impossible", "The best choice is 1", "so the answer is 3", "x\ny\nz", "8", ""]
            return Completion(rng.choice(words), usage=Usage(completion_tokens=2))
        text, stop_reason = self._write(request, rng)
        room = request.params.max_tokens
        is_cut = self.kind == "cut" or len(text) > room
        text = text[:room]
        return Completion(
            text,
            finish_reason="length" if is_cut else "stop",
            stop_reason=None if is_cut else stop_reason,
            usage=Usage(1, max(len(text), 1)),
            logprobs=[-rng.random() for _ in text] if request.params.logprobs else None,
            value=rng.random() if request.params.values else None,
        )

    def _write(self, request: Generate, rng: random.Random) -> tuple[str, str | None]:
        if self.kind == "empty":
            return "", None
        if self.kind == "same":
            return ("a", ";") if ";" in request.params.stop else ("answer is 1", None)
        if self.kind == "bare" and ";" in request.params.stop:
            return "", ";"
        if ";" in request.params.stop and rng.random() < 0.6:
            return rng.choice("abc"), ";"
        return f"answer is {rng.randrange(3)}", None


@dataclass
class Moody:
    """A scorer; `kind` says what is wrong with it."""

    kind: str = "sound"

    def __call__(self, prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        return [self._score(str(text)) for text in completions]

    def step_scores(self, prompts: Any, completions: Any, steps: Any, **columns: Any) -> list[list[float]]:
        scores = [[self._score("".join(of[: i + 1])) for i in range(len(of))] for of in steps]
        return [[score for score in row if score is not None] for row in scores]

    def _score(self, text: str) -> float | None:
        value = random.Random(text).random()
        match self.kind:
            case "none":
                return None
            case "some":
                return value if value > 0.5 else None
            case "nan":
                return math.nan if value > 0.5 else value
            case "logits":
                return 8 * value - 4
            case _:
                return value


def play(
    name: str,
    backend: Any,
    count: int = 3,
    mood: str = "sound",
    max_tokens: int = 60,
    chat: bool = False,
    **options: Any,
) -> list[Result]:
    def prompt(i: int) -> Any:
        return [{"role": "user", "content": f"{i} {QUESTION}"}] if chat else f"{i} {QUESTION}"

    params = SamplingParams(max_tokens=max_tokens)
    problems = [Problem(prompt(i), params, id=str(i)) for i in range(count)]
    scorers = {"prm": ResolvedReward("prm", Moody(mood))}
    return solve(ALL[name], problems, backend=backend, scorers=scorers, **options)


def said(result: Result) -> Any:
    return json.dumps([result.answer, result.text, [[c.text, c.answer, c.score] for c in result.candidates]])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("chat", [False, True])
def test_every_strategy_answers(name: str, chat: bool) -> None:
    for result in play(name, Noisy(), chat=chat):
        assert result.error is None
        assert result.answer is not None
        assert result.answer in result.text
        assert all(candidate.text for candidate in result.candidates)
        assert result.stopped_by is None


@pytest.mark.parametrize("name", ALL)
def test_the_number_of_waves_does_not_grow_with_the_number_of_problems(name: str) -> None:
    together = Noisy()
    results = play(name, together, count=20)
    rounds = [1 + max(event["round"] for event in result.trace) for result in results]  # of drawing or scoring
    assert together.calls <= max(rounds)
    assert together.calls < sum(rounds) / 5


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["failed", "flaky", "empty", "same", "bare", "cut"])
def test_every_strategy_survives_what_models_do(name: str, kind: str) -> None:
    for result in play(name, Noisy(kind)):
        assert result.error is None
        if kind == "failed":
            assert (result.answer, result.text, result.candidates) == (None, "", [])
        if kind in ("same", "bare"):
            assert result.text


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mood", ["none", "some", "nan", "logits"])
def test_every_strategy_survives_what_scorers_do(name: str, mood: str) -> None:
    for result in play(name, Noisy(), mood=mood):
        assert result.error is None
        assert result.answer is not None


@pytest.mark.parametrize("name", ALL)
def test_no_path_is_longer_than_max_tokens(name: str) -> None:
    backend = Noisy()
    for result in play(name, backend, max_tokens=7):
        assert result.error is None
        if "propose" not in name:  # whose tokens are a share of the proposals'
            assert all(len(candidate.text.replace(";", "")) <= 7 for candidate in result.candidates)
    for request in backend.asked:
        if request.purpose == "step":
            assert len(path_of(request).replace(";", "")) + request.params.max_tokens <= 7


@pytest.mark.parametrize("name", ALL)
def test_every_budget_ends_in_a_result(name: str) -> None:
    [whole] = play(name, Noisy(), count=1)
    calls = 0
    while True:
        [result] = play(name, Noisy(), count=1, budget=Budget(calls=calls))
        assert result.error is None
        if result.stopped_by is None:
            break
        assert result.stopped_by == "calls"
        if any(candidate.answer is not None for candidate in result.candidates):
            assert result.answer is not None
        calls += 1
    assert calls > 1
    assert said(result) == said(whole)
    for tokens in (1, 10, 40):
        assert play(name, Noisy(), count=1, budget=Budget(tokens=tokens))[0].error is None


@pytest.mark.parametrize("name", ALL)
def test_a_budget_thrown_at_any_yield_is_a_result_or_goes_through(name: str) -> None:
    strategy, backend, scorer = ALL[name], Noisy(), Moody()
    results = []
    for stop_at in range(40):
        steps = strategy(Problem(QUESTION, SamplingParams(max_tokens=60)))
        requests = next(steps)
        try:
            for _ in range(stop_at):
                requests = steps.send([respond(request, backend, scorer) for request in requests])
        except StopIteration:
            assert all(result.text for result in results)
            return
        with pytest.raises((StopIteration, BudgetExhausted)) as thrown:
            steps.throw(BudgetExhausted("spent"))
        if isinstance(thrown.value, StopIteration):
            results.append(thrown.value.value)
    raise AssertionError("it never ends")


SEARCHES = [
    TreeOfThoughts(scorer="prm", branches=2, separator=";"),
    BeamSearch(branches=2, separator=";"),
    PRMBeamSearch("prm", n=2, beam_width=1, separator=";"),
    DVTS("prm", n=2, beam_width=1, separator=";"),
    ParticleFiltering("prm", num_particles=2, separator=";", resampling="systematic", ess_threshold=0.1),
    MCTS("prm", branches=2, separator=";"),
    ValueGuidedSearch("prm", n=2, beam_width=1, block_tokens=20),
]


@pytest.mark.parametrize("strategy", SEARCHES, ids=lambda strategy: type(strategy).__name__)
def test_a_spent_budget_does_not_lose_what_is_finished(strategy: Strategy) -> None:
    """One path is finished, another one live, when the second wave of drawing is refused."""
    steps = strategy(PROBLEM)
    live = replace(drawn("a", ";", tokens=20), logprobs=[-9.0])
    if isinstance(strategy, ValueGuidedSearch):
        live = replace(live, finish_reason="length", stop_reason=None)
    first = [replace(drawn("answer is 1"), logprobs=[-1.0]), live]
    requests = next(steps)
    requests = steps.send([[first.pop(0) for _ in range(request.n)] for request in requests])
    while not isinstance(requests[0], Generate):
        requests = steps.send([[[0.5]] * 2 if isinstance(request, ScoreSteps) else [0.5] * 2 for request in requests])
    with pytest.raises(StopIteration) as stop:
        steps.throw(BudgetExhausted("spent"))
    assert stop.value.value.answer == "1"


def respond(request: Any, backend: Noisy, scorer: Moody) -> Any:
    if isinstance(request, Generate):
        seeds = [len(str(request.prompt)) * 100 + j for j in range(request.n)]
        return [completion for _, _, completion in backend.generate([request], [seeds])]
    if isinstance(request, Score):
        return scorer([], request.completions)
    return scorer.step_scores([], [], steps=request.steps)


@pytest.mark.parametrize("name", ALL)
def test_replay_from_the_log_is_exact_and_asks_nobody(name: str, tmp_path: File) -> None:
    log = tmp_path / "log.jsonl"
    first = play(name, Noisy(), log=log)
    again = Noisy()
    assert [*map(said, play(name, again, log=log))] == [*map(said, first)]
    assert again.calls == 0
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert [*map(said, play(name, Noisy(), log=log))] == [*map(said, first)]


@pytest.mark.parametrize("name", ALL)
def test_what_else_is_solved_changes_nothing(name: str) -> None:
    assert said(play(name, Noisy(), count=1)[0]) == said(play(name, Noisy(), count=5)[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PRMBeamSearch("prm", n=8, beam_width=3), "beam_width: 3, expected a divisor of n (8)"),
        (lambda: DVTS("prm", n=8, beam_width=0), "beam_width: 0, expected at least 1"),
        (lambda: PRMBeamSearch("prm", lookahead=-1), "lookahead: -1, expected at least 0"),
        (lambda: PRMBeamSearch("prm", aggregate="median"), "aggregate: 'median', expected 'last' or 'min'"),
        (lambda: ParticleFiltering("prm", temperature=0), "temperature: 0, expected a number above 0"),
        (lambda: ParticleFiltering("prm", ess_threshold=2), "ess_threshold: 2, expected a share"),
        (lambda: ParticleFiltering("prm", resampling="best"), "'best', expected 'multinomial' or 'systematic'"),
        (lambda: ValueGuidedSearch(n=5), "beam_width: 2, expected a divisor of n (5)"),
        (lambda: BeamSearch(block_tokens=0), "block_tokens: 0, expected at least 1"),
        (lambda: MCTS(rule="ucb"), "rule: 'ucb', expected 'uct' or 'puct'"),
        (lambda: TreeOfThoughts(separator=""), "separator: '', expected what ends a step"),
    ],
)
def test_what_cannot_be_used_is_said(build: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(InputError) as error:
        build()
    assert message in str(error.value)
    assert "hint: change" in str(error.value)
