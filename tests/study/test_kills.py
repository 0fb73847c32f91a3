"""A short version of the benchmark of kills: nothing lost, nothing done twice, nobody left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from processes import finished

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_as_if_it_had_not_been() -> None:
    done = finished([sys.executable, BENCHMARK, "3", "4"], timeout=200)

    assert done.returncode == 0, done.stderr[-2000:]
    assert "wrong afterwards: 0 " in done.stdout, done.stdout
