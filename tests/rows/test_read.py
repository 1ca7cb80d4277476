"""Files of rows are read with the values that stand in them."""

from __future__ import annotations

import csv
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest

from posttrain_plugins.errors import InputError
from posttrain_plugins.rows.read import dataset_of_rows, place_of, read_rows


def jsonl(folder: Path, *rows: Any) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def loaded(file: Path, **options: Any) -> list[dict[str, Any]]:
    return list(dataset_of_rows(read_rows(file, **options), str(file)))


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "a", "solution": "null"}, {"prompt": "b", "solution": "5"}],
        [{"prompt": "a", "solution": "2024-01-01"}, {"prompt": "b", "solution": "2024-02-01"}],
        [{"prompt": "a", "solution": "007"}, {"prompt": "b", "solution": "true"}],
        [{"tests": [{"input": "5\n", "output": "10\n", "fn_name": None}]}, {"tests": [{"input": [1, 2], "output": 3}]}],
        [{"scores": {"a": 1}}, {"scores": {"b": "x"}}],
        [{"mixed": [1, "a", None]}, {"mixed": []}],
        [{"nested": [[1, 2], [3]]}, {"nested": None}],
        [{"reward": 1}, {"reward": 0.5}],
        [{"call": [{"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": {"a": 1}}}]}]}],
        [{"emoji": "\U0001f600", "line": "a\u2028b", "nul": "a\x00b"}],
        [{"empty": {}}, {"empty": {}}],
    ],
)
def test_a_value_of_json_stays_what_it_is(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    names = {name for row in rows for name in row}
    assert loaded(jsonl(tmp_path, *rows)) == [{name: row.get(name) for name in names} for row in rows]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of `datasets`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_what_map_makes_of_rows_is_found_by_the_next_run(cache: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls.txt"

    def tokenized(row: dict[str, Any], file: str) -> dict[str, Any]:
        with Path(file).open("a") as lines:  # a counter of Python's own would be a part of the function's hash
            lines.write("called\n")
        return {"ids": list(map(ord, row["prompt"]))}

    rows = [{"prompt": "a"}, {"prompt": "bc"}]
    found = [dataset_of_rows(rows, "rows").map(tokenized, fn_kwargs={"file": str(calls)})["ids"] for _ in range(2)]
    assert [list(map(list, ids)) for ids in found] == [[[97], [98, 99]]] * 2
    assert calls.read_text().splitlines() == ["called"] * len(rows)


@pytest.mark.parametrize("value", [1, 1.0, True, "1", [1], {"a": 1}, {"a": 1.0}])
def test_rows_that_python_takes_for_equal_are_kept_apart(value: Any, cache: Path) -> None:
    others = [1, 1.0, True, "1", [1], {"a": 1}, {"a": 1.0}, None]
    for other in others:
        dataset_of_rows([{"x": other}], "rows")
    (row,) = dataset_of_rows([{"x": value}], "rows")
    assert repr(row) == repr({"x": value})
    assert len(list((cache / "posttrain").glob("*.arrow"))) == len(others)


def test_rows_without_a_cache_to_write_to_are_the_same(cache: Path) -> None:
    rows = [{"prompt": "a", "x": {"a": 1}}, {"prompt": "b", "x": {"b": "z"}}]
    kept = list(dataset_of_rows(rows, "rows"))
    for file in (cache / "posttrain").iterdir():
        file.unlink()
    (cache / "posttrain").rmdir()
    cache.rmdir()
    cache.write_text("a file, where the folder should be")
    made = dataset_of_rows(rows, "rows")
    assert made.cache_files == []
    assert list(made) == kept == rows


def some_value(rng: random.Random, depth: int) -> Any:
    texts = ["null", "007", "true", "1e5", "NaN", "2024-01-01", "", " x ", "\U0001f600", "a\nb"]
    kind = rng.randrange(7 if depth else 5)
    if kind == 5:
        return [some_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    if kind == 6:
        return {rng.choice("abc"): some_value(rng, depth - 1) for _ in range(rng.randrange(1, 3))}
    return [rng.choice(texts), rng.randrange(-5, 5), rng.random(), rng.random() < 0.5, None][kind]


def of_one_type(value: Any, rng: random.Random) -> Any:
    """Another value of the same type at the top, whatever is inside."""
    other = some_value(rng, 2)
    return other if type(other) is type(value) or other is None else value


def test_what_is_loaded_is_what_the_file_holds(tmp_path: Path) -> None:
    rng = random.Random(0)
    tried = 0
    for _ in range(150):
        first = {name: some_value(rng, 2) for name in "pqr"}
        rows = [first, *({name: of_one_type(value, rng) for name, value in first.items()} for _ in range(3))]
        file = jsonl(tmp_path, *rows)
        try:
            found = loaded(file)
        except InputError:  # no common type, which has a test of its own
            continue
        tried += 1
        assert [without_nothing(row) for row in found] == [without_nothing(row) for row in rows]
    assert tried > 60


def without_nothing(value: Any) -> Any:
    """Integers beside fractions are fractions, and an object may get its column's other keys, as None."""
    if isinstance(value, dict):
        return {name: without_nothing(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nothing(item) for item in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number else (type(value), value)


def test_a_cell_of_csv_is_text(tmp_path: Path) -> None:
    rng = random.Random(1)
    alphabet = string.printable + "äß\u2028"
    cells = [["".join(rng.choices(alphabet, k=rng.randrange(8))) for _ in "ab"] for _ in range(200)]
    cells += [["NA", "n/a"], ["None", "NULL"], ["", "true"], ["007", "1e3"], ["2024-01-01", "nan"]]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        file = tmp_path / f"data{suffix}"
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *cells])
        assert [list(row.values()) for row in loaded(file)] == cells


def test_cells_of_a_type(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text("completion,label,reward,n\nx,true,0.5,3\ny,0,1,-2\n")
    found = loaded(file, types={"label": "bool", "reward": "float", "n": "int"})
    assert found == [
        {"completion": "x", "label": True, "reward": 0.5, "n": 3},
        {"completion": "y", "label": False, "reward": 1.0, "n": -2},
    ]
    with pytest.raises(InputError, match=r"data.csv:2: found 'x', expected a value of type int"):
        read_rows(file, {"completion": "int"})
    with pytest.raises(InputError, match=r"data.csv:2: found '0.5', expected true, false, 1 or 0"):
        read_rows(file, {"reward": "bool"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"a": 1, "a": 2}\n', "a.jsonl:1: the key 'a' stands twice"),
        ("a.jsonl", '{"m": []}\n{"m": [{"r": 1, "r": 1}]}\n', "a.jsonl:2: the key 'r' stands twice"),
        ("a.jsonl", '{"a": "x"}\n\n{"a": "\\ud83d"}\n', "a.jsonl:3: half of a surrogate pair"),
        ("a.jsonl", '{"a": NaN}\n', "a.jsonl:1: NaN is not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a.jsonl:2: found a list \(\[1\]\), expected an object"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl:2: not JSON: Expecting value"),
        ("a.jsonl", "[" * 100_000 + "\n", "a.jsonl:1: not JSON"),
        ("a.json", '[{"a": 1}, 3]', "a.json: element 2 is an integer"),
        ("a.csv", "p,q\n1\n", "a.csv:2: found 1 cells, the first line names 2 columns"),
        ("a.csv", 'p,q\n"1\n2",3\n4\n', "a.csv:4: found 1 cells"),
        ("a.csv", "p,p\n1,2\n", "a.csv:1: two columns are called 'p'"),
        ("a.csv", 'p,q\n"1,2\n', "not CSV: unexpected end of data"),
    ],
)
def test_what_is_no_row_is_refused_with_its_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"s": "007"}, {"s": 5}], r"column 's' holds text \(\"007\"\) in row 1 and an integer \(5\) in row 2"),
        ([{"s": None}, {"s": True}, {"s": 1}], r"a truth value \(true\) in row 2 and an integer \(1\) in row 3"),
        ([{"s": "x"}, {"s": ["x"]}], "text .* in row 1 and a list .* in row 2"),
        ([{"s": 2**53 + 1}, {"s": 0.5}], "too large to be one of them exactly"),
        ([{"s": 2**63}], "an integer of more than 64 bits"),
    ],
)
def test_what_has_no_common_type_is_refused(rows: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        loaded(jsonl(tmp_path, *rows))


def test_latin_1_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"a": "ü"}'.encode("latin-1"))
    with pytest.raises(InputError, match="is not UTF-8"):
        read_rows(tmp_path / "a.jsonl")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": "x"}\n')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa\nx\n")
    assert read_rows(tmp_path / "a.jsonl") == read_rows(tmp_path / "a.csv") == [{"a": "x"}]


def test_where_a_row_stands(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n\n{"a": 2}\n')
    (tmp_path / "a.csv").write_text('a\n"x\ny"\nz\n')
    (tmp_path / "a.json").write_text('[{"a": 1},\n{"a": 2}]')
    places = [place_of(tmp_path / name, 1).removeprefix(f"{tmp_path}/") for name in ("a.jsonl", "a.csv", "a.json")]
    assert places == ["a.jsonl:4", "a.csv:4", "a.json, element 2"]
