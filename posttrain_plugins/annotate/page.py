"""The page: one document with its own style and script, which asks its server and nobody else. No paper.

It holds no data: that comes as JSON and is drawn by `textContent`, so nothing that a model wrote is ever parsed. Beside
the escapes of `report/page.py`, its policy lets run the hash of its own script alone, and makes `innerHTML` an error.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from posttrain_plugins.decisions.item import Mode
from posttrain_plugins.report.page import clean, page, policy, static

__all__ = ["About", "html_of", "policy_of"]

HERE = "posttrain_plugins.annotate"


@dataclass(frozen=True)
class About:
    """What all pages say, whatever item is asked.

    Args:
        title: in the browser's tab.
        mode: what is asked.
        guideline: tells how to decide; "" where there is none.
        annotator: a name that the page proposes.
        next_command: what to run when all is decided; "" where nothing waits.
    """

    title: str
    mode: Mode
    guideline: str = ""
    annotator: str = ""
    next_command: str = ""

    @property
    def guideline_sha(self) -> str:
        """sha256 of the guideline, 64 hex digits; "" where there is none."""
        raw = self.guideline.encode("utf-8", "surrogatepass")
        return hashlib.sha256(raw).hexdigest() if self.guideline else ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON for the page."""
        return {
            "title": clean(self.title),
            "mode": self.mode,
            "guideline": clean(self.guideline),
            "guideline_sha": self.guideline_sha,
            "annotator": self.annotator,
            "next_command": self.next_command,
        }


def html_of(title: str) -> str:
    """Return the page."""
    body = static("annotate.html", HERE)
    return page(title, [body], styles=[_style()], scripts=[_script()], is_served=True)


@cache
def policy_of() -> str:
    """Return the Content-Security-Policy of the page, with what a header alone can say."""
    sheets = [static("page.css"), _style()]
    return f"{policy(sheets, [_script()], is_served=True)}; img-src 'none'; frame-ancestors 'none'"


def _style() -> str:
    return static("annotate.css", HERE)


def _script() -> str:
    return static("annotate.js", HERE)
