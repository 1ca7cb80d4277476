"""Runs all checks of a kind on one plugin: in one call, as pytest parameters, or as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from unittest import SkipTest

from posttrain_plugins.errors import PLUGIN_FAILURES, InputError
from posttrain_plugins.plugins import registry
from posttrain_plugins.testing import adapters, datasets, general, rewards, stages, strategies, tools
from posttrain_plugins.testing.subject import Subject, subject
from posttrain_plugins.types import Kind

__all__ = [
    "CHECKS",
    "Outcome",
    "check_adapter",
    "check_dataset",
    "check_reward",
    "check_stage",
    "check_strategy",
    "check_tool",
    "expected_failures_of",
    "parametrize_with_checks",
    "run_checks",
]

Check = Callable[[Any], None]

CHECKS: dict[Kind, tuple[Check, ...]] = {
    "reward": (*general.CHECKS, *rewards.CHECKS),
    "adapter": (*general.CHECKS, *adapters.CHECKS),
    "strategy": (*general.CHECKS, *strategies.CHECKS),
    "dataset": (*general.CHECKS, *datasets.CHECKS),
    "stage": (*general.CHECKS, *stages.CHECKS),
    "tool": (*general.CHECKS, *tools.CHECKS),
}
"""Kind -> its checks, in the order in which they run."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    Args:
        check: its name.
        status: `expected` for a failure that was expected; one that passes all the same is `failed`.
        reason: why it failed, was skipped or is expected to fail.
    """

    check: str
    status: Literal["passed", "failed", "skipped", "expected"]
    reason: str = ""


def run_checks(
    kind: Kind, plugin: Any, *, expected_failures: Mapping[str, str] | None = None, without: Sequence[Check] = ()
) -> list[Outcome]:
    """Run every check of a kind.

    Args:
        kind: one of the six kinds.
        plugin: a name as in a recipe, a class or function, or an object that was made already.
        expected_failures: check -> reason; added to those that the plugin declares.
        without: checks to leave out.

    Returns:
        The outcomes in the order of `CHECKS`.

    Raises:
        InputError: an expected failure without a reason, or of a check that does not exist.
    """
    tried = subject(kind, plugin)
    expected = expected_failures_of(tried, expected_failures)
    return [_outcome(check, tried, expected.get(check.__name__)) for check in CHECKS[kind] if check not in without]


def check_reward(plugin: Any, expected_failures: Mapping[str, str] | None = None) -> None:
    """Run every check on a reward.

    Args:
        plugin: its name, class or function, or an object.
        expected_failures: check -> reason; one that passes all the same is an error.

    Raises:
        AssertionError: with every check that failed.

    Example:
        >>> check_reward("length")
    """
    _assert_none_failed("reward", plugin, expected_failures)


def check_adapter(plugin: Any, expected_failures: Mapping[str, str] | None = None) -> None:
    """Run every check on an adapter; else as `check_reward`."""
    _assert_none_failed("adapter", plugin, expected_failures)


def check_strategy(plugin: Any, expected_failures: Mapping[str, str] | None = None) -> None:
    """Run every check on a strategy; else as `check_reward`."""
    _assert_none_failed("strategy", plugin, expected_failures)


def check_dataset(plugin: Any, expected_failures: Mapping[str, str] | None = None) -> None:
    """Run every check on a data set; else as `check_reward`."""
    _assert_none_failed("dataset", plugin, expected_failures)


def check_stage(plugin: Any, expected_failures: Mapping[str, str] | None = None) -> None:
    """Run every check on a stage, one step of training among them; else as `check_reward`."""
    _assert_none_failed("stage", plugin, expected_failures)


def check_tool(plugin: Any, expected_failures: Mapping[str, str] | None = None) -> None:
    """Run every check on a tool; else as `check_reward`."""
    _assert_none_failed("tool", plugin, expected_failures)


def parametrize_with_checks(
    kind: Kind, plugins: Iterable[Any], *, expected_failures: Mapping[str, str] | None = None
) -> Any:
    """Return a pytest decorator that makes one test per plugin and check.

    Args:
        kind: one of the six kinds.
        plugins: names, classes, functions or objects.
        expected_failures: check -> reason, marked `xfail(strict=True)`.

    Example:
        >>> @parametrize_with_checks("reward", ["length"])
        ... def test_length(plugin, check):
        ...     check(plugin)
    """
    import pytest

    parameters = []
    for plugin in plugins:
        tried = subject(kind, plugin)
        expected = expected_failures_of(tried, expected_failures)
        # a test each, so that pytest names the check that fails
        for check in CHECKS[kind]:
            reason = expected.get(check.__name__)
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            parameters.append(pytest.param(tried, check, id=f"{tried.name}-{check.__name__}", marks=marks))
    return pytest.mark.parametrize(("plugin", "check"), parameters)


def _assert_none_failed(kind: Kind, plugin: Any, expected_failures: Mapping[str, str] | None) -> None:
    failed = [o for o in run_checks(kind, plugin, expected_failures=expected_failures) if o.status == "failed"]
    lines = "\n".join(f"{outcome.check}: {outcome.reason}" for outcome in failed)
    assert not failed, f"{subject(kind, plugin)}: {len(failed)} of {len(CHECKS[kind])} checks failed\n{lines}"


def _outcome(check: Check, tried: Subject, expected: str | None) -> Outcome:
    name = check.__name__
    try:
        check(tried)
    except SkipTest as skipped:  # before `Exception`, of which it is one
        return Outcome(name, "skipped", str(skipped))
    except PLUGIN_FAILURES as failure:
        if expected:
            return Outcome(name, "expected", expected)
        is_ours = isinstance(failure, AssertionError)  # its text is whole; any other needs its type to be understood
        return Outcome(name, "failed", str(failure) if is_ours else f"it raised {type(failure).__name__}: {failure}")
    if expected:  # strict: a reason that no longer holds is found, and struck off
        return Outcome(name, "failed", f"it passes, but is expected to fail: {expected}")
    return Outcome(name, "passed")


def expected_failures_of(tried: Subject, given: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return check -> reason: what the plugin declares, and what is given.

    Raises:
        InputError: one without a reason, or of a check that does not exist.
    """
    try:
        declared = tried.declares("expected_failures")
    except PLUGIN_FAILURES:  # it cannot be imported, which `check_can_be_made` says
        declared = {}
    expected = {**declared, **(given or {})}
    known = [check.__name__ for check in CHECKS[tried.kind]]
    for name, reason in expected.items():
        if name not in known:
            hint = registry.suggest(name, known) or ", ".join(known)
            raise InputError(f"expected_failures of {tried!r}: no check '{name}'", hint=hint)
        if not reason or not reason.strip():
            raise InputError(f"expected_failures of {tried!r}: '{name}' has no reason", hint="say why it cannot pass")
    return expected
