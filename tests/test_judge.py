"""The judge and the ensemble, on a scripted backend."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.errors import InputError
from posttrain_plugins.rewards.ensemble import Ensemble
from posttrain_plugins.rewards.judge import Judge
from posttrain_plugins.text import to_text
from posttrain_plugins.tiny_world.checker import marking_prompt
from posttrain_plugins.types import Completion, Generate, ResolvedReward, Usage

CHAT = [{"role": "user", "content": "2+2=?"}]


class Scripted:
    """Answers by a function of the prompt's text, and remembers what it was asked."""

    identity = "judge"
    capabilities = Capabilities()

    def __init__(self, says: Callable[[str], str]) -> None:
        self.says = says
        self.asked: list[str] = []

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        for i, request in enumerate(batch):
            for j in range(request.n):
                self.asked.append(to_text(request.prompt))
                yield i, j, Completion(self.says(self.asked[-1]), usage=Usage(prompt_tokens=3, completion_tokens=2))


def judge(says: Callable[[str], str], **options: Any) -> tuple[Judge, Scripted]:
    made = Judge(model="judge", **options)
    made._backend = Scripted(says)
    return made, made._backend


def test_a_rating_is_read_and_scaled() -> None:
    made, backend = judge(lambda text: "Fine, not [[1]]. [[10]]" if "4" in text.partition("Answer")[2] else "no idea")
    answers = [[{"role": "assistant", "content": text}] for text in ("4", "five")]
    assert made([CHAT] * 2, answers) == [1.0, None]
    assert "2+2=?" in backend.asked[0]
    assert "{completion}" not in backend.asked[0]


def test_the_same_question_is_asked_once_and_what_it_cost_is_told() -> None:
    made, backend = judge(lambda text: "[[4]]")
    assert made(["q"] * 3, ["a", "a", "b"]) == [pytest.approx(1 / 3)] * 3
    assert made(["q"], ["a"]) == [pytest.approx(1 / 3)]
    assert len(backend.asked) == 2
    assert (made.spent.prompt_tokens, made.spent.completion_tokens) == (6, 4)


def test_several_ratings_are_averaged() -> None:
    says = iter(["[[1]]", "[[10]]", "nothing"])
    made, _ = judge(lambda text: next(says), ratings=3, temperature=1.0)
    assert made(["q"], ["a"]) == [0.5]


def test_pairs_are_compared_within_a_prompt_in_both_orders() -> None:
    made, backend = judge(lambda text: "[[A]]" if "Answer A:\nlong" in text else "[[B]]", judging="pairwise")
    scores = made(["q", "q", "q", "other"], ["long", "mid", "mad", "alone"])
    assert scores[0] == 1.0, "always preferred, wherever it stands"
    assert scores[1:3] == [0.25, 0.25], "each loses to long; against each other, position alone decides"
    assert scores[3] is None, "nothing to compare it with"
    assert len(backend.asked) == 6


def test_without_swap_each_pair_is_asked_once() -> None:
    made, backend = judge(lambda text: "[[A]]", judging="pairwise", swap=False)
    assert made(["q", "q"], ["a", "b"]) == [1.0, 0.0]
    assert len(backend.asked) == 1


def test_steps_are_judged_one_after_the_other() -> None:
    made, backend = judge(
        lambda text: "n" if text.endswith("7>2=2") else "y",
        judging="steps",
        separator=";",
        render=marking_prompt,
        pattern=r"^\s*([yn])",
        values={"y": 1.0, "n": 0.0},
        chat=False,
    )
    completion = "<think>3|7=7;7>2=2</think><answer>2</answer>"
    assert made.step_scores(["3|7>2"], [completion]) == [[1.0, 0.0]]
    assert made(["3|7>2"], [completion]) == [0.0]
    assert backend.asked == ["mark 3|7>2\n3|7=7", "mark 3|7>2\n3|7=7y;7>2=2"]
    assert made.step_scores(["3|7>2"], [""]) == [[]]


def test_other_columns_may_stand_in_the_rubric() -> None:
    made, backend = judge(lambda text: "[[1]]", rubric="{prompt} {completion} {solution} {{left}}")
    made(["q"], ["a"], solution=["42"])
    assert backend.asked == ["q a 42 {{left}}"]


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(InputError, match="no group"):
        Judge(model="m", pattern="yes")
    with pytest.raises(InputError, match="temperature 0"):
        Judge(model="m", ratings=3)


def test_it_pickles_without_its_model() -> None:
    made, _ = judge(lambda text: "[[1]]")
    made(["q"], ["a"])
    assert pickle.loads(pickle.dumps(made))._backend is None


def high(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    return [1.0, None]


def low(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    return [0.0, None]


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 0.5), ({"reduce": "min"}, 0.0), ({"penalty": 2.0}, 0.0), ({"penalty": 1.0}, 0.25)]
)
def test_an_ensemble_reduces_and_penalises_disagreement(options: dict[str, Any], expected: float) -> None:
    made = Ensemble([ResolvedReward("high", high), low], **options)
    assert made(prompts=["q"] * 2, completions=["a", "b"]) == [expected, None]


def test_an_empty_ensemble_is_refused() -> None:
    with pytest.raises(InputError, match="no rewards"):
        Ensemble([])
