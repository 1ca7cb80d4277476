"""One way of reading for all who read: strategies, votes, rewards, also in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain_plugins.answers import extract
from posttrain_plugins.auditing.trial import on_data
from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.cli.commands import app
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import InputError
from posttrain_plugins.guard.guarded import guard
from posttrain_plugins.guard.settings import GuardSettings
from posttrain_plugins.rewards.exact_answer import ExactAnswer
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.text.answers import is_vote_empty
from posttrain_plugins.text.readers import current_reading, reading, template_opens_thought
from posttrain_plugins.types import Completion, Problem, ResolvedReward

QUESTION = [{"role": "user", "content": "2+2=?"}]
CUT = "4 is right, so the answer is 4"
CLOSED = "is it 5?</think>\n4"


@dataclass
class Scripted:
    """A model that says these in turn; its template may open a thought."""

    texts: list[str]
    opens_thought: bool = False
    identity: str = "script"
    capabilities: Capabilities = field(default_factory=Capabilities)

    def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
        for i, request in enumerate(batch):
            for j in range(request.n):
                yield i, j, Completion(self.texts[j])


def vote(texts: list[str], prompt: Any = "2+2=?", **options: Any) -> Any:
    """Return the result of a vote over these completions."""
    is_opened = options.pop("opens_thought", False)
    return solve(SelfConsistency(n=len(texts)), [Problem(prompt)], backend=Scripted(texts, is_opened), **options)[0]


def test_a_vote_reads_as_it_is_told() -> None:
    texts = [r"\boxed{4}, not 5", r"\boxed{4} and 5", "the answer is 5"]
    assert vote(texts).answer == "4"
    assert vote(texts, reader="last_number").answer == "5"
    assert current_reading() == ("auto", False)
    with pytest.raises(InputError, match="no reader"):
        vote(texts, reader="first")


@pytest.mark.parametrize(
    ("prompt", "opens_thought", "answers"),
    [
        (QUESTION, True, [None, "4"]),
        (QUESTION, False, ["4", "4"]),
        ("2+2=?<think>", False, [None, "4"]),
        ("2+2=?", True, ["4", "4"]),  # plain text goes through no template
        ([*QUESTION, {"role": "assistant", "content": "<think>"}], False, [None, "4"]),
    ],
)
def test_a_thought_that_the_prompt_opened_is_no_answer(prompt: Any, opens_thought: bool, answers: list[Any]) -> None:
    result = vote([CUT, CLOSED], prompt, opens_thought=opens_thought)
    # strategies do not say which prompt they read for: with a template, and with a prompt of their own, alike
    assert [candidate.answer for candidate in result.candidates] == answers


def test_a_vote_with_nothing_to_vote_on_says_so() -> None:
    result = vote(["I cannot say.", "Let me see"])
    assert result.answer is None
    assert is_vote_empty(result)
    assert not is_vote_empty(vote(["4", "hm"]))


def test_a_scorer_reads_as_its_policy_thinks() -> None:
    seen: list[tuple[str, bool]] = []

    def scorer(completions: list[Any], **columns: Any) -> list[float]:
        seen.append(tuple(current_reading()))
        return [0.0] * len(completions)

    from posttrain_plugins.strategies.best_of_n import BestOfN

    backend = Scripted([CUT, CLOSED], opens_thought=True)
    solve(BestOfN(n=2, scorer="s"), [Problem(QUESTION)], backend=backend, scorers={"s": ResolvedReward("s", scorer)})
    assert seen == [("auto", True)]


def test_rewards_in_a_process_of_their_own_read_alike() -> None:
    with reading(is_thinking=True):
        guarded = guard(ExactAnswer(), GuardSettings(isolate="process", num_workers=1))
        try:
            assert guarded(prompts=[QUESTION] * 2, completions=[CUT, CLOSED], solution=["4", "4"]) == [0.0, 1.0]
        finally:
            guarded.close()


def test_what_could_not_be_read_is_in_a_trainers_log() -> None:
    logged: dict[str, float] = {}
    completions, solution = ["4", "I do not know.", "Let me see", "5"], ["4"] * 4
    ExactAnswer()(completions=completions, solution=solution, log_metric=logged.__setitem__)
    assert logged == {"unread": 0.5}


def test_a_chat_template_that_opens_a_thought() -> None:
    class Tokenizer:
        def __init__(self, template: str | None) -> None:
            self.chat_template = template

        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            if self.chat_template == "refuses":
                raise ValueError("documents are missing")
            thinks = self.chat_template == "thinks" and options.get("enable_thinking", True)
            return "<user>" + messages[-1]["content"] + "<assistant>" + "<think>\n" * thinks

    assert [template_opens_thought(Tokenizer(t)) for t in ("thinks", "plain", "refuses", None)] == [True] + [False] * 3
    assert not template_opens_thought(Tokenizer("thinks"), enable_thinking=False)


def test_nested_readings() -> None:
    with reading("boxed"):
        with reading(is_thinking=True):  # the reader stays
            assert current_reading() == ("boxed", True)
        assert extract("4") is None
    assert extract("4") == "4"


def test_rewards_test_tells_not_read_from_wrong() -> None:
    shown = CliRunner().invoke(app, ["rewards", "test", "exact_answer(reader=boxed)"]).output
    assert "ok: no answer read" in " ".join(shown.split())


def test_references_that_cannot_be_read_are_told_as_that() -> None:
    rows = [{"prompt": "2+2=?", "solution": "4"}, {"prompt": "2+3=?", "solution": "5"}]
    tried = on_data(ResolvedReward("r", ExactAnswer(reader="tag")), rows)
    assert {one.note for one in tried} == {"no answer read (reader: tag)"}
    assert {one.problem for one in tried} == {"another row's reference scores as much"}
    assert {one.note for one in on_data(ResolvedReward("r", ExactAnswer()), rows)} == {""}
