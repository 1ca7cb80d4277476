"""`docs/refusals.md` lists every refusal that a stage can raise at its start, and whether `validate` tells it.

Read from the source: each `raise InputError` or `HandoffError` in what runs when a stage starts. A new one is a row to
write, one that is gone a row to strike out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import posttrain_plugins

PACKAGE = Path(posttrain_plugins.__file__).parent
PAGE = Path(__file__).parent.parent / "docs/refusals.md"
STARTING = ("stages", "trainers", "models", "adapters", "recipe/run/inputs.py", "recipe/run/data.py")
STARTING += ("recipe/handoff.py", "recipe/check/compatibility.py")
REFUSALS = {"InputError", "HandoffError"}


def text_of(node: ast.AST, names: dict[str, list[ast.AST]]) -> str:
    """The words of a message, with `…` for each value; a local name stands for what was assigned to it last."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [(part, isinstance(part, ast.Constant)) for part in node.values]
        return "".join(text_of(part, names) if is_text else inner(part, names) for part, is_text in parts)
    if isinstance(node, ast.BinOp):
        return text_of(node.left, names) + text_of(node.right, names)
    if isinstance(node, ast.Name) and names.get(node.id):
        return text_of(names[node.id][-1], {})
    return "…"


def inner(part: ast.AST, names: dict[str, list[ast.AST]]) -> str:
    """A message in braces that was put together before."""
    value = part.value if isinstance(part, ast.FormattedValue) else part
    if isinstance(value, ast.Name) and value.id in ("message", "found", "problem") and names.get(value.id):
        return text_of(names[value.id][-1], {})
    return "…"


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """What stands in a function, but for the functions inside it."""
    for node in ast.iter_child_nodes(function):
        yield node
        if not isinstance(node, ast.FunctionDef):
            yield from own_nodes(node)


def refusals() -> Iterator[tuple[str, str]]:
    """`file:function` and the message of every one."""
    whole = [file for start in STARTING for file in (PACKAGE / start).rglob("*.py")]
    for file in sorted([*whole, *(PACKAGE / start for start in STARTING if start.endswith(".py"))]):
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            names: dict[str, list[ast.AST]] = {}
            for node in sorted((n for n in own_nodes(function) if hasattr(n, "lineno")), key=lambda n: n.lineno):
                if isinstance(node, ast.Assign):
                    for target in ast.walk(node.targets[0]):  # of a tuple nobody knows which value is whose
                        if isinstance(target, ast.Name):
                            is_one = target is node.targets[0]
                            names[target.id] = [*names.get(target.id, []), node.value] if is_one else []
                made = node.exc if isinstance(node, ast.Raise) else None
                if isinstance(made, ast.Call) and isinstance(made.func, ast.Name) and made.func.id in REFUSALS:
                    words = re.sub(r"\s+", " ", text_of(made.args[0], names)).replace("|", "/").strip()
                    yield f"{file.relative_to(PACKAGE)}:{function.name}", words


def listed() -> dict[tuple[str, str], str]:
    """The page's rows -> what stands in their last column."""
    rows = re.findall(r"^\| `([^`|]+)` \| (.+?) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {(where, message): told for where, message, told in rows}


def test_the_page_lists_what_the_code_raises() -> None:
    found, page = set(refusals()), listed()
    assert len(found) > 80
    rows = "\n".join(f"| `{where}` | {message} | ? |" for where, message in sorted(found - page.keys()))
    assert not rows, f"docs/refusals.md lacks, to be told by `validate` or with the reason why not:\n{rows}"
    assert page.keys() == found, f"docs/refusals.md has rows of what is gone: {sorted(page.keys() - found)}"


def test_each_row_says_whether_validate_tells_it() -> None:
    page = listed()
    for row, told in page.items():
        assert re.match(r"yes$|yes, |in part: |no: ", told), row
    share = sum(told.startswith(("yes", "in part")) for told in page.values()) / len(page)
    text = PAGE.read_text(encoding="utf-8")
    assert f"{sum(told.startswith('yes') for told in page.values())} of {len(page)}" in text
    assert share > 0.5
