"""What the fields of a strategy refer to (scorers, models, strategies, objects), in recipes and outside of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from posttrain_plugins import api
from posttrain_plugins.backends.open import opened
from posttrain_plugins.errors import InputError, Mistake, RecipeErrors
from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.plan import keys
from posttrain_plugins.recipe.read import document
from posttrain_plugins.recipe.run.inputs import Resolver
from posttrain_plugins.recipe.spec import External, FromStage, Object, Policy, Recipe, Use
from posttrain_plugins.record.artifact import Artifact
from posttrain_plugins.strategies.best_of_n import BestOfN
from posttrain_plugins.strategies.greedy import Greedy
from posttrain_plugins.types import (
    Completion,
    DataRef,
    Generate,
    ModelArtifact,
    ModelRef,
    ObjectRef,
    Problem,
    ResolvedReward,
    Result,
    RewardRef,
    StrategyRef,
    Usage,
)

HERE = __name__


@dataclass
class Council:
    """Asks a judge; every kind of reference, one or several."""

    judge: ModelRef = "policy"
    members: list[ModelRef] = field(default_factory=list)
    scorers: list[RewardRef] = field(default_factory=list)
    fallback: StrategyRef | None = None
    strategies: list[StrategyRef] = field(default_factory=list)
    tools: list[ObjectRef] | None = None
    n: int = 2

    def __call__(self, problem: Problem) -> Generator[Generate, list[Completion], Result]:
        (said,) = yield Generate(problem.prompt, model=self.judge)
        return Result(answer=said.text, text=said.text)


@dataclass
class Loyal:
    """Its default refers to something too."""

    judge: ModelRef = "sft"

    def __call__(self, problem: Problem) -> Any: ...


@dataclass
class Verifier:
    """A reward over a trained model that is no plain classifier."""

    model_name_or_path: str
    separator: str = "\n\n"
    aggregate: str = "min"
    dtype: str = "auto"

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        return [1.0 for _ in completions]


@dataclass
class Panel:
    """A reward of other rewards, a model and an object."""

    rewards: list[RewardRef]
    model: ModelRef | None = None
    render: ObjectRef | None = None

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        return [1.0 for _ in completions]


@dataclass
class TrainVerifier:
    """A stage whose reward is used through another plugin than `reward_model`."""

    model: ModelRef
    dataset: DataRef

    produces: ClassVar[str] = "reward"
    reward_plugin: ClassVar[str] = f"{HERE}:Verifier"

    def __call__(self, context: Any) -> Any: ...


RECIPE = f"""\
name: panel
model: ./base
datasets:
  problems: {{use: digit_chain, size: 8}}
  demos: {{path: demos.jsonl}}
rewards:
  correct: {{use: exact_answer}}
stages:
  sft: {{use: sft, model: base, dataset: demos}}
  rm: {{use: reward, model: sft, dataset: pairs.jsonl}}
  prm: {{use: '{HERE}:TrainVerifier', model: sft, dataset: demos}}
  grpo: {{use: grpo, model: sft, dataset: problems, rewards: [correct]}}
  eval:
    use: evaluate
    models: [base]
    dataset: problems
    rewards: [correct]
    strategies:
      - STRATEGY
"""
COUNCIL = f"use: '{HERE}:Council'"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "base" / name).write_text("{}")
    (tmp_path / "demos.jsonl").write_text('{"prompt": "1+1", "completion": "2"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "1+1", "chosen": "2", "rejected": "3"}\n')
    (tmp_path / "tools.py").write_text("def calculator(expression: str) -> str:\n    return str(len(expression))\n")
    (tmp_path / "mine.py").write_text(
        "raise RuntimeError('validate must not import this')\n"
        "from dataclasses import dataclass\nfrom posttrain_plugins.types import ModelRef, StrategyRef\n"
        "@dataclass\nclass Mine:\n    judges: list[ModelRef]\n    inner: StrategyRef | None = None\n"
        "    def __call__(self, problem): ...\n"
    )
    return tmp_path


@pytest.fixture
def read(folder: Path) -> Callable[[str], Recipe]:
    def read_text(strategy: str) -> Recipe:
        (folder / "r.yaml").write_text(RECIPE.replace("STRATEGY", strategy), encoding="utf-8")
        return check(document.load(folder / "r.yaml"))

    return read_text


@pytest.fixture
def mistakes(read: Callable[[str], Recipe]) -> Callable[[str], list[Mistake]]:
    def find(strategy: str) -> list[Mistake]:
        with pytest.raises(RecipeErrors) as caught:
            read(strategy)
        return caught.value.mistakes

    return find


def strategy_of(recipe: Recipe) -> Use:
    (found,) = recipe.stage("eval").inputs["strategies"]  # type: ignore[misc]
    assert isinstance(found, Use)
    return found


# --- in recipes ------------------------------------------------------------------------------------------------------


def test_every_kind_of_reference_is_an_edge(read: Callable[[str], Recipe], folder: Path) -> None:
    nested = "{use: best_of_n, n: 16, scorer: rm}"
    recipe = read(
        f"{{{COUNCIL}, judge: grpo, members: [policy, base, sft], scorers: [correct, prm], "
        f"strategies: [greedy, self_consistency(n=8), {nested}], tools: ['./tools.py:calculator'], n: 3}}"
    )
    found = strategy_of(recipe)
    assert found.params == {"n": 3}
    assert found.refs["judge"] == FromStage("grpo", "model")
    assert found.refs["members"] == (Policy(), External("base", str(folder / "base"), {}), FromStage("sft", "model"))
    correct, prm = found.refs["scorers"]  # type: ignore[misc]
    assert (correct.name, prm) == ("correct", FromStage("prm", "reward", f"{HERE}:Verifier"))
    greedy, consistent, best = found.refs["strategies"]  # type: ignore[misc]
    assert [use.name for use in (greedy, consistent, best)] == [
        "greedy",
        "self_consistency(n=8)",
        "best_of_n(n=16, scorer=rm)",
    ]
    assert best.refs == {"scorer": FromStage("rm", "reward", "reward_model")}
    assert found.refs["tools"] == (Object(f"{folder / 'tools.py'}:calculator"),)
    assert "fallback" not in found.refs
    assert recipe.stage("eval").parents() == ("grpo", "sft", "prm", "rm")
    assert recipe.stages[-1].id == "eval"


def test_a_label_shows_what_is_inside_and_no_folder(read: Callable[[str], Recipe], folder: Path) -> None:
    nested = "{use: best_of_n, n: 16, scorer: rm}"
    recipe = read(f"{{{COUNCIL}, strategies: [greedy, {nested}], tools: ['./tools.py:calculator'], n: 3}}")
    assert strategy_of(recipe).name == (
        f"{HERE}:Council(strategies=[greedy, best_of_n(n=16, scorer=rm)], tools=[tools.py:calculator], n=3)"
    )
    assert str(folder) not in strategy_of(recipe).name


def test_defaults_are_references_too(read: Callable[[str], Recipe]) -> None:
    assert strategy_of(read(f"{{{COUNCIL}}}")).refs == {
        "judge": Policy(),
        "members": (),
        "scorers": (),
        "strategies": (),
    }
    loyal = read(f"'{HERE}:Loyal'")
    assert loyal.stage("eval").parents() == ("sft",)
    told = read(f"{{{COUNCIL}, fallback: null, tools: null}}")
    assert not {"fallback", "tools"} & set(strategy_of(told).refs)


def test_a_strategy_in_a_file_is_read_and_not_imported(read: Callable[[str], Recipe]) -> None:
    found = strategy_of(read("{use: './mine.py:Mine', judges: [sft, policy], inner: best_of_n(scorer=rm)}"))
    assert found.refs["judges"] == (FromStage("sft", "model"), Policy())
    assert found.name == "mine.py:Mine(judges=[sft, policy], inner=best_of_n(scorer=rm))"


MISTAKES = {
    "model": ("judge: grop", "grop", "unknown model 'grop'", "did you mean 'grpo'?"),
    "policy": ("judge: polcy", "polcy", "unknown model 'polcy'", "did you mean 'policy'?"),
    "model in a list": ("members: [policy, stf]", "stf", "unknown model 'stf'", "did you mean 'sft'?"),
    "not a model": ("judge: rm", "rm", "stage 'rm' makes a reward, expected a model", None),
    "not a reward": ("scorers: [sft]", "sft", "stage 'sft' makes a model, expected a reward", None),
    "reward": ("scorers: [corect]", "corect", "unknown reward 'corect'", "did you mean 'correct'?"),
    "no list": ("scorers: rm", "rm", "'scorers' is 'rm', expected a list", "scorers: [rm]"),
    "strategy": ("strategies: [gredy]", "gredy", "unknown strategy 'gredy'", "did you mean 'greedy'?"),
    "inside": ("strategies: [{use: best_of_n, scorer: rmm}]", "rmm", "unknown reward 'rmm'", "did you mean 'rm'?"),
    "key inside": (f"fallback: '{HERE}:Loyal(m=3)'", "fallback", "unknown key 'm' in strategy", "it takes 'judge'"),
    "tool": (
        "tools: ['./tools.py:calclator']",
        "'./tools",
        "tools.py has no 'calclator'",
        "did you mean 'calculator'?",
    ),
    "tool file": ("tools: ['./tool.py:calculator']", "'./tool.py", "no file", None),
    "server": ("judge: 'http://host/v1'", "'http", "no model is named for the server", "http://host/v1#MODEL"),
    "no text": ("judge: 3", "3", "'3' is no reference to a model", None),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_told_once_and_at_its_place(mistakes: Callable[[str], list[Mistake]], name: str) -> None:
    written, place, message, hint = MISTAKES[name]
    text = f"{{{COUNCIL}, {written}}}"
    (mistake,) = mistakes(text)
    assert message in mistake.message
    assert hint is None or mistake.hint == hint
    assert mistake.line == RECIPE[: RECIPE.index("STRATEGY")].count("\n") + 1
    assert f"      - {text}"[mistake.column - 1 :].startswith(place)


def test_a_circle_through_a_judge_is_told(folder: Path) -> None:
    text = RECIPE.replace("STRATEGY", "greedy") + (
        f"  made: {{use: sample, model: sft, dataset: problems, rewards: [correct], "
        f"strategy: {{{COUNCIL}, judge: tuned}}}}\n"
        "  tuned: {use: sft, model: sft, dataset: made}\n"
    )
    (folder / "r.yaml").write_text(text)
    with pytest.raises(RecipeErrors, match="cycle: made -> tuned -> made"):
        check(document.load(folder / "r.yaml"))


def test_columns_that_a_nested_scorer_needs(mistakes: Callable[[str], list[Mistake]], folder: Path) -> None:
    (folder / "needy.py").write_text("def needy(completions, level, **columns): ...\n")
    (mistake,) = mistakes(f"{{{COUNCIL}, strategies: [{{use: best_of_n, scorer: './needy.py:needy'}}]}}")
    assert "missing column: reward 'needy.py:needy' needs 'level'" in mistake.message


# --- keys ------------------------------------------------------------------------------------------------------------


def parts(recipe: Recipe, folder: Path, **changed: str) -> dict[str, str]:
    stage_keys = {stage.id: f"key of {stage.id}" for stage in recipe.stages} | changed
    return keys.parts_of(recipe.stage("eval"), 0, stage_keys, keys.HashCache(folder / "hashes.json"))


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def test_what_is_inside_a_strategy_is_in_the_key(read: Callable[[str], Recipe], folder: Path) -> None:
    text = (
        f"{{{COUNCIL}, judge: grpo, members: [policy, base], strategies: [{{use: best_of_n, scorer: rm}}], "
        "tools: ['./tools.py:calculator']}"
    )
    before = parts(read(text), folder)
    assert before["strategies[0].judge"] == "key of grpo"
    assert before["strategies[0].members[0]"] == "policy"
    assert changes(before, parts(read(text), folder, rm="another")) == {"strategies[0].strategies[0].scorer"}
    other = text.replace("[policy, base]", "[policy, sft]")
    assert changes(before, parts(read(other), folder)) == {"strategies[0].members[1]"}
    (folder / "tools.py").write_text("def calculator(expression: str) -> str:\n    return expression\n")
    assert changes(before, parts(read(text), folder)) == {"strategies[0].tools[0]"}


# --- resolved --------------------------------------------------------------------------------------------------------


def artifact(folder: Path, name: str, makes: str = "model", use: str = "sft", **manifest: Any) -> Artifact:
    made = folder / "runs" / "panel" / f"{name}-0"
    (made / "model").mkdir(parents=True)
    told = {"makes": makes, "use": use, "plugin": "posttrain-plugins 0.1.0", "handoff": {}, "model_path": "model"}
    told |= {"metrics": {}, "details": {}, "data_path": None, "key": name, "stage": name, **manifest}
    (made / "manifest.json").write_text(json.dumps(told))
    latest = made.parent / "latest"
    latest.mkdir(exist_ok=True)
    (latest / name).symlink_to(made)
    return Artifact(made, told)


@pytest.fixture
def artifacts(folder: Path) -> dict[str, Artifact]:
    verifier = {"plugin": f"{HERE}:TrainVerifier", "use": "TrainVerifier", "makes": "reward"}
    return {
        "sft": artifact(folder, "sft", loading={"dtype": "float32"}),
        "grpo": artifact(folder, "grpo"),
        "rm": artifact(folder, "rm", "reward", "reward"),
        "prm": artifact(folder, "prm", handoff={"reward": {"separator": ";", "aggregate": "prod"}}, **verifier),
        "eval": artifact(folder, "eval", "figures", "evaluate", model_path=None),
    }


def test_objects_names_scorers_and_models(
    read: Callable[[str], Recipe], folder: Path, artifacts: dict[str, Artifact]
) -> None:
    best = "{use: best_of_n, n: 4, scorer: prm}"
    inner = f"{{{COUNCIL}, judge: sft, strategies: [{best}]}}"
    recipe = read(
        f"{{{COUNCIL}, judge: grpo, members: [policy, base], scorers: [correct, rm], "
        f"fallback: {inner}, strategies: [greedy, {best}], tools: ['./tools.py:calculator']}}"
    )
    (found,) = Resolver(recipe, artifacts).inputs(recipe.stage("eval"))["strategies"]
    council = found.strategy
    assert isinstance(council, Council)
    assert (council.judge, council.members, council.scorers) == ("grpo", ["policy", "base"], ["correct", "rm"])
    assert council.tools is not None
    assert council.tools[0]("12345") == "5"  # type: ignore[operator]
    assert council.strategies == [Greedy(), BestOfN("prm", n=4)]
    assert council.fallback == Council(judge="sft", strategies=[BestOfN("prm", n=4)])  # type: ignore[list-item]
    assert {role: model.path for role, model in found.models.items()} == {
        "grpo": str(artifacts["grpo"].model_path),
        "base": str(folder / "base"),
        "sft": str(artifacts["sft"].model_path),
    }
    assert set(found.scorers) == {"correct", "rm", "prm"}


def test_a_reward_stage_is_used_through_its_own_plugin(
    read: Callable[[str], Recipe], artifacts: dict[str, Artifact]
) -> None:
    recipe = read("{use: best_of_n, scorer: prm}")
    (found,) = Resolver(recipe, artifacts).inputs(recipe.stage("eval"))["strategies"]
    reward = found.scorers["prm"]
    assert reward.func == Verifier(str(artifacts["prm"].model_path), separator=";", aggregate="prod")
    assert reward.model_path is None  # TRL must not load it as a classifier


def test_a_reward_model_is_one_object_however_often_it_is_named(
    read: Callable[[str], Recipe], artifacts: dict[str, Artifact]
) -> None:
    recipe = read("{use: best_of_n, scorer: rm}\n      - {use: best_of_n, scorer: rm, weighted: true}")
    first, second = Resolver(recipe, artifacts).inputs(recipe.stage("eval"))["strategies"]
    assert first.scorers["rm"].func is second.scorers["rm"].func
    assert first.scorers["rm"].model_path == str(artifacts["rm"].model_path)


def test_a_rewards_own_references(read: Callable[[str], Recipe], folder: Path, artifacts: dict[str, Artifact]) -> None:
    panel = f"{{use: '{HERE}:Panel', rewards: [correct, rm], model: grpo, render: './tools.py:calculator'}}"
    recipe = read(f"{{use: best_of_n, scorer: {panel}}}")
    assert recipe.stage("eval").parents() == ("rm", "grpo")
    (found,) = Resolver(recipe, artifacts).inputs(recipe.stage("eval"))["strategies"]
    (reward,) = found.scorers.values()
    correct, rm = reward.func.rewards
    assert (correct.name, rm.name, rm.model_path) == ("correct", "rm", str(artifacts["rm"].model_path))
    assert reward.func.model.path == str(artifacts["grpo"].model_path)
    assert reward.func.render("123") == "3"
    assert {"strategies[0].scorer.rewards[1]", "strategies[0].scorer.model"} <= set(parts(recipe, folder))


def test_a_server_is_a_model(read: Callable[[str], Recipe], folder: Path, artifacts: dict[str, Artifact]) -> None:
    url = "http://localhost:8000/v1#org/judge"
    recipe = read(f"{{{COUNCIL}, judge: '{url}'}}")
    assert parts(recipe, folder)["strategies[0].judge"] == url
    (found,) = Resolver(recipe, artifacts).inputs(recipe.stage("eval"))["strategies"]
    assert found.models == {url: ModelArtifact(url, url)}
    assert found.strategy.judge == url


def test_the_backend_of_a_server_in_a_stage() -> None:
    pytest.importorskip("openai")
    with opened(ModelArtifact("judge", "http://localhost:8000/v1#org/judge")) as backend:
        assert (backend.identity, backend.model) == ("judge", "org/judge")  # type: ignore[union-attr]


# --- outside of recipes ----------------------------------------------------------------------------------------------


def resolve(spec: Any, folder: Path, **options: Any) -> Any:
    return api.resolve_strategy(spec, runs_dir=folder / "runs", **options)


def test_a_text_finds_its_rewards_and_models(folder: Path, artifacts: dict[str, Artifact]) -> None:
    inner = "['greedy', 'best_of_n(n=3, scorer=\"length(max_chars=9)\")']"
    scorers = "['digit_chain_steps', 'panel:prm', 'panel:rm']"
    text = f"{HERE}:Council(judge='panel:sft', members=['policy'], scorers={scorers}, strategies={inner})"
    found = resolve(text, folder)
    label = text.replace("'", "")
    assert found.label == label
    again = resolve(label, folder)  # what is printed can be typed
    assert (again.label, again.strategy, list(again.scorers)) == (label, found.strategy, list(found.scorers))
    council = found.strategy
    assert (council.judge, council.members) == ("panel:sft", ["policy"])
    assert council.scorers == ["digit_chain_steps", "panel:prm", "panel:rm"]
    assert council.strategies == [Greedy(), BestOfN("length(max_chars=9)", n=3)]
    assert found.models == {
        "panel:sft": ModelArtifact("panel:sft", str(artifacts["sft"].model_path), {"dtype": "float32"})
    }
    assert list(found.scorers) == [*council.scorers, "length(max_chars=9)"]
    verifier = found.scorers["panel:prm"].func
    assert verifier == Verifier(str(artifacts["prm"].model_path), separator=";", aggregate="prod")
    assert found.scorers["panel:rm"].func.model_name_or_path == str(artifacts["rm"].model_path)
    assert found.scorers["length(max_chars=9)"].func.max_chars == 9


def shortness(completions: list[Any], **columns: Any) -> list[float | None]:
    return [-float(len(completion)) for completion in completions]


def test_scorers_that_have_a_name_already(folder: Path, artifacts: dict[str, Artifact]) -> None:
    given = ResolvedReward("rm", shortness)
    assert resolve("best_of_n(scorer=rm)", folder, scorers={"rm": given}).scorers == {"rm": given}
    assert resolve("best_of_n(scorer=rm)", folder, scorers={"rm": shortness}).scorers["rm"].func is shortness
    by_text = resolve("best_of_n(scorer=rm)", folder, scorers=["rm=length(max_chars=7)", "exact_answer"])
    assert by_text.scorers["rm"].func.max_chars == 7
    assert list(by_text.scorers) == ["rm", "exact_answer"]
    with pytest.raises(InputError, match="unknown reward 'rmm'") as caught:
        resolve("best_of_n(scorer=rmm)", folder, scorers=["rm=exact_answer"])
    assert caught.value.hint == "did you mean 'rm'?"


def test_a_rewards_own_references_in_a_text(folder: Path, artifacts: dict[str, Artifact]) -> None:
    panel = f"{HERE}:Panel(rewards=['length(max_chars=3)', 'panel:rm'], model='panel:grpo')"
    found = resolve({"use": "best_of_n", "scorer": panel}, folder)
    panel = panel.replace("'", "")
    length, rm = found.scorers[panel].func.rewards
    assert (length.func.max_chars, rm.func.model_name_or_path) == (3, str(artifacts["rm"].model_path))
    assert found.scorers[panel].func.model.path == str(artifacts["grpo"].model_path)


def test_an_object_stays_the_same_unless_it_names_a_strategy(folder: Path) -> None:
    made = BestOfN("exact_answer", n=2)
    found = resolve(made, folder)
    assert found.strategy is made
    assert list(found.scorers) == ["exact_answer"]
    nested = resolve(Council(strategies=["greedy", made], fallback="best_of_n(scorer=length)"), folder)  # type: ignore[list-item]
    assert nested.strategy.strategies == [Greedy(), made]
    assert nested.strategy.fallback == BestOfN("length")
    assert list(nested.scorers) == ["length", "exact_answer"]

    def plain(problem: Problem) -> Any: ...

    assert resolve(plain, folder).strategy is plain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HERE}:Council(judge='panel:stf')", "run 'panel' has no finished stage 'stf'"),
        (f"{HERE}:Council(judge='panel:eval')", "stage 'eval' of run 'panel' made no model"),
        (f"{HERE}:Council(scorers=['panel:sft'])", "stage 'sft' of run 'panel' makes a model, expected a reward"),
        (f"{HERE}:Council(scorers=rm)", "'scorers' is 'rm', expected a list"),
        (f"{HERE}:Council(strategies=['gredy'])", "unknown strategy 'gredy'"),
        ("self_consistency(m=3)", "unknown key 'm' in strategy 'self_consistency'"),
        ("best_of_n(scorer='lenght')", "unknown reward 'lenght'"),
    ],
)
def test_what_cannot_be_resolved_is_told(folder: Path, artifacts: dict[str, Artifact], text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as caught:
        resolve(text, folder)
    assert caught.value.hint or "made no model" in message or "expected a reward" in message


@dataclass
class Parrot:
    """A backend that says its own name."""

    identity: str
    capabilities: Any = None
    closed: int = 0

    def generate(self, batch: Any, seeds: Any) -> Any:
        for i, request in enumerate(batch):
            for j in range(request.n):
                yield i, j, Completion(self.identity, usage=Usage(1, 1))

    def close(self) -> None:
        self.closed += 1


def test_solve_opens_the_models_that_a_strategy_names_and_closes_them(
    folder: Path, artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain_plugins.backends.protocol import Capabilities

    opened: dict[str, tuple[Parrot, dict[str, Any]]] = {}

    def open_parrot(where: str, **options: Any) -> Parrot:
        opened[where] = (Parrot(where, Capabilities()), options)
        return opened[where][0]

    monkeypatch.setattr(api, "backend", open_parrot)
    policy = Parrot("policy", Capabilities())
    spec = f"{HERE}:Council(judge='panel:sft')"
    (result,) = api.solve(spec, ["2+2=?"], backend=policy, runs_dir=folder / "runs")
    path = str(artifacts["sft"].model_path)
    assert result.text == path
    assert set(result.usage) == {"panel:sft"}
    assert (opened[path][0].closed, policy.closed) == (1, 0)
    assert opened[path][1]["dtype"] == "float32"
    judge = Parrot("mine", Capabilities())
    given = {"policy": policy, "panel:sft": judge}
    (result,) = api.solve(spec, ["2+2=?"], backend=given, runs_dir=folder / "runs")
    assert (result.text, judge.closed) == ("mine", 0)


def test_backends_of_servers_and_engines() -> None:
    pytest.importorskip("openai")
    backend: Any = api.backend("http://host:8000/v1", model="m", api_key="k")
    assert (type(backend).__name__, backend.model, backend.identity) == ("OpenAIBackend", "m", "m")
    behind: Any = api.backend("http://host:8000/v1#org/m", api_key="k", options={"identity": "weights"})
    assert (behind.model, behind.identity) == ("org/m", "weights")
    with pytest.raises(InputError, match=r"cannot reach the endpoint http://127\.0\.0\.1:9/v1") as caught:
        api.backend("http://127.0.0.1:9/v1")  # it would have been asked which models it has
    assert caught.value.hint
    with pytest.raises(InputError, match="engine is 'vlm', expected 'transformers', 'vllm' or the URL"):
        api.backend("/nowhere", engine="vlm")


def test_an_evaluation_from_the_command_line_knows_runs_too(folder: Path, artifacts: dict[str, Artifact]) -> None:
    (folder / "runs" / "panel" / "sft-0" / "model" / "config.json").write_text("{}")
    (folder / "runs" / "panel" / "sft-0" / "model" / "model.safetensors").write_text("")
    spec = f"{HERE}:Council(judge='panel:sft', strategies=['best_of_n(n=2, scorer=\"panel:prm\")'])"
    plan = api.plan_evaluation(
        str(folder / "base"),
        dataset="digit_chain(size=2)",
        rewards=["exact_answer", "panel:rm"],
        strategies=["greedy", spec],
        verifiers=["panel:prm"],
        runs_dir=folder / "runs",
        budgets=[{"tokens": 100}],
    )
    inputs = plan["evaluate"].spec.inputs
    _, council = inputs["strategies"]  # type: ignore[misc]
    assert council.refs["judge"].path == str(artifacts["sft"].model_path)
    (best,) = council.refs["strategies"]
    prm = {"model_name_or_path": str(artifacts["prm"].model_path), "separator": ";", "aggregate": "prod"}
    assert best.refs["scorer"].params == prm
    assert inputs["verifiers"][0].params == prm  # type: ignore[index, union-attr]
    assert inputs["rewards"][1].plugin.name == "reward_model"  # type: ignore[index, union-attr]
    assert plan["evaluate"].spec.params["budgets"] == [{"tokens": 100}]
