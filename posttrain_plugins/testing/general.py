"""Checks on plugins of every kind: it can be made, it says what it is and takes, and importing it is light."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
from typing import Any
from unittest import SkipTest

from posttrain_plugins.errors import PLUGIN_FAILURES
from posttrain_plugins.plugins.registry import FILE_MODULE
from posttrain_plugins.plugins.schema import REWARD_ARGUMENTS
from posttrain_plugins.testing.subject import Subject, skip_on_error, subject

__all__ = [
    "CHECKS",
    "check_can_be_made",
    "check_has_a_docstring",
    "check_is_light_to_import",
    "check_parameters_are_typed",
]

HEAVY = ("torch", "transformers", "trl", "peft", "datasets")  # slow to import


def check_can_be_made(plugin: Any) -> None:
    """It imports, and its defaults (or its `example_params`) make one.

    A recipe builds every plugin before the first stage runs, so that a value it refuses is told now and not in the
    night. A plugin that needs parameters declares `example_params`, so that it can be tried at all.
    """
    tried = subject(None, plugin)
    try:
        tried.try_to_make()
    except PLUGIN_FAILURES as cause:
        needed = [name for name, field in tried.schema.fields.items() if field.is_required]
        hint = f"; declare example_params with {', '.join(needed)}" if needed and not tried.params else ""
        raise AssertionError(f"it cannot be made: {type(cause).__name__}: {cause}{hint}") from cause


def check_has_a_docstring(plugin: Any) -> None:
    """It has a docstring that begins with a line of its own.

    `posttrain plugins list` prints that line; whoever reads a recipe a year later has nothing else to go by.
    """
    source = _loaded(plugin).source
    # of a class its own, not a base's: `inspect.getdoc` would find that of `object` or of a mixin
    text = (source.__dict__.get("__doc__") if isinstance(source, type) else inspect.getdoc(source)) or ""
    # `dataclass` writes the signature where there is no docstring: `Brevity(max_chars: int = 800)`
    is_generated = isinstance(source, type) and text.startswith(f"{source.__name__}(")
    has_one = bool(text.strip()) and not is_generated
    assert has_one, "it has no docstring"


def check_parameters_are_typed(plugin: Any) -> None:
    """Every parameter has a type annotation.

    The signature is the schema: without a type, `lr: "1e-5"` passes `posttrain validate` and fails hours later, and
    editors complete nothing.
    """
    tried = _loaded(plugin)
    if tried.kind in ("reward", "strategy") and not isinstance(tried.source, type):
        raise SkipTest("a plain function has no parameters of its own")
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    given = [p for p in inspect.signature(tried.source).parameters.values() if p.kind not in skipped]
    bare = [p.name for p in given if p.annotation is inspect.Parameter.empty and p.name not in REWARD_ARGUMENTS]
    assert not bare, f"parameters without a type: {', '.join(bare)}"


def check_is_light_to_import(plugin: Any) -> None:
    """Its module imports none of torch, transformers, trl, peft and datasets when it is imported.

    `posttrain validate` and `plan` import installed plugins and answer in about a second; one `import torch` on top
    of a module makes it five for everyone who has the package installed. Import inside the call.
    """
    source = _loaded(plugin).source
    if source.__module__.startswith(FILE_MODULE):
        raise SkipTest("it is a file, not a package: validate reads it and does not import it")
    # a notebook, a script, or a module that was made by hand
    if getattr(sys.modules.get(source.__module__), "__spec__", None) is None or source.__module__ == "__main__":
        raise SkipTest("its module is no importable file")
    found = _heavy_imports(source.__module__)
    assert not found, f"importing {source.__module__} imports {', '.join(found)}"


def _loaded(plugin: Any) -> Subject:
    tried = subject(None, plugin)
    with skip_on_error("it cannot be imported: check_can_be_made says why"):
        tried.source  # noqa: B018 (imports it)
    return tried


@functools.cache
def _heavy_imports(module: str) -> tuple[str, ...]:
    """Return those of `HEAVY` that a fresh interpreter has imported after it imported the module."""
    # fresh, because this process has imported torch for other checks; one run a module, whatever plugins it holds
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; import {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:  # it lives in a test file or a script, whose folder only this process knows
        raise SkipTest(f"a fresh interpreter cannot import {module}")
    return tuple(done.stdout.split())


CHECKS = (check_can_be_made, check_has_a_docstring, check_parameters_are_typed, check_is_light_to_import)
