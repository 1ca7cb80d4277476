"""DESIGN section 2 as a test: imports go one way, plugins are reached by name only, light commands stay light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import posttrain_plugins
from posttrain_plugins.plugins import registry
from posttrain_plugins.types import KINDS

PACKAGE = Path(posttrain_plugins.__file__).parent
LEAVES = frozenset(registry.PLURAL[kind] for kind in KINDS)
HEAVY = ("torch", "transformers", "trl", "peft", "datasets")

NOUNS = {"errors", "types", "text", "answers", "steps", "nested_rewards"}
PLUGINS = {"plugins"}
INFERENCE = {"engine", "backends", "evaluation", "training_data"}
PIPELINE = {"recipe.read", "recipe.check", "recipe.plan", "recipe.run", "recipe.describe"}
CORE = {"plugins", "recipe", *PIPELINE}
PROGRAMS = {"launch.worker"}  # within a room below, and above all that they call
FACES = {"annotate", "api", "auditing", "serve"}
ALLOWED = {
    "errors": set(),
    "processes": set(),
    "types": {"errors"},
    "text": {"errors", "types", "processes"},
    "answers": {"text"},
    "steps": {"text"},
    "nested_rewards": {"errors", "types"},
    "plugins": NOUNS,
    "rows": {"errors"},
    "decisions": NOUNS,
    "record": {"errors", "text", "types"},
    "checkpoints": {"types"},
    "launch": {"errors", "types"},
    "launch.worker": NOUNS | CORE | {"launch", "guard", "record"},  # a program of its own, as `cli` is
    "models": NOUNS | PLUGINS,
    "search": NOUNS,
    "tiny_world": NOUNS,
    "guard": NOUNS | PLUGINS | {"processes"},
    "recipe": NOUNS | PLUGINS | {"models", "record", "rows"},
    "recipe.read": NOUNS | PLUGINS | {"recipe"},
    "recipe.check": NOUNS | PLUGINS | {"checkpoints", "guard", "models", "rows", "recipe", "recipe.read"},
    "recipe.plan": NOUNS | PLUGINS | {"models", "checkpoints", "record", "recipe"},
    "recipe.describe": NOUNS | PLUGINS | {"models", "recipe", "recipe.check"},
    "recipe.run": NOUNS
    | PLUGINS
    | {"launch", "guard", "models", "rows", "checkpoints", "record", "recipe", "memory_plan", *PIPELINE},
    "engine": NOUNS | PLUGINS | {"backends"},
    "backends": NOUNS | PLUGINS | {"models"},
    "evaluation": NOUNS | PLUGINS | {"engine", "backends", "models", "decisions"},
    "training_data": NOUNS | PLUGINS | {"engine", "backends", "models"},
    "trainers": NOUNS | PLUGINS | {"launch", "checkpoints", "record", "guard", "models", "engine", "backends"},
    "memory_plan": NOUNS | PLUGINS | {"models", "recipe", "recipe.check", "recipe.plan", "trainers"},
    "publish": NOUNS | {"record", "models", "report"},
    "sandbox": {"errors"},
    "rewards": NOUNS | {"tiny_world", "engine", "backends", "models", "sandbox"},  # a judge asks a backend
    "adapters": NOUNS | {"models"},
    "strategies": NOUNS | {"search"},
    "datasets": NOUNS | {"tiny_world"},
    "tools": NOUNS | {"sandbox"},
    "stages": NOUNS | INFERENCE | {"trainers", "models", "decisions", "publish"},
    "api": NOUNS | CORE | INFERENCE,
    "web": {"errors"},
    "annotate": NOUNS | CORE | INFERENCE | {"api", "models", "rows", "decisions", "report", "web"},
    "serve": NOUNS | CORE | INFERENCE | {"api", "models", "web"},
    "doctor": NOUNS | CORE | {"sandbox", "models"},
    "templates": {"types", "errors", "text", "answers", "testing"},
    "testing": NOUNS | CORE | INFERENCE | {"api", "tiny_world", "models"},
    "auditing": NOUNS | CORE | INFERENCE | {"testing"},
    "report": NOUNS | CORE | {"record", "engine", "evaluation"},
    "cli": NOUNS
    | CORE
    | INFERENCE
    | {*FACES, "testing", "doctor", "memory_plan", "report", "record", "publish", "decisions", "models", "cli", ""},
    "__main__": {"cli"},
    "": {"api"},  # the package itself, lazily
}
"""Room -> the rooms that it may import besides itself; `""` is the package's own `__init__`."""

WITHIN_LEAVES = {"posttrain_plugins.stages.training"}
"""What the files of a plugin folder may share; beside these, a plugin is one file."""


def _room(module: str) -> str:
    """The folder or file below the package; of the recipe's pipeline, its room."""
    parts = module.split(".")
    if ".".join(parts[1:3]) in {*PIPELINE, *PROGRAMS}:
        return ".".join(parts[1:3])
    return parts[1] if len(parts) > 1 else ""


def _module(file: Path, package: Path) -> str:
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(file: Path, module: str, package: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import of ours, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == package.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*home[: len(home) - node.level + 1], *([base] if base else [])])
            if base.split(".")[0] != package.name:
                continue
            for alias in node.names:
                inner = package.parent.joinpath(*base.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


def violations(package: Path) -> list[str]:
    """Every import that goes against the arrows, as `file:line: room may not import module`."""
    found = []
    for file in sorted(package.rglob("*.py")):
        module = _module(file, package)
        room = _room(module)
        for line, target in _imports(file, module, package):
            to = _room(target)
            is_shared = to == room and (room not in LEAVES or target in WITHIN_LEAVES)
            if not is_shared and to not in ALLOWED.get(room, set()):
                found.append(f"{file.relative_to(package)}:{line}: {room or 'the package'} may not import {target}")
    return found


def test_imports_go_one_way() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) > 50
    assert violations(PACKAGE) == []


def test_every_room_has_its_arrows() -> None:
    rooms = {_room(_module(file, PACKAGE)) for file in PACKAGE.rglob("*.py")}
    assert rooms - {"templates"} <= set(ALLOWED)
    assert rooms >= LEAVES | CORE | INFERENCE | {"trainers", "cli", "api"}


@pytest.mark.parametrize("room", sorted(NOUNS | CORE | INFERENCE))
def test_no_arrow_leads_to_a_plugin(room: str) -> None:
    assert not ALLOWED[room] & LEAVES


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("plugins/registry.py", "from posttrain_plugins.rewards.length import Length\n", "plugins may not import"),
        ("recipe/run/run.py", "def f():\n    import posttrain_plugins.stages.sft\n", "recipe.run may not import"),
        ("recipe/check/a.py", "from posttrain_plugins.recipe.run import inputs\n", "recipe.check may not import"),
        ("recipe/check/a.py", "import posttrain_plugins.recipe.plan.keys\n", "recipe.check may not import"),
        ("recipe/read/a.py", "from posttrain_plugins.recipe.check.check import check\n", "recipe.read may not import"),
        ("recipe/plan/a.py", "from posttrain_plugins.recipe.run.run import run\n", "recipe.plan may not import"),
        ("recipe/spec.py", "from posttrain_plugins.recipe.read import document\n", "recipe may not import"),
        (
            "recipe/plan/plan.py",
            "from ...stages import sft\n",
            "may not import posttrain_plugins.stages.sft",
        ),
        ("rewards/a.py", "from posttrain_plugins import registry\n", "rewards may not import"),
        ("rewards/a.py", "from .b import helper\n", "rewards may not import posttrain_plugins.rewards.b"),
        ("strategies/a.py", "from posttrain_plugins.engine.solve import solve\n", "strategies may not import"),
        ("adapters/a.py", "from posttrain_plugins.tiny_world import task\n", "adapters may not import"),
        ("inference/a.py", "from posttrain_plugins.recipe.run.run import run\n", "inference may not import"),
        ("trainers/a.py", "from posttrain_plugins.inference import engine\n", "trainers may not import"),
        ("errors.py", "from posttrain_plugins.types import Kind\n", "errors may not import"),
        ("text/messages.py", "if TYPE_CHECKING:\n    from posttrain_plugins.answers import x\n", "text may not import"),
        ("newroom/a.py", "import posttrain_plugins.errors\n", "newroom may not import"),
        ("plugins/schema.py", "import posttrain_plugins\n", "plugins may not import posttrain_plugins"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, text: str, message: str) -> None:
    package = tmp_path / "posttrain_plugins"
    for name in ("__init__.py", "plugins/registry.py", "rewards/b.py", "stages/sft.py", file):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    assert violations(package) == []
    (package / file).write_text(text)
    (found,) = violations(package)
    assert found.startswith(f"{file}:")
    assert message in found


def test_what_is_allowed_is_not_caught(tmp_path: Path) -> None:
    package = tmp_path / "posttrain_plugins"
    texts = {
        "__init__.py": "def f():\n    from posttrain_plugins import api\n",
        "api.py": "from posttrain_plugins.recipe import run\n",
        "recipe/run/run.py": "from . import plan\nfrom .. import registry\nimport torch\n",
        "recipe/plan/plan.py": "from posttrain_plugins.plugins.registry import find\n",
        "plugins/registry.py": "from posttrain_plugins.errors import InputError\n",
        "errors.py": "",
        "stages/sft.py": "from posttrain_plugins.stages import training\nfrom posttrain_plugins.trainers import ppo\n",
        "stages/training.py": "",
        "trainers/ppo/trainer.py": "",
    }
    for name, text in texts.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    assert violations(package) == []


# --- light commands --------------------------------------------------------------------------------------------------

LIGHT = {
    "import posttrain_plugins": "import posttrain_plugins",
    "plugins list": "from posttrain_plugins.plugins import registry\n"
    "[registry.installed(kind) for kind in registry.KINDS]",
    "validate": "from posttrain_plugins import validate\nvalidate({recipe!r})",
    "plan": "from posttrain_plugins import validate\n"
    "from posttrain_plugins.recipe.plan.plan import plan\n"
    "from pathlib import Path\nplan(validate({recipe!r}), Path('no-such-folder'))",
}

RECIPE = """
model: {use: pretrain, dataset: {use: digit_chain, part: corpus}, config: {model_type: qwen3},
        tokenizer: "posttrain_plugins.tiny_world.tokenizer:base_tokenizer"}
adapters: {policy: {use: lora, r: 4}}
datasets: {problems: {use: digit_chain}, demos: {use: digit_chain, part: demonstrations}}
rewards: {correct: exact_answer, format: {use: regex, pattern: "<answer>.*</answer>", weight: 0.2}}
stages:
  sft: {use: sft, model: base, dataset: demos, adapter: policy}
  pairs: {use: sample, model: sft, dataset: problems, rewards: [correct], keep: pairs}
  rm: {use: reward, model: sft, dataset: pairs}
  dpo: {use: dpo, model: sft, dataset: pairs}
  grpo: {use: grpo, model: sft, dataset: problems, rewards: [correct, format, rm]}
  rloo: {use: rloo, model: sft, dataset: problems, rewards: [correct]}
  eval: {use: evaluate, models: [base, sft, dpo, grpo], dataset: problems, rewards: [correct],
         strategies: [greedy, self_consistency(n=8), {use: best_of_n, n: 4, scorer: rm}]}
"""


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_import_nothing_heavy(tmp_path: Path, command: str) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    code = LIGHT[command].format(recipe=str(tmp_path / "r.yaml"))
    code += f"\nimport json, sys\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
