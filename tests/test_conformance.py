"""Every built-in plugin against the conformance kit: by its name, as a stranger's is checked."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain_plugins.plugins import registry
from posttrain_plugins.testing import CHECKS, Subject, stages
from posttrain_plugins.testing.running import expected_failures_of
from posttrain_plugins.types import KINDS

DISTRIBUTION = "posttrain-plugins"


def _is_slow(tried: Subject, check: Any) -> bool:
    """Those that load a model: the slow tier, where importing torch is paid for already."""
    return tried.kind == "adapter" or bool(tried.declares("holds_model")) or check in stages.RUNNING


def _parameters() -> list[Any]:
    found = []
    for kind in KINDS:
        for plugin in registry.installed(kind):
            if plugin.distribution != DISTRIBUTION:
                continue
            tried = Subject(kind, plugin.name)
            expected = expected_failures_of(tried)
            for check in CHECKS[kind]:
                reason = expected.get(check.__name__)
                marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
                marks += [pytest.mark.slow] if _is_slow(tried, check) else []
                found.append(pytest.param(tried, check, id=f"{kind}-{plugin.name}-{check.__name__}", marks=marks))
    return found


@pytest.mark.parametrize(("plugin", "check"), _parameters())
def test_a_built_in_plugin_keeps_its_contract(plugin: Subject, check: Any) -> None:
    check(plugin)


def test_every_kind_is_there() -> None:
    counts = {kind: len([p for p in registry.installed(kind) if p.distribution == DISTRIBUTION]) for kind in KINDS}
    assert all(count >= 1 for count in counts.values()), counts
    assert counts["strategy"] >= 20
