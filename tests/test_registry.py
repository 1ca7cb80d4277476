"""The registry: built-ins come through the entry points, strangers too, and a broken one hurts only itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import posttrain_plugins
from posttrain_plugins.errors import InputError, PluginBroken, PluginConflict, PluginNotFound
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.registry import Plugin, find, group, installed
from posttrain_plugins.types import KINDS

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
DECLARED = [
    (kind, name, target)
    for kind in KINDS
    for name, target in tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["entry-points"][
        group(kind)
    ].items()
]


REMEMBERED = (registry.installed, registry.entry_points)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the registry and the import system remember is forgotten before and after."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("posttrain_file_")]:
        monkeypatch.delitem(sys.modules, name)
    for remembered in REMEMBERED:
        remembered.cache_clear()
    yield
    for remembered in REMEMBERED:
        remembered.cache_clear()


def _plant(monkeypatch: pytest.MonkeyPatch, *rows: tuple[str, str, str, str, str]) -> None:
    real = registry.entry_points()
    monkeypatch.setattr(registry, "entry_points", lambda: (*real, *rows))


# --- built-ins -------------------------------------------------------------------------------------------------------


def test_every_kind_has_built_ins() -> None:
    assert {kind for kind, _, _ in DECLARED} == set(KINDS)
    assert len(DECLARED) >= 20


@pytest.mark.parametrize(("kind", "name", "target"), DECLARED, ids=[f"{kind}-{name}" for kind, name, _ in DECLARED])
def test_a_built_in_is_listed_and_loads_and_its_names_agree(kind: Any, name: str, target: str) -> None:
    ours = {p.name: p for p in installed(kind) if p.distribution == "posttrain-plugins"}
    assert name in ours, "the entry points changed: pip install -e . again"
    module, _, attr = target.partition(":")
    assert ours[name].target == target
    assert module.split(".") == ["posttrain_plugins", registry.PLURAL[kind], name]
    loaded = ours[name].load()
    assert loaded.__name__ == attr
    assert callable(loaded)
    assert ours[name].version == registry.find(kind, f"posttrain-plugins:{name}").version != ""


def test_every_file_of_a_plugin_folder_is_declared() -> None:
    declared = {target.partition(":")[0] for _, _, target in DECLARED}
    package = Path(posttrain_plugins.__file__).parent
    found = 0
    for kind in KINDS:
        folder = registry.PLURAL[kind]
        for file in (package / folder).rglob("*.py"):
            name = ".".join(("posttrain_plugins", *file.relative_to(package).with_suffix("").parts))
            if file.name != "__init__.py":
                found += 1
                assert name in declared
    assert found == len(DECLARED)


# --- the four forms of `use` -----------------------------------------------------------------------------------------


def test_the_four_forms_name_the_same(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(completions, **columns):\n    return [1.0 for _ in completions]\n")
    plain, owned = find("reward", "length"), find("reward", "Posttrain_Plugins:length")
    assert plain == owned
    assert (plain.distribution, plain.file) == ("posttrain-plugins", None)
    module = find("reward", "posttrain_plugins.rewards.length:Length")
    assert (module.name, module.distribution) == ("Length", "")
    assert module.load() is plain.load()
    for use in ("./mine.py:score", "mine.py:score", f"{tmp_path}/mine.py:score"):
        mine = find("reward", use, tmp_path)
        assert (mine.name, mine.attr, mine.file) == ("score", "score", tmp_path / "mine.py")
        assert mine.load()(completions=["a", "b"]) == [1.0, 1.0]


def test_files_beside_a_file_are_importable_from_it(tmp_path: Path) -> None:
    (tmp_path / "beside_the_file.py").write_text("VALUE = 7\n")
    (tmp_path / "mine.py").write_text("from beside_the_file import VALUE\n\ndef score(completions): return VALUE\n")
    assert find("reward", "./mine.py:score", tmp_path).load()([]) == 7


def test_finding_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise RuntimeError('imported')\n\ndef score(): ...\n")
    plugin = find("reward", "./mine.py:score", tmp_path)
    with pytest.raises(PluginBroken, match=r"'score' .*mine\.py:score\) cannot be loaded: RuntimeError: imported"):
        plugin.load()
    assert not [name for name in sys.modules if name.startswith("posttrain_file_mine_")]


@pytest.mark.parametrize(
    ("kind", "use", "message", "hint"),
    [
        ("reward", "exact_anser", "no reward plugin 'exact_anser'", "did you mean 'exact_answer'?"),
        ("reward", "lora", "no reward plugin 'lora'", "'lora' is an adapter"),
        ("reward", "zzzzz", "no reward plugin", "posttrain plugins list --kind reward"),
        ("reward", "posttrain-plugins:lenth", "no reward plugin", "did you mean 'posttrain-plugins:length'?"),
        ("reward", "no_such_package:score", "no reward plugin", "posttrain plugins list --kind reward"),
        ("reward", "./gone.py:score", "no file", None),
        ("reward", "./mine.py:scor", "mine.py has no 'scor'", "did you mean 'score'?"),
        ("reward", "", "no reward plugin ''", "posttrain plugins list --kind reward"),
    ],
)
def test_what_is_not_found_is_told_with_the_nearest_name(
    tmp_path: Path, kind: Any, use: str, message: str, hint: str | None
) -> None:
    (tmp_path / "mine.py").write_text("def score(): ...\n")
    with pytest.raises(PluginNotFound) as caught:
        find(kind, use, tmp_path)
    assert message in caught.value.message
    assert caught.value.hint == hint


def test_a_module_without_the_object_is_broken_with_its_cause() -> None:
    with pytest.raises(PluginBroken, match="AttributeError") as caught:
        registry.load("reward", "posttrain_plugins.rewards.length:Lenth")
    assert isinstance(caught.value.__cause__, AttributeError)


def test_import_object_names_modules_and_files(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class A:\n    b = 3\n")
    assert registry.import_object("./mine.py:A.b", tmp_path) == 3
    assert registry.import_object("posttrain_plugins.plugins.registry:group") is group
    for target in ("./mine.py:C", "no_such_package:x", "nothing", "./gone.py:x"):
        with pytest.raises(InputError, match="cannot be imported"):
            registry.import_object(target, tmp_path)


def test_suggest_knows_when_nothing_is_near() -> None:
    assert registry.suggest("lenght", ["length", "regex"]) == "did you mean 'length'?"
    assert registry.suggest("qqq", ["length", "regex"]) is None
    assert registry.suggest("length", []) is None


# --- strangers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["length", "Posttrain-Plugins", "other, posttrain_plugins"])
def test_plugins_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, switch: str) -> None:
    monkeypatch.setenv("POSTTRAIN_DISABLE_PLUGINS", switch)
    assert "length" not in {plugin.name for plugin in installed("reward")}
    assert ("regex" in {plugin.name for plugin in installed("reward")}) == (switch == "length")
    with pytest.raises(PluginNotFound):
        find("reward", "length")


def test_a_name_from_two_distributions_is_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch, (group("reward"), "length", "rival.length:Length", "posttrain-rival", "2.1"))
    with pytest.raises(PluginConflict) as caught:
        find("reward", "length")
    assert "posttrain-plugins 0" in caught.value.message
    assert "posttrain-rival 2.1" in caught.value.message
    assert caught.value.hint == "name one of them: 'posttrain-plugins:length' or 'posttrain-rival:length'"
    assert find("reward", "posttrain-rival:length").target == "rival.length:Length"
    assert find("reward", "posttrain-plugins:length").distribution == "posttrain-plugins"


def test_a_distribution_that_stands_twice_on_the_path_counts_where_it_stands_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0", "2.0"):
        info = tmp_path / version / f"posttrain_twice-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: posttrain-twice\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{group('reward')}]\ntwice = twice:f\n")
        monkeypatch.syspath_prepend(tmp_path / version)
    assert find("reward", "twice").version == "2.0"


def test_a_plugin_that_fails_to_import_tells_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch, (group("reward"), "shaky", "no_such_package.shaky:Shaky", "posttrain-shaky", "0.3"))
    assert find("reward", "shaky") == Plugin("reward", "shaky", "no_such_package.shaky:Shaky", "posttrain-shaky", "0.3")
    with pytest.raises(PluginBroken) as caught:
        registry.load("reward", "shaky")
    for part in ("reward", "'shaky'", "no_such_package.shaky:Shaky", "posttrain-shaky 0.3", "ModuleNotFoundError"):
        assert part in caught.value.message
    assert caught.value.hint is not None
    assert "POSTTRAIN_DISABLE_PLUGINS=shaky" in caught.value.hint
    assert registry.load("reward", "length")


# --- a package that a stranger built and pip installed ---------------------------------------------------------------

BACKEND = """
import pathlib, tomllib, zipfile

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    project = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    info = f"{stem}.dist-info"
    points = "".join(
        f"[{group}]\\n" + "".join(f"{name} = {target}\\n" for name, target in names.items())
        for group, names in project["entry-points"].items()
    )
    files = {file.name: file.read_text() for file in pathlib.Path("src").glob("*.py")}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\\nName: {project['name']}\\nVersion: {project['version']}\\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    files[f"{info}/entry_points.txt"] = points
    files[f"{info}/RECORD"] = "".join(f"{name},,\\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(pathlib.Path(wheel_directory) / f"{stem}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return f"{stem}-py3-none-any.whl"
"""

STRANGER = '''
"""A stranger's plugins, written from the README alone."""
import json
from dataclasses import dataclass
from typing import ClassVar

from posttrain_plugins.text import to_text
from posttrain_plugins.types import DataRef, Generate, Result, RewardRef, StageContext, StageResult, StrategyRef


@dataclass
class Brevity:
    """Short is good."""

    max_chars: int = 800

    def __call__(self, completions, solution, **columns):
        return [float(len(to_text(text)) <= self.max_chars) for text in completions]


def tiny_lora(**params):
    from peft import LoraConfig

    return LoraConfig(**params)


tiny_lora.params_of = "peft:LoraConfig"


@dataclass
class Twice:
    """Asks twice and takes the second."""

    n: int = 2

    def __call__(self, problem):
        completions = yield Generate(problem.prompt, n=self.n, params=problem.params)
        return Result(completions[-1].text, completions[-1].text)


@dataclass
class Squares:
    """Numbers and their squares."""

    size: int = 10
    columns: ClassVar = ("prompt", "completion", "solution")

    def __call__(self):
        from datasets import Dataset

        rows = [{"prompt": str(i), "completion": str(i * i), "solution": str(i * i)} for i in range(self.size)]
        return Dataset.from_list(rows)


@dataclass
class Count:
    """Scores what the data says already, and counts."""

    dataset: DataRef
    rewards: list[RewardRef]
    strategies: list[StrategyRef]
    times: int = 1

    produces: ClassVar = "figures"
    requires_columns: ClassVar = {"dataset": (("prompt", "completion"),)}

    def __call__(self, context: StageContext) -> StageResult:
        rows = context.inputs["dataset"]
        scores = [reward.func(prompts=rows["prompt"], completions=rows["completion"], solution=rows["solution"])
                  for reward in context.inputs["rewards"]]
        labels = [strategy.label for strategy in context.inputs["strategies"]]
        (context.folder / "labels.json").write_text(json.dumps(labels))
        return StageResult({"rows": float(len(rows) * self.times), "score": sum(scores[0]) / len(rows)})
'''

RECIPE = """
name: strangers
datasets: {rows: {use: squares, size: 8, limit: 5}}
rewards: {short: {use: BREVITY, max_chars: 1}}
adapters: {small: {use: tiny_lora, r: 2}}
stages: {count: {use: count, dataset: rows, rewards: [short], strategies: [twice(n=3), greedy], times: 2}}
"""

SCRIPT = """
import json, sys
from pathlib import Path
from posttrain_plugins.plugins import registry
from posttrain_plugins.errors import PosttrainError, PluginBroken
from posttrain_plugins import run

everything = [plugin for kind in registry.KINDS for plugin in registry.installed(kind)]
strange = [p for p in everything if p.distribution != "posttrain-plugins"]
told = {"listed": [[p.kind, p.name, p.distribution, p.version] for p in strange]}
told["imported"] = [name for name in sys.modules if name.startswith("posttrain_stranger")]
try:
    registry.load("reward", "shaky")
except PluginBroken as error:
    told["broken"] = [str(error), repr(error.__cause__)]
for name, use in [("conflict", "brevity"), ("owned", "posttrain-stranger:brevity")]:
    file = Path(f"{name}.yaml")
    file.write_text(Path("recipe.yaml").read_text().replace("BREVITY", use))
    try:
        artifact = run(file, runs_dir="runs")["count"]
        labels = json.loads((artifact.folder / "labels.json").read_text())
        told[name] = [artifact.metrics, labels, artifact.manifest["plugin"]]
    except PosttrainError as error:
        told[name] = str(error)
again = run(Path("owned.yaml"), runs_dir="runs")
told["cached"] = again.plan["count"].artifact is not None
told["torch"] = "torch" in sys.modules
print(json.dumps(told))
"""


def _package(folder: Path, name: str, version: str, source: str, points: dict[str, dict[str, str]]) -> Path:
    home = folder / name
    (home / "src").mkdir(parents=True)
    (home / "src" / f"{name.replace('-', '_')}.py").write_text(source)
    (home / "backend.py").write_text(BACKEND)
    tables = "".join(
        f'[project.entry-points."{group}"]\n' + "".join(f'{key} = "{target}"\n' for key, target in names.items())
        for group, names in points.items()
    )
    (home / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\n{tables}'
    )
    return home


@pytest.mark.slow
def test_a_strangers_package_works_like_ours(tmp_path: Path) -> None:
    """Three packages are installed by pip: a good one, one that cannot be imported, and one with a name taken."""
    pytest.importorskip("pip")
    module = "posttrain_stranger"
    packages = [
        _package(
            tmp_path,
            "posttrain-stranger",
            "1.4.2",
            STRANGER,
            {
                group("reward"): {"brevity": f"{module}:Brevity"},
                group("adapter"): {"tiny_lora": f"{module}:tiny_lora"},
                group("strategy"): {"twice": f"{module}:Twice"},
                group("dataset"): {"squares": f"{module}:Squares"},
                group("stage"): {"count": f"{module}:Count"},
            },
        ),
        _package(
            tmp_path,
            "posttrain-broken",
            "0.1",
            "raise RuntimeError('libfoo is missing')\n",
            {group("reward"): {"shaky": "posttrain_broken:Shaky"}},
        ),
        _package(
            tmp_path,
            "posttrain-rival",
            "3.0",
            "def brevity(completions, **columns):\n    return [0.0 for _ in completions]\n",
            {group("reward"): {"brevity": "posttrain_rival:brevity"}},
        ),
    ]
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    install += ["--disable-pip-version-check", "--target", str(site), *map(str, packages)]
    installed_by_pip = subprocess.run(install, capture_output=True, text=True)
    assert installed_by_pip.returncode == 0, installed_by_pip.stderr

    work = tmp_path / "work"
    work.mkdir()
    (work / "recipe.yaml").write_text(RECIPE)
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])

    mine = [[kind, name, "posttrain-stranger", "1.4.2"] for kind, name in _stranger_names()]
    others = [["reward", "brevity", "posttrain-rival", "3.0"], ["reward", "shaky", "posttrain-broken", "0.1"]]
    assert sorted(told["listed"]) == sorted(mine + others)
    assert told["imported"] == []
    message, cause = told["broken"]
    assert "reward plugin 'shaky' (posttrain_broken:Shaky, from posttrain-broken 0.1)" in message
    assert cause == "RuntimeError('libfoo is missing')"
    assert "reward 'brevity' is given by posttrain-rival 3.0 and posttrain-stranger 1.4.2" in told["conflict"]
    assert "conflict.yaml:4:" in told["conflict"]
    metrics, labels, plugin = told["owned"]
    assert metrics == {"rows": 10.0, "score": 0.8}  # of 0, 1, 4, 9, 16 four have one digit
    assert labels == ["twice(n=3)", "greedy"]
    assert plugin == "posttrain-stranger 1.4.2"
    assert told["cached"]
    assert not told["torch"]


def _stranger_names() -> list[tuple[str, str]]:
    return [
        ("reward", "brevity"),
        ("adapter", "tiny_lora"),
        ("strategy", "twice"),
        ("dataset", "squares"),
        ("stage", "count"),
    ]


def test_a_file_is_imported_again_with_its_neighbour_when_that_was_edited(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 1\n")
    (tmp_path / "mine.py").write_text("from neighbour_of_mine import VALUE\n\n\ndef value():\n    return VALUE\n")
    first = registry.import_file(tmp_path / "mine.py")
    assert registry.import_file(tmp_path / "mine.py") is first
    (tmp_path / "neighbour_of_mine.py").write_text("VALUE = 22\n")
    os.utime(tmp_path / "neighbour_of_mine.py", (0, 0))
    assert registry.import_file(tmp_path / "mine.py").value() == 22
    sys.path.remove(str(tmp_path))
