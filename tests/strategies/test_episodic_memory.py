"""Episodic memory: trials, reflections, the memory and its replay."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from by_hand import PLAIN, ScriptedModel, answers, completions, play_by_hand, user_text

from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import InputError
from posttrain_plugins.strategies.episodic_memory import EpisodicMemory, bm25
from posttrain_plugins.strategies.react import ReAct
from posttrain_plugins.types import Budget, Generate, Problem, ResolvedReward, Result


def add(a: int, b: int = 0) -> int:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


def test_episodic_memory_shows_its_reflections_to_the_next_trial() -> None:
    strategy = EpisodicMemory(scorer="right", trials=3, own=1, similar=0, memory_prompt="Notes:\n$reflections")
    replies = [
        answers(5),
        [0.0],
        completions("count"),
        answers(3),
        [0.0],
        completions("count again"),
        answers(4),
        [1.0],
    ]
    asked, result = play_by_hand(strategy, replies)
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
    asked, result = play_by_hand(strategy, [answers(5), [0.4], completions("hm"), answers(3), [0.1]])
    assert (len(asked), result.answer) == (5, "5")
    assert play_by_hand(strategy, [answers(5), [None]])[1].answer == "5"  # no verdict, nothing to learn from
    assert len(play_by_hand(strategy, [answers(5), [0.5]])[0]) == 2  # the threshold itself passes


def test_episodic_memory_shows_its_own_reflections_once() -> None:
    strategy = EpisodicMemory(scorer="right", trials=2, similar=1)
    replies = ["[]", answers(5), [0.0], completions("count"), '["count", "other", "more"]', answers(4), [1.0]]
    asked, _ = play_by_hand(strategy, replies)
    assert (asked[0].arguments["count"], asked[4].arguments["count"]) == (1, 2)
    assert user_text(asked[5]).endswith(":\n- other\n- count")
    assert len(play_by_hand(strategy, ["error: no tool", answers(5), [1.0]])[0]) == 3


@pytest.mark.parametrize(
    ("verdict", "passes"), [("It is correct.", True), ("Correct? No: INCORRECT", False), ("well", False), ("", False)]
)
def test_episodic_memory_judged_by_a_model(verdict: str, passes: bool) -> None:
    strategy = EpisodicMemory(judge="critic", trials=2, similar=0)
    more = [] if passes else [completions("hm"), answers(4), completions("correct")]
    asked, result = play_by_hand(strategy, [answers(5), completions(verdict), *more])
    assert (asked[1].model, asked[1].purpose, asked[1].params.temperature) == ("critic", "judgement", 0.0)
    assert result.answer == ("5" if passes else "4")
    with pytest.raises(InputError, match="found both"):
        EpisodicMemory(scorer="right", judge="critic")


def test_bm25_by_hand() -> None:
    """N=2, both of length 2, so the norm is 1.5; `a` is in one (idf ln 2), `b` in both (idf ln 1.2)."""
    assert bm25("a b", ["a b", "b b"]) == pytest.approx([math.log(2) + math.log(1.2), math.log(1.2) * 5 / 3.5])
    assert bm25("a", []) == []
    assert bm25("", ["a"]) == bm25("a", [""]) == [0.0]


def write_lesson(request: Generate, draw: int) -> str:
    """Right only with a lesson on the same operation; every reflection names its question."""
    if request.purpose == "reflection":
        return "carry the one for " + user_text(request).splitlines()[0].removeprefix("Question: ")
    return "answer is 1" if "carry the one" in user_text(request) else "answer is 0"


def is_one(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
    return [float(completion.endswith("1")) for completion in completions]


def solve_with_memory(
    problems: Sequence[str], log: Path | None = None, budget: Budget | None = None, **options: Any
) -> Any:
    strategy = EpisodicMemory(scorer="one", trials=2, **options)
    backend = ScriptedModel(write_lesson)
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
    _, backend, results = solve_with_memory(["add 17 and 25", "add 19 and 24", "name a bird"])
    assert [len(result.candidates) for result in results] == [2, 1, 2]  # the second knows at once, the third nothing
    assert [result.answer for result in results] == ["1", "1", "1"]
    assert "carry the one for add 17 and 25" in user_text(backend.asked[3])


def test_episodic_memory_is_bounded_and_kept_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "memory.jsonl"
    solve_with_memory(["add 1", "sing 2", "fly 3"], memory_file=str(file), size=2)
    assert [json.loads(line)["problem"] for line in file.read_text().splitlines()] == ["add 1", "sing 2", "fly 3"]
    small, _, _ = solve_with_memory(["add 1", "sing 2", "fly 3"], size=2)
    assert [problem for problem, _ in small._memory] == ["sing 2", "fly 3"]
    kept = EpisodicMemory(scorer="one", memory_file=str(file), size=2)
    assert json.loads(kept.recall_reflections("fly, sing and add", 9)) == [
        "carry the one for fly 3",
        "carry the one for sing 2",
    ]
    _, _, [result] = solve_with_memory(["fly 4"], memory_file=str(file))
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
    first, _, results = solve_with_memory(texts, log=tmp_path / "log")
    again, backend, replayed = solve_with_memory(texts, log=tmp_path / "log")
    assert backend.asked == []
    assert [r.candidates for r in replayed] == [r.candidates for r in results]
    assert first._memory == again._memory != {}


def test_episodic_memory_killed_and_started_again(tmp_path: Path) -> None:
    """After every line that the log may end with; a memory file is not added to by a replay."""
    texts = ["add 17 and 25", "add 19 and 24"]
    file = tmp_path / "memory.jsonl"
    whole, _, results = solve_with_memory(texts, log=tmp_path / "whole", memory_file=str(file))
    written = file.read_text()
    solve_with_memory(texts, log=tmp_path / "whole", memory_file=str(file))
    assert file.read_text() == written != ""
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for cut in range(len(lines)):
        log = tmp_path / f"log{cut}"
        log.write_bytes(b"".join(lines[:cut]))
        part, _, replayed = solve_with_memory(texts, log=log)
        assert [r.candidates for r in replayed] == [r.candidates for r in results]
        assert part._memory == whole._memory


def test_episodic_memory_replay_is_exact_among_many_problems(tmp_path: Path) -> None:
    """All in one wave each; killed after any line of the log, the run goes on as if nothing had been."""
    problems = [Problem(text, id=text) for text in ("add 17 and 25", "add 19 and 24", "sing 3", "sing 4")]
    scorers = {"one": ResolvedReward("one", is_one)}

    def run(log: Path) -> tuple[list[Result], Any]:
        strategy = EpisodicMemory(scorer="one", trials=3, own=0)  # helped by others alone
        return solve(
            strategy, problems, backend=ScriptedModel(write_lesson), scorers=scorers, log=log
        ), strategy._memory

    whole, memory = run(tmp_path / "whole")
    assert [result.answer for result in whole] == ["1"] * 4
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for cut in range(len(lines)):
        (tmp_path / str(cut)).write_bytes(b"".join(lines[:cut]))
        results, remembered = run(tmp_path / str(cut))
        assert [r.candidates for r in results] == [r.candidates for r in whole]
        assert list(remembered) == list(memory)


def test_episodic_memory_begins_anew() -> None:
    strategy, _, _ = solve_with_memory(["add 17 and 25"])
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

    backend = ScriptedModel(reply)
    [result] = solve(strategy, [PLAIN], backend=backend, scorers={"one": ResolvedReward("one", one)})
    assert (result.error, result.answer) == (None, "1")
    assert "add[a: integer" in backend.asked[0].prompt
    assert "recall_reflections" not in backend.asked[0].prompt
    assert "- try one" in backend.asked[2].prompt
