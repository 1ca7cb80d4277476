"""A plugin that calls `sys.exit` ends no run without a word: it has failed, and is named."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins as pp
from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.engine.log import RequestLog
from posttrain_plugins.engine.scoring import Scored, score
from posttrain_plugins.engine.solve import solve
from posttrain_plugins.errors import PluginBroken, PosttrainError, StageFailed
from posttrain_plugins.plugins import registry
from posttrain_plugins.testing.running import run_checks
from posttrain_plugins.types import CallTool, Completion, Generate, Problem, ResolvedReward, Result

PLUGINS = """
import sys
from dataclasses import dataclass, field

def exits(completions, **columns):
    sys.exit(3)

async def exits_async(completions, **columns):
    sys.exit(3)

@dataclass
class Exits:
    after: int = 0
    calls: int = 0

    def __call__(self, completions, **columns):
        self.calls += 1
        if self.calls > self.after:
            parse(["--no-such-option"])
        return [float(len(str(text))) for text in completions]

def parse(arguments):
    import argparse
    argparse.ArgumentParser().parse_args(arguments)

@dataclass
class Refuses:
    def __post_init__(self):
        sys.exit("no licence")

    def __call__(self, completions, **columns):
        return [0.0 for _ in completions]

def rows():
    sys.exit(1)

@dataclass
class Stage:
    produces = "figures"

    def __call__(self, context):
        sys.exit(0)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(PLUGINS, encoding="utf-8")
    (tmp_path / "at_import.py").write_text("import sys\nsys.exit(2)\ndef reward(completions, **columns): ...\n")
    return tmp_path


class Answers:
    identity = "answers"
    capabilities = Capabilities()

    def generate(
        self, batch: Sequence[Generate], seeds: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, int, Completion]]:
        for i, of_request in enumerate(seeds):
            for j in range(len(of_request)):
                yield i, j, Completion("4")


def leave(**arguments: Any) -> str:
    sys.exit(3)


def test_at_import(folder: Path) -> None:
    with pytest.raises(PluginBroken, match=r"reward plugin 'reward' \(.*at_import.py:reward\) .*: SystemExit: 2"):
        registry.load("reward", "./at_import.py:reward", folder)


def test_a_strategy_loses_its_problem(folder: Path) -> None:
    def strategy(problem: Problem) -> Iterator[Any]:
        answer = yield Generate(problem.prompt, n=1)
        if problem.id == "bad":
            sys.exit(3)
        return Result(answer[0].text, answer[0].text)

    bad, good = solve(strategy, [Problem("p", id="bad"), Problem("p", id="good")], backend=Answers())
    assert (bad.error, good.answer) == ("SystemExit: 3", "4")


def test_a_tool_answers_with_it() -> None:
    def strategy(problem: Problem) -> Iterator[Any]:
        found = yield CallTool("leave", {})
        return Result(found, found)

    (result,) = solve(strategy, [Problem("p")], backend=Answers(), tools={"leave": leave})
    assert result.answer == "error: SystemExit: 3"


@pytest.mark.parametrize("name", ["exits", "exits_async", "Exits"])
def test_a_scorer_is_named(name: str, folder: Path) -> None:
    loaded = registry.load("reward", f"./mine.py:{name}", folder)
    reward = ResolvedReward("mine", loaded() if isinstance(loaded, type) else loaded)
    with pytest.raises(PluginBroken, match=r"reward 'mine' failed: SystemExit: [23]"):
        score(reward, [Scored("0", "p", "text")], RequestLog())


@pytest.mark.parametrize(
    ("stage", "error", "told"),
    [
        ("use: ./mine.py:Stage", StageFailed, r"stage 'it' failed at mine.py:\d+ in __call__: SystemExit: 0"),
        (
            "{use: sample, model: base, dataset: {use: './mine.py:rows'}, rewards: [length]}",
            PluginBroken,
            "dataset 'mine.py:rows' failed: SystemExit: 1",
        ),
        (
            "{use: sample, model: base, dataset: d, rewards: [{use: './mine.py:Refuses'}]}",
            PosttrainError,
            "SystemExit: no licence",
        ),
    ],
)
def test_what_a_recipe_names(
    stage: str, error: type[Exception], told: str, folder: Path, tiny_model: Path, write_recipe: Callable[..., Path]
) -> None:
    head = "name: exits\nmodel: {model}\ndatasets: {d: {use: digit_chain, size: 2}}\nstages:\n  it: "
    body = stage if stage.startswith("{") else f"{{{stage}}}"
    with pytest.raises(error, match=told):
        pp.run(write_recipe(head + body, model=tiny_model), runs_dir=folder / "runs")


def test_conformance_checks_tell_it(folder: Path) -> None:
    found = run_checks("reward", registry.load("reward", "./mine.py:exits", folder))
    reasons = {one.check: one.reason for one in found}
    assert "SystemExit: 3" in reasons["check_one_value_per_completion"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "place"),
    [
        ("exits", r"mine.py:\d+ in exits: SystemExit: 3"),
        ("exits_async", r"mine.py:\d+ in exits_async: SystemExit: 3"),
        ("Exits", r"argparse.py:\d+ in exit: SystemExit: 2"),
    ],
)
def test_a_reward_that_trains_is_named(
    reward: str, place: str, folder: Path, tiny_model: Path, tiny_data: Path, write_recipe: Callable[..., Path]
) -> None:
    """An asynchronous one took the trainer's event loop with it, and the run waited for ever."""
    recipe = write_recipe(
        """
        name: exits
        model: {model}
        rewards: {mine: {use: "./mine.py:{reward}"}, other: {use: "./mine.py:Exits", after: 9}}
        stages:
          it:
            use: grpo
            model: base
            dataset: {path: "{data}/problems.jsonl"}
            rewards: [other, mine]
            args: {max_steps: 2, per_device_train_batch_size: 4, num_generations: 4, max_completion_length: 4,
                   gradient_checkpointing: false}
        """,
        model=tiny_model,
        data=tiny_data,
        reward=reward,
    )
    with pytest.raises(StageFailed, match=f"^stage 'it' failed in reward 'mine' at {place}") as caught:
        pp.run(recipe, runs_dir=folder / "runs")
    assert caught.value.hint == "on_error: none on the reward counts such a score as failed, and the run goes on"
