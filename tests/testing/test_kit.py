"""The conformance kit as a whole: in one call, as pytest parameters, with failures that are expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
from test_reward_checks import Proud, Sound

from posttrain_plugins import testing
from posttrain_plugins.errors import InputError
from posttrain_plugins.testing import CHECKS, run_checks


@pytest.mark.parametrize("kind", CHECKS)
def test_every_check_says_why_it_matters(kind: Any) -> None:
    for check in CHECKS[kind]:
        first, _, why = (check.__doc__ or "").partition("\n\n")
        assert first.strip(), check.__name__
        assert len(why.split()) >= 8, f"{check.__name__} does not say why it matters"


def test_an_object_that_was_made_passes() -> None:
    assert not [o for o in run_checks("reward", Sound()) if o.status == "failed"]


def test_a_heavy_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heavy_reward.py").write_text(
        'import datasets\n\n\ndef ones(completions, **_):\n    """Ones."""\n    return [1.0 for _ in completions]\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    failed = {o.check: o.reason for o in run_checks("reward", "heavy_reward:ones") if o.status == "failed"}
    assert failed == {"check_is_light_to_import": "importing heavy_reward imports datasets"}


def test_a_file_is_not_asked_to_be_light_to_import(tmp_path: Path) -> None:
    file = tmp_path / "brief.py"
    file.write_text('def ones(completions, **_):\n    """Ones."""\n    return [1.0 for _ in completions]\n')
    skipped = {o.check: o.reason for o in run_checks("reward", f"{file}:ones") if o.status == "skipped"}
    assert skipped["check_is_light_to_import"].startswith("it is a file, not a package")


# --- expected failures -----------------------------------------------------------------------------------------------


def test_an_expected_failure_needs_a_reason_and_an_existing_check() -> None:
    with pytest.raises(InputError, match="'check_finite' has no reason"):
        run_checks("reward", Sound, expected_failures={"check_finite": " "})
    with pytest.raises(InputError, match="no check 'check_finit'"):
        run_checks("reward", Sound, expected_failures={"check_finit": "because"})


def test_an_expected_failure_is_strict() -> None:
    reason = {"check_within_bounds": "the bounds are the paper's"}
    by_name = {o.check: o for o in run_checks("reward", Proud, expected_failures=reason)}
    assert by_name["check_within_bounds"].status == "expected"
    by_name = {o.check: o for o in run_checks("reward", Sound, expected_failures=reason)}
    assert by_name["check_within_bounds"].status == "failed"
    assert "is expected to fail" in by_name["check_within_bounds"].reason


def test_all_checks_in_one_call() -> None:
    testing.check_reward(Sound)
    with pytest.raises(AssertionError, match=r"1 of \d+ checks failed\ncheck_within_bounds: "):
        testing.check_reward(Proud)


def test_parameters_for_pytest_are_strict() -> None:
    mark = testing.parametrize_with_checks("reward", [Proud], expected_failures={"check_within_bounds": "so it is"})
    names, parameters = mark.args
    assert names == ("plugin", "check")
    assert len(parameters) == len(CHECKS["reward"])
    (marked,) = [p for p in parameters if p.marks]
    assert marked.id == "Proud-check_within_bounds"
    assert marked.marks[0].kwargs == {"reason": "so it is", "strict": True}


def test_a_check_is_a_plain_function() -> None:
    from posttrain_plugins.testing.rewards import check_within_bounds

    check_within_bounds(Sound())
    check_within_bounds("length")
    with pytest.raises(AssertionError, match="outside of"):
        check_within_bounds(Proud)
    with pytest.raises(SkipTest, match="declares no bounds"):
        check_within_bounds(lambda completions, **columns: [1.0 for _ in completions])
    with pytest.raises(TypeError, match="which kind"):
        testing.general.check_can_be_made(Sound)


def test_a_broken_plugin_fails_one_check(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_package\n\n\ndef score(completions, **columns): ...\n")
    outcomes = run_checks("reward", f"{tmp_path}/broken.py:score")
    failed = [o for o in outcomes if o.status == "failed"]
    assert [o.check for o in failed] == ["check_can_be_made"]
    assert "no_such_package" in failed[0].reason
