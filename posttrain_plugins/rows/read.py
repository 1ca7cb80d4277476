"""Files of rows, read with the values that stand in them.

`datasets.load_dataset` guesses types: in a column of mixed types it reads the text "007" as 7 and "null" as None, texts
that are all dates become timestamps, and `NA` in a CSV file becomes nothing. Here a JSON value keeps its JSON type, a
CSV cell is text unless `types` says otherwise, and what has no common type is refused with its line.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from posttrain_plugins.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["CELL_TYPES", "TEXT_SUFFIXES", "Row", "dataset_of_rows", "place_of", "read_rows"]

Row: TypeAlias = dict[str, Any]

TEXT_SUFFIXES = frozenset({".jsonl", ".json", ".csv", ".tsv", ".txt"})
CELL_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}
"""What `types: {column: ...}` may say of a CSV column."""

EXACT_INTEGERS = 2**53  # a float64 holds every integer up to here
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def read_rows(file: Path, types: Mapping[str, str] | None = None, limit: int | None = None) -> list[Row]:
    """Read the rows of a JSONL, JSON, CSV, TSV or text file.

    Args:
        file: by its suffix; one that is not known is read as JSONL.
        types: of CSV columns that are not text: `int`, `float` or `bool`.
        limit: read no more rows than this.

    Returns:
        One mapping a row, with the file's own values.

    Raises:
        InputError: the file, its line and what is wrong there.
    """
    rows = (row for _, row in _numbered_rows(file, types or {}))
    return list(islice(rows, limit))


def place_of(file: Path, index: int) -> str:
    """Return `file:line` of the row `index` (from 0), for messages."""
    if file.suffix in TEXT_SUFFIXES:
        # read once more, and only for a message: a number kept beside every row would be paid for by all files
        with contextlib.suppress(InputError, OSError):
            line = next(islice((line for line, _ in _numbered_rows(file, {})), index, None))
            return f"{file}:{line}" if line else f"{file}, element {index + 1}"
    return f"{file}, row {index + 1}"


def dataset_of_rows(rows: Sequence[Row], where: str) -> Dataset:
    """Make a data set whose values are those of the rows.

    Args:
        rows: at least one; a column that a row lacks is None there.
        where: what an error names, such as a file.

    Raises:
        InputError: a column holds values without a common type: both rows, and both values.
    """
    from datasets import Dataset, Features, __version__, config
    from datasets.arrow_writer import ArrowWriter

    # every row's names: a column that begins in the middle of a file is one too
    columns = list(dict.fromkeys(name for row in rows for name in row))
    features = Features(
        {name: _feature([row.get(name) for row in rows], f"{where}: column '{name}'") for name in columns}
    )
    # In a file and not in memory: `datasets` keeps what `map` makes of a data set beside the file of that data set, and
    # of one in memory it keeps nothing. Every run, and every process of a run, would tokenize every row again.
    digest = hashlib.sha256(f"{__version__} {columns} {features}".encode())
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    file = Path(config.HF_DATASETS_CACHE) / "posttrain" / f"{digest.hexdigest()[:32]}.arrow"
    if file.is_file():
        return Dataset.from_file(str(file))
    made = Dataset.from_list([{name: row.get(name) for name in columns} for row in rows], features=features)
    with contextlib.suppress(OSError):  # a full disk, a cache that is not ours: what is in memory is the same
        file.parent.mkdir(parents=True, exist_ok=True)
        # by a rename, since another process may read the same rows at this moment
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            written = Path(folder) / file.name
            with ArrowWriter(path=str(written), features=features) as writer:
                writer.write_table(made.data.table)
                writer.finalize()
            # the file's time is a part of the fingerprint by which `map` finds what it made: one for the same rows
            os.utime(written, (0, 0))
            written.rename(file)
        return Dataset.from_file(str(file))
    return made


# --- Reading ---------------------------------------------------------------------------------------------------------


def _numbered_rows(file: Path, types: Mapping[str, str]) -> Iterator[tuple[int, Row]]:
    """Yield every row with the line at which it starts, 0 where it has none of its own."""
    if file.suffix in (".csv", ".tsv"):
        yield from _csv_rows(file, types)
        return
    try:
        with file.open(encoding="utf-8-sig") as lines:
            if file.suffix == ".txt":
                yield from ((number, {"text": line.rstrip("\r\n")}) for number, line in enumerate(lines, 1))
            elif file.suffix == ".json" and (whole := _json_list(lines.read(), file)) is not None:
                yield from ((0, row) for row in whole)  # an element has no line
            else:
                lines.seek(0)  # many a file named `.json` holds JSON lines
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield number, _record(line, file, number)
    except UnicodeDecodeError as cause:
        raise InputError(f"{file} is not UTF-8: {cause}", hint=f"iconv -t utf-8 {file}") from cause


def _record(text: str, file: Path, number: int) -> Row:
    row = _parsed(text, f"{file}:{number}")
    if not isinstance(row, dict):
        raise InputError(
            f"{file}:{number}: found {_described(row)}, expected an object",
            hint='each line is one JSON object, {"prompt": ...}',
        )
    return row


def _json_list(text: str, file: Path) -> list[Row] | None:
    """Read a list of objects, as `json.dump` writes it; None where the file is JSON lines after all."""
    if not text.lstrip().startswith("["):
        return None
    rows = _parsed(text, str(file))
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(f"{file}: element {index + 1} is {_described(row)}, expected an object")
    return list(rows)


def _parsed(text: str, place: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> Row:
        row = dict(pairs)
        if len(row) < len(pairs):  # Python keeps the last: the first one's value would be lost without a word
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{place}: the key '{twice}' stands twice in one object", hint="keep one of the two")
        return row

    def refuse(constant: str) -> Any:
        raise InputError(f"{place}: {constant} is not JSON", hint="write null, or leave the key out")

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
        if "\\ud" in text.lower():  # rare, so the second pass is too
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # half of a pair has no UTF-8
    except UnicodeEncodeError as cause:
        raise InputError(
            f"{place}: half of a surrogate pair ({cause.object[cause.start]!r}) is no character",
            hint=r"write both halves, \ud83d\ude00, or the character itself",
        ) from cause
    except (ValueError, RecursionError) as cause:
        hint = "mend or remove that line; each line is one JSON object"
        raise InputError(f"{place}: not JSON: {cause}", hint=hint) from cause
    return value


def _csv_rows(file: Path, types: Mapping[str, str]) -> Iterator[tuple[int, Row]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
            names = next(reader, [])
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise InputError(f"{file}:1: two columns are called '{twice}'", hint="rename one of them")
            line = reader.line_num + 1  # a cell may span lines: the row starts behind the one before
            for cells in reader:
                if cells and len(cells) != len(names):
                    found = f"{len(cells)} cells, the first line names {len(names)} columns"
                    raise InputError(f"{file}:{line}: found {found}", hint='put text with a comma into "quotes"')
                if cells:
                    row = dict(zip(names, cells, strict=True))
                    yield (
                        line,
                        {name: _cell(text, types.get(name, "str"), f"{file}:{line}") for name, text in row.items()},
                    )
                line = reader.line_num + 1
    except csv.Error as cause:
        raise InputError(f"{file}:{reader.line_num}: not CSV: {cause}", hint="close the quotes") from cause
    except UnicodeDecodeError as cause:
        raise InputError(f"{file} is not UTF-8: {cause}", hint=f"iconv -t utf-8 {file}") from cause


def _cell(text: str, kind: str, place: str) -> Any:
    try:
        if kind == "bool":
            return TRUTHS[text.strip().lower()]
        return CELL_TYPES[kind](text)
    except (ValueError, KeyError) as cause:
        expected = "true, false, 1 or 0" if kind == "bool" else f"a value of type {kind}"
        raise InputError(f"{place}: found {text!r}, expected {expected}") from cause


# --- Types -----------------------------------------------------------------------------------------------------------


def _feature(values: Sequence[Any], place: str) -> Any:
    """Return the `datasets` feature that holds all values of a column, or of a part of one, exactly.

    `Json` holds objects whose keys or types differ. It is not taken for texts and numbers in one column: `datasets` 5.2
    writes a text into it without quotes, so that "007" would come back as 7. Nor for fractions of more than ten digits,
    which it rounds: such objects get all keys of their column, None where they had none.
    """
    from datasets import Json, List, Value

    kinds = {_kind(value) for value in values} - {"nothing"}
    if kinds == {"an integer", "a number"}:
        large = next((v for v in values if isinstance(v, int) and abs(v) > EXACT_INTEGERS), None)
        if large is not None:
            raise InputError(f"{place} holds {large} beside fractions, too large to be one of them exactly")
        return Value("float64")
    if len(kinds) > 1:
        first = next(i for i, value in enumerate(values) if value is not None)
        other = next(i for i, v in enumerate(values) if v is not None and _kind(v) != _kind(values[first]))
        one, two = _described(values[first]), _described(values[other])
        raise InputError(
            f"{place} holds {one} in row {first + 1} and {two} in row {other + 1}",
            hint="give all rows one type; a number may be written as text",
        )
    kind = kinds.pop() if kinds else "nothing"
    present = [value for value in values if value is not None]  # a None fits into every type
    if kind == "a list":
        inner = [item for value in present for item in value]
        if _mixed(inner) and _survives_json(inner):  # [1, "a"]: its elements have no type in common, the list has
            return Json()
        return List(Json() if _is_loose(inner) and _survives_json(inner) else _feature(inner, place))
    if kind == "an object":
        if _is_loose(present) and _survives_json(present):
            return Json()
        names = dict.fromkeys(name for value in present for name in value)
        return {name: _feature([value.get(name) for value in present], f"{place}.{name}") for name in names}
    if kind == "an integer" and any(not -(2**63) <= value < 2**63 for value in present):
        raise InputError(f"{place} holds an integer of more than 64 bits", hint="write it as text")
    return Value(
        {"a truth value": "bool", "an integer": "int64", "a number": "float64", "text": "string"}.get(kind, "null")
    )


def _is_loose(values: Sequence[Any]) -> bool:
    """Do these objects or lists need `Json`, because one type for all of them would change or invent values?"""
    present = [value for value in values if value is not None]
    kinds = {_kind(value) for value in present}
    if kinds == {"a list"}:
        return _is_loose([item for value in present for item in value])
    if kinds != {"an object"}:
        return False
    names = {name for value in present for name in value}
    # Chat messages may lack `name` or `tool_calls`: TRL and its templates read a None there as nothing.
    is_chat = all("role" in value for value in present)
    if not is_chat and any(set(value) != names for value in present):
        return True
    fields = ([value.get(name) for value in present] for name in names)
    return any(_mixed(field) or (not is_chat and _is_loose(field)) for field in fields)


def _survives_json(value: Any) -> bool:
    """Does `datasets` give back every number in it? It writes ten digits behind the point, and 64 bits."""
    if isinstance(value, list | dict):
        return all(map(_survives_json, value.values() if isinstance(value, dict) else value))
    if isinstance(value, float):
        return float(f"{value:.10f}") == value
    return not isinstance(value, int) or -(2**63) <= value < 2**63


def _mixed(values: Sequence[Any]) -> bool:
    kinds = {_kind(value) for value in values} - {"nothing"}
    return len(kinds) > 1 and kinds != {"an integer", "a number"}


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return "a number"
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else "an object"


def _described(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return f"{_kind(value)} ({text if len(text) <= 60 else text[:57] + '...'})"
