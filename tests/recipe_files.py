"""Files of Python beside the recipes, which are no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent.parent / "recipes"


def load(name: str) -> Any:
    """Import `recipes/NAME.py`; `name` may have a folder, `real/sorting`."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), RECIPES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module
