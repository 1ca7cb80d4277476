"""What plugins and config classes take: from live objects, from source, and a contract with TRL and PEFT."""

from __future__ import annotations

import ast
import dataclasses
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional

import pytest

from posttrain_plugins.plugins import source as reading
from posttrain_plugins.plugins.schema import Field, accepts, type_name
from posttrain_plugins.plugins.signature import of_object, reward_columns
from posttrain_plugins.plugins.source import of_config, of_source
from posttrain_plugins.types import ConfigOf, DataRef, ModelRef, Ref, RewardRef

CONFIGS = [f"trl:{name}Config" for name in ("SFT", "GRPO", "DPO", "Reward", "RLOO", "Model")] + ["peft:LoraConfig"]


# --- the contract with TRL and PEFT ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", CONFIGS)
def test_the_source_says_what_the_imported_class_says(target: str) -> None:
    package, _, name = target.partition(":")
    config_class = getattr(__import__(package), name)
    live = {f.name: f for f in dataclasses.fields(config_class) if f.init}
    read = of_config(target).fields
    assert len(live) > 10
    assert set(read) == set(live)
    missing = dataclasses.MISSING
    for name, told in read.items():
        default = live[name].default
        assert told.is_required == (default is missing and live[name].default_factory is missing), name
        if default is not missing and told.is_literal:
            assert told.default == default, name
            assert default is None or accepts(told.type, default), name
    known = [name for name, told in read.items() if told.type is not Any]
    assert len(known) >= len(read) - 1  # `runtime_config` of peft


def test_a_config_read_field_by_field_is_the_one_that_is_parsed_whole() -> None:
    """The statements are cut out by their indentation; a parse of the whole file is what they are held to."""
    from posttrain_plugins.models.adapter_types import _registered

    targets = [*CONFIGS, "transformers:Seq2SeqTrainingArguments", *(f"peft:{name}" for name in _registered().values())]
    count = 0
    for target in dict.fromkeys(targets):
        for one in reading.classes_of(target):
            whole = {n.name: n for n in one.file.body if isinstance(n, ast.ClassDef)}[one.head.name]
            assert [ast.dump(base) for base in one.head.bases] == [ast.dump(base) for base in whole.bases]
            written = {ast.unparse(n.target): ast.dump(n) for n in whole.body if isinstance(n, ast.AnnAssign)}
            cut = {k: ast.dump(ast.parse(textwrap.dedent(text)).body[0]) for k, text in one.annotated().items()}
            assert cut == written, (target, one.head.name)
            count += len(cut)
    assert count > 1000


@pytest.mark.parametrize(
    ("target", "name", "right", "wrong"),
    [
        ("trl:SFTConfig", "learning_rate", 1e-5, "1e-5"),
        ("trl:SFTConfig", "max_length", None, 12.5),
        ("trl:SFTConfig", "packing", True, "yes"),
        ("trl:SFTConfig", "max_steps", 10, True),
        ("trl:DPOConfig", "loss_type", ["sigmoid", "sft"], 3),
        ("trl:GRPOConfig", "reward_weights", [1, 0.5], ["a"]),
        ("trl:ModelConfig", "load_in_4bit", True, 1),
        ("peft:LoraConfig", "r", 8, "8"),
        ("peft:LoraConfig", "target_modules", ["q_proj"], 8),
    ],
)
def test_values_of_config_fields(target: str, name: str, right: object, wrong: object) -> None:
    kind = of_config(target).fields[name].type
    assert accepts(kind, right)
    assert not accepts(kind, wrong)


@pytest.mark.parametrize("target", ["trl:NoSuchConfig", "no_such_package:Config"])
def test_a_config_class_that_is_not_there(target: str) -> None:
    with pytest.raises(LookupError):
        of_config(target)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "fitting", "others"),
    [
        (int, [0, -3], [1.0, "1", True, None]),
        (float, [0, 1.5], ["1", True, None, [1.0]]),
        (bool, [True], [1, "true", None]),
        (str, ["", "x"], [1, None, ["x"], {}]),
        (int | None, [1, None], ["x", 1.5]),
        (Optional[str], ["x", None], [1]),  # noqa: UP045
        (Literal["a", 1], ["a", 1], ["b", True, 1.0, None]),
        (list[int], [[], [1, 2]], [1, ["a"], (1,), {"a": 1}]),
        (list, [[1, "a"]], ["a"]),
        (Sequence[str], [["a"]], ["a", [1]]),
        (set[str], [["a"]], ["a"]),
        (tuple[int, ...], [[], [1, 2]], [[1, "a"], 1]),
        (tuple[int, str], [[1, "a"]], [[1], [1, 2], [1, "a", 3]]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, [1], "a"]),
        (Mapping[str, Any], [{"a": [1]}], [[1]]),
        (dict[str, list[float]], [{"a": [1, 2.5]}], [{"a": 1.0}]),
        (str | list[str] | None, ["a", ["a"], None], [1, [1]]),
        (Annotated[int, "any note"], [1], ["1"]),
        (ModelRef, ["base"], [1]),
        (Any, [1, "a", None, [], {}], []),
        (Path, ["x", 1], []),
        (None, [None], [0, ""]),
    ],
)
def test_accepts(annotation: Any, fitting: list[Any], others: list[Any]) -> None:
    assert [value for value in fitting if not accepts(annotation, value)] == []
    assert [value for value in others if accepts(annotation, value)] == []


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int, "int"),
        (int | None, "int | None"),
        (Literal["strict", "fraction"], "'strict' | 'fraction'"),
        (list[str], "list[str]"),
        (tuple[int, ...], "tuple[int, ...]"),
        (dict[str, int | None], "dict[str, int | None]"),
        (ModelRef, "str"),
        (Any, "Any"),
    ],
)
def test_type_name(annotation: Any, text: str) -> None:
    assert type_name(annotation) == text


# --- live objects ----------------------------------------------------------------------------------------------------


@dataclass
class Example:
    """An example."""

    model: ModelRef
    rewards: list[RewardRef] = field(default_factory=list)
    dataset: DataRef | None = None
    args: Annotated[dict[str, Any], ConfigOf("trl:SFTConfig")] = field(default_factory=dict)
    n: int = 3
    hidden: int = field(default=0, init=False)

    produces: ClassVar[str] = "model"
    requires_columns: ClassVar[dict[str, Any]] = {"dataset": (("prompt",),)}

    def __call__(self, context: object) -> None: ...


def test_of_object_reads_a_dataclass() -> None:
    found = of_object(Example)
    assert list(found.fields) == ["model", "rewards", "dataset", "args", "n"]
    assert found.fields["model"].is_required
    assert found.fields["model"].ref == Ref("model")
    assert (found.fields["rewards"].ref, found.fields["rewards"].default) == (Ref("reward"), [])
    assert (found.fields["dataset"].ref, found.fields["dataset"].default) == (Ref("dataset"), None)
    assert found.fields["args"].config == ConfigOf("trl:SFTConfig")
    assert found.fields["n"] == Field("n", int, 3)
    assert found.attributes["produces"] == "model"
    assert (found.is_class, found.is_open, found.doc) == (True, False, "An example.")


def test_of_object_reads_functions() -> None:
    def closed(a: int, b: str = "x") -> None: ...
    def opened(a: int, **others: Any) -> None: ...
    def borrowing(r: int = 4, **others: Any) -> None: ...

    borrowing.params_of = "peft:LoraConfig"  # type: ignore[attr-defined]
    assert list(of_object(closed).fields) == ["a", "b"]
    assert of_object(closed).fields["a"].is_required
    assert not of_object(closed).is_open
    assert of_object(opened).is_open
    found = of_object(borrowing)
    assert not found.is_open
    assert found.fields["r"].default == 4
    assert "lora_alpha" in found.fields


class _WithProperty:
    @property
    def requires_columns(self) -> tuple[str, ...]:
        return ("other",)

    def __call__(self, completions: list[str], solution: list[str], **columns: Any) -> list[float | None]:
        return []


def _declaring(completions: list[str], **columns: Any) -> list[float | None]:
    return []


_declaring.requires_columns = ("a", "b")  # type: ignore[attr-defined]


def _plain(prompts: Any, completions: Any, solution: Any, level: Any = None, *, need: Any, **columns: Any) -> Any: ...


@pytest.mark.parametrize(
    ("reward", "columns"), [(_WithProperty, ("solution",)), (_declaring, ("a", "b")), (_plain, ("solution", "need"))]
)
def test_reward_columns(reward: Any, columns: tuple[str, ...]) -> None:
    assert reward_columns(reward) == columns


# --- a user's file ---------------------------------------------------------------------------------------------------

SOURCE = '''
"""Never imported: it would fail."""
from __future__ import annotations
from dataclasses import dataclass, field
import typing as t
from typing import Annotated, Any, ClassVar, Literal, Optional
import no_such_module
from posttrain_plugins.types import ConfigOf, ModelRef, RewardRef, Ref

LIMIT = 8
Mode: t.TypeAlias = Literal["strict", "loose"]

@dataclass
class Parent:
    base: int
    n: int = 1

@dataclass
class Reward(Parent):
    """A reward."""
    n: int = 2
    mode: Literal["strict", "loose"] = "strict"
    named: Mode | None = None
    limit: int = LIMIT
    words: list[str] = field(default_factory=list)
    maybe: "Optional[float]" = None
    other: no_such_module.Thing | None = None
    factor: float = field(default=0.5)
    left_out: int = field(default=0, init=False)
    _private: int = 0
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    quoted: "ClassVar[int]" = 3
    async def __call__(self, prompts, completions, solution, **columns): ...

@dataclass
class Stage:
    model: ModelRef
    rewards: list[RewardRef]
    judge: Annotated[str, Ref("reward")] = "rm"
    args: Annotated[dict[str, Any], ConfigOf("trl:SFTConfig")] = field(default_factory=dict)
    produces: ClassVar[str] = "model"
    requires_columns: ClassVar = {"dataset": (("prompt",),)}
    def __call__(self, context): ...

class Plain:
    def __init__(self, a: int, b="x", **rest): ...
    def __call__(self, completions, **columns): ...

async def score(completions, solution, level=1, **columns) -> list: ...
score.requires_columns = ("solution", "level")

def closed(n: int, *, tail: str = "x"): ...

def my_lora(r: int = 2, **params): ...
my_lora.params_of = "peft:LoraConfig"
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(SOURCE, encoding="utf-8")
    return file


def test_of_source_reads_a_dataclass(source: Path) -> None:
    found = of_source(source, "Reward")
    fields = found.fields
    assert list(fields) == ["base", "n", "mode", "named", "limit", "words", "maybe", "other", "factor"]
    assert fields["base"].is_required
    assert fields["base"].type is int
    assert fields["n"].default == 2
    assert not accepts(fields["mode"].type, "lose")
    assert fields["named"].type == Literal["strict", "loose"] | None
    assert (fields["limit"].is_required, fields["limit"].is_literal) == (False, False)
    assert (fields["words"].is_required, fields["words"].is_literal, fields["words"].type) == (False, False, list[str])
    assert fields["maybe"].type == (float | None)
    assert accepts(fields["other"].type, "anything")
    assert fields["factor"].default == 0.5
    assert found.attributes["bounds"] == (0.0, 1.0)
    assert found.attributes["reward_columns"] == ("solution",)
    assert found.doc == "A reward."
    assert found.is_class
    assert not found.is_open


def test_of_source_reads_a_stage(source: Path) -> None:
    found = of_source(source, "Stage")
    assert {name: told.ref.kind for name, told in found.fields.items() if told.ref} == {
        "model": "model",
        "rewards": "reward",
        "judge": "reward",
    }
    assert typing.get_origin(found.fields["rewards"].type) is list
    assert found.fields["args"].config == ConfigOf("trl:SFTConfig")
    assert found.attributes["produces"] == "model"
    assert found.attributes["requires_columns"] == {"dataset": (("prompt",),)}


def test_of_source_reads_functions_and_plain_classes(source: Path) -> None:
    score = of_source(source, "score")
    assert score.attributes["requires_columns"] == ("solution", "level")
    assert score.attributes["reward_columns"] == ("solution",)
    assert score.is_open
    assert not score.is_class
    assert score.without_fields().fields == {}
    closed = of_source(source, "closed")
    assert {name: told.default for name, told in closed.fields.items() if not told.is_required} == {"tail": "x"}
    assert not closed.is_open
    borrowing = of_source(source, "my_lora")
    assert not borrowing.is_open
    assert borrowing.fields["r"].default == 2
    assert "lora_alpha" in borrowing.fields
    plain = of_source(source, "Plain")
    assert list(plain.fields) == ["a", "b"]
    assert plain.is_open


def test_of_source_says_what_is_wrong(source: Path) -> None:
    with pytest.raises(LookupError, match=r"mine\.py defines no function or class 'LIMIT'"):
        of_source(source, "LIMIT")
    source.with_name("bad.py").write_text("def f(:\n", encoding="utf-8")
    with pytest.raises(SyntaxError):
        of_source(source.with_name("bad.py"), "f")
