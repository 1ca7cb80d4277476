"""The stages `sample` and `evaluate`, on a scripted model whose every figure can be worked out by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from datasets import Dataset

from posttrain_plugins.backends.protocol import Capabilities
from posttrain_plugins.errors import InputError, Interrupted, StageFailed
from posttrain_plugins.record import results
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.rewards.exact_answer import ExactAnswer
from posttrain_plugins.stages.evaluate import Evaluate
from posttrain_plugins.stages.sample import Sample
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.greedy import Greedy
from posttrain_plugins.strategies.self_consistency import SelfConsistency
from posttrain_plugins.text import fingerprint
from posttrain_plugins.training_data.selection import Keep
from posttrain_plugins.types import (
    Completion,
    Generate,
    ModelArtifact,
    ResolvedReward,
    ResolvedStrategy,
    Result,
    StageContext,
    Usage,
)

DATA: list[dict[str, Any]] = [
    {"prompt": [{"role": "user", "content": f"question {i}"}], "solution": str(i), "level": i} for i in range(4)
]


@dataclass
class Scripted:
    """A model that gives the answers of its script in turn, draw by draw, greedy first; it can be killed."""

    identity: str
    script: Mapping[str, list[str]]
    capabilities: Capabilities = field(default_factory=Capabilities)
    left: int = 10**9
    drawn: int = 0
    opened: int = 0
    write: Callable[[str], str] = "<answer>{}</answer>".format

    def generate(self, batch: Any, seeds: Any) -> Iterator[tuple[int, int, Completion]]:
        for i, request in enumerate(batch):
            answers = self.script[request.prompt[-1]["content"]]
            for j in range(request.n):
                if self.drawn == self.left:
                    raise KeyboardInterrupt
                self.drawn += 1
                answer = answers[0] if request.params.temperature == 0 else answers[j]
                yield i, j, Completion(self.write(answer), usage=Usage(5 if j == 0 else 0, 3))


@dataclass
class Told:
    """A reporter that remembers."""

    steps: list[tuple[int, int | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def progress(self, done: int, total: int | None, unit: str, figures: Mapping[str, float]) -> None:
        self.steps.append((done, total))

    def note(self, message: str) -> None:
        self.notes.append(message)


def script(*answers: str) -> dict[str, list[str]]:
    return {f"question {i}": list(digits) for i, digits in enumerate(answers)}


SCRIPTS = {"base": script("0123", "2222", "3322", "4444"), "sft": script("0003", "2111", "2222", "4443")}
CORRECT = ResolvedReward("correct", ExactAnswer())


def shortness(completions: list[Any], **columns: Any) -> list[float | None]:
    return [-float(len(completion[0]["content"])) for completion in completions]


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> dict[str, Scripted]:
    models = {name: Scripted(name, script) for name, script in SCRIPTS.items()}

    @contextmanager
    def opened(artifact: ModelArtifact, *_: Any) -> Iterator[Scripted]:
        models[artifact.name].opened += 1
        yield models[artifact.name]

    monkeypatch.setattr("posttrain_plugins.backends.open.opened", opened)
    return models


def context(folder: Path, stop_after: int = 10**9, **inputs: Any) -> StageContext:
    asked = iter(range(10**9))
    return StageContext(
        stage="it",
        folder=folder,
        seed=3,
        inputs={"dataset": Dataset.from_list(DATA), "rewards": [CORRECT], "strategies": [], **inputs},
        resume_from=None,
        reporter=Told(),
        should_stop=lambda: next(asked) >= stop_after,
    )


def artifact(name: str, **fields: Any) -> ModelArtifact:
    return ModelArtifact(name=name, path=f"/nowhere/{name}", **fields)


def run_sample(folder: Path, **options: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    inputs = {name: options.pop(name) for name in ("strategy", "rewards", "dataset", "reporter") if name in options}
    inputs.setdefault("model", None if options.get("model", "sft") is None else artifact("sft"))
    named = {"model": "sft", "rewards": ["r"] * len(inputs.get("rewards", "1")), "num_generations": 4}
    stage = Sample(dataset="d", **{**named, **options})
    result = stage(context(folder, **inputs))
    assert result.data_path == folder / "data.jsonl"
    return result.metrics, [json.loads(line) for line in result.data_path.read_text().splitlines()]


# --- sample ----------------------------------------------------------------------------------------------------------


def test_best_keeps_one_right_completion_per_problem(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    metrics, rows = run_sample(tmp_path)
    assert rows[0] == {
        "prompt": DATA[0]["prompt"],
        "solution": "0",
        "level": 0,
        "completion": [{"role": "assistant", "content": "<answer>0</answer>"}],
        "reward": 1.0,
    }
    assert [row["level"] for row in rows] == [0, 1, 2, 3]
    assert metrics == {"problems": 4, "completions": 16, "mean_reward": 11 / 16, "rows": 4, "solved_share": 1.0}


def test_pairs_set_a_right_one_against_a_wrong_one(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    _, rows = run_sample(tmp_path, keep="pairs")
    assert [row["level"] for row in rows] == [0, 1, 3]  # problem 2 has no wrong one
    for row in rows:
        assert row["chosen"][0]["content"] == f"<answer>{row['solution']}</answer>" != row["rejected"][0]["content"]
    assert run_sample(tmp_path / "again", keep="pairs")[1] == rows


def test_pairs_without_a_threshold_are_best_against_worst(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    rewards = [CORRECT, ResolvedReward("shortness", shortness, weight=0.1)]
    _, rows = run_sample(tmp_path, keep="pairs", threshold=None, rewards=rewards, max_pairs_per_prompt=3)
    assert [row["level"] for row in rows] == [0, 1, 3]


def test_top_k_and_all_correct(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    assert len(run_sample(tmp_path / "a", keep="all_correct")[1]) == 4  # equal completions are kept once
    assert len(run_sample(tmp_path / "b", keep="top_k", top_k=2, threshold=None)[1]) == 7
    assert len(run_sample(tmp_path / "c", keep="top_k", top_k=2)[1]) == 4


def test_a_strategys_candidates_count(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    strategy = ResolvedStrategy("greedy", Greedy())
    metrics, rows = run_sample(tmp_path, strategy=strategy)
    assert metrics["completions"] == 4
    assert [row["level"] for row in rows] == [0, 2]


def test_rows_of_several_models_say_whose_they_are(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    """Each model draws as if it were alone, and the right one of one may stand over the wrong one of another."""

    def of_both(keep: str) -> list[dict[str, Any]]:
        stage = Sample(dataset="d", rewards=["r"], models=["base", "sft"], num_generations=4, keep=keep)  # type: ignore[arg-type]
        result = stage(context(tmp_path / keep, models=[artifact("base"), artifact("sft")]))
        assert result.metrics["completions"] == 32
        assert set(stage.columns) <= set(json.loads((tmp_path / keep / "data.jsonl").read_text().splitlines()[0]))
        return [json.loads(line) for line in (tmp_path / keep / "data.jsonl").read_text().splitlines()]

    for keep in ("all", "pairs", "ranked"):
        (tmp_path / keep).mkdir()
    rows = of_both("all")
    assert len(rows) == 32, "every draw, equal ones too"
    assert {row["model"] for row in rows} == {"base", "sft"}
    of_third = {row["completion"][0]["content"]: row["model"] for row in rows if row["level"] == 2}
    assert of_third == {"<answer>3</answer>": "base", "<answer>2</answer>": "sft"}, "both wrote 2, the later comes last"
    pairs = of_both("pairs")
    assert (pairs[2]["chosen_model"], pairs[2]["rejected_model"]) == ("sft", "base")
    ranked = of_both("ranked")
    assert ranked[2]["models"] == ["sft", "base"]
    assert (backends["base"].opened, backends["sft"].opened) == (3, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "sft", "models": ["base"]}, "sample has models, and a model beside them"),
        ({"models": ["base"], "keep": "steps", "labels": "rollouts"}, "labels: rollouts, but several models"),
        ({"models": ["base"], "num_generations": 0}, "and num_generations: 0 beside them"),
    ],
)
def test_models_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sample("d", ["r"], **options)


def test_a_model_that_is_named_twice_writes_once(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    def rows(folder: str, *names: str) -> list[Any]:
        stage = Sample(dataset="d", rewards=["r"], models=list(names), num_generations=4, keep="all")  # type: ignore[arg-type]
        (tmp_path / folder).mkdir()
        stage(context(tmp_path / folder, models=[artifact(name) for name in names]))
        return [json.loads(line) for line in (tmp_path / folder / "data.jsonl").read_text().splitlines()]

    assert rows("twice", "base", "sft", "base") == rows("once", "base", "sft")
    assert (backends["base"].opened, backends["sft"].opened) == (2, 2)


def test_nothing_to_keep_is_a_failed_stage(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    with pytest.raises(StageFailed, match="kept nothing of 16") as caught:
        run_sample(tmp_path, threshold=1.5)
    assert "lower threshold" in (caught.value.hint or "")
    with pytest.raises(StageFailed, match="kept nothing") as caught:  # one completion makes no pair
        run_sample(tmp_path / "pairs", threshold=None, keep="pairs", num_generations=1)
    assert (caught.value.hint or "").startswith("raise num_generations")


def test_columns_are_declared() -> None:
    rewards = {keep: [] if keep == "unjudged" else ["r"] for keep in get_args(Keep)}
    columns = {keep: Sample("d", given, "m", keep=keep).columns for keep, given in rewards.items()}
    assert columns == {
        "unjudged": ("prompt", "completions"),
        **dict.fromkeys(("best", "top_k", "all_correct", "all"), ("prompt", "completion", "reward")),
        "pairs": ("prompt", "chosen", "rejected"),
        "labelled": ("prompt", "completion", "label"),
        "ranked": ("prompt", "completions", "scores"),
        "steps": ("prompt", "completions", "labels"),
    }


# --- evaluate --------------------------------------------------------------------------------------------------------


def run_evaluate(folder: Path, strategies: list[ResolvedStrategy], **options: Any) -> Any:
    given = ("models", "rewards", "verifiers", "stop_after")
    inputs = {name: options.pop(name) for name in given if name in options}
    inputs.setdefault("models", [artifact("base"), artifact("sft", ancestors=("rl", "base"))])
    stage = Evaluate(models=["m"], dataset="d", rewards=["r"], **{"num_generations": 4, "plot": False, **options})
    told = context(folder, strategies=strategies, **inputs)
    return stage(told), told.reporter


def test_figures_by_hand(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    strategies = [ResolvedStrategy("greedy", Greedy()), ResolvedStrategy("sc(n=4)", SelfConsistency(n=4))]
    result, told = run_evaluate(tmp_path, strategies)
    figures = result.metrics
    assert figures["base/sampled"] == (0.25 + 0 + 0.5 + 0) / 4
    assert figures["sft/sampled"] == (0.75 + 0.75 + 1 + 0.25) / 4
    assert figures["sft/greedy"] == figures["accuracy"] == 0.5
    assert figures["sft/majority"] == figures["sft/sc(n=4)"] == 0.75
    assert figures["sft/gain"] == pytest.approx(0.5)
    assert figures["sft/gain/greedy"] == pytest.approx(0.25)
    assert figures["sft/gain_low"] <= 0.5 <= figures["sft/gain_high"]
    assert figures["sft/sampled_low"] <= figures["sft/sampled"] <= figures["sft/sampled_high"]
    assert figures["sft/pass@1"] == figures["sft/sampled"]
    assert figures["sft/pass@4"] == 1.0
    assert "base/gain" not in figures
    assert told.steps[-1] == (24, 24)
    assert [done for done, _ in told.steps] == sorted(done for done, _ in told.steps)


def test_completions_that_cannot_be_read_are_told(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    backends["sft"].script = script("0??3", "????", "2222", "4443")
    for model in backends.values():
        model.write = lambda answer: "I do not know." if answer == "?" else f"<answer>{answer}</answer>"
    result, told = run_evaluate(tmp_path, [ResolvedStrategy("sc(n=4)", SelfConsistency(n=4))])
    assert result.metrics["sft/sampled/unread"] == 6
    assert "base/sampled/unread" not in result.metrics
    assert "sampled: 6 of 16 completions have no answer that can be read (reader: auto)" in told.notes
    assert "majority: nothing to vote on in 1 of 4 problems" in told.notes
    assert "sc(n=4): nothing to vote on in 1 of 4 problems" in told.notes
    _, notes = run_evaluate(tmp_path, [], reader="boxed")
    assert sum("16 of 16 completions" in note for note in notes.notes) == 2
    with pytest.raises(InputError, match="no reader"):
        Evaluate(models=["m"], dataset="d", rewards=["r"], reader="box")


def test_strategies_share_the_draws_and_tokens_are_theirs_alone(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    strategies = [
        ResolvedStrategy("sc(n=4)", SelfConsistency(n=4)),
        ResolvedStrategy("best_of_n(n=4, scorer=correct)", BestOfN("correct", n=4), {"correct": CORRECT}),
    ]
    result, _ = run_evaluate(tmp_path, strategies, models=[artifact("sft")])
    assert backends["sft"].drawn == 16
    measures = result.details["models"]["sft"]["measures"]
    assert [measures[name]["tokens"] for name in measures] == [4 * (5 + 4 * 3)] * 4
    assert result.metrics["sft/best_of_n(n=4, scorer=correct) (oracle)"] == 1.0


def test_what_fewer_draws_give_by_hand(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    strategies = [ResolvedStrategy("bon", BestOfN("correct", n=4), {"correct": CORRECT})]
    short = ResolvedReward("short", shortness)
    result, _ = run_evaluate(tmp_path, strategies, models=[artifact("sft")], verifiers=[short])
    figures = result.metrics
    at_k = result.details["models"]["sft"]["measures"]["sampled"]["at_k"]
    assert list(at_k) == [
        "pass",
        "maj",
        "weighted/short",
        "best/short",
        "weighted/correct (oracle)",
        "best/correct (oracle)",
    ]
    # right of 4 draws: 0003 3, 2111 3, 2222 4, 4443 1
    assert figures["sft/pass@2"] == pytest.approx((1 + 1 + 1 + 1 / 2) / 4)
    assert figures["sft/maj@1"] == figures["sft/sampled"] == 11 / 16
    assert figures["sft/maj@2"] == pytest.approx((1 + 1 / 2 + 1 + 0) / 4)  # of 1 to 1 the first drawn: 0x, 2x, 22, 4x
    assert figures["sft/maj@4"] == figures["sft/majority"] == 0.75
    assert figures["sft/best@4/correct (oracle)"] == figures["sft/bon (oracle)"] == figures["sft/pass@4"] == 1.0
    assert figures["sft/best@4/short"] == 0.5  # all equally short: the first drawn
    assert figures["sft/maj@2_low"] <= figures["sft/maj@2"] <= figures["sft/maj@2_high"]
    assert [point["tokens"] for point in at_k["maj"].values()] == [5 + 3, 5 + 6, 5 + 12]
    assert result.details["models"]["sft"]["measures"]["sampled"]["pass_at"]["4"] == 1.0


@dataclass
class Reader:
    """A verifier that reads ten tokens a completion."""

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        return [1.0 for _ in completions]

    def count_tokens(self, prompts: list[Any], completions: list[Any]) -> int:
        return 10 * len(completions)


def test_what_a_verifier_reads_is_in_its_curve_alone(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    different = script("0123", "1230", "2301", "3012")
    backends["sft"].script = different
    result, _ = run_evaluate(tmp_path, [], models=[artifact("sft")], verifiers=[ResolvedReward("rm", Reader())])
    at_k = result.details["models"]["sft"]["measures"]["sampled"]["at_k"]
    tokens = {name: [point["tokens"] for point in curve.values()] for name, curve in at_k.items()}
    assert tokens["maj"] == tokens["pass"] == [5 + 3, 5 + 6, 5 + 12]
    assert tokens["best/rm"] == tokens["weighted/rm"] == [8 + 10, 11 + 20, 17 + 40]


def test_every_strategy_at_every_budget(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    strategies = [ResolvedStrategy("greedy", Greedy()), ResolvedStrategy("sc(n=4)", SelfConsistency(n=4))]
    budgets = [{}, {"completions": 1}, {"tokens": 500, "seconds": 60.5}]
    result, told = run_evaluate(tmp_path, strategies, models=[artifact("sft")], budgets=budgets)
    measures = result.details["models"]["sft"]["measures"]
    assert list(measures) == [
        "sampled",
        "majority",
        "greedy",
        "greedy @ completions=1",
        "greedy @ tokens=500, seconds=60.5",
        "sc(n=4)",
        "sc(n=4) @ completions=1",
        "sc(n=4) @ tokens=500, seconds=60.5",
    ]
    assert result.metrics["sft/sc(n=4)"] == result.metrics["sft/sc(n=4) @ tokens=500, seconds=60.5"] == 0.75
    assert result.metrics["sft/sc(n=4) @ completions=1"] == 0.5  # the first draws: 0, 2, 2, 4
    assert [measures[name]["stopped"] for name in measures] == [0, 0, 0, 0, 0, 0, 4, 0]
    assert result.metrics["accuracy"] == result.metrics["sft/greedy"]
    assert told.steps[-1] == (28, 28)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    (row, *_) = [row for row in samples if row["measure"] == "sc(n=4) @ completions=1"]
    assert (row["stopped_by"], row["tokens"]) == ("completions", 8)


@pytest.mark.parametrize(
    ("budget", "message"),
    [({"token": 5}, "budgets cannot have 'token'"), ({"tokens": 0}, "budgets cannot have tokens: 0, expected more")],
)
def test_budgets_that_cannot_be_read(budget: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Evaluate(models=["m"], dataset="d", rewards=["r"], budgets=[budget])
    assert caught.value.hint


def test_the_front_of_each_model(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    strategies = [
        ResolvedStrategy("greedy", Greedy()),
        ResolvedStrategy("sc(n=4)", SelfConsistency(n=4)),
        ResolvedStrategy("bon", BestOfN("correct", n=4), {"correct": CORRECT}),
    ]
    result, _ = run_evaluate(tmp_path, strategies, models=[artifact("sft")])
    measures = result.details["models"]["sft"]["measures"]
    costs = {name: measure["tokens_per_problem"] for name, measure in measures.items()}
    assert costs == {"sampled": 8, "majority": 17, "greedy": 8, "sc(n=4)": 17, "bon (oracle)": 17}
    # sampled 0.6875 for 8 beats greedy 0.5 for 8; the vote has 0.75 for 17
    assert result.details["pareto"] == {"sft": ["sampled", "majority", "sc(n=4)"]}
    assert [name for name, measure in measures.items() if measure["oracle"]] == ["bon (oracle)"]


def test_models_that_strategies_name_are_loaded_once(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    @dataclass
    class Ask:
        model: str

        def __call__(self, problem: Any) -> Any:
            (said,) = yield Generate(problem.prompt, params=replace(problem.params, temperature=0.0), model=self.model)
            return Result(answer=said.text, text=said.text)

    teacher = ModelArtifact("sft", "/nowhere/sft")
    strategies = [ResolvedStrategy(f"ask {i}", Ask("sft"), models={"sft": teacher}) for i in range(2)]
    result, _ = run_evaluate(tmp_path, strategies, num_generations=0)
    assert [backends[name].opened for name in ("base", "sft")] == [1, 1]
    assert result.metrics["base/ask 0"] == result.metrics["sft/ask 1"] == 0.5
    assert set(result.details["models"]["base"]["measures"]["ask 0"]["usage"]) == {"sft"}
    metrics, _ = run_sample(tmp_path / "sample", strategy=strategies[0])
    assert metrics["rows"] == 0 + 2
    assert backends["sft"].opened == 2  # the model that writes is the one that is named


def test_a_strategy_that_remembers_starts_anew_with_each_model(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    @dataclass
    class Memory:
        seen: list[str] = field(default_factory=list)

        def __call__(self, problem: Any) -> Any:
            yield []
            self.seen.append(problem.id)
            return Result(answer=None, text=str(len(self.seen)))

    strategy = Memory()
    run_evaluate(tmp_path, [ResolvedStrategy("memory", strategy)], num_generations=0)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in samples] == ["1", "2", "3", "4"] * 2
    assert strategy.seen == []


def test_without_matplotlib_a_note_stands_for_the_plot(
    tmp_path: Path, backends: dict[str, Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, told = run_evaluate(tmp_path / "without", [], plot=True)
    assert told.notes == [
        "accuracy_tokens.svg is not drawn, matplotlib is not installed: pip install 'posttrain-plugins[plot]', or "
        "plot: false"
    ]


def test_the_plot_is_drawn(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    pytest.importorskip("matplotlib")
    _, told = run_evaluate(tmp_path, [ResolvedStrategy("greedy", Greedy())], plot=True)
    assert told.notes == []
    assert ">greedy<" in (tmp_path / "accuracy_tokens.svg").read_text()
    assert (tmp_path / "accuracy_tokens.png").stat().st_size > 10_000


def test_samples_can_be_scored_again_and_trained_on(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    run_evaluate(tmp_path / "eval", [], models=[artifact("sft")])
    samples = [json.loads(line) for line in (tmp_path / "eval" / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["solution"] == "0"
    dataset = Dataset.from_list(samples)
    _, saved = run_sample(tmp_path / "saved", dataset=dataset, model=None, rewards=[], keep="pairs")
    _, scored = run_sample(tmp_path / "scored", dataset=dataset, model=None, keep="pairs")
    _, fresh = run_sample(tmp_path / "fresh", keep="pairs")
    pairs = [[(row["chosen"], row["rejected"]) for row in rows] for rows in (saved, scored, fresh)]
    assert pairs[0] == pairs[1] == pairs[2]
    assert len(pairs[0]) == 3


def test_the_files(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    rewards = [CORRECT, ResolvedReward("shortness", shortness)]
    result, _ = run_evaluate(tmp_path, [ResolvedStrategy("greedy", Greedy())], rewards=rewards)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"metrics": result.metrics, **result.details}
    assert result.metrics["sft/greedy/shortness"] == -18.0
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 * (16 + 4)
    assert samples[0]["model"] == "base"
    assert samples[0]["rewards"] == {"correct": 1.0, "shortness": -18.0}


def test_a_killed_evaluation_goes_on_where_it_stood(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    strategies = [ResolvedStrategy("greedy", Greedy())]
    whole, _ = run_evaluate(tmp_path / "whole", strategies)
    total = sum(backend.drawn for backend in backends.values())
    for backend in backends.values():
        backend.drawn = 0
    backends["sft"].left = 8
    with pytest.raises(KeyboardInterrupt):
        run_evaluate(tmp_path / "killed", strategies)
    drawn = sum(backend.drawn for backend in backends.values())
    for backend in backends.values():
        backend.drawn, backend.left = 0, 10**9
    again, _ = run_evaluate(tmp_path / "killed", strategies)
    assert again.metrics == whole.metrics
    assert drawn + sum(backend.drawn for backend in backends.values()) == total


def test_stopping_is_an_interrupt(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    with pytest.raises(Interrupted):
        run_evaluate(tmp_path, [], stop_after=5)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) > 0


def test_gates_are_told_not_raised(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    require = {"accuracy": ">=0.4", "sft/greedy": "> 0.5", "sft/greeedy": "<1"}
    result, _ = run_evaluate(tmp_path, [ResolvedStrategy("greedy", Greedy())], require=require)
    assert result.details["unmet"][0] == "sft/greedy: 0.5, expected > 0.5"
    assert "no such figure" in result.details["unmet"][1]
    assert len(result.details["unmet"]) == 2
    with pytest.raises(InputError, match="about 1"):
        Evaluate(models=["m"], dataset="d", rewards=["r"], require={"accuracy": "about 1"})


def test_problems_that_were_trained_on_are_told(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    seen = tmp_path / "seen.txt"
    seen.write_text("\n".join([fingerprint(DATA[2]["prompt"]), "0" * 16]))
    result, told = run_evaluate(tmp_path, [], models=[artifact("base"), artifact("sft", seen=(seen,))])
    assert result.details["overlap"] == {"base": 0, "sft": 1}
    assert told.notes == ["sft was trained on 1 of the 4 problems"]


def test_a_strategy_that_raises_is_told_and_is_no_wrong_answer(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    def broken(problem: Any) -> Any:
        yield []
        raise ValueError("oh")

    strategies = [ResolvedStrategy("broken", broken)]
    with pytest.raises(StageFailed, match=r"broken: 4 of 4 are missing \(100 %\): ValueError: oh, expected 1 % at"):
        run_evaluate(tmp_path, strategies, num_generations=0)
    result, told = run_evaluate(tmp_path, strategies, num_generations=0, max_missing=1.0)
    assert not {"sft/broken", "accuracy"} & set(result.metrics)
    assert result.metrics["sft/broken/missing"] == 4
    assert told.notes[0] == "broken: 4 of 4 are missing (100 %): ValueError: oh"


def test_an_infinite_reward_is_no_figure(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    def depth(completions: list[Any], **columns: Any) -> list[float | None]:
        return [float("-inf") if completion[0]["content"].endswith("0</answer>") else 1.0 for completion in completions]

    rewards = [CORRECT, ResolvedReward("depth", depth)]
    result, _ = run_evaluate(tmp_path, [ResolvedStrategy("greedy", Greedy())], rewards=rewards)
    json.dumps([result.metrics, result.details], allow_nan=False)
    assert "sft/greedy" in result.metrics
    assert "sft/greedy/depth" not in result.metrics
    only, _ = run_evaluate(tmp_path / "only", [ResolvedStrategy("greedy", Greedy())], rewards=rewards[1:])
    json.dumps([only.metrics, only.details], allow_nan=False)
    metrics, _ = run_sample(tmp_path / "sample", rewards=rewards, threshold=None)
    assert "mean_reward" not in metrics


def test_two_evaluations_of_one_model_are_told_as_one(tmp_path: Path, backends: dict[str, Scripted]) -> None:
    greedy = [ResolvedStrategy("greedy", Greedy())]
    models = [artifact("base"), artifact("sft", ancestors=("base",))]
    evaluations = {
        "first": run_evaluate(tmp_path / "first", [], models=models)[0],
        "second": run_evaluate(tmp_path / "second", greedy, num_generations=0, models=models)[0],
        "third": run_evaluate(tmp_path / "third", greedy, num_generations=0, models=models[1:])[0],
    }
    manifest = {"from": (), "makes": "figures", "seconds": 1.0}
    artifacts = {
        name: Artifact(tmp_path, {**manifest, "metrics": result.metrics, "details": result.details})
        for name, result in evaluations.items()
    }
    told = {row.stage: row for row in results.rows(artifacts)}
    assert told["sft"].sampled is not None
    assert told["sft"].sampled[0] == evaluations["first"].metrics["sft/sampled"]
    assert told["sft"].gain is not None
    assert told["sft"].gain[0] == evaluations["first"].metrics["sft/gain"]
    assert told["sft"].greedy == 0.5


@pytest.mark.parametrize("bits", [4, 8])
def test_a_reward_model_on_a_quantized_base_is_loaded_as_the_recipe_says(bits: int) -> None:
    from posttrain_plugins.models.load import inference_options
    from posttrain_plugins.recipe.spec import REWARD_LOADING
    from posttrain_plugins.rewards.reward_model import RewardModel

    loading: dict[str, Any] = {"bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": True, "model_revision": "v2"}
    how = {name: value for name, value in {**loading, f"load_in_{bits}bit": True}.items() if name in REWARD_LOADING}
    options = inference_options(RewardModel("somewhere", **how).classifier.loading, "SequenceClassification")
    config = options["quantization_config"]
    assert options["revision"] == "v2"
    assert (config.load_in_4bit, config.load_in_8bit) == (bits == 4, bits == 8)
    if bits == 4:
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("fp4", True)


def test_a_real_model_from_a_folder(tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from posttrain_plugins.tiny_world import tokenizer

    config = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    ids = {"num_key_value_heads": 2, "intermediate_size": 16, "eos_token_id": 1, "pad_token_id": 0}
    torch.set_num_threads(1)  # more only hurt a model this small
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **config, **ids)).save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    base = ModelArtifact("base", str(tmp_path / "m"), loading={"dtype": "float32"})
    greedy = [ResolvedStrategy("greedy", Greedy())]
    results = [run_evaluate(tmp_path / n, greedy, models=[base], max_tokens=4)[0].metrics for n in "ab"]
    assert results[0] == results[1]
    stage = Sample(model="base", dataset="d", rewards=["r"], keep="best", threshold=None, max_tokens=4)
    made = stage(context(tmp_path / "c", model=base))
    assert made.metrics["completions"] == 32
    assert made.metrics["rows"] == 4
