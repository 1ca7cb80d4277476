"""transformers' report of weights that were missing, without the alarm where a head is read or trained right after.

A classifier's adapter is loaded over its base, a causal LM without that head. transformers then reports `score.weight`
as newly initialized and advises to train it, though the adapter brings it. No paper.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["expecting", "heads_in"]

NEW_HEAD = ("score", "classifier")
"""What a head is called that a stage makes, to train it."""
ANSI = re.compile(r"\x1b\[[0-9;]*m")
ROW = re.compile(r"^(\S+?)\s*\|\s*([A-Z]{2,})", re.MULTILINE)


@contextmanager
def expecting(heads: Collection[str] = NEW_HEAD) -> Iterator[None]:
    """Within, transformers does not report that these modules are missing; whatever else it has to say, it says.

    Args:
        heads: names of modules; by default what a stage calls a head that it makes.
    """
    logger = logging.getLogger("transformers.modeling_utils")

    def tells(record: logging.LogRecord) -> bool:
        text = ANSI.sub("", record.getMessage())
        return "LOAD REPORT" not in text or not all(
            _is_expected(key, status, heads) for key, status in ROW.findall(text)
        )

    logger.addFilter(tells)
    try:
        yield
    finally:
        logger.removeFilter(tells)


def heads_in(folder: Path) -> set[str]:
    """Return the modules that a saved classifier's adapter brings whole, such as `score`."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return set()
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        names = [name.removeprefix("base_model.model.") for name in tensors.keys()]  # noqa: SIM118, no mapping
    return {head for head in NEW_HEAD if any(name.startswith(f"{head}.") for name in names)}


def _is_expected(key: str, status: str, heads: Collection[str]) -> bool:
    """Tell a head that comes from elsewhere, and the LM head for which a classifier has no place."""
    module = key.partition(".")[0]
    return module in heads if status == "MISSING" else (module, status) == ("lm_head", "UNEXPECTED")
