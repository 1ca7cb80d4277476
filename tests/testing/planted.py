"""Faults that are planted in plugins: for each check of the kit one plugin, which fails that check and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from posttrain_plugins import testing
from posttrain_plugins.testing import CHECKS, run_checks
from posttrain_plugins.types import Kind

__all__ = ["Planted"]

GENERAL = {check.__name__ for check in testing.general.CHECKS}


class Planted:
    """The plugins with one fault each of a kind, by the check that has to find it.

    Args:
        kind: one of the six kinds.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.plugins: dict[str, Any] = {}

    def fails(self, check: str) -> Callable[[Any], Any]:
        """Return a decorator for the plugin that fails this check and no other."""

        def note(plugin: Any) -> Any:
            assert check not in self.plugins
            self.plugins[check] = plugin
            return plugin

        return note

    def assert_fails_alone(self, check: str) -> None:
        outcomes = run_checks(self.kind, self.plugins[check])
        failed = {outcome.check: outcome.reason for outcome in outcomes if outcome.status == "failed"}
        assert list(failed) == [check], failed
        assert failed[check]

    def assert_every_check_has_one(self) -> None:
        names = {check.__name__ for check in CHECKS[self.kind]}
        assert names - GENERAL <= set(self.plugins) <= names

    def assert_passes(self, plugin: Any) -> None:
        failed = {o.check: o.reason for o in run_checks(self.kind, plugin) if o.status == "failed"}
        assert failed.keys() <= {"check_has_a_docstring"}, failed
