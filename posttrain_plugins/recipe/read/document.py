"""YAML text -> plain values, with the place of every key and value, so that each mistake can be told with its line.

Numbers and booleans are YAML 1.2's (`1e-5` is a float, `on` and `yes` are strings). A key that stands twice is a
mistake. `extends:` builds on another recipe and `-o a.b=c` overrides: dicts merge, lists replace.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from posttrain_plugins.errors import InputError, Mistake, RecipeErrors
from posttrain_plugins.recipe.files import exists
from posttrain_plugins.recipe.read.secrets import holds_secret
from posttrain_plugins.text.yaml12 import INTEGER, TextLoader, scalar

__all__ = ["Document", "Place", "anchored", "dump", "load"]

Keys: TypeAlias = tuple[str | int, ...]
PREV = "${prev}"
MAX_MIB = 2
"""A recipe names its data and does not hold them; parsing more than this takes seconds and hundreds of MiB."""
MAX_VALUES = 100_000
"""Values after aliases are written out: `[*a, *a]` on forty levels is a few lines, and more than all memory."""
MAX_DIGITS = 4000  # Python converts no more between text and integers (`sys.set_int_max_str_digits`)
_PREV_SAFE = "$<prev>"  # `{` may not stand in a plain scalar of a flow mapping; of equal length, so columns stay true


@dataclass(frozen=True)
class Place:
    """Where something stands: file as the user named it, line and column from 1 (0 for an override)."""

    file: str
    line: int = 0
    column: int = 0

    def mistake(self, message: str, hint: str | None = None) -> Mistake:
        return Mistake(self.file, self.line, self.column, message, hint)


@dataclass
class Document:
    """A recipe's values and where each of them stands.

    Args:
        file: the recipe's file.
        data: plain values.
        keys: path of keys -> place of the key.
        values: path of keys -> place of the value.
        mistakes: what was wrong with the YAML itself.
        shared: top-level keys whose value stands elsewhere too, by an alias or a merge key.
    """

    file: Path
    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[Keys, Place] = field(default_factory=dict)
    values: dict[Keys, Place] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    shared: frozenset[str] = frozenset()

    def place(self, path: Keys, of_key: bool = False) -> Place:
        """The place of a value (or its key); of its nearest ancestor where it has none of its own."""
        table = self.keys if of_key else self.values
        while path:
            if path in table:
                return table[path]
            if path in self.values:
                return self.values[path]
            path = path[:-1]
        return self.values.get((), Place(str(self.file), 1, 1))

    def merge(self, path: Keys, value: Any, other: Document | Place) -> None:
        """Puts `value` at `path`: mappings merge, all else replaces, with places taken from `other`."""
        if isinstance(value, Mapping) and isinstance(self.get(path), dict):
            for name, item in value.items():
                self.merge((*path, name), item, other)
            return
        for table in (self.keys, self.values):
            for stale in [p for p in table if p[: len(path)] == path]:
                del table[stale]
        # Places go with their values: a mistake that an override brought is told at the override, and not at the line
        # of the file whose value it replaced.
        if isinstance(other, Place):
            self.keys[path] = self.values[path] = other
        else:
            self.keys.update({p: at for p, at in other.keys.items() if p[: len(path)] == path})
            self.values.update({p: at for p, at in other.values.items() if p[: len(path)] == path})
        self._set(path, value)

    def get(self, path: Keys) -> Any:
        value: Any = self.data
        for part in path:
            if not isinstance(value, dict) or part not in value:
                return None
            value = value[part]
        return value

    def _set(self, path: Keys, value: Any) -> None:
        target = self.data
        for part in path[:-1]:
            if not isinstance(target.get(str(part)), dict):
                target[str(part)] = {}
            target = target[str(part)]
        target[str(path[-1])] = value


def load(file: Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Document:
    """Reads a recipe, what it extends, and the overrides.

    Args:
        file: the recipe.
        overrides: `{"stages.dpo.args.beta": 0.1}` or `["stages.dpo.args.beta=0.1"]`; the second form's values are YAML.

    Raises:
        InputError: no such file, or it is not text.
        RecipeErrors: the YAML cannot be read at all.
    """
    document = _load_extended(file, ())
    for path, value, place in _overrides(overrides):
        document.merge(path, value, place)
    return document


def _load_extended(file: Path, seen: tuple[Path, ...]) -> Document:
    document = _read(file)
    parent = document.data.pop("extends", None)
    if parent is None:
        return document
    place = document.place(("extends",))
    if not isinstance(parent, str):
        raise RecipeErrors([place.mistake(f"'extends' names a recipe file, found {parent!r}")])
    base_file = (file.parent / parent).resolve()
    if base_file in (*seen, file.resolve()):
        raise RecipeErrors([place.mistake(f"'{parent}' extends itself")])
    if not (exists(base_file) and base_file.is_file()):
        raise RecipeErrors([place.mistake(f"'extends': no file {base_file}")])
    base = _load_extended(base_file, (*seen, file.resolve()))
    # The parent's paths start from its own folder, so they are made absolute before the child's, which start from
    # another, stand among them.
    base.data = anchored(base.data, base_file.parent)
    for name, value in document.data.items():
        base.merge((name,), value, document)
    base.values[()] = document.place(())
    shared = base.shared | document.shared
    return Document(file, base.data, base.keys, base.values, base.mistakes + document.mistakes, shared)


def anchored(value: Any, folder: Path, key: str = "") -> Any:
    """A recipe's values with relative paths made absolute, so that they mean the same from any folder.

    A path is what starts with `./`, `../` or `~/`, and what names an existing file or folder and has a slash or a
    suffix, or stands at `path` or `model_name_or_path`.
    """
    if isinstance(value, dict):
        return {k: anchored(v, folder, k) for k, v in value.items()}
    if isinstance(value, list):
        return [anchored(v, folder) for v in value]
    if not isinstance(value, str):
        return value
    head, colon, attr = value.rpartition(":") if ".py:" in value else (value, "", "")
    return f"{_joined(folder, head)}{colon}{attr}" if _is_path(head, folder, key) else value


def _is_path(text: str, folder: Path, key: str) -> bool:
    if key in ("name", "description") or "\n" in text:
        return False
    if text.startswith(("./", "../", "~/")):
        return True
    if not ("/" in text or Path(text).suffix or key in ("path", "model_name_or_path")):
        return False
    try:
        return (folder / text).exists()
    except OSError:  # too long for a name
        return False


def _joined(folder: Path, path: str) -> str:
    return os.path.normpath(folder / Path(path).expanduser())  # links stay as they are


def _overrides(given: Mapping[str, Any] | Sequence[str]) -> Iterator[tuple[Keys, Any, Place]]:
    if isinstance(given, Mapping):
        for name, value in given.items():
            yield tuple(name.split(".")), value, Place(f"override {name}")
        return
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"override '{text}' is not KEY=VALUE", hint="for instance -o stages.dpo.args.beta=0.1")
        keys, parsed = tuple(name.strip().split(".")), parse_value(value)
        # every message about it begins with its place, which must not repeat what is refused
        yield keys, parsed, Place(f"-o {name}=***" if holds_secret(keys[-1], parsed) else f"-o {text}")


def parse_value(text: str) -> Any:
    """One YAML 1.2 value; `>=0.8` in one line is text, not the head of a block."""
    if text.strip().startswith((">", "|")) and "\n" not in text:
        return text.strip()
    try:
        node = yaml.compose(text.replace(PREV, _PREV_SAFE), Loader=TextLoader)
    except yaml.YAMLError as cause:
        raise InputError(f"'{text}' is not a YAML value: {_problem(cause)}") from cause
    return None if node is None else _Builder("").build(node, ())


def _read(file: Path) -> Document:
    try:
        if file.exists() and not file.is_file():  # a FIFO or a device is read for ever
            raise InputError(f"recipe {file} cannot be read: it is no regular file")
        if file.stat().st_size > MAX_MIB << 20:
            size = f"{file.stat().st_size / 2**20:.1f} MiB, expected at most {MAX_MIB}"
            raise InputError(
                f"recipe {file} has {size}", hint="name data by a file: datasets: {demos: {path: demos.jsonl}}"
            )
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no recipe file {file}") from None
    except (OSError, ValueError) as cause:
        raise InputError(f"recipe {file} cannot be read: {cause}") from cause
    try:
        node = yaml.compose(text.replace(PREV, _PREV_SAFE), Loader=TextLoader)
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)
        place = Place(str(file), mark.line + 1, mark.column + 1) if mark else Place(str(file), 1, 1)
        raise RecipeErrors([place.mistake(f"not YAML: {_problem(cause)}")]) from cause
    except RecursionError:
        raise RecipeErrors(
            [Place(str(file), 1, 1).mistake("lists or mappings stand too deep in one another")]
        ) from None
    if not isinstance(node, yaml.MappingNode):
        raise RecipeErrors([Place(str(file), 1, 1).mistake("a recipe is a mapping with 'model' and 'stages'")])
    builder = _Builder(str(file))
    try:
        data = builder.build(node, ())
    except RecursionError:
        raise RecipeErrors(
            [
                Place(str(file), 1, 1).mistake(
                    "an alias (*name) contains itself, or lists and mappings stand too deep in one another"
                )
            ]
        ) from None
    shared = frozenset(key.value for key, value in node.value if builder.uses[id(value)] > 1)
    return Document(file, data, builder.keys, builder.values, builder.mistakes, shared)


def dump(data: Mapping[str, Any]) -> str:
    """YAML that `load` reads back as the same values (PyYAML's own dumper quotes by YAML 1.1)."""
    return yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _problem(cause: yaml.YAMLError) -> str:
    return str(getattr(cause, "problem", None) or cause).splitlines()[0]


class _Dumper(yaml.SafeDumper):
    def represent_text(self, text: str) -> yaml.Node:
        style = None if scalar(text) is text else "'"
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(str, _Dumper.represent_text)


class _Builder:
    """Turns composed nodes into values and notes where each stands."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.keys: dict[Keys, Place] = {}
        self.values: dict[Keys, Place] = {}
        self.mistakes: list[Mistake] = []
        self.number = 0
        self.uses: Counter[int] = Counter()  # of a node by its identity: an alias is the very node that it names

    def build(self, node: yaml.Node, path: Keys) -> Any:
        self.values[path] = self._place(node)
        self.number += 1
        self.uses[id(node)] += 1
        if self.number > MAX_VALUES:
            message = f"more than {MAX_VALUES:,} values, with each alias (*name) written out"
            raise RecipeErrors([self._place(node).mistake(message, "use fewer aliases")])
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        assert isinstance(node, yaml.ScalarNode)
        text = node.value.replace(_PREV_SAFE, PREV)
        if "\0" in text:  # no path, no name and no prompt has one
            self.mistakes.append(self._place(node).mistake("a text with a NUL character", "remove it"))
            return text.replace("\0", "")
        if node.style:
            return text  # quoted and block scalars stay text
        if len(text) > MAX_DIGITS and INTEGER.fullmatch(text):
            self.mistakes.append(self._place(node).mistake(f"a number of {len(text):,} digits", "write a smaller one"))
            return 0
        return scalar(text)

    def _mapping(self, node: yaml.MappingNode, path: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in self._with_merged(node):
            if not isinstance(key_node, yaml.ScalarNode):
                self.mistakes.append(self._place(key_node).mistake("a key is text, found a list or mapping"))
                continue
            name = key_node.value.replace(_PREV_SAFE, PREV)
            # YAML takes the last of two without a word, and half of a recipe would be gone.
            if name in values:
                first = self.keys[(*path, name)]
                message = f"duplicate id '{name}', first at line {first.line}"
                self.mistakes.append(self._place(key_node).mistake(message, "rename one of them"))
                continue
            self.keys[(*path, name)] = self._place(key_node)
            values[name] = self.build(value_node, (*path, name))
        return values

    def _with_merged(self, node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
        """The pairs of a mapping, after those that its merge keys (`<<: *defaults`) bring and it does not have itself.

        Of several mappings in a list the first that has a key wins: https://yaml.org/type/merge.html.
        """
        is_merge = [isinstance(key, yaml.ScalarNode) and key.value == "<<" and not key.style for key, _ in node.value]
        if not any(is_merge):
            return node.value  # type: ignore[no-any-return]
        own = [pair for pair, merges in zip(node.value, is_merge, strict=True) if not merges]
        taken = {key.value for key, _ in own}
        inherited = []
        for (key, value), merges in zip(node.value, is_merge, strict=True):
            for source in (value.value if isinstance(value, yaml.SequenceNode) else [value]) if merges else ():
                if not isinstance(source, yaml.MappingNode):
                    self.mistakes.append(
                        self._place(key).mistake("'<<' merges a mapping or a list of them", "<<: *name")
                    )
                    continue
                self.uses[id(source)] += 1
                new = [pair for pair in self._with_merged(source) if pair[0].value not in taken]
                taken |= {key.value for key, _ in new}
                inherited += new
        return [*inherited, *own]

    def _place(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)
