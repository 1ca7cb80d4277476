"""No module outside `trainers/compat.py` and `models/` touches a private name of TRL, PEFT or transformers."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import posttrain_plugins
from posttrain_plugins.plugins.registry import import_object
from posttrain_plugins.trainers import compat

PACKAGE = Path(posttrain_plugins.__file__).parent
FOREIGN = ("trl", "peft", "transformers")
AT_HOME = ("trainers/compat.py", "models/")
"""Where private names of theirs may stand."""


@dataclass
class Definition:
    """A class of the package: its bases, `module:Class` where they are theirs, and the names that it defines."""

    bases: list[str] = field(default_factory=list)
    own: set[str] = field(default_factory=set)


def is_private(name: str) -> bool:
    """Names with one underscore, but for those that a named tuple has for everyone."""
    return (
        name.startswith("_") and not name.startswith("__") and name not in ("_asdict", "_fields", "_make", "_replace")
    )


def private_names(package: Path) -> list[str]:
    """Every private name of TRL, PEFT or transformers that a module of a package touches, as `file:line: what`.

    Such are: what is imported from them under a private name; `x._name` of anything but `self`, `cls` and `super()`
    (nowhere does a class of ours reach into another), also in `getattr` and the like; and of these three, in a class
    that derives from theirs, all that a base of theirs defines and `compat` does not list.
    """
    files = sorted(f for f in package.rglob("*.py") if not str(f.relative_to(package)).startswith("templates"))
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    classes = {}
    for tree in trees.values():
        imported = _imported(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = [imported.get(base.id, base.id) for base in node.bases if isinstance(base, ast.Name)]
                classes[node.name] = Definition(bases, set(_defined(node)))
    found = []
    for file, tree in trees.items():
        place = str(file.relative_to(package))
        if not place.startswith(AT_HOME):
            found += [f"{place}:{line}: {what}" for line, what in _touched(tree, classes)]
    return found


def _imported(tree: ast.Module) -> dict[str, str]:
    """Name -> `module:name` of what is imported from theirs, anywhere in a file."""
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").split(".")[0] in FOREIGN]
    return {alias.asname or alias.name: f"{node.module}:{alias.name}" for node in nodes for alias in node.names}


def _defined(node: ast.ClassDef) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inner.name
        elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and _is_own(inner.value):
            yield inner.attr
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id


def _is_own(node: ast.expr) -> bool:
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in ("self", "cls"))


def _touched(tree: ast.Module, classes: Mapping[str, Definition]) -> Iterator[tuple[int, str]]:
    modules = {alias.asname or alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    within = {
        id(inner): node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            origin = (getattr(node, "module", None) or parts[0]).split(".")
            if origin[0] in FOREIGN and any(map(is_private, origin + parts)):
                yield node.lineno, ast.unparse(node)
            continue
        if isinstance(node, ast.FunctionDef) and is_private(node.name) and id(node) in within:
            if node.name in _theirs(within[id(node)], classes):
                yield node.lineno, f"def {node.name}"
            continue
        owner, name = _access(node)
        if owner is None or not is_private(name):
            continue
        if _is_own(owner):
            if name in _theirs(within.get(id(node), ""), classes):
                yield node.lineno, ast.unparse(node)
        elif not (isinstance(owner, ast.Name) and owner.id in modules - set(FOREIGN)):  # `os._exit` is not theirs
            yield node.lineno, ast.unparse(node)


def _access(node: ast.AST) -> tuple[ast.expr | None, str]:
    """`x` and `name` of `x.name`, and of `getattr(x, "name")` and its kin."""
    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
        text = node.args[1]
        if node.func.id in ("getattr", "setattr", "hasattr", "delattr") and isinstance(text, ast.Constant):
            return node.args[0], str(text.value)
    return None, ""


def _theirs(name: str, classes: Mapping[str, Definition]) -> set[str]:
    """The private names that the foreign bases of a class define, but for those that `compat` lists."""
    found: set[str] = set()
    for base in classes[name].bases if name in classes else ():
        if ":" in base:
            found |= _foreign(base)
        elif base != name:
            found |= _theirs(base, classes)
    return found


@functools.cache
def _foreign(base: str) -> frozenset[str]:
    """The private names of one class of theirs, `module:Class`; its source is read once for all that derive from it."""
    lineage = [c for c in import_object(base).__mro__ if c.__module__.split(".")[0] in FOREIGN]
    sources = "".join(map(inspect.getsource, lineage))
    defined = {n for c in lineage for n in vars(c)} | set(re.findall(r"\bself\.(_\w+)\b", sources))
    listed = {n for c in lineage for n in compat.OVERRIDDEN.get(f"{c.__module__.split('.')[0]}:{c.__name__}", ())}
    return frozenset({n for n in defined if is_private(n)} - listed - set(compat.CLASS_ATTRIBUTES))


def test_no_private_name_is_touched_elsewhere() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) > 200
    assert private_names(PACKAGE) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("from trl.trainer.dpo_trainer import _tokenize", "from trl.trainer.dpo_trainer import _tokenize"),
        ("def f():\n    import trl._compat", "import trl._compat"),
        ("def f(trainer): trainer._metrics.clear()", "trainer._metrics"),
        (
            "def f(model): return getattr(model, '_adapters_disabled', False)",
            "getattr(model, '_adapters_disabled', False)",
        ),
        ("class Ours(DPOTrainer):\n    def f(self): self._metrics['train'].clear()", "self._metrics"),
        ("class Ours(DPOTrainer):\n    def _precompute_ref_logps(self): ...", "def _precompute_ref_logps"),
        ("class Ours(DPOTrainer):\n    def f(self): return super()._prepare_inputs({})", "super()._prepare_inputs"),
        ("class Ours(DPOTrainer):\n    def f(self): self._signature_columns = []", "self._signature_columns"),
        ("class A(DPOTrainer): ...\nclass B(A):\n    def f(self): return self._metrics", "self._metrics"),
        ("class Ours(PeftModel):\n    def f(self): self._adapters_disabled = 1", "self._adapters_disabled"),
    ],
)
def test_a_planted_private_name_is_found(tmp_path: Path, line: str, found: str) -> None:
    file = tmp_path / "trainers/a.py"
    file.parent.mkdir()
    file.write_text("import os\nfrom peft import PeftModel\nfrom trl import DPOTrainer\nos._exit\n", encoding="utf-8")
    assert private_names(tmp_path) == []
    file.write_text(file.read_text(encoding="utf-8") + line, encoding="utf-8")
    assert [text.partition(": ")[2] for text in private_names(tmp_path)] == [found]


@pytest.mark.parametrize(
    "line",
    [
        "class Ours(DPOTrainer):\n    def _prepare_dataset(self, *a): return super()._prepare_dataset(*a)",
        "class Ours(DPOTrainer):\n    _name = 'ours'\n    def f(self): self._ours = 1",
        "class Ours:\n    def f(self): self._metrics = 1",
    ],
)
def test_what_compat_lists_and_what_is_our_own_is_let_be(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.py").write_text(f"from trl import DPOTrainer\n{line}\n", encoding="utf-8")
    assert private_names(tmp_path) == []
