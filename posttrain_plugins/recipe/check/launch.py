"""`launch:` of a recipe or a stage -> accelerate's file, how many processes, and which engine has to be in force.

The recipe's own stands for all stages that train, and a stage's goes before it key by key, so that a stage may name its
engine and a run the number of processes that there is room for. TRL's files are read where TRL is installed; it is not
imported.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from posttrain_plugins.plugins.registry import suggest
from posttrain_plugins.recipe import files
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import Launch

__all__ = ["check_launch", "read_launch"]

NAMED = {"ddp": "multi_gpu", "fsdp2": "fsdp2", "zero1": "zero1", "zero2": "zero2", "zero3": "zero3"}
"""What a recipe may call an engine -> TRL's file of it (`trl/accelerate_configs/`)."""
NONE = "none"
KEYS = ("config", "num_processes", "hang_after_s")
HINT = "ddp, fsdp2, zero1, zero2, zero3, none, or a file that `accelerate config` wrote"
SUFFIXES = (".yaml", ".yml", ".json")


def check_launch(checker: Checker) -> None:
    """Check the recipe's own `launch`, and write its file as an absolute path, for any folder."""
    value = checker.document.get(("launch",))
    if isinstance(value, str):  # else `--num-processes` would replace it in place of going beside it
        checker.error(
            ("launch",), f"'launch' of a recipe is {value!r}, expected a mapping", f"launch: {{config: {value}}}"
        )
        return
    _read(checker, value, ("launch",))


def read_launch(checker: Checker, value: Any, path: Keys) -> Launch | None:
    """Return how a stage is started; None in the run's own process.

    Args:
        checker: the recipe, whose own `launch` is the default of each key.
        value: as the stage has it.
        path: where it stands.
    """
    default = checker.document.get(("launch",))
    # Key by key: `--num-processes` of a run has to reach a stage that names its own engine.
    asked = {**_keys(default), **_read(checker, value, path)}
    config = asked.get("config")
    if not isinstance(config, str) or config == NONE:
        return None
    file = _file(checker, config)
    if file is None:  # told where it was read
        return None
    found = _content(file)
    count = asked.get("num_processes", found.get("num_processes"))
    engine = config if config in NAMED else _engine(found)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        if "num_processes" not in asked:  # one that is given is told where it was read
            checker.error(path, f"{file.name} does not say how many processes", "{config: ..., num_processes: 8}")
        return None
    own = _deepspeed_file(found)
    hang_after_s = asked.get("hang_after_s")
    # one that is no number is told where it was read
    patience = {"hang_after_s": float(hang_after_s)} if _is_seconds(hang_after_s) else {}
    return Launch(engine, file, count, () if own is None else (own,), **patience)


def _keys(value: Any) -> dict[str, Any]:
    """Return `launch` in its long form, with what it knows."""
    if isinstance(value, str):
        return {"config": value}
    return {key: value[key] for key in KEYS if key in value} if isinstance(value, Mapping) else {}


def _read(checker: Checker, value: Any, path: Keys) -> dict[str, Any]:
    """Return the keys of a `launch`, each told of where it is wrong."""
    if value is None:
        return {}
    if not isinstance(value, str | Mapping):
        checker.error(path, f"'launch' is {value!r}, expected a name, a file or a mapping", HINT)
        return {}
    if isinstance(value, Mapping):
        checker.unknown_keys(path, value, KEYS)
    asked = _keys(value)
    place = (*path, "config") if isinstance(value, Mapping) else path
    config, count = asked.get("config"), asked.get("num_processes", 1)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        checker.error((*path, "num_processes"), f"'num_processes' is {count!r}, expected a number of 1 or more")
    if "hang_after_s" in asked and not _is_seconds(asked["hang_after_s"]):
        message = f"'hang_after_s' is {asked['hang_after_s']!r}, expected seconds, more than 0"
        checker.error((*path, "hang_after_s"), message)
    if "config" in asked and not isinstance(config, str):
        checker.error(place, f"'config' is {config!r}, expected a name or a file", HINT)
        return {key: asked[key] for key in asked if key != "config"}
    if isinstance(config, str) and config != NONE:
        _check_config(checker, config, place)
        file = _file(checker, config)
        if config not in NAMED and file is not None:  # for any folder and any machine
            asked["config"] = str(file)
            checker.document.merge(place, str(file), checker.document.place(place))
    return asked


def _is_seconds(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _check_config(checker: Checker, config: str, place: Keys) -> None:
    file = _file(checker, config)
    if file is None and (config in NAMED or not config.endswith(SUFFIXES)):
        checker.error(place, f"unknown launch '{config}'", suggest(config, [*NAMED, NONE]) or HINT)
    elif file is None:
        checker.error(place, f"no file {config}", f"paths start from {checker.folder}")
    elif config not in NAMED and not _engine(_content(file)):
        kind = _content(file).get("distributed_type", "no distributed_type")
        checker.error(place, f"{config} starts no engine that is known here: {kind}", "MULTI_GPU, FSDP or DEEPSPEED")


def _file(checker: Checker, config: str) -> Path | None:
    """Return accelerate's file of a name or path; None where there is none."""
    if config in NAMED:
        trl = importlib.util.find_spec("trl")  # a top-level package is found without being imported
        folder = Path(next(iter(trl.submodule_search_locations or ()), "")) if trl is not None else Path()
        file = folder / "accelerate_configs" / f"{NAMED[config]}.yaml"
    else:
        file = (checker.folder / Path(config).expanduser()).resolve()
        if not config.endswith(SUFFIXES):
            return None
    return file if files.exists(file) and file.is_file() else None


def _content(file: Path) -> dict[str, Any]:
    try:
        read = json.loads if file.suffix == ".json" else yaml.safe_load
        found = read(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _engine(found: Mapping[str, Any]) -> str:
    """Return the engine that a file of accelerate's starts; empty for one that is not known here."""
    kind = str(found.get("distributed_type", "")).upper()
    if kind in ("MULTI_GPU", "MULTI_CPU"):
        return "ddp"
    if kind == "FSDP":
        return f"fsdp{(found.get('fsdp_config') or {}).get('fsdp_version', 1)}"
    if kind != "DEEPSPEED":
        return ""
    own = _deepspeed_file(found)
    options = found.get("deepspeed_config") or {}
    stage = options.get("zero_stage") if own is None else (_content(own).get("zero_optimization") or {}).get("stage")
    return f"zero{stage}" if stage in (0, 1, 2, 3) else ""


def _deepspeed_file(found: Mapping[str, Any]) -> Path | None:
    """Return DeepSpeed's own file that accelerate's names, where it stands for accelerate: from the working folder."""
    own = (found.get("deepspeed_config") or {}).get("deepspeed_config_file")
    file = Path(str(own)).expanduser().resolve()
    return file if own is not None and files.exists(file) and file.is_file() else None
