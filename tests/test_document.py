"""Recipes as text: YAML 1.2 values, the place of everything, what `extends:` and `-o` do to it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from posttrain_plugins.errors import InputError, RecipeErrors
from posttrain_plugins.recipe.read import document
from posttrain_plugins.recipe.read.document import anchored, dump, load, parse_value


def _write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-2E+3", -2000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("0o17", 15),
        ("0x1F", 31),
        ("012", 12),
        ("-7", -7),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("12:30", "12:30"),
        ("2026-01-02", "2026-01-02"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ('"1e-5"', "1e-5"),
        ("'true'", "true"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
        ("[${prev}, '${prev}']", ["${prev}", "${prev}"]),
    ],
)
def test_yaml_1_2_values(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_infinities_and_nan() -> None:
    assert parse_value("[.inf, -.inf]") == [math.inf, -math.inf]
    assert math.isnan(parse_value(".nan"))


def test_block_scalars_stay_text(tmp_path: Path) -> None:
    assert load(_write(tmp_path, "r.yaml", "a: |\n  12\nb: >-\n  true\n")).data == {"a": "12\n", "b": "true"}


def test_every_value_and_key_has_its_place(tmp_path: Path) -> None:
    file = _write(tmp_path, "r.yaml", "name: x\nstages:\n  sft: {use: sft, args: {lr: 1e-5, p: ${prev}, q: 2}}\n")
    read = load(file)
    assert read.data["stages"]["sft"]["args"] == {"lr": 1e-5, "p": "${prev}", "q": 2}
    at = {
        ("name",): (1, 7),
        ("stages", "sft", "use"): (3, 14),
        ("stages", "sft", "args", "lr"): (3, 30),
        ("stages", "sft", "args", "q"): (3, 51),
    }
    for path, place in at.items():
        found = read.place(path)
        assert (found.file, found.line, found.column) == (str(file), *place)
    assert (read.place(("stages", "sft", "args", "q"), of_key=True).column) == 48
    assert read.place(("stages", "sft", "nothing")) == read.place(("stages", "sft"))
    assert read.place(("nowhere",)).line == 1


def test_a_key_that_stands_twice_is_a_mistake_with_both_lines(tmp_path: Path) -> None:
    read = load(_write(tmp_path, "r.yaml", "seed: 1\nstages:\n  a: {use: sft}\n  a: {use: dpo}\nseed: 2\n"))
    assert [(m.line, m.column, m.message) for m in read.mistakes] == [
        (4, 3, "duplicate id 'a', first at line 3"),
        (5, 1, "duplicate id 'seed', first at line 1"),
    ]
    assert read.data == {"seed": 1, "stages": {"a": {"use": "sft"}}}


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("a: [1, 2\nb: 3\n", 2, "not YAML: "),
        ("a: 1\n\tb: 2\n", 2, "not YAML: "),
        ("- a\n- b\n", 1, "a recipe is a mapping"),
        ("", 1, "a recipe is a mapping"),
        ("a: 1\n---\nb: 2\n", 2, "not YAML: "),
        ("a: &x [*x]\n", 1, "contains itself"),
    ],
)
def test_what_is_no_recipe_is_told_with_its_line(tmp_path: Path, text: str, line: int, part: str) -> None:
    file = _write(tmp_path, "r.yaml", text)
    with pytest.raises(RecipeErrors) as caught:
        load(file)
    (mistake,) = caught.value.mistakes
    assert (mistake.file, mistake.line) == (str(file), line)
    assert part in mistake.message


def test_a_key_is_text(tmp_path: Path) -> None:
    (mistake,) = load(_write(tmp_path, "r.yaml", "a: 1\n[b, c]: 2\n")).mistakes
    assert (mistake.line, mistake.column) == (2, 1)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recipe file"):
        load(tmp_path / "missing.yaml")
    (tmp_path / "r.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "r.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path)


# --- overrides -------------------------------------------------------------------------------------------------------

RECIPE = "stages:\n  dpo: {use: dpo, args: {beta: 0.2, loss_type: [a, b]}}\n"


@pytest.mark.parametrize("as_mapping", [True, False])
def test_overrides_of_both_forms(tmp_path: Path, as_mapping: bool) -> None:
    given = {
        "stages.dpo.args.beta": ("0.1", 0.1),
        "stages.dpo.args.loss_type": ("[c]", ["c"]),
        "stages.dpo.args": ("{max_steps: 3}", {"max_steps": 3}),
        "stages.sft.use": ("sft", "sft"),
        "seed": ("1e3", 1000.0),
        "model": ("", None),
    }
    overrides = {k: v for k, (_, v) in given.items()} if as_mapping else [f"{k}={t}" for k, (t, _) in given.items()]
    read = load(_write(tmp_path, "r.yaml", RECIPE), overrides)
    assert read.data == {
        "stages": {
            "dpo": {"use": "dpo", "args": {"beta": 0.1, "loss_type": ["c"], "max_steps": 3}},
            "sft": {"use": "sft"},
        },
        "seed": 1000.0,
        "model": None,
    }
    place = read.place(("stages", "dpo", "args", "beta"))
    assert place.file == ("override stages.dpo.args.beta" if as_mapping else "-o stages.dpo.args.beta=0.1")
    assert str(place.mistake("wrong")) == f"{place.file}: wrong"
    assert read.place(("stages", "dpo", "use")).line == 2


def test_what_is_replaced_leaves_no_place_behind(tmp_path: Path) -> None:
    read = load(_write(tmp_path, "r.yaml", RECIPE), ["stages.dpo.args.loss_type=[x, y]"])
    path = ("stages", "dpo", "args", "loss_type", 0)
    assert read.place(path).file == "-o stages.dpo.args.loss_type=[x, y]"
    assert load(_write(tmp_path, "r.yaml", RECIPE)).place(path).line == 2


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load(_write(tmp_path, "r.yaml", RECIPE), ["seed=1", "seed=2"]).data["seed"] == 2


@pytest.mark.parametrize("text", ["seed", "=1", " =1", "seed=[1"])
def test_an_override_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"is not KEY=VALUE|is not a YAML value"):
        load(_write(tmp_path, "r.yaml", RECIPE), [text])


def test_an_override_with_an_equals_sign_in_its_value(tmp_path: Path) -> None:
    assert load(_write(tmp_path, "r.yaml", RECIPE), ["gate=>=0.8"]).data["gate"] == ">=0.8"


# --- extends ---------------------------------------------------------------------------------------------------------


def test_extends_chains_merge_mappings_and_replace_lists(tmp_path: Path) -> None:
    _write(tmp_path, "a.yaml", "seed: 1\nstages:\n  x: {use: sft, list: [1, 2], args: {m: 1, n: 2}}\n")
    _write(tmp_path, "b.yaml", "extends: a.yaml\nstages:\n  x: {list: [3], args: {n: 5}}\n")
    file = _write(tmp_path, "c.yaml", "extends: ./b.yaml\n\nseed: 9\n")
    read = load(file, ["stages.x.args.m=7"])
    assert read.data == {"seed": 9, "stages": {"x": {"use": "sft", "list": [3], "args": {"m": 7, "n": 5}}}}
    assert read.file == file
    places = [read.place(path) for path in [("seed",), ("stages", "x", "args", "n"), ("stages", "x", "use")]]
    assert [(Path(p.file).name, p.line) for p in places] == [("c.yaml", 3), ("b.yaml", 3), ("a.yaml", 3)]
    assert Path(read.place(()).file).name == "c.yaml"


def test_paths_of_an_extended_recipe_stay_its_own(tmp_path: Path) -> None:
    home = tmp_path / "base"
    _write(home, "data/demos.jsonl", "{}")
    _write(home, "reward.py", "def f(): ...")
    _write(home, "chat.jinja", "")
    (home / "weights").mkdir()
    _write(
        home,
        "a.yaml",
        "name: chat.jinja\nmodel: {model_name_or_path: weights}\n"
        "values: [./x, ../y, data/demos.jsonl, reward.py:f, ./reward.py:f, chat.jinja, org/name, sft, '<a>/b.*', 1]\n",
    )
    _write(tmp_path, "data/own.jsonl", "{}")
    file = _write(tmp_path, "other/c.yaml", "extends: ../base/a.yaml\nmine: ../data/own.jsonl\n")
    data = load(file).data
    assert data["values"] == [
        f"{home}/x",
        f"{tmp_path}/y",
        f"{home}/data/demos.jsonl",
        f"{home}/reward.py:f",
        f"{home}/reward.py:f",
        f"{home}/chat.jinja",
        "org/name",
        "sft",
        "<a>/b.*",
        1,
    ]
    assert data["model"]["model_name_or_path"] == f"{home}/weights"
    assert data["name"] == "chat.jinja"
    assert data["mine"] == "../data/own.jsonl"  # the recipe's own are anchored when it is checked


def test_text_that_is_no_path_is_left_alone(tmp_path: Path) -> None:
    for text in ("a/" * 3000, "two\n./lines", "/etc", "and/or", ""):
        assert anchored(text, tmp_path) == text


@pytest.mark.parametrize(
    ("parents", "part"),
    [
        ({"a": "a.yaml"}, "extends itself"),
        ({"a": "b.yaml", "b": "c.yaml", "c": "b.yaml"}, "extends itself"),
        ({"a": "gone.yaml"}, "no file"),
        ({"a": "[b]"}, "names a recipe file"),
    ],
)
def test_extends_that_cannot_be_followed(tmp_path: Path, parents: dict[str, str], part: str) -> None:
    for name, parent in parents.items():
        _write(tmp_path, f"{name}.yaml", f"extends: {parent}\n")
    with pytest.raises(RecipeErrors) as caught:
        load(tmp_path / "a.yaml")
    (mistake,) = caught.value.mistakes
    assert part in mistake.message
    assert mistake.line == 1
    assert mistake.column == 10


# --- writing ---------------------------------------------------------------------------------------------------------


def test_what_is_dumped_is_read_back(tmp_path: Path) -> None:
    texts = ["1e-5", "0o17", "012", "on", "true", "~", "", ".5", "a: b", "- x", "ü", "two\nlines", " x ", "#", "'"]
    data = {"texts": texts, "numbers": [1e-5, 15, 1e300, -0.5], "others": [True, None, {}, []], "prev": "${prev}"}
    file = _write(tmp_path, "r.yaml", dump(data))
    assert load(file).data == data
    assert [type(v) for v in load(file).data["numbers"]] == [float, int, float, float]


def test_the_c_parser_and_the_python_parser_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    file = _write(tmp_path, "r.yaml", "stages:\n  ü: {a: [1e-5, ${prev}], b: 'x'}  # note\n")
    fast = load(file)
    slow_loader = type("Slow", (yaml.SafeLoader,), {"yaml_implicit_resolvers": {}})
    monkeypatch.setattr(document, "TextLoader", slow_loader)
    slow = load(file)
    assert (slow.data, slow.values, slow.keys) == (fast.data, fast.values, fast.keys)


def test_merge_keys_bring_what_a_mapping_lacks(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        """
        one: &one {lr: 1, seed: 1}
        two: &two {lr: 2, steps: 2, args: {a: 1}}
        deep: &deep {<<: *one, seed: 3}
        s: {<<: *two, steps: 5}
        l: {<<: [*one, *two], seed: 9}
        d: {<<: *deep}
        quoted: {"<<": 1}
        """
    )
    data = load(file).data
    assert data["s"] == {"lr": 2, "args": {"a": 1}, "steps": 5}
    assert data["l"] == {"lr": 1, "steps": 2, "args": {"a": 1}, "seed": 9}
    assert data["d"] == {"lr": 1, "seed": 3}
    assert data["quoted"] == {"<<": 1}
    assert load(file).shared == {"one", "two", "deep"}
    file.write_text("a: 1\nb: {<<: 5}\n")
    (mistake,) = load(file).mistakes
    assert str(mistake).startswith(f"{file}:2:5: '<<' merges a mapping or a list of them")
