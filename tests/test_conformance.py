"""Every installed trick goes through the public conformance suite, by enumeration of the entry points."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from built_ins import every_trick

from trickbox.catalog import available
from trickbox.testing import CHECKS, check_trick, parametrize_with_checks

FOLDER = Path(tempfile.gettempdir()) / "trickbox-conformance"
FOLDER.mkdir(exist_ok=True)
TRICKS = every_trick(FOLDER)


@parametrize_with_checks(list(TRICKS.values()))
def test_conformance(trick, check):
    check(trick)


def test_no_installed_trick_is_forgotten():
    assert sorted(TRICKS) == available()
    assert len(CHECKS) == 16, "a check more or less: say so here, so that none is lost unseen"


def test_the_suite_reports_without_pytest():
    report = check_trick(TRICKS["dropout"])
    assert len(report.passed) == len(CHECKS)
    assert "16 checks passed, 0 failed" in str(report)


def test_an_unknown_expected_failure_is_an_error():
    with pytest.raises(ValueError, match="Did you mean 'check_undo'"):
        parametrize_with_checks([], expected_failures={"check_undoo": "typo"})
