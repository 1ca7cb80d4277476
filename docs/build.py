"""Writes the reference parts of docs/*.md from docstrings and signatures, so that they cannot rot.

A part stands between `<!-- reference:NAME -->` and `<!-- /reference -->`; NAME is one of `PARTS`. All else is written
by hand. `--check` changes nothing and exits 1 where a part is not what the source gives.

    python docs/build.py
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from posttrain_plugins import types
from posttrain_plugins.guard.settings import GuardSettings
from posttrain_plugins.models.training_memory import SHAPES, Training, training_bytes
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.declarations import DECLARATIONS
from posttrain_plugins.plugins.registry import Plugin
from posttrain_plugins.plugins.schema import type_name
from posttrain_plugins.recipe.check.local_paths import FILE_OPTIONS
from posttrain_plugins.recipe.check.references import MEANINGS, RESERVED
from posttrain_plugins.recipe.describe import catalogue
from posttrain_plugins.recipe.describe.json_schema import argument_docs
from posttrain_plugins.record.health import CHECKS
from posttrain_plugins.types import KINDS

__all__ = ["PARTS", "render"]

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- reference:(?P<name>[\w.-]+) -->\n)(?P<body>.*?)(<!-- /reference -->)", re.DOTALL)
DISTRIBUTION = "posttrain-plugins"
LONGEST_DEFAULT = 48
API_FILES = ("requests", "stage", "references", "plugins")  # what most readers look for stands first
LOOP = {"repeat": int, "init": str, "stages": dict, "${prev}": str}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a part is stale")
    is_check = parser.parse_args().check
    stale = [file for file in sorted(DOCS.glob("*.md")) if not fill(file, is_check)]
    for file in stale:
        print(f"error: docs/{file.name} is stale: its reference is not what the source gives", file=sys.stderr)
    if stale:
        print("\nhint: python docs/build.py", file=sys.stderr)
    return bool(stale)


def fill(file: Path, is_check: bool) -> bool:
    """Write a page's parts; return False if `is_check` and one is stale."""
    text = file.read_text(encoding="utf-8")
    rendered = render(text)
    if rendered != text and not is_check:
        file.write_text(rendered, encoding="utf-8")
    return rendered == text or not is_check


def render(text: str) -> str:
    """Return the text with every part as the source gives it."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{PARTS[found['name']]().strip()}\n\n{found[4]}", text)


# --- plugins ---------------------------------------------------------------------------------------------------------


def plugins_of(kind: Any) -> str:
    """Return a section for every plugin of a kind that is our own."""
    ours = [plugin for plugin in registry.installed(kind) if plugin.distribution == DISTRIBUTION]
    return "\n\n".join("\n".join(_plugin(plugin)) for plugin in ours)


def _plugin(plugin: Plugin) -> Iterator[str]:
    (shown,) = catalogue.show(plugin.name, plugin.kind)
    docs = argument_docs(shown["doc"])
    yield f"### `{plugin.name}`\n"
    yield _about(Path(shown["source"]), shown["doc"]) + "\n"
    if shown["produces"]:
        yield f"Produces: {shown['produces']}.\n"
    if shown["columns"]:
        yield f"Needs columns: {_columns(shown['columns'])}.\n"
    own = _own(plugin, [field["name"] for field in shown["parameters"]])
    rows = [field for field in shown["parameters"] if field["name"] in own]
    if rows:
        yield "| parameter | type | default | |\n|---|---|---|---|"
        yield from (_row(field, docs.get(field["name"], "")) for field in rows)
    borrowed = getattr(plugin.load(), "params_of", None)
    if borrowed:
        yield f"\nand every field of `{borrowed.replace(':', '.')}`."


def _about(source: Path, doc: str) -> str:
    """Return the plugin's first paragraphs, and the module's, which name the paper."""
    module = (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").partition("\n\n1. ")[0]
    own = doc.strip().partition("\n\nArgs:")[0].partition("\n\nRaises:")[0].partition("\n\nExample:")[0]
    return f"{_joined(own)}\n\n{_joined(module)}"


def _joined(text: str) -> str:
    """Return paragraphs, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.partition("\n\n|")[0].split("\n\n"))


def _own(plugin: Plugin, names: list[str]) -> set[str]:
    """Return the parameters that it names itself; those of a class that it borrows from are PEFT's."""
    loaded = plugin.load()
    return set(names) if isinstance(loaded, type) else set(inspect.signature(loaded).parameters) & set(names)


def _row(field: dict[str, Any], doc: str) -> str:
    default = "required" if field["required"] else _default(field["default"])
    return f"| `{field['name']}` | {_cell(field['type'])} | {default} | {doc.replace('|', chr(92) + '|')} |"


def _default(value: Any) -> str:
    text = repr(value)
    return f"`{_cell(text)}`" if len(text) <= LONGEST_DEFAULT else "see its source"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _columns(needed: Any) -> str:
    if isinstance(needed, dict):
        return "; ".join(f"`{name}`: {' or '.join(' + '.join(g) for g in groups)}" for name, groups in needed.items())
    return ", ".join(f"`{name}`" for name in needed)


def stage_columns() -> str:
    """Return a table of columns and the stages of ours that need them of their `dataset`, as their classes say it."""
    stages: dict[str, list[str]] = {}
    for plugin in registry.installed("stage"):
        columns = catalogue.show(plugin.name, "stage")[0]["columns"] if plugin.distribution == DISTRIBUTION else None
        if columns and "dataset" in columns:
            needed = ", or ".join(" + ".join(f"`{name}`" for name in group) for group in columns["dataset"])
            stages.setdefault(needed, []).append(f"`{plugin.name}`")
    return "\n".join(["| columns | stages |", "|---|---|", *(f"| {n} | {', '.join(s)} |" for n, s in stages.items())])


# --- other parts -----------------------------------------------------------------------------------------------------


def capabilities() -> str:
    """Return the table of what a plugin may declare."""
    lines = ["| attribute | kinds | type | default | says | read by |", "|---|---|---|---|---|---|"]
    for one in DECLARATIONS.values():
        kinds = "all" if one.kinds == KINDS else ", ".join(one.kinds)
        default = "" if one.default is None else f"`{one.default!r}`"
        readers = ", ".join(one.readers)
        lines.append(f"| `{one.name}` | {kinds} | `{_cell(one.type)}` | {default} | {one.meaning} | {readers} |")
    return "\n".join(lines)


def api() -> str:
    """Return a table for each dataclass that `posttrain_plugins.types` exports, file by file."""
    classes = [getattr(types, name) for name in types.__all__]
    own = [one for one in classes if dataclasses.is_dataclass(one) and isinstance(one, type)]
    own.sort(key=lambda one: (API_FILES.index(one.__module__.rpartition(".")[2]), inspect.getsourcelines(one)[1]))
    return "\n\n".join("\n".join(_fields(one)) for one in own)


def _fields(one: type) -> Iterator[str]:
    doc = inspect.getdoc(one) or ""
    meanings = argument_docs(doc)
    yield f"### `{one.__name__}`\n"
    yield _joined(doc.partition("\n\nArgs:")[0]) + "\n"
    yield "| field | type | default | |\n|---|---|---|---|"
    for field in dataclasses.fields(one):
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        shown = f"{type(made).__name__}()" if dataclasses.is_dataclass(made) else repr(made)
        default = "a new one" if " at 0x" in shown else f"`{_cell(shown)}`"
        default = "required" if made is dataclasses.MISSING else default
        yield f"| `{field.name}` | `{_cell(str(field.type))}` | {default} | {_cell(meanings[field.name])} |"


def training() -> str:
    """Return a section for each function that a stage of one's own may call."""
    from posttrain_plugins.trainers import experimental, training

    found = []
    for module in (training, experimental):
        for function in sorted(
            (getattr(module, name) for name in module.__all__), key=lambda one: inspect.getsourcelines(one)[1]
        ):
            doc = inspect.getdoc(function) or ""
            meanings = argument_docs(doc.replace("**", ""))
            rows = ["| argument | type | default | |", "|---|---|---|---|"]
            for name, one in inspect.signature(function).parameters.items():
                stars = "**" if one.kind is one.VAR_KEYWORD else ""
                default = "" if stars else "required" if one.default is one.empty else f"`{one.default!r}`"
                rows.append(
                    f"| `{stars}{name}` | `{_cell(str(one.annotation))}` | {default} | {_cell(meanings[name])} |"
                )
            returns = doc.partition("\nReturns:\n")[2].partition("\n\n")[0]
            about, title = _joined(doc.partition("\n\nArgs:")[0]), f"{module.__name__}.{function.__name__}"
            found.append(f"### `{title}`\n\n{about}\n\n" + "\n".join(rows) + f"\n\nReturns: {_joined(returns)}")
    return "\n\n".join(found)


def own_stage() -> str:
    """Return the file of an example, as it is tested."""
    return f"```python\n{(DOCS.parent / 'examples/own_stage/gmpo.py').read_text(encoding='utf-8').strip()}\n```"


def training_memory() -> str:
    """Return a row for each size: GiB of training in each way, with and without gradient checkpointing."""
    ways = [(training, size) for training in typing.get_args(Training) for size in (4, 2)]
    head = [f"{training}, {'float32' if size == 4 else 'bfloat16'}" for training, size in ways]
    rows = [f"| size | parameters | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|"]
    for name, shape in SHAPES.items():
        found = []
        for training, size in ways:
            each = [
                training_bytes(shape, training, tokens=512, dtype_bytes=size, is_checkpointed=is_on) / 2**30
                for is_on in (False, True)
            ]
            found.append(f"{each[0]:.1f} ({each[1]:.1f})")
        rows.append(f"| {name} | {shape.parameters / 1e9:.2f}e9 | {' | '.join(found)} |")
    return "\n".join(rows)


def checks() -> str:
    """Return every check of the kit with its reason."""
    from posttrain_plugins.testing import CHECKS as OF_KIND
    from posttrain_plugins.testing import general

    parts = [("every kind", general.CHECKS)]
    parts += [
        (f"{kind}s" if kind != "strategy" else "strategies", OF_KIND[kind][len(general.CHECKS) :]) for kind in KINDS
    ]
    return "\n\n".join(_checks(title, found) for title, found in parts)


def _checks(title: str, found: Any) -> str:
    lines = [f"**{title}**\n"]
    for check in found:
        what, _, why = inspect.cleandoc(check.__doc__).partition("\n\n")
        lines.append(f"- `{check.__name__}`: {' '.join(what.split())} *{' '.join(why.split())}*")
    return "\n".join(lines)


def health() -> str:
    """Return a table of what is looked at in a training, with thresholds, cure and source."""
    lines = [
        "| check | figure | warn | bad | what is found | write into the recipe | threshold from |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in CHECKS:
        sign = ">" if one.bad >= one.warn else "<"
        limits = f"{sign} {one.warn:g} | {sign} {one.bad:g}"
        lines.append(
            f"| {one.name} | `{one.figure}` | {limits} | {one.what} | {_cell(one.cure)} | {_cell(one.source)} |"
        )
    return "\n".join(lines)


def reserved() -> str:
    """Return a table of the words beside a plugin's own parameters, with their types."""
    said = {**MEANINGS, "reward": {**MEANINGS["reward"], **argument_docs(inspect.getdoc(GuardSettings) or "")}}
    words = {**RESERVED, "dataset": FILE_OPTIONS, "loop": LOOP}
    lines = ["| on | word | type | |", "|---|---|---|---|"]
    for kind, known in words.items():
        for name, annotation in known.items():
            lines.append(f"| {kind} | `{name}` | {_cell(type_name(annotation))} | {said[kind][name]} |")
    return "\n".join(lines)


def commands() -> str:
    """Return a table of every command with its first paragraph."""
    import typer

    from posttrain_plugins.cli.commands import app

    lines: list[str] = []
    for path, command in _commands(typer.main.get_command(app), "posttrain"):
        first = (command.help or "").strip().partition("\n\n")[0]
        lines.append(f"| `{path}` | {_cell(' '.join(first.split()))} |")
    return "\n".join(["| command | |", "|---|---|", *lines])


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, one in inner.items():
        yield from _commands(one, f"{path} {name}")


PARTS: dict[str, Callable[[], str]] = {
    **{registry.PLURAL[kind]: (lambda kind=kind: plugins_of(kind)) for kind in KINDS},
    "api": api,
    "capabilities": capabilities,
    "checks": checks,
    "commands": commands,
    "health": health,
    "own_stage": own_stage,
    "reserved": reserved,
    "stage_columns": stage_columns,
    "training": training,
    "training_memory": training_memory,
}
"""What may stand between the marks."""


if __name__ == "__main__":
    sys.exit(main())
