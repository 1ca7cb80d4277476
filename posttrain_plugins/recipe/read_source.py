"""What of a Python file counts for whoever imports it: its code without comments and docstrings, and its imports.

A parse costs milliseconds, and a plan looks at hundreds of files: what was found of a file is kept in the user's cache
folder by the hash of its content, so it is never out of date, and a file that cannot be read or written there costs
time and nothing else. No paper.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

__all__ = ["CodeRead", "Import", "read_code", "save_what_was_read"]

Import: TypeAlias = tuple[int, str, str]
"""Level, module and name, as `from ..module import name` has them; the name is empty in `import module`."""

MOST = 5000
"""Files that are kept; above, those that this process did not ask for are forgotten."""


class CodeRead(NamedTuple):
    """What counts of a file.

    Args:
        code: the hash of its code.
        imports: in the order in which they are met, also inside functions.
    """

    code: str
    imports: tuple[Import, ...]


def read_code(content: bytes) -> CodeRead:
    """Return what counts of a Python file.

    Args:
        content: of the file.

    Raises:
        SyntaxError: it is no Python.
    """
    return _memory().of(content)


def save_what_was_read() -> None:
    """Keep what is new for the processes after this one; best effort."""
    _memory().save()


def _read(content: bytes) -> CodeRead:
    tree = ast.parse(content)
    imports: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports += [(node.level, node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:] or [ast.Pass()]
    # Unparsed, so that neither comments nor line breaks count. Another Python may unparse otherwise: then a stage
    # runs once more than it had to, which is the safe side.
    return CodeRead(hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), tuple(imports))


class _Memory:
    """What was read, by the hash of the content; `file`, if there is one, has it from process to process."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.used: dict[str, CodeRead] = {}
        self.is_changed = False
        # whoever changes how a file is read has another file here, and what is kept was read in another way
        self.made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        self.known: dict[str, CodeRead] = {}
        if file is None:
            return
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["made by"] == self.made_by:
                self.known = {
                    key: CodeRead(code, tuple((int(level), str(module), str(name)) for level, module, name in imports))
                    for key, (code, imports) in kept["read"].items()
                }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # none yet, or torn: all is read again

    def of(self, content: bytes) -> CodeRead:
        key = hashlib.sha256(content).hexdigest()
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = _read(content)
            self.is_changed = True
        self.used[key] = found
        return found

    def save(self) -> None:
        if self.file is None or not self.is_changed:
            return
        self.is_changed = False
        kept = self.known if len(self.known) <= MOST else self.used
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # each process renames a whole file, and the worst that happens is that something is read twice
            scratch = self.file.with_suffix(f".{os.getpid()}.tmp")
            scratch.write_text(json.dumps({"made by": self.made_by, "read": kept}), encoding="utf-8")
            scratch.replace(self.file)
        except OSError:
            pass


@cache
def _memory() -> _Memory:
    name = f"sources-{sys.version_info.major}.{sys.version_info.minor}.json"
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # a user whom the machine does not know, as in a container with a number for one
        return _Memory(None)
    return _Memory(home / "posttrain-plugins" / name)
