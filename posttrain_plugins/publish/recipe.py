"""The recipe of a run, written for others: no secrets, and no home folder of whoever ran it. No paper."""

from __future__ import annotations

from pathlib import Path

import yaml

from posttrain_plugins.publish.origins import resolved_of
from posttrain_plugins.report.masking import masked

__all__ = ["write_recipe"]


def write_recipe(run: Path, folder: Path) -> None:
    """Write the recipe that a run has resolved into a folder, if there is one.

    Args:
        run: `runs/<recipe>`.
        folder: that others will read.
    """
    values = resolved_of(run)
    if values:
        text = yaml.safe_dump(masked(values), sort_keys=False, allow_unicode=True)
        (folder / "resolved.yaml").write_text(text, encoding="utf-8")
