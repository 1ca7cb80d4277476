"""Why a plan cannot tell a stage's memory. No paper."""

from __future__ import annotations

__all__ = ["Unknown"]


class Unknown(Exception):
    """What a stage takes cannot be told before it, or one before it, has run; says why."""
