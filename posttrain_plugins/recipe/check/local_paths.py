"""What a recipe names that stands outside it already: model folders, Hub ids, data files, objects in a module."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from posttrain_plugins.errors import InputError
from posttrain_plugins.models.folder import ALLOW_PICKLE, gguf_refusal
from posttrain_plugins.plugins import registry
from posttrain_plugins.plugins.schema import accepts
from posttrain_plugins.plugins.source import package_file
from posttrain_plugins.recipe import files
from posttrain_plugins.recipe.check.diagnostics import Checker
from posttrain_plugins.recipe.read.document import Keys
from posttrain_plugins.recipe.spec import DataFile, External, Object, Source

__all__ = ["DATA_OPTIONS", "FILE_OPTIONS", "existing_data", "existing_model", "existing_object", "is_data"]

DATA_OPTIONS: dict[str, Any] = {
    "path": str,
    "name": str,
    "split": str,
    "columns": list[str],
    "limit": int,
    "rename": dict[str, str],
    "system_prompt": str,
}
MAX_HUB_ID = 200  # the Hub allows 96 for each half
FILE_OPTIONS: dict[str, Any] = {
    **DATA_OPTIONS,
    "data_dir": str,
    "data_files": str | list[str] | dict[str, str],
    "format": Literal["sharegpt", "alpaca", "openai", "ultrafeedback", "hh", "prm800k"],
    "types": dict[str, Literal["str", "int", "float", "bool"]],
}


def existing_model(checker: Checker, name: str, target: str, path: Keys, loading: Mapping[str, Any]) -> External:
    """A model's folder, which must hold one, or a Hub id."""
    is_named = target.lower().endswith(".gguf") and len(target) <= MAX_HUB_ID  # no repository of the Hub is one file
    local = is_named or target.startswith((".", "/", "~")) or files.exists(checker.folder / target)
    if not local:
        if len(target) > MAX_HUB_ID:
            checker.error(path, f"no folder and no Hub id has a name of {len(target):,} characters")
        return External(name, target, loading)
    folder = (checker.folder / Path(target).expanduser()).resolve()
    if (refusal := gguf_refusal(folder)) is not None:
        checker.error(path, refusal.message, refusal.hint)
    elif (problem := files.model_problem(folder, bool(loading.get(ALLOW_PICKLE)))) is not None:
        checker.error(path, problem, "save_pretrained() writes such a folder")
    return External(name, str(folder), loading)


def is_data(checker: Checker, text: str) -> bool:
    """A file or folder, there or not, or a Hub id."""
    return "/" in text or Path(text).suffix in files.SUFFIXES or files.exists(checker.folder / text)


def existing_data(checker: Checker, value: Mapping[str, Any], path: Keys, name: str) -> DataFile:
    """A data set of `{path: ...}`, a file or a Hub id."""
    checker.unknown_keys(path, value, FILE_OPTIONS)
    options = {key: item for key, item in value.items() if key in FILE_OPTIONS}
    for key, item in options.items():
        checker.check_type((*path, key), FILE_OPTIONS[key], item)
    options = {key: item for key, item in options.items() if accepts(FILE_OPTIONS[key], item)}
    target = str(options.pop("path", ""))
    file = (checker.folder / Path(target).expanduser()).resolve()
    if files.exists(file) and not file.is_file() and not file.is_dir():  # it would be read for ever
        checker.error((*path, "path"), f"{target} is neither a file nor a folder", "name a file of rows")
    elif files.exists(file):
        return DataFile(name, str(file), True, options)
    elif target.startswith((".", "/", "~")) or file.suffix in files.SUFFIXES:
        checker.error((*path, "path"), f"no file {target}", f"paths start from {checker.folder}")
    elif len(target) > MAX_HUB_ID:
        checker.error((*path, "path"), f"no file and no Hub id has a name of {len(target):,} characters")
    return DataFile(name, target, False, options)


def existing_object(checker: Checker, value: Any, path: Keys) -> Source:
    """`package.module:attr`, `file.py:attr` or a path; looked up in its source, which is not imported."""
    if not isinstance(value, str):
        checker.error(path, f"'{path[-1]}' is {value!r}, expected 'package.module:attr' or a path")
        return None
    head, colon, attr = value.rpartition(":")
    if colon and not head.endswith(".py"):
        _check_module(checker, value, path)
        return Object(value)
    target = (checker.folder / Path(head if colon else value).expanduser()).resolve()
    if files.exists(target):
        if colon:
            _check_attr(checker, target, attr, path)
        return Object(f"{target}:{attr}" if colon else str(target))
    if "/" in value and not value.startswith((".", "/")):
        return Object(value)  # a Hub id
    checker.error(path, f"no file {value}", f"paths start from {checker.folder}")
    return None


def _check_module(checker: Checker, target: str, path: Keys) -> None:
    """`package.module:attr`, as far as it can be told without importing the package."""
    module, _, attr = target.rpartition(":")
    if not registry.is_module(module):
        checker.error(path, f"'{target}': no package '{module.partition('.')[0]}'", "pip install it")
        return
    with contextlib.suppress(LookupError):  # a namespace package, which has no file
        file = package_file(module)
        if file.is_file():
            _check_attr(checker, file, attr, path)


def _check_attr(checker: Checker, file: Path, attr: str, path: Keys) -> None:
    try:
        registry.require_name(f"'{path[-1]}'", file, attr.partition(".")[0])
    except InputError as error:
        checker.error(path, error.message, error.hint)
