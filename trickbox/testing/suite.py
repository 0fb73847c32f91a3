"""The checks as pytest items, one for each trick and check, or as a report without pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from trickbox.errors import ConfigError, near
from trickbox.testing.checks import CHECKS
from trickbox.trick import name_of, to_config

if TYPE_CHECKING:
    import pytest


@frozen
class Report:
    """What `check_trick` found: the error of each check that failed, and the names of those that passed."""

    trick: str
    passed: tuple[str, ...]
    failed: Mapping[str, Exception]

    def __str__(self) -> str:
        lines = [f"{self.trick}: {len(self.passed)} checks passed, {len(self.failed)} failed"]
        return "\n".join([*lines, *(f"  {name}: {error}" for name, error in self.failed.items())])


def check_trick(trick: Any) -> Report:
    """Run every check on *trick*. Cost: about a second.

    >>> from trickbox import get
    >>> check_trick(get("placebo")()).failed
    {}
    """
    failed: dict[str, Exception] = {}
    for name, check in CHECKS.items():
        try:
            check(trick)
        except Exception as error:
            failed[name] = error
    return Report(name_of(trick), tuple(name for name in CHECKS if name not in failed), failed)


def parametrize_with_checks(
    tricks: Sequence[Any], expected_failures: Mapping[str, str] | None = None
) -> Callable[[Any], pytest.MarkDecorator]:
    """Decorate a test of (trick, check) so that it runs once for every trick and check.

    *expected_failures* maps names of checks to reasons; one that passes after all is a failure. Raises `ConfigError`
    for the name of a check that does not exist.

    ::

        @parametrize_with_checks([MyTrick(), MyTrick(every=2)])
        def test_conformance(trick, check):
            check(trick)
    """
    import pytest

    expected = dict(expected_failures or {})
    for name in expected:
        if name not in CHECKS:
            raise ConfigError(f"expected_failures: there is no check {name!r}.{near(name, CHECKS)}")
    items = [
        pytest.param(
            trick,
            check,
            id=f"{_label(trick)}-{name}",
            marks=[pytest.mark.xfail(reason=expected[name], strict=True)] if name in expected else [],
        )
        for trick in tricks
        for name, check in CHECKS.items()
    ]
    return pytest.mark.parametrize(("trick", "check"), items)


def _label(trick: Any) -> str:
    settings = ",".join(f"{name}={value}" for name, value in to_config(trick).items() if name != "trick")
    return f"{name_of(trick)}({settings[:40]})"
