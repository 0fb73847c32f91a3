"""The conformance suite: what every trick must hold, for its author's own tests.

models.py   small models and data, and awkward ones
checks.py   one function for each promise
suite.py    the same as pytest items, or as a report without pytest
"""

from __future__ import annotations

from trickbox.testing.checks import CHECKS as CHECKS
from trickbox.testing.models import tiny_data as tiny_data
from trickbox.testing.models import tiny_model as tiny_model
from trickbox.testing.models import tiny_model_for as tiny_model_for
from trickbox.testing.suite import Report as Report
from trickbox.testing.suite import check_trick as check_trick
from trickbox.testing.suite import parametrize_with_checks as parametrize_with_checks
