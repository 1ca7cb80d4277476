"""A recipe's mistakes: all of them at once, each at its place with a hint, before anything heavy is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.errors import InputError, Mistake, RecipeErrors
from posttrain_plugins.plugins import registry
from posttrain_plugins.recipe.check.check import check
from posttrain_plugins.recipe.plugin_schema import parse_call
from posttrain_plugins.recipe.read import document
from posttrain_plugins.recipe.spec import DataFile, External, FromStage, Object, Recipe, Use

HEAVY = ("torch", "transformers", "trl", "peft", "datasets")

GOOD = """\
name: good
seed: 3
model: {model_name_or_path: ./base, dtype: bfloat16}
adapters:
  policy: {use: lora, r: 8}
datasets:
  problems: {use: digit_chain, size: 8}
  demos: {path: demos.jsonl}
  pairs: {path: pairs.csv, rename: {good: chosen, bad: rejected}}
rewards:
  correct: {use: exact_answer}
  short: {use: length, max_chars: 10, weight: 0.5}
stages:
  sft: {use: sft, model: base, dataset: demos, adapter: policy, args: {max_steps: 2, learning_rate: 1e-4}}
  rm: {use: reward, model: sft, dataset: pairs}
  grpo: {use: grpo, model: sft, dataset: problems, rewards: [correct, short, rm]}
  eval: {use: evaluate, models: [base, sft, grpo], dataset: problems, rewards: [correct]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Beside the recipe: a base model (never loaded), demonstrations, pairs under other names, a reward of the user."""
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "base" / name).write_text("{}")
    (tmp_path / "demos.jsonl").write_text('{"prompt": "1+1", "completion": "2"}\n')
    (tmp_path / "pairs.csv").write_text("prompt,good,bad\na,b,c\n")
    (tmp_path / "mine.py").write_text(
        "raise RuntimeError('validate must not import this')\n"
        "def score(completions, level, **columns): ...\n"
        "class Stage:\n    produces = 'nonsense'\n    def __call__(self, context): ...\n"
    )
    return tmp_path


@pytest.fixture
def read(folder: Path) -> Callable[..., Recipe]:
    def read_text(text: str, overrides: Any = ()) -> Recipe:
        (folder / "r.yaml").write_text(text, encoding="utf-8")
        return check(document.load(folder / "r.yaml", overrides))

    return read_text


@pytest.fixture
def mistakes(read: Callable[..., Recipe]) -> Callable[..., list[Mistake]]:
    def find(text: str, overrides: Any = ()) -> list[Mistake]:
        with pytest.raises(RecipeErrors) as caught:
            read(text, overrides)
        return caught.value.mistakes

    return find


def _edit(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


# --- a recipe without mistakes ---------------------------------------------------------------------------------------


def test_a_good_recipe(read: Callable[..., Recipe], folder: Path) -> None:
    recipe = read(GOOD)
    assert [stage.id for stage in recipe.stages] == ["sft", "rm", "grpo", "eval"]
    sft, rm, grpo, evaluation = recipe.stages
    assert sft.inputs["model"] == External("base", str(folder / "base"), {"dtype": "bfloat16"})
    assert sft.inputs["dataset"] == DataFile("demos", str(folder / "demos.jsonl"), True, {})
    assert sft.params["args"] == {"max_steps": 2, "learning_rate": 1e-4}
    assert sft.configs == {"args": "trl:SFTConfig"}
    assert isinstance(sft.inputs["adapter"], Use)
    assert (rm.produces, grpo.parents(), evaluation.parents()) == ("reward", ("sft", "rm"), ("sft", "grpo"))
    rewards = grpo.inputs["rewards"]
    assert [getattr(r, "name", None) for r in rewards] == ["correct", "short", None]
    assert rewards[1].params == {"max_chars": 10}
    assert rewards[1].reserved == {"weight": 0.5}
    assert rewards[2] == FromStage("rm", "reward", "reward_model")
    assert recipe.seed == 3


def test_stages_may_stand_in_any_order(read: Callable[..., Recipe]) -> None:
    head, _, stages = GOOD.partition("stages:\n")
    backwards = head + "stages:\n" + "\n".join(reversed(stages.splitlines())) + "\n"
    assert [stage.id for stage in read(backwards).stages] == ["sft", "rm", "grpo", "eval"]


def test_defaults_come_from_the_plugin_and_from_us(read: Callable[..., Recipe], folder: Path) -> None:
    recipe = read("model: ./base\nstages:\n  s: {use: sft, model: base, dataset: ./demos.jsonl}\n")
    assert (recipe.name, recipe.seed) == ("r", 0)
    assert recipe.stages[0].params == {"kl_coef": 0.0, "args": {}}
    file = str(folder / "demos.jsonl")
    assert recipe.stages[0].inputs["dataset"] == DataFile(file, file, True)


def test_resolved_values_give_the_same_recipe_from_any_folder(read: Callable[..., Recipe], folder: Path) -> None:
    text = GOOD + (
        "  mine: {use: grpo, model: ./base, dataset: {use: digit_chain}, rewards: ['./posts.py:score']}\n"
        "  more: {use: sft, model: sft, dataset: demos.jsonl, chat_template: chat.jinja}\n"
    )
    (folder / "posts.py").write_text("def score(completions, **columns): ...\n")
    (folder / "chat.jinja").write_text("")
    recipe = read(text, ["stages.sft.args.max_steps=5"])
    elsewhere = folder / "elsewhere" / "resolved.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(document.dump(recipe.data), encoding="utf-8")
    again = check(document.load(elsewhere))
    assert again.stages == recipe.stages
    assert (again.name, again.seed, again.data) == (recipe.name, recipe.seed, recipe.data)
    assert again.stage("sft").params["args"]["max_steps"] == 5


# --- ten mistakes ----------------------------------------------------------------------------------------------------

TEN = """\
name: ten
model: ./base
datasets:
  demos: {path: demos.jsonl}
  gone: {path: data/gone.jsonl}
  sft: {use: digit_chain}
rewards:
  correct: {use: exact_anser}
  short: {use: length, max_char: 10}
stages:
  first: {use: stf, model: base, dataset: demos}
  sft: {use: sft, model: base, dataset: demos, args: {learning_rat: 1e-5}}
  typed: {use: sft, model: base, dataset: demos, args: {max_steps: ten}}
  dpo: {use: dpo, model: sft, dataset: demos}
  a: {use: sft, model: b, dataset: demos}
  b: {use: sft, model: a, dataset: demos}
  grpo: {use: grpo, model: stf, dataset: {use: digit_chain}, rewards: [correct]}
"""

TOLD = [
    (5, 16, "no file data/gone.jsonl", None),
    (6, 3, "duplicate id 'sft'", "rename one of them"),
    (8, 18, "no reward plugin 'exact_anser'", "did you mean 'exact_answer'?"),
    (9, 24, "unknown key 'max_char' in reward 'length'", "did you mean 'max_chars'?"),
    (11, 16, "no stage plugin 'stf'", "did you mean 'sft'?"),
    (12, 55, "unknown key 'learning_rat' in SFTConfig", "did you mean 'learning_rate'?"),
    (13, 68, "'max_steps' is 'ten', expected int", None),
    (14, 40, "missing column: stage 'dpo' needs 'chosen' + 'rejected'", "rename: {old: new} on the data set"),
    (16, 24, "cycle: a -> b -> a", "a stage cannot need itself"),
    (17, 28, "unknown model 'stf'", "did you mean 'sft'?"),
]


def test_ten_mistakes_in_one_report(mistakes: Callable[..., list[Mistake]], folder: Path) -> None:
    found = mistakes(TEN)
    for mistake, (line, column, message, hint) in zip(found, TOLD, strict=True):
        assert (mistake.file, mistake.line, mistake.column) == (str(folder / "r.yaml"), line, column), mistake
        assert message in mistake.message
        assert hint is None or mistake.hint == hint
        assert str(mistake).startswith(f"{folder}/r.yaml:{line}:{column}: ")


def test_ten_mistakes_are_found_without_anything_heavy(folder: Path) -> None:
    (folder / "r.yaml").write_text(TEN)
    script = (
        "import json, sys\nfrom posttrain_plugins.errors import RecipeErrors\n"
        "from posttrain_plugins import validate\n"
        f"try:\n    validate({str(folder / 'r.yaml')!r})\nexcept RecipeErrors as error:\n"
        f"    print(json.dumps([len(error.mistakes), [m for m in {HEAVY!r} if m in sys.modules]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [10, []]


# --- each mistake alone ----------------------------------------------------------------------------------------------

ALONE = {
    "stage plugin": ("{use: grpo,", "{use: grop,", 16, "no stage plugin 'grop'", "'grpo'"),
    "kind of plugin": ("{use: grpo,", "{use: lora,", 16, "no stage plugin 'lora'", "'lora' is an adapter"),
    "top-level key": ("rewards:\n", "reward:\n", 10, "unknown key 'reward'", "'rewards'"),
    "stage key": ("use: reward, model:", "use: reward, modl:", 15, "unknown key 'modl' in stage 'rm'", "'model'"),
    "args key": ("max_steps: 2", "max_step: 2", 14, "unknown key 'max_step' in SFTConfig", "'max_steps'"),
    "args we set": ("max_steps: 2", "output_dir: x", 14, "'output_dir' cannot be set", "remove it"),
    "adapter key": ("r: 8", "lora_alpa: 8", 5, "unknown key 'lora_alpa' in adapter 'lora'", "'lora_alpha'"),
    "adapter type": ("r: 8", "r: big", 5, "'r' is 'big', expected int", None),
    "reward key": ("max_chars: 10", "max_char: 10", 12, "unknown key 'max_char' in reward 'length'", "'max_chars'"),
    "reward refuses": ("max_chars: 10", "max_chars: -1", 12, "length cannot use max_chars: -1", "change max_chars"),
    "data set key": ("size: 8", "sise: 8", 7, "unknown key 'sise' in dataset 'digit_chain'", "'size'"),
    "data set refuses": ("size: 8", "size: 0", 7, "digit_chain cannot use size: 0", "change size"),
    "data file key": ("{path: demos.jsonl}", "{path: demos.jsonl, limt: 3}", 8, "unknown key 'limt'", "'limit'"),
    "model key": ("dtype: bfloat16", "dtyp: bfloat16", 3, "unknown key 'dtyp' in 'model'", "'dtype'"),
    "model folder": ("./base", "./bas", 3, "no model folder", "save_pretrained"),
    "no file": ("demos.jsonl", "demo.jsonl", 8, "no file demo.jsonl", "paths start from"),
    "model ref": ("use: reward, model: sft", "use: reward, model: stf", 15, "unknown model 'stf'", "'sft'"),
    "not a model": ("use: reward, model: sft", "use: reward, model: eval", 15, "makes figures, expected a model", ""),
    "reward ref": ("[correct, short, rm]", "[corect, short]", 16, "unknown reward 'corect'", "'correct'"),
    "reward of a model": ("[correct, short, rm]", "[sft]", 16, "stage 'sft' makes a model, expected a reward", "'rm'"),
    "no list": ("[correct, short, rm]", "correct", 16, "'rewards' is 'correct', expected a list", "[correct]"),
    "adapter ref": ("adapter: policy", "adapter: polcy", 14, "unknown adapter 'polcy'", "'policy'"),
    "data ref": ("dataset: pairs", "dataset: pair", 15, "unknown dataset 'pair'", "'pairs'"),
    "no use": ("{use: lora, r: 8}", "{r: 8}", 5, "an adapter needs 'use'", "posttrain plugins list --kind adapter"),
    "no mapping": ("{use: lora, r: 8}", "[lora]", 5, "an adapter is a mapping with 'use'", None),
    "missing field": ("use: reward, model: sft, ", "use: reward, ", 15, "stage 'rm' needs 'model' (str)", None),
    "missing column": (", rename: {good: chosen, bad: rejected}", "", 15, "needs 'chosen' + 'rejected'", "rename"),
    "reward column": ("[correct, short, rm]", "['./mine.py:score']", 16, "missing column: reward", None),
    "weight": ("weight: 0.5", "weight: much", 12, "'weight' is 'much', expected float", None),
    "seed": ("seed: 3", "seed: three", 2, "'seed' is 'three', expected int", None),
    "name": ("name: good", "name: ../good", 1, "recipe name '../good' has other characters", "rename it"),
    "stage name": ("  rm: {", "  r.m: {", 15, "stage name 'r.m' has other characters", "rename it"),
    "base": ("  rm: {", "  base: {", 15, "'base' is reserved", "rename the stage"),
    "duplicate": ("  short: {use", "  sft: {use", 12, "duplicate id 'sft': it is a stage too", "rename one of them"),
    "itself": ("use: sft, model: base", "use: sft, model: sft", 14, "cycle: sft -> sft", "a stage cannot need itself"),
    "file reward": ("[correct, short, rm]", "['./mine.py:scor']", 16, "mine.py has no 'scor'", "'score'"),
    "file": ("[correct, short, rm]", "['./my.py:score']", 16, "no file", None),
    "stage file": ("{use: reward, model: sft, dataset: pairs}", "{use: './mine.py:Stage'}", 15, "'nonsense'", None),
    "strategy": ("models:", "strategies: [gredy], models:", 17, "unknown strategy 'gredy'", "'greedy'"),
    "strategy text": ("models:", "strategies: ['best_of_n(8)'], models:", 17, "is not NAME(key=value, ...)", "n=8"),
    "strategy list": ("models:", "strategies: [best_of_n(n=2, m=3)], models:", 17, "is not NAME(", "needs quotes"),
    "strategy key": ("models:", "strategies: [self_consistency(m=8)], models:", 17, "unknown key 'm'", "it takes 'n'"),
    "strategy type": ("models:", "strategies: [self_consistency(n=x)], models:", 17, "'n' is 'x', expected int", None),
    "scorer": ("models:", "strategies: [best_of_n(scorer=rmm)], models:", 17, "unknown reward 'rmm'", "'rm'"),
    "gate": ("models:", "require: {accuracy: good}, models:", 17, "require cannot be read: accuracy: 'good'", ">=0.8"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_each_mistake_alone(mistakes: Callable[..., list[Mistake]], name: str) -> None:
    old, new, line, message, hint = ALONE[name]
    found = [m for m in mistakes(_edit(old, new)) if m.line == line]
    assert [m for m in found if message in m.message], found
    if hint is not None:
        assert hint in next(m.hint or "" for m in found if message in m.message)


FOLLOW_UPS = {"top-level key": 4, "stage name": 2, "base": 2, "stage key": 2, "duplicate": 2, "strategy list": 2}
"""Mistakes that make others wrong: a reward section that is not there, a stage that has another name now."""


@pytest.mark.parametrize("name", [name for name in ALONE if name not in FOLLOW_UPS])
def test_one_mistake_is_told_once(mistakes: Callable[..., list[Mistake]], name: str) -> None:
    old, new, *_ = ALONE[name]
    assert len(mistakes(_edit(old, new))) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("args: {max_steps: 1.5}", "int"),
        ("args: {max_steps: true}", "int"),
        ("args: {learning_rate: fast}", "float"),
        ('args: {learning_rate: "1e-5"}', "float"),
        ("args: {packing: yes}", "bool"),
        ("args: {packing: 1}", "bool"),
        ("args: {max_length: [1]}", "int | None"),
        ("args: {eos_token: 3}", "str | None"),
        ("args: {model_init_kwargs: [1]}", "dict"),
        ("args: [1]", "dict[str, Any]"),
        ("model: 3", "a model"),
        ("dataset: 3", "a dataset"),
        ("dataset: [demos]", "a dataset"),
        ("chat_template: 3", "'package.module:attr' or a path"),
    ],
)
def test_every_kind_of_wrong_type(mistakes: Callable[..., list[Mistake]], value: str, expected: str) -> None:
    fields = {"model": "model: ./base", "dataset": "dataset: demos.jsonl"}
    fields[value.partition(":")[0]] = value
    (mistake,) = mistakes(f"stages:\n  s: {{use: sft, {', '.join(fields.values())}}}\n")
    assert mistake.line == 2
    assert expected in mistake.message


@pytest.mark.parametrize("name", ["use_peft", "lora_r", "lora_target_modules", "use_rslora"])
def test_adapters_do_not_belong_to_the_model(mistakes: Callable[..., list[Mistake]], name: str) -> None:
    (mistake,) = mistakes(_edit("dtype: bfloat16", f"{name}: 1"))
    assert (mistake.line, mistake.column) == (3, 37)
    assert mistake.message == f"'{name}' does not belong to 'model'"
    assert mistake.hint == "name an adapter under 'adapters:'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "the recipe has no 'stages'"),
        ("stages:\n", "the recipe has no 'stages'"),
        ("stages: [a]\n", "'stages' is ['a'], expected a mapping"),
        ("stages: {a: b}\n", "a stage is a mapping with 'use'"),
        ("model: [x]\nstages: {}\n", "'model' is a folder, a Hub id or a mapping"),
        ("stages:\n  s: {use: sft, model: base, dataset: demos.jsonl}\n", "the recipe has no 'model'"),
        ("model: {dtype: auto}\nstages: {}\n", "'model' needs 'model_name_or_path'"),
        ("stages:\n  s: {use: sft, model: '${prev}', dataset: demos.jsonl}\n", "unknown model '${prev}'"),
    ],
)
def test_recipes_that_lack_something(mistakes: Callable[..., list[Mistake]], text: str, message: str) -> None:
    assert [m for m in mistakes(text) if message in m.message]


def test_an_override_is_the_place_of_its_mistake(mistakes: Callable[..., list[Mistake]]) -> None:
    (mistake,) = mistakes(GOOD, ["stages.sft.args.max_step=3"])
    assert str(mistake) == (
        "-o stages.sft.args.max_step=3: unknown key 'max_step' in SFTConfig (hint: did you mean 'max_steps'?)"
    )


def test_an_installed_name_that_two_packages_give(
    mistakes: Callable[..., list[Mistake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = registry.installed
    rival = registry.Plugin("reward", "length", "rival:Length", "posttrain-rival", "1.0")
    monkeypatch.setattr(registry, "installed", lambda kind: (*real(kind), rival) if kind == "reward" else real(kind))
    in_place = _edit("  short: {use: length, max_chars: 10, weight: 0.5}\n", "").replace("short, rm]", "length, rm]")
    for text, line in ((GOOD, 12), (in_place, 15)):
        (mistake,) = mistakes(text)
        assert mistake.line == line
        assert "is given by posttrain-plugins" in mistake.message
        assert "posttrain-rival 1.0" in mistake.message
        assert "'posttrain-rival:length'" in (mistake.hint or "")


# --- quantized models ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
@pytest.mark.parametrize("adapter", ["", "adapter: full, ", "adapter: whole, "])
def test_a_quantized_model_is_not_trained_in_full(
    mistakes: Callable[..., list[Mistake]], bits: str, adapter: str
) -> None:
    text = _edit("dtype: bfloat16", f"{bits}: true").replace("  policy:", "  whole: {use: full}\n  policy:")
    text = text.replace("use: reward, ", f"use: reward, {adapter}")
    text = text.replace("use: grpo, ", "use: grpo, adapter: policy, ")
    (mistake,) = mistakes(text)
    assert mistake.line == 16
    assert mistake.message == f"stage 'rm' trains all parameters, but the model has {bits}"
    assert mistake.hint == f"adapter: {{use: lora}}, or remove {bits}"


def test_a_quantized_model_is_trained_with_adapters(read: Callable[..., Recipe]) -> None:
    text = _edit("dtype: bfloat16", "load_in_4bit: true").replace("use: reward, ", "use: reward, adapter: policy, ")
    assert read(text.replace("use: grpo, ", "use: grpo, adapter: {use: lora}, ")).stage("sft").loading["load_in_4bit"]
    assert read(_edit("dtype: bfloat16", "load_in_4bit: false"))


# --- references ------------------------------------------------------------------------------------------------------


def test_strategies_as_text_and_their_scorers_are_edges(read: Callable[..., Recipe]) -> None:
    strategies = "[greedy, self_consistency(n=8), {use: best_of_n, n: 4, scorer: rm}, best_of_n(scorer=correct)]"
    recipe = read(_edit("models: [base, sft, grpo]", f"models: [base], strategies: {strategies}"))
    evaluation = recipe.stage("eval")
    assert evaluation.parents() == ("rm",)
    greedy, consistent, by_rm, by_rule = evaluation.inputs["strategies"]
    assert [use.name for use in (greedy, consistent, by_rm, by_rule)] == [
        "greedy",
        "self_consistency(n=8)",
        "best_of_n(n=4, scorer=rm)",
        "best_of_n(scorer=correct)",
    ]
    assert consistent.params == {"n": 8}
    assert by_rm.params == {"n": 4}
    assert by_rm.refs == {"scorer": FromStage("rm", "reward", "reward_model")}
    assert by_rule.refs["scorer"].plugin.name == "exact_answer"
    assert [stage.id for stage in recipe.stages].index("rm") < [stage.id for stage in recipe.stages].index("eval")


def test_the_default_strategy_is_resolved_too(read: Callable[..., Recipe]) -> None:
    (greedy,) = read(GOOD).stage("eval").inputs["strategies"]
    assert greedy.plugin.name == "greedy"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("greedy", ("greedy", {})),
        (" greedy ", ("greedy", {})),
        ("a:b(n=8, scorer=rm)", ("a:b", {"n": 8, "scorer": "rm"})),
        ("s(x='a, b', y=[1, 2], z=-0.5, on=True)", ("s", {"x": "a, b", "y": [1, 2], "z": -0.5, "on": True})),
        ("s()", ("s", {})),
        ("s(x=[greedy, b(n=8, scorer=prm)], t=[0.3])", ("s", {"x": ["greedy", "b(n=8, scorer=prm)"], "t": [0.3]})),
        ("s(x=run:rm, y=./f.py:g(n=1), z=a-b+c)", ("s", {"x": "run:rm", "y": "./f.py:g(n=1)", "z": "a-b+c"})),
        ("s(x={'a': 1, 'b': [2]}, y=None, z=(1, 2))", ("s", {"x": {"a": 1, "b": [2]}, "y": None, "z": [1, 2]})),
    ],
)
def test_parse_call(text: str, expected: tuple[str, dict[str, Any]]) -> None:
    assert parse_call(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "s(",
        "s(8)",
        "s(n=8",
        "s(n=f(1))",
        "s(n=[1, 2)",
        "s(n=1 m=2)",
        "s(n=1, n=2)",
        "s(n=)",
        "s(n={1)",
        "s(=1)",
        "s(n=8))",
        "s(n=1)(m=2)",
        "s(**x)",
    ],
)
def test_what_parse_call_refuses(text: str) -> None:
    with pytest.raises(InputError, match="is not NAME"):
        parse_call(text)


RM = "  rm: {use: reward, model: loop, dataset: {use: sample}}\n"
LOOP = """\
model: ./base
datasets: {problems: {use: digit_chain}, demos: {path: demos.jsonl}}
rewards: {correct: exact_answer}
stages:
  sft: {use: sft, model: base, dataset: demos}
  loop:
    repeat: 3
    init: sft
    stages:
      s: {use: sample, model: ${prev}, dataset: problems, rewards: [correct]}
      t: {use: sft, model: ${prev}, dataset: s}
  rm: {use: reward, model: loop, dataset: {use: sample}}
  eval: {use: evaluate, models: [sft, loop.2.t, loop], dataset: problems, rewards: [correct]}
"""


def test_loops_are_unrolled(read: Callable[..., Recipe]) -> None:
    recipe = read(LOOP.replace(RM, ""))
    turns = [f"loop.{turn}.{name}" for turn in (1, 2, 3) for name in ("s", "t")]
    assert [stage.id for stage in recipe.stages] == ["sft", *turns, "eval"]
    assert recipe.aliases == {"loop": "loop.3.t"}
    parents = {stage.id: stage.parents() for stage in recipe.stages}
    assert parents["loop.1.s"] == ("sft",)
    assert parents["loop.1.t"] == ("sft", "loop.1.s")
    assert parents["loop.3.t"] == ("loop.2.t", "loop.3.s")
    assert parents["eval"] == ("sft", "loop.2.t", "loop.3.t")


def test_what_a_data_making_stage_makes_is_known(mistakes: Callable[..., list[Mistake]], read: Any) -> None:
    good = LOOP.replace(RM, "")
    (mistake,) = mistakes(good.replace("  t: {use: sft", "  t: {use: dpo"))
    assert (mistake.line, mistake.column) == (11, 46)
    assert mistake.message.startswith("missing column: stage 't' needs 'chosen' + 'rejected', the data has 'prompt'")
    pairs = good.replace("  t: {use: sft", "  t: {use: dpo").replace("{use: sample, ", "{use: sample, keep: pairs, ")
    assert len(read(pairs).stages) == 8


SAVED = {
    "no completions": (
        "dataset: problems, rewards: [correct]",
        "stage 'kept' needs 'prompt' + 'completion' or 'prompt' + 'completions', the data has",
    ),
    "no rewards": ("dataset: demos", "needs 'prompt' + 'completion' + 'reward' or 'prompt' + 'completion' + 'rewards'"),
    "a strategy": ("dataset: demos, rewards: [short], strategy: greedy", "sample has a strategy, but no model"),
    "rollouts": (
        "dataset: demos, rewards: [short], keep: steps, labels: rollouts",
        "sample has labels: rollouts, but no model",
    ),
    "keep": ("dataset: demos, rewards: [short], keep: pair", "'keep' is 'pair', expected 'best' | 'top_k'"),
    "no draws": ("model: sft, num_generations: 0, dataset: problems, rewards: [correct]", "'prompt' + 'completions'"),
}


@pytest.mark.parametrize("name", SAVED)
def test_sample_without_a_model_takes_saved_completions(mistakes: Callable[..., list[Mistake]], name: str) -> None:
    fields, message = SAVED[name]
    (mistake,) = mistakes(GOOD + f"  kept: {{use: sample, {fields}}}\n")
    assert message in mistake.message
    assert mistake.line == 18


def test_what_sample_keeps_is_known_by_its_keep(mistakes: Callable[..., list[Mistake]], read: Any) -> None:
    kept = "  kept: {use: sample, dataset: demos, rewards: [short], keep: KEEP}\n"
    kept += "  dpo: {use: dpo, model: sft, dataset: kept}\n"
    recipe = read(GOOD + kept.replace("KEEP", "pairs"))
    assert recipe.stage("kept").parents() == ()
    assert recipe.stage("kept").inputs["rewards"][0].name == "short"
    (mistake,) = mistakes(GOOD + kept.replace("KEEP", "labelled"))
    assert "stage 'dpo' needs 'chosen' + 'rejected'" in mistake.message


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("budgets: [{token: 5}]", "budgets cannot have 'token', expected tokens, completions, calls, seconds"),
        ("budgets: [{tokens: 0}]", "budgets cannot have tokens: 0, expected more than 0"),
        ("budgets: {tokens: 5}", "'budgets' is {'tokens': 5}, expected list[dict[str, float]]"),
        ("budgets: [{tokens: many}]", "'budgets' is [{'tokens': 'many'}], expected list[dict[str, float]]"),
        ("verifiers: [corect]", "unknown reward 'corect'"),
        ("verifiers: correct", "'verifiers' is 'correct', expected a list"),
    ],
)
def test_mistakes_of_an_evaluation(mistakes: Callable[..., list[Mistake]], written: str, message: str) -> None:
    (mistake,) = mistakes(_edit("models: [base, sft, grpo]", f"models: [base], {written}"))
    assert message in mistake.message
    assert mistake.line == 17


def test_a_mistake_in_a_loop_is_told_once(mistakes: Callable[..., list[Mistake]]) -> None:
    good = LOOP.replace(RM, "")
    for old, new in [
        ("dataset: s}", "dataset: s, modle: x}"),
        ("{use: sft, model: ${prev}", "{use: sftt, model: ${prev}"),
        ("dataset: s}", "dataset: ss}"),
        ("dataset: s}", "dataset: s, args: {max_stepz: 1}}"),
    ]:
        assert old in good
        (mistake,) = mistakes(good.replace(old, new))
        assert mistake.line == 11


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("repeat: 3", "repeat: 0", 7, "'repeat' is 0, expected a number of 1 or more"),
        ("repeat: 3", "repeat: yes", 7, "'repeat' is 'yes'"),
        ("repeat: 3", "repeats: 3", 7, "unknown key 'repeats'"),
        ("init: sft", "init: stf", 10, "unknown model 'stf'"),
        ("loop.2.t", "loop.4.t", 13, "unknown model 'loop.4.t'"),
        ("dataset: {use: sample}", "dataset: s", 12, "unknown dataset 's'"),
        ("{use: sample, model", "{model", 10, "a stage needs 'use'"),
    ],
)
def test_mistakes_in_loops(mistakes: Callable[..., list[Mistake]], old: str, new: str, line: int, message: str) -> None:
    assert old in LOOP
    assert [m for m in mistakes(LOOP.replace(old, new)) if m.line == line and message in m.message]


# --- reserved words, objects, the base -------------------------------------------------------------------------------


def test_reserved_words_go_beside_the_parameters(read: Callable[..., Recipe]) -> None:
    recipe = read(
        _edit("size: 8}", "size: 8, split: test, limit: 4, rename: {solution: answer}, system_prompt: Think.}")
        .replace("rewards: [correct, short, rm]", "rewards: [short]")
        .replace("rewards: [correct]}", "rewards: [short]}")
    )
    problems = recipe.stage("grpo").inputs["dataset"]
    assert problems.params == {"size": 8, "split": "test"}  # its own parameter
    assert problems.reserved == {"limit": 4, "rename": {"solution": "answer"}, "system_prompt": "Think."}
    pairs = recipe.stage("rm").inputs["dataset"]
    assert pairs.options == {"rename": {"good": "chosen", "bad": "rejected"}}


def test_rename_hides_a_column_from_rewards(mistakes: Callable[..., list[Mistake]]) -> None:
    found = mistakes(_edit("size: 8}", "size: 8, rename: {solution: answer}}"))
    assert {m.message.partition(",")[0] for m in found} == {"missing column: reward 'correct' needs 'solution'"}
    assert [m.line for m in found] == [16, 17]


def test_the_base_may_be_made(read: Callable[..., Recipe]) -> None:
    model = "{use: pretrain, dataset: {use: digit_chain, part: corpus}, config: {model_type: qwen3}, dtype: float32, "
    model += "tokenizer: 'posttrain_plugins.tiny_world.tokenizer:base_tokenizer'}"
    recipe = read(_edit("{model_name_or_path: ./base, dtype: bfloat16}", model))
    base, sft = recipe.stages[:2]
    assert (base.id, base.plugin.name, base.produces) == ("base", "pretrain", "model")
    assert base.inputs["tokenizer"] == Object("posttrain_plugins.tiny_world.tokenizer:base_tokenizer")
    assert sft.inputs["model"] == FromStage("base", "model")
    assert sft.loading == {"dtype": "float32"}


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ("posttrain_plugins.tiny_world.tokenizer:base_tokenzer", "has no 'base_tokenzer'", "'base_tokenizer'"),
        ("no_such_package.x:y", "no package 'no_such_package'", "pip install"),
        ("./gone.jinja", "no file", "paths start from"),
        ("./mine.py:scor", "mine.py has no 'scor'", "'score'"),
    ],
)
def test_objects_are_looked_up_in_their_source(
    mistakes: Callable[..., list[Mistake]], value: str, message: str, hint: str
) -> None:
    (mistake,) = mistakes(_edit("use: sft, model: base,", f"use: sft, model: base, chat_template: '{value}',"))
    assert message in mistake.message
    assert hint in (mistake.hint or "")


def test_a_users_file_is_read_and_not_imported(read: Callable[..., Recipe], folder: Path) -> None:
    (folder / "demos.jsonl").write_text('{"prompt": "1", "completion": "2", "level": 3}\n')
    text = _edit("dataset: problems, rewards: [correct, short, rm]", "dataset: demos, rewards: ['./mine.py:score']")
    recipe = read(text)
    (reward,) = recipe.stage("grpo").inputs["rewards"]
    assert (reward.plugin.file, reward.name) == (folder / "mine.py", "mine.py:score")


def test_a_file_that_is_no_python(mistakes: Callable[..., list[Mistake]], folder: Path) -> None:
    for content in (b"def score(:\n", b"def score(): '\xff'\n", b"def score():\0\n"):
        (folder / f"bad{len(content)}.py").write_bytes(content)
        (mistake,) = mistakes(_edit("[correct, short, rm]", f"['./bad{len(content)}.py:score']"))
        assert "reward 'score' cannot be read" in mistake.message


def test_a_class_that_cannot_be_built_is_a_mistake_and_no_traceback(
    mistakes: Callable[..., list[Mistake]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "fragile_data.py").write_text("class Fragile:\n    def __init__(self, size=1):\n        {}['gone']\n")
    monkeypatch.syspath_prepend(folder)
    (mistake,) = mistakes(_edit("{use: digit_chain, size: 8}", "{use: 'fragile_data:Fragile', size: 3}"))
    assert (mistake.line, mistake.column) == (7, 13)
    assert mistake.message == "dataset 'Fragile' refuses its parameters: KeyError: 'gone'"


def test_parameters_that_are_computed_are_left_to_the_plugin(read: Callable[..., Recipe], folder: Path) -> None:
    (folder / "stage.py").write_text(
        "from dataclasses import dataclass, field\nLIMIT = 3\n@dataclass\nclass Mine:\n    a: int\n    b: int = LIMIT\n"
        "    c: list = field(default_factory=list)\n    d: int = 4\n    def __call__(self, context): ...\n"
    )
    recipe = read("stages:\n  s: {use: './stage.py:Mine', a: 1}\n")
    assert recipe.stages[0].params == {"a": 1, "d": 4}


def test_data_of_every_format_tells_its_columns(mistakes: Callable[..., list[Mistake]], folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt": ["a"], "odd": ["b"]})
    pyarrow.parquet.write_table(table, folder / "d.parquet")
    (folder / "d.jsonl").write_text('\n{"prompt": "a", "odd": "b"}\n')
    (folder / "d.json").write_text('[{"prompt": "a", "odd": "b"}]')
    (folder / "d.csv").write_bytes(b"\xef\xbb\xbfprompt,odd\na,b\n")
    (folder / "d.tsv").write_text("prompt\todd\na\tb\n")
    for suffix in ("parquet", "jsonl", "json", "csv", "tsv"):
        (mistake,) = mistakes(f"model: ./base\nstages:\n  s: {{use: sft, model: base, dataset: d.{suffix}}}\n")
        assert mistake.message.endswith("the data has 'prompt', 'odd'"), suffix
    (folder / "d.jsonl").write_text("")
    (mistake,) = mistakes("model: ./base\nstages:\n  s: {use: sft, model: base, dataset: d.jsonl}\n")
    assert mistake.message.endswith("d.jsonl is empty")


# --- what once escaped as another exception ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "model: {use: pretran}\nstages: {e: {use: evaluate, models: [base], rewards: [r], dataset: d}}",
            "no stage plugin",
        ),
        ("model: {use: evaluate, models: [base]}\nstages: {}", "makes figures, expected a model"),
        ("stages: {s: {use: sample, model: a/b, dataset: s, rewards: [length]}}", "cycle: s -> s"),
        (
            "rewards: {r: {use: 'os:path'}}\nstages: {s: {use: sample, model: a/b, dataset: c/d, rewards: [r]}}",
            "os:path",
        ),
        (
            "datasets: {d: {path: data.jsonl, rename: {good: {a: b}}}}\n"
            "stages: {s: {use: sample, model: a/b, dataset: d, rewards: [length]}}",
            "'rename'",
        ),
        ('stages:\n  l: {repeat: 2, init: base, stages: {"${prev}": {use: sft}}}\nmodel: a/b', "other characters"),
    ],
)
def test_every_mistake_is_a_recipe_mistake(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "data.jsonl").write_text('{"good": 1}\n')
    (tmp_path / "r.yaml").write_text(text + "\n")
    with pytest.raises(RecipeErrors) as caught:
        check(document.load(tmp_path / "r.yaml"))
    assert any(expected in mistake.message for mistake in caught.value.mistakes), str(caught.value)


def test_columns_are_not_missed_where_a_reference_is_wrong(mistakes: Callable[..., list[Mistake]]) -> None:
    """A `sample` without a model needs completions; one whose model is misspelt does not."""
    more = "  drawn: {use: sample, model: stf, dataset: problems, rewards: [correct], keep: pairs}\n"
    assert [(m.message, m.hint) for m in mistakes(GOOD + more)] == [("unknown model 'stf'", "did you mean 'sft'?")]


def test_a_plugin_without_parameters_says_so(read: Callable[..., Recipe]) -> None:
    with pytest.raises(RecipeErrors) as caught:
        read(GOOD.replace("policy: {use: lora, r: 8}", "policy: {use: full, r: 8}"))
    assert {mistake.message: mistake.hint for mistake in caught.value.mistakes} == {
        "unknown key 'r' in adapter 'full'": "it takes no parameters"
    }
