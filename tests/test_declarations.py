"""What a plugin may declare is one list: nothing else is read of a plugin, and each part reads what the list says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import posttrain_plugins
from posttrain_plugins.plugins.declarations import DECLARATIONS, Declaration, declared
from posttrain_plugins.types import KINDS

PACKAGE = Path(posttrain_plugins.__file__).parent
LEAVES = ("adapters", "datasets", "rewards", "stages", "strategies")

PLUGIN = re.compile(
    r"(^|[.\b])(plugin|reward|func|strategy|stage|adapter|loaded|definition|inner)$|load\(.*\)$|_callable\("
)
"""What an expression that stands for a plugin ends in, where the source names it as we do."""

OF_A_REWARD_MODEL = {"model_name_or_path", "max_length", "batch_size", "name"}
"""Parameters of a reward that is known to be `reward_model`, and the name of a reward that a recipe has resolved."""

BY_SIGNATURE = {"reward_columns"}
"""What a schema holds besides: the columns that a reward's call needs by its signature."""


def reads(text: str) -> Iterator[tuple[int, str]]:
    """Line and name of every attribute that is asked of a plugin, or of a plugin's schema, by its name."""
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        function, *names = (node.func, *(a.value for a in node.args[:2] if isinstance(a, ast.Constant)))
        word = next((name for name in names if isinstance(name, str)), None)
        if word is None or re.match("__|_[A-Z]", word):
            continue
        match function:
            case ast.Name("declared") | ast.Attribute(attr="declares" | "any_declares"):
                yield node.lineno, word
            case ast.Name("getattr" | "hasattr") if word in DECLARATIONS or PLUGIN.search(ast.unparse(node.args[0])):
                yield node.lineno, word
            case ast.Attribute(value=owner, attr="get") if ast.unparse(owner).endswith("attributes"):
                yield node.lineno, word


def reader(file: Path) -> str:
    room = file.relative_to(PACKAGE).parts[0]
    return "kit" if room == "testing" else "plugin" if room in LEAVES else "core"


@cache
def all_reads() -> list[tuple[str, str, str]]:
    """Reader, name and place of every read in the package."""
    return [
        (reader(file), name, f"{file.relative_to(PACKAGE)}:{line}")
        for file in sorted(PACKAGE.rglob("*.py"))
        if "templates" not in file.parts
        for line, name in reads(file.read_text(encoding="utf-8"))
        if name not in OF_A_REWARD_MODEL | BY_SIGNATURE
    ]


def test_nothing_is_read_of_a_plugin_that_is_not_declared() -> None:
    found = all_reads()
    assert len(found) > 60
    assert [(name, place) for _, name, place in found if name not in DECLARATIONS] == []


@pytest.mark.parametrize("one", DECLARATIONS.values(), ids=DECLARATIONS)
def test_a_declaration_is_read_by_whom_it_says(one: Declaration) -> None:
    # a plugin that asks a nested one what the core asks of the outer one needs no mention
    by = {who for who, name, _ in all_reads() if name == one.name}
    assert by - {"plugin"} == set(one.readers) - {"plugin"}
    assert by >= set(one.readers)


@pytest.mark.parametrize(
    "planted",
    [
        "getattr(reward.func, 'colour', None)",
        "hasattr(source.plugin.load(), 'colour')",
        "getattr(registry.load('reward', name), 'colour', 1)",
        "schema.attributes.get('colour')",
        "found.declares('colour')",
        "declared(made, 'colour')",
    ],
)
def test_a_planted_read_is_found(planted: str) -> None:
    assert list(reads(f"def f():\n    return {planted}\n")) == [(2, "colour")]


def test_what_is_no_plugin_is_not_counted() -> None:
    text = "getattr(model, 'hf_quantizer', None)\ngetattr(func, '__name__', '')\nhasattr(backend, 'aclose')\n"
    assert list(reads(text)) == []


def test_the_list_is_complete_in_itself() -> None:
    for one in DECLARATIONS.values():
        assert one.kinds
        assert set(one.kinds) <= set(KINDS)
        assert one.readers
        assert re.fullmatch(r"[A-Z`].*\.", one.meaning)


def test_an_absent_declaration_has_its_default_and_a_property_counts_on_objects() -> None:
    class Reward:
        @property
        def oracle(self) -> bool:
            return True

    assert declared(Reward, "oracle") is False
    assert declared(Reward(), "oracle") is True
    assert declared(Reward(), "tolerance") == 0.0
    with pytest.raises(KeyError):
        declared(Reward, "colour")
