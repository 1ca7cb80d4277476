"""House rules that a program can count: limits that may only get stricter, and the one form of a link.

A figure that has fallen is written down here; one that rises is mended where it rose. Renaming a private function to
public, or moving it to another file, escapes the count and helps no reader.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import posttrain_plugins

PACKAGE = Path(posttrain_plugins.__file__).parent
TESTS = Path(__file__).parent
ROOT = TESTS.parent

MOST_JUMPING = 0.08
"""Share of public functions that need more than `MOST_JUMPS` private functions of their file to be read."""
MOST_JUMPS = 2
LEAST_COMMENTED = 0.04
"""Share of lines with a comment that says something."""
MOST_NOUNS = 0.1
"""Share of functions' docstrings that begin with a noun phrase and not with a verb."""
MOST_OLD_LINKS = 0
"""Papers that are named by `arXiv:` or arxiv.org."""

MOST_TEST_LINES = 700

NOUN_WORDS = frozenset(
    {
        *("the", "a", "an", "of", "what", "how", "one", "its", "all", "each", "every", "whether", "which", "where"),
        *("no", "nothing", "by", "as", "in", "with", "for"),
    }
)


def sources(package: Path) -> list[Path]:
    """The package's files, without those that `plugins new` copies."""
    return sorted(file for file in package.rglob("*.py") if "templates" not in file.relative_to(package).parts)


# --- ratchets --------------------------------------------------------------------------------------------------------


def jumps(text: str) -> dict[str, int]:
    """`name:line` of every public function and method -> how many private ones of its file it leads to, by any way."""
    functions: dict[str, list[ast.AST]] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.setdefault(node.name, []).append(node)
    private = {name for name in functions if re.match(r"_(?!_)", name)}
    named = {
        name: {
            word
            for node in nodes
            for inner in ast.walk(node)
            if isinstance(inner, ast.Name | ast.Attribute)
            and (word := inner.id if isinstance(inner, ast.Name) else inner.attr) in private - {name}
        }
        for name, nodes in functions.items()
    }
    found = {}
    for name, nodes in functions.items():
        reached, waiting = set(), list(named[name])
        while waiting:
            new = waiting.pop()
            if new not in reached:
                reached.add(new)
                waiting += named[new]
        if not name.startswith("_"):
            found.update({f"{name}:{node.lineno}": len(reached) for node in nodes})  # type: ignore[attr-defined]
    return found


def comments(text: str) -> int:
    """Comments that are for readers."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(t.type == tokenize.COMMENT and not t.string.startswith(("# noqa", "# type")) for t in tokens)


def test_few_functions_need_many_private_ones_to_be_read() -> None:
    found = {
        f"{file.relative_to(PACKAGE)}:{name}": count
        for file in sources(PACKAGE)
        for name, count in jumps(file.read_text(encoding="utf-8")).items()
    }
    over = {name: count for name, count in found.items() if count > MOST_JUMPS}
    worst = sorted(over, key=lambda name: -over[name])
    assert len(found) > 500
    assert len(over) / len(found) <= MOST_JUMPING, "\n".join(f"{over[name]} {name}" for name in worst)


def test_comments_say_why() -> None:
    texts = [file.read_text(encoding="utf-8") for file in sources(PACKAGE)]
    share = sum(map(comments, texts)) / sum(len(text.splitlines()) for text in texts)
    assert share >= LEAST_COMMENTED, f"{100 * share:.2f} % of the lines"


def test_the_figures_of_a_file() -> None:
    text = (
        "def one():  # shape\n    _a()\n\n\ndef _a():\n    _b() or _c()\n\n\ndef _b():\n    _c()  # noqa: X\n\n\n"
        "def _c():\n    _a()\n\n\nclass C:\n    def two(self):\n        self._d()\n        # why\n"
        "    def _d(self):\n        pass\n    def __call__(self):\n        self._d() or _a()\n"
    )
    assert jumps(text) == {"one:1": 3, "two:18": 1}
    assert comments(text) == 2


# --- words -----------------------------------------------------------------------------------------------------------


def noun_docstrings(text: str) -> Iterator[tuple[int, bool]]:
    """Line of each function with a docstring, and whether that begins with a noun phrase. A check's is its rule."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("check_"):
            continue
        doc = ast.get_docstring(node)
        if doc and not any("property" in ast.unparse(decorator) for decorator in node.decorator_list):
            yield node.lineno, doc.split()[0].strip(",.;:").lower() in NOUN_WORDS


def test_docstrings_begin_with_a_verb() -> None:
    found = [
        (f"{file.relative_to(PACKAGE)}:{line}", is_noun)
        for file in sources(PACKAGE)
        for line, is_noun in noun_docstrings(file.read_text(encoding="utf-8"))
    ]
    nouns = [place for place, is_noun in found if is_noun]
    assert len(found) > 500
    assert len(nouns) / len(found) <= MOST_NOUNS, f"{len(nouns)} of {len(found)}:\n" + "\n".join(nouns)


def test_a_noun_phrase_is_told_from_a_verb() -> None:
    text = (
        'def a():\n    """Return the size."""\ndef b():\n    """The size."""\ndef check_c():\n    """A rule."""\n'
        '@property\ndef d():\n    """The size."""\n'
    )
    assert list(noun_docstrings(text)) == [(1, False), (3, True)]


OLD_LINK = re.compile(r"(?<!eprint = \{)arxiv:|arxiv\.org", re.IGNORECASE)  # BibTeX has a form of its own


def test_papers_are_linked_in_one_form() -> None:
    pages = [*PACKAGE.rglob("*.py"), *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.yaml")]
    pages += [ROOT / "README.md", *(ROOT / "examples").rglob("*.py")]
    old = [
        f"{page.relative_to(ROOT)}:{number}"
        for page in pages
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        for _ in OLD_LINK.findall(line)
    ]
    assert len(old) <= MOST_OLD_LINKS, "write https://huggingface.co/papers/ID:\n" + "\n".join(old)


# --- tests -----------------------------------------------------------------------------------------------------------


def test_files_of_tests_are_short_enough_to_be_read() -> None:
    lines = {
        file.relative_to(TESTS).as_posix(): file.read_text(encoding="utf-8").count("\n") for file in TESTS.rglob("*.py")
    }
    long = {name for name, count in lines.items() if count > MOST_TEST_LINES}
    assert len(lines) > 50
    assert long == set(), "a file of tests over 700 lines becomes a folder"


@pytest.mark.parametrize("file", ["a.py", "b/c.py"])
def test_every_file_is_counted(tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    assert sources(tmp_path) == [tmp_path / file]
